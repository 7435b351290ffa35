//! What the guard costs each packet, by the kernel's own run of the programs (BPF_PROG_TEST_RUN).
//!
//! `cargo bench -p portcullis --bench guard`, as root. The harness of the kernel is part of each figure: the path
//! "ARP" does next to nothing and shows how much.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use aya::programs::{CgroupSkb, CgroupSkbAttachType, TestRun as _, TestRunOptions, TestRunResult, Xdp};
use aya_obj::programs::XdpAttachType;
use criterion::{Criterion, criterion_group, criterion_main};

const BINARY: &str = env!("CARGO_BIN_EXE_portcullis");
const SPACE: &str = "portcullis-bench";
const PIN: &str = "/sys/fs/bpf/portcullis-bench";
/// Runs for one answer of the kernel.
const REPEAT: u32 = 100_000;

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn ip(args: &str) {
    run(Command::new("ip").args(args.split(' ')));
}

fn within(args: &str) {
    run(Command::new("nsenter").arg(format!("--net=/run/netns/{SPACE}")).arg(BINARY).args(args.split(' ')));
}

/// A guard of a namespace of its own; it is gone with this value.
struct Guard;

impl Guard {
    fn begin() -> Self {
        ip(&format!("netns add {SPACE}"));
        ip(&format!("-n {SPACE} link add cable0 type veth peer name cable1"));
        ip(&format!("-n {SPACE} addr add 192.0.2.1/24 dev cable0"));
        ip(&format!("-n {SPACE} addr add 2001:db8::1/64 dev cable0 nodad"));
        ip(&format!("-n {SPACE} link set cable0 up"));
        within(&format!("guard enforce --port 5000 --interface cable0 --allow 203.0.113.9 --pin {PIN}"));
        Self
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        within(&format!("guard detach --pin {PIN}"));
        ip(&format!("netns del {SPACE}"));
    }
}

fn frame(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    [&[2; 12][..], &ethertype.to_be_bytes(), packet].concat()
}

fn ports(port: u16) -> [u8; 20] {
    let mut header = [0; 20];
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header
}

fn ipv4(protocol: u8, source: [u8; 4], port: u16) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet[0] = 0x45;
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&[192, 0, 2, 1]);
    packet.extend(ports(port));
    frame(0x0800, &packet)
}

fn ipv6(port: u16) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet[6] = 6;
    packet[8..12].copy_from_slice(&[0x20, 1, 0xd, 0xb9]);
    packet[24..28].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
    packet[39] = 1;
    packet.extend(ports(port));
    frame(0x86dd, &packet)
}

fn paths() -> Vec<(&'static str, Vec<u8>)> {
    let (gate, stranger) = ([203, 0, 113, 9], [203, 0, 113, 10]);
    vec![
        ("ARP", frame(0x0806, &[0; 28])),
        ("UDP", ipv4(17, stranger, 5000)),
        ("TCP to another port", ipv4(6, stranger, 443)),
        ("TCP from an allowed source", ipv4(6, gate, 5000)),
        ("TCP from a stranger, IPv4", ipv4(6, stranger, 5000)),
        ("TCP from a stranger, IPv6", ipv6(5000)),
    ]
}

fn rings(criterion: &mut Criterion) {
    let _guard = Guard::begin();
    let xdp = Xdp::from_pin(format!("{PIN}/generation_1/guard_xdp"), XdpAttachType::Interface).unwrap();
    let ingress =
        CgroupSkb::from_pin(format!("{PIN}/generation_1/guard_ingress"), CgroupSkbAttachType::Ingress).unwrap();
    // `struct __sk_buff` with an interface that is not lo: there the ring looks at nothing.
    let mut context = [0; 192];
    context[40] = 2;
    for (name, frame) in paths() {
        let options = |repeat| TestRunOptions { data_in: Some(&frame), repeat, ..TestRunOptions::new() };
        measure(criterion, &format!("xdp/{name}"), |repeat| xdp.test_run(options(repeat)).unwrap());
        let with_context = |repeat| TestRunOptions { ctx_in: Some(&context), ..options(repeat) };
        measure(criterion, &format!("ingress/{name}"), |repeat| ingress.test_run(with_context(repeat)).unwrap());
    }
}

fn measure(criterion: &mut Criterion, name: &str, run: impl Fn(u32) -> TestRunResult) {
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            // The kernel tells the mean itself, but in whole nanoseconds.
            let begin = Instant::now();
            run(REPEAT);
            begin.elapsed().mul_f64(iterations as f64 / f64::from(REPEAT))
        });
    });
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
}

criterion_group! { name = benches; config = short(); targets = rings }
criterion_main!(benches);
