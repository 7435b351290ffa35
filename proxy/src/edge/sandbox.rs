//! What a gate takes from itself once it runs: other files than its own, other programs, every right of root's.
//!
//! Entered by the one thread that there is, after root was given up and before the first byte of a stranger's is read;
//! threads that are started later inherit it, and nothing takes it back. Files that are renewed are replaced, so what may
//! be read is directories: see [`places`].

mod places;

use std::path::Path;
use std::sync::OnceLock;

use anyhow::Context as _;
use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

pub use self::places::Places;
use super::sys::calls;
use super::sys::privilege::{drop_capabilities, hide_memory};

/// Where this process may read and write, once Landlock holds.
static LEFT: OnceLock<Places> = OnceLock::new();

/// Enters it; what there is to say, one line each.
///
/// # Errors
/// When a right cannot be given up. Filters that the kernel does not have are no error: it is said that they are missing.
pub fn enter(places: Places) -> anyhow::Result<Vec<String>> {
    hide_memory().context("cannot keep this process's memory to itself")?;
    drop_capabilities().context("cannot give up this process's capabilities")?;
    rustix::thread::set_no_new_privs(true).context("cannot give up new privileges")?;
    let files = confine(&places).context("Landlock")?;
    let mut said = vec![match files {
        RulesetStatus::NotEnforced => {
            "warning: this kernel has no Landlock: which files the gate may read is left to their permissions"
                .to_owned()
        }
        _ => format!("confined: {places}"),
    }];
    if files != RulesetStatus::NotEnforced {
        let _ = LEFT.set(places);
    }
    if let Err(error) = calls::forbid() {
        said.push(format!(
            "warning: this kernel filters no system calls ({error}): a gate that is taken over may do more"
        ));
    }
    Ok(said)
}

/// Why a file may not be had whose permissions do not say so, and what to do about it.
pub fn remedy(path: &Path) -> Option<String> {
    let left = LEFT.get().filter(|left| !left.hold(path))?;
    Some(format!(
        "it lies outside of what this gate may use since its start ({left}): move it there, or restart the gate"
    ))
}

/// Takes from the calling thread all files but those of `places`, as far as the kernel knows how to.
fn confine(places: &Places) -> Result<RulesetStatus, RulesetError> {
    // What later kernels can take away was not tried, and a rule for it would be a guess.
    const KNOWN: ABI = ABI::V7;
    let read: BitFlags<AccessFs> = AccessFs::ReadFile.into();
    let append = AccessFs::WriteFile | AccessFs::MakeReg;
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .scope(scope())?
        .create()?
        .add_rules(path_beneath_rules(places.read(), read))?
        .add_rules(path_beneath_rules(places.listed(), read | AccessFs::ReadDir))?
        .add_rules(path_beneath_rules(places.append(), append))?;
    Ok(rules.restrict_self()?.ruleset)
}

/// Processes elsewhere get no signals, and hear nothing at nameless addresses but for a service manager that listens there.
fn scope() -> BitFlags<Scope> {
    let manager = std::env::var("NOTIFY_SOCKET").is_ok_and(|path| path.starts_with('@'));
    if manager { Scope::Signal.into() } else { Scope::from_all(ABI::V6) }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io::ErrorKind;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::thread;

    use super::*;

    /// Runs on a thread of its own, which keeps the confinement to itself; `None` where the kernel has no Landlock.
    fn inside<T: Send + 'static>(places: Places, what: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let confined = thread::spawn(move || match confine(&places).unwrap() {
            RulesetStatus::NotEnforced => None,
            _ => Some(what()),
        });
        confined.join().unwrap()
    }

    fn refused<T>(outcome: std::io::Result<T>) -> bool {
        outcome.err().map(|error| error.kind()) == Some(ErrorKind::PermissionDenied)
    }

    #[test]
    fn files_that_are_not_named_cannot_be_had() {
        let dir = tempfile::tempdir().unwrap();
        let (own, other) = (dir.path().join("own"), dir.path().join("other"));
        for dir in [&own, &other] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("file"), "text").unwrap();
        }
        let (logs, elsewhere) = (own.join("access.log"), other.clone());
        let places = Places::default().reading(&own.join("file")).appending(&logs);
        assert!(places.hold(&own.join("new")) && !places.hold(&other.join("file")));
        let seen = inside(places, move || {
            assert_eq!(fs::read_to_string(own.join("file")).unwrap(), "text");
            assert!(refused(fs::read(elsewhere.join("file"))), "another directory's");
            assert!(refused(fs::read("/etc/passwd")), "the system's");
            assert!(refused(fs::read_dir(&own)), "the directory itself");
            assert!(refused(File::open("/proc/self/environ")), "what the kernel tells");
            assert!(OpenOptions::new().create(true).append(true).open(&logs).is_ok());
            assert!(refused(File::create(elsewhere.join("new"))));
            assert!(refused(fs::remove_file(own.join("file"))));
            assert!(refused(fs::rename(&logs, own.join("file"))));
        });
        seen.unwrap_or_else(|| xtask::lab::skips::skip("this kernel has no Landlock"));
    }

    /// As certbot and Kubernetes do it.
    #[test]
    fn files_that_are_renewed_are_had() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for name in ["plain", "archive", "live", "mounted", "mounted/..1"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("plain/key"), "1").unwrap();
        fs::write(at("archive/key1"), "1").unwrap();
        symlink("../archive/key1", at("live/key")).unwrap();
        fs::write(at("mounted/..1/key"), "1").unwrap();
        symlink("..1", at("mounted/..data")).unwrap();
        symlink("..data/key", at("mounted/key")).unwrap();
        let named: Vec<PathBuf> = ["plain/key", "live/key", "mounted/key"].map(at).to_vec();
        let direct = at("mounted/..data/key");
        let places = named.iter().chain([&direct]).fold(Places::default(), |places, path| places.reading(path));
        let renewing = dir.path().to_owned();
        let (go, renewed) = std::sync::mpsc::channel::<()>();
        let reader = thread::spawn(move || {
            inside(places, move || {
                renewed.recv().unwrap();
                named.iter().chain([&direct]).map(|path| fs::read_to_string(path).unwrap()).collect::<String>()
            })
        });
        let at = |path: &str| renewing.join(path);
        fs::write(at("new"), "2").unwrap();
        fs::rename(at("new"), at("plain/key")).unwrap();
        fs::write(at("archive/key2"), "2").unwrap();
        symlink("../archive/key2", at("live/next")).unwrap();
        fs::rename(at("live/next"), at("live/key")).unwrap();
        fs::create_dir(at("mounted/..2")).unwrap();
        fs::write(at("mounted/..2/key"), "2").unwrap();
        symlink("..2", at("mounted/next")).unwrap();
        fs::rename(at("mounted/next"), at("mounted/..data")).unwrap();
        fs::remove_dir_all(at("mounted/..1")).unwrap();
        // Where there is no Landlock, nobody waits.
        let _ = go.send(());
        if let Some(read) = reader.join().unwrap() {
            assert_eq!(read, "2222");
        }
    }
}
