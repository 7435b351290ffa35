//! What a certificate says of itself: until when it holds, and whose it is.
//!
//! A short walk over its DER (RFC 5280 §4.1). Whether to believe it is for others to say: these bytes come from the
//! gate's own files, or from a handshake whose chain and signature have been verified.

use sha2::{Digest as _, Sha256};

use super::principal::Principal;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT: u8 = 0x06;
const OCTETS: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`, `[3]`: version and extensions.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
/// 2.5.29.17
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 17];

/// A client's certificate that the handshake has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The SHA-256 of the whole certificate.
    pub fingerprint: [u8; 32],
    /// Whose it is; none where it has no name, or more than one.
    pub principal: Option<Principal>,
    not_after: u64,
}

impl ClientCertificate {
    /// Reads a verified certificate; none where it is not understood.
    #[must_use]
    pub fn read(der: &[u8]) -> Option<Self> {
        let fields = Fields::of(der)?;
        let principal = fields.name().and_then(|name| Principal::certificate(&name));
        Some(Self { fingerprint: Sha256::digest(der).into(), principal, not_after: fields.not_after()? })
    }

    /// Whether it holds at `now` (seconds since 1970): a connection, or a resumed session, may outlive it.
    #[must_use]
    pub fn holds_at(&self, now: u64) -> bool {
        now <= self.not_after
    }
}

/// The last second at which a certificate holds, since 1970.
#[must_use]
pub fn not_after(der: &[u8]) -> Option<u64> {
    Fields::of(der)?.not_after()
}

/// The parts of a certificate that are looked at.
struct Fields<'c> {
    validity: &'c [u8],
    subject: &'c [u8],
    extensions: &'c [u8],
}

impl<'c> Fields<'c> {
    fn of(der: &'c [u8]) -> Option<Self> {
        let mut outer = Der(der).inside(SEQUENCE)?;
        let mut certificate = outer.inside(SEQUENCE)?;
        certificate.skip_if(VERSION)?;
        let (_serial, _algorithm, _issuer) = (certificate.next()?, certificate.next()?, certificate.next()?);
        let validity = certificate.inside(SEQUENCE)?.0;
        let subject = certificate.inside(SEQUENCE)?.0;
        let mut extensions: &[u8] = &[];
        while !certificate.0.is_empty() {
            let (tag, body) = certificate.next()?;
            if tag == EXTENSIONS {
                extensions = Der(body).inside(SEQUENCE)?.0;
            }
        }
        Some(Self { validity, subject, extensions })
    }

    fn not_after(&self) -> Option<u64> {
        let mut validity = Der(self.validity);
        validity.next()?;
        let (tag, text) = validity.next()?;
        seconds(tag, std::str::from_utf8(text).ok()?)
    }

    /// The one common name; where there is none, the one alternative name.
    fn name(&self) -> Option<String> {
        match self.common_names()?.as_slice() {
            [] => match self.alternative_names()?.as_slice() {
                [one] => Some((*one).to_owned()),
                _ => None,
            },
            [one] => Some((*one).to_owned()),
            _ => None,
        }
    }

    fn common_names(&self) -> Option<Vec<&'c str>> {
        let (mut found, mut sets) = (Vec::new(), Der(self.subject));
        while !sets.0.is_empty() {
            let mut set = sets.inside(SET)?;
            while !set.0.is_empty() {
                let mut pair = set.inside(SEQUENCE)?;
                if pair.inside(OBJECT)?.0 == COMMON_NAME {
                    found.push(text(pair.next()?)?);
                }
            }
        }
        Some(found)
    }

    /// Those that are an e-mail address, a DNS name or a URI.
    fn alternative_names(&self) -> Option<Vec<&'c str>> {
        let mut extensions = Der(self.extensions);
        while !extensions.0.is_empty() {
            let mut extension = extensions.inside(SEQUENCE)?;
            if extension.inside(OBJECT)?.0 != ALTERNATIVE_NAMES {
                continue;
            }
            let (mut tag, mut body) = extension.next()?;
            if tag != OCTETS {
                // Whether it is critical.
                (tag, body) = extension.next()?;
            }
            let mut names = (tag == OCTETS).then_some(Der(body))?.inside(SEQUENCE)?;
            let mut found = Vec::new();
            while !names.0.is_empty() {
                if let (0x81 | 0x82 | 0x86, name) = names.next()? {
                    found.push(std::str::from_utf8(name).ok()?);
                }
            }
            return Some(found);
        }
        Some(Vec::new())
    }
}

/// A string in one of the encodings that cannot be misread: UTF8String, PrintableString, IA5String.
fn text((tag, bytes): (u8, &[u8])) -> Option<&str> {
    matches!(tag, 0x0c | 0x13 | 0x16).then(|| std::str::from_utf8(bytes).ok())?
}

/// Elements one after the other.
#[derive(Clone, Copy)]
struct Der<'c>(&'c [u8]);

impl<'c> Der<'c> {
    fn next(&mut self) -> Option<(u8, &'c [u8])> {
        let [tag, first, rest @ ..] = self.0 else { return None };
        let (len, rest) = match *first {
            short @ 0..=0x7f => (usize::from(short), rest),
            // Four bytes of length are more than any certificate needs.
            long @ 0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
                (bytes.iter().fold(0, |len, b| len << 8 | usize::from(*b)), rest)
            }
            _ => return None,
        };
        let (body, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((*tag, body))
    }

    fn inside(&mut self, tag: u8) -> Option<Self> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, body)| Self(body))
    }

    fn skip_if(&mut self, tag: u8) -> Option<()> {
        if self.0.first() == Some(&tag) {
            self.next()?;
        }
        Some(())
    }
}

/// A time of RFC 5280 §4.1.2.5: `YYMMDDHHMMSSZ` (50 and more are of the last century) or `YYYYMMDDHHMMSSZ`.
fn seconds(tag: u8, text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z').filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    let (year, rest): (u64, &str) = match (tag, text.len()) {
        (UTC_TIME, 12) => {
            let year: u64 = text[..2].parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
        }
        (GENERALIZED_TIME, 14) => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let part = |at: usize| rest[at..at + 2].parse::<u64>().ok();
    let (month, day) = (part(0)?, part(2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970 by the calendar that begins in March, so that a leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    let days = days.saturating_sub(719_468);
    Some(days * 86_400 + part(4)? * 3_600 + part(6)? * 60 + part(8)?)
}

#[cfg(test)]
mod tests;
