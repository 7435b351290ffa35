//! The htpasswd file in its latest state: looked at every second, and taken when it changed and can be used.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use super::files::load_htpasswd;
use super::telemetry::say;
use crate::auth::Htpasswd;

/// How often the file is looked at.
pub const FILE_CHECK: Duration = Duration::from_secs(1);

/// A file of users, and what was last read from it.
#[derive(Debug)]
pub struct Passwords {
    path: PathBuf,
    current: RwLock<Arc<Htpasswd>>,
    seen: Mutex<Stamp>,
}

/// What changes when a file is written or replaced.
type Stamp = Option<(SystemTime, u64, u64)>;

impl Passwords {
    /// Reads the file.
    ///
    /// # Errors
    /// One line that names the file, and the first line of it that is wrong.
    pub fn load(path: &Path) -> Result<Self, String> {
        // Before it is read: a change from now on is a change.
        let seen = Mutex::new(stamp(path));
        let current = RwLock::new(Arc::new(load_htpasswd(path)?));
        Ok(Self { path: path.to_owned(), current, seen })
    }

    /// The users of the last good file.
    pub fn current(&self) -> Arc<Htpasswd> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at it from now on, on a thread of its own, and says what it finds.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn keep_fresh(self: &Arc<Self>) -> std::io::Result<()> {
        let own = Arc::clone(self);
        let watch = move || {
            loop {
                std::thread::sleep(FILE_CHECK);
                if let Some(Ok(line) | Err(line)) = own.look() {
                    say(&line);
                }
            }
        };
        std::thread::Builder::new().name("htpasswd".to_owned()).spawn(watch).map(drop)
    }

    /// Takes the file if it changed since the last look. One that is broken, perhaps half-written, is named once, and the
    /// users of the last good one stay.
    pub fn look(&self) -> Option<Result<String, String>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.path);
        if now == *seen {
            return None;
        }
        *seen = now;
        Some(match load_htpasswd(&self.path) {
            Ok(file) => {
                let said = format!("{}: re-read, {} users", self.path.display(), file.len());
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(file);
                Ok(said)
            }
            Err(error) => Err(format!("{error}; the users of the last good file stay")),
        })
    }
}

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}
