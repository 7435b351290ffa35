//! Streams of bytes before the real gate, and what came out behind it: nothing, or exactly the requests that the bytes
//! mean when they are read strictly. Three servers that share no line of code with the gate read it the same.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use crate::support::http::get;
use crate::support::{Gate, Serve, htpasswd, program, scratch};

mod corpus;
mod servers;
mod strict;

use corpus::Case;
use strict::{Found, Meaning};

const LINE: &str = "testuser:$apr1$2tC1rkEu$X7QF44CjhNYFqyiqPjedA.";
const CREDS: &str = "testuser:testpassword";
/// What the gate may add to a request, and what it then says.
const ASSERTED: [(&str, &str); 4] = [
    ("X-Forwarded-For", "127.0.0.1"),
    ("X-Real-IP", "127.0.0.1"),
    ("X-Forwarded-Proto", "http"),
    ("X-Portcullis-User", "testuser"),
];

/// A request as it left the gate.
#[derive(Debug, Clone)]
struct Crossed {
    meaning: Meaning,
    wire: Vec<u8>,
}

/// An upstream that writes down every byte, answers what it can read strictly, and nothing else.
struct Recorder {
    addr: SocketAddr,
    crossed: Arc<Mutex<Vec<Crossed>>>,
    nonsense: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (crossed, nonsense) = (Arc::default(), Arc::default());
        let this = Self { addr, crossed: Arc::clone(&crossed), nonsense: Arc::clone(&nonsense) };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (crossed, nonsense) = (Arc::clone(&crossed), Arc::clone(&nonsense));
                thread::spawn(move || record(stream, &crossed, &nonsense));
            }
        });
        this
    }

    fn of(&self, mark: &str) -> Vec<Crossed> {
        let crossed = self.crossed.lock().unwrap();
        crossed.iter().filter(|one| one.meaning.value("user-agent") == Some(mark)).cloned().collect()
    }
}

fn record(mut stream: TcpStream, crossed: &Mutex<Vec<Crossed>>, nonsense: &Mutex<Vec<String>>) {
    let (mut buffer, mut piece) = (Vec::new(), [0; 16384]);
    loop {
        match strict::read(&buffer) {
            Found::Request(meaning, len) => {
                let wire: Vec<u8> = buffer.drain(..len).collect();
                crossed.lock().unwrap().push(Crossed { meaning, wire });
                if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_err() {
                    return;
                }
            }
            Found::Beginning => match stream.read(&mut piece) {
                Ok(read @ 1..) => buffer.extend_from_slice(&piece[..read]),
                _ => return,
            },
            Found::Nonsense(why) => {
                nonsense.lock().unwrap().push(format!("{why}: {:?}", String::from_utf8_lossy(&buffer)));
                return;
            }
        }
    }
}

fn gate(upstream: SocketAddr, kind: &str) -> Gate {
    let dir = scratch("smuggling").unwrap();
    let config = dir.path().join("gate.toml");
    std::fs::write(&config, "[limits]\nfailed_logins = 0\n").unwrap();
    let serve = Serve::new(program()).unwrap().flag("--config", &config).flag("--kind", kind);
    let serve = serve.flag("--backend", format!("http://{upstream}")).flag("--access-log", "off");
    serve.flag("--htpasswd", htpasswd(dir.path(), LINE)).start().unwrap()
}

/// Sends the bytes on a connection of their own; all that the gate says until it closes.
fn converse(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // Half-way the gate may have heard enough.
    let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let (mut said, mut piece) = (Vec::new(), [0; 16384]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return said,
            Ok(read) => said.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return said,
            Err(error) => panic!("{error}: neither an answer nor an end to {:?}", String::from_utf8_lossy(bytes)),
        }
    }
}

/// The statuses of the answers, interim ones left out. What is no answer at all is a failure.
fn statuses(mut said: &[u8], methods: &[&str]) -> Vec<u16> {
    let mut statuses = Vec::new();
    while !said.is_empty() {
        let end = said.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer's head") + 4;
        let head = String::from_utf8_lossy(&said[..end]).to_ascii_lowercase();
        said = &said[end..];
        let status: u16 = head[9..12].parse().unwrap();
        if status < 200 {
            continue;
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        if methods.get(statuses.len()) != Some(&"HEAD") {
            said = &said[length..];
        }
        statuses.push(status);
    }
    statuses
}

/// Whether the answers are those of the label.
fn fits(label: &str, statuses: &[u16]) -> bool {
    if label == "cut" {
        return statuses.len() <= 1 && statuses.iter().all(|status| *status >= 400);
    }
    let wanted: Vec<&str> = label.split(',').collect();
    wanted.len() == statuses.len()
        && wanted.iter().zip(statuses).all(|(any, status)| any.split('/').any(|one| one == status.to_string()))
}

/// Sends one case and judges it: what is wrong, or nothing.
fn judge(case: &Case, gate: SocketAddr, recorder: &Recorder) -> Option<String> {
    let meant: Vec<Meaning> = strict::requests(&case.bytes).into_iter().map(|(meaning, _)| meaning).collect();
    let methods: Vec<&str> = meant.iter().map(|one| one.method.as_str()).collect();
    let got = statuses(&converse(gate, &case.bytes), &methods);
    if let Some(label) = &case.answers
        && !fits(label, &got)
    {
        return Some(format!("answered {got:?}, not {label}"));
    }
    // After the last thing that makes sense there may be one answer more, and it is a no.
    if got.len() > meant.len() + 1 || got.get(meant.len()).is_some_and(|status| *status < 400) {
        return Some(format!("answered {got:?} to {} requests", meant.len()));
    }
    let let_in: Vec<&Meaning> =
        meant.iter().zip(&got).filter(|(_, status)| **status == 200).map(|(one, _)| one).collect();
    let crossed = recorder.of(&case.mark);
    if crossed.len() != let_in.len() {
        return Some(format!("{} requests crossed, {} were let in: {crossed:#?}", crossed.len(), let_in.len()));
    }
    crossed.iter().zip(let_in).find_map(|(crossed, meant)| differs(meant, &crossed.meaning))
}

/// What the upstream saw that the client did not mean.
fn differs(meant: &Meaning, seen: &Meaning) -> Option<String> {
    if (&meant.method, &meant.target, &meant.body) != (&seen.method, &seen.target, &seen.body) {
        return Some(format!("meant {meant:?}\n  seen {seen:?}"));
    }
    let host = meant.value("host").map(str::to_owned).or_else(|| seen.value("x-forwarded-host").map(str::to_owned))?;
    if seen.values("host").collect::<Vec<_>>() != [host.as_str()] {
        return Some(format!("for host {host}: {seen:?}"));
    }
    let others = |of: &Meaning| -> Vec<(String, String)> {
        of.fields.iter().filter(|(name, _)| !is_the_gates(name)).cloned().collect()
    };
    if others(meant) != others(seen) {
        return Some(format!("other fields: meant {meant:?}\n  seen {seen:?}"));
    }
    let ours = ["Host", "X-Forwarded-Host", "Content-Length", "Transfer-Encoding"];
    let written = |name: &str| ours.into_iter().chain(ASSERTED.map(|(name, _)| name)).any(|own| own == name);
    if let Some((name, _)) = seen.fields.iter().find(|(name, _)| is_the_gates(name) && !written(name)) {
        return Some(format!("{name} has crossed: {seen:?}"));
    }
    let asserted = ASSERTED.into_iter().chain([("X-Forwarded-Host", host.as_str())]);
    let said = |name: &str| -> Vec<&str> {
        let folded = |known: &str| known.to_ascii_lowercase().replace('_', "-") == name.to_ascii_lowercase();
        seen.fields.iter().filter(|(known, _)| folded(known)).map(|(_, value)| value.as_str()).collect()
    };
    asserted.into_iter().find_map(|(name, value)| (said(name) != [value]).then(|| format!("{name}: {seen:?}")))
}

/// Names, folded, that a client has no say in.
fn is_the_gates(name: &str) -> bool {
    let folded = name.to_ascii_lowercase().replace('_', "-");
    let hop = "connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer \
               transfer-encoding upgrade";
    let own = "host content-length expect authorization forwarded x-real-ip x-original-uri x-original-url \
               x-original-method x-rewrite-url x-auth-user x-remote-user remote-user proxy";
    hop.split(' ').chain(own.split(' ')).any(|known| known == folded)
        || ["x-forwarded-", "x-portcullis-"].iter().any(|prefix| folded.starts_with(prefix))
}

/// Sends all cases, several at a time, each followed by a healthy request; what crossed in the end.
fn run(kind: &str, cases: &[Case]) -> Vec<Crossed> {
    let recorder = Recorder::start();
    let gate = gate(recorder.addr, kind);
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let mut complaints: Vec<String> = judge(case, gate.addr(), &recorder).into_iter().collect();
                    match get(gate.addr(), "/v2/", Some(CREDS)).map(|healthy| healthy.status) {
                        Ok(200) => {}
                        other => complaints.push(format!("a healthy request afterwards: {other:?}")),
                    }
                    let named = complaints.into_iter().map(|why| format!("{} ({kind}): {why}", case.name));
                    wrong.lock().unwrap().extend(named);
                }
            });
        }
    });
    let mut wrong = wrong.into_inner().unwrap();
    wrong.extend(recorder.nonsense.lock().unwrap().iter().map(|what| format!("upstream got {what}")));
    let crossed = recorder.crossed.lock().unwrap().clone();
    let healthy = cases.len();
    let unmarked = crossed.iter().filter(|one| one.meaning.value("user-agent").is_none());
    let smuggled: Vec<&Crossed> = unmarked.filter(|one| one.meaning.target != "/v2/").collect();
    assert!(wrong.is_empty(), "{} of {healthy} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(smuggled.is_empty(), "{smuggled:#?}");
    crossed
}

/// The corpus before a gate of this kind; once, whoever asks.
fn corpus_behind(kind: &'static str) -> &'static [Crossed] {
    static BEHIND: [OnceLock<Vec<Crossed>>; 2] = [OnceLock::new(), OnceLock::new()];
    BEHIND[usize::from(kind == "http")].get_or_init(|| {
        let cases: Vec<Case> =
            corpus::load().into_iter().filter(|case| case.kind == "both" || case.kind == kind).collect();
        assert!(cases.len() >= 500, "{} cases", cases.len());
        run(kind, &cases)
    })
}

#[test]
fn what_crosses_to_a_registry_is_what_was_meant() {
    assert!(corpus_behind("registry").len() > 100);
}

#[test]
fn what_crosses_to_any_other_service_is_what_was_meant() {
    assert!(corpus_behind("http").len() > 100);
}

/// `PORTCULLIS_SEED=17` runs one seed alone, `PORTCULLIS_SEEDS=100000` more of them.
#[test]
fn streams_by_seed_are_read_in_one_way_only() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("PORTCULLIS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PORTCULLIS_SEEDS").unwrap_or(600),
    };
    let cases: Vec<Case> = seeds.map(corpus::random).filter(keeps_its_mark).collect();
    for kind in ["registry", "http"] {
        if cases.len() == 1 {
            eprintln!("{:?}", String::from_utf8_lossy(&cases[0].bytes));
        }
        run(kind, &cases);
    }
}

/// The judge has to be judged: what it takes for requests in these bytes, by their targets and bodies.
#[test]
fn the_second_reader_is_strict() {
    for (bytes, expected) in [
        ("GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.0\r\n\r\n", "/a= /b="),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: a\r\n\r\n", "/a=abc /b="),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nab\r\n1\r\nc\r\n0\r\n\r\n", "/a=abc"),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n", ""),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\n0\r\n\r\n", ""),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", ""),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", ""),
        ("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab", ""),
        ("GET /a HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", ""),
        ("GET /a HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", ""),
        ("GET /a HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", ""),
        ("GET /a HTTP/1.1\nHost: a\n\n", ""),
        ("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", ""),
    ] {
        let read = strict::requests(bytes.as_bytes());
        let shown = |(one, _): &(Meaning, &[u8])| format!("{}={}", one.target, String::from_utf8_lossy(&one.body));
        assert_eq!(read.iter().map(shown).collect::<Vec<_>>().join(" "), expected, "{bytes:?}");
    }
}

/// A mark that was bent itself would be looked for in vain.
fn keeps_its_mark(case: &Case) -> bool {
    let requests = strict::requests(&case.bytes);
    let mut known = requests.iter().filter(|(meaning, _)| meaning.value("authorization").is_some());
    known.all(|(meaning, _)| meaning.value("user-agent") == Some(case.mark.as_str()))
}

#[test]
fn three_servers_read_what_crosses_as_the_gate_does() {
    let all = ["registry", "http"].iter().flat_map(|kind| corpus_behind(kind));
    // The healthy requests in between have no mark and are all the same.
    let crossed: Vec<Crossed> = all.filter(|one| one.meaning.value("user-agent").is_some()).cloned().collect();
    servers::agree(&crossed);
}
