//! Sums of exponentials over a vocabulary, in f64.
//!
//! A step takes them over tens of thousands of logits for every text, which the standard library's
//! function does one at a time. Here the loop is plain arithmetic on bits that the compiler turns into
//! vectors of the processor's width:
//!
//! ```text
//! e^x = 2^n e^r,   n = round(x / ln 2),   r = x - n ln 2 in two parts,   e^r by its series to r^13
//! ```
//!
//! within 2 units in the last place of the exact value for x <= 0; below -708 the result is 0.

use danaus_runtime::simd::{Kernel, Simd, dispatch};

/// Independent partial sums: enough for the widest vectors, and always as many, so that the order of
/// the additions does not depend on the processor.
const LANES: usize = 16;

/// `sum of e^(value - top)`; NaN where a value is. `top` is the largest.
pub(super) fn sum_of_exponentials(values: &[f64], top: f64) -> f64 {
    dispatch(Sum { values, top })
}

/// Replaces every value by `e^(value - top)` and returns the sum.
pub(super) fn exponentials(values: &mut [f64], top: f64) -> f64 {
    dispatch(Replace { values, top })
}

struct Sum<'a> {
    values: &'a [f64],
    top: f64,
}

impl Kernel for Sum<'_> {
    type Out = f64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f64 {
        let mut sums = [0.0; LANES];
        let parts = self.values.chunks_exact(LANES);
        let rest = parts.remainder();
        for part in parts {
            for (sum, value) in sums.iter_mut().zip(part) {
                *sum += exp(value - self.top);
            }
        }
        for (sum, value) in sums.iter_mut().zip(rest) {
            *sum += exp(value - self.top);
        }
        sums.iter().sum()
    }
}

struct Replace<'a> {
    values: &'a mut [f64],
    top: f64,
}

impl Kernel for Replace<'_> {
    type Out = f64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f64 {
        let mut sums = [0.0; LANES];
        for part in self.values.chunks_mut(LANES) {
            for (sum, value) in sums.iter_mut().zip(part) {
                *value = exp(*value - self.top);
                *sum += *value;
            }
        }
        sums.iter().sum()
    }
}

/// `e^x` for x <= 0.
#[inline(always)]
fn exp(x: f64) -> f64 {
    /// Adding it rounds to an integer, which then stands in the low bits.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let shifted = x * std::f64::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut series = 1.0;
    // 1 + r (1 + r/2 (1 + r/3 (...))).
    for k in (1..=13).rev() {
        series = 1.0 + r * (1.0 / k as f64) * series;
    }
    let value = f64::from_bits(series.to_bits().wrapping_add(shifted.to_bits() << 52));
    match x < -708.0 {
        true => 0.0,
        false => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_to_the_standard_library() {
        for step in 0..200_000 {
            let x = -f64::from(step) * 0.003_54;
            let (found, expected) = (exp(x), x.exp());
            // Two units in the last place.
            assert!((found - expected).abs() <= 2.0 * f64::EPSILON * expected, "{x}");
        }
        assert_eq!((exp(0.0), exp(-800.0), exp(f64::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn sums_of_every_length() {
        for count in [0, 1, 15, 16, 17, 100] {
            let mut values: Vec<f64> = (0..count).map(|i| f64::from(i * 37 % 11) - 20.0).collect();
            let exact: f64 = values.iter().map(|value| (value + 10.0).exp()).sum();
            let sum = sum_of_exponentials(&values, -10.0);
            assert!((sum - exact).abs() <= 1e-14 * exact, "{count}");
            let each: Vec<f64> = values.iter().map(|value| (value + 10.0).exp()).collect();
            assert_eq!(exponentials(&mut values, -10.0), sum);
            assert!(values.iter().zip(each).all(|(a, b)| (a - b).abs() <= 1e-15 * b.max(1e-300)));
        }
    }
}
