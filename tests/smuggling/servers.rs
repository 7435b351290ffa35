//! The servers that have to agree: Go's net/http (docker-registry), nginx and Node. Each gets what left the gate, request
//! after request on one connection, and says what it saw.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use xtask::lab::cmd::Cmd;

use super::Crossed;
use crate::support::http::Connection;
use crate::support::packages::{NGINX, NODE, REGISTRY};
use crate::support::{Service, free_address, misses, scratch};

/// Sent last, so that a log is known to be complete.
const LAST: &str = "GET /v2/ HTTP/1.1\r\nHost: a\r\nUser-Agent: the-last\r\n\r\n";

const NODE_PROGRAM: &str = r#"
const fs = require('fs'), [log, port] = process.argv.slice(2);
const server = require('http').createServer({ maxHeaderSize: 1 << 16 }, (request, response) => {
  const body = [];
  request.on('data', part => body.push(part));
  request.on('end', () => {
    const seen = { mark: request.headers['user-agent'] || '-', method: request.method, target: request.url,
                   body: Buffer.concat(body).toString('latin1') };
    fs.appendFileSync(log, JSON.stringify(seen) + '\n');
    response.end();
  });
});
server.keepAliveTimeout = 60000;
server.listen(port, '127.0.0.1');
"#;

/// What one server saw of a request; a body only where it tells.
#[derive(Debug, Clone, PartialEq, Eq)]
struct View {
    mark: String,
    method: String,
    target: String,
    body: Option<String>,
}

struct Server {
    name: &'static str,
    addr: SocketAddr,
    log: PathBuf,
    read: fn(&str) -> Option<View>,
    _service: Service,
}

/// Asks each server that is installed.
pub(super) fn agree(crossed: &[Crossed]) {
    let dir = scratch("servers").unwrap();
    type Start = fn(&Path) -> Server;
    for (need, start) in [(REGISTRY, registry as Start), (NGINX, nginx), (NODE, node)] {
        if !misses(&[need]) {
            compare(&start(dir.path()), crossed);
        }
    }
}

fn compare(server: &Server, crossed: &[Crossed]) {
    let mut connection = Connection::open(server.addr).unwrap();
    let mut refused = vec![false; crossed.len()];
    for (index, one) in crossed.iter().enumerate() {
        let answer = connection.exchange(&one.wire);
        let closed = match &answer {
            Ok(answer) => answer.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
            Err(_) => true,
        };
        if closed {
            refused[index] = answer.map_or(true, |answer| answer.status >= 400);
            connection = Connection::open(server.addr).unwrap();
        }
    }
    connection.exchange(LAST).unwrap();
    let mut seen = complete_log(server).into_iter().peekable();
    let mut passed_over = 0;
    for (one, refused) in crossed.iter().zip(refused) {
        let meant = &one.meaning;
        let matches = seen.peek().is_some_and(|view| {
            view.mark == meant.value("user-agent").unwrap_or("-")
                && (&view.method, &view.target) == (&meant.method, &meant.target)
                && view.body.as_ref().is_none_or(|body| body.as_bytes() == meant.body)
        });
        if matches {
            seen.next();
        } else {
            assert!(refused, "{} took {meant:?}\nfor {:?}", server.name, seen.peek());
            passed_over += 1;
        }
    }
    assert_eq!(seen.next(), None, "{} saw more than was sent", server.name);
    // A server may know fewer methods or hosts than the gate; what it takes, it has to take as it was meant.
    assert!(passed_over * 4 < crossed.len(), "{} refused {passed_over} of {}", server.name, crossed.len());
    eprintln!("{}: {} requests, {passed_over} of them refused", server.name, crossed.len());
}

/// All that it saw, in order, before the last request.
fn complete_log(server: &Server) -> Vec<View> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let text = fs::read(&server.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let mut views: Vec<View> = text.lines().filter_map(server.read).collect();
        if views.last().is_some_and(|view| view.mark == "the-last") {
            views.pop();
            return views;
        }
        assert!(Instant::now() < end, "{} does not tell: {text}", server.name);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn registry(dir: &Path) -> Server {
    let (addr, config) = (free_address().unwrap(), dir.join("config.yml"));
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: \"{addr}\", secret: x}}\n",
        dir.join("data").display(),
    );
    fs::write(&config, text).unwrap();
    let cmd = Cmd::new("docker-registry").arg("serve").arg(&config);
    let mut service = Service::start("docker-registry", cmd, dir).unwrap();
    service.wait_listening(addr).unwrap();
    Server { name: "Go", addr, log: dir.join("docker-registry.log"), read: read_go, _service: service }
}

/// `127.0.0.1 - - [time] "GET /v2/ HTTP/1.1" 200 2 "" "mark"`
fn read_go(line: &str) -> Option<View> {
    let (_, rest) = line.split_once("] \"")?;
    let (request, rest) = rest.split_once(" HTTP/1.1\" ")?;
    let (method, target) = request.split_once(' ')?;
    let mark = rest.strip_suffix('"')?.rsplit('"').next()?;
    let target = target.replace("\\\"", "\"").replace("\\\\", "\\");
    let mark = if mark.is_empty() { "-" } else { mark };
    Some(View { mark: mark.into(), method: method.into(), target, body: None })
}

fn nginx(dir: &Path) -> Server {
    let (addr, behind) = (free_address().unwrap(), free_address().unwrap());
    let (config, log, at) = (dir.join("nginx.conf"), dir.join("nginx-access.log"), dir.display());
    let user = if xtask::lab::process::is_root() { "user root;" } else { "" };
    let text = format!(
        "daemon off; worker_processes 1; pid {at}/nginx.pid; error_log {at}/nginx-error.log crit; {user}\n\
         events {{}}\nhttp {{\n client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
         log_format seen escape=json '{{\"status\":\"$status\",\"mark\":\"$http_user_agent\",\
         \"method\":\"$request_method\",\"target\":\"$request_uri\",\"body\":\"$request_body\"}}';\n\
         server {{ listen {addr}; access_log {log} seen; client_max_body_size 0; client_body_buffer_size 1m;\n\
         large_client_header_buffers 8 64k; keepalive_requests 1000000;\n\
         location / {{ proxy_pass http://{behind}; }} }}\n\
         server {{ listen {behind}; access_log off; location / {{ return 200; }} }}\n}}\n",
        log = log.display(),
    );
    fs::write(&config, text).unwrap();
    let mut service = Service::start("nginx", Cmd::new("nginx").arg("-c").arg(&config), dir).unwrap();
    service.wait_listening(addr).unwrap();
    Server { name: "nginx", addr, log, read: read_json, _service: service }
}

fn node(dir: &Path) -> Server {
    let (addr, program, log) = (free_address().unwrap(), dir.join("server.js"), dir.join("node.log"));
    fs::write(&program, NODE_PROGRAM).unwrap();
    let cmd = Cmd::new("node").arg(&program).arg(&log).arg(addr.port().to_string());
    let mut service = Service::start("node", cmd, dir).unwrap();
    service.wait_listening(addr).unwrap();
    Server { name: "Node", addr, log, read: read_json, _service: service }
}

fn read_json(line: &str) -> Option<View> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    // nginx logs what it refuses itself, too.
    if matches!(text("status").as_str(), "400" | "405" | "414" | "501") {
        return None;
    }
    let mark = if text("mark").is_empty() { "-".into() } else { text("mark") };
    Some(View { mark, method: text("method"), target: text("target"), body: Some(text("body")) })
}
