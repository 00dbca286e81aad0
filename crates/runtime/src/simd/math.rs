//! Elementary functions on vectors, within 2 units in the last place (f32) on the stated range.
//!
//! Polynomials after range reduction (Cody-Waite); no tables, so that they stay in registers. The
//! scalar twins at the end run the same polynomials, for the tails of loops.

use super::Simd;
use std::f32::consts::{LN_2, LOG2_E};

/// ln 2 split in two: the high part times any exponent is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `2^n` for integer-valued `n` in -126..=127.
#[inline(always)]
fn pow2_integer<S: Simd>(s: S, n: S::F) -> S::F {
    s.from_bits(s.shl_i::<23>(s.add_i(s.to_i(n), s.splat_i(127))))
}

/// e^x. Below -87.3 the result is 0 (no denormals), above 88.7 it is infinite; NaN stays NaN.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let clamped = s.min(s.splat(88.722_84), s.max(s.splat(-87.336_55), x));
    let n = s.round(s.mul(clamped, s.splat(LOG2_E)));
    let r = s.fma(n, s.splat(-LN2_HIGH), clamped);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.add(s.fma(s.mul(p, r), r, r), s.splat(1.0));
    // n may be 128 at the upper end: two half steps stay finite in between.
    let lower = s.round(s.mul(n, s.splat(0.5)));
    let scaled = s.mul(s.mul(p, pow2_integer(s, lower)), pow2_integer(s, s.sub(n, lower)));
    let under = s.select(s.lt(x, s.splat(-87.336_55)), s.zero(), scaled);
    s.select(s.lt(s.splat(88.722_84), x), s.splat(f32::INFINITY), under)
}

/// e^x for x <= 0 or NaN-free x below 88: the cheaper form that softmax and decay factors use.
///
/// Below -87.3 the result is 0; positive arguments up to 88 are fine.
#[inline(always)]
pub fn exp_negative<S: Simd>(s: S, x: S::F) -> S::F {
    let clamped = s.max(x, s.splat(-87.336_55));
    let n = s.round(s.mul(clamped, s.splat(LOG2_E)));
    let r = s.fma(n, s.splat(-LN2_HIGH), clamped);
    let r = s.fma(n, s.splat(-LN2_LOW), r);
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.add(s.fma(s.mul(p, r), r, r), s.splat(1.0));
    let value = s.mul(p, pow2_integer(s, n));
    s.select(s.lt(x, s.splat(-87.336_55)), s.zero(), value)
}

/// 2^x, the cheapest exponential: no product before the range reduction and no select after it. Below
/// -126 the result is 2^-126, as good as 0 for a factor; from 127.5 on it is infinite; NaN stays NaN; 2^0
/// is exactly 1.
#[inline(always)]
pub fn exp2<S: Simd>(s: S, x: S::F) -> S::F {
    // The order of the arguments keeps NaN.
    let clamped = s.min(s.splat(128.0), s.max(s.splat(-126.0), x));
    let n = s.round(clamped);
    let r = s.sub(clamped, n);
    // Least relative error on [-1/2, 1/2] with a constant term of 1: 2e-9.
    let mut p = s.splat(1.535_336_2e-4);
    for c in [1.339_887_4e-3, 9.618_437e-3, 5.550_332_4e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    s.mul(p, pow2_integer(s, n))
}

/// ln x for positive normal x; -inf at 0, NaN below, +inf stays.
#[inline(always)]
pub fn ln<S: Simd>(s: S, x: S::F) -> S::F {
    // x = m * 2^e with m in [sqrt(1/2), sqrt(2)).
    let bits = s.bits(x);
    let offset = s.add_i(bits, s.splat_i(0x3f80_0000 - 0x3f35_04f3));
    let e = s.from_i(s.add_i(s.shr_i::<23>(offset), s.splat_i(-127)));
    let m_bits = s.add_i(s.and_i(offset, s.splat_i(0x007f_ffff)), s.splat_i(0x3f35_04f3));
    let f = s.sub(s.from_bits(m_bits), s.splat(1.0));
    let f2 = s.mul(f, f);
    let mut p = s.splat(7.037_683_6e-2);
    for c in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_7e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        p = s.fma(p, f, s.splat(c));
    }
    let mut y = s.mul(s.mul(p, f), f2);
    y = s.fma(e, s.splat(LN2_LOW), y);
    y = s.fma(f2, s.splat(-0.5), y);
    let result = s.fma(e, s.splat(LN2_HIGH), s.add(f, y));
    let zero_or_less = s.lt(x, s.splat(f32::MIN_POSITIVE));
    let at_zero = s.select(s.lt(x, s.zero()), s.splat(f32::NAN), s.splat(f32::NEG_INFINITY));
    let result = s.select(zero_or_less, at_zero, result);
    s.select(s.lt(s.splat(f32::MAX), x), s.splat(f32::INFINITY), result)
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.zero(), x))))
}

/// Hyperbolic tangent: an odd polynomial near zero, 1 - 2 / (e^2x + 1) elsewhere.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let x2 = s.mul(x, x);
    let mut p = s.splat(-5.704_988e-3);
    for c in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = s.fma(p, x2, s.splat(c));
    }
    let small = s.fma(s.mul(p, x2), x, x);
    let doubled = exp(s, s.add(x, x));
    let large = s.sub(one, s.div(s.splat(2.0), s.add(doubled, one)));
    s.select(s.lt(s.abs(x), s.splat(0.625)), small, large)
}

/// ln(1 + e^x), exact to rounding for very negative x; x itself above 20.
#[inline(always)]
pub fn softplus<S: Simd>(s: S, x: S::F) -> S::F {
    // ln(1 + t) with the rounding error of 1 + t divided out (Kahan).
    let one = s.splat(1.0);
    let t = exp(s, s.min(x, s.splat(20.0)));
    let u = s.add(one, t);
    let exact = s.sub(u, one);
    let ratio = s.div(t, exact);
    let log = s.mul(ln(s, u), ratio);
    let tiny = s.lt(u, s.splat(1.000_000_1));
    let log = s.select(tiny, t, log);
    s.select(s.lt(s.splat(20.0), x), x, log)
}

/// The error function, within 5e-7 absolutely (Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    let a = s.abs(x);
    let one = s.splat(1.0);
    // erf(a) = 1 - (a1 t + ... + a5 t^5) e^(-a^2) with t = 1 / (1 + 0.3275911 a).
    let t = s.div(one, s.fma(s.splat(0.327_591_1), a, one));
    let mut p = s.splat(1.061_405_4);
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = s.fma(p, t, s.splat(c));
    }
    let tail = exp_negative(s, s.sub(s.zero(), s.mul(a, a)));
    let far = s.sub(one, s.mul(s.mul(p, t), tail));
    // Near zero the difference above cancels; the Taylor series has converged to 2e-8 at 0.5.
    let x2 = s.mul(a, a);
    let mut q = s.splat(-1.0 / 1320.0);
    for c in [1.0 / 216.0, -1.0 / 42.0, 0.1, -1.0 / 3.0] {
        q = s.fma(q, x2, s.splat(c));
    }
    let series = s.fma(s.mul(q, x2), a, a);
    let near = s.mul(s.splat(std::f32::consts::FRAC_2_SQRT_PI), series);
    let value = s.select(s.lt(a, s.splat(0.5)), near, far);
    s.select(s.lt(x, s.zero()), s.sub(s.zero(), value), value)
}

/// Scalar e^x by the same polynomial as [`exp_negative`].
#[inline(always)]
pub fn exp_scalar(x: f32) -> f32 {
    if x < -87.336_55 {
        return 0.0;
    }
    if x > 88.722_84 {
        return f32::INFINITY;
    }
    let n = (x * LOG2_E).round_ties_even();
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, c);
    }
    let lower = (n * 0.5).round_ties_even();
    let pow2 = |n: f32| f32::from_bits(((n as i32 + 127) << 23) as u32);
    ((p * r).mul_add(r, r) + 1.0) * pow2(lower) * pow2(n - lower)
}

// The split constants must add up to ln 2.
const _: () = assert!((LN2_HIGH + LN2_LOW - LN_2).abs() < 1e-7);
