//! The `WWW-Authenticate` value that asks a client for a login (RFC 9110 §11.6.1, RFC 7617 §2).

/// The longest realm accepted in a configuration, in bytes.
pub const MAX_REALM_BYTES: usize = 128;

/// `Basic realm="…"`, and nothing more.
///
/// RFC 7617 would allow `charset="UTF-8"`, but registry clients since 2013 send UTF-8 anyway and the bare form is the
/// one that all of them have always parsed. Whatever `realm` is, the result is one legal field value: `"` and `\` are
/// escaped and bytes that a quoted string cannot hold become `?`.
pub fn basic(realm: &str) -> String {
    let mut value = String::with_capacity(realm.len() + 16);
    value.push_str("Basic realm=\"");
    for c in realm.chars() {
        match c {
            '"' | '\\' => {
                value.push('\\');
                value.push(c);
            }
            ' '..='~' => value.push(c),
            _ => value.push('?'),
        }
    }
    value.push('"');
    value
}

/// Whether `realm` may stand in a configuration: what the user reads there is then exactly what a client shows.
///
/// # Errors
/// A short text that completes "the realm …", with the remedy.
pub fn check_realm(realm: &str) -> Result<(), &'static str> {
    if realm.is_empty() {
        return Err("is empty; name the registry, for example \"registry.example.com\"");
    }
    if realm.len() > MAX_REALM_BYTES {
        return Err("is longer than 128 bytes; shorten it");
    }
    if !realm.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Err("holds a byte that is not printable ASCII; clients would show it broken");
    }
    if realm.contains(['"', '\\']) {
        return Err("holds a quote or a backslash, which old clients cannot parse; leave it out");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges() {
        for (realm, value) in [
            ("Registry", r#"Basic realm="Registry""#),
            ("", r#"Basic realm="""#),
            (r#"a"b\c"#, r#"Basic realm="a\"b\\c""#),
            ("a\r\nSet-Cookie: x", r#"Basic realm="a??Set-Cookie: x""#),
            ("zoë", r#"Basic realm="zo?""#),
        ] {
            assert_eq!(basic(realm), value);
        }
    }

    #[test]
    fn realms() {
        assert_eq!(check_realm("registry.example.com"), Ok(()));
        for bad in ["", "a\"b", "a\\b", "a\nb", "zoë", &"r".repeat(129)] {
            assert!(check_realm(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_realm_is_one_printable_line(realm in any::<String>()) {
            let value = basic(&realm);
            prop_assert!(value.bytes().all(|b| (b' '..=b'~').contains(&b)));
            let inside = &value[13..value.len() - 1];
            let unescaped = inside.replace("\\\\", "").replace("\\\"", "");
            prop_assert!(!unescaped.contains(['"', '\\']));
        }
    }
}
