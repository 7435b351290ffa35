//! How the gate's own sockets pass the connect ring.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use portcullis_ebpf::ABI_VERSION;
use thiserror::Error;

use super::loader;
use super::options::DEFAULT_PIN;
use super::pins::Pins;
use crate::edge::sys::bpf;

/// `BPF_MAP_TYPE_SK_STORAGE`.
const SOCKET_STORAGE: u32 = 24;

/// Why the guard's pins could not be used.
#[derive(Debug, Error)]
pub enum VoucherError {
    /// The directory that the configuration names has no guard.
    #[error("no guard is pinned in {}: run `portcullis guard enforce --pin {}` first", .0.display(), .0.display())]
    NoGuard(PathBuf),
    /// The guard is there but cannot be read.
    #[error("cannot read the guard in {}: {source}: start the gate as root, it drops its privileges afterwards", .dir.display())]
    Unreadable {
        /// The guard's pins.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The guard was put there by another version.
    #[error("the guard in {} speaks ABI {found}, this gate {ABI_VERSION}: run `portcullis guard detach` and `enforce` with this version", .dir.display())]
    Abi {
        /// The guard's pins.
        dir: PathBuf,
        /// What its policy says.
        found: u32,
    },
}

/// Vouches for sockets: one that is vouched for may connect to what the guard protects.
///
/// The vouching is a value in the kernel's storage of that one socket. It cannot be inherited by another process, by
/// a port or by an address, and it is gone when the socket is closed. A `Voucher` holds the descriptor of that one
/// map: with it one can vouch, but neither change the policy nor detach a ring.
///
/// Open it before privileges are dropped (the pins are root's); after that vouching needs no privilege. When the
/// guard is detached and enforced anew, its map is a new one and the gate has to be restarted.
#[derive(Clone, Debug)]
pub struct Voucher {
    vouched: Arc<OwnedFd>,
}

impl Voucher {
    /// Opens the guard pinned in `pin_dir`, or the host's guard when there is one.
    ///
    /// Without a directory, `None` means that no guard is to be seen: none is enforced, or this process may not look.
    ///
    /// # Errors
    /// When the named directory has no guard, or the guard there is not of this version.
    pub fn open(pin_dir: Option<&Path>) -> Result<Option<Self>, VoucherError> {
        let dir = pin_dir.unwrap_or(Path::new(DEFAULT_PIN));
        match Self::open_at(dir) {
            Err(VoucherError::NoGuard(_)) if pin_dir.is_none() => Ok(None),
            Err(VoucherError::Unreadable { source, .. })
                if pin_dir.is_none() && source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    fn open_at(dir: &Path) -> Result<Self, VoucherError> {
        let pins = Pins::at(dir);
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => VoucherError::NoGuard(dir.to_path_buf()),
            _ => VoucherError::Unreadable { dir: dir.to_path_buf(), source },
        };
        let newest = pins.newest().map_err(failed)?;
        let newest = newest.ok_or_else(|| VoucherError::NoGuard(dir.to_path_buf()))?;
        let header = loader::header(&pins, newest).map_err(failed)?;
        if header.abi != ABI_VERSION {
            return Err(VoucherError::Abi { dir: dir.to_path_buf(), found: header.abi });
        }
        let vouched = bpf::open(&pins.vouched()).map_err(failed)?;
        let shape = bpf::map_shape(vouched.as_fd()).map_err(failed)?;
        if shape != (SOCKET_STORAGE, 4, 4) {
            return Err(failed(io::Error::other("its map of vouched sockets is none")));
        }
        Ok(Self { vouched: Arc::new(vouched) })
    }

    /// Vouches for a socket of the gate; to be called before its connect(2).
    ///
    /// # Errors
    /// When the kernel refuses: before Linux 5.19 it may ask for `CAP_BPF`.
    pub fn vouch(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        bpf::store_for_socket(self.vouched.as_fd(), socket, 1)
    }
}
