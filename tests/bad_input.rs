//! Whatever an operator gets wrong is one line that names the thing and the remedy, an exit code, and nothing half-started.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};

use crate::support::cmd::Cmd;
use crate::support::hello::Stub;
use crate::support::{htpasswd, program, scratch, skips};
use xtask::lab::process::{free_address, free_port, is_root};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";

fn run(args: &[&str]) -> Output {
    // One that starts after all has to be a failure, not a test that never ends.
    let mut command = Command::new("timeout");
    command.arg("60").arg(program());
    for name in ["BACKEND", "AUTH_BACKEND", "KIND"] {
        command.env_remove(name);
    }
    command.args(args).output().unwrap()
}

/// The last line of standard error, which has to be the one error.
fn error(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("portcullis: error: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    errors[0].to_owned()
}

#[test]
fn a_port_in_use_is_named() {
    let hello = Stub::hello().unwrap();
    let dir = scratch("port").unwrap();
    let users = htpasswd(dir.path(), LINE);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let users = users.to_str().unwrap();
    let url = hello.url();
    let common = ["serve", "--backend", &url, "--htpasswd", users, "--admin", "off", "--listen"];
    let got = error(&run(&[&common[..], &[&address]].concat()));
    assert!(got.contains(&address) && got.contains("in use") && got.contains("--listen"), "{got}");
    // A second gate on a first one's port must not share it unseen.
    let port = free_port().unwrap();
    let both = format!("127.0.0.1:{port}");
    let serve = crate::support::Serve::new(program()).unwrap().flag("--listen", &both);
    let _gate = serve.flag("--backend", &url).flag("--htpasswd", users).start().unwrap();
    let got = error(&run(&[&common[..], &[&both]].concat()));
    assert!(got.contains("in use"), "{got}");
    // One good address beside a bad one: neither is served.
    let free = format!("127.0.0.1:{}", free_port().unwrap());
    error(&run(&[&common[..], &[&free, "--listen", &address]].concat()));
    assert!(TcpStream::connect(&free).is_err(), "half-started");
    let got = error(&run(&["auth-service", "--htpasswd", users, "--listen", &address]));
    assert!(got.contains(&address) && got.contains("in use"), "{got}");
}

#[test]
fn a_registry_that_is_down_is_named() {
    let dir = scratch("down").unwrap();
    let users = htpasswd(dir.path(), LINE);
    // Not a port of the kernel's choice: another test's service may get that one, and a connection to it from itself.
    let gone = free_address().unwrap();
    let listen = format!("127.0.0.1:{}", free_port().unwrap());
    let url = format!("http://{gone}");
    let got = error(&run(&[
        "serve",
        "--backend",
        &url,
        "--htpasswd",
        users.to_str().unwrap(),
        "--admin",
        "off",
        "--listen",
        &listen,
    ]));
    assert!(got.contains(&url) && got.contains("start the registry"), "{got}");
    let got =
        error(&run(&["serve", "--backend", "http://no.such.host.invalid:5000", "--htpasswd", users.to_str().unwrap()]));
    assert!(got.contains("no.such.host.invalid"), "{got}");
}

#[test]
fn a_broken_password_file_is_named_by_line_and_shows_no_hash() {
    let dir = scratch("broken").unwrap();
    let users = dir.path().join("users");
    fs::write(&users, format!("{LINE}\nbob:plaintext-secret\n")).unwrap();
    let users = users.to_str().unwrap();
    for command in ["serve", "check"] {
        let got = error(&run(&[command, "--backend", "http://127.0.0.1:1", "--htpasswd", users]));
        assert!(got.contains(&format!("{users}:2: ")) && got.contains("bob"), "{got}");
        assert!(!got.contains("plaintext-secret"), "{got}");
    }
    let got = error(&run(&["serve", "--backend", "http://127.0.0.1:1", "--htpasswd", "/nonexistent/users"]));
    assert!(got.contains("/nonexistent/users"), "{got}");
}

#[test]
fn the_guard_says_what_it_lacks() {
    if !is_root() {
        skips::skip("needs root to become nobody");
        return;
    }
    // The test program's own directory may be closed to others.
    let dir = scratch("nobody").unwrap();
    let copy = dir.path().join("portcullis");
    // Written by another process: a test that starts something meanwhile would inherit our open file, and what is open for
    // writing cannot be executed.
    Cmd::new("cp").arg(program()).arg(&copy).run().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
    let nobody = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&copy).args(args).output().unwrap()
    };
    let got = error(&nobody(&["guard", "enforce", "--port", "5000"]));
    assert!(got.contains("CAP_BPF") && got.contains("root"), "{got}");
    // A kernel, or a container, without cgroup2: hidden by an empty file system in a mount namespace of its own.
    let hide = "for m in $(awk '$3 == \"cgroup2\" {print $2}' /proc/self/mounts); do umount -l $m; done; \
                ip link add outside0 type veth peer name outside1 && exec \"$0\" \"$@\"";
    let pins = std::path::PathBuf::from(format!("/sys/fs/bpf/portcullis-test-{}", std::process::id()));
    let got = Command::new("unshare")
        .args(["--mount", "--net", "sh", "-c", hide])
        .arg(program())
        .args(["guard", "enforce", "--port", "5000", "--interface", "outside0", "--pin"])
        .arg(&pins)
        .output()
        .unwrap();
    let got = error(&got);
    assert!(got.contains("cgroup2") && got.contains("--no-local"), "{got}");
    assert!(!pins.exists(), "something was left behind");
    let got = error(&run(&["guard", "enforce", "--port", "5000", "--interface", "no-such-link"]));
    assert!(got.contains("no-such-link"), "{got}");
}
