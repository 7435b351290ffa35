//! The clients: those who pull and push and check every byte, those who break off, and those who may not come in.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::net::sockopt::set_socket_linger;

use super::tally::Tally;
use crate::lab::http::{Connection, Response, basic};
use crate::lab::image::{self, Content, sha256};
use crate::lab::process::scratch;
use crate::lab::skopeo::{Skopeo, Trust};

pub(super) const CREDS: &str = "soak:a password for ten minutes";
const REPOSITORY: &str = "/v2/soak/blobs/blobs";
/// Around the thresholds of buffers, pipes and splice, and some that take their time.
const SIZES: [usize; 8] = [1, 4_095, 32_768, 65_537, 262_144, 1_000_003, 3_000_000, 12_000_000];

/// Choices that a seed repeats.
#[derive(Debug)]
pub(super) struct Dice(Content);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(Content(seed))
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        let mut word = [0; 8];
        self.0.fill(&mut word);
        u64::from_le_bytes(word) % end.max(1)
    }
}

/// Something to pull.
#[derive(Debug)]
struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(size: usize, seed: u64) -> Self {
        let mut bytes = vec![0; size];
        Content(seed).fill(&mut bytes);
        Self { digest: format!("sha256:{}", sha256(&bytes)), bytes }
    }
}

/// What all clients know.
#[derive(Debug)]
pub(super) struct World {
    addr: SocketAddr,
    tally: Arc<Tally>,
    blobs: Vec<Blob>,
}

type Errand = fn(&World, &mut Dice, &mut Option<Connection>) -> anyhow::Result<()>;

impl World {
    /// Pushes what is to be pulled.
    pub(super) fn prepare(addr: SocketAddr, tally: &Arc<Tally>, seed: u64) -> anyhow::Result<Arc<Self>> {
        let blobs = SIZES.iter().enumerate().map(|(n, size)| Blob::new(*size, seed.wrapping_add(n as u64)));
        let world = Self { addr, tally: Arc::clone(tally), blobs: blobs.collect() };
        let mut connection = Connection::open(addr)?;
        for blob in &world.blobs {
            ensure!(world.upload(&mut connection, blob, false)? == 201, "a blob cannot be pushed");
        }
        Ok(Arc::new(world))
    }

    /// Lets the clients loose, each on a thread of its own, until the tally stops.
    pub(super) fn start(self: &Arc<Self>, seed: u64) -> anyhow::Result<Vec<JoinHandle<()>>> {
        let errands: [Errand; 9] = [pull, pull, pull, range, push, push, break_off, break_off, knock];
        let mut threads = Vec::new();
        for (n, errand) in errands.into_iter().enumerate() {
            let (world, mut dice) = (Arc::clone(self), Dice::new(seed ^ (n as u64 + 1) << 32));
            threads.push(thread::spawn(move || {
                let mut kept = None;
                while world.tally.goes_on() {
                    if let Err(error) = errand(&world, &mut dice, &mut kept) {
                        kept = None;
                        world.broke(&error);
                    }
                    world.tally.sleep(Duration::from_millis(dice.below(60)));
                }
            }));
        }
        let (world, skopeo) = (Arc::clone(self), Skopeo::new()?);
        threads.push(thread::spawn(move || {
            let mut dice = Dice::new(seed ^ 0x5c0);
            while world.tally.goes_on() {
                if let Err(error) = world.carry(&skopeo, &mut dice) {
                    world.tally.violated(format!("{error:#}"));
                }
                world.tally.sleep(Duration::from_millis(500));
            }
        }));
        Ok(threads)
    }

    /// A transfer that did not end. That is the registry's doing, unless the gate let nobody in or let them wait.
    fn broke(&self, error: &anyhow::Error) {
        let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        for kind in kinds {
            if matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
                self.tally.violated(format!("somebody waited for half a minute: {error:#}"));
            } else if kind == io::ErrorKind::ConnectionRefused {
                self.tally.violated(format!("the gate lets nobody in: {error:#}"));
            }
        }
        count(&self.tally.cut);
    }

    fn connection<'k>(&self, kept: &'k mut Option<Connection>, fresh: bool) -> anyhow::Result<&'k mut Connection> {
        if fresh || kept.is_none() {
            *kept = Some(Connection::open(self.addr)?);
        }
        kept.as_mut().context("no connection")
    }

    fn blob(&self, dice: &mut Dice) -> &Blob {
        &self.blobs[dice.below(self.blobs.len() as u64) as usize]
    }

    /// Pushes a blob in the way of docker 20 (chunks) or of containerd 2 (one PUT): the last status.
    fn upload(&self, connection: &mut Connection, blob: &Blob, chunked: bool) -> anyhow::Result<u16> {
        let started = connection.exchange(ask("POST", &format!("{REPOSITORY}/uploads/"), "Content-Length: 0\r\n"))?;
        let (202, Some(place)) = (started.status, started.field("location")) else { return Ok(started.status) };
        let mut place = place.to_owned();
        let (mut body, length) = (blob.bytes.as_slice(), blob.bytes.len());
        if chunked {
            let mut request = ask("PATCH", &place, "Transfer-Encoding: chunked\r\n").into_bytes();
            for chunk in body.chunks(100_000) {
                request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                request.extend_from_slice(chunk);
                request.extend_from_slice(b"\r\n");
            }
            request.extend_from_slice(b"0\r\n\r\n");
            let patched = connection.exchange(&request)?;
            let (202, Some(next)) = (patched.status, patched.field("location")) else { return Ok(patched.status) };
            next.clone_into(&mut place);
            body = &[];
        }
        let mark = if place.contains('?') { '&' } else { '?' };
        let length = if chunked { 0 } else { length };
        let put = ask("PUT", &format!("{place}{mark}digest={}", blob.digest), &format!("Content-Length: {length}\r\n"));
        Ok(connection.exchange([put.as_bytes(), body].concat())?.status)
    }

    /// An image there and back with skopeo. While the registry is away it may fail; what comes back must be right.
    fn carry(&self, skopeo: &Skopeo, dice: &mut Dice) -> anyhow::Result<()> {
        let (there, back) = (scratch("soak-image")?, scratch("soak-image")?);
        image::write(there.path(), &[dice.below(100_000), dice.below(3_000_000)], dice.below(20))?;
        let name = format!("{}/soak/image:{}", self.addr, dice.below(20));
        for pushing in [true, false] {
            let done = match pushing {
                true => skopeo.push(there.path(), &name, Some(CREDS), Trust::Plain)?,
                false => skopeo.pull(&name, back.path(), Some(CREDS), Trust::Plain)?,
            };
            if !done.status.success() {
                count(&self.tally.cut);
                return Ok(());
            }
        }
        image::compare(there.path(), back.path()).context("an image came back changed")?;
        count(&self.tally.images);
        Ok(())
    }
}

fn ask(method: &str, target: &str, fields: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: soak\r\nAuthorization: {}\r\n{fields}\r\n", basic(CREDS))
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// An answer of the gate or of the registry that is no yes: it has to have a reason.
fn no(world: &World, what: &str, answer: &Response) {
    match answer.status {
        500 | 502 | 503 | 504 => count(&world.tally.refused),
        // An upload's place goes with the registry that was killed.
        404 if what == "push" => count(&world.tally.refused),
        status => world.tally.violated(format!("{what}: {status} {}", answer.text())),
    }
}

fn pull(world: &World, dice: &mut Dice, kept: &mut Option<Connection>) -> anyhow::Result<()> {
    let blob = world.blob(dice);
    let connection = world.connection(kept, dice.below(4) == 0)?;
    let answer = connection.exchange(ask("GET", &format!("{REPOSITORY}/{}", blob.digest), ""))?;
    if answer.status != 200 {
        *kept = None;
        no(world, "pull", &answer);
        return Ok(());
    }
    if format!("sha256:{}", sha256(&answer.body)) != blob.digest {
        let (wanted, got) = (blob.bytes.len(), answer.body.len());
        world.tally.violated(format!("a download of {wanted} bytes came as {got} others and looked whole"));
    }
    count(&world.tally.downloads);
    world.tally.bytes.fetch_add(answer.body.len() as u64, Ordering::Relaxed);
    Ok(())
}

fn range(world: &World, dice: &mut Dice, kept: &mut Option<Connection>) -> anyhow::Result<()> {
    let blob = world.blob(dice);
    let length = blob.bytes.len() as u64;
    let first = dice.below(length);
    let last = first + dice.below(length - first);
    let connection = world.connection(kept, dice.below(4) == 0)?;
    let field = format!("Range: bytes={first}-{last}\r\n");
    let answer = connection.exchange(ask("GET", &format!("{REPOSITORY}/{}", blob.digest), &field))?;
    if answer.status != 206 {
        *kept = None;
        no(world, "range", &answer);
    } else if answer.body != blob.bytes[usize::try_from(first)?..=usize::try_from(last)?] {
        world.tally.violated(format!("bytes {first}-{last} of {length} came as others"));
    } else {
        count(&world.tally.ranges);
    }
    Ok(())
}

fn push(world: &World, dice: &mut Dice, kept: &mut Option<Connection>) -> anyhow::Result<()> {
    // Few different ones: the registry's storage is not what is tried here.
    let blob = Blob::new(SIZES[dice.below(7) as usize], 1_000 + dice.below(8));
    let chunked = dice.below(2) == 0;
    let connection = world.connection(kept, dice.below(2) == 0)?;
    let status = world.upload(connection, &blob, chunked)?;
    if status != 201 {
        *kept = None;
        no(world, "push", &Response { status, fields: Vec::new(), body: Vec::new() });
        return Ok(());
    }
    count(&world.tally.uploads);
    let answer = connection.exchange(ask("GET", &format!("{REPOSITORY}/{}", blob.digest), ""))?;
    if answer.status != 200 {
        *kept = None;
        no(world, "pull after a push", &answer);
    } else if answer.body != blob.bytes {
        world.tally.violated(format!("an upload of {} bytes was stored as others", blob.bytes.len()));
    }
    Ok(())
}

/// A download or an upload that its client ends in the middle: by a reset, by half, or by doing nothing for a while.
fn break_off(world: &World, dice: &mut Dice, _: &mut Option<Connection>) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(world.addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    let blob = &world.blobs[5 + dice.below(3) as usize];
    if dice.below(2) == 0 {
        stream.write_all(ask("GET", &format!("{REPOSITORY}/{}", blob.digest), "").as_bytes())?;
        let mut some = vec![0; dice.below(blob.bytes.len() as u64 / 2) as usize];
        let _ = stream.read_exact(&mut some);
    } else {
        let framing = match dice.below(2) {
            0 => format!("Content-Length: {}\r\n", blob.bytes.len()),
            _ => "Transfer-Encoding: chunked\r\n".to_owned(),
        };
        let mut connection = Connection::open(world.addr)?;
        let started = connection.exchange(ask("POST", &format!("{REPOSITORY}/uploads/"), "Content-Length: 0\r\n"))?;
        let Some(place) = started.field("location") else { bail!("no upload: {}", started.status) };
        stream.write_all(ask("PATCH", place, &framing).as_bytes())?;
        if framing.starts_with('T') {
            stream.write_all(format!("{:x}\r\n", blob.bytes.len()).as_bytes())?;
        }
        stream.write_all(&blob.bytes[..dice.below(blob.bytes.len() as u64 / 2) as usize])?;
    }
    match dice.below(3) {
        0 => {
            set_socket_linger(&stream, Some(Duration::ZERO)).map_err(io::Error::from)?;
            count(&world.tally.resets);
        }
        1 => {
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read(&mut [0; 4096]);
            count(&world.tally.half_closes);
        }
        _ => {
            world.tally.sleep(Duration::from_millis(dice.below(8_000)));
            count(&world.tally.stalls);
        }
    }
    Ok(())
}

/// Somebody without a login, or with a wrong one.
fn knock(world: &World, dice: &mut Dice, _: &mut Option<Connection>) -> anyhow::Result<()> {
    let wrong = format!("Authorization: {}\r\n", basic(&format!("stranger:{}", dice.below(3))));
    let login = if dice.below(2) == 0 { &wrong } else { "" };
    let target = match dice.below(3) {
        0 => "/v2/".to_owned(),
        1 => format!("{REPOSITORY}/{}", world.blob(dice).digest),
        _ => "/v2/soak/image/manifests/1".to_owned(),
    };
    let request = format!("GET {target} HTTP/1.1\r\nHost: soak\r\n{login}Connection: close\r\n\r\n");
    match Connection::open(world.addr)?.exchange(request)?.status {
        401 | 429 => count(&world.tally.strangers),
        status => world.tally.violated(format!("a stranger's GET {target}: {status}")),
    }
    Ok(())
}
