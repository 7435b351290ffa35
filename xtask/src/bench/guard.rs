//! The guard: what a dropped packet costs next to nftables, and what traffic costs that is let in.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::machine::Noise;
use super::plot::Plot;
use super::report::{Report, Table};
use super::requests::bar;
use super::rounds::interleave;
use super::stats::{Goal, Samples, figure};
use super::{Args, Outcome};
use crate::lab::cmd::Cmd;
use crate::lab::process::{Service, is_root, scratch};
use crate::lab::ui::say;

const PORT: u16 = 5000;
const INSIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const GATE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 77);
const HARDWARE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GENERATOR: &str = include_str!("../../../benches/peers/frames.py");
const MIB: u64 = 1 << 20;
/// How often frames may be lost on their way before that is an error.
const FLOODS: usize = 5;

/// What stands between the cable and the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    Nothing,
    NftInput,
    NftIngress,
    Driver,
    Kernel,
}

impl Filter {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing: the port is closed",
            Self::NftInput => "nftables, hook input",
            Self::NftIngress => "nftables, hook ingress",
            Self::Driver => "guard, XDP by the driver",
            Self::Kernel => "guard, XDP by the kernel",
        }
    }
}

pub(super) fn run(args: &Args, program: &Path, noise: &mut Noise) -> anyhow::Result<Outcome> {
    if !is_root() {
        say("✗ guard: skipped: eBPF takes root");
        return Ok(Outcome { goals: Vec::new() });
    }
    let cable = Cable::lay(program)?;
    let count = if args.quick { 200_000 } else { 2_000_000 };
    let field = [Filter::Driver, Filter::Kernel, Filter::NftIngress, Filter::NftInput, Filter::Nothing];
    let drops = samples(args, noise, "dropped packets", &field, |filter| cable.flood(filter, count), "ns")?;
    let field = [Filter::Nothing, Filter::Driver, Filter::Kernel];
    let bulk = |inwards| {
        let cable = &cable;
        move |filter| cable.carry(filter, args.size * MIB, inwards)
    };
    let inwards = samples(args, noise, "what is let in", &field, bulk(true), "s/GB")?;
    let outwards = samples(args, noise, "what is let out", &field, bulk(false), "s/GB")?;
    let [driver, kernel, ingress] = [0, 1, 2].map(|row: usize| drops[row].1.median());
    let goals = vec![
        Goal::at_most(1.0, driver / ingress, "dropped packet, XDP by the driver, CPU, of nftables at ingress"),
        Goal::at_most(1.0, kernel / ingress, "dropped packet, XDP by the kernel, CPU, of nftables at ingress"),
    ];
    report(&drops, &inwards, &outwards, &goals, args, count).publish(args, noise)?;
    Ok(Outcome { goals })
}

type Rows = Vec<(Filter, Samples)>;

fn samples(
    args: &Args,
    noise: &mut Noise,
    title: &str,
    field: &[Filter],
    mut measure: impl FnMut(Filter) -> anyhow::Result<f64>,
    unit: &str,
) -> anyhow::Result<Rows> {
    let names: Vec<&str> = field.iter().map(|filter| filter.name()).collect();
    let values = interleave(args, noise, title, &names, |index| {
        let value = measure(field[index])?;
        Ok((value, format!("{value:.3} {unit}")))
    })?;
    let rows = field.iter().zip(values).map(|(filter, values)| {
        let mut samples = Samples::default();
        values.into_iter().for_each(|value| samples.push(value));
        (*filter, samples)
    });
    Ok(rows.collect())
}

fn report(drops: &Rows, inwards: &Rows, outwards: &Rows, goals: &[Goal], args: &Args, count: u64) -> Report {
    let best = drops[0].1.median();
    let of_drops = drops.iter().map(|(filter, samples)| {
        let rate = figure(1e3 / samples.median(), 2);
        vec![filter.name().to_owned(), samples.shown(0), rate, figure(samples.median() / best, 1)]
    });
    let free = [inwards, outwards].map(|rows| rows[0].1.median());
    let of_bulk = inwards.iter().zip(outwards).map(|((filter, inwards), (_, outwards))| {
        let name = if *filter == Filter::Nothing { "nothing" } else { filter.name() };
        let mut row = vec![name.to_owned()];
        for (samples, free) in [(inwards, free[0]), (outwards, free[1])] {
            row.extend([samples.shown(3), figure(samples.median() / free, 2)]);
        }
        row
    });
    Report {
        name: "guard",
        title: "The guard's packets",
        tables: vec![
            Table {
                caption: "A SYN from a stranger to the guarded port, from the cable to its end.".to_owned(),
                heading: vec!["filter", "CPU ns for each", "million for each CPU second", "of the first"],
                rows: of_drops.collect(),
            },
            Table {
                caption: format!("{} MiB over one TCP connection of a gate that is let in.", args.size),
                heading: vec!["filter", "into the port, CPU s/GB", "of none", "out of it, CPU s/GB", "of none"],
                rows: of_bulk.collect(),
            },
        ],
        plots: vec![Plot::bars(
            "Processor time for each dropped packet, ns",
            drops.iter().map(|(filter, samples)| bar(filter.name(), samples)).collect(),
        )],
        goals: goals.to_vec(),
        remarks: vec![
            format!(
                "{count} frames for each measurement, made by the kernel itself (BPF_PROG_TEST_RUN with live frames), \
                 over a veth pair; the cost of making them is in every figure"
            ),
            "each filter counted every frame that came, else the measurement would have failed; one in which the cable \
             lost a frame was made again"
                .to_owned(),
            "sender and receiver are both in the figures of the second table; a veth pair hands over large pieces \
             that it must take apart where a driver's XDP program looks at them, a network card's driver does not"
                .to_owned(),
        ],
    }
}

/// A veth pair from the namespace of the bench to another one.
struct Cable {
    far: Service,
    program: PathBuf,
    pin: PathBuf,
    frame: String,
    _dir: tempfile::TempDir,
}

impl Cable {
    fn lay(program: &Path) -> anyhow::Result<Self> {
        let dir = scratch("bench-guard")?;
        let far = Cmd::new("unshare").args(["--net", "sh", "-c", "echo ready; exec sleep infinity"]);
        let mut far = Service::start("far", far, dir.path())?;
        let end = Instant::now() + Duration::from_secs(30);
        while !far.log().contains("ready") {
            ensure!(far.exited().is_none() && Instant::now() < end, "cannot make a network namespace: {}", far.log());
            thread::sleep(Duration::from_millis(5));
        }
        let pid = far.pid();
        let ip = |args: String| Cmd::new("ip").args(args.split(' ')).run();
        ip(format!("link add in0 type veth peer name out0 netns {pid}"))?;
        ip(format!("addr add {INSIDE}/24 dev in0"))?;
        ip("link set in0 up".to_owned())?;
        for what in [format!("addr add {GATE}/24 dev out0"), "link set out0 up".to_owned()] {
            within(pid).arg("ip").args(what.split(' ')).run()?;
        }
        let link: Value = serde_json::from_str(&ip("-j link show in0".to_owned())?)?;
        let mac = link[0]["address"].as_str().context("in0 has no hardware address")?.replace(':', "");
        let frame = format!("{mac}{}", hex(&[&HARDWARE[..], &[8, 0], &syn()].concat()));
        let pin = PathBuf::from(format!("/sys/fs/bpf/portcullis-bench-{pid}"));
        // Without this the far end of a veth pair takes no frame that was made by XDP.
        Cmd::new("ethtool").args(["-K", "in0", "gro", "on"]).run().context("cannot switch on GRO")?;
        Ok(Self { far, program: program.to_owned(), pin, frame, _dir: dir })
    }

    /// Nanoseconds for each of `count` frames of a stranger.
    ///
    /// Where another core is made to receive them, the cable's queue may overflow, and the time is not all in the figure:
    /// such a measurement is made again.
    fn flood(&self, filter: Filter, count: u64) -> anyhow::Result<f64> {
        for _ in 0..FLOODS {
            let raised = Raised::raise(self, filter, Ipv4Addr::new(203, 0, 113, 9))?;
            let before = self.lost()?;
            let cmd = within(self.far.pid()).args(["python3", "-c", GENERATOR, "out0"]);
            let took = cmd.args([&count.to_string(), &self.frame]).run()?;
            let lost = self.lost()? - before;
            if let Some(counted) = raised.counted()? {
                let came = count - lost;
                ensure!(counted == came, "{}: {counted} of the {came} frames that came were dropped", filter.name());
            }
            if lost == 0 {
                return Ok(took.trim().parse::<f64>().context("the generator says nothing")? / count as f64);
            }
            say(format!("! {}: the cable lost {lost} of {count} frames; measured again", filter.name()));
        }
        bail!("{}: the cable lost frames {FLOODS} times", filter.name())
    }

    /// The frames that the cable had no room for until now.
    fn lost(&self) -> anyhow::Result<u64> {
        let statistics = within(self.far.pid()).args(["ethtool", "-S", "out0"]).run()?;
        let counters = statistics.lines().filter_map(|line| line.trim().split_once(": "));
        let lost = counters.filter(|(name, _)| name.ends_with("_xdp_xmit_errors"));
        let lost: Vec<u64> = lost.map(|(_, count)| count.parse()).collect::<Result<_, _>>()?;
        ensure!(!lost.is_empty(), "the driver of veth does not count lost frames:\n{statistics}");
        Ok(lost.iter().sum())
    }

    /// Processor seconds for each GB over one connection from the gate's address.
    fn carry(&self, filter: Filter, bytes: u64, inwards: bool) -> anyhow::Result<f64> {
        let _raised = Raised::raise(self, filter, GATE)?;
        let listener = TcpListener::bind((INSIDE, PORT)).context("cannot listen on the guarded port")?;
        let begin = processor()?;
        let far = File::open(namespace(self.far.pid()))?;
        let client = thread::spawn(move || {
            move_into_link_name_space(far.as_fd(), Some(LinkNameSpaceType::Network)).context("cannot enter")?;
            let addr = SocketAddr::from((INSIDE, PORT));
            let stream = TcpStream::connect_timeout(&addr, Duration::from_secs(10)).context("cannot connect")?;
            if inwards { send(stream, bytes) } else { receive(stream, bytes) }
        });
        let (stream, _) = listener.accept()?;
        if inwards { receive(stream, bytes) } else { send(stream, bytes) }?;
        client.join().map_err(|_| anyhow!("the client panicked"))??;
        Ok((processor()? - begin).as_secs_f64() * 1e9 / bytes as f64)
    }
}

/// The network namespace of a process.
fn namespace(pid: u32) -> String {
    format!("/proc/{pid}/ns/net")
}

/// A command in the network namespace of a process; the program is its first argument.
fn within(pid: u32) -> Cmd {
    Cmd::new("nsenter").arg(format!("--net={}", namespace(pid)))
}

fn send(mut stream: TcpStream, mut bytes: u64) -> anyhow::Result<()> {
    let piece = vec![0; 256 << 10];
    while bytes > 0 {
        let next = piece.len().min(usize::try_from(bytes)?);
        stream.write_all(&piece[..next])?;
        bytes -= next as u64;
    }
    Ok(())
}

fn receive(mut stream: TcpStream, bytes: u64) -> anyhow::Result<()> {
    let (mut piece, mut got) = (vec![0; 256 << 10], 0);
    loop {
        match stream.read(&mut piece)? {
            0 => break,
            read => got += read as u64,
        }
    }
    ensure!(got == bytes, "{got} of {bytes} bytes arrived");
    Ok(())
}

/// Processor time of this process and of the softirq threads.
fn processor() -> anyhow::Result<Duration> {
    let own = clock_gettime(ClockId::ProcessCPUTime);
    let mut all = Duration::try_from(own).map_err(|_| anyhow!("a negative time"))?;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.starts_with("ksoftirqd/") {
            let stat = std::fs::read_to_string(entry.path().join("schedstat"))?;
            let spent = stat.split(' ').next().and_then(|spent| spent.parse().ok());
            all += Duration::from_nanos(spent.context("schedstat has no figures")?);
        }
    }
    Ok(all)
}

/// A filter in place, until this is dropped.
struct Raised<'a> {
    cable: &'a Cable,
    filter: Filter,
}

impl<'a> Raised<'a> {
    fn raise(cable: &'a Cable, filter: Filter, allowed: Ipv4Addr) -> anyhow::Result<Self> {
        let raised = Self { cable, filter };
        let rule = format!("tcp dport {PORT} ip saddr != @allowed counter drop");
        let set = format!("set allowed {{ type ipv4_addr; flags interval; elements = {{ {allowed} }}; }}");
        let nft = |family: &str, hook: &str| {
            let chain = format!("chain c {{ type filter hook {hook} priority 0; {rule}; }}");
            Cmd::new("nft").arg(format!("table {family} bench {{ {set}; {chain}; }}")).run()
        };
        match filter {
            Filter::Nothing => {}
            Filter::NftInput => drop(nft("inet", "input")?),
            Filter::NftIngress => drop(nft("netdev", "ingress device in0")?),
            Filter::Driver => raised.guard(allowed, "native")?,
            Filter::Kernel => raised.guard(allowed, "generic")?,
        }
        Ok(raised)
    }

    fn guard(&self, allowed: Ipv4Addr, mode: &str) -> anyhow::Result<()> {
        let cmd = Cmd::new(&self.cable.program).args(["guard", "enforce", "--no-local", "--interface", "in0"]);
        let cmd = cmd.args(["--port", &PORT.to_string(), "--allow", &allowed.to_string(), "--mode", mode]);
        cmd.arg("--pin").arg(&self.cable.pin).run().map(drop)
    }

    /// The packets that it says it dropped; `None` where nobody counts.
    fn counted(&self) -> anyhow::Result<Option<u64>> {
        let said: Value = match self.filter {
            Filter::Nothing => return Ok(None),
            Filter::NftInput | Filter::NftIngress => {
                serde_json::from_str(&Cmd::new("nft").args(["-j", "list", "ruleset"]).run()?)?
            }
            Filter::Driver | Filter::Kernel => {
                let cmd = Cmd::new(&self.cable.program).args(["guard", "status", "--json", "--pin"]);
                serde_json::from_str(&cmd.arg(&self.cable.pin).run()?)?
            }
        };
        if let Some(parts) = said["nftables"].as_array() {
            let mut expressions = parts.iter().filter_map(|part| part["rule"]["expr"].as_array()).flatten();
            let counter = expressions.find_map(|expression| expression["counter"]["packets"].as_u64());
            return counter.map(Some).context("nft shows no counter");
        }
        let Some(counters) = said["counters"].as_array() else { bail!("the guard's status has no counters") };
        let dropped = counters.iter().filter(|counter| counter["ring"] == "xdp" && counter["passed"] == false);
        Ok(Some(dropped.filter_map(|counter| counter["count"].as_u64()).sum()))
    }
}

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        let done = match self.filter {
            Filter::Nothing => return,
            Filter::NftInput => Cmd::new("nft").args(["delete", "table", "inet", "bench"]).run(),
            Filter::NftIngress => Cmd::new("nft").args(["delete", "table", "netdev", "bench"]).run(),
            Filter::Driver | Filter::Kernel => {
                Cmd::new(&self.cable.program).args(["guard", "detach", "--pin"]).arg(&self.cable.pin).run()
            }
        };
        if let Err(error) = done {
            say(format!("✗ {}: cannot be taken away: {error:#}", self.filter.name()));
        }
    }
}

/// An IPv4 packet with a SYN, checksums included.
fn syn() -> Vec<u8> {
    let [stranger, inside] = [STRANGER, INSIDE].map(|ip| ip.octets());
    let mut ip = [&[0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0][..], &stranger, &inside].concat();
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let port = PORT.to_be_bytes();
    let mut tcp = vec![0x9c, 0x40, port[0], port[1], 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 4, 0, 0, 0, 0, 0];
    let sum = checksum(&[&stranger[..], &inside, &[0, 6, 0, 20], &tcp].concat());
    tcp[16..18].copy_from_slice(&sum);
    [ip, tcp].concat()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
