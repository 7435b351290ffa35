//! One function for each parser that reads what a stranger wrote. Each takes any bytes, and panics when a promise of the
//! parser is broken.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a target reports a find")]

mod guard;
mod http;
mod proxy;
mod words;

/// A parser at work on some bytes.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also the name of its corpus.
pub const ALL: [(&str, Target); 10] = [
    ("request_head", http::request_head),
    ("response_head", http::response_head),
    ("chunked", http::chunked),
    ("target", words::target),
    ("proxy_header", proxy::header),
    ("credentials", words::credentials),
    ("htpasswd", words::htpasswd),
    ("config", words::config),
    ("log_line", words::log_line),
    ("guard", guard::frame),
];

/// Runs the target of this name.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = ALL.iter().find(|(known, _)| *known == name).expect("a target of this name");
    target(data);
}
