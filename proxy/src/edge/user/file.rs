//! Replacing a file so that a reader sees the old one or the new one, never half of either.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::rand::{GetRandomFlags, getrandom};

/// An htpasswd file of this size holds some 200,000 users; more is a mistake in the path.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A new file: readable by its group, which is how a service that runs without root gets at it.
const NEW_FILE_MODE: u32 = 0o640;

/// The text of the file; `None` when there is none.
pub(super) fn read(path: &Path) -> anyhow::Result<Option<String>> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path, &error)),
    };
    if !metadata.is_file() {
        bail!("{} is not a file; name the htpasswd file itself", path.display());
    }
    if metadata.len() > MAX_FILE_BYTES {
        bail!("{} is larger than 16 MiB; this is no htpasswd file", path.display());
    }
    let bytes = fs::read(path).map_err(|error| failed("read", path, &error))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => bail!("{} is not valid UTF-8; this is no htpasswd file, or convert it with iconv", path.display()),
    }
}

/// Finds out, before a password is asked for, what would make the edit fail later.
pub(super) fn ensure_editable(path: &Path) -> anyhow::Result<()> {
    read(path)?;
    resolve(path).map(|_| ())
}

pub(super) fn missing(path: &Path) -> anyhow::Error {
    anyhow::anyhow!("{0} does not exist; `portcullis user add --htpasswd {0} NAME` creates it", path.display())
}

/// An exclusive right to edit one file, held through a lock on its directory: a lock on the file itself would be lost
/// with the replacement.
pub(super) struct Edit {
    path: PathBuf,
    directory: File,
}

impl Edit {
    /// Waits for another editor to finish.
    pub(super) fn begin(path: &Path) -> anyhow::Result<Edit> {
        let path = resolve(path)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        let directory = File::open(parent).map_err(|error| failed("open the directory of", &path, &error))?;
        match directory.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                // Only so that the wait is no riddle.
                let _ = writeln!(io::stderr(), "another command is editing {}; waiting for it", parent.display());
                directory.lock().map_err(|error| failed("lock the directory of", &path, &error))?;
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock the directory of", &path, &error)),
        }
        Ok(Edit { path, directory })
    }

    /// The text as it is now.
    pub(super) fn read(&self) -> anyhow::Result<Option<String>> {
        read(&self.path)
    }

    /// Puts `text` in the place of the file, with the mode and the owner that it had, and makes it durable.
    pub(super) fn replace(&self, text: &str) -> anyhow::Result<()> {
        let old = match fs::metadata(&self.path) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read", &self.path, &error)),
        };
        let temporary = Temporary::create(&self.path)?;
        temporary.fill(text, old.as_ref()).map_err(|error| failed("replace", &self.path, &error))?;
        fs::rename(&temporary.path, &self.path).map_err(|error| failed("replace", &self.path, &error))?;
        self.directory.sync_all().map_err(|error| failed("make durable", &self.path, &error))
    }
}

/// A file beside the target; removed unless it was renamed.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    fn create(target: &Path) -> anyhow::Result<Temporary> {
        let mut random = [0; 8];
        fill_random(&mut random)?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let path = target.with_file_name(format!(".{name}.{:016x}.tmp", u64::from_ne_bytes(random)));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| failed("write beside", target, &error))?;
        Ok(Temporary { path, file })
    }

    fn fill(&self, text: &str, old: Option<&Metadata>) -> io::Result<()> {
        (&self.file).write_all(text.as_bytes())?;
        if let Some(old) = old {
            let own = self.file.metadata()?;
            if (old.uid(), old.gid()) != (own.uid(), own.gid()) {
                fchown(&self.file, Some(old.uid()), Some(old.gid()))?;
            }
        }
        // After the owner, because changing that clears bits of the mode.
        let mode = old.map_or(NEW_FILE_MODE, |old| old.mode() & 0o7777);
        self.file.set_permissions(fs::Permissions::from_mode(mode))?;
        self.file.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a successful rename there is nothing of this name; otherwise there is nothing better to do than to try.
        let _ = fs::remove_file(&self.path);
    }
}

/// Where the file really is: a symbolic link stays, and what it points to is replaced.
fn resolve(path: &Path) -> anyhow::Result<PathBuf> {
    match fs::canonicalize(path) {
        Ok(resolved) => return Ok(resolved),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read", path, &error)),
    }
    if path.is_symlink() {
        bail!("{} is a symbolic link to nothing; repair or remove it", path.display());
    }
    let name =
        path.file_name().with_context(|| format!("{} names no file; name the htpasswd file itself", path.display()))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::canonicalize(parent) {
        Ok(parent) => Ok(parent.join(name)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("the directory {} does not exist; create it first", parent.display())
        }
        Err(error) => Err(failed("open the directory of", path, &error)),
    }
}

pub(super) fn fill_random(mut bytes: &mut [u8]) -> anyhow::Result<()> {
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(filled) => bytes = &mut bytes[filled..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => bail!("the kernel gives no random numbers: {error}"),
        }
    }
    Ok(())
}

fn failed(what: &str, path: &Path, error: &io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => "; run the command as the file's owner or as root",
        ErrorKind::ResourceBusy => "; it is a mount point of its own: mount its directory instead",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; make room on the disk",
        ErrorKind::ReadOnlyFilesystem => "; the file system is read-only: edit the file where it comes from",
        _ => "",
    };
    anyhow::anyhow!("cannot {what} {}: {error}{remedy}", path.display())
}
