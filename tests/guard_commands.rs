//! The guard's commands, each with what it does to a real kernel.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

use super::world::{BINARY, World, open};

/// Far more than anything here takes; only a hang reaches it.
const HANG: Duration = Duration::from_secs(60);

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a command that must end with `code`.
#[track_caller]
pub(super) fn told(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
fn json(output: &Output, code: i32) -> Value {
    serde_json::from_str(&told(output, code)).expect("JSON")
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

impl World {
    fn ip_output(&self, what: &str) -> Vec<u8> {
        Command::new("ip").args(["-n", &self.space("in"), what]).output().unwrap().stdout
    }

    pub(super) fn policy(&self, command: &str, more: &str) -> String {
        format!("{command} --port {} --interface in0 {more}", self.port).trim_end().to_owned()
    }

    fn is_open(&self) -> bool {
        self.reach_as_nobody("in", "127.0.0.1", self.port).is_ok()
    }

    /// Kills the process that would roll a trial back.
    fn kill_the_keeper(&self) {
        let pin = self.pin.to_str().unwrap();
        let keeper = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let words = text(&fs::read(entry.path().join("cmdline")).ok()?);
            let is_keeper = words.contains("\0expire\0") && words.split('\0').any(|word| word == pin);
            is_keeper.then(|| entry.file_name().to_str()?.parse::<i32>().ok()).flatten()
        });
        let keeper = Pid::from_raw(keeper.expect("a keeper")).unwrap();
        kill_process(keeper, Signal::KILL).unwrap();
    }
}

#[test]
fn a_plan_changes_nothing_and_says_what_would_be() {
    let Some(world) = World::new("a_plan_changes_nothing_and_says_what_would_be") else {
        return;
    };
    world.serve("in", world.port);
    let inside = SocketAddr::from(([127, 0, 0, 1], world.port));
    let _open = world.reach("in", inside).unwrap();
    let plan = world.policy("plan", "--allow 192.0.2.0/24");
    let table = told(&world.guard(&plan), 0);
    for part in ["in0", "native", "192.0.2.0/24", "nothing was changed", &world.door().to_string()] {
        assert!(table.contains(part), "{part}:\n{table}");
    }
    let plan = json(&world.guard(&format!("{plan} --json")), 0);
    let cut = plan["cut"].as_array().unwrap();
    assert!(cut.iter().any(|pair| pair["there"] == inside.to_string()), "{plan}");
    assert!(!world.pin.exists());
    world.open_everywhere();

    world.enforce("");
    let other = PathBuf::from(format!("{}-b", world.pin.display()));
    let words = world.policy("plan", "--json");
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", world.space("in"))).arg(BINARY).arg("guard");
    let plan = json(&command.args(words.split(' ')).arg("--pin").arg(&other).output().unwrap(), 4);
    assert!(plan["problems"][0].as_str().unwrap().contains("in0 already has the XDP program"), "{plan}");
    assert!(!other.exists());
}

#[test]
fn an_audit_drops_nothing_and_enforce_is_one_switch() {
    let Some(world) = World::new("an_audit_drops_nothing_and_enforce_is_one_switch") else {
        return;
    };
    world.serve("in", world.port);
    let said = told(&world.guard(&world.policy("audit", "")), 0);
    assert!(said.contains("guard auditing") && said.contains("nothing is dropped"), "{said}");
    world.open_everywhere();
    assert!(world.count_in("connect", "unvouched") >= 10);
    assert!(world.count_in("xdp", "stranger") >= 2);
    let status = json(&world.guard("status --json"), 4);
    assert_eq!((status["state"].as_str(), status["mode"].as_str()), (Some("auditing"), Some("audit")));

    let programs = || -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(&world.pin).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let before = programs();
    told(&world.guard("enforce"), 0);
    assert_eq!(programs(), before, "one write of the mode, no new policy");
    world.shut_from_outside();
    world.shut_from_inside();

    // Back, and with other options, which make a new policy.
    told(&world.guard(&world.policy("audit", "")), 0);
    assert!(world.is_open());
    let before = world.status()["generation"].as_u64();
    world.enforce("--allow 192.0.2.0/24");
    assert!(world.status()["generation"].as_u64() > before);
    world.shut_from_inside();
}

#[test]
fn a_trial_that_nobody_confirms_ends_and_a_confirmed_one_stays() {
    let Some(world) = World::new("a_trial_that_nobody_confirms_ends_and_a_confirmed_one_stays") else {
        return;
    };
    world.serve("in", world.port);
    let said = world.enforce("--confirm-within 2s");
    assert!(said.contains("guard confirm --pin") && said.contains("otherwise the guard goes"), "{said}");
    until("the guard is gone", || !world.pin.exists());
    world.open_everywhere();
    let nothing = world.guard("confirm");
    assert_eq!(nothing.status.code(), Some(3));
    assert!(text(&nothing.stderr).contains("nothing to confirm"), "{}", text(&nothing.stderr));

    world.enforce("--confirm-within 1h");
    world.shut_from_inside();
    let status = json(&world.guard("status --json"), 0);
    assert!(status["trial"]["seconds_left"].as_f64().unwrap() > 0.0, "{status}");
    world.refused(&world.policy("enforce", ""), "is on trial");
    world.refused("allow add 192.0.2.1", "is on trial");
    assert!(told(&world.guard("confirm"), 0).contains("policy 1 stays"));
    assert_eq!(json(&world.guard("status --json"), 0)["trial"], Value::Null);
    assert_eq!(world.guard("confirm").status.code(), Some(3));
    world.shut_from_outside();
    world.shut_from_inside();
}

#[test]
fn a_trial_goes_back_to_the_former_policy() {
    let Some(world) = World::new("a_trial_goes_back_to_the_former_policy") else {
        return;
    };
    world.ip("in", "link add plain0 type veth peer name plain1");
    world.serve("in", world.port);
    world.enforce(&format!("--no-local --allow {}", world.address(0, 2)));
    world.reach("out", world.door()).expect("allowed");
    // Another allow list, one ring and one interface more.
    world.enforce("--interface plain0 --confirm-within 3s");
    until("the former policy is back", || world.status()["generation"] == 1);
    let status = json(&world.guard("status --json"), 0);
    assert_eq!(status["trial"], Value::Null);
    assert_eq!(status["allowed"][0], format!("{}/32", world.address(0, 2)));
    world.reach("out", world.door()).expect("allowed again");
    assert!(world.is_open(), "its connect ring was left out");
    let mut names = fs::read_dir(&world.pin).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!names.any(|name| name == "generation_2" || name == "link_connect4" || name == "trial"));
}

#[test]
fn a_trial_ends_though_the_enforcing_process_is_killed() {
    let Some(world) = World::new("a_trial_ends_though_the_enforcing_process_is_killed") else {
        return;
    };
    world.serve("in", world.port);
    for round in 0..6 {
        // With its whole process group, as when a terminal goes away.
        let mut child = world
            .guard_command("in", &world.policy("enforce", "--confirm-within 1s"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(20 * round));
        kill_process_group(Pid::from_child(&child), Signal::KILL).ok();
        child.wait().unwrap();
        until("the door is open again", || world.guard("status").status.code() == Some(3) && world.is_open());
        world.reach("out", world.door()).expect("open from outside");
    }
}

#[test]
fn a_trial_of_a_first_policy_ends_though_its_keeper_is_killed() {
    let Some(world) = World::new("a_trial_of_a_first_policy_ends_though_its_keeper_is_killed") else {
        return;
    };
    world.serve("in", world.port);
    world.enforce("--confirm-within 3s");
    world.kill_the_keeper();
    until("the programs themselves let everybody in", || world.is_open());
    world.open_everywhere();
    let status = json(&world.guard("status --json"), 4);
    assert_eq!(status["state"], "lapsed");
    world.refused("confirm", "too late");
    assert!(!world.pin.exists());
}

#[test]
fn the_agent_goes_back_where_the_keeper_cannot() {
    let Some(world) = World::new("the_agent_goes_back_where_the_keeper_cannot") else {
        return;
    };
    world.serve("in", world.port);
    let agent = world.agent("--interface in0");
    world.shut_from_inside();
    told(&world.guard(&world.policy("enforce", "--no-local --confirm-within 2s")), 0);
    world.kill_the_keeper();
    assert!(world.is_open(), "the policy on trial leaves the inside alone");
    until("the agent has rolled back", || !world.is_open());
    assert_eq!(world.status()["generation"], 1, "{}", world.status());
    assert_eq!(world.guard("confirm").status.code(), Some(3), "nothing to confirm");
    let said = agent.stop();
    assert!(said.contains("nobody confirmed"), "{said}");
    world.shut_from_inside();
}

#[test]
fn a_new_allow_list_never_lets_a_wrong_one_in_nor_a_kept_one_out() {
    let Some(world) = World::new("a_new_allow_list_never_lets_a_wrong_one_in_nor_a_kept_one_out") else {
        return;
    };
    world.serve("in", world.port);
    for host in [3, 4] {
        world.ip("out", &format!("addr add {}/24 dev out0", world.address(0, host)));
    }
    let (kept, other, never) = (world.address(0, 2), world.address(0, 3), world.address(0, 4));
    world.enforce(&format!("--no-local --allow {kept} --allow {other}"));
    let end = Arc::new(AtomicBool::new(false));
    let (door, ended) = (world.door(), Arc::clone(&end));
    let stream = |source: IpAddr, ended: Arc<AtomicBool>, space: String| {
        thread::spawn(move || {
            let namespace = fs::File::open(format!("/run/netns/{space}")).unwrap();
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind).unwrap();
            let mut results = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                results.push(open(None, Some(SocketAddr::new(source, 0)), door).map(drop).map_err(|e| e.kind()));
            }
            results
        })
    };
    let kept_stream = stream(kept, Arc::clone(&ended), world.space("out"));
    let never_stream = stream(never, ended, world.space("out"));
    let from = |source: IpAddr| {
        let door = world.door();
        world.within("out", move || open(None, Some(SocketAddr::new(source, 0)), door).map(drop).map_err(|e| e.kind()))
    };
    for _ in 0..6 {
        told(&world.guard(&format!("allow remove {other}")), 0);
        assert_eq!(from(other), Err(io::ErrorKind::TimedOut));
        told(&world.guard(&format!("allow add {other}")), 0);
        assert_eq!(from(other), Ok(()));
        told(&world.guard(&format!("allow replace {kept}")), 0);
        told(&world.guard(&format!("allow replace {kept} {other}")), 0);
    }
    end.store(true, Ordering::Relaxed);
    let (kept_results, never_results) = (kept_stream.join().unwrap(), never_stream.join().unwrap());
    assert!(kept_results.len() > 20, "{}", kept_results.len());
    assert!(kept_results.iter().all(Result::is_ok), "{kept_results:?}");
    assert!(!never_results.is_empty());
    assert!(never_results.iter().all(|result| *result == Err(io::ErrorKind::TimedOut)), "{never_results:?}");

    let mut open_one = world.reach("out", world.door()).expect("kept");
    let said = json(&world.guard("allow replace --json"), 0);
    assert_eq!(said["allowed"], Value::Array(Vec::new()));
    assert_eq!(open_one.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset, "it was open");
    assert_eq!(from(kept), Err(io::ErrorKind::TimedOut));
    world.refused(&format!("allow remove {kept}"), "not in the allow list, which has nobody");
}

#[test]
fn verify_proves_and_names_the_door_that_was_opened() {
    let Some(world) = World::new("verify_proves_and_names_the_door_that_was_opened") else {
        return;
    };
    assert_eq!(world.guard("verify").status.code(), Some(3));
    world.enforce("");
    let said = told(&world.guard("verify"), 0);
    assert!(said.contains("let through; nothing listens there"), "{said}");
    world.serve("in", world.port);
    let found = json(&world.guard("verify --json"), 0);
    let probes = found["probes"].as_array().unwrap();
    let has = |side: &str, way: &str| {
        probes.iter().any(|probe| probe["side"] == side && probe["way"].as_str().unwrap().contains(way))
    };
    let port = world.port;
    assert!(has("outside", &format!("through in0 to {}", world.door())), "{found}");
    assert!(has("outside", &format!("past XDP, by in0 to {}", world.door6())), "{found}");
    for end in [format!("127.0.0.1:{port}"), format!("[::1]:{port}"), format!("[::ffff:127.0.0.1]:{port}")] {
        assert!(has("inside", &end), "{end}: {found}");
    }
    assert!(has("gate", "a vouched socket"), "{found}");
    let cable = probes.iter().find(|probe| probe["way"].as_str().unwrap().contains("over a cable")).unwrap();
    assert_eq!(cable["result"], "good", "{cable}");
    assert!(!text(&world.ip_output("link")).contains("pcv"), "the cable is gone");
    let status = json(&world.guard("status --json"), 0);
    assert_eq!(status["verified"]["shut"], true);

    let open_by = |link: &str, part: &str| {
        fs::remove_file(world.pin.join(link)).unwrap();
        let said = told(&world.guard("verify"), 4);
        assert!(said.contains(&format!("NOT AS IT SHOULD BE  {part}")), "{link}: {said}");
        assert_eq!(json(&world.guard("status --json"), 4)["verified"]["shut"], false);
        world.enforce("");
        told(&world.guard("verify"), 0);
    };
    open_by("link_connect4", &format!("inside: a process of nobody to 127.0.0.1:{port} connects"));
    open_by("link_connect6", &format!("inside: a process of nobody to [::1]:{port} connects"));
    open_by("link_ingress", "ring: ingress on every socket");
    let xdp = fs::read_dir(&world.pin).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let xdp: Vec<String> = xdp.filter(|name| name.starts_with("link_xdp")).collect();
    open_by(&xdp[0], "ring: xdp 1 of the policy's interfaces have no link");

    told(&world.guard(&world.policy("audit", "")), 0);
    let said = told(&world.guard("verify"), 4);
    assert!(said.contains("only counts") && said.contains("a SYN passes"), "{said}");
}

struct Watch {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Watch {
    fn start(world: &World, args: &str) -> Self {
        let mut command = world.guard_command("in", args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { lines: BufReader::new(child.stdout.take().unwrap()), child }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    /// Ends it as Ctrl-C does; returns what it has said on standard error.
    fn interrupt(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }
}

#[test]
fn watch_shows_a_drop_with_its_source() {
    let Some(world) = World::new("watch_shows_a_drop_with_its_source") else {
        return;
    };
    assert_eq!(world.guard("watch").status.code(), Some(3));
    world.enforce("");
    world.serve("in", world.port);
    let mut watch = Watch::start(&world, "watch");
    assert!(watch.line().starts_with("time"));
    world.reach_as_nobody("in", "127.0.0.1", world.port).unwrap_err();
    let line = watch.line();
    for part in ["connect", "unvouched", "refused", &format!("127.0.0.1:{}", world.port), "bash (pid ", "uid 65534"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    watch.interrupt();

    let mut watch = Watch::start(&world, "watch --json");
    world.shut_from_outside();
    let event: Value = serde_json::from_str(&watch.line()).unwrap();
    assert_eq!((event["ring"].as_str(), event["interface"].as_str()), (Some("xdp"), Some("in0")), "{event}");
    assert!(event["source"].as_str().unwrap().starts_with(&world.address(0, 2).to_string()), "{event}");
    assert_eq!((event["port"].as_u64(), event["dropped"].as_bool()), (Some(u64::from(world.port)), Some(true)));

    // More than the kernel tells of in a second; later ones say how many there were.
    let port = world.port;
    let knock = move || {
        for _ in 0..2_000 {
            TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).unwrap_err();
        }
    };
    world.within("in", knock);
    let mut suppressed = 0;
    until("the number of those that were not told", || {
        world.within("in", move || drop(TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port))));
        let event: Value = serde_json::from_str(&watch.line()).unwrap();
        suppressed += event["suppressed"].as_u64().unwrap();
        suppressed > 0
    });
    assert!(watch.interrupt().contains("above the rate limit"));
}

#[test]
fn wrong_options_are_told_in_one_line() {
    let Some(world) = World::new("wrong_options_are_told_in_one_line") else {
        return;
    };
    world.refused("enforce", "say what to protect with --port N, --protect ADDR:PORT or --config FILE");
    world.refused("audit --interface in0", "nothing is said to be protected");
    world.refused("plan", "nothing is said to be protected");
    world.refused("plan --config /nowhere.toml", "/nowhere.toml");
    for (args, because) in [
        ("enforce --port 0", "--port"),
        ("enforce --port 1 --confirm-within 60", "write \"60s\" for seconds"),
        ("enforce --port 1 --confirm-within 0s", "choose from 1s to 24h"),
        ("enforce --port 1 --mode driver", "--mode"),
        ("enforce --port 1 --allow 10.0.0.1/8", "write 10.0.0.0/8"),
        ("allow add", "CIDR"),
    ] {
        let output = world.guard(args);
        assert_eq!(output.status.code(), Some(2), "{args}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(because), "{args}: {}", text(&output.stderr));
    }
    assert_eq!(world.guard("allow add 192.0.2.1").status.code(), Some(3));
    assert!(!world.pin.exists());
}

#[test]
fn the_file_says_what_flags_leave_open() {
    let Some(world) = World::new("the_file_says_what_flags_leave_open") else {
        return;
    };
    world.serve("in", world.port);
    let dir = crate::support::scratch("guard").unwrap();
    let file = dir.path().join("guard.toml");
    let source = world.address(0, 2);
    let table =
        format!("[guard]\nport = {}\ninterface = \"in0\"\nallow = [\"{source}\"]\nno_local = true\n", world.port);
    fs::write(&file, table).unwrap();
    told(&world.guard(&format!("enforce --config {}", file.display())), 0);
    world.reach("out", world.door()).expect("allowed by the file");
    assert!(world.is_open());
    told(&world.guard(&format!("enforce --config {} --no-local=false", file.display())), 0);
    world.shut_from_inside();
    fs::write(&file, "[guard]\nports = 1\n").unwrap();
    world.refused(&format!("plan --config {}", file.display()), "did you mean");
}
