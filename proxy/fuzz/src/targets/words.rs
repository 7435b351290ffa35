//! Targets, credentials, files and log lines.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis::auth::htpasswd::{Htpasswd, with_user, without_user};
use portcullis::auth::{credentials as basic, principal};
use portcullis::config::{Overrides, resolve};
use portcullis::edge::telemetry::{Record, loggable_target};
use portcullis::registry::{Action, Endpoint, classify};

/// `METHOD TARGET`: what is let through has one reading, and the same one the second time.
pub(super) fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (method, target) = text.split_once(' ').unwrap_or(("GET", text));
    let Ok(found) = classify(method, target) else { return };
    let again = classify(method, &found.target).expect("a target that was let through");
    assert_eq!(again, found, "read twice");
    let whole = target.strip_suffix('?').unwrap_or(target);
    let path = whole.split('?').next().unwrap_or("");
    assert_eq!(found.target.split('?').next(), Some(path), "a path is never rewritten");
    assert!(path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_-.:=+".contains(&b)), "{path}");
    // Inside a tag two dots are only dots.
    assert!(!path.contains("/.") && !path.contains("//"), "{path}");
    let half_a_mount = target.contains("mount=") != target.contains("from=");
    assert!(found.target == whole || half_a_mount, "{} from {target}", found.target);
    let judged = found.access.len();
    match found.endpoint {
        Endpoint::Base | Endpoint::Ping => assert_eq!(judged, 0),
        Endpoint::UploadStart { .. } if found.mount.is_some() => {
            assert_eq!((judged, found.access[1].action), (2, Action::Pull));
            let plain = classify(method, &found.target_without_mount()).expect("the same without a mount");
            assert_eq!((plain.mount, plain.access.as_slice()), (None, &found.access[..1]));
        }
        _ => assert_eq!(judged, 1),
    }
    let pairs = || found.target.split(['?', '&']).skip(1);
    assert!(found.mount.is_some() || !pairs().any(|pair| pair.starts_with("mount=")), "a mount that nobody judged");
}

/// The value of an Authorization field: one spelling for each pair of user and password.
pub(super) fn credentials(data: &[u8]) {
    let Ok(found) = basic::parse(data) else { return };
    assert_eq!(principal::check_name(&found.user), Ok(()));
    let pair = [found.user.as_bytes(), b":", found.password.expose()].concat();
    let encoded = STANDARD.encode(pair);
    assert!(data[..5].eq_ignore_ascii_case(b"basic") && data.ends_with(encoded.as_bytes()));
    assert!(data[5..data.len() - encoded.len()].iter().all(|&b| b == b' '));
    assert!(!format!("{found:?}").contains(&encoded));
}

/// A password file; adding a user changes nothing for the others.
pub(super) fn htpasswd(data: &[u8]) {
    const NEW: &str = "fuzzed";
    const HASH: &str = "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=";
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = match Htpasswd::parse(text) {
        Ok(file) => file,
        Err(errors) => {
            assert!(errors.iter().all(|error| !error.to_string().contains('\n')), "{errors:?}");
            return;
        }
    };
    for (user, _) in file.users() {
        assert_eq!(principal::check_name(user), Ok(()));
        assert!(file.contains(user));
    }
    let grown = with_user(text, NEW, HASH);
    let more = Htpasswd::parse(&grown).expect("a good line more");
    assert!(more.contains(NEW));
    let others = |file: &Htpasswd| -> Vec<_> {
        file.users().filter(|(user, _)| *user != NEW).map(|(user, scheme)| (user.to_owned(), scheme)).collect()
    };
    assert_eq!(others(&file), others(&more));
    let back = Htpasswd::parse(&without_user(&grown, NEW)).expect("a line less");
    assert!(!back.contains(NEW));
    assert_eq!(others(&file), others(&back));
}

/// A configuration file: a value or errors, each of them one line.
pub(super) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = || resolve(Some((Path::new("gate.toml"), text)), &Overrides::default(), &|_| None);
    match (read(), read()) {
        (Ok(first), Ok(second)) => {
            assert_eq!(first, second);
            assert!(!first.listeners.is_empty() && !first.sites.is_empty());
            assert!(first.sites.iter().all(|site| !site.upstreams.is_empty()));
        }
        (Err(first), Err(second)) => {
            assert_eq!(first, second);
            assert!(!first.is_empty());
            for error in first {
                let line = error.to_string();
                assert!(!line.chars().any(char::is_control), "{line:?}");
            }
        }
        _ => panic!("read twice, and not the same"),
    }
}

/// A line of the access log: one line of JSON that gives back what went in.
pub(super) fn log_line(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(4, '\n').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let record = Record {
        method: next(),
        target: loggable_target(&next()),
        user: Some(next()),
        error: Some(next()),
        status: data.first().map_or(0, |&b| 100 + u16::from(b)),
        ..Record::default()
    };
    let line = record.line();
    assert!(!line.bytes().any(|b| b < 0x20), "{line:?}");
    let read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    for (key, value) in [("method", &record.method), ("target", &record.target)] {
        assert_eq!(read[key], **value);
    }
    assert_eq!(read["user"].as_str(), record.user.as_deref());
    assert_eq!(read["error"].as_str(), record.error.as_deref());
    assert_eq!(read["status"], record.status);
}
