//! Sums of exponentials over a vocabulary, in f64.
//!
//! A step takes them over tens of thousands of logits for every text, which the standard library's
//! function does one at a time. Here the loop is plain arithmetic on bits that the compiler turns into
//! vectors of the processor's width:
//!
//! ```text
//! e^x = 2^n e^r,   n = round(x / ln 2),   r = x - n ln 2 in two parts,   e^r = sum of r^k / k!, k <= 13
//! ```
//!
//! within 4 units in the last place of the exact value for x <= 0; below -708 the result is 0.

use danaus_runtime::simd::{Kernel, Simd, dispatch};

/// Values at a time: enough for the widest vectors, and always as many, so that the order of the
/// additions does not depend on the processor.
const LANES: usize = 16;

/// `sum of e^(value - top)`; NaN where a value is. `top` is the largest.
pub(super) fn sum_of_exponentials(values: &[f64], top: f64) -> f64 {
    dispatch(Sum { values, top })
}

/// Replaces every value by `e^(value - top)` and returns the sum.
pub(super) fn exponentials(values: &mut [f64], top: f64) -> f64 {
    dispatch(Replace { values, top })
}

/// The largest value, -inf of none; a NaN is passed over.
pub(super) fn largest(values: &[f64]) -> f64 {
    dispatch(Largest { values })
}

struct Largest<'a> {
    values: &'a [f64],
}

impl Kernel for Largest<'_> {
    type Out = f64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f64 {
        let above = |top: f64, value: f64| if value > top { value } else { top };
        let mut tops = [f64::NEG_INFINITY; LANES];
        let (parts, rest) = self.values.as_chunks::<LANES>();
        for part in parts {
            for lane in 0..LANES {
                tops[lane] = above(tops[lane], part[lane]);
            }
        }
        tops.into_iter().chain(rest.iter().copied()).fold(f64::NEG_INFINITY, above)
    }
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
        let (parts, rest) = self.values.as_chunks::<LANES>();
        for part in parts {
            add(&mut sums, &exp(part, self.top));
        }
        add(&mut sums, &exp(&padded(rest), self.top));
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
        let (parts, rest) = self.values.as_chunks_mut::<LANES>();
        for part in parts {
            *part = exp(part, self.top);
            add(&mut sums, part);
        }
        let last = exp(&padded(rest), self.top);
        add(&mut sums, &last);
        rest.iter_mut().zip(last).for_each(|(to, value)| *to = value);
        sums.iter().sum()
    }
}

/// The rest of a list, filled up with values whose exponential is 0.
#[inline(always)]
fn padded(rest: &[f64]) -> [f64; LANES] {
    let mut lanes = [f64::NEG_INFINITY; LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

#[inline(always)]
fn add(sums: &mut [f64; LANES], values: &[f64; LANES]) {
    for lane in 0..LANES {
        sums[lane] += values[lane];
    }
}

/// 1/13! .. 1/0!
const SERIES: [f64; 14] = {
    let mut series = [1.0; 14];
    let mut k = 13;
    // series[13 - k] = 1 / k!, made from 1/0! on.
    let mut factorial = [1.0f64; 14];
    let mut n = 1;
    while n < 14 {
        factorial[n] = factorial[n - 1] * n as f64;
        n += 1;
    }
    while k > 0 {
        series[13 - k] = 1.0 / factorial[k];
        k -= 1;
    }
    series
};

/// `e^(value - top)`, one small loop a step of the formula: each becomes a few vector instructions.
#[inline(always)]
fn exp(values: &[f64; LANES], top: f64) -> [f64; LANES] {
    /// Adding it rounds to an integer, which then stands in the low bits.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let (mut x, mut shifted, mut r) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    let mut series = [SERIES[0]; LANES];
    for lane in 0..LANES {
        x[lane] = values[lane] - top;
        shifted[lane] = x[lane] * std::f64::consts::LOG2_E + SHIFT;
        let n = shifted[lane] - SHIFT;
        r[lane] = (x[lane] - n * LN_2_HIGH) - n * LN_2_LOW;
    }
    for coefficient in &SERIES[1..] {
        for lane in 0..LANES {
            series[lane] = series[lane] * r[lane] + coefficient;
        }
    }
    for lane in 0..LANES {
        let scaled = series[lane].to_bits().wrapping_add(shifted[lane].to_bits() << 52);
        series[lane] = if x[lane] < -708.0 { 0.0 } else { f64::from_bits(scaled) };
    }
    series
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(x: f64) -> f64 {
        exp(&[x; LANES], 0.0)[LANES - 1]
    }

    #[test]
    fn close_to_the_standard_library() {
        for step in 0..200_000 {
            let x = -f64::from(step) * 0.003_54;
            let (found, expected) = (one(x), x.exp());
            assert!((found - expected).abs() <= 4.0 * f64::EPSILON * expected, "{x}");
        }
        assert_eq!((one(0.0), one(-800.0), one(f64::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(one(f64::NAN).is_nan());
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
            assert!(values.iter().zip(each).all(|(a, b)| (a - b).abs() <= 1e-15 * b));
        }
    }
}
