//! Bodies of any size whose every byte is known, and the store that gives and takes them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{LazyLock, Mutex};

use sha2::{Digest as _, Sha256};

use crate::support::raw::Raw;

const PIECE: usize = 1 << 20;

/// Noise without a period, made once.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(next).flat_map(u64::to_be_bytes).take(PIECE).collect()
});

static SUMS: LazyLock<Mutex<HashMap<u64, String>>> = LazyLock::new(Mutex::default);

/// The bytes from `at` on, one piece of them at the most: noise, and in front of each piece its number.
pub(super) fn piece(at: u64, left: u64) -> Vec<u8> {
    let mut piece = NOISE.clone();
    piece[..8].copy_from_slice(&(at / PIECE as u64).to_be_bytes());
    piece.truncate(usize::try_from(left.min(PIECE as u64)).unwrap());
    piece
}

/// Writes a body.
pub(super) fn write(to: &mut impl Write, size: u64) -> std::io::Result<()> {
    let mut at = 0;
    while at < size {
        let piece = piece(at, size - at);
        to.write_all(&piece)?;
        at += piece.len() as u64;
    }
    to.flush()
}

/// What a body of this size adds up to.
pub(super) fn sum(size: u64) -> String {
    if let Some(known) = SUMS.lock().unwrap().get(&size) {
        return known.clone();
    }
    let mut sum = Summing::default();
    write(&mut sum, size).unwrap();
    let sum = sum.finish();
    SUMS.lock().unwrap().insert(size, sum.clone());
    sum
}

/// Counts and hashes what is written to it.
#[derive(Default)]
pub(super) struct Summing {
    bytes: u64,
    hash: Sha256,
}

impl Summing {
    pub(super) fn finish(self) -> String {
        let hex: String = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{} {hex}", self.bytes)
    }
}

impl Write for Summing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes += bytes.len() as u64;
        self.hash.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Where a body of this size is to be had.
pub(super) fn blob(size: u64) -> String {
    format!("/v2/team/app/blobs/sha256:{size:064x}")
}

/// Where a body of any size is taken; the answer is what it adds up to.
pub(super) const UPLOAD: &str = "/v2/team/app/blobs/uploads/0aa1e6a0-51cb-4c0d-9e5f-6f4f2d3c2b1a";

/// A registry as far as large bodies are concerned.
pub(super) struct Store(Raw);

impl Store {
    pub(super) fn start() -> Self {
        Self(Raw::start(|_, stream| {
            let mut reader = BufReader::with_capacity(1 << 16, stream.try_clone().unwrap());
            // A client that goes is its own affair.
            while serve(&mut reader, &stream).is_ok_and(|again| again) {}
        }))
    }

    pub(super) fn url(&self) -> String {
        self.0.url()
    }
}

fn serve(reader: &mut BufReader<TcpStream>, mut writer: &TcpStream) -> std::io::Result<bool> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(false);
        }
    }
    let head = head.to_ascii_lowercase();
    let target = head.split(' ').nth(1).unwrap_or("");
    if let Some((_, size)) = target.split_once("sha256:") {
        let size = u64::from_str_radix(size, 16).unwrap();
        write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")?;
        write(&mut writer, size)?;
        return Ok(true);
    }
    let mut sum = Summing::default();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    if head.contains("\r\ntransfer-encoding: chunked\r\n") {
        chunks(reader, &mut sum)?;
    } else {
        let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
        exactly(reader, length, &mut sum)?;
    }
    let told = sum.finish();
    write!(writer, "HTTP/1.1 202 Accepted\r\nContent-Length: {}\r\n\r\n{told}", told.len())?;
    Ok(true)
}

fn exactly(from: &mut impl Read, size: u64, to: &mut Summing) -> std::io::Result<()> {
    let copied = std::io::copy(&mut from.take(size), to)?;
    if copied < size { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

fn chunks(reader: &mut BufReader<TcpStream>, sum: &mut Summing) -> std::io::Result<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim_end(), 16).map_err(std::io::Error::other)?;
        exactly(reader, size, sum)?;
        reader.read_line(&mut String::new())?;
        if size == 0 {
            return Ok(());
        }
    }
}
