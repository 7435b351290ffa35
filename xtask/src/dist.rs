//! `cargo xtask dist`: what is given to users. One static binary, in a Debian package and in a container image, with a
//! list of what is inside and checksums over all of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::lab::cmd::Cmd;
use crate::lab::packages::{self, Need};
use crate::lab::process::scratch;
use crate::lab::ui::say;
use crate::{build_ebpf, workspace};

mod deb;
mod image;
mod profile;
mod sbom;

pub(crate) use profile::VARIABLE as PROFILE_VARIABLE;

const NEEDS: [Need; 3] = [packages::DPKG_DEB, packages::GZIP, packages::TAR];

/// The name of the build's log.
pub const LOG: &str = "dist-build";
/// Tells the tests where the artefacts are.
pub const VARIABLE: &str = "PORTCULLIS_DIST";

/// Flags of the compiler that make a program of no shared library.
const STATIC: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// Where the artefacts go unless told otherwise.
#[must_use]
pub fn directory() -> PathBuf {
    workspace::target().join("dist")
}

/// Options of `cargo xtask dist`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Where the artefacts go [default: target/dist]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Pack this program instead of building a static one
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,
    /// Build twice, with load in between that shows the compiler what runs often: a few minutes for a faster program.
    /// Wants LLVM's llvm-profdata
    #[arg(long, conflicts_with = "program")]
    pub pgo: bool,
}

/// What every artefact is made from.
#[derive(Debug)]
struct Release<'r> {
    program: &'r Path,
    version: &'r str,
    /// Debian's name of the architecture, which is also the container world's.
    architecture: &'r str,
    /// An empty directory to work in.
    room: &'r Path,
    out: &'r Path,
}

/// Builds everything.
///
/// # Errors
/// When a build fails or a file cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    packages::ensure(&NEEDS)?;
    let program = match &args.program {
        Some(program) => fs::canonicalize(program).with_context(|| format!("cannot find {}", program.display()))?,
        None => build(args.pgo)?,
    };
    let out = args.out.clone().unwrap_or_else(directory);
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let room = scratch("dist")?;
    let release = Release {
        program: &program,
        version: env!("CARGO_PKG_VERSION"),
        architecture: architecture()?,
        room: room.path(),
        out: &out,
    };
    let made = [deb::build(&release)?, image::build(&release)?, sbom::write(&release)?];
    let sums = checksums(&out, &made)?;
    for path in made.iter().chain([&sums]) {
        let bytes = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        say(format!("{:>8} KiB  {}", bytes.div_ceil(1024), path.display()));
    }
    Ok(())
}

fn architecture() -> anyhow::Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("nobody has packed Portcullis for {other} yet: add its Debian name in xtask/src/dist.rs"),
    }
}

/// A release binary without shared libraries: it runs on every distribution, and in an empty image.
///
/// The target is named although it is the host's: without it the flags would reach build scripts and macros too.
/// With `pgo` it is optimised by a profile of itself at work.
pub(crate) fn build(pgo: bool) -> anyhow::Result<PathBuf> {
    build_ebpf::run(&build_ebpf::Args { install: true, ..Default::default() })?;
    let target = workspace::target();
    let built = if pgo {
        // Not static: counters keep code that nobody calls, some of which wants the C library's shared form.
        let profile = profile::make(|flags| cargo_build(&target.join("pgo-counting"), flags, "with counters"))?;
        let flags = format!("{STATIC} -C profile-use={}", profile.display());
        cargo_build(&target.join("pgo"), &flags, "static, by its profile")?
    } else {
        cargo_build(&target, STATIC, "static")?
    };
    let stripped = built.with_extension("stripped");
    Cmd::new("strip").arg("-o").arg(&stripped).arg(&built).run()?;
    Ok(stripped)
}

fn cargo_build(target: &Path, flags: &str, how: &str) -> anyhow::Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let cmd = workspace::cargo().args(["build", "--release", "--locked", "-p", "portcullis", "--target", &triple]);
    let cmd = cmd.env("CARGO_TARGET_DIR", target).env("RUSTFLAGS", flags);
    cmd.log(workspace::log(LOG)?).step(&format!("cargo build --release, {how}"))?;
    Ok(target.join(&triple).join("release/portcullis"))
}

/// `SHA256SUMS` beside the artefacts, in the form that `sha256sum --check` reads.
fn checksums(out: &Path, made: &[PathBuf]) -> anyhow::Result<PathBuf> {
    let names = made.iter().filter_map(|path| path.file_name());
    let text = Cmd::new("sha256sum").dir(out).args(names).run()?;
    let path = out.join("SHA256SUMS");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Copies a file to a place whose directories may be missing, and gives it its mode.
fn install(from: &Path, to: &Path, mode: u32) -> anyhow::Result<()> {
    let text = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    put(to, &text, mode)
}

fn put(to: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let write = || {
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(to, content)?;
        fs::set_permissions(to, fs::Permissions::from_mode(mode))
    };
    write().with_context(|| format!("cannot write {}", to.display()))
}

/// A tar file that depends on nothing but the content of `dir`.
fn tar(dir: &Path, to: &Path) -> anyhow::Result<()> {
    let same = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--format=ustar"];
    Cmd::new("tar").args(same).arg("-C").arg(dir).arg("-cf").arg(to).arg(".").run().map(drop)
}
