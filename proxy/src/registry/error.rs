//! Refusals in the registry's own language: the JSON of the OCI distribution specification, "Error Codes".

use std::fmt;

use super::access::{Access, Action};

/// The `Content-Type` of [`body`].
pub const CONTENT_TYPE: &str = "application/json";

/// A `code` of the error document. All but the last two are the specification's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// A blob that is not there, or cannot be.
    BlobUnknown,
    /// An upload that cannot go on as asked.
    BlobUploadInvalid,
    /// An upload that is not there, or cannot be.
    BlobUploadUnknown,
    /// A digest out of the grammar.
    DigestInvalid,
    /// A manifest that cannot be taken, for its size for instance.
    ManifestInvalid,
    /// A manifest that is not there, or cannot be.
    ManifestUnknown,
    /// A repository name out of the grammar.
    NameInvalid,
    /// A repository, or any path, that is not there.
    NameUnknown,
    /// A length that does not fit the content.
    SizeInvalid,
    /// No credentials, or wrong ones.
    Unauthorized,
    /// Known, but not allowed.
    Denied,
    /// A method, a media type or a parameter that is not taken.
    Unsupported,
    /// Too often.
    TooManyRequests,
    /// The registry or the authenticator cannot answer now (distribution's own code).
    Unavailable,
    /// None of the others fits (distribution's own code).
    Unknown,
}

impl Code {
    /// As it stands in the document.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::BlobUnknown => "BLOB_UNKNOWN",
            Code::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Code::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Code::DigestInvalid => "DIGEST_INVALID",
            Code::ManifestInvalid => "MANIFEST_INVALID",
            Code::ManifestUnknown => "MANIFEST_UNKNOWN",
            Code::NameInvalid => "NAME_INVALID",
            Code::NameUnknown => "NAME_UNKNOWN",
            Code::SizeInvalid => "SIZE_INVALID",
            Code::Unauthorized => "UNAUTHORIZED",
            Code::Denied => "DENIED",
            Code::Unsupported => "UNSUPPORTED",
            Code::TooManyRequests => "TOOMANYREQUESTS",
            Code::Unavailable => "UNAVAILABLE",
            Code::Unknown => "UNKNOWN",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The document `{"errors":[{"code","message","detail"}]}`. Without a detail the field is absent.
///
/// docker shows `message` only when it is not the specification's default text for the code, so say what is wrong and
/// what to do about it.
pub fn body(code: Code, message: &str, detail: Option<&str>) -> String {
    let mut json = String::with_capacity(64 + message.len() + detail.map_or(0, str::len));
    json.push_str("{\"errors\":[{\"code\":");
    push_string(&mut json, code.as_str());
    json.push_str(",\"message\":");
    push_string(&mut json, message);
    if let Some(detail) = detail {
        json.push_str(",\"detail\":");
        push_string(&mut json, detail);
    }
    json.push_str("}]}");
    json
}

/// The message of a refusal by policy, for the person who reads docker's output.
pub fn denied_message(access: &Access, user: Option<&str>) -> String {
    let who = user.map_or("without a login nobody".to_owned(), |user| format!("user {user:?}"));
    let may = if user.is_some() { "may not" } else { "may" };
    match (&access.repository, access.action) {
        (_, Action::Catalog) => format!(
            "{who} {may} list the repositories of this registry; ask its administrator for a rule with the action catalog"
        ),
        (Some(name), action) => {
            format!("{who} {may} {action} {name}; ask the registry's administrator for a rule that allows it")
        }
        (None, action) => {
            format!("{who} {may} {action} here; ask the registry's administrator for a rule that allows it")
        }
    }
}

/// RFC 8259 §7.
fn push_string(json: &mut String, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    json.push('"');
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '\0'..='\u{1f}' => {
                json.push_str("\\u00");
                json.push(char::from(HEX[c as usize >> 4]));
                json.push(char::from(HEX[c as usize & 15]));
            }
            _ => json.push(c),
        }
    }
    json.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::RepositoryName;

    #[test]
    fn bodies() {
        for (code, message, detail, json) in [
            (Code::Denied, "no", None, r#"{"errors":[{"code":"DENIED","message":"no"}]}"#),
            (
                Code::TooManyRequests,
                "",
                Some("x"),
                r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"","detail":"x"}]}"#,
            ),
            (
                Code::Unknown,
                "a\"b\\c\n\r\t\u{1}\u{1f}ü\u{2028}",
                None,
                "{\"errors\":[{\"code\":\"UNKNOWN\",\"message\":\"a\\\"b\\\\c\\n\\r\\t\\u0001\\u001fü\u{2028}\"}]}",
            ),
        ] {
            assert_eq!(body(code, message, detail), json);
        }
    }

    #[cfg(feature = "edge")]
    proptest::proptest! {
        #[test]
        fn any_text_survives(message in proptest::prelude::any::<String>(), detail in proptest::prelude::any::<Option<String>>()) {
            let value: serde_json::Value = serde_json::from_str(&body(Code::Denied, &message, detail.as_deref())).unwrap();
            proptest::prop_assert_eq!(value["errors"][0]["message"].as_str(), Some(message.as_str()));
            proptest::prop_assert_eq!(value["errors"][0]["detail"].as_str(), detail.as_deref());
        }
    }

    #[test]
    fn denials_say_who_what_and_what_to_do() {
        let push = Access::on(&RepositoryName::parse("team/app").unwrap(), Action::Push);
        assert!(denied_message(&push, Some("bob")).starts_with("user \"bob\" may not push team/app; ask"));
        assert!(denied_message(&push, None).starts_with("without a login nobody may push team/app; ask"));
        assert!(denied_message(&Access::catalog(), Some("bob")).contains("may not list the repositories"));
    }
}
