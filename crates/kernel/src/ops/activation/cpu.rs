//! Vectorised activations for f32 and bf16, and the parallel f64 path.

use super::{Activation, reference};
use crate::vector::{self, Pointwise, Real, Rows, RowsMut, exp_keep_nan};
use danaus_runtime::simd::{Simd, math};
use std::f32::consts::{FRAC_2_SQRT_PI, SQRT_2};

/// An activation on vectors.
pub(crate) trait Curve: Copy + Send + Sync {
    /// The same function in the reference.
    const NAME: Activation;
    /// f(x).
    fn value<S: Simd>(s: S, x: S::F) -> S::F;
    /// f(x) and f'(x).
    fn value_and_slope<S: Simd>(s: S, x: S::F) -> (S::F, S::F);
}

/// The logistic function; 0 below -87, 1 for NaN (whose product with x is NaN again).
#[inline(always)]
fn logistic<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let decay = math::exp_negative(s, s.min(s.splat(87.0), s.sub(s.zero(), x)));
    s.div(one, s.add(one, decay))
}

/// `x * factor`, but 0 where x is below -87 and the factor with it.
#[inline(always)]
fn weighted<S: Simd>(s: S, x: S::F, factor: S::F) -> S::F {
    s.select(s.lt(x, s.splat(-87.0)), s.zero(), s.mul(x, factor))
}

#[derive(Clone, Copy)]
pub(crate) struct Gelu;

/// (Phi(x), e^(-x^2/2)).
///
/// With t = 1 / (1 + 0.35 |x|), Phi(-|x|) e^(x^2/2) / t is a polynomial of degree 8 in t, fitted for
/// the smallest relative error (3.2e-8 for |x| <= 14, where f32 has underflowed).
#[inline(always)]
fn normal<S: Simd>(s: S, x: S::F) -> (S::F, S::F) {
    let one = s.splat(1.0);
    let t = s.div(one, s.fma(s.splat(0.35), s.abs(x), one));
    let mut p = s.splat(-0.029_146_343);
    for c in [
        0.143_973_68,
        -0.255_718_3,
        0.159_178_69,
        -0.023_112_882,
        0.105_509_26,
        0.119_832_56,
        0.139_861_91,
        0.139_621_4,
    ] {
        p = s.fma(p, t, s.splat(c));
    }
    let bell = exp_keep_nan(s, s.mul(s.mul(x, x), s.splat(-0.5)));
    let below = s.mul(s.mul(p, t), bell);
    (s.select(s.lt(x, s.zero()), below, s.sub(one, below)), bell)
}

impl Curve for Gelu {
    const NAME: Activation = Activation::Gelu;
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::F) -> S::F {
        weighted(s, x, normal(s, x).0)
    }
    #[inline(always)]
    fn value_and_slope<S: Simd>(s: S, x: S::F) -> (S::F, S::F) {
        let (below, bell) = normal(s, x);
        let density = s.mul(bell, s.splat(FRAC_2_SQRT_PI / SQRT_2 * 0.5));
        (weighted(s, x, below), s.add(below, weighted(s, x, density)))
    }
}

#[derive(Clone, Copy)]
pub(crate) struct GeluTanh;

/// 2 sqrt(2 / pi): (1 + tanh(u)) / 2 is the logistic function of 2u.
const TANH_SCALE: f32 = 1.595_769;
const TANH_CUBIC: f32 = 0.044_715;

impl Curve for GeluTanh {
    const NAME: Activation = Activation::GeluTanh;
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::F) -> S::F {
        let cubic = s.fma(s.splat(TANH_SCALE * TANH_CUBIC), s.mul(x, x), s.splat(TANH_SCALE));
        weighted(s, x, logistic(s, s.mul(x, cubic)))
    }
    #[inline(always)]
    fn value_and_slope<S: Simd>(s: S, x: S::F) -> (S::F, S::F) {
        let square = s.mul(x, x);
        let cubic = s.fma(s.splat(TANH_SCALE * TANH_CUBIC), square, s.splat(TANH_SCALE));
        let gate = logistic(s, s.mul(x, cubic));
        let inner = s.fma(s.splat(3.0 * TANH_SCALE * TANH_CUBIC), square, s.splat(TANH_SCALE));
        let steep = s.mul(s.mul(gate, s.sub(s.splat(1.0), gate)), inner);
        (weighted(s, x, gate), s.add(gate, weighted(s, x, steep)))
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Silu;

impl Curve for Silu {
    const NAME: Activation = Activation::Silu;
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::F) -> S::F {
        weighted(s, x, logistic(s, x))
    }
    #[inline(always)]
    fn value_and_slope<S: Simd>(s: S, x: S::F) -> (S::F, S::F) {
        let gate = logistic(s, x);
        let steep = s.mul(gate, s.sub(s.splat(1.0), gate));
        (weighted(s, x, gate), s.add(gate, weighted(s, x, steep)))
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Relu;

impl Curve for Relu {
    const NAME: Activation = Activation::Relu;
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::F) -> S::F {
        s.max(s.zero(), x)
    }
    #[inline(always)]
    fn value_and_slope<S: Simd>(s: S, x: S::F) -> (S::F, S::F) {
        let slope = s.select(s.lt(s.zero(), x), s.splat(1.0), s.zero());
        (s.max(s.zero(), x), slope)
    }
}

/// [x] -> [f(x)].
#[derive(Clone, Copy)]
struct Forward<C>(C);
/// [x, dy] -> [dx].
#[derive(Clone, Copy)]
struct Backward<C>(C);
/// [gate, up] -> [f(gate) up].
#[derive(Clone, Copy)]
struct GatedForward<C>(C);
/// [gate, up, dy] -> [dgate, dup].
#[derive(Clone, Copy)]
struct GatedBackward<C>(C);

impl<C: Curve> Pointwise<1, 1> for Forward<C> {
    #[inline(always)]
    fn vector<S: Simd>(self, s: S, [x]: [S::F; 1]) -> [S::F; 1] {
        [C::value(s, x)]
    }
    fn exact(self, [x]: [f64; 1]) -> [f64; 1] {
        [reference::value_and_slope(C::NAME, x).0]
    }
}

impl<C: Curve> Pointwise<2, 1> for Backward<C> {
    #[inline(always)]
    fn vector<S: Simd>(self, s: S, [x, dy]: [S::F; 2]) -> [S::F; 1] {
        [s.mul(C::value_and_slope(s, x).1, dy)]
    }
    fn exact(self, [x, dy]: [f64; 2]) -> [f64; 1] {
        [reference::value_and_slope(C::NAME, x).1 * dy]
    }
}

impl<C: Curve> Pointwise<2, 1> for GatedForward<C> {
    #[inline(always)]
    fn vector<S: Simd>(self, s: S, [gate, up]: [S::F; 2]) -> [S::F; 1] {
        [s.mul(C::value(s, gate), up)]
    }
    fn exact(self, [gate, up]: [f64; 2]) -> [f64; 1] {
        [reference::value_and_slope(C::NAME, gate).0 * up]
    }
}

impl<C: Curve> Pointwise<3, 2> for GatedBackward<C> {
    #[inline(always)]
    fn vector<S: Simd>(self, s: S, [gate, up, dy]: [S::F; 3]) -> [S::F; 2] {
        let (value, slope) = C::value_and_slope(s, gate);
        [s.mul(slope, s.mul(up, dy)), s.mul(value, dy)]
    }
    fn exact(self, [gate, up, dy]: [f64; 3]) -> [f64; 2] {
        let (value, slope) = reference::value_and_slope(C::NAME, gate);
        [slope * up * dy, value * dy]
    }
}

/// Calls `$body` with `$curve` bound to the type of the activation.
macro_rules! with_curve {
    ($activation:expr, $curve:ident => $body:expr) => {
        match $activation {
            $crate::ops::activation::Activation::Gelu => {
                let $curve = $crate::ops::activation::cpu::Gelu;
                $body
            }
            $crate::ops::activation::Activation::GeluTanh => {
                let $curve = $crate::ops::activation::cpu::GeluTanh;
                $body
            }
            $crate::ops::activation::Activation::Silu => {
                let $curve = $crate::ops::activation::cpu::Silu;
                $body
            }
            $crate::ops::activation::Activation::Relu => {
                let $curve = $crate::ops::activation::cpu::Relu;
                $body
            }
        }
    };
}
pub(crate) use with_curve;

/// `y = f(x)`; both slices have one length.
pub fn forward<T: Real>(activation: Activation, x: &[T], y: &mut [T]) {
    with_curve!(activation, curve => vector::map(Forward(curve), [x], [y]));
}

/// `dx = f'(x) dy`; all slices have one length.
pub fn backward<T: Real>(activation: Activation, x: &[T], dy: &[T], dx: &mut [T]) {
    with_curve!(activation, curve => vector::map(Backward(curve), [x, dy], [dx]));
}

/// `y = f(gate) up`; all slices have one length.
pub fn gated_forward<T: Real>(activation: Activation, gate: &[T], up: &[T], y: &mut [T]) {
    with_curve!(activation, curve => vector::map(GatedForward(curve), [gate, up], [y]));
}

/// `dgate = f'(gate) up dy` and `dup = f(gate) dy`; all slices have one length.
pub fn gated_backward<T: Real>(
    activation: Activation,
    (gate, up, dy): (&[T], &[T], &[T]),
    (dgate, dup): (&mut [T], &mut [T]),
) {
    with_curve!(activation, curve => {
        vector::map(GatedBackward(curve), [gate, up, dy], [dgate, dup])
    });
}

/// [`gated_forward`] for rows of `packed` that hold `width` gates and then `width` values of `up`.
pub fn packed_forward<T: Real>(activation: Activation, width: usize, packed: &[T], y: &mut [T]) {
    let Some(rows) = y.len().checked_div(width) else { return };
    let inputs = halves(packed, width);
    with_curve!(activation, curve => {
        let outputs = [RowsMut::new(y, 0, width)];
        vector::map_rows(GatedForward(curve), (rows, width), inputs, outputs)
    });
}

/// [`gated_backward`] for packed rows; `dpacked` has the layout of `packed`.
pub fn packed_backward<T: Real>(
    activation: Activation,
    width: usize,
    (packed, dy): (&[T], &[T]),
    dpacked: &mut [T],
) {
    let Some(rows) = dy.len().checked_div(width) else { return };
    let [gate, up] = halves(packed, width);
    let inputs = [gate, up, Rows { data: dy, stride: width }];
    with_curve!(activation, curve => {
        let outputs =
            [RowsMut::new(dpacked, 0, 2 * width), RowsMut::new(dpacked, width, 2 * width)];
        vector::map_rows(GatedBackward(curve), (rows, width), inputs, outputs)
    });
}

fn halves<T>(packed: &[T], width: usize) -> [Rows<'_, T>; 2] {
    let up = packed.get(width..).unwrap_or_default();
    [Rows { data: packed, stride: 2 * width }, Rows { data: up, stride: 2 * width }]
}
