//! Downloads that are cut in the middle: the cut is seen for what it is, and the client's next request brings the rest.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::support::cmd::{Cmd, Output};
use crate::support::containerd::Containerd;
use crate::support::docker::Docker;
use crate::support::http::Connection;
use crate::support::packages::{CONTAINERD, CTR, DOCKER, DOCKERD};
use crate::support::registry::Registry;
use crate::support::{Serve, image, program, random};

use super::world::{PASSWORD, World, inside};

/// More than all socket buffers on the way hold together: the registry cannot have sent all of it at once.
const LARGE: u64 = 64 << 20;
/// Where a connection from the registry is cut: within the largest layer of the world's image, and in no other body.
const CUT: usize = 2 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// curl's own words for a body that ended early, and for a connection that was reset.
const CURL_SAW_A_CUT: [i32; 2] = [18, 56];

/// A blob in the registry, two ways to it: over TLS (copied) and in the open on loopback (spliced).
struct Blob<'w, 'd> {
    world: &'w mut World<'d>,
    digest: String,
    urls: [String; 2],
    plain: crate::support::Gate,
}

impl<'w, 'd> Blob<'w, 'd> {
    fn new(world: &'w mut World<'d>) -> Self {
        let digest = upload(&world.registry);
        let serve = Serve::new(program()).unwrap().within(world.den).flag("--backend", world.registry.url());
        let plain = serve.flag("--htpasswd", world.path("users.htpasswd")).start().unwrap();
        let path = format!("/v2/team/large/blobs/{digest}");
        let urls = [format!("https://{}{path}", world.addr()), format!("http://{}{path}", plain.addr())];
        Self { world, digest, urls, plain }
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.world.registry.blob_file(&self.digest)).unwrap()
    }

    fn says(&self, text: &str) -> bool {
        self.world.gate.says(text) || self.plain.says(text)
    }
}

/// Puts a large blob into the registry; its digest.
fn upload(registry: &Registry) -> String {
    let mut piece = vec![0; 1 << 20];
    image::Content(random()).fill(&mut piece);
    let blob: Vec<u8> = (0..LARGE >> 20).flat_map(|n| [&n.to_be_bytes(), &piece[8..]].concat()).collect();
    let hex: String = Sha256::digest(&blob).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut connection = Connection::open(registry.addr()).unwrap();
    let post = "POST /v2/team/large/blobs/uploads/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    let begun = connection.exchange(post).unwrap();
    let (_, target) = begun.field("location").unwrap().split_once("//a").unwrap();
    let head = format!("PUT {target}&digest=sha256%3A{hex} HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n");
    let done = connection.exchange([head.as_bytes(), &blob].concat()).unwrap();
    assert_eq!(done.status, 201, "{}", done.text());
    format!("sha256:{hex}")
}

fn curl(ca: &Path, url: &str, args: &[&str]) -> Cmd {
    let cmd = Cmd::new("curl").args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "60"]);
    // By way of standard input, so that no message shows it.
    let cmd = cmd.args(["--config", "-"]).input(format!("user = \"alice:{PASSWORD}\"\n"));
    cmd.arg("--cacert").arg(ca).args(args).arg(url)
}

fn size(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |data| data.len())
}

#[test]
fn the_registrys_death_in_a_body_is_a_clean_cut_and_a_range_brings_the_rest() {
    inside(&[], Registry::url, |mut world| {
        let (ca, part) = (world.ca.clone(), world.path("part"));
        let blob = Blob::new(&mut world);
        let whole = blob.bytes();
        for url in &blob.urls {
            let _ = fs::remove_file(&part);
            let file = part.to_str().unwrap();
            let slowly = curl(&ca, url, &["--limit-rate", "20M", "--output", file]);
            let download = thread::spawn(move || slowly.output().unwrap());
            let end = Instant::now() + PATIENCE;
            while size(&part) < 1 << 20 {
                assert!(Instant::now() < end && !download.is_finished(), "{:?}", download.join());
                thread::sleep(Duration::from_millis(5));
            }
            blob.world.registry.kill();
            let cut: Output = download.join().unwrap();
            let code = cut.status.code().unwrap();
            assert!(CURL_SAW_A_CUT.contains(&code), "{code}: {}", cut.everything());
            let got = fs::read(&part).unwrap();
            assert!(got.len() < whole.len() && whole.starts_with(&got), "{} of {} bytes", got.len(), whole.len());

            blob.world.registry.restart().unwrap();
            let rest = || curl(&ca, url, &["--continue-at", "-", "--output", file]).output().unwrap();
            let end = Instant::now() + PATIENCE;
            loop {
                let output = rest();
                if output.status.success() {
                    break;
                }
                assert!(Instant::now() < end, "{}\n{}", output.everything(), blob.world.gate.log());
                thread::sleep(Duration::from_millis(100));
            }
            assert!(fs::read(&part).unwrap() == whole, "{url}: the two parts together are not the blob");
        }
        for gate in [&blob.world.gate, &blob.plain] {
            assert!(gate.says("\"error\":\"reading the body") && gate.says("\"status\":206"), "{}", gate.log());
        }
    });
}

/// The registry answers a range past the end with a 416 that declares the whole blob's length, a short text and a close.
#[test]
fn a_range_past_the_end_is_cut_and_not_waited_for() {
    inside(&[], Registry::url, |mut world| {
        let ca = world.ca.clone();
        let blob = Blob::new(&mut world);
        for url in &blob.urls {
            for past in [LARGE * 2, size(&blob.world.registry.blob_file(&blob.digest))] {
                let range = format!("{past}-");
                let args = ["--no-fail", "--include", "--range", &range];
                let output = curl(&ca, url, &args).output().unwrap();
                let (code, text) = (output.status.code().unwrap(), output.text());
                assert!(text.starts_with("HTTP/1.1 416 "), "{text}");
                assert!(CURL_SAW_A_CUT.contains(&code), "{code}: {text}");
            }
            let first = curl(&ca, url, &["--range", "0-99"]).output().unwrap().ok().unwrap();
            assert!(blob.bytes().starts_with(&first.stdout) && first.stdout.len() == 100);
        }
        assert!(blob.says("\"status\":416"), "{}", blob.world.gate.log());
        for gate in [&blob.world.gate, &blob.plain] {
            let log = gate.log();
            let lines: Vec<&str> = log.lines().filter(|line| line.contains("\"status\":416")).collect();
            assert!(lines.iter().all(|line| line.contains("ended before its declared length")), "{lines:?}");
        }
    });
}

/// A line to the registry that breaks off in a large body as often as it is told to; its URL.
fn breaking(to: SocketAddr, cuts: &Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let cuts = Arc::clone(cuts);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(registry) = TcpStream::connect(to) else { continue };
            let (asking, asked) = (client.try_clone().unwrap(), registry.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut &asking, &mut &asked);
                let _ = asked.shutdown(Shutdown::Write);
            });
            let cuts = Arc::clone(&cuts);
            thread::spawn(move || answer(registry, client, &cuts));
        }
    });
    url
}

fn answer(mut registry: TcpStream, mut client: TcpStream, cuts: &AtomicUsize) {
    let (mut piece, mut sent) = (vec![0; 1 << 16], 0);
    while let Ok(read @ 1..) = registry.read(&mut piece) {
        sent += read;
        let cut = || cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if client.write_all(&piece[..read]).is_err() || (sent > CUT && cut()) {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = registry.shutdown(Shutdown::Both);
}

#[test]
fn docker_goes_on_where_it_was_cut() {
    let cuts = Arc::new(AtomicUsize::new(0));
    inside(
        &[DOCKERD, DOCKER, CONTAINERD, CTR],
        |registry| breaking(registry.addr(), &cuts),
        |world| {
            let docker = Docker::start(world.den).unwrap();
            let name = push(&world);
            let login = docker.client().args(["login", "--username", "alice", "--password-stdin"]);
            world.ok(login.arg(world.addr().to_string()).input(PASSWORD));
            cuts.store(1, Ordering::SeqCst);
            world.ok(docker.client().args(["pull", "--quiet", &name]));
            assert_eq!(cuts.load(Ordering::SeqCst), 0, "nothing was cut");
            assert!(world.gate.says("\"status\":206"), "{}", world.gate.log());
            let archive = world.path("saved.tar");
            world.ok(docker.client().args(["save", "--output"]).arg(&archive).arg(&name));
            assert_eq!(world.saved(&archive), world.contents());
        },
    );
}

#[test]
fn ctr_goes_on_where_it_was_cut() {
    let cuts = Arc::new(AtomicUsize::new(0));
    inside(
        &[CONTAINERD, CTR],
        |registry| breaking(registry.addr(), &cuts),
        |world| {
            let containerd = Containerd::start(world.den).unwrap();
            let name = push(&world);
            cuts.store(1, Ordering::SeqCst);
            let pull = containerd.ctr(world.den).args(["images", "pull", "--tlscacert"]).arg(&world.ca);
            world.ok(pull.arg("--user").secret_arg(format!("alice:{PASSWORD}")).arg(&name));
            assert_eq!(cuts.load(Ordering::SeqCst), 0, "nothing was cut");
            assert!(world.gate.says("\"status\":206"), "{}", world.gate.log());
            for layer in &world.image.layers {
                let pulled = fs::read(containerd.blob_file(layer)).unwrap();
                assert!(pulled == fs::read(world.registry.blob_file(layer)).unwrap(), "{layer} came back changed");
            }
        },
    );
}

/// Until its release 1.11 it does not go on by itself, nor do podman and buildah of that time: the user reads that it
/// failed, and the next try is whole.
#[test]
fn skopeo_never_takes_a_cut_body_for_a_whole_one() {
    let cuts = Arc::new(AtomicUsize::new(0));
    inside(
        &[],
        |registry| breaking(registry.addr(), &cuts),
        |world| {
            push(&world);
            let back = world.path("back");
            let pull = || {
                let cmd = world.skopeo.command().args(["copy", "--quiet", "--src-cert-dir"]).arg(&world.trust);
                let cmd = cmd.arg("--src-creds").secret_arg(format!("alice:{PASSWORD}")).arg(world.remote("team/app"));
                cmd.arg(format!("oci:{}:latest", back.display()))
            };
            cuts.store(1, Ordering::SeqCst);
            let cut = pull().output().unwrap();
            assert_eq!(cuts.load(Ordering::SeqCst), 0, "nothing was cut");
            if !cut.status.success() {
                assert!(cut.everything().contains("unexpected EOF"), "{}", cut.everything());
                world.ok(pull());
            }
            let same = image::compare(world.layout.path(), &back).unwrap();
            assert_eq!((same.blobs, same.bytes), (5, world.image.bytes));
        },
    );
}

/// The world's image, pushed by skopeo.
fn push(world: &World<'_>) -> String {
    let cmd = world.skopeo.command().args(["copy", "--quiet", "--dest-cert-dir"]).arg(&world.trust);
    let cmd = cmd.arg("--dest-creds").secret_arg(format!("alice:{PASSWORD}"));
    world.ok(cmd.arg(format!("oci:{}:latest", world.layout.path().display())).arg(world.remote("team/app")));
    world.name("team/app")
}
