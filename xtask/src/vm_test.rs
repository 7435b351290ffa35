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
/// Further clients of the long run.
const LONG_NEEDS: [Need; 2] = [packages::PYTHON, packages::TSTCLNT];
/// What NSS loads when it runs, from where its first library is.
const NSS_MODULES: [&str; 3] = ["libfreebl3.so", "libfreeblpriv3.so", "libsoftokn3.so"];
/// Says where Python itself lies, and each file that a client needs of it.
const PYTHON_FILES: &str = "
import encodings.idna, http.client, os, shutil, ssl, sys
print(os.path.realpath(sys.executable))
for module in list(sys.modules.values()):
    if getattr(module, '__file__', None): print(os.path.realpath(module.__file__))
";
/// The layers of the image that is pushed and pulled there, in bytes.
const LAYERS: [u64; 2] = [3 << 20, 1 << 20];
/// An emulated processor takes two minutes, and on a busy machine thrice that.
const LIMIT: Duration = Duration::from_secs(480);
/// Gigabytes at the speed of an emulator, on a busy machine.
const LONG_LIMIT: Duration = Duration::from_secs(3 * 3600);
const GUEST: &str = include_str!("vm_test/guest.sh");
const GUEST_KTLS: &str = include_str!("vm_test/ktls.sh");

/// Options of `cargo xtask vm-test`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Boot only this kernel; repeatable
    #[arg(long, value_name = "VERSION", default_values = kernel::VERSIONS)]
    pub kernel: Vec<String>,
    /// Move gigabytes through TLS in the kernel, by several clients, too; takes the better part of an hour and 7 GiB
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
    if args.long {
        packages::ensure(&LONG_NEEDS)?;
    }
    let program = match &args.program {
        Some(program) => program.clone(),
        None => dist::build(false)?,
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
    fs::write(&initrd, initramfs(&kernel, program, &layout, long)?).context("cannot write the initramfs")?;
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
    // Gigabytes of a registry lie in its memory.
    let memory = if long { "7168" } else { "1024" };
    let machine = ["-accel", "tcg,thread=multi", "-cpu", "max,cx16=off", "-M", "q35", "-smp", "2", "-m", memory];
    let console = ["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"];
    let cmd = Cmd::new("qemu-system-x86_64").args(machine).args(console);
    // The kernel gives words that mean nothing to it to the first process, as variables where they have a value.
    let line = format!("console=ttyS0 quiet panic=-1 no_timer_check LONG={}", u8::from(long));
    cmd.arg("-kernel").arg(image).arg("-initrd").arg(initrd).args(["-append", &line])
}

fn initramfs(kernel: &kernel::Kernel, program: &Path, layout: &Path, long: bool) -> anyhow::Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut archive = cpio::Archive::default();
    for dir in ["bin", "dev", "modules"] {
        archive.directory(dir);
    }
    let on_path = |name: &str| which(name).with_context(|| format!("{name} is missing"));
    archive.program("bin/busybox", &read(&on_path("busybox")?)?);
    archive.link("bin/sh", "busybox");
    archive.program("bin/portcullis", &read(program)?);
    // Where they are here, with all that they load.
    let mut files = BTreeSet::new();
    for name in PROGRAMS {
        let path = on_path(name)?;
        archive.program(&format!("bin/{name}"), &read(&path)?);
        files.extend(libraries_of(&path)?);
    }
    if long {
        let tstclnt = on_path("tstclnt")?;
        archive.program("bin/tstclnt", &read(&tstclnt)?);
        files.extend(nss_files(&tstclnt)?);
        let python = python_files()?;
        archive.link("bin/python3", &python.first().context("no Python")?.to_string_lossy());
        files.extend(python);
    }
    let mut dirs = BTreeSet::new();
    for file in &files {
        let place = file.strip_prefix("/").unwrap_or(file);
        dirs.extend(place.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).map(Path::to_path_buf));
    }
    // In order, a directory comes before what is in it.
    dirs.iter().for_each(|dir| archive.directory(&dir.to_string_lossy()));
    for file in &files {
        archive.program(file.to_string_lossy().trim_start_matches('/'), &read(file)?);
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

/// NSS's libraries, with those that none of them names.
fn nss_files(client: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = libraries_of(client)?;
    let first = files.iter().find(|path| path.ends_with("libnss3.so")).context("tstclnt without NSS")?;
    let dir = first.parent().context("a library without a directory")?.to_owned();
    for module in NSS_MODULES.map(|name| dir.join(name)) {
        files.extend(libraries_of(&module)?);
        files.push(module);
    }
    Ok(files)
}

/// Python first, then its modules and what they load.
fn python_files() -> anyhow::Result<Vec<PathBuf>> {
    let said = Cmd::new("python3").args(["-S", "-c", PYTHON_FILES]).run()?;
    let mut files: Vec<PathBuf> = said.lines().map(PathBuf::from).collect();
    let is_object = |path: &&PathBuf| path.extension().is_none_or(|ending| ending == "so");
    let objects: Vec<PathBuf> = files.iter().take(1).chain(files.iter().filter(is_object)).cloned().collect();
    for object in &objects {
        files.extend(libraries_of(object)?);
    }
    Ok(files)
}

/// The loader and the libraries of a program, as the loader itself finds them.
fn libraries_of(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let said = Cmd::new("ldd").arg(program).run()?;
    let paths = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}
