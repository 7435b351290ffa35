//! Basic credentials out of an `Authorization` value (RFC 7617), strictly.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;
use zeroize::Zeroizing;

use super::principal;

/// The longest password taken from a request, in bytes. Tokens used as passwords (JSON keys, signed tokens) reach a few
/// thousand.
pub const MAX_PASSWORD_BYTES: usize = 8192;

/// The longest base64 text that can hold an acceptable pair.
const MAX_ENCODED_BYTES: usize = (principal::MAX_NAME_BYTES + 1 + MAX_PASSWORD_BYTES).div_ceil(3) * 4;

/// Bytes that must not be seen: `Debug` and `Display` print a placeholder, and the memory is wiped on drop.
#[derive(Clone)]
pub struct Secret(Zeroizing<Box<[u8]>>);

impl Secret {
    /// Takes a copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Secret {
        Secret(Zeroizing::new(bytes.into()))
    }

    /// The bytes themselves. Keep the borrow short and never print it.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// A user and a password as the client sent them: nothing verified yet.
#[derive(Clone, Debug)]
pub struct Basic {
    /// Valid as a user name ([`principal::check_name`]).
    pub user: String,
    /// Any bytes, at most [`MAX_PASSWORD_BYTES`]; may be empty.
    pub password: Secret,
}

/// Why an `Authorization` value gives no credentials. The texts never repeat any part of the value, so they may be sent
/// to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CredentialsError {
    /// Well-formed or not, it is not for Basic: a client that holds a token, say.
    #[error("this registry takes Basic credentials; log in with a user name and a password")]
    OtherScheme,
    /// `Basic`, but not followed by one canonical base64 text (RFC 4648 §4).
    #[error("the Authorization value is not Basic followed by base64; log in again")]
    Encoding,
    /// No colon between user and password.
    #[error("the credentials hold no colon between user name and password; log in again")]
    NoColon,
    /// The user name is empty, too long, not UTF-8 or holds characters that no user name may hold.
    #[error("the user name {0}; log in with the name that the registry's administrator gave you")]
    User(&'static str),
    /// Longer than any accepted pair.
    #[error("the credentials are longer than this registry accepts (8192 bytes of password)")]
    TooLong,
}

impl CredentialsError {
    /// `true` when the value claims to be Basic and is broken; `false` when it is for another scheme.
    pub fn is_malformed(self) -> bool {
        self != CredentialsError::OtherScheme
    }
}

/// Parses one `Authorization` value: `Basic` in any case, spaces, then canonical base64 of `user:password`.
///
/// # Errors
/// See [`CredentialsError`]; none of them shows any of the value.
pub fn parse(authorization_value: &[u8]) -> Result<Basic, CredentialsError> {
    let (scheme, rest) = match authorization_value.iter().position(|&b| b == b' ') {
        Some(space) => authorization_value.split_at(space),
        None => (authorization_value, &[][..]),
    };
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return Err(CredentialsError::OtherScheme);
    }
    let encoded = &rest[rest.iter().take_while(|&&b| b == b' ').count()..];
    if encoded.len() > MAX_ENCODED_BYTES {
        return Err(CredentialsError::TooLong);
    }
    // Reserved in full: a growing vector would leave copies of the password behind.
    let mut pair = Zeroizing::new(Vec::with_capacity(encoded.len()));
    STANDARD.decode_vec(encoded, &mut pair).map_err(|_| CredentialsError::Encoding)?;
    let colon = pair.iter().position(|&b| b == b':').ok_or(CredentialsError::NoColon)?;
    let (user, password) = (&pair[..colon], &pair[colon + 1..]);
    let user = std::str::from_utf8(user).map_err(|_| CredentialsError::User("is not valid UTF-8"))?;
    principal::check_name(user).map_err(CredentialsError::User)?;
    if password.len() > MAX_PASSWORD_BYTES {
        return Err(CredentialsError::TooLong);
    }
    Ok(Basic { user: user.to_owned(), password: Secret::new(password) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(pair: &[u8]) -> Vec<u8> {
        format!("Basic {}", STANDARD.encode(pair)).into_bytes()
    }

    #[test]
    fn accepts() {
        for (raw, user, password) in [
            (&b"Basic YTpi"[..], "a", &b"b"[..]),
            (b"basic YTpi", "a", b"b"),
            (b"BASIC   YTpi", "a", b"b"),
            (b"Basic dGVzdHVzZXI6dGVzdHBhc3N3b3Jk", "testuser", b"testpassword"),
            (&value(b"a:"), "a", b""),
            (&value(b"a:b:c"), "a", b"b:c"),
            (&value(b"a: \xff\x00\n"), "a", b" \xff\x00\n"),
            (&value("zoë:ü".as_bytes()), "zoë", "ü".as_bytes()),
        ] {
            let basic = parse(raw).unwrap();
            assert_eq!((basic.user.as_str(), basic.password.expose()), (user, password));
        }
        assert!(parse(&value(&[&b"a:"[..], &[b'x'; MAX_PASSWORD_BYTES]].concat())).is_ok());
    }

    #[test]
    fn refuses() {
        use CredentialsError::*;
        for (raw, error) in [
            (&b""[..], OtherScheme),
            (b"Bearer abc", OtherScheme),
            (b"Basi YTpi", OtherScheme),
            (b" Basic YTpi", OtherScheme),
            (b"Basic\tYTpi", OtherScheme),
            (b"BasicYTpi", OtherScheme),
            (b"Basic YTpi\n", Encoding),
            (b"Basic YTpi ", Encoding),
            (b"Basic YT pi", Encoding),
            (b"Basic YTpi, Basic YTpi", Encoding),
            (b"Basic YTpi=", Encoding),
            (b"Basic YTo", Encoding),
            // Trailing bits set: the same bytes in another spelling, which must not be a second cache key.
            (b"Basic YTp=", Encoding),
            (b"Basic YWI6Yx==", Encoding),
            (b"Basic _-8=", Encoding),
            (b"Basic", NoColon),
            (b"Basic ", NoColon),
            (b"Basic YWI=", NoColon),
            (&value(b":b"), User("is empty")),
            (&value(b"a\nb:c"), User("contains a control character")),
            (&value(b"a\xff:c"), User("is not valid UTF-8")),
            (&value(&[&[b'u'; 256][..], b":p"].concat()), User("is longer than 255 bytes")),
            (&value(&[&b"a:"[..], &[b'x'; MAX_PASSWORD_BYTES + 1]].concat()), TooLong),
            (&[&b"Basic "[..], &[b'Y'; 20_000]].concat(), TooLong),
        ] {
            assert_eq!(parse(raw).unwrap_err(), error, "{}", String::from_utf8_lossy(raw));
            assert_eq!(error.is_malformed(), error != OtherScheme);
        }
    }

    #[test]
    fn a_secret_is_never_printed() {
        let basic = parse(b"Basic dGVzdHVzZXI6dGVzdHBhc3N3b3Jk").unwrap();
        let printed = format!("{basic:?} {:#?} {}", basic.password, basic.password);
        assert!(printed.contains("testuser"));
        assert!(!printed.contains("testpassword") && !printed.contains("116"), "{printed}");
    }

    proptest! {
        #[test]
        fn never_panics(raw in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&raw);
        }

        #[test]
        fn every_pair_comes_back(user in "[a-zA-Z0-9._@ü-]{1,40}", password in prop::collection::vec(any::<u8>(), 0..100)) {
            let basic = parse(&value(&[user.as_bytes(), b":", &password].concat())).unwrap();
            prop_assert_eq!(basic.user, user);
            prop_assert_eq!(basic.password.expose(), &password[..]);
        }

        // What is accepted has one spelling only after the scheme: equal bytes, equal credentials, and the reverse.
        #[test]
        fn the_encoding_is_canonical(text in "[A-Za-z0-9+/=]{0,24}") {
            if let Ok(basic) = parse(format!("Basic {text}").as_bytes()) {
                let pair = [basic.user.as_bytes(), b":", basic.password.expose()].concat();
                prop_assert_eq!(STANDARD.encode(pair), text);
            }
        }
    }
}
