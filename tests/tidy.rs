//! The rules of the house that no compiler checks: who may name whom, where `unsafe` may stand, how long a file gets.

use std::collections::BTreeSet;

use crate::support::text_files;

/// Rooms of the core: no sockets, files, threads, clocks or random numbers. Plain addresses are values, not sockets.
const CORE: [&str; 9] = ["balance", "config", "http", "registry", "auth", "policy", "verdict", "limit", "forward"];
const FORBIDDEN_IN_CORE: [&str; 19] = [
    "crate::edge",
    "crate::cli",
    "std::fs",
    "std::thread",
    "std::process",
    "std::env",
    "stdin",
    "stdout",
    "stderr",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "ToSocketAddrs",
    "Instant",
    "SystemTime",
    "monoio",
    "rustix",
    "libc",
];
/// Room → rooms it may not name.
const DIRECTIONS: [(&str, &[&str]); 8] = [
    ("balance", &["http", "registry", "auth", "policy", "verdict", "forward", "config"]),
    ("http", &["registry", "auth", "policy", "verdict", "forward", "config"]),
    ("registry", &["auth", "policy", "verdict", "forward", "config"]),
    ("auth", &["registry", "policy", "verdict", "forward", "config"]),
    ("policy", &["http", "verdict", "forward", "config"]),
    ("verdict", &["forward", "config"]),
    ("limit", &["http", "registry", "auth", "policy", "verdict", "forward"]),
    ("edge", &["cli"]),
];
const LONGEST_FILE: usize = 600;

struct Source {
    path: String,
    /// The text without comments, strings and test modules, line for line.
    code: Vec<String>,
    lines: Vec<String>,
}

fn sources(under: &[&str]) -> Vec<Source> {
    let files = text_files()
        .into_iter()
        .filter(|(path, _)| path.ends_with(".rs") && under.iter().any(|dir| path.starts_with(dir)));
    let found: Vec<Source> = files
        .map(|(path, text)| {
            let code = without_tests(&blank(&text));
            Source { path, code, lines: text.lines().map(String::from).collect() }
        })
        .collect();
    assert!(!found.is_empty(), "no source under {under:?}");
    found
}

impl Source {
    /// The room of a file of the gate: the first part of its path under `proxy/src`.
    fn room(&self) -> &str {
        let inner = self.path.trim_start_matches("proxy/src/");
        inner.split(['/', '.']).next().unwrap_or("")
    }

    fn complain(&self, line: usize, what: &str) -> String {
        format!("{}:{}: {what}", self.path, line + 1)
    }

    fn find(&self, word: &str) -> Vec<usize> {
        let lines = self.code.iter().enumerate();
        lines.filter(|(_, line)| names(line, word)).map(|(number, _)| number).collect()
    }
}

/// Whether a line of code holds a word or path that does not go on to either side.
fn names(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word)
    })
}

/// The text with comments and the insides of strings turned into spaces; lines stay where they are.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string(rest) {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = hashes + 2;
            rest[body..].find(&close).map_or(rest.len(), |end| body + end + close.len())
        } else if first == '"' {
            string_length(rest)
        } else if let Some(length) = char_length(rest) {
            length
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[length..];
    }
    out
}

fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// A character literal, told apart from a lifetime.
fn char_length(text: &str) -> Option<usize> {
    let after = text.strip_prefix('\'')?;
    if after.starts_with('\\') {
        return after[2..].find('\'').map(|end| end + 4);
    }
    let c = after.chars().next()?;
    after[c.len_utf8()..].starts_with('\'').then(|| c.len_utf8() + 2)
}

/// The lines of a blanked text, with what stands under `#[cfg(test)]` emptied.
fn without_tests(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(String::from).collect();
    let mut at = 0;
    while at < lines.len() {
        if !lines[at].contains("#[cfg(test)]") && !lines[at].contains("#[cfg(all(test") {
            at += 1;
            continue;
        }
        let (mut depth, mut opened) = (0_i32, false);
        while at < lines.len() {
            let line = std::mem::take(&mut lines[at]);
            depth += i32::try_from(line.matches('{').count()).unwrap();
            depth -= i32::try_from(line.matches('}').count()).unwrap();
            opened |= line.contains('{');
            at += 1;
            if (opened && depth == 0) || (!opened && line.trim_end().ends_with(';')) {
                break;
            }
        }
    }
    lines
}

/// Whether a whole file is a test module, by the names that the project gives them.
fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("_tests.rs") || path.contains("/tests/")
}

fn report(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn the_core_knows_no_edge() {
    let mut complaints = Vec::new();
    let mut seen = BTreeSet::new();
    for source in sources(&["proxy/src/"]) {
        if !CORE.contains(&source.room()) || is_test(&source.path) {
            continue;
        }
        seen.insert(source.room().to_owned());
        for word in FORBIDDEN_IN_CORE {
            complaints.extend(
                source.find(word).into_iter().map(|line| source.complain(line, &format!("the core names `{word}`"))),
            );
        }
    }
    assert!(seen.len() >= 6, "only these rooms were looked at: {seen:?}");
    report(&complaints);
}

/// A clock that jumps changes what is shown, and how long a certificate of a client is good for; a verdict, a deadline
/// and a pause live by the monotonic one.
#[test]
fn the_wall_clock_is_read_only_to_be_shown() {
    const READERS: [&str; 7] = [
        "proxy/src/edge/admin/page.rs",
        "proxy/src/edge/admin/process.rs",
        "proxy/src/edge/connection.rs",
        "proxy/src/edge/guard/standing.rs",
        "proxy/src/edge/guard/watch.rs",
        "proxy/src/edge/tls/renewal.rs",
        "proxy/src/manual.rs",
    ];
    let mut complaints = Vec::new();
    for source in sources(&["proxy/src/"]) {
        for word in ["SystemTime::now", "Timestamp::now", "Zoned::now"] {
            let found = source.find(word);
            if !READERS.contains(&source.path.as_str()) && !is_test(&source.path) {
                complaints.extend(found.into_iter().map(|line| source.complain(line, "the wall clock")));
            }
        }
    }
    report(&complaints);
}

#[test]
fn rooms_name_only_what_lies_below_them() {
    let mut complaints = Vec::new();
    for source in sources(&["proxy/src/"]) {
        let Some((room, others)) = DIRECTIONS.iter().find(|(room, _)| *room == source.room()) else { continue };
        for other in *others {
            let found = source.find(&format!("crate::{other}"));
            complaints
                .extend(found.into_iter().map(|line| source.complain(line, &format!("`{room}` names `{other}`"))));
        }
    }
    report(&complaints);
}

#[test]
fn unsafe_stands_where_it_may_and_says_why() {
    let mut complaints = Vec::new();
    for source in sources(&["proxy/src/", "ebpf/src/", "xtask/src/", "tests/", "benches/"]) {
        let allowed = source.path.starts_with("proxy/src/edge/sys/") || source.path == "ebpf/src/main.rs";
        for line in source.find("unsafe") {
            // A function promises in its documentation, a block in the note in front of it.
            let note = if source.code[line].contains("unsafe fn") { "# Safety" } else { "SAFETY:" };
            let explained = source.lines[line.saturating_sub(6)..=line].iter().any(|line| line.contains(note));
            // `unsafe extern` and `#[unsafe(no_mangle)]` declare; there is nothing to be sound about yet.
            let declares = source.code[line].contains("#[unsafe(");
            if !allowed && !declares {
                complaints.push(source.complain(line, "`unsafe` outside proxy/src/edge/sys and ebpf/src/main.rs"));
            } else if !explained && !declares {
                complaints.push(source.complain(line, "`unsafe` without a SAFETY note"));
            }
        }
    }
    report(&complaints);
}

#[test]
fn no_file_is_too_long() {
    let mut complaints = Vec::new();
    for source in sources(&["proxy/", "ebpf/", "xtask/", "tests/", "benches/"]) {
        if source.lines.len() > LONGEST_FILE {
            complaints.push(format!("{}: {} lines, {LONGEST_FILE} at most", source.path, source.lines.len()));
        }
    }
    report(&complaints);
}

#[test]
fn nothing_unwraps_outside_tests() {
    let mut complaints = Vec::new();
    for source in sources(&["proxy/src/", "ebpf/src/", "xtask/src/"]) {
        if is_test(&source.path) {
            continue;
        }
        for (number, line) in source.code.iter().enumerate() {
            for word in [".unwrap()", ".expect(", ".unwrap_err()", ".expect_err("] {
                if line.contains(word) {
                    complaints.push(source.complain(number, &format!("`{word}` outside a test")));
                }
            }
        }
    }
    report(&complaints);
}

#[test]
fn no_machine_of_a_developer_is_named() {
    let marks = [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("../sha", "red")];
    let mut complaints = Vec::new();
    for (path, text) in text_files() {
        for (number, line) in text.lines().enumerate() {
            for mark in marks.iter().filter(|mark| line.contains(**mark)) {
                complaints.push(format!("{path}:{}: {mark}", number + 1));
            }
        }
    }
    report(&complaints);
}

#[test]
fn the_rules_see_code_and_nothing_else() {
    let text = "use a; // unsafe\nlet s = \"unsafe \\\" x\"; let c = '\"'; let l: &'a str = r#\"unsafe\"#;\n\
                #[cfg(test)]\nmod tests {\n    fn x() { y.unwrap() }\n}\nfn after() {}\n";
    let code = without_tests(&blank(text));
    assert!(!code.iter().any(|line| names(line, "unsafe") || line.contains("unwrap")), "{code:?}");
    assert!(names(&code[6], "after") && names(&code[1], "str"), "{code:?}");
    assert!(names("x: std::time::Instant,", "Instant") && !names("InstantKind", "Instant"));
}
