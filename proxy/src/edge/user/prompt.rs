//! Asking for a password: on the terminal without echo, or the first line of standard input.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context as _, bail};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::auth::Secret;
use crate::auth::htpasswd::MAX_PASSWORD_BYTES;

const INTERRUPT: u8 = 0x03;
const END_OF_INPUT: u8 = 0x04;
const BACKSPACE: [u8; 2] = [0x08, 0x7f];
const ERASE_LINE: u8 = 0x15;

/// The user pressed Ctrl-C.
#[derive(Debug, Error)]
#[error("interrupted; nothing was changed")]
pub(super) struct Interrupted;

/// An existing password, asked for once.
pub(super) fn password(user: &str) -> anyhow::Result<Secret> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return ask(stdin.as_fd(), &format!("Password of {user}: "));
    }
    first_line(stdin.lock())
}

/// A new password, asked for twice on a terminal.
pub(super) fn new_password(user: &str) -> anyhow::Result<Secret> {
    let first = password(user)?;
    if first.expose().is_empty() {
        bail!("the password is empty; give one on the first line of standard input or at the prompt");
    }
    let stdin = io::stdin();
    if stdin.is_terminal() && ask(stdin.as_fd(), "The same again: ")?.expose() != first.expose() {
        bail!("the two passwords differ; run the command again");
    }
    Ok(first)
}

/// The first line, without its end.
pub(super) fn first_line(input: impl io::BufRead) -> anyhow::Result<Secret> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_PASSWORD_BYTES + 3));
    let limit = MAX_PASSWORD_BYTES as u64 + 3;
    input.take(limit).read_until(b'\n', &mut line).context("cannot read the password from standard input")?;
    let text = line.strip_suffix(b"\n").unwrap_or(&line);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if text.len() > MAX_PASSWORD_BYTES {
        bail!("the first line of standard input is longer than any password (512 bytes); put the password there");
    }
    Ok(Secret::new(text))
}

fn ask(terminal: BorrowedFd<'_>, question: &str) -> anyhow::Result<Secret> {
    let mut stderr = io::stderr();
    let silent =
        Silent::new(terminal).context("cannot switch off the terminal's echo; pipe the password in instead")?;
    stderr.write_all(question.as_bytes()).context("cannot write to standard error")?;
    let answer = read_keys(terminal);
    drop(silent);
    // The Enter that ended the line was not echoed.
    let _ = writeln!(stderr);
    answer
}

fn read_keys(terminal: BorrowedFd<'_>) -> anyhow::Result<Secret> {
    let mut typed = Zeroizing::new(Vec::with_capacity(MAX_PASSWORD_BYTES + 1));
    loop {
        let mut key = Zeroizing::new([0; 1]);
        let read = rustix::io::retry_on_intr(|| rustix::io::read(terminal, &mut *key))
            .context("cannot read from the terminal")?;
        match key[0] {
            INTERRUPT => bail!(Interrupted),
            b'\n' | b'\r' => return Ok(Secret::new(&typed)),
            END_OF_INPUT => return Ok(Secret::new(&typed)),
            _ if read == 0 => return Ok(Secret::new(&typed)),
            ERASE_LINE => typed.clear(),
            key if BACKSPACE.contains(&key) => erase_character(&mut typed),
            _ if typed.len() == MAX_PASSWORD_BYTES => {
                bail!("the password is longer than 512 bytes; choose another one")
            }
            key => typed.push(key),
        }
    }
}

fn erase_character(typed: &mut Vec<u8>) {
    let continues = |byte: u8| byte & 0b1100_0000 == 0b1000_0000;
    while typed.pop().is_some_and(continues) {}
}

/// The terminal without echo, until dropped. Keys come one by one and Ctrl-C comes as a key: a signal would end the
/// process with the echo still off.
struct Silent<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Silent<'a> {
    fn new(terminal: BorrowedFd<'a>) -> io::Result<Silent<'a>> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        Ok(Silent { terminal, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        // A terminal that has gone away needs no echo.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_password() {
        for (input, password) in [
            (&b"secret\n"[..], &b"secret"[..]),
            (b"secret", b"secret"),
            (b"secret\r\n", b"secret"),
            (b"secret\nmore\n", b"secret"),
            (b" sp ace \n", b" sp ace "),
            (b"\n", b""),
            (b"", b""),
            (b"\xff\xfe\n", b"\xff\xfe"),
            (&[b'x'; MAX_PASSWORD_BYTES], &[b'x'; MAX_PASSWORD_BYTES]),
            (&[&[b'x'; MAX_PASSWORD_BYTES][..], b"\r\n"].concat(), &[b'x'; MAX_PASSWORD_BYTES]),
        ] {
            assert_eq!(first_line(input).unwrap().expose(), password);
        }
        assert!(first_line(&[b'x'; MAX_PASSWORD_BYTES + 1][..]).is_err());
        assert!(first_line(&[b'x'; 100_000][..]).is_err());
    }

    #[test]
    fn backspace_takes_a_whole_character() {
        let mut typed = "aü€".as_bytes().to_vec();
        for left in ["aü", "a", "", ""] {
            erase_character(&mut typed);
            assert_eq!(typed, left.as_bytes());
        }
    }
}
