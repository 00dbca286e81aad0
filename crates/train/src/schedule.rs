//! Learning-rate schedules as pure functions of the step.
//!
//! A schedule is a factor in `[0, 1]` that multiplies the optimiser's base rate. With `w` warm-up
//! steps, `n` steps in all, `f` the final factor and `x = (step - w) / (n - w)` cut to `[0, 1]`:
//!
//! ```text
//! warm-up    (step + 1) / w                           while step < w
//! constant   1
//! cosine     f + (1 - f) (1 + cos(pi x)) / 2          Loshchilov and Hutter, 2017
//! linear     1 - (1 - f) x
//! wsd        1 until the last d n steps, then linear  Hu et al. (MiniCPM), 2024
//!            from 1 to f
//! ```
//!
//! A run that is limited by time does not know `n`; it passes the number of steps it expects from its
//! speed so far, which is why `n` is a real number.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// The form of the decay after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// No decay.
    Constant,
    /// Half a cosine wave.
    Cosine,
    /// A straight line.
    Linear,
    /// Warm-up, stable, decay: constant, then a straight line at the end.
    Wsd,
}

impl Shape {
    const ALL: [Self; 4] = [Self::Constant, Self::Cosine, Self::Linear, Self::Wsd];

    fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Cosine => "cosine",
            Self::Linear => "linear",
            Self::Wsd => "wsd",
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Shape {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|shape| shape.name() == name)
            .ok_or_else(|| Error::config("schedule", name, Self::ALL.map(Self::name).join(", ")))
    }
}

/// A schedule; see the module for the formulas.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Form of the decay.
    pub shape: Shape,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Factor at the end of the decay.
    pub final_factor: f64,
    /// Part of the run that `wsd` decays over.
    pub decay_fraction: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { shape: Shape::Cosine, warmup_steps: 20, final_factor: 0.1, decay_fraction: 0.2 }
    }
}

impl Schedule {
    /// Refuses values that have no meaning.
    ///
    /// # Errors
    /// A factor or fraction outside of `[0, 1]`.
    pub fn validate(&self) -> Result<()> {
        let fractions = [
            ("schedule.final_factor", self.final_factor),
            ("schedule.decay_fraction", self.decay_fraction),
        ];
        for (field, value) in fractions {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::config(field, value, "a number from 0 to 1"));
            }
        }
        Ok(())
    }

    /// The factor for the update that ends step `step` (counted from 0) of `total` steps.
    pub fn factor(&self, step: u64, total: f64) -> f64 {
        if step < self.warmup_steps {
            return (step + 1) as f64 / self.warmup_steps as f64;
        }
        let warmup = self.warmup_steps as f64;
        let done = fraction(step as f64 - warmup, total - warmup);
        match self.shape {
            Shape::Constant => 1.0,
            Shape::Cosine => {
                let wave = (1.0 + (std::f64::consts::PI * done).cos()) / 2.0;
                self.final_factor + (1.0 - self.final_factor) * wave
            }
            Shape::Linear => 1.0 - (1.0 - self.final_factor) * done,
            Shape::Wsd => {
                let decay_steps = self.decay_fraction * total;
                let decayed = fraction(step as f64 - (total - decay_steps), decay_steps);
                1.0 - (1.0 - self.final_factor) * decayed
            }
        }
    }
}

/// `part / whole` cut to `[0, 1]`; an empty or unknown whole counts as not begun.
fn fraction(part: f64, whole: f64) -> f64 {
    if whole > 0.0 && part > 0.0 { (part / whole).min(1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(shape: Shape) -> Schedule {
        Schedule { shape, warmup_steps: 10, final_factor: 0.1, decay_fraction: 0.25 }
    }

    /// Factors at (step, expected) of a run of 110 steps; exact to the rounding of f64.
    fn check(shape: Shape, expected: &[(u64, f64)]) {
        for &(step, value) in expected {
            let found = schedule(shape).factor(step, 110.0);
            assert!((found - value).abs() < 1e-12, "{shape:?} at {step}: {found}, not {value}");
        }
    }

    #[test]
    fn formulas() {
        for shape in [Shape::Constant, Shape::Cosine, Shape::Linear, Shape::Wsd] {
            check(shape, &[(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0)]);
        }
        check(Shape::Constant, &[(60, 1.0), (200, 1.0)]);
        // cos(pi / 4) = sqrt(1/2).
        let quarter = 0.1 + 0.9 * (1.0 + 0.5f64.sqrt()) / 2.0;
        check(Shape::Cosine, &[(35, quarter), (60, 0.55), (110, 0.1), (500, 0.1)]);
        check(Shape::Linear, &[(35, 0.775), (60, 0.55), (110, 0.1), (500, 0.1)]);
        // The decay begins at 82.5 and is half done at 96.25.
        check(Shape::Wsd, &[(82, 1.0), (110, 0.1), (500, 0.1)]);
        check(Shape::Wsd, &[(96, 1.0 - 0.9 * 13.5 / 27.5)]);
    }

    #[test]
    fn odd_runs_stay_in_range() {
        for shape in [Shape::Constant, Shape::Cosine, Shape::Linear, Shape::Wsd] {
            for (step, total) in [(0, 0.0), (10, 5.0), (11, f64::INFINITY), (12, 12.0)] {
                let factor = schedule(shape).factor(step, total);
                assert!((0.0..=1.0).contains(&factor), "{shape:?} {step} {total}: {factor}");
            }
        }
        assert_eq!("wsd".parse::<Shape>().unwrap(), Shape::Wsd);
        assert!("wave".parse::<Shape>().unwrap_err().to_string().contains("cosine, linear"));
        let bad = Schedule { final_factor: 1.5, ..Schedule::default() };
        assert!(bad.validate().unwrap_err().to_string().contains("schedule.final_factor is 1.5"));
    }
}
