//! Many samples in a few figures.

/// The samples of one quantity.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    pub(super) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The middle one; of an even number, the mean of the two in the middle.
    pub(super) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match (sorted.len(), sorted.len() / 2) {
            (0, _) => f64::NAN,
            (len, middle) if len % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            (_, middle) => sorted[middle],
        }
    }

    pub(super) fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    pub(super) fn most(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// `median (least–most)`.
    pub(super) fn shown(&self, digits: usize) -> String {
        let [median, least, most] = [self.median(), self.least(), self.most()].map(|value| figure(value, digits));
        format!("{median} ({least}–{most})")
    }
}

/// A number, or a dash where there is none.
pub(super) fn figure(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "–".to_owned() }
}

/// Something that is to hold.
#[derive(Debug, Clone)]
pub(super) struct Goal {
    what: String,
    limit: f64,
    got: f64,
    at_least: bool,
    yardsticks: Vec<Yardstick>,
}

/// What something else took of the same in the same run. It explains a goal that is not met, and excuses nothing.
#[derive(Debug, Clone)]
struct Yardstick {
    value: f64,
    whose: String,
}

impl Goal {
    /// `got` may be `limit` at the most.
    pub(super) fn at_most(limit: f64, got: f64, what: impl Into<String>) -> Self {
        Self { what: what.into(), limit, got, at_least: false, yardsticks: Vec::new() }
    }

    /// `got` has to be `limit` at least.
    pub(super) fn at_least(limit: f64, got: f64, what: impl Into<String>) -> Self {
        Self { what: what.into(), limit, got, at_least: true, yardsticks: Vec::new() }
    }

    /// Adds what something else took in the same run, to be shown where the goal is not met.
    pub(super) fn beside(mut self, value: f64, whose: impl Into<String>) -> Self {
        self.yardsticks.push(Yardstick { value, whose: whose.into() });
        self
    }

    fn verdict(&self) -> String {
        match (self.got.is_finite(), self.at_least) {
            (false, _) => "not measured".to_owned(),
            (true, true) if self.got >= self.limit => "met".to_owned(),
            (true, false) if self.got <= self.limit => "met".to_owned(),
            (true, _) => {
                let takes = |one: &Yardstick| format!("; {} takes {}", one.whose, figure(one.value, self.digits()));
                let short =
                    if self.is_out_of_reach() { "**not met**, nor by what is beside it" } else { "**not met**" };
                [short.to_owned()].into_iter().chain(self.yardsticks.iter().map(takes)).collect()
            }
        }
    }

    /// Whether something is beside it, and none of that reaches it.
    fn is_out_of_reach(&self) -> bool {
        let misses = |one: &Yardstick| if self.at_least { one.value < self.limit } else { one.value > self.limit };
        !self.yardsticks.is_empty() && self.yardsticks.iter().all(misses)
    }

    /// The digits of its limit.
    fn usual_digits(&self) -> usize {
        match self.limit {
            ..0.1 => 3,
            ..10.0 => 2,
            _ => 0,
        }
    }

    /// One more where it would look like its limit.
    fn digits(&self) -> usize {
        let usual = self.usual_digits();
        usual + usize::from(self.got != self.limit && figure(self.got, usual) == figure(self.limit, usual))
    }

    /// Its line in a table.
    pub(super) fn row(&self) -> Vec<String> {
        let sign = if self.at_least { "≥" } else { "≤" };
        vec![
            self.what.clone(),
            format!("{sign} {}", figure(self.limit, self.usual_digits())),
            figure(self.got, self.digits()),
            self.verdict(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_few_samples() {
        let samples = |values: &[f64]| Samples(values.to_vec());
        assert!(samples(&[]).median().is_nan());
        assert_eq!(samples(&[3.0, 1.0, 2.0]).shown(1), "2.0 (1.0–3.0)");
        assert_eq!(samples(&[4.0, 1.0]).shown(1), "2.5 (1.0–4.0)");
    }

    #[test]
    fn a_goal_that_was_not_measured_is_not_met() {
        assert_eq!(Goal::at_most(1.0, f64::NAN, "x").row()[3], "not measured");
        assert_eq!(Goal::at_most(1.0, 1.1, "x").row()[3], "**not met**");
        let beside = |limit| Goal::at_most(limit, 1.2, "x").beside(1.1, "a bare relay").row()[3].clone();
        assert_eq!([beside(1.15).as_str(), beside(1.2).as_str()], ["**not met**; a bare relay takes 1.10", "met"]);
        assert_eq!(beside(1.0), "**not met**, nor by what is beside it; a bare relay takes 1.10");
        let unknown = Goal::at_most(1.0, 1.2, "x").beside(f64::NAN, "a bare relay").row()[3].clone();
        assert!(unknown.starts_with("**not met**; a bare relay takes"), "{unknown}");
        let close = Goal::at_most(0.75, 0.7538, "x").beside(0.7512, "the kernel").row();
        assert_eq!(close, ["x", "≤ 0.75", "0.754", "**not met**, nor by what is beside it; the kernel takes 0.751"]);
        assert_eq!(Goal::at_most(0.08, 0.0746, "x").row(), ["x", "≤ 0.080", "0.075", "met"]);
        assert_eq!(Goal::at_least(50.0, 51.0, "x").row(), ["x", "≥ 50", "51", "met"]);
    }
}
