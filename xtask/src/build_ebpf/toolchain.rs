//! Finding, and where asked installing, a compiler and a linker for BPF.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::{TRIPLE, step};

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";
/// The majors of LLVM that this version of the linker can be built against.
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// A compiler that can make BPF objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// rustup's nightly with `rust-src`: `core` is compiled along.
    Nightly {
        /// What `rustc --version` says.
        version: String,
        /// The major version of its LLVM.
        llvm: u32,
        /// The directory of its own libLLVM.
        lib: PathBuf,
    },
    /// Debian's `rustc-web` with its compiled `core` for BPF.
    Debian {
        /// What `rustc --version` says.
        version: String,
        /// The major version of its LLVM.
        llvm: u32,
    },
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nightly { version, .. } => write!(f, "rustup's nightly ({version})"),
            Self::Debian { version, .. } => write!(f, "Debian's rustc-web ({version})"),
        }
    }
}

impl Toolchain {
    /// Finds a tool-chain: a complete nightly first, then Debian's, then a nightly that only lacks the linker.
    ///
    /// # Errors
    /// When there is none; the message has the commands that install one.
    pub fn find(root: &Path) -> anyhow::Result<Self> {
        let nightly = nightly();
        if let Some(toolchain) = &nightly
            && toolchain.present_linker(root).is_some()
        {
            return Ok(toolchain.clone());
        }
        match debian().or(nightly) {
            Some(toolchain) => Ok(toolchain),
            None => bail!("{}", remedy()),
        }
    }

    /// The cargo command of this tool-chain, free of whatever the calling cargo exported.
    pub(super) fn cargo(&self) -> Command {
        let mut cargo = match self {
            Self::Nightly { .. } => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo", "-Zbuild-std=core"]);
                command.env_remove("RUSTC").env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
                command
            }
            Self::Debian { .. } => {
                let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "aya_ebpf");
                command
            }
        };
        for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET"]
        {
            cargo.env_remove(name);
        }
        cargo
    }

    /// The directory of a linker that fits, built first when there is none.
    pub(super) fn linker(&self, root: &Path) -> anyhow::Result<PathBuf> {
        if let Some(dir) = self.present_linker(root) {
            return Ok(dir);
        }
        let tools = self.tools(root);
        let prefix = tools.join("llvm");
        link_llvm(&self.libllvm()?, &prefix)?;
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["install", LINKER, "--version", LINKER_VERSION, "--locked", "--no-default-features", "--features"])
            .arg(format!("llvm-{}", self.llvm()))
            .arg("--root")
            .arg(&tools)
            .arg("--target-dir")
            .arg(tools.join("build"))
            .env("LLVM_PREFIX", &prefix)
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        let what = format!("Building {LINKER} {LINKER_VERSION} against LLVM {} (once, about two minutes)", self.llvm());
        step(&what, &mut cargo, &tools.join("install.log"))?;
        Ok(tools.join("bin"))
    }

    fn present_linker(&self, root: &Path) -> Option<PathBuf> {
        let own = self.tools(root).join("bin");
        if own.join(LINKER).is_file() {
            return Some(own);
        }
        let Self::Nightly { .. } = self else {
            // One from elsewhere may be linked to an older LLVM than Debian's compiler writes.
            return None;
        };
        env::split_paths(&env::var_os("PATH")?).find(|dir| dir.join(LINKER).is_file())
    }

    fn tools(&self, root: &Path) -> PathBuf {
        let flavour = match self {
            Self::Nightly { .. } => "nightly",
            Self::Debian { .. } => "debian",
        };
        root.join("target/tools").join(format!("{flavour}-llvm-{}", self.llvm()))
    }

    fn llvm(&self) -> u32 {
        match self {
            Self::Nightly { llvm, .. } | Self::Debian { llvm, .. } => *llvm,
        }
    }

    fn libllvm(&self) -> anyhow::Result<PathBuf> {
        let llvm = self.llvm();
        if !LINKER_LLVM.contains(&llvm) {
            bail!("{LINKER} {LINKER_VERSION} cannot be built against LLVM {llvm}, which {self} uses");
        }
        let named = format!("libLLVM.so.{llvm}");
        let dirs: Vec<PathBuf> = match self {
            Self::Nightly { lib, .. } => vec![lib.clone()],
            Self::Debian { .. } => library_dirs(),
        };
        dirs.iter()
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&named)))
            .with_context(|| format!("{named}* is not where {self} should have put it"))
    }
}

/// Finds a tool-chain, or installs one: Debian's packages where that is possible, else rustup's nightly.
///
/// # Errors
/// When neither can be installed here; the message has the commands for somebody who may.
pub fn ensure_toolchain(root: &Path) -> anyhow::Result<Toolchain> {
    if let Ok(found) = Toolchain::find(root) {
        return Ok(found);
    }
    let log = root.join("target/tools/install.log");
    if is_root() && runs("apt-get") {
        let mut update = Command::new("apt-get");
        update.arg("update").env("DEBIAN_FRONTEND", "noninteractive");
        step("Updating Debian's package lists", &mut update, &log)?;
        if packaged() {
            let mut install = Command::new("apt-get");
            install
                .args(["install", "-y", "--no-install-recommends"])
                .args(DEBIAN_PACKAGES)
                .env("DEBIAN_FRONTEND", "noninteractive");
            step(&format!("Installing {} (Debian, 117 MB)", DEBIAN_PACKAGES.join(" and ")), &mut install, &log)?;
            return Toolchain::find(root);
        }
    }
    if runs("rustup") {
        let mut install = Command::new("rustup");
        install.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
        step("Installing rustup's nightly with rust-src", &mut install, &log)?;
    }
    Toolchain::find(root)
}

fn remedy() -> String {
    format!(
        "no compiler for eBPF here: run one of\n  \
         apt-get install -y --no-install-recommends {}    (Debian, as root)\n  \
         rustup toolchain install nightly --profile minimal --component rust-src\n\
         and then `cargo xtask build-ebpf` again, or let `cargo xtask build-ebpf --install` do it",
        DEBIAN_PACKAGES.join(" ")
    )
}

fn debian() -> Option<Toolchain> {
    let sysroot = PathBuf::from(answer(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]))?);
    if !sysroot.join("lib/rustlib").join(TRIPLE).join("lib").is_dir() {
        return None;
    }
    let (version, llvm) = versions(&answer(Command::new(DEBIAN_RUSTC).arg("-vV"))?)?;
    Some(Toolchain::Debian { version, llvm })
}

fn nightly() -> Option<Toolchain> {
    let rustc = |args: &[&str]| answer(Command::new("rustup").args(["run", "nightly", "rustc"]).args(args));
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?);
    if !sysroot.join("lib/rustlib/src/rust/library/core").is_dir() {
        return None;
    }
    let (version, llvm) = versions(&rustc(&["-vV"])?)?;
    Some(Toolchain::Nightly { version, llvm, lib: sysroot.join("lib") })
}

/// The first line of `rustc -vV`, and the major in its `LLVM version:` line.
fn versions(verbose: &str) -> Option<(String, u32)> {
    let version = verbose.lines().next()?.to_owned();
    let llvm = verbose.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    Some((version, llvm.split('.').next()?.parse().ok()?))
}

/// The linker's build looks for `libLLVM.so` in a prefix; the library itself is all it needs from there.
fn link_llvm(library: &Path, prefix: &Path) -> anyhow::Result<()> {
    let lib = prefix.join("lib");
    fs::create_dir_all(&lib).with_context(|| format!("cannot create {}", lib.display()))?;
    let link = lib.join("libLLVM.so");
    if fs::symlink_metadata(&link).is_ok() {
        fs::remove_file(&link).with_context(|| format!("cannot replace {}", link.display()))?;
    }
    std::os::unix::fs::symlink(library, &link).with_context(|| format!("cannot create {}", link.display()))
}

fn library_dirs() -> Vec<PathBuf> {
    let multiarch = format!("/usr/lib/{}-linux-gnu", env::consts::ARCH);
    vec![PathBuf::from(multiarch), PathBuf::from("/usr/lib")]
}

fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn runs(program: &str) -> bool {
    answer(Command::new(program).arg("--version")).is_some()
}

fn packaged() -> bool {
    answer(Command::new("apt-cache").args(["show", "--no-all-versions"]).args(DEBIAN_PACKAGES))
        .is_some_and(|found| DEBIAN_PACKAGES.iter().all(|name| found.contains(&format!("Package: {name}\n"))))
}

fn is_root() -> bool {
    answer(Command::new("id").arg("-u")).is_some_and(|uid| uid == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_versions_of_a_compiler() {
        let verbose = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nLLVM version: 22.1.8";
        assert_eq!(versions(verbose), Some(("rustc 1.96.0 (ac68faa20 2026-05-25)".to_owned(), 22)));
        assert_eq!(versions("rustc 1.0.0\n"), None);
    }
}
