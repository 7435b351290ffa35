//! The README does not promise what is not there: commands parse, files exist, configurations are valid.
//!
//! What changes a machine is run for real elsewhere: `cargo xtask test` by CI, what `cargo xtask demo` does by the round
//! trip, and the production set-up by the tests of `production`.

use std::fs;

use clap::Parser;

use crate::support::packages::OPENSSL;
use crate::support::{cmd::Cmd, misses, pki, program, root, scratch};

/// Programs that are not ours. A command of the README begins with one of these, with `portcullis` or with cargo.
const OTHERS: [&str; 17] = [
    "chmod",
    "modprobe",
    "apt-get",
    "install",
    "systemctl",
    "systemd-analyze",
    "useradd",
    "docker",
    "curl",
    "certbot",
    "echo",
    "tee",
    "cd",
    "git",
    "sed",
    "openssl",
    "cp",
];

pub(crate) struct Block {
    pub(crate) language: String,
    pub(crate) text: String,
    pub(crate) line: usize,
}

pub(crate) fn blocks(document: &str) -> Vec<Block> {
    let text = fs::read_to_string(root().join(document)).unwrap();
    let mut found: Vec<Block> = Vec::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            inside = !inside;
            if inside {
                found.push(Block { language: language.trim().into(), text: String::new(), line: number + 1 });
            }
        } else if inside && let Some(block) = found.last_mut() {
            block.text.push_str(line);
            block.text.push('\n');
        }
    }
    assert!(!inside, "{document}: a block is not closed");
    found
}

/// The commands of a block: joined lines, no comments, no here-documents, no `sudo`, no assignments in front.
fn commands(block: &Block) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut lines = block.text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let mut whole = line.trim().to_owned();
        while whole.ends_with('\\') {
            whole.pop();
            whole.push_str(lines.next().map_or("", |(_, line)| line.trim()));
        }
        if let Some((_, mark)) = whole.split_once("<<") {
            let mark = mark.trim().trim_matches('\'').to_owned();
            whole = whole.split("<<").next().unwrap().to_owned();
            for (_, line) in lines.by_ref() {
                if line == mark {
                    break;
                }
            }
        }
        for part in whole.split(" | ").flat_map(|part| part.split(" && ")) {
            let words = words(part);
            let skip = words.iter().take_while(|word| *word == "sudo" || is_assignment(word)).count();
            let words = words[skip..].to_vec();
            if !words.is_empty() {
                found.push((block.line + 1 + number, words));
            }
        }
    }
    found
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
}

/// Shell words with plain quotes; a comment or a redirection ends the command.
fn words(text: &str) -> Vec<String> {
    let (mut found, mut word, mut quote, mut any) = (Vec::new(), String::new(), None, false);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (Some(_), c) => word.push(c),
            (None, '"' | '\'') => (quote, any) = (Some(c), true),
            (None, '#' | '>') if word.is_empty() => break,
            (None, ' ') => {
                if any || !word.is_empty() {
                    found.push(std::mem::take(&mut word));
                }
                any = false;
            }
            (None, c) => word.push(c),
        }
    }
    if any || !word.is_empty() {
        found.push(word);
    }
    found
}

fn problem(words: &[String]) -> Option<String> {
    let name = words[0].rsplit('/').next().unwrap();
    match name {
        "portcullis" => portcullis::cli::Cli::try_parse_from(words).err().map(|error| error.to_string()),
        "cargo" if words[1] == "xtask" => {
            xtask::cli::Cli::try_parse_from(&words[1..]).err().map(|error| error.to_string())
        }
        "cargo" => (!["build", "test", "install", "deny", "fmt", "clippy"].contains(&words[1].as_str()))
            .then(|| "an unknown cargo command".to_owned()),
        // On another machine.
        "ssh" if words.len() > 2 => problem(&words[2..]),
        other => (!OTHERS.contains(&other)).then(|| format!("`{other}` is not in this test's list")),
    }
}

#[test]
fn every_command_parses() {
    let mut complaints = Vec::new();
    let mut ours = 0;
    for document in ["README.md", "CONTRIBUTING.md", "SECURITY.md"] {
        for block in blocks(document).iter().filter(|block| block.language == "sh") {
            for (line, words) in commands(block) {
                ours += usize::from(words[0].contains("portcullis") || words[0] == "cargo");
                if let Some(problem) = problem(&words) {
                    complaints.push(format!("{document}:{line}: {}\n{problem}", words.join(" ")));
                }
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
    assert!(ours >= 8, "only {ours} commands of ours were found: is the test still reading the README?");
}

#[test]
fn every_block_has_a_language_that_is_checked_or_only_shown() {
    for document in ["README.md", "CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md"] {
        for Block { language, line, .. } in blocks(document) {
            let known = ["sh", "toml", "text", "mermaid", "yaml", "nginx"].contains(&language.as_str());
            assert!(known, "{document}:{line}: a block in {language:?}");
        }
    }
}

#[test]
fn every_file_that_is_named_exists() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let mut seen = 0;
    for word in text.split(|c: char| c.is_whitespace() || "()`\"'<>[],|".contains(c)) {
        let word = word.trim_end_matches(['.', ':', ';']);
        let ours = ["xtask/", "benches/", "tests/", "proxy/", "ebpf/"].iter().any(|top| word.starts_with(top));
        let page = word.ends_with(".md") && !word.contains("://");
        if ours || page {
            seen += 1;
            assert!(root().join(word).exists(), "README.md names {word}, which does not exist");
        }
        if let Some(unit) = word.strip_suffix(".service").filter(|unit| unit.starts_with("portcullis")) {
            let file = format!("xtask/packaging/{unit}.service");
            assert!(root().join(&file).exists(), "README.md names {word}, but there is no {file}");
        }
    }
    assert!(seen >= 3, "only {seen} files are named");
}

/// `check` with the paths of a real machine turned into those of a scratch directory that has such files.
fn check(what: &str, text: &str) {
    let dir = scratch("readme").unwrap();
    let authority = pki::Authority::create(dir.path(), "Test CA").unwrap();
    let identity = authority.issue("registry", &["registry.example.com"]).unwrap();
    fs::copy(identity.cert, dir.path().join("registry.pem")).unwrap();
    fs::copy(authority.cert, dir.path().join("clients.pem")).unwrap();
    fs::write(dir.path().join("users.htpasswd"), "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.\n").unwrap();
    let text = text.replace("/etc/portcullis/", &format!("{}/", dir.path().display()));
    let file = dir.path().join("portcullis.toml");
    fs::write(&file, &text).unwrap();
    let output = Cmd::new(program()).dir(dir.path()).args(["check", "--config"]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{what}:\n{text}\n{}", output.everything());
}

#[test]
fn every_configuration_is_valid() {
    if misses(&[OPENSSL]) {
        return;
    }
    let mut seen = 0;
    for block in blocks("README.md").iter().filter(|block| block.language == "toml") {
        check(&format!("README.md:{}", block.line), &block.text);
        seen += 1;
    }
    assert!(seen > 0, "the README shows no configuration");
    let sample = "xtask/packaging/portcullis.toml";
    check(sample, &fs::read_to_string(root().join(sample)).unwrap());
}

#[test]
fn the_units_start_commands_that_exist() {
    let dir = root().join("xtask/packaging");
    let mut seen = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "service") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for command in
            text.lines().filter_map(|line| line.strip_prefix("ExecStart=").or(line.strip_prefix("ExecReload=")))
        {
            seen += 1;
            let problem = problem(&words(command));
            assert_eq!(problem, None, "{}: {command}", path.display());
        }
    }
    assert_eq!(seen, 3);
}

#[test]
fn ci_runs_the_command_of_the_readme() {
    let script = fs::read_to_string(root().join(".ci/run")).unwrap();
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(script.contains("\ncargo xtask test\n") && readme.contains("\ncargo xtask test\n"));
}

#[test]
fn the_reader_understands_the_shell_it_is_given() {
    let text = "# a comment\nsudo A=1 portcullis user add \\\n  --htpasswd 'a b' x | tee y > z\ncat <<'E'\nnoise\nE\n";
    let block = Block { language: "sh".into(), text: text.into(), line: 10 };
    let read: Vec<Vec<String>> = commands(&block).into_iter().map(|(_, words)| words).collect();
    let expected = [vec!["portcullis", "user", "add", "--htpasswd", "a b", "x"], vec!["tee", "y"], vec!["cat"]];
    assert_eq!(read, expected);
}
