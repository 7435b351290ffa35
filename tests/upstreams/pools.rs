//! Kept connections: none is used that the upstream has closed or spoken on, and an upload never bets on one.

use super::*;

/// Waits longer than a connection counts as just used.
fn longer_than_a_moment() {
    thread::sleep(Duration::from_millis(1_600));
}

/// An upstream that closes each connection as soon as a second request begins on it, and counts whole requests by method.
fn one_request_each() -> (Raw, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let raw = Raw::start(move |_, mut stream| {
        let head = String::from_utf8(read_head(&mut stream)).unwrap();
        let Some(method) = head.split(' ').next().filter(|method| !method.is_empty()) else { return };
        if head.contains("Content-Length: 5") {
            read_until(&mut stream, b"hello");
        }
        log.lock().unwrap().push(method.to_owned());
        say(&mut stream, OK);
        // The first byte of what comes next is its last.
        if matches!(std::io::Read::read(&mut stream, &mut [0]), Ok(1)) {
            log.lock().unwrap().push("again".to_owned());
        }
    });
    (raw, seen)
}

#[test]
fn an_upload_takes_no_connection_that_may_be_about_to_close() {
    let (upstream, seen) = one_request_each();
    let gate = front("http", &[upstream.url()], LIMITS);
    assert_eq!(gate.send("GET", "/", None).status, 200);
    for (method, body) in [("POST", None), ("PUT", Some("hello"))] {
        longer_than_a_moment();
        seen.lock().unwrap().clear();
        assert_eq!(gate.send(method, "/", body).status, 200, "{method}: {}", gate.gate.log());
        assert_eq!(*seen.lock().unwrap(), [method]);
    }
    seen.lock().unwrap().clear();
    assert_eq!(gate.send("GET", "/", None).status, 200, "one that can be repeated is, on a new connection");
    let seen = seen.lock().unwrap();
    assert!(seen.contains(&"GET".to_owned()) && seen.contains(&"again".to_owned()), "{seen:?}");
}

#[test]
fn an_upload_whose_connection_dies_is_not_sent_again() {
    let (upstream, seen) = one_request_each();
    let gate = front("http", &[upstream.url()], LIMITS);
    for (method, body) in [("POST", None), ("PUT", Some("hello"))] {
        until("an upload over a connection that was used just now", || {
            // Repeated, it leaves such a connection.
            assert_eq!(gate.send("GET", "/", None).status, 200);
            seen.lock().unwrap().clear();
            let status = gate.send(method, "/", body).status;
            let seen = seen.lock().unwrap();
            // On a busy machine that may have been too long ago.
            if status == 200 {
                assert_eq!(*seen, [method]);
                return false;
            }
            assert_eq!((status, seen.as_slice()), (502, ["again".to_owned()].as_slice()), "begun once, never repeated");
            true
        });
    }
}

#[test]
fn uploads_in_quick_succession_share_a_connection() {
    let hello = Stub::hello().unwrap();
    let gate = front("http", &[hello.url()], LIMITS);
    let opened = || gate.metric(&["portcullis_upstream_connections_opened_total{", &hello.url()]).unwrap();
    for _ in 0..20 {
        for (method, body) in [("POST", None), ("PATCH", Some("hello")), ("PUT", Some("hello"))] {
            assert_eq!(gate.send(method, "/", body).status, 200);
        }
    }
    assert!(opened() < 30, "{} connections for 60 requests", opened());
}

#[test]
fn a_connection_that_the_upstream_closed_or_spoke_on_is_not_used() {
    for last in ["", "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned", "x"] {
        let (done, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (count, held) = (Arc::clone(&done), Arc::clone(&ended));
        let upstream = Raw::start(move |_, mut stream| {
            while !read_head(&mut stream).is_empty() {
                say(&mut stream, OK);
                // After the answer has been taken: the bytes must find the connection idle.
                thread::sleep(Duration::from_millis(100));
                say(&mut stream, last);
                if last.is_empty() {
                    stream.shutdown(std::net::Shutdown::Both).unwrap();
                } else {
                    held.lock().unwrap().push(stream.try_clone().unwrap());
                }
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        let gate = front("http", &[upstream.url()], LIMITS);
        for (n, method) in ["GET", "POST", "GET", "DELETE", "HEAD", "GET"].into_iter().enumerate() {
            let got = gate.send(method, "/", None);
            assert_eq!(got.status, 200, "{last:?} {method}");
            assert!(method == "HEAD" || got.text() == "ok", "{last:?} {method}: {}", got.text());
            until("the upstream has had its last word", || done.load(Ordering::SeqCst) == n + 1);
        }
        assert_eq!(gate.metric(&["portcullis_upstream_connections_opened_total{"]), Some(6), "{last:?}");
        until("the dead are swept", || gate.metric(&["upstream_connections{", "idle"]) == Some(0));
    }
}

#[test]
fn an_idle_connection_is_closed_in_time() {
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (Arc::clone(&open), Arc::clone(&most));
    let upstream = Raw::start(move |_, mut stream| {
        peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        while !read_head(&mut stream).is_empty() {
            say(&mut stream, OK);
        }
        // Closed by the gate, not given up here.
        if matches!(std::io::Read::read(&mut stream, &mut [0]), Ok(0)) {
            now.fetch_sub(1, Ordering::SeqCst);
        }
    });
    let gate = front("http", &[upstream.url()], &format!("{LIMITS}upstream_idle = \"1s\"\n"));
    assert_eq!(gate.send("GET", "/", None).status, 200);
    assert!(most.load(Ordering::SeqCst) >= 1);
    until("the gate lets go of it", || open.load(Ordering::SeqCst) == 0);
    assert_eq!(gate.metric(&["upstream_connections{", "idle"]), Some(0));
}

#[test]
fn a_request_that_its_client_gives_up_is_counted_as_over() {
    let upstream = Raw::start(|_, mut stream| {
        if !read_head(&mut stream).is_empty() {
            say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
            let piece = vec![0; 1 << 16];
            while stream.write_all(&piece).is_ok() {}
        }
    });
    let gate = front("http", &[upstream.url()], LIMITS);
    for _ in 0..5 {
        let mut connection = Connection::open(gate.gate.addr()).unwrap();
        connection.send(format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\n\r\n", basic(CREDS))).unwrap();
        assert_eq!(connection.receive_head().unwrap().0, 200);
    }
    until("all are over", || gate.metric(&["upstream_connections{", "busy"]) == Some(0));
    assert_eq!(gate.metric(&["portcullis_upstream_failures_total{"]), Some(0), "none of it was the upstream's fault");
}
