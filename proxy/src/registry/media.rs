//! Which bodies may not reach an upload route.

/// Whether an upload with this `Content-Type` must be refused with 415.
///
/// distribution reads `mount`, `from`, `digest` and `_state` with Go's `FormValue`, which takes them from a form or
/// multipart **body** before it looks at the query: such a body would mount or finish something that the judged query
/// does not show. Go takes the part before `;`, trims and lower-cases it, and goes on even when the parameters are
/// broken. Here the same part has to be a clean ASCII `type/subtype` that is no form; anything odd is refused. No value,
/// or an empty one, means `application/octet-stream` there and passes.
///
/// Ask for each `Content-Type` line of a request on its own.
pub fn forbidden_upload_type(content_type: &[u8]) -> bool {
    // Two lines folded into one by a comma would be read differently by different servers.
    let essence = content_type.split(|&b| b == b';' || b == b',').next().unwrap_or_default().trim_ascii();
    if essence.is_empty() {
        return !content_type.trim_ascii().is_empty();
    }
    if content_type.contains(&b',') || !content_type.iter().all(|b| matches!(b, b'\t' | b' '..=b'~')) {
        return true;
    }
    let Some(slash) = essence.iter().position(|&b| b == b'/') else {
        return true;
    };
    let (kind, subtype) = (essence[..slash].to_ascii_lowercase(), essence[slash + 1..].to_ascii_lowercase());
    let is_token = |part: &[u8]| !part.is_empty() && part.iter().all(|&b| is_token_byte(b));
    !is_token(&kind) || !is_token(&subtype) || kind == b"multipart" || subtype.windows(4).any(|w| w == b"form")
}

/// RFC 9110 §5.6.2 `tchar`.
fn is_token_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes() {
        for fine in [
            "",
            "  ",
            "application/octet-stream",
            "APPLICATION/Octet-Stream",
            " application/octet-stream ; a=b",
            "application/octet-stream;",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "text/plain; charset=utf-8",
        ] {
            assert!(!forbidden_upload_type(fine.as_bytes()), "{fine}");
        }
    }

    #[test]
    fn refuses_forms_however_they_are_written() {
        for form in [
            &b"application/x-www-form-urlencoded"[..],
            b"Application/X-WWW-Form-UrlEncoded",
            b" \t application/x-www-form-urlencoded \t; charset=utf-8",
            b"application/x-www-form-urlencoded;",
            b"application/x-www-form-urlencoded; broken parameter",
            b"application/x-www-form-urlencoded, application/octet-stream",
            b"application/octet-stream, application/x-www-form-urlencoded",
            b"multipart/form-data; boundary=x",
            b"MULTIPART/mixed; boundary=x",
            b"multipart/anything",
            b"multipart",
            b"form-data",
            b"; application/x-www-form-urlencoded",
            b", multipart/form-data",
            b"application/x-www-form-urlencoded\x0b",
            b"\x0bapplication/x-www-form-urlencoded",
            // Go lower-cases U+0130 to a plain `i`.
            "appl\u{130}cation/x-www-form-urlencoded".as_bytes(),
            b"application/octet-stream\0",
            b"application /x-www-form-urlencoded",
            b"application/",
            b"/x",
            b"a/b/c",
            b"\xff/\xff",
        ] {
            assert!(forbidden_upload_type(form), "{}", String::from_utf8_lossy(form));
        }
    }
}
