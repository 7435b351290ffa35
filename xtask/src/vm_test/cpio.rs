//! Archives in the form that the kernel unpacks as its first root ("newc").

use std::fs;
use std::path::Path;

use anyhow::Context as _;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// An archive in the making.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(super) fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, &[]);
    }

    pub(super) fn program(&mut self, name: &str, content: &[u8]) {
        self.entry(name, PROGRAM, content);
    }

    pub(super) fn link(&mut self, name: &str, to: &str) {
        self.entry(name, LINK, to.as_bytes());
    }

    /// A directory of this machine with all that is in it.
    pub(super) fn tree(&mut self, name: &str, from: &Path) -> anyhow::Result<()> {
        self.directory(name);
        for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
            let path = entry?.path();
            let file = path.file_name().context("a file without a name")?.to_string_lossy();
            let name = format!("{name}/{file}");
            if path.is_dir() {
                self.tree(&name, &path)?;
            } else {
                self.program(&name, &fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (size, name_size) = (content.len(), name.len() + 1);
        // inode, mode, owner, group, links, time, size, four device numbers, length of the name, no checksum
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:032x}{name_size:08x}{:08x}",
            self.entries, 0, 0, 1, 0, 0, 0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::cmd::{Cmd, which};

    #[test]
    fn an_independent_reader_finds_what_was_put_in() {
        if which("busybox").is_none() {
            return crate::lab::skips::skip("needs busybox");
        }
        let dir = crate::lab::process::scratch("cpio").unwrap();
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.program("bin/odd", b"12345");
        archive.link("bin/sh", "odd");
        let cmd = Cmd::new("busybox").args(["cpio", "-i"]).dir(dir.path());
        cmd.input(archive.finish()).run().unwrap();
        assert_eq!(fs::read(dir.path().join("bin/sh")).unwrap(), b"12345");
    }
}
