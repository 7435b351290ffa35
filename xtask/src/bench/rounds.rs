//! Interleaved rounds: everybody once in each, beginning with another one each time, so that nobody always runs on a
//! cold or a hot machine.

use std::io::{IsTerminal as _, stdout};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use super::Args;
use super::machine::Noise;
use crate::lab::interrupt;
use crate::lab::ui::say;

/// Runs `act(index)` for each of `names`, in `args.rounds` rounds after one that warms up and does not count. The
/// samples come back by index; the text is for whoever watches.
pub(super) fn interleave<S>(
    args: &Args,
    noise: &mut Noise,
    title: &str,
    names: &[&str],
    mut act: impl FnMut(usize) -> anyhow::Result<(S, String)>,
) -> anyhow::Result<Vec<Vec<S>>> {
    let mut samples: Vec<Vec<S>> = names.iter().map(|_| Vec::new()).collect();
    let progress = Progress::begin(title, (args.rounds + 1) * names.len());
    for round in 0..=args.rounds {
        noise.listen();
        for turn in 0..names.len() {
            let index = (turn + round) % names.len();
            interrupt::check()?;
            let label = if round == 0 { "warm-up".to_owned() } else { format!("{round}/{}", args.rounds) };
            progress.at(&format!("{label} {}", names[index]));
            let (sample, shown) = act(index)?;
            if round > 0 {
                samples[index].push(sample);
            }
            progress.passed(&format!("{title}, {label}, {}: {shown}", names[index]));
        }
    }
    progress.end(title);
    Ok(samples)
}

/// A bar on a terminal, a line for each measurement elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    begun: Instant,
}

impl Progress {
    fn begin(title: &str, steps: usize) -> Self {
        let bar = stdout().is_terminal().then(|| {
            let bar = ProgressBar::new(steps as u64);
            let template = "{prefix} [{bar:30}] {pos}/{len} {msg} {elapsed:.dim}, {eta:.dim} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(title.to_owned());
            bar
        });
        Self { bar, begun: Instant::now() }
    }

    fn at(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }

    fn passed(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.inc(1),
            None => say(format!("  {what}")),
        }
    }

    fn end(&self, title: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        say(format!("✓ {title} ({:.0} s)", self.begun.elapsed().as_secs_f64()));
    }
}
