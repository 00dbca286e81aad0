//! Interleaved medians.

use std::time::{Duration, Instant};

/// Times of one variant over all rounds.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Adds a round.
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    fn sorted(&self) -> Vec<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort();
        sorted
    }

    /// The middle one (zero before the first round).
    pub fn median(&self) -> Duration {
        let sorted = self.sorted();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    /// Smallest and largest.
    pub fn range(&self) -> (Duration, Duration) {
        let sorted = self.sorted();
        let first = sorted.first().copied().unwrap_or_default();
        (first, sorted.last().copied().unwrap_or_default())
    }

    /// Number of rounds.
    pub fn rounds(&self) -> usize {
        self.0.len()
    }
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Rounds at least.
    pub min_rounds: usize,
    /// Rounds at most.
    pub max_rounds: usize,
    /// Stop after this time once `min_rounds` are done.
    pub time: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { min_rounds: 5, max_rounds: 200, time: Duration::from_secs(6) }
    }
}

/// Something that runs once and says how long it took.
pub type Variant<'a> = dyn FnMut() -> crate::Result<Duration> + 'a;

/// Wraps a computation into a variant that times it here.
pub fn timed<'a, T>(
    mut work: impl FnMut() -> crate::Result<T> + 'a,
) -> impl FnMut() -> crate::Result<Duration> + 'a {
    move || {
        let start = Instant::now();
        let result = work()?;
        let time = start.elapsed();
        drop(result);
        Ok(time)
    }
}

/// Before every run, so that a peer's worker threads, which spin for a while after their last work,
/// do not take time from the next one.
const SETTLE: Duration = Duration::from_millis(10);

/// Runs all variants once to warm up, then in turn until the budget is spent.
///
/// # Errors
/// The first error of a variant.
pub fn interleave(variants: &mut [&mut Variant], budget: Budget) -> crate::Result<Vec<Times>> {
    let alone = variants.len() == 1;
    for variant in variants.iter_mut() {
        variant()?;
    }
    let mut times = vec![Times::default(); variants.len()];
    let start = Instant::now();
    for round in 0..budget.max_rounds {
        if round >= budget.min_rounds && start.elapsed() > budget.time {
            break;
        }
        for (variant, times) in variants.iter_mut().zip(&mut times) {
            if !alone {
                std::thread::sleep(SETTLE);
            }
            times.push(variant()?);
        }
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_take_turns_and_the_median_ignores_outliers() {
        let order = std::cell::RefCell::new(Vec::new());
        let times = [1u64, 900, 2, 3, 4, 5];
        let mut next = 0;
        let mut a = || {
            order.borrow_mut().push('a');
            next += 1;
            Ok(Duration::from_millis(times[next - 1]))
        };
        let mut b = || {
            order.borrow_mut().push('b');
            Ok(Duration::from_millis(1))
        };
        let budget = Budget { min_rounds: 5, max_rounds: 5, time: Duration::ZERO };
        let result = interleave(&mut [&mut a, &mut b], budget).unwrap();
        assert_eq!(result[0].median(), Duration::from_millis(4));
        assert_eq!(result[0].range().1, Duration::from_millis(900));
        assert_eq!(order.borrow().iter().collect::<String>(), "ab".repeat(6));
    }
}
