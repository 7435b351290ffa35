//! `cargo xtask miri`: the core's tests under Miri, which sees undefined behaviour in what the core stands on. The core itself
//! has no `unsafe`.

use anyhow::bail;

use crate::lab::cmd::Cmd;
use crate::workspace;

/// Interpreting hashes that are slow on purpose, or hundreds of seeds, takes days.
const TOO_SLOW: [&str; 6] = ["simulation", "htpasswd", "apr1", "proptest", "every_seed", "certificate"];

/// Why this machine cannot, if it cannot.
#[must_use]
pub fn why_not() -> Option<String> {
    let version = Cmd::new("cargo").args(["+nightly", "miri", "--version"]).run();
    version.is_err().then(|| "Miri is not installed: rustup toolchain install nightly --component miri,rust-src".into())
}

/// Runs the tests.
///
/// # Errors
/// When Miri is missing, or finds something.
pub fn run() -> anyhow::Result<()> {
    if let Some(reason) = why_not() {
        bail!("{reason}");
    }
    let cmd = Cmd::new("cargo").dir(workspace::root()).args(["+nightly", "miri", "test", "-p", "portcullis", "--lib"]);
    let cmd = cmd.args(["--no-default-features", "--locked", "--"]);
    let cmd = cmd.args(TOO_SLOW.iter().flat_map(|name| ["--skip", name]));
    let cmd = cmd.env("CARGO_TARGET_DIR", workspace::target().join("miri")).env("PROPTEST_CASES", "4");
    // Tests read files of the work tree and the clock.
    let cmd = cmd.env("MIRIFLAGS", "-Zmiri-disable-isolation");
    cmd.log(workspace::log("miri")?).step("The core under Miri")?;
    Ok(())
}
