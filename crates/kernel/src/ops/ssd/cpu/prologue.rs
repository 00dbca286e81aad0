//! From `dt` to step sizes and log-decays, and back.
//!
//! ```text
//! raw = dt + dt_bias,  scale = clamp(softplus(raw), dt_limit),  log_decay = A scale
//! ```

use super::super::reference::Steps;
use super::rows::{Block, Rows, Target, pack, unpack};
use super::tile::padded;
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{self, Kernel, Simd, math};
use danaus_runtime::threads::{self, SharedMut};

/// Tokens of one task: enough for a few microseconds of work.
const BLOCK: usize = 256;

/// Inputs of the prologue.
pub struct Prologue<'a> {
    /// Rows of `heads`.
    pub dt: Rows<'a>,
    /// Number of rows.
    pub tokens: usize,
    /// `[heads]`.
    pub a: &'a [f32],
    /// `[heads]`.
    pub dt_bias: Option<&'a [f32]>,
    /// Softplus and clamp.
    pub steps: Steps,
}

impl Prologue<'_> {
    fn limits(&self) -> (f32, f32) {
        (self.steps.dt_limit.0 as f32, self.steps.dt_limit.1 as f32)
    }

    /// A and the bias, padded.
    fn parameters(&self) -> (Scratch<f32>, Scratch<f32>) {
        let heads = self.a.len();
        let mut a = Scratch::new(padded(heads));
        let mut bias = Scratch::new(padded(heads));
        a[..heads].copy_from_slice(self.a);
        if let Some(dt_bias) = self.dt_bias {
            bias[..heads].copy_from_slice(dt_bias);
        }
        (a, bias)
    }

    /// Fills `scale` and `log_decay`, both `[tokens, heads]`.
    pub fn forward(&self, scale: &mut [f32], log_decay: &mut [f32]) {
        let heads = self.a.len();
        let (a, bias) = self.parameters();
        let (scale, log_decay) = (SharedMut::new(scale), SharedMut::new(log_decay));
        threads::for_each(self.tokens.div_ceil(BLOCK), |task| {
            let first = task * BLOCK;
            let rows = BLOCK.min(self.tokens - first);
            let mut steps = Scratch::<f32>::new(rows * padded(heads));
            let mut decays = Scratch::<f32>::new(rows * padded(heads));
            pack(self.dt, (first, 0), (rows, heads), &mut steps);
            let (softplus, limits) = (self.steps.dt_softplus, self.limits());
            let (steps_out, decays_out) = (&mut *steps, &mut *decays);
            simd::dispatch(Forward {
                steps: steps_out,
                decays: decays_out,
                a: &a,
                bias: &bias,
                softplus,
                limits,
            });
            let block = Block { offset: first * heads, rows, columns: heads, stride: heads };
            // SAFETY: every task has its own rows.
            unsafe {
                unpack(&steps, Target::F32(scale), block);
                unpack(&decays, Target::F32(log_decay), block);
            }
        });
    }

    /// Gradients from those of `scale` and `log_decay`: `ddt` contiguous, `da` and `dbias` `[heads]`.
    pub fn backward(
        &self,
        dscale: &[f32],
        dlog_decay: &[f32],
        ddt: Target,
        da: &mut [f32],
        dbias: &mut [f32],
    ) {
        let heads = self.a.len();
        let width = padded(heads);
        let (a, bias) = self.parameters();
        let tasks = self.tokens.div_ceil(BLOCK);
        let mut sums = Scratch::<f32>::new(2 * tasks * width);
        let shared = SharedMut::new(&mut sums);
        threads::for_each(tasks, |task| {
            let first = task * BLOCK;
            let rows = BLOCK.min(self.tokens - first);
            let tile = || Scratch::<f32>::new(rows * width);
            let (mut dt, mut from_scale, mut from_decay) = (tile(), tile(), tile());
            pack(self.dt, (first, 0), (rows, heads), &mut dt);
            pack(Rows::f32(dscale, heads), (first, 0), (rows, heads), &mut from_scale);
            pack(Rows::f32(dlog_decay, heads), (first, 0), (rows, heads), &mut from_decay);
            // SAFETY: every task has its own pair of rows.
            let (da, dbias) =
                unsafe { shared.slice(2 * task * width, 2 * width) }.split_at_mut(width);
            let (softplus, limits) = (self.steps.dt_softplus, self.limits());
            simd::dispatch(Backward {
                dt: &mut dt,
                from_scale: &from_scale,
                from_decay: &from_decay,
                parameters: (&a, &bias),
                softplus,
                limits,
                sums: (da, dbias),
            });
            let block = Block { offset: first * heads, rows, columns: heads, stride: heads };
            // SAFETY: every task has its own rows.
            unsafe { unpack(&dt, ddt, block) };
        });
        da.fill(0.0);
        dbias.fill(0.0);
        for pair in sums.chunks_exact(2 * width) {
            for head in 0..heads {
                da[head] += pair[head];
                dbias[head] += pair[width + head];
            }
        }
    }
}

/// Rows of `dt` become step sizes in place.
struct Forward<'a> {
    steps: &'a mut [f32],
    decays: &'a mut [f32],
    a: &'a [f32],
    bias: &'a [f32],
    softplus: bool,
    limits: (f32, f32),
}

/// The step size before clamping.
#[inline(always)]
fn unclamped<S: Simd>(s: S, raw: S::F, softplus: bool) -> S::F {
    if softplus { math::softplus(s, raw) } else { raw }
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.a.len();
        assert!(self.steps.len() == self.decays.len() && self.bias.len() == width);
        let (low, high) = (s.splat(self.limits.0), s.splat(self.limits.1));
        for row in (0..self.steps.len()).step_by(width) {
            for column in (0..width).step_by(S::LANES) {
                // SAFETY: rows are `width` long, a multiple of the lanes.
                unsafe {
                    let steps = self.steps.as_mut_ptr().add(row + column);
                    let bias = s.load(self.bias.as_ptr().add(column));
                    let value = unclamped(s, s.add(s.load(steps), bias), self.softplus);
                    // Written so that a NaN stays one.
                    let value = s.select(s.lt(value, low), low, value);
                    let value = s.select(s.lt(high, value), high, value);
                    s.store(steps, value);
                    let a = s.load(self.a.as_ptr().add(column));
                    s.store(self.decays.as_mut_ptr().add(row + column), s.mul(a, value));
                }
            }
        }
    }
}

/// Rows of `dt` become their gradients in place.
struct Backward<'a> {
    dt: &'a mut [f32],
    from_scale: &'a [f32],
    from_decay: &'a [f32],
    /// A and the bias.
    parameters: (&'a [f32], &'a [f32]),
    softplus: bool,
    limits: (f32, f32),
    /// Gradients of A and of the bias, added to.
    sums: (&'a mut [f32], &'a mut [f32]),
}

impl Kernel for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (a, bias) = self.parameters;
        let width = a.len();
        let len = self.dt.len();
        assert!(self.from_scale.len() == len && self.from_decay.len() == len);
        assert!(bias.len() == width && self.sums.0.len() == width && self.sums.1.len() == width);
        let (low, high) = (s.splat(self.limits.0), s.splat(self.limits.1));
        let one = s.splat(1.0);
        for column in (0..width).step_by(S::LANES) {
            // SAFETY: rows are `width` long, a multiple of the lanes.
            unsafe {
                let (a, bias) = (s.load(a.as_ptr().add(column)), s.load(bias.as_ptr().add(column)));
                let (mut da, mut dbias) = (s.zero(), s.zero());
                for at in (column..len).step_by(width) {
                    let dt = self.dt.as_mut_ptr().add(at);
                    let raw = s.add(s.load(dt), bias);
                    let value = unclamped(s, raw, self.softplus);
                    let slope = if self.softplus {
                        let linear = s.lt(s.splat(20.0), raw);
                        s.select(linear, one, math::sigmoid(s, raw))
                    } else {
                        one
                    };
                    let clamped = s.max(low, s.min(high, value));
                    let from_decay = s.load(self.from_decay.as_ptr().add(at));
                    da = s.fma(clamped, from_decay, da);
                    let upstream = s.fma(a, from_decay, s.load(self.from_scale.as_ptr().add(at)));
                    let grad = s.mul(upstream, slope);
                    let grad = s.select(s.lt(value, low), s.zero(), grad);
                    let grad = s.select(s.lt(high, value), s.zero(), grad);
                    dbias = s.add(dbias, grad);
                    s.store(dt, grad);
                }
                s.store(self.sums.0.as_mut_ptr().add(column), da);
                s.store(self.sums.1.as_mut_ptr().add(column), dbias);
            }
        }
    }
}
