//! A program that the compiler optimised by a profile of itself at work (PGO): built with counters, run as its users run
//! it, and built again with what the counters say runs often.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::lab::cmd::Cmd;
use crate::lab::process::scratch;
use crate::lab::ui::say;
use crate::{coverage, workspace};

/// What the runtime of the counters looks at for the file that it is to write.
pub(crate) const VARIABLE: &str = "LLVM_PROFILE_FILE";

/// The profile of this source's gate, at work in the program that `build` makes with these flags of the compiler. It is
/// about this source: the compiler leaves out what does not fit another.
///
/// # Errors
/// When a tool is missing, a build fails, or the work does not succeed.
pub(super) fn make(build: impl FnOnce(&str) -> anyhow::Result<PathBuf>) -> anyhow::Result<PathBuf> {
    coverage::ensure_tools()?;
    let profdata = coverage::tool("llvm-profdata")?;
    // Not under the target directory: a gate without privileges may have no way to it.
    let room = scratch("profiles")?;
    fs::set_permissions(room.path(), fs::Permissions::from_mode(0o755)).context("cannot open a directory")?;
    // Where the counts go is said when it runs: a path here would be another build each time.
    let counting = build("-C profile-generate")?;
    let exe = std::env::current_exe().context("cannot tell which program this is")?;
    let work = Cmd::new(exe).args(["bench", "training", "--portcullis"]).arg(counting);
    let work = work.env(VARIABLE, room.path().join("%p.profraw"));
    work.log(workspace::log("dist-training")?).step("the gate at work, counted")?;
    let raw = counts(room.path())?;
    let merged = workspace::target().join("portcullis.profdata");
    Cmd::new(profdata).args(["merge", "-o"]).arg(&merged).args(&raw).run()?;
    say(format!("profile of {} gates: {}", raw.len(), merged.display()));
    Ok(merged)
}

/// The files that hold counts. One without any was left by a gate that was killed, or that could not write it.
fn counts(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "profraw") {
            let bytes = fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?.len();
            ensure!(bytes > 0, "a gate wrote no counts to {}", path.display());
            files.push(path);
        }
    }
    ensure!(!files.is_empty(), "no gate wrote counts to {}", dir.display());
    Ok(files)
}
