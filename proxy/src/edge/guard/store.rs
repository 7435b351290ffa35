//! Small records beside the pins: BPF arrays of one value that no program reads. They live exactly as long as the
//! guard does, are root's alone like everything in its directory, and a descriptor of one outlives lost privileges.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::maps::{Array, Map, MapData};

use crate::edge::sys::bpf;

/// A record of `N` bytes.
pub(super) struct Store<const N: usize> {
    values: Array<MapData, [u8; N]>,
}

impl<const N: usize> Store<N> {
    /// Opens the record pinned at `path`; `None` when there is none.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        match bpf::open(path) {
            Ok(map) => Self::of(map).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the record, or pins an empty one.
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        if let Some(store) = Self::open(path)? {
            return Ok(store);
        }
        let map = bpf::create_array(u32::try_from(N).map_err(io::Error::other)?)?;
        bpf::pin(map.as_fd(), path)?;
        Self::of(map)
    }

    fn of(map: OwnedFd) -> io::Result<Self> {
        let map = MapData::from_fd(map).and_then(Map::from_map_data).map_err(io::Error::other)?;
        Ok(Self { values: Array::try_from(map).map_err(io::Error::other)? })
    }

    pub(super) fn read(&self) -> io::Result<[u8; N]> {
        self.values.get(&0, 0).map_err(io::Error::other)
    }

    pub(super) fn write(&mut self, value: [u8; N]) -> io::Result<()> {
        self.values.set(0, value, 0).map_err(io::Error::other)
    }
}
