//! Which keys each table of the file knows, asked from the serde structures so that there is one list only.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::file;

/// A table of the file: its path and the keys it knows.
type Table = (&'static str, fn() -> &'static [&'static str]);

const TABLES: [Table; 10] = [
    ("", fields_of::<file::File>),
    ("listen", fields_of::<file::Listen>),
    ("listen.tls", fields_of::<file::Tls>),
    ("site", fields_of::<file::Site>),
    ("auth", fields_of::<file::Auth>),
    ("verdicts", fields_of::<file::Verdicts>),
    ("rule", fields_of::<file::Rule>),
    ("limits", fields_of::<file::Limits>),
    ("blobs", fields_of::<file::Blobs>),
    ("guard", fields_of::<file::Guard>),
];

/// The keys of the table at `path`; `None` where names are free (`[groups]`).
pub(super) fn keys(path: &str) -> Option<&'static [&'static str]> {
    TABLES.iter().find(|(name, _)| *name == path).map(|(_, keys)| keys())
}

/// The table, as its header is written, that knows `key`; `None` where none or several do.
pub(super) fn home_of(key: &str) -> Option<&'static str> {
    let mut homes = TABLES.iter().filter(|(_, keys)| keys().contains(&key));
    let home = homes.next().filter(|_| homes.next().is_none())?;
    Some(match home.0 {
        "" => "the top of the file, before the first [table]",
        "listen" => "[[listen]]",
        "listen.tls" => "tls = [{ … }] of [[listen]]",
        "site" => "[[site]]",
        "auth" => "[auth]",
        "verdicts" => "[verdicts]",
        "rule" => "[[rule]]",
        "limits" => "[limits]",
        "blobs" => "[blobs]",
        _ => "[guard]",
    })
}

fn fields_of<T: for<'de> Deserialize<'de>>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    // The probe always ends in an error: it only listens to what the structure asks for.
    let _: Result<T, de::value::Error> = T::deserialize(Probe(&mut fields));
    fields
}

struct Probe<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = de::value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        Err(de::Error::custom(Heard))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom(Heard))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct Heard;

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fields noted")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_knows_its_keys() {
        for (path, keys) in TABLES {
            assert!(!keys().is_empty(), "{path:?}");
        }
        assert_eq!(keys("listen.tls"), Some(["cert", "key"].as_slice()));
        assert_eq!(keys("groups"), None);
    }

    #[test]
    fn tables_of_the_root_are_described() {
        // A table that is added to the file but not here would let misspelt keys in it go without a suggestion.
        let tables = ["listen", "site", "auth", "verdicts", "rule", "limits", "blobs", "guard"];
        let plain =
            ["workers", "user", "upstream_ca", "admin", "access_log", "allow_plaintext_credentials", "ktls", "groups"];
        for key in keys("").unwrap_or_default() {
            assert_eq!(keys(key).is_some(), tables.contains(key), "{key}");
            assert!(tables.contains(key) || plain.contains(key), "{key}");
        }
    }

    #[test]
    fn a_key_finds_its_home() {
        assert_eq!(home_of("htpasswd"), Some("[auth]"));
        assert_eq!(home_of("workers"), Some("the top of the file, before the first [table]"));
        assert_eq!(home_of("nonsense"), None);
    }
}
