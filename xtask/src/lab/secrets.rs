//! No password in any log: every `portcullis` that a test starts has its whole output searched when it ends.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// The passwords that the tests log in with.
const PASSWORDS: [&str; 1] = ["testpassword"];

/// The first test password that stands in `log`, in plain text or inside anything that was encoded in base64.
#[must_use]
pub fn leaked(log: &str) -> Option<&'static str> {
    PASSWORDS.into_iter().find(|password| log.contains(password) || encodings(password).any(|text| log.contains(&text)))
}

/// What base64 makes of a text that begins at any of the three places of a group, without the characters at both ends
/// that its neighbours decide too.
fn encodings(text: &str) -> impl Iterator<Item = String> {
    (0..3_usize).map(move |offset| {
        let bytes = [&vec![0; offset][..], text.as_bytes()].concat();
        let encoded = STANDARD_NO_PAD.encode(&bytes);
        let (from, to) = ((offset * 8).div_ceil(6), bytes.len() * 8 / 6);
        encoded[from..to].to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;

    #[test]
    fn a_password_is_found_however_it_is_wrapped() {
        for user in ["a", "ab", "abc", "testuser", "alice"] {
            let basic = STANDARD.encode(format!("{user}:testpassword"));
            assert_eq!(leaked(&format!("x {basic} y")), Some("testpassword"), "{user}");
        }
        assert_eq!(leaked("…testpassword…"), Some("testpassword"));
        assert_eq!(leaked("testuser logged in with a password"), None);
    }
}
