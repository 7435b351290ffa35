//! The same sources, copied elsewhere and built from nothing, have to give the same object.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::{Toolchain, compile, strip};
use crate::lab::process::scratch;

/// What cargo reads of the workspace, all of it small.
const PARTS: [&str; 8] = ["Cargo.toml", "Cargo.lock", ".cargo", "proxy", "ebpf", "xtask", "tests", "benches"];

/// Builds in a copy of the work tree and compares with `object`.
///
/// # Errors
/// When it does not build, or gives other bytes.
pub(super) fn check(root: &Path, toolchain: &Toolchain, object: &Path) -> anyhow::Result<()> {
    let elsewhere = scratch("reproduce")?;
    let copy = elsewhere.path().join("a").join("longer path");
    for part in PARTS {
        copy_tree(&root.join(part), &copy.join(part)).with_context(|| format!("cannot copy {part}"))?;
    }
    let built = compile(&copy, toolchain, &toolchain.linker(root)?)?;
    let again = strip(&fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?)?;
    let first = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    if first != again {
        bail!(
            "the object depends on where it is built: {} bytes here, {} in {}",
            first.len(),
            again.len(),
            copy.display()
        );
    }
    eprintln!("the same {} bytes from {} and from {}", again.len(), root.display(), copy.display());
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    if !from.is_dir() {
        fs::create_dir_all(to.parent().unwrap_or(to))?;
        return fs::copy(from, to).map(drop);
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() != "target" {
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
