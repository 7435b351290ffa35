//! Under load: reloads and hand-overs lose nothing. `PORTCULLIS_LONG=1` runs 50,000 requests through 20 reloads and 5
//! changes of the gate.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::world::{Room, Running, TAGS, signal};
use crate::support::http::{Connection, basic};
use crate::support::wait_for;

const CLIENTS: usize = 4;

/// What the clients have seen.
#[derive(Default)]
struct Tally {
    good: AtomicU64,
    /// Connections that carried more than one request, and connections in all.
    connections: AtomicU64,
    failures: Mutex<Vec<String>>,
    over: AtomicBool,
}

/// Half of the clients open a connection for each request, the others keep theirs until an answer says that it was the last.
fn client(number: usize, addr: SocketAddr, tally: &Tally) {
    let authorization = basic("alice:secret");
    let close = if number.is_multiple_of(2) { "Connection: close\r\n" } else { "" };
    let request = format!("GET {TAGS} HTTP/1.1\r\nHost: a\r\nAuthorization: {authorization}\r\n{close}\r\n");
    let mut kept = None;
    while !tally.over.load(Ordering::SeqCst) {
        let outcome = (|| {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => {
                    tally.connections.fetch_add(1, Ordering::SeqCst);
                    Connection::open(addr)?
                }
            };
            let response = connection.exchange(&request)?;
            anyhow::ensure!(response.status == 200 && response.body == b"Hello world", "{response:?}");
            if response.field("connection").is_none_or(|value| value != "close") {
                kept = Some(connection);
            }
            anyhow::Ok(())
        })();
        match outcome {
            Ok(()) => drop(tally.good.fetch_add(1, Ordering::SeqCst)),
            Err(error) => tally.failures.lock().unwrap().push(format!("{error:#}")),
        }
    }
}

/// Starts a second gate beside the first, then ends the first.
fn swap(room: &Room, old: Running, workers: u64) -> Running {
    let new = room.run(room.serve().args(["--take-over", "--workers", &workers.to_string()]));
    signal(&old, "TERM");
    let mut old = old;
    wait_for("the old gate has ended", || old.exited().is_some());
    assert!(old.exited().unwrap().success(), "{}", old.log());
    wait_for("the admin listener has come over", || room.reload().status.success());
    new
}

#[test]
fn reloads_and_changes_of_the_gate_lose_no_request() {
    let long = std::env::var_os("PORTCULLIS_LONG").is_some();
    let (requests, reloads, swaps) = if long { (50_000, 20, 5) } else { (3_000, 4, 1) };
    let room = Room::new();
    let mut gate = room.start("");
    let tally = Arc::new(Tally::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (tally, addr) = (Arc::clone(&tally), room.addr);
            thread::spawn(move || client(number, addr, &tally))
        })
        .collect();
    // Each step has its share of the requests before the next.
    let steps = reloads + swaps;
    let reached = |step: u64| {
        let share = requests * step / steps;
        wait_for_long("the share of the requests", || tally.good.load(Ordering::SeqCst) >= share || !clean(&tally));
    };
    for step in 0..steps {
        reached(step);
        if (step + 1) % (steps / swaps) == 0 && (step + 1) / (steps / swaps) <= swaps {
            // As many sockets as before, or fewer, or more.
            gate = swap(&room, gate, 2 + step % 3);
        } else {
            room.configure(&format!(
                "[limits]\nidle_timeout = \"{}s\"\n[verdicts]\nallow_ttl = \"{}s\"\n",
                20 + step,
                9 + step
            ));
            let done = room.reload();
            assert!(done.status.success() && done.text().contains("changed: "), "{}", done.everything());
        }
    }
    reached(steps);
    tally.over.store(true, Ordering::SeqCst);
    clients.into_iter().for_each(|client| client.join().unwrap());
    let failures = tally.failures.lock().unwrap();
    let (good, connections) = (tally.good.load(Ordering::SeqCst), tally.connections.load(Ordering::SeqCst));
    println!(
        "{good} requests on {connections} connections, {reloads} reloads, {swaps} changes of the gate: {} failures",
        failures.len()
    );
    assert!(failures.is_empty(), "{good} good, {} failed: {:?}", failures.len(), &failures[..failures.len().min(9)]);
}

fn clean(tally: &Tally) -> bool {
    tally.failures.lock().unwrap().is_empty()
}

fn wait_for_long(what: &str, mut holds: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed().as_secs() < 300, "still not so after 300 s: {what}");
        thread::sleep(std::time::Duration::from_millis(5));
    }
}
