//! `[guard]`: what `portcullis guard` does where its flags say nothing, and what the gate expects of the guard.

use std::net::SocketAddr;

use toml::Spanned;

use super::Resolver;
use crate::config::document::Document;
use crate::config::error::{ConfigError, Fault};
use crate::config::file::{self, Maybe};
use crate::config::overrides::{self, Overrides};
use crate::config::units::Words;
use crate::config::{Guard, XdpMode};

/// Resolves `[guard]` alone: a file for the guard need not describe a gate.
///
/// # Errors
/// Everything that is wrong in that table, and every key of the file that nothing knows.
pub fn guard(path: &std::path::Path, text: &str) -> Result<Guard, Vec<ConfigError>> {
    let document = Document::new(path, text);
    let (file, errors) = match document.read() {
        (None, errors) => return Err(errors),
        (Some(file), errors) => (file, errors),
    };
    let flags = Overrides::default();
    let (missing, warnings) = (Vec::new(), Vec::new());
    let mut resolver =
        Resolver { document: Some(document), flags: &flags, environment: &|_| None, errors, missing, warnings };
    let guard = resolver.guard(&file.guard);
    if resolver.errors.is_empty() { Ok(guard) } else { Err(resolver.errors) }
}

/// One protected address with its port.
///
/// # Errors
/// A sentence that says what to write instead.
pub fn parse_protected(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| format!("{text:?} is not ADDR:PORT, as in 172.17.0.2:5000"))?;
    if address.port() == 0 {
        return Err("port 0 cannot be protected".to_owned());
    }
    if address.ip().is_unspecified() {
        return Err(format!("{} means every address: use --port {}", address.ip(), address.port()));
    }
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

impl Resolver<'_> {
    pub(super) fn guard(&mut self, file: &file::Guard) -> Guard {
        let pin = self.one(&overrides::PIN, self.flags.pin.as_ref(), file.pin.as_ref(), "guard.pin");
        let mode = file.mode.as_ref().and_then(|mode| {
            let words = [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];
            self.choice(&self.given(mode, "guard.mode"), &words)
        });
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("{text:?} is not a port, 1 to 65535")),
        };
        Guard {
            pin: pin.map(|given| self.checked_path(&given)),
            require: self.is_true(&file.require),
            ports: self.each("guard.port", &file.port, "write a number such as 5000, or several in [ ]", port),
            protect: self.each("guard.protect", &file.protect, "write \"ADDR:PORT\"", parse_protected),
            interfaces: self.each("guard.interface", &file.interface, "write a name", |name| Ok(name.to_owned())),
            allow: self.each("guard.allow", &file.allow, "write \"10.0.0.0/8\" or one address", str::parse),
            no_local: self.is_true(&file.no_local),
            mode: mode.unwrap_or_default(),
        }
    }

    fn is_true(&self, value: &Maybe<bool>) -> bool {
        value.as_ref().is_some_and(|value| *value.get_ref())
    }

    fn each<T>(
        &mut self,
        key: &str,
        words: &Option<Spanned<Words>>,
        remedy: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let Some(words) = words else { return Vec::new() };
        let mut found = Vec::new();
        for text in &words.get_ref().0 {
            match read(text) {
                Ok(value) => found.push(value),
                Err(problem) => self.fail(Fault::new(problem, remedy), &self.place(words, key)),
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_protected_address_names_one_address_and_one_port() {
        assert!(parse_protected("[2001:db8::1]:5000").is_ok());
        assert_eq!(parse_protected("[::ffff:192.0.2.1]:5000").unwrap().to_string(), "192.0.2.1:5000");
        assert!(parse_protected("0.0.0.0:5000").unwrap_err().contains("--port 5000"));
        for wrong in ["5000", "localhost:5000", "192.0.2.1:0", "192.0.2.1"] {
            assert!(parse_protected(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_for_the_guard_alone_is_enough() {
        let text = "[guard]\nport = 5000\nprotect = [\"172.17.0.2:5000\"]\ninterface = \"eth0\"\n\
                    allow = [\"10.0.0.0/8\", \"192.0.2.7\"]\nno_local = true\nmode = \"generic\"\nrequire = true\n";
        let found = guard(Path::new("g.toml"), text).unwrap();
        assert_eq!((found.ports, found.protect.len(), found.allow.len()), (vec![5000], 1, 2));
        assert_eq!((found.interfaces, found.mode), (vec!["eth0".to_owned()], XdpMode::Generic));
        assert!(found.no_local && found.require);
    }

    #[test]
    fn every_slip_in_the_table_is_named() {
        let text = "[guard]\nport = [0, 5000]\nallow = \"10.0.0.1/8\"\nmode = \"nativ\"\nprotect = \"0.0.0.0:1\"\n";
        let errors = guard(Path::new("g.toml"), text).unwrap_err();
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        for part in ["guard.port: \"0\" is not a port", "write 10.0.0.0/8", "did you mean \"native\"", "--port 1"] {
            assert!(told.iter().any(|line| line.contains(part)), "{part}: {told:#?}");
        }
    }
}
