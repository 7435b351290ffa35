//! Debian's kernels: fetched once from the archive that apt is set up for, and unpacked without being installed.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::lab::cmd::Cmd;
use crate::lab::packages::apt;
use crate::lab::ui::say;
use crate::workspace;

/// bookworm's own, and that of its successor, which bookworm has, too.
pub(super) const VERSIONS: [&str; 2] = ["6.1", "6.12"];
const MODULES: [&str; 2] = ["veth", "tls"];
/// What TLS encrypts with, where it is not a part of the kernel itself: what a machine of this kind loads by itself.
const MODULES_IF_ANY: [&str; 16] = [
    "aesni-intel",
    "chacha",
    "chacha-x86_64",
    "chacha20poly1305",
    "chacha_generic",
    "cryptd",
    "crypto_null",
    "crypto_simd",
    "ctr",
    "gcm",
    "gf128mul",
    "ghash-generic",
    "libchacha",
    "libpoly1305",
    "poly1305-x86_64",
    "poly1305_generic",
];

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    pub(super) modules: Vec<PathBuf>,
}

pub(super) fn unpack(version: &str, room: &Path) -> anyhow::Result<Kernel> {
    let package = fetched(version)?;
    Cmd::new("dpkg-deb").arg("-x").arg(&package).arg(room).run()?;
    let mut files = Vec::new();
    for part in ["boot", "lib/modules", "usr/lib/modules"] {
        walk(&room.join(part), &mut files)?;
    }
    let named = |test: &dyn Fn(&str) -> bool| {
        files.iter().find(|path| path.file_name().is_some_and(|name| test(&name.to_string_lossy()))).cloned()
    };
    let image = named(&|name| name.starts_with("vmlinuz-")).context("the package has no kernel")?;
    let module = |wanted: &str| {
        let plain = format!("{wanted}.ko");
        named(&|name| name == plain || name.strip_suffix(".xz") == Some(&plain))
    };
    let needed = |wanted: &&str| module(wanted).with_context(|| format!("the package has no module {wanted}"));
    let mut modules = MODULES.iter().map(needed).collect::<anyhow::Result<Vec<_>>>()?;
    modules.extend(MODULES_IF_ANY.iter().filter_map(|wanted| module(wanted)));
    Ok(Kernel { image, modules })
}

/// Fetches a kernel, unless it was fetched before.
pub(super) fn fetch(version: &str) -> anyhow::Result<()> {
    fetched(version).map(drop)
}

/// The package of the newest kernel of a version. One that was fetched before does.
fn fetched(version: &str) -> anyhow::Result<PathBuf> {
    let dir = workspace::target().join("vm");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let beginning = format!("linux-image-{version}.");
    let cached = || -> anyhow::Result<Option<PathBuf>> {
        let entries = fs::read_dir(&dir)?.collect::<Result<Vec<_>, _>>()?;
        let ours = entries.into_iter().filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with(&beginning) && name.ends_with(".deb")
        });
        Ok(ours.map(|entry| entry.path()).max())
    };
    if let Some(package) = cached()? {
        return Ok(package);
    }
    let name = match newest(version)? {
        Some(name) => name,
        None => {
            apt(&["update"]).step("apt-get update")?;
            newest(version)?.with_context(|| format!("no archive that apt knows has Linux {version}"))?
        }
    };
    say(format!("fetching {name}"));
    // Beside the others, and named by apt only when it is whole.
    apt(&["download", &name]).dir(&dir).step(&format!("apt-get download {name}"))?;
    cached()?.with_context(|| format!("apt-get download {name} left no package"))
}

fn newest(version: &str) -> anyhow::Result<Option<String>> {
    let pattern = format!("^linux-image-{}\\.[0-9.+deb-]*-cloud-amd64$", version.replace('.', "\\."));
    let found = Cmd::new("apt-cache").args(["search", "--names-only", &pattern]).run()?;
    let mut names: Vec<String> = found.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    names.sort_by_key(|name| Reverse(numbers(name)));
    Ok(names.into_iter().next())
}

fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_kernel_is_the_one_with_greater_numbers() {
        let older = numbers("linux-image-6.12.9+deb12-cloud-amd64");
        assert!(numbers("linux-image-6.12.115+deb12-cloud-amd64") > older);
    }
}
