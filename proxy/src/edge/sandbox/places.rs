//! Where a gate's files are. A renewed file is put in its predecessor's place by a rename, often through a link, so the
//! kernel is told directories: those in which a named file, and each link to it, lies.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use crate::config::{AccessLog, Config, Origin};

/// More links than the kernel follows.
const MOST_LINKS: usize = 40;

/// What name look-ups read; each as it is, for its directory has more than that.
const RESOLVER: [&str; 7] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/ld.so.cache",
];

/// Everybody's, and asked for late: modules of the C library's resolver, and the number of processors.
const SYSTEM: [&str; 4] = ["/usr/lib", "/lib", "/lib64", "/sys/devices/system/cpu"];

/// Root certificates, and what Debian's and Fedora's are links to.
const ROOTS: [&str; 5] =
    ["/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"];

/// Directories, and single files where a directory would be too much.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Where files may be read.
    own: BTreeSet<PathBuf>,
    /// The same, for what every program may read.
    common: BTreeSet<PathBuf>,
    /// Where they may be listed, too.
    listed: BTreeSet<PathBuf>,
    /// Where files may be made and appended to.
    append: BTreeSet<PathBuf>,
}

impl Places {
    /// Those of a configuration, which stands in `file`.
    pub fn of(config: &Config, file: Option<&Path>) -> Self {
        let identities = config.listeners.iter().flat_map(|listener| &listener.tls);
        let authorities = config.listeners.iter().filter_map(|listener| listener.client_ca.as_deref());
        let named = identities.flat_map(|identity| [identity.cert.as_path(), identity.key.as_path()]);
        let named = named.chain(authorities).chain(config.upstream_ca.as_deref());
        let named = named.chain(config.auth.htpasswd.as_deref()).chain(file);
        let mut places = named.fold(Self::default(), Self::reading).looking_up(config);
        if let AccessLog::File(path) = &config.access_log {
            places = places.appending(path);
        }
        let variables = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
        places.listed = ROOTS.into_iter().map(PathBuf::from).chain(variables).collect();
        places
    }

    /// And the directories of a file that is read.
    #[must_use]
    pub fn reading(mut self, file: &Path) -> Self {
        self.own.extend(Way::to(file).directories);
        self
    }

    /// And the directory of a file that is made and appended to. What is no file (a device, a pipe) is itself only.
    #[must_use]
    pub fn appending(mut self, file: &Path) -> Self {
        let end = Way::to(file).end;
        let directory = if end.exists() && !end.is_file() { Some(end.as_path()) } else { end.parent() };
        self.append.extend(directory.map(Path::to_owned));
        self
    }

    /// And what it takes to look names up. Where there are names, these files have to be had when they are replaced, too,
    /// and they lie in `/etc` itself.
    fn looking_up(mut self, config: &Config) -> Self {
        self.common.extend(SYSTEM.map(PathBuf::from));
        for file in RESOLVER.map(Path::new) {
            let way = Way::to(file);
            self.common.extend(way.directories.into_iter().filter(|directory| directory != Path::new("/etc")));
            self.common.insert(way.end);
        }
        let backend = config.auth.backend.as_ref().map(|backend| &backend.origin);
        let mut origins = config.sites.iter().flat_map(|site| &site.upstreams).chain(backend);
        if origins.any(|origin: &Origin| origin.ip().is_none()) {
            self.own.insert(PathBuf::from("/etc"));
        }
        self
    }

    /// Where files may be read.
    pub fn read(&self) -> impl Iterator<Item = &PathBuf> {
        self.own.iter().chain(&self.common)
    }

    /// Where they may be listed, too.
    pub fn listed(&self) -> impl Iterator<Item = &PathBuf> {
        self.listed.iter()
    }

    /// Where files may be made and appended to.
    pub fn append(&self) -> impl Iterator<Item = &PathBuf> {
        self.append.iter()
    }

    /// Whether a file lies in one of them.
    pub fn hold(&self, file: &Path) -> bool {
        let end = Way::to(file).end;
        let within = |place: &PathBuf| end.starts_with(Way::to(place).end);
        self.read().chain(&self.listed).chain(&self.append).any(within)
    }
}

/// `reads beneath /etc/portcullis, appends beneath /var/log/portcullis`, without what is everybody's.
impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |places: &BTreeSet<PathBuf>| {
            let shown: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
            if shown.is_empty() { "nothing of its own".to_owned() } else { format!("beneath {}", shown.join(", ")) }
        };
        write!(f, "reads {}", list(&self.own))?;
        if self.append.is_empty() { Ok(()) } else { write!(f, ", appends {}", list(&self.append)) }
    }
}

/// How a path leads to its file.
#[derive(Debug)]
struct Way {
    /// Where the file lies, and each link to it that somebody may point elsewhere.
    directories: Vec<PathBuf>,
    /// The file, its links followed.
    end: PathBuf,
}

impl Way {
    fn to(path: &Path) -> Self {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut left: Vec<PathBuf> = parts(&absolute);
        let (mut at, mut directories, mut links) = (PathBuf::from("/"), Vec::new(), 0);
        while let Some(part) = left.pop() {
            if part == Path::new("/") {
                at = part;
                continue;
            }
            if part == Path::new("..") {
                at.pop();
                continue;
            }
            let next = at.join(part);
            let target = std::fs::read_link(&next).ok().filter(|_| links < MOST_LINKS);
            if left.is_empty() {
                directories.push(at.clone());
            } else if target.as_deref().is_some_and(|target| is_sibling(&at, target)) {
                // A directory that is exchanged as a whole for another beside it.
                directories.push(at.clone());
            }
            match target {
                Some(target) => {
                    links += 1;
                    left.extend(parts(&target));
                }
                None => at = next,
            }
        }
        Self { directories, end: at }
    }
}

/// The parts of a path, the last one first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    parts.map(|part| PathBuf::from(part.as_os_str())).rev().collect()
}

/// Whether a link in `directory` leads to something in the same directory, which is not the root.
fn is_sibling(directory: &Path, target: &Path) -> bool {
    let there = directory.join(target);
    let there = there.parent().and_then(|parent| parent.canonicalize().ok());
    directory != Path::new("/") && there.as_deref() == Some(directory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn directories(path: &Path) -> Vec<PathBuf> {
        Way::to(path).directories
    }

    #[test]
    fn links_are_followed_and_what_they_may_be_exchanged_for_is_in() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let at = |path: &str| base.join(path);
        for name in ["a", "b", "b/..1", "c"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("a/file"), "").unwrap();
        assert_eq!(directories(&at("a/file")), [at("a")]);
        assert_eq!(directories(&at("a/../a/./none")), [at("a")]);
        symlink("../a/file", at("c/link")).unwrap();
        assert_eq!(directories(&at("c/link")), [at("c"), at("a")]);
        // A directory elsewhere is where it is: what lies beside the link is nobody's business.
        symlink(at("a"), at("c/away")).unwrap();
        assert_eq!(directories(&at("c/away/file")), [at("a")]);
        symlink("..1", at("b/..data")).unwrap();
        assert_eq!(directories(&at("b/..data/key")), [at("b"), at("b/..1")]);
        symlink("round", at("c/round")).unwrap();
        directories(&at("c/round"));
    }

    #[test]
    fn a_log_that_is_no_file_opens_no_directory() {
        let places = Places::default().appending(Path::new("/dev/null"));
        assert_eq!(places.append().collect::<Vec<_>>(), [Path::new("/dev/null")]);
        let places = Places::default().appending(Path::new("/var/log/none/access.log"));
        assert_eq!(places.append().collect::<Vec<_>>(), [Path::new("/var/log/none")]);
    }
}
