//! Functions of f32 vectors that the runtime does not have, and the error function in f64.

use super::{Unary, evaluate};
use danaus_runtime::simd::{Simd, math};
use std::f32::consts::FRAC_1_SQRT_2;

/// A vector function, so that one loop serves all.
trait Function {
    fn call<S: Simd>(s: S, x: S::F) -> S::F;
}

macro_rules! functions {
    ($($name:ident: |$s:ident, $x:ident| $body:expr;)*) => { $(
        struct $name;
        impl Function for $name {
            #[inline(always)]
            fn call<S: Simd>($s: S, $x: S::F) -> S::F {
                $body
            }
        }
    )* };
}

functions! {
    Exp: |s, x| math::exp(s, x);
    Ln: |s, x| keep_nan(s, x, ln(s, x));
    Tanh: |s, x| math::tanh(s, x);
    Sigmoid: |s, x| math::sigmoid(s, x);
    Silu: |s, x| s.div(x, s.add(s.splat(1.0), math::exp(s, s.sub(s.zero(), x))));
    Gelu: |s, x| {
        let half = s.mul(s.splat(0.5), x);
        s.fma(half, math::erf(s, s.mul(x, s.splat(FRAC_1_SQRT_2))), half)
    };
    GeluTanh: |s, x| {
        let cubic = s.fma(s.mul(s.mul(x, x), s.splat(0.044_715)), x, x);
        // x (1 + tanh u) / 2 = x sigmoid(2u), which does not cancel for negative x.
        s.mul(x, math::sigmoid(s, s.mul(s.splat(1.595_769), cubic)))
    };
    Softplus: |s, x| keep_nan(s, x, math::softplus(s, x));
    Erf: |s, x| math::erf(s, x);
    Sin: |s, x| sine(s, x, 0);
    Cos: |s, x| sine(s, x, 1);
}

/// `y`, but NaN where `x` is NaN.
#[inline(always)]
fn keep_nan<S: Simd>(s: S, x: S::F, y: S::F) -> S::F {
    // max and min give their second argument for NaN, so only NaN ends up below.
    let low = s.max(x, s.splat(f32::NEG_INFINITY));
    let high = s.min(x, s.splat(f32::INFINITY));
    s.select(s.lt(low, high), x, y)
}

/// ln x, also of denormals.
#[inline(always)]
fn ln<S: Simd>(s: S, x: S::F) -> S::F {
    let tiny = s.lt(x, s.splat(f32::MIN_POSITIVE));
    let scaled = s.select(tiny, s.mul(x, s.splat(8_388_608.0)), x);
    let shift = s.select(tiny, s.splat(-15.942_385), s.zero());
    s.add(math::ln(s, scaled), shift)
}

/// Arguments up to this size are reduced with three parts of pi / 2 in f32.
const SINE_LIMIT: f32 = 8192.0;

/// sin(x + quarter_turns pi / 2) for |x| up to [`SINE_LIMIT`], to 2e-7 absolutely.
#[inline(always)]
fn sine<S: Simd>(s: S, x: S::F, quarter_turns: i32) -> S::F {
    let n = s.round(s.mul(x, s.splat(std::f32::consts::FRAC_2_PI)));
    // pi / 2 in three parts (Cody and Waite); the first two have few bits, so n times them is exact.
    let r = s.fma(n, s.splat(-1.570_312_5), x);
    let r = s.fma(n, s.splat(-4.837_513e-4), r);
    let r = s.fma(n, s.splat(-7.549_79e-8), r);
    let r2 = s.mul(r, r);
    let mut odd = s.splat(2.718_311_4e-6);
    for c in [-1.984_009e-4, 8.333_329e-3, -1.666_666_7e-1] {
        odd = s.fma(odd, r2, s.splat(c));
    }
    let odd = s.fma(s.mul(odd, r2), r, r);
    let mut even = s.splat(2.443_315_7e-5);
    for c in [-1.388_731_6e-3, 4.166_664_6e-2, -0.5] {
        even = s.fma(even, r2, s.splat(c));
    }
    let even = s.fma(even, r2, s.splat(1.0));
    let turns = s.add_i(s.to_i(n), s.splat_i(quarter_turns));
    let bit = |mask: i32| s.from_i(s.and_i(turns, s.splat_i(mask)));
    let value = s.select(s.lt(s.splat(0.5), bit(1)), even, odd);
    s.select(s.lt(s.splat(0.5), bit(2)), s.sub(s.zero(), value), value)
}

#[inline(always)]
fn map<S: Simd, F: Function>(s: S, _: F, x: &[f32], y: &mut [f32]) {
    let len = y.len().min(x.len());
    let whole = len - len % S::LANES;
    for start in (0..whole).step_by(S::LANES) {
        // SAFETY: one vector from `start` lies in both slices.
        unsafe {
            let value = F::call(s, s.load(x.as_ptr().add(start)));
            s.store(y.as_mut_ptr().add(start), value);
        }
    }
    if whole < len {
        let count = len - whole;
        // SAFETY: `count` elements from `whole` lie in both slices.
        unsafe {
            let value = F::call(s, s.load_partial(x.as_ptr().add(whole), count));
            s.store_partial(y.as_mut_ptr().add(whole), value, count);
        }
    }
}

/// `y = function(x)` for the functions that need vectors.
#[inline(always)]
pub(super) fn apply<S: Simd>(s: S, function: Unary, x: &[f32], y: &mut [f32]) {
    match function {
        Unary::Exp => map(s, Exp, x, y),
        Unary::Ln => map(s, Ln, x, y),
        Unary::Tanh => map(s, Tanh, x, y),
        Unary::Sigmoid => map(s, Sigmoid, x, y),
        Unary::Silu => map(s, Silu, x, y),
        Unary::Gelu => map(s, Gelu, x, y),
        Unary::GeluTanh => map(s, GeluTanh, x, y),
        Unary::Softplus => map(s, Softplus, x, y),
        Unary::Erf => map(s, Erf, x, y),
        Unary::Sin => trigonometric(s, Sin, function, x, y),
        Unary::Cos => trigonometric(s, Cos, function, x, y),
        _ => y.fill(f32::NAN),
    }
}

/// Vectors for moderate arguments; blocks with larger ones (or infinities) one by one in f64.
#[inline(always)]
fn trigonometric<S: Simd, F: Function>(s: S, f: F, function: Unary, x: &[f32], y: &mut [f32]) {
    if x.iter().all(|x| x.abs() <= SINE_LIMIT) {
        return map(s, f, x, y);
    }
    for (y, &x) in y.iter_mut().zip(x) {
        *y = evaluate::unary_scalar(function, f64::from(x)) as f32;
    }
}

/// 2 / sqrt(pi) e^(-a^2) sum of 2^n a^(2n+1) / (2n+1)!!: all terms positive, for 0 <= a < 2.5.
fn erf_series(a: f64) -> f64 {
    let (mut term, mut total, mut n) = (a, a, 1.0);
    while term > total * 1e-17 {
        term *= 2.0 * a * a / (2.0 * n + 1.0);
        total += term;
        n += 1.0;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp() * total
}

/// e^(-a^2) / sqrt(pi) / (a + (1/2) / (a + (2/2) / (a + ...))), inside out, for a >= 2.5.
fn erfc_fraction(a: f64) -> f64 {
    let mut fraction = a;
    for k in (1..=60).rev() {
        fraction = a + f64::from(k) * 0.5 / fraction;
    }
    (-a * a).exp() / std::f64::consts::PI.sqrt() / fraction
}

/// The error function in f64, to a few units in the last place.
pub(super) fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a < 2.5 {
        return erf_series(a).copysign(x);
    }
    if a.is_nan() { x } else { (1.0 - erfc_fraction(a)).copysign(x) }
}

/// The complementary error function in f64.
pub(super) fn erfc(x: f64) -> f64 {
    if x < 2.5 {
        1.0 - erf(x)
    } else if x.is_nan() {
        x
    } else {
        erfc_fraction(x)
    }
}
