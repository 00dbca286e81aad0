//! Medians of variants that take turns.

use std::time::{Duration, Instant};

/// Times of one variant over all turns.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Adds a run.
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    fn sorted(&self) -> Vec<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort();
        sorted
    }

    /// The middle one (zero before the first run).
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

    /// Number of runs that count.
    pub fn runs(&self) -> usize {
        self.0.len()
    }
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Turns of every variant at least.
    pub min_turns: usize,
    /// Turns at most.
    pub max_turns: usize,
    /// Stop after this time once `min_turns` are done.
    pub time: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { min_turns: 5, max_turns: 200, time: Duration::from_secs(6) }
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

/// A turn: a variant runs until its times add up to this.
const TURN: Duration = Duration::from_millis(60);

/// Shorter runs within this time of a turn's start only warm up: they find caches, clocks and worker
/// threads as the other variant left them, which no user of one library does.
const WARM_UP: Duration = Duration::from_millis(20);

fn turn(variant: &mut Variant, times: &mut Times) -> crate::Result<()> {
    let mut elapsed = Duration::ZERO;
    while elapsed < TURN {
        let time = variant()?;
        if elapsed >= WARM_UP || time >= WARM_UP {
            times.push(time);
        }
        elapsed += time.max(Duration::from_micros(1));
    }
    Ok(())
}

/// Runs all variants once to warm up, then gives them turns until the budget is spent.
///
/// # Errors
/// The first error of a variant.
pub fn interleave(variants: &mut [&mut Variant], budget: Budget) -> crate::Result<Vec<Times>> {
    for variant in variants.iter_mut() {
        variant()?;
    }
    let mut times = vec![Times::default(); variants.len()];
    let start = Instant::now();
    for round in 0..budget.max_turns {
        if round >= budget.min_turns && start.elapsed() > budget.time {
            break;
        }
        for (variant, times) in variants.iter_mut().zip(&mut times) {
            turn(variant, times)?;
        }
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(turns: usize) -> Budget {
        Budget { min_turns: turns, max_turns: turns, time: Duration::ZERO }
    }

    #[test]
    fn variants_take_turns_and_the_median_ignores_outliers() {
        let order = std::cell::RefCell::new(Vec::new());
        let mut times = [100u64, 100, 900, 102, 103, 104].into_iter();
        let mut a = || {
            order.borrow_mut().push('a');
            Ok(Duration::from_millis(times.next().unwrap()))
        };
        let mut b = || {
            order.borrow_mut().push('b');
            Ok(Duration::from_millis(60))
        };
        let result = interleave(&mut [&mut a, &mut b], budget(5)).unwrap();
        assert_eq!(result[0].median(), Duration::from_millis(103));
        assert_eq!(result[0].range().1, Duration::from_millis(900));
        assert_eq!(order.borrow().iter().collect::<String>(), "ab".repeat(6));
    }

    #[test]
    fn short_runs_warm_up_at_the_start_of_every_turn() {
        let mut count = 0;
        let mut a = || {
            count += 1;
            Ok(Duration::from_millis(10))
        };
        let result = interleave(&mut [&mut a], budget(3)).unwrap();
        assert_eq!(result[0].runs(), 3 * 4, "two of the six runs of a turn warm up");
        assert_eq!(count, 1 + 3 * 6);
    }
}
