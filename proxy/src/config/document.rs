//! From the text of the file to its structures: every unknown key and every value of a wrong type at once.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Fault, Place};
use super::file::File;
use super::{schema, suggest};

/// A file with its name: turns offsets into places and relative paths into paths.
#[derive(Debug, Clone, Copy)]
pub(super) struct Document<'a> {
    path: &'a Path,
    text: &'a str,
}

impl<'a> Document<'a> {
    pub(super) fn new(path: &'a Path, text: &'a str) -> Self {
        Self { path, text }
    }

    /// The place of a span, for a key with its tables.
    pub(super) fn place(&self, span: &Range<usize>, key: &str) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place::File {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            key: key.to_owned(),
        }
    }

    /// A path of the file; relative ones start at the file's own directory.
    pub(super) fn relative(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    /// Reads the file. What could be read comes back next to the errors, so that the rest can be checked too;
    /// `None` where the text is not TOML at all.
    pub(super) fn read(&self) -> (Option<File>, Vec<ConfigError>) {
        let (mut table, faults) = DeTable::parse_recoverable(self.text);
        if !faults.is_empty() {
            return (None, faults.iter().map(|fault| self.syntax_error(fault)).collect());
        }
        let mut errors = Vec::new();
        self.remove_unknown(table.get_mut(), "", &mut errors);
        let file = self.deserialise(&mut table, &mut errors);
        errors.sort();
        (file, errors)
    }

    fn syntax_error(&self, error: &toml::de::Error) -> ConfigError {
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        let place = self.place(&error.span().unwrap_or(0..0), "");
        Fault::new(format!("not valid TOML: {message}"), "correct the line").at(&place)
    }

    fn remove_unknown(&self, table: &mut DeTable<'_>, path: &str, errors: &mut Vec<ConfigError>) {
        let known = schema::keys(path);
        let mut unknown = Vec::new();
        for (key, value) in table.iter_mut() {
            let name: &str = key.get_ref();
            let full = join(path, name);
            if let Some(known) = known.filter(|known| !known.contains(&name)) {
                errors.push(unknown_key(name, known).at(&self.place(&key.span(), &full)));
                unknown.push(name.to_owned());
                continue;
            }
            match value.get_mut() {
                DeValue::Table(inner) => self.remove_unknown(inner, &full, errors),
                DeValue::Array(items) => {
                    for item in items.iter_mut() {
                        if let DeValue::Table(inner) = item.get_mut() {
                            self.remove_unknown(inner, &full, errors);
                        }
                    }
                }
                _ => {}
            }
        }
        for name in unknown {
            table.remove(name.as_str());
        }
    }

    /// Serde stops at the first value of a wrong type: note it, cut it out, try again.
    fn deserialise(&self, table: &mut Spanned<DeTable<'_>>, errors: &mut Vec<ConfigError>) -> Option<File> {
        loop {
            let deserializer = toml::de::Deserializer::from(table.clone());
            let error = match serde::Deserialize::deserialize(deserializer) {
                Ok(file) => return Some(file),
                Err(error) => error,
            };
            let error: toml::de::Error = error;
            let span = error.span().unwrap_or(0..0);
            let cut = cut_out(table.get_mut(), "", &span);
            let key = cut.clone().unwrap_or_default();
            errors.push(type_fault(&error).at(&self.place(&span, &key)));
            cut?;
        }
    }
}

fn unknown_key(name: &str, known: &[&str]) -> Fault {
    let remedy = if let Some(similar) = suggest::nearest(name, known.iter().copied()) {
        format!("did you mean \"{similar}\"?")
    } else if let Some(home) = schema::home_of(name) {
        format!("it belongs to {home}")
    } else {
        let mut known = known.to_vec();
        known.sort_unstable();
        format!("known keys here: {}", known.join(", "))
    };
    Fault::new("unknown key", remedy)
}

/// The name of a key with the tables that it stands in.
fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Removes the innermost entry whose value the span belongs to, and says which it was.
fn cut_out(table: &mut DeTable<'_>, path: &str, span: &Range<usize>) -> Option<String> {
    let mut found = None;
    for (key, value) in table.iter_mut() {
        let name: &str = key.get_ref();
        let full = join(path, name);
        let value_span = value.span();
        // The span of a `[table]` is its header, which does not hold its entries: look inside each.
        let inner = match value.get_mut() {
            DeValue::Table(inner) => cut_out(inner, &full, span),
            DeValue::Array(items) => items.iter_mut().find_map(|item| match item.get_mut() {
                DeValue::Table(inner) => cut_out(inner, &full, span),
                _ => None,
            }),
            _ => None,
        };
        if inner.is_some() {
            return inner;
        }
        if value_span.start <= span.start && span.end <= value_span.end {
            found = Some((name.to_owned(), full));
            break;
        }
        let item_holds = |item: &Spanned<DeValue<'_>>| item.span().start <= span.start && span.end <= item.span().end;
        if value.get_ref().as_array().is_some_and(|items| items.iter().any(item_holds)) {
            found = Some((name.to_owned(), full));
            break;
        }
    }
    let (name, full) = found?;
    table.remove(name.as_str())?;
    Some(full)
}

/// Serde speaks of Rust's types; the reader of the message knows TOML's.
fn type_fault(error: &toml::de::Error) -> Fault {
    let message = error.message();
    let Some((found, expected)) = message.split_once(", expected ") else {
        return Fault::new(message, "correct the value");
    };
    let found = found.trim_start_matches("invalid type: ").trim_start_matches("invalid value: ").replace('`', "");
    let found = found.replacen("sequence", "a list", 1).replacen("map", "a table", 1);
    let expected = match expected {
        "usize" | "u64" => "a whole number from 0 up",
        "a boolean" => "true or false",
        "a string" => "a string in quotes",
        "a sequence" => "a list in [brackets]",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => other,
    };
    Fault::new(format!("{found} does not fit here"), format!("write {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<File>, Vec<String>) {
        let (file, errors) = Document::new(Path::new("gate.toml"), text).read();
        (file, errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn places_count_from_one_and_in_characters() {
        let text = "a = 1\nb = \"é\" # x\r\n\nc = 2";
        let document = Document::new(Path::new("f"), text);
        for (word, line, column) in [("a", 1, 1), ("b", 2, 1), ("#", 2, 9), ("c", 4, 1), ("2", 4, 5)] {
            let at = text.find(word).unwrap_or_default();
            let place = document.place(&(at..at + 1), "");
            assert_eq!(place.to_string(), format!("f:{line}:{column}: "), "{word}");
        }
        assert_eq!(document.place(&(99..100), "").to_string(), "f:4:6: ");
    }

    #[test]
    fn every_unknown_key_and_wrong_type_at_once() {
        let text = "\
worker = 4
[[site]]
upstream = [\"http://a\"]
kind = 7
[[site]]
upstreams = \"http://b\"
hosts = [1, 2]
[[listen]]
address = 8080
tls = [{ certificate = \"x\", key = 3 }]
[auth]
workers = 3
colour = \"red\"
[verdicts]
allow_ttl = 60
deny_ttl = \"5\"
capacity = -1
[limits]
head_bytes = \"16KB\"
";
        let (file, errors) = read(text);
        assert!(file.is_some());
        let expected = [
            "gate.toml:1:1: worker: unknown key; did you mean \"workers\"?",
            "gate.toml:3:1: site.upstream: unknown key; did you mean \"upstreams\"?",
            "gate.toml:4:8: site.kind: integer 7 does not fit here; write a string in quotes",
            "gate.toml:6:13: site.upstreams: string \"http://b\" does not fit here; write a list in [brackets]",
            "gate.toml:7:10: site.hosts: integer 1 does not fit here; write a string in quotes",
            "gate.toml:9:11: listen.address: integer 8080 does not fit here; write a string in quotes",
            "gate.toml:10:10: listen.tls.certificate: unknown key; known keys here: cert, key",
            "gate.toml:10:35: listen.tls.key: integer 3 does not fit here; write a string in quotes",
            "gate.toml:12:1: auth.workers: unknown key; it belongs to the top of the file, before the first [table]",
            "gate.toml:13:1: auth.colour: unknown key; known keys here: backend, copy_headers, htpasswd, realm",
            "gate.toml:15:13: verdicts.allow_ttl: integer 60 does not fit here; write a duration such as \"500ms\", \"60s\", \"5m\" or \"1h\"",
            "gate.toml:16:12: verdicts.deny_ttl: \"5\" has no unit, write \"5s\" for seconds or \"5ms\"; correct the value",
            "gate.toml:17:12: verdicts.capacity: integer -1 does not fit here; write a whole number from 0 up",
            "gate.toml:19:14: limits.head_bytes: \"16KB\" is not a size, write \"16KiB\"; correct the value",
        ];
        assert_eq!(errors, expected, "\n{}", errors.join("\n"));
    }

    #[test]
    fn what_is_not_toml_is_named_by_line() {
        for (text, start) in [
            ("workers = \n", "gate.toml:1:"),
            ("a = 1\nworkers 4\n", "gate.toml:2:"),
            ("[auth\n", "gate.toml:1:"),
            ("workers = 1\nworkers = 2\n", "gate.toml:2:1: not valid TOML: duplicate key"),
            ("workers = \"abc\n", "gate.toml:1:"),
        ] {
            let (file, errors) = read(text);
            assert!(file.is_none(), "{text:?}");
            assert!(errors.iter().all(|error| error.starts_with(start)), "{text:?}: {errors:#?}");
            assert!(!errors.is_empty() && errors.iter().all(|error| !error.contains('\n')), "{errors:#?}");
        }
    }

    #[test]
    fn a_table_where_a_value_belongs_and_the_reverse() {
        for (text, key) in [
            ("workers = { a = 1 }", "workers"),
            ("auth = 3", "auth"),
            ("[listen]\naddress = \"x\"", "listen"),
            ("[[auth]]\nhtpasswd = \"x\"", "auth"),
            ("[groups]\nci = \"bob\"", "groups.ci"),
            ("rule = [3]", "rule"),
        ] {
            let (file, errors) = read(text);
            assert!(file.is_some(), "{text}");
            assert_eq!(errors.len(), 1, "{text}: {errors:#?}");
            assert!(errors[0].contains(&format!(": {key}: ")), "{text}: {errors:#?}");
        }
    }
}
