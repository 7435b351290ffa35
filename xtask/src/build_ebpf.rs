//! `cargo xtask build-ebpf`: compiles the guard's eBPF programs and puts the object where the gate's build finds it.
//!
//! Two tool-chains can do it: rustup's nightly (which compiles `core` from its sources), and Debian's `rustc-web`
//! (which ships a compiled `core` for BPF). The object always ends in `target/bpf/portcullis-ebpf.o` of the
//! workspace, whatever `CARGO_TARGET_DIR` says: that is the one place where the gate's build script looks.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

mod reproduce;
mod toolchain;

pub use toolchain::{Toolchain, ensure_toolchain};

const NAME: &str = "portcullis-ebpf";
const TRIPLE: &str = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// Options of `cargo xtask build-ebpf`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Build even when nothing has changed
    #[arg(long)]
    pub force: bool,
    /// Install what is missing: Debian packages (as root), or rustup's nightly sources
    #[arg(long)]
    pub install: bool,
    /// Build a second time, from a copy of the sources elsewhere, and compare
    #[arg(long)]
    pub reproduce: bool,
}

/// Builds the object, or finds it up to date, and returns where it is.
///
/// # Errors
/// When no tool-chain is there (the message has the commands that install one) or the build fails (the message has
/// the end of the compiler's output).
pub fn run(args: &Args) -> anyhow::Result<PathBuf> {
    let root = workspace()?;
    let toolchain = if args.install { ensure_toolchain(&root)? } else { Toolchain::find(&root)? };
    let object = object_path(&root);
    let stamp = object.with_extension("stamp");
    let wanted = fingerprint(&root, &toolchain)?;
    let fresh = object.is_file() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted);
    if fresh && !args.force {
        eprintln!("eBPF object is up to date: {}", object.display());
    } else {
        let built = compile(&root, &toolchain, &toolchain.linker(&root)?)?;
        let bytes = strip(&fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?)?;
        replace(&object, &bytes)?;
        replace(&stamp, wanted.as_bytes())?;
        eprintln!("eBPF object built with {toolchain}: {} ({} KiB)", object.display(), bytes.len() / 1024);
    }
    if args.reproduce {
        reproduce::check(&root, &toolchain, &object)?;
    }
    Ok(object)
}

/// Where the object is put.
#[must_use]
pub fn object_path(root: &Path) -> PathBuf {
    root.join("target/bpf").join(NAME).with_extension("o")
}

fn workspace() -> anyhow::Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(Path::to_path_buf).context("xtask has no workspace above it")
}

fn compile(root: &Path, toolchain: &Toolchain, linker: &Path) -> anyhow::Result<PathBuf> {
    let target = root.join("target/bpf-build");
    let mut path = vec![linker.to_path_buf()];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));

    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(root)
        .args(["build", "--release", "--package", NAME, "--bin", NAME, "--target", TRIPLE, "--target-dir"])
        .arg(&target)
        .env("PATH", env::join_paths(path)?)
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(root))
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2");
    step("Compiling the eBPF programs", &mut cargo, &target.join("build.log"))?;
    Ok(target.join(TRIPLE).join("release").join(NAME))
}

/// The paths of this machine must not end in the object: the same sources are to give the same bytes everywhere.
fn rust_flags(root: &Path) -> OsString {
    let mut flags = OsString::from("-Clink-arg=--btf");
    let mut remap = |from: &Path, to: &str| {
        flags.push("\u{1f}--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    };
    if let Some(home) = cargo_home() {
        remap(&home, "/cargo");
    }
    remap(root, "/portcullis");
    flags
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".cargo")))
}

/// Removes DWARF, which was only there to make the linker write BTF.
fn strip(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut builder = Builder::read(bytes).context("the linker wrote no ELF object")?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug") || name.starts_with(b".rel.debug");
    }
    // LLVM keeps section names and symbol names in one table; the writer wants one for each.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = b".shstrtab".as_slice().into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot strip the object")?;
    Ok(stripped)
}

/// Whoever embeds the object at this moment must see the old one or the new one.
fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let dir = path.parent().context("a file without a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let new = path.with_extension("new");
    fs::write(&new, bytes).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))
}

fn fingerprint(root: &Path, toolchain: &Toolchain) -> anyhow::Result<String> {
    let mut files = vec![root.join("Cargo.lock"), root.join("Cargo.toml"), root.join("ebpf/Cargo.toml")];
    sources(&root.join("ebpf/src"), &mut files)?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in &files {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        (file.strip_prefix(root).unwrap_or(file), bytes).hash(&mut hasher);
    }
    Ok(format!("{toolchain}\n{:016x}\n", hasher.finish()))
}

fn sources(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// Runs a long command behind a spinner; what it prints goes to `log` and is shown only when it fails.
fn step(what: &str, command: &mut Command, log: &Path) -> anyhow::Result<()> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.set_style(ProgressStyle::with_template("{spinner} {msg} ({elapsed})")?);
    spinner.enable_steady_tick(Duration::from_millis(120));
    if spinner.is_hidden() {
        eprintln!("{what} …");
    }
    let status = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).status();
    spinner.finish_and_clear();
    let program = command.get_program().to_string_lossy().into_owned();
    let status = status.with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        let output = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = output.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        bail!("{what}: {program} failed ({status}); all of its output is in {}\n{tail}", log.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_failing_step_shows_the_end_of_its_output() {
        let dir = env::temp_dir().join(format!("portcullis-step-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "echo what went wrong; exit 3"]);
        let error = step("Testing", &mut command, &dir.join("log")).unwrap_err().to_string();
        fs::remove_dir_all(&dir).unwrap();
        assert!(error.contains("what went wrong"), "{error}");
        assert!(error.contains("exit status: 3"), "{error}");
    }
}
