//! Embeds the guard's eBPF object where one has been built; without it the gate still builds, and says at run time
//! what to do.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

const NAME: &str = "portcullis-ebpf.o";
const OVERRIDE: &str = "PORTCULLIS_BPF_OBJECT";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let embedded = PathBuf::from(env::var("OUT_DIR")?).join(NAME);
    let bytes = match env::var_os(OVERRIDE) {
        Some(path) => {
            println!("cargo::rerun-if-changed={}", Path::new(&path).display());
            fs::read(&path).map_err(|error| format!("{OVERRIDE}={}: {error}", Path::new(&path).display()))?
        }
        None => built_here(&PathBuf::from(env::var("CARGO_MANIFEST_DIR")?))?,
    };
    fs::write(embedded, bytes)?;
    Ok(())
}

/// The object of this workspace, or nothing.
///
/// The directory is watched rather than the file, and made when missing: cargo takes a watched path that does not
/// exist for a change, and would compile the gate anew each time.
fn built_here(manifest: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    let Some(workspace) = manifest.parent().filter(|dir| dir.join("ebpf/src/main.rs").is_file()) else {
        return Ok(Vec::new());
    };
    let dir = workspace.join("target/bpf");
    fs::create_dir_all(&dir)?;
    println!("cargo::rerun-if-changed={}", dir.display());
    match fs::read(dir.join(NAME)) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}
