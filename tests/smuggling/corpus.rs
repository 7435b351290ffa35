//! The labelled cases: one a line, `label, kind of site, answers, bytes`, with tabs between.
//!
//! Answers are the statuses in order, with a slash between two that are both right; `cut` is for a request that breaks off
//! or breaks a rule in its body: an error or no answer, and no whole request upstream.

use std::fs;

use crate::support::http::basic;
use crate::support::root;

/// A stream of bytes and what is to become of it.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// `family/label`.
    pub(super) name: String,
    /// The field by which the recorder and the servers know it again.
    pub(super) mark: String,
    /// `both`, `registry` or `http`.
    pub(super) kind: String,
    /// What the answers are to be; `None`: whatever the strict reading allows.
    pub(super) answers: Option<String>,
    pub(super) bytes: Vec<u8>,
}

/// All families.
pub(super) fn load() -> Vec<Case> {
    let mut files: Vec<_> = fs::read_dir(root().join("tests/corpus/smuggling")).unwrap().flatten().collect();
    files.sort_by_key(fs::DirEntry::path);
    let mut cases = Vec::new();
    for file in files {
        let family = file.path().file_stem().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(file.path()).unwrap();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.splitn(4, '\t').collect();
            let [label, kind, answers, bytes] = words[..] else { panic!("{family}: {line:?}") };
            assert!(["both", "registry", "http"].contains(&kind), "{family}: {line:?}");
            let mark = format!("case-{}", cases.len());
            cases.push(Case {
                name: format!("{family}/{label}"),
                kind: kind.to_owned(),
                answers: Some(answers.to_owned()),
                bytes: expand(bytes, &mark),
                mark,
            });
        }
    }
    cases
}

/// Fills in the words in braces, then the escapes.
pub(super) fn expand(text: &str, mark: &str) -> Vec<u8> {
    let auth = format!("Authorization: {}\\r\\nUser-Agent: {mark}\\r\\n", basic(super::CREDS));
    let mut text = text
        .replace("{C}", "{P}Transfer-Encoding: chunked\\r\\n\\r\\n")
        .replace("{P}", "POST /v2/a/blobs/uploads/ HTTP/1.1\\r\\nHost: a\\r\\n{auth}")
        .replace("{G}", "GET /v2/ HTTP/1.1\\r\\nHost: a\\r\\n{auth}")
        .replace("{S}", "GET /smuggled HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        .replace("{auth}", &auth);
    while let Some((before, after)) = text.split_once("{x*") {
        let (count, after) = after.split_once('}').unwrap();
        text = format!("{before}{}{after}", "x".repeat(count.parse().unwrap()));
    }
    unescape(&text)
}

fn unescape(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next().unwrap() {
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                b'0' => 0,
                b'x' => {
                    let digits = [rest.next().unwrap(), rest.next().unwrap()].map(char::from);
                    u8::from_str_radix(&digits.iter().collect::<String>(), 16).unwrap()
                }
                other => other,
            },
            other => other,
        });
    }
    bytes
}

/// Streams that nobody wrote down: requests and pieces of them, cut, repeated and bent by a seed.
pub(super) fn random(seed: u64) -> Case {
    const PIECES: [&str; 22] = [
        "{G}\\r\\n",
        "{P}Content-Length: 3\\r\\n\\r\\nabc",
        "{C}3\\r\\nabc\\r\\n0\\r\\n\\r\\n",
        "{C}3;x=y\\r\\nabc\\r\\n0\\r\\nT: v\\r\\n\\r\\n",
        "{P}Content-Length: 35\\r\\n\\r\\n{S}",
        "{S}",
        "{G}",
        "{P}",
        "{C}",
        "Content-Length: 3\\r\\n",
        "Content-Length: 0\\r\\n",
        "Transfer-Encoding: chunked\\r\\n",
        "Transfer-Encoding: identity\\r\\n",
        "Connection: keep-alive\\r\\n",
        "Connection: close\\r\\n",
        "X: y\\r\\n",
        "\\r\\n",
        "\\n",
        "0\\r\\n\\r\\n",
        "3\\r\\nabc\\r\\n",
        "abc",
        "HEAD /v2/ HTTP/1.1\\r\\nHost: a\\r\\n{auth}\\r\\n",
    ];
    const BENT: &[u8] = b"\r\n\0 \t:;,0aA/\\%#?\x7f\xff\"";
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % bound as u64).unwrap()
    };
    let text: String = (0..1 + below(5)).map(|_| PIECES[below(PIECES.len())]).collect();
    let mark = format!("seed-{seed}");
    let mut bytes = expand(&text, &mark);
    for _ in 0..below(3) {
        let at = below(bytes.len());
        match below(4) {
            0 => bytes[at] = BENT[below(BENT.len())],
            1 => bytes.insert(at, BENT[below(BENT.len())]),
            2 => drop(bytes.remove(at)),
            _ => bytes.truncate(at + 1),
        }
    }
    Case { name: format!("seed {seed}"), mark, kind: "both".into(), answers: None, bytes }
}
