//! Patterns of repository names.

use std::fmt;

/// The longest pattern, in bytes: as long as a repository name may be.
const MAX_PATTERN_BYTES: usize = 255;

/// A pattern that covers whole repository names.
///
/// * `team/app` covers that one.
/// * `*` is any run of characters, also none, within one component: `team/*` covers `team/app`, not `team/app/web`.
/// * `**`, alone between slashes, is any number of components: `**/cache` covers `cache` and `a/b/cache`. At the end it is
///   at least one: `team/**` covers all below `team`, but not `team` itself. `**` alone covers everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    components: Vec<Component>,
}

/// A part of a pattern between slashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Component {
    /// Any number of components, also none.
    Any,
    /// One component.
    One(String),
}

impl Pattern {
    /// # Errors
    /// What is wrong, completing "the repository pattern …".
    pub fn parse(text: &str) -> Result<Pattern, &'static str> {
        if text.is_empty() {
            return Err("is empty; \"**\" is every repository");
        }
        if text.len() > MAX_PATTERN_BYTES {
            return Err("is longer than the 255 bytes a repository name may have");
        }
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err("has capitals, which no repository name has");
        }
        let mut components = Vec::new();
        for part in text.split('/') {
            if part.is_empty() {
                return Err("has a slash at its start, at its end or next to another; write team/app");
            }
            if part == "**" {
                components.push(Component::Any);
            } else if part.contains("**") {
                return Err("has ** next to other characters; it stands alone between slashes, as in team/**");
            } else if part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'*')) {
                components.push(Component::One(part.to_owned()));
            } else {
                return Err("has a character that no repository name has; a-z 0-9 . _ - / and * are all");
            }
        }
        if components.last() == Some(&Component::Any) {
            components.push(Component::One("*".to_owned()));
        }
        Ok(Pattern { text: text.to_owned(), components })
    }

    /// Whether the pattern covers `name`, which must be a valid repository name. The tree of all rules decides; this is what
    /// it is compared with.
    #[cfg(test)]
    pub(super) fn covers(&self, name: &str) -> bool {
        let parts: Vec<&str> = name.split('/').collect();
        glob(
            &self.components,
            &parts,
            |component| *component == Component::Any,
            |component, part| match component {
                Component::Any => false,
                Component::One(text) => matches(text, part),
            },
        )
    }

    pub(super) fn components(&self) -> &[Component] {
        &self.components
    }

    /// Whether it covers every repository there can be.
    pub fn is_everything(&self) -> bool {
        self.text == "**"
    }
}

/// As it was written.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether one component's text, in which `*` is any run of characters, covers `part`.
pub(super) fn matches(text: &str, part: &str) -> bool {
    glob(text.as_bytes(), part.as_bytes(), |&b| b == b'*', |a, b| a == b)
}

/// Matches with one kind of wildcard. Going back to the last wildcard only is enough, and keeps the work at
/// pattern × text whatever the pattern.
fn glob<P, T>(pattern: &[P], text: &[T], is_wildcard: impl Fn(&P) -> bool, same: impl Fn(&P, &T) -> bool) -> bool {
    let (mut at, mut read) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while read < text.len() {
        if pattern.get(at).is_some_and(&is_wildcard) {
            retry = Some((at, read));
            at += 1;
        } else if pattern.get(at).is_some_and(|p| same(p, &text[read])) {
            at += 1;
            read += 1;
        } else if let Some((wildcard, from)) = retry {
            retry = Some((wildcard, from + 1));
            at = wildcard + 1;
            read = from + 1;
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(is_wildcard)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn covers() {
        for (pattern, yes, no) in [
            ("app", &["app"][..], &["apps", "ap", "app/web", "x/app"][..]),
            ("team/app", &["team/app"], &["team", "team/app/web", "team/apps"]),
            ("team/*", &["team/app", "team/a"], &["team", "team/app/web", "teams/app"]),
            ("*", &["app", "a"], &["team/app"]),
            ("*/*", &["team/app"], &["app", "a/b/c"]),
            ("team-*/app", &["team-a/app", "team-bc/app"], &["team/app", "team-a/b/app"]),
            ("*-*-x", &["a-b-x", "a-b-c-x"], &["a-x", "a-b-xx"]),
            ("a*", &["a", "ab", "a-b"], &["ba", "a/b"]),
            ("**", &["a", "a/b", "a/b/c"], &[]),
            ("team/**", &["team/a", "team/a/b"], &["team", "teams/a", "x/team/a"]),
            ("**/cache", &["cache", "a/cache", "a/b/cache"], &["a/cache/b", "acache"]),
            ("a/**/b", &["a/b", "a/x/b", "a/x/y/b", "a/b/b"], &["a/b/c", "a", "b"]),
            ("**/a/**", &["a/x", "x/a/y", "a/a"], &["a", "x/a", "b/x"]),
            ("**/**", &["a", "a/b"], &[]),
            ("**/*-dev/*", &["x-dev/a", "t/x-dev/a"], &["x-dev", "x/a"]),
        ] {
            let parsed = Pattern::parse(pattern).unwrap();
            assert_eq!(parsed.to_string(), pattern);
            for name in yes {
                assert!(parsed.covers(name), "{pattern} {name}");
            }
            for name in no {
                assert!(!parsed.covers(name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn refuses() {
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "a**",
            "**a",
            "a/**b",
            "***",
            "A",
            "a b",
            "a?",
            "[ab]",
            "a:b",
            "ä",
            "!a",
            &"a".repeat(256),
        ] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    /// The definition, straight: exponential, but short.
    fn naive(pattern: &[&str], name: &[&str], last: bool) -> bool {
        fn one(pattern: &[u8], part: &[u8]) -> bool {
            match (pattern.first(), part.first()) {
                (None, None) => true,
                (Some(b'*'), _) => one(&pattern[1..], part) || (!part.is_empty() && one(pattern, &part[1..])),
                (Some(a), Some(b)) if a == b => one(&pattern[1..], &part[1..]),
                _ => false,
            }
        }
        match (pattern.first(), name.first()) {
            (None, None) => true,
            (Some(&"**"), _) => {
                let least = usize::from(last && pattern.len() == 1);
                (least..=name.len()).any(|n| naive(&pattern[1..], &name[n..], last))
            }
            (Some(p), Some(n)) => one(p.as_bytes(), n.as_bytes()) && naive(&pattern[1..], &name[1..], last),
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn equals_the_definition(
            pattern in prop::collection::vec(prop::sample::select(vec!["**", "*", "a", "b", "a*", "*b", "a*b*"]), 1..5),
            name in prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", "aab", "abb"]), 1..6),
        ) {
            let parsed = Pattern::parse(&pattern.join("/")).unwrap();
            prop_assert_eq!(parsed.covers(&name.join("/")), naive(&pattern, &name, true), "{} {}", parsed, name.join("/"));
        }

        #[test]
        fn never_panics(pattern in ".{0,20}", name in "[a-z/._*-]{0,20}") {
            if let Ok(parsed) = Pattern::parse(&pattern) {
                parsed.covers(&name);
            }
        }
    }
}
