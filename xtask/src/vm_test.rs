//! `cargo xtask vm-test`: the static release binary and its guard at work on stock Debian kernels, in virtual machines that need
//! neither KVM nor root.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::lab::cmd::{Cmd, which};
use crate::lab::image;
use crate::lab::packages::{self, Need};
use crate::lab::process::{self, scratch};
use crate::lab::ui::{Step, say, table};
use crate::{dist, workspace};

mod cpio;
mod kernel;
mod verdicts;

use verdicts::Verdicts;

const NEEDS: [Need; 9] = [
    packages::QEMU,
    packages::BUSYBOX,
    packages::DPKG_DEB,
    packages::IP,
    packages::CURL,
    packages::OPENSSL,
    packages::GNUTLS,
    packages::SKOPEO,
    packages::REGISTRY,
];
/// Programs of this machine that the virtual ones have, with the libraries that they name.
const PROGRAMS: [&str; 7] = ["bash", "curl", "docker-registry", "gnutls-cli", "ip", "openssl", "skopeo"];
/// The layers of the image that is pushed and pulled there, in bytes.
const LAYERS: [u64; 2] = [3 << 20, 1 << 20];
/// An emulated processor takes two minutes, and on a busy machine thrice that.
const LIMIT: Duration = Duration::from_secs(480);
/// Gigabytes at the speed of an emulator.
const LONG_LIMIT: Duration = Duration::from_secs(1800);
const GUEST: &str = include_str!("vm_test/guest.sh");
const GUEST_KTLS: &str = include_str!("vm_test/ktls.sh");

/// Options of `cargo xtask vm-test`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Boot only this kernel; repeatable
    #[arg(long, value_name = "VERSION", default_values = kernel::VERSIONS)]
    pub kernel: Vec<String>,
    /// Move gigabytes through TLS in the kernel, too; takes a quarter of an hour
    #[arg(long)]
    pub long: bool,
    /// Try this program, which must be static, instead of building one
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,
}

/// The kernels that are tried.
pub fn kernels() -> Vec<String> {
    kernel::VERSIONS.map(str::to_owned).to_vec()
}

/// Why this machine cannot, if it cannot: packages or kernels that are not to be had. Fetches what is.
pub fn why_not() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some(format!("nobody has booted virtual machines for {} yet", std::env::consts::ARCH));
    }
    let fetched = packages::ensure(&NEEDS).and_then(|()| kernel::VERSIONS.iter().try_for_each(|v| kernel::fetch(v)));
    fetched.err().map(|error| format!("{error:#}"))
}

/// Runs the suite on each kernel.
///
/// # Errors
/// When a kernel cannot be had or booted, or a check fails.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("nobody has booted virtual machines for {} yet", std::env::consts::ARCH);
    }
    packages::ensure(&NEEDS)?;
    let program = match &args.program {
        Some(program) => program.clone(),
        None => dist::build()?,
    };
    let mut rows = Vec::new();
    let mut total = Verdicts::default();
    for version in &args.kernel {
        let begun = Instant::now();
        let verdicts = on_kernel(version, &program, args.long).unwrap_or_else(|error| {
            say(format!("{error:#}"));
            Verdicts::failure(format!("{version}: boots"))
        });
        let (passed, failed) = (verdicts.passed.to_string(), verdicts.failed.len().to_string());
        rows.push(vec![version.clone(), passed, failed, format!("{:.1}", begun.elapsed().as_secs_f64())]);
        total.add(verdicts);
        crate::lab::interrupt::check()?;
    }
    say("");
    say(table(&["kernel", "passed", "failed", "seconds"], &rows));
    total.failed.iter().for_each(|name| say(format!("failed: {name}")));
    say(format!("{} passed, {} failed, 0 skipped", total.passed, total.failed.len()));
    if !total.failed.is_empty() {
        bail!("{} failed", total.failed.len());
    }
    Ok(())
}

fn on_kernel(version: &str, program: &Path, long: bool) -> anyhow::Result<Verdicts> {
    let room = scratch("vm")?;
    let kernel = kernel::unpack(version, room.path())?;
    let initrd = room.path().join("initrd");
    let layout = room.path().join("image");
    image::write(&layout, &LAYERS, process::random())?;
    fs::write(&initrd, initramfs(&kernel, program, &layout)?).context("cannot write the initramfs")?;
    let log = workspace::log(&format!("vm-test-{version}"))?;
    let mut step = Step::begin(format!("Linux {version}"));
    let mut verdicts = Verdicts::default();
    let limit = if long { LONG_LIMIT } else { LIMIT };
    let output = qemu(&kernel.image, &initrd, long).log(&log).limit(limit).watched(&mut |line| {
        if let Some(failed) = verdicts.read(line) {
            step.line(&format!("failed: {failed}"));
        }
        step.note(line);
    })?;
    output.ok()?;
    step.done(&format!("console in {}", log.display()));
    Ok(verdicts.finish(version))
}

/// 16-byte atomics are what the emulator does slowest, and no program here needs them. On a busy machine the emulated
/// timer can come too late for the kernel's own trial of it, which then panics.
fn qemu(image: &Path, initrd: &Path, long: bool) -> Cmd {
    let machine = ["-accel", "tcg,thread=multi", "-cpu", "max,cx16=off", "-M", "q35", "-smp", "2", "-m", "1024"];
    let console = ["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"];
    let cmd = Cmd::new("qemu-system-x86_64").args(machine).args(console);
    // The kernel gives words that mean nothing to it to the first process, as variables where they have a value.
    let line = format!("console=ttyS0 quiet panic=-1 no_timer_check LONG={}", u8::from(long));
    cmd.arg("-kernel").arg(image).arg("-initrd").arg(initrd).args(["-append", &line])
}

fn initramfs(kernel: &kernel::Kernel, program: &Path, layout: &Path) -> anyhow::Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut archive = cpio::Archive::default();
    for dir in ["bin", "dev", "modules"] {
        archive.directory(dir);
    }
    let on_path = |name: &str| which(name).with_context(|| format!("{name} is missing"));
    archive.program("bin/busybox", &read(&on_path("busybox")?)?);
    archive.link("bin/sh", "busybox");
    archive.program("bin/portcullis", &read(program)?);
    let mut libraries = BTreeSet::new();
    for name in PROGRAMS {
        let path = on_path(name)?;
        archive.program(&format!("bin/{name}"), &read(&path)?);
        libraries.extend(libraries_of(&path)?);
    }
    let mut dirs = BTreeSet::new();
    for library in &libraries {
        let place = library.strip_prefix("/").unwrap_or(library);
        dirs.extend(place.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).map(Path::to_path_buf));
    }
    // In order, a directory comes before what is in it.
    dirs.iter().for_each(|dir| archive.directory(&dir.to_string_lossy()));
    for library in &libraries {
        archive.program(library.to_string_lossy().trim_start_matches('/'), &read(library)?);
    }
    for module in &kernel.modules {
        let name = module.file_name().context("a module without a name")?.to_string_lossy();
        archive.program(&format!("modules/{name}"), &read(module)?);
    }
    archive.tree("image", layout)?;
    archive.program("init", GUEST.as_bytes());
    archive.program("ktls.sh", GUEST_KTLS.as_bytes());
    Ok(archive.finish())
}

/// The loader and the libraries of a program, as the loader itself finds them.
fn libraries_of(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let said = Cmd::new("ldd").arg(program).run()?;
    let paths = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}
