//! Interleaved rounds: everybody once in each, beginning with another one each time and every other time backwards, so that
//! nobody always runs on a cold or a hot machine, or always after the same other one.

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
        for index in order(names.len(), round) {
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

/// Who comes after whom in a round of so many.
fn order(many: usize, round: usize) -> Vec<usize> {
    let step = |turn: usize| if round.is_multiple_of(2) { turn } else { many - turn };
    (0..many).map(|turn| (round + step(turn)) % many).collect()
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn everybody_is_in_each_round_and_each_has_changing_neighbours() {
        let rounds: Vec<Vec<usize>> = (0..4).map(|round| order(5, round)).collect();
        for round in &rounds {
            let mut sorted = round.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4], "{round:?}");
        }
        let firsts: HashSet<usize> = rounds.iter().map(|round| round[0]).collect();
        assert_eq!(firsts.len(), 4, "{rounds:?}");
        for one in 0..5 {
            let before = |round: &Vec<usize>| {
                let place = round.iter().position(|other| *other == one).unwrap();
                place.checked_sub(1).map(|place| round[place])
            };
            let before: HashSet<usize> = rounds.iter().filter_map(before).collect();
            assert!(before.len() > 1, "{one} always comes after the same one in {rounds:?}");
        }
    }

    #[test]
    fn a_field_of_one_or_none() {
        assert_eq!(order(1, 3), [0]);
        assert!(order(0, 1).is_empty());
    }
}
