//! New keys in the middle of a body, asked for by the client: the transfer goes on.

use std::io::Write;
use std::process::ChildStdin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use super::clients::{Running, Terms, Way, openssl, request};
use super::content::{self, Summing};
use super::{Room, SUITES};
use crate::support::misses;
use crate::support::packages::OPENSSL;

const SIZE: u64 = 24 << 20;
const EACH: u64 = 2 << 20;
const TIMES: usize = 12;

/// Waits until the client has taken what it was given: it knows a command only at the beginning of what it reads.
fn taken(input: &ChildStdin) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while rustix::io::ioctl_fionread(input)? > 0 {
        anyhow::ensure!(Instant::now() < end, "it does not read");
        thread::sleep(Duration::from_millis(1));
    }
    // What left the pipe is sent before the next read.
    thread::sleep(Duration::from_millis(5));
    Ok(())
}

fn tell(input: &mut ChildStdin, command: &str) -> anyhow::Result<()> {
    taken(input)?;
    input.write_all(command.as_bytes())?;
    taken(input)
}

/// `K` wants the gate's keys changed, too; `k` changes the client's alone.
fn command(n: usize) -> &'static str {
    if n.is_multiple_of(2) { "K\n" } else { "k\n" }
}

/// How often the client says that it changed its keys.
fn changes(running: &Running) -> usize {
    running.last_words().matches("KEYUPDATE").count()
}

fn each_suite(name: &str, transfer: impl Fn(&Terms<'_>)) {
    let room = Room::new(name);
    for (n, suite) in SUITES.iter().filter(|suite| suite.tls13).enumerate() {
        transfer(&room.terms(suite, n == 1));
    }
    for gate in [&room.ecdsa, &room.rsa] {
        assert!(!gate.log().contains("panicked"), "{}", gate.log());
    }
}

/// A download, during which the client is told now and then to change keys, while its output is read: one that cannot get
/// rid of it does not listen. How often it was told.
fn told_while_downloading(running: &mut Running, words: impl Fn(usize) -> &'static str + Send) -> usize {
    let mut input = running.input.take().unwrap();
    input.write_all(request(Way::Down, SIZE).as_bytes()).unwrap();
    let told = AtomicUsize::new(0);
    let (progress, there) = channel();
    let got = thread::scope(|scope| {
        let told = &told;
        scope.spawn(move || {
            for there in there {
                if there / EACH > told.load(Ordering::SeqCst) as u64 && SIZE - there > EACH {
                    tell(&mut input, words(told.load(Ordering::SeqCst))).unwrap();
                    told.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        let got = running.answer_with(|there| {
            progress.send(there)?;
            // Bytes are faster than words.
            if there / EACH > told.load(Ordering::SeqCst) as u64 {
                thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        drop(progress);
        got
    });
    let words = running.last_words();
    assert_eq!(got.unwrap_or_else(|error| panic!("{error:#}\n{words}")), content::sum(SIZE));
    let told = told.into_inner();
    assert!(told >= TIMES / 2, "only {told} times: {words}");
    told
}

#[test]
fn a_download_goes_on_under_new_keys() {
    if misses(&[OPENSSL]) {
        return;
    }
    each_suite("tls-rekey-down", |terms| {
        let mut running = Running::start(openssl(terms)).unwrap();
        let told = told_while_downloading(&mut running, command);
        assert_eq!(changes(&running), told, "{}", running.last_words());
    });
}

#[test]
fn an_upload_goes_on_under_new_keys() {
    if misses(&[OPENSSL]) {
        return;
    }
    // No byte of it may look like a command.
    let digits: Vec<u8> = (0..EACH).map(|at| b'0' + (at * 7 / 11 % 10) as u8).collect();
    let mut sum = Summing::default();
    (0..TIMES).for_each(|_| sum.write_all(&digits).unwrap());
    let expected = sum.finish();
    each_suite("tls-rekey-up", |terms| {
        let mut running = Running::start(openssl(terms)).unwrap();
        let mut input = running.input.take().unwrap();
        input.write_all(request(Way::Up, TIMES as u64 * EACH).as_bytes()).unwrap();
        for n in 0..TIMES {
            tell(&mut input, command(n)).unwrap();
            input.write_all(&digits).unwrap();
        }
        let got = running.answer();
        let words = running.last_words();
        assert_eq!(got.unwrap_or_else(|error| panic!("{error:#}\n{words}")), expected);
        assert_eq!(changes(&running), TIMES, "{words}");
    });
}
