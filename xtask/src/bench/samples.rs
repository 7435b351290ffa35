//! Where a proxy's processor time goes: what `perf record` sees of it.
//!
//! These machines show no counters of the processor, so the samples are those of a timer (`cpu-clock`). Each stands for
//! the same time, and what is compared was sampled in the same way in the same run.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::lab::cmd::{Cmd, which};
use crate::lab::process::{Service, scratch};

/// Samples in a second of processor time; no round number, so that nothing that happens every millisecond is always seen.
const RATE: f64 = 4999.0;

/// How long perf has to write down what it saw.
const FAREWELL: Duration = Duration::from_secs(20);

/// From when perf has its file to when it surely counts.
const SETTLING: Duration = Duration::from_millis(200);

/// The kernel's functions that copy bytes out of it and into it.
const OUT: &str = "_copy_to_iter";
const INTO: &str = "_copy_from_iter";

/// Processor time by where it went, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Spent {
    /// Copying bytes out of the kernel.
    pub(super) out: f64,
    /// Copying bytes into the kernel.
    pub(super) into: f64,
    /// Everything else in the kernel.
    pub(super) kernel: f64,
    /// Encrypting with AES-GCM outside of the kernel; 0 where the program's functions have no names.
    pub(super) sealing: f64,
    /// Everything else outside of the kernel.
    pub(super) user: f64,
}

impl Spent {
    pub(super) fn all(&self) -> f64 {
        self.out + self.into + self.kernel + self.sealing + self.user
    }

    pub(super) fn copies(&self) -> f64 {
        self.out + self.into
    }

    pub(super) fn mean(all: &[Self]) -> Self {
        let of = |part: fn(&Self) -> f64| all.iter().map(part).sum::<f64>() / all.len() as f64;
        Self {
            out: of(|one| one.out),
            into: of(|one| one.into),
            kernel: of(|one| one.kernel),
            sealing: of(|one| one.sealing),
            user: of(|one| one.user),
        }
    }
}

/// Why nothing can be sampled here.
pub(super) fn why_not() -> Option<String> {
    if which("perf").is_none() {
        return Some("perf is not installed (Debian: linux-perf)".to_owned());
    }
    match during(&[std::process::id()], || Ok(())) {
        Ok(_) => None,
        Err(error) => Some(format!("{error:#}")),
    }
}

/// What the processes `pids` spend their time on while `act` runs.
pub(super) fn during(pids: &[u32], act: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Spent> {
    let dir = scratch("samples")?;
    let file = dir.path().join("perf.data");
    let list = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let cmd = Cmd::new("perf").args(["record", "--event", "cpu-clock", "--freq", &RATE.to_string()]);
    let mut perf = Service::start("perf", cmd.args(["--pid", &list, "--output"]).arg(&file), dir.path())?;
    perf.wait_until("recording", || fs::metadata(&file).is_ok_and(|file| file.len() > 0))?;
    thread::sleep(SETTLING);
    act()?;
    if let Some(status) = perf.exited() {
        bail!("perf ended too early ({status}): {}", perf.log());
    }
    perf.stop(FAREWELL)?;
    let script =
        Cmd::new("perf").args(["script", "--show-lost-events", "--fields", "ip,sym,dso", "--input"]).arg(&file);
    let output = script.output()?.ok().context("perf cannot read what it has recorded")?;
    let text = output.text();
    ensure!(
        !text.contains("PERF_RECORD_LOST"),
        "perf could not keep up and lost samples: run this on a quieter machine"
    );
    Ok(sorted(&text))
}

/// Lines of "ffffffff81e4a0d4 _copy_to_iter ([kernel.kallsyms])".
fn sorted(script: &str) -> Spent {
    let mut spent = Spent::default();
    for line in script.lines().filter(|line| !line.trim().is_empty()) {
        let function = line.split_whitespace().nth(1).unwrap_or_default();
        let kernel = line.contains("([kernel") || line.trim_end().ends_with(".ko)");
        let place = match kernel {
            true if function == OUT => &mut spent.out,
            true if function == INTO => &mut spent.into,
            true => &mut spent.kernel,
            false if function.contains("gcm") => &mut spent.sealing,
            false => &mut spent.user,
        };
        *place += 1.0 / RATE;
    }
    spent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_go_where_their_function_belongs() {
        let script = "\
            ffffffff81e4a0d4 _copy_to_iter ([kernel.kallsyms])\n\
            ffffffff81e4a0d4 _copy_to_iter ([kernel.kallsyms])\n\
            ffffffff81e4b922 _copy_from_iter ([kernel.kallsyms])\n\
            ffffffff8203dc57 tcp_ack ([kernel.kallsyms])\n\
            ffffffffc0000010 nf_hook ([nf_tables].ko)\n\
            \n\
              5d0e00 aws_lc_0_47_0_aes_gcm_encrypt_avx512 (/tmp/relay)\n\
              20a18c [unknown] (/tmp/portcullis)\n";
        let spent = sorted(script);
        let counts = [spent.out, spent.into, spent.kernel, spent.sealing, spent.user].map(|time| (time * RATE).round());
        assert_eq!(counts, [2.0, 1.0, 2.0, 1.0, 1.0]);
        assert!((spent.all() * RATE - 7.0).abs() < 1e-6);
    }
}
