//! How long a body is, and who says so (RFC 9112 §6).

use super::fields::Field;
use super::head::Version;
use super::reject::Reject;

/// The length of a message body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// Exactly this many bytes.
    Length(u64),
    /// The chunked transfer coding.
    Chunked,
    /// Everything until the sender closes; responses only.
    UntilClose,
}

impl Framing {
    /// Whether no byte of body follows the head.
    pub fn is_empty(self) -> bool {
        matches!(self, Framing::None | Framing::Length(0))
    }
}

/// What a head's framing fields say, before the rules of requests or responses are applied.
pub(super) struct Declared {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
}

/// Reads `Content-Length` and `Transfer-Encoding`; each at most once, never both.
pub(super) fn declared(fields: &[Field<'_>], version: Version) -> Result<Declared, Reject> {
    let mut length = None;
    let mut chunked = false;
    for field in fields {
        if field.is("content-length") {
            if length.is_some() {
                return Err(Reject::Malformed("more than one Content-Length"));
            }
            length = Some(decimal(field.value)?);
        } else if field.is("transfer-encoding") {
            if chunked {
                return Err(Reject::Malformed("more than one Transfer-Encoding"));
            }
            if version == Version::Http10 {
                return Err(Reject::Malformed("Transfer-Encoding in an HTTP/1.0 message"));
            }
            if !field.value.eq_ignore_ascii_case(b"chunked") {
                return Err(Reject::UnknownCoding);
            }
            chunked = true;
        }
    }
    if chunked && length.is_some() {
        return Err(Reject::Malformed("both Content-Length and Transfer-Encoding"));
    }
    Ok(Declared { length, chunked })
}

/// One plain decimal number: no sign, no list, no white space inside, no overflow.
fn decimal(value: &[u8]) -> Result<u64, Reject> {
    const BAD: Reject = Reject::Malformed("Content-Length is not one decimal number");
    // 19 digits always fit a u64; 10^19 bytes is no body that anybody sends.
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    Ok(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_plain_decimal_is_a_length() {
        assert_eq!(decimal(b"0"), Ok(0));
        assert_eq!(decimal(b"0012"), Ok(12));
        assert_eq!(decimal(b"9999999999999999999"), Ok(9_999_999_999_999_999_999));
        for bad in ["", "+1", "-1", "1 2", "1,1", "0x10", "10000000000000000000", "1\t", "٣"] {
            assert!(decimal(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
