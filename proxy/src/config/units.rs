//! Durations and sizes as people write them: `"60s"`, `"500ms"`, `"16KiB"`, `4096`.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

const DURATION_FORM: &str = "a duration such as \"500ms\", \"60s\", \"5m\" or \"1h\"";
const SIZE_FORM: &str = "a size such as 4096, \"16KiB\", \"1MiB\" or \"1GiB\"";

/// A duration in the configuration file: a whole number and one of `ms`, `s`, `m`, `h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period(pub Duration);

/// A size in the configuration file in bytes: a whole number, optionally with `B`, `KiB`, `MiB` or `GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

/// Reads a duration.
///
/// # Errors
/// A sentence that names the text and the accepted form.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_number(text).ok_or_else(|| format!("{text:?} is not {DURATION_FORM}"))?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "" => return Err(format!("{text:?} has no unit, write \"{number}s\" for seconds or \"{number}ms\"")),
        _ => return Err(format!("{text:?} is not {DURATION_FORM}")),
    };
    milliseconds.map(Duration::from_millis).ok_or_else(|| format!("{text:?} is too long"))
}

/// Reads a size in bytes.
///
/// # Errors
/// A sentence that names the text and the accepted form.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_number(text).ok_or_else(|| format!("{text:?} is not {SIZE_FORM}"))?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => {
            return Err(match unit.chars().next().map(|c| c.to_ascii_uppercase()) {
                Some(c @ ('K' | 'M' | 'G')) => format!("{text:?} is not a size, write \"{number}{c}iB\""),
                _ => format!("{text:?} is not {SIZE_FORM}"),
            });
        }
    };
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"))
}

/// `"16 KiB"` → `(16, "KiB")`; `None` when no number that fits leads.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit.trim_start()))
}

/// Formats a duration in the form that [`parse_duration`] reads, in the largest unit that divides it.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    match milliseconds {
        0 => "0s".to_owned(),
        n if n.is_multiple_of(3_600_000) => format!("{}h", n / 3_600_000),
        n if n.is_multiple_of(60_000) => format!("{}m", n / 60_000),
        n if n.is_multiple_of(1_000) => format!("{}s", n / 1_000),
        n => format!("{n}ms"),
    }
}

/// Formats a size in the form that [`parse_size`] reads, in the largest unit that divides it.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        n if n.is_multiple_of(1 << 30) => format!("{}GiB", n >> 30),
        n if n.is_multiple_of(1 << 20) => format!("{}MiB", n >> 20),
        n if n.is_multiple_of(1 << 10) => format!("{}KiB", n >> 10),
        n => n.to_string(),
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PeriodVisitor;
        impl Visitor<'_> for PeriodVisitor {
            type Value = Period;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(DURATION_FORM)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Period, E> {
                parse_duration(text).map(Period).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(PeriodVisitor)
    }
}

/// One word or number, or a list of them, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(pub Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordsVisitor;
        impl<'de> Visitor<'de> for WordsVisitor {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value, or several in [ ]")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Words, E> {
                Ok(Words(vec![number.to_string()]))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Words, E> {
                Ok(Words(vec![text.to_owned()]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(Words(word)) = list.next_element()? {
                    words.extend(word);
                }
                Ok(Words(words))
            }
        }
        deserializer.deserialize_any(WordsVisitor)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SIZE_FORM)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                parse_size(text).map(Size).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                let negative = || E::invalid_value(de::Unexpected::Signed(bytes), &self);
                u64::try_from(bytes).map(Size).map_err(|_| negative())
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("0s", 0),
            ("60s", 60_000),
            ("60 s", 60_000),
            (" 5m ", 300_000),
            ("1h", 3_600_000),
            ("18446744073709551615ms", u64::MAX),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for (text, error) in [
            ("60", "has no unit, write \"60s\""),
            ("", "is not a duration"),
            ("s", "is not a duration"),
            ("-1s", "is not a duration"),
            ("1.5s", "is not a duration"),
            ("1m30s", "is not a duration"),
            ("1 day", "is not a duration"),
            ("60S", "is not a duration"),
            ("6\u{660}s", "is not a duration"),
            ("18446744073709551615h", "too long"),
            ("18446744073709551616ms", "is not a duration"),
        ] {
            let found = parse_duration(text).expect_err(text);
            assert!(found.contains(error), "{text}: {found}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("4096", 4096), ("1B", 1), ("16KiB", 16 << 10), ("1 MiB", 1 << 20), ("2GiB", 2 << 30), ("0", 0)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, error) in [
            ("64KB", "write \"64KiB\""),
            ("64k", "write \"64KiB\""),
            ("1mb", "write \"1MiB\""),
            ("1 parsec", "is not a size"),
            ("", "is not a size"),
            ("-1", "is not a size"),
            ("0x10", "is not a size"),
            ("99999999999GiB", "too large"),
        ] {
            let found = parse_size(text).expect_err(text);
            assert!(found.contains(error), "{text}: {found}");
        }
    }

    #[test]
    fn what_is_formatted_reads_back() {
        for milliseconds in [0, 1, 999, 1_000, 90_000, 60_000, 3_600_000, 5_400_000] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
        for bytes in [0, 1, 1023, 1024, 1536, 1 << 20, 3 << 30] {
            assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
    }
}
