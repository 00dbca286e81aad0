//! Cross-entropy for f32 and bf16: the logits cross memory once in each direction.

use super::CrossEntropy;
use crate::ops::softmax::cpu::row_max;
use crate::vector::{exp_keep_nan, load, rows_of, split_rows, store};
use danaus_runtime::simd::{Kernel, Lane, Simd, dispatch, math};
use danaus_runtime::threads::{self, SharedMut};
use std::ops::Range;

/// Logits whose maximum is taken before their exponentials are added: they stay in the first cache.
const BLOCK: usize = 1024;

/// Maximum and sum of a row so far: `sum` counts e^(z - largest).
#[derive(Clone, Copy)]
struct Running {
    largest: f32,
    sum: f32,
    /// Plain sum of the logits, when smoothing needs it.
    total: f32,
}

impl Running {
    /// Takes `len` more logits into account.
    ///
    /// # Safety
    /// They are readable at `row`.
    #[inline(always)]
    unsafe fn add<S: Simd, T: Lane>(self, s: S, row: *const T, len: usize, smooth: bool) -> Self {
        // SAFETY: promised by the caller.
        let found = unsafe { row_max(s, row, len) };
        let largest = if found > self.largest { found } else { self.largest };
        // As long as every logit is minus infinity there is nothing to subtract.
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let before = self.sum * math::exp_scalar(self.largest - base);
        let base = s.splat(base);
        let mut sums = [s.zero(); 2];
        let mut total = s.zero();
        let (mut start, mut turn) = (0, 0);
        while start < len {
            let count = (len - start).min(S::LANES);
            // SAFETY: the read lies below `len`.
            let z = unsafe { load(s, row.add(start), count) };
            let e = exp_keep_nan(s, s.sub(z, base));
            sums[turn] = s.select(s.first(count), s.add(sums[turn], e), sums[turn]);
            if smooth {
                total = s.add(total, z);
            }
            start += count;
            turn ^= 1;
        }
        let sum = before + s.reduce_add(s.add(sums[0], sums[1]));
        Self { largest, sum, total: self.total + s.reduce_add(total) }
    }
}

struct Forward<'a, T> {
    args: &'a CrossEntropy,
    logits: &'a [T],
    targets: &'a [i64],
    tokens: Range<usize>,
    loss: &'a mut [f32],
    lse: &'a mut [f32],
}

impl<T: Lane> Kernel for Forward<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let CrossEntropy { vocab, ignore_index, label_smoothing, z_loss } = *self.args;
        for (at, token) in self.tokens.enumerate() {
            let row = &self.logits[token * vocab..(token + 1) * vocab];
            let mut running = Running { largest: f32::NEG_INFINITY, sum: 0.0, total: 0.0 };
            for block in row.chunks(BLOCK) {
                // SAFETY: the block is a slice.
                running =
                    unsafe { running.add(s, block.as_ptr(), block.len(), label_smoothing > 0.0) };
            }
            let lse = running.largest + running.sum.ln();
            self.lse[at] = lse;
            let target = self.targets[token];
            self.loss[at] = if target == ignore_index {
                0.0
            } else {
                let picked = (1.0 - label_smoothing) as f32 * row[target as usize].widen();
                let spread = match label_smoothing > 0.0 {
                    true => (label_smoothing / vocab as f64) as f32 * running.total,
                    false => 0.0,
                };
                lse - picked - spread + z_loss as f32 * lse * lse
            };
        }
    }
}

/// Cotangents of one token, as factors of its gradient.
#[derive(Clone, Copy)]
struct Factors {
    lse: f32,
    /// Factor of the probabilities.
    slope: f32,
    /// Subtracted from every entry.
    share: f32,
    /// Subtracted from the target's entry.
    picked: f32,
}

/// Inputs of the backward pass.
#[derive(Clone, Copy)]
pub struct Backward<'a> {
    /// The loss.
    pub args: CrossEntropy,
    /// One class or `ignore_index` a token.
    pub targets: &'a [i64],
    /// As the forward pass gave it.
    pub lse: &'a [f32],
    /// Cotangent of each token's loss.
    pub dloss: &'a [f32],
    /// Cotangent of `lse`, if it was used.
    pub dlse: Option<&'a [f32]>,
}

impl Backward<'_> {
    #[inline(always)]
    fn factors(&self, token: usize) -> Factors {
        let args = &self.args;
        let counted = self.targets[token] != args.ignore_index;
        let g = if counted { self.dloss[token] } else { 0.0 };
        let lse = self.lse[token];
        let of_lse = self.dlse.map_or(0.0, |dlse| dlse[token]);
        // An ignored token with a broken row must not turn 0 * NaN into a gradient.
        let of_loss = if g == 0.0 { 0.0 } else { g * (1.0 + 2.0 * args.z_loss as f32 * lse) };
        Factors {
            lse,
            slope: of_loss + of_lse,
            share: g * (args.label_smoothing / args.vocab as f64) as f32,
            picked: g * (1.0 - args.label_smoothing) as f32,
        }
    }
}

struct Rows<'a, T> {
    args: &'a Backward<'a>,
    tokens: Range<usize>,
    /// Only read; may be the same memory as `dlogits`.
    logits: SharedMut<T>,
    dlogits: SharedMut<T>,
}

impl<T: Lane> Kernel for Rows<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let CrossEntropy { vocab, ignore_index, .. } = self.args.args;
        for token in self.tokens {
            let factors = self.args.factors(token);
            let target = self.args.targets[token];
            // SAFETY: `start` checked lengths and targets; a token belongs to one task. A vector is
            // read before it is written, so both matrices may be one.
            unsafe {
                let row = self.logits.ptr().add(token * vocab).cast_const();
                let out = self.dlogits.ptr().add(token * vocab);
                if factors.slope == 0.0 && factors.picked == 0.0 {
                    (0..vocab).for_each(|at| *out.add(at) = T::default());
                    continue;
                }
                let counted = target != ignore_index;
                let picked = if counted { (*row.add(target as usize)).widen() } else { 0.0 };
                write_row(s, (row, out), vocab, factors);
                if counted {
                    let p = math::exp_scalar(picked - factors.lse);
                    let dz = factors.slope * p - factors.share - factors.picked;
                    *out.add(target as usize) = T::round(dz);
                }
            }
        }
    }
}

/// Writes `slope e^(z - lse) - share` for a row.
///
/// # Safety
/// `vocab` elements are readable at the first and writable at the second pointer.
#[inline(always)]
unsafe fn write_row<S: Simd, T: Lane>(
    s: S,
    (row, out): (*const T, *mut T),
    vocab: usize,
    factors: Factors,
) {
    let (lse, slope) = (s.splat(factors.lse), s.splat(factors.slope));
    let share = s.splat(factors.share);
    let mut start = 0;
    while start < vocab {
        let count = (vocab - start).min(S::LANES);
        // SAFETY: promised by the caller.
        unsafe {
            let z = load(s, row.add(start), count);
            let p = exp_keep_nan(s, s.sub(z, lse));
            store(s, out.add(start), s.sub(s.mul(slope, p), share), count);
        }
        start += count;
    }
}

/// Panics unless targets are classes or `ignore_index`: callers report bad ones before.
fn check(args: &CrossEntropy, logits: usize, targets: &[i64]) {
    assert_eq!(logits, targets.len() * args.vocab, "{} classes a token", args.vocab);
    let known = |&target: &i64| {
        target == args.ignore_index || usize::try_from(target).is_ok_and(|t| t < args.vocab)
    };
    assert!(targets.iter().all(known), "targets are classes or ignore_index");
}

/// Writes `loss` and `lse` of each token.
///
/// # Panics
/// If lengths do not fit or a target is no class.
pub fn forward<T: Lane>(
    args: &CrossEntropy,
    (logits, targets): (&[T], &[i64]),
    (loss, lse): (&mut [f32], &mut [f32]),
) {
    check(args, logits.len(), targets);
    let tokens = targets.len();
    assert!(loss.len() == tokens && lse.len() == tokens, "one loss a token");
    let (loss, lse) = (SharedMut::new(loss), SharedMut::new(lse));
    let (tasks, per_task) = split_rows(tokens, args.vocab);
    threads::for_each(tasks, |task| {
        let tokens = rows_of(task, per_task, tokens);
        // SAFETY: every token belongs to one task.
        let (loss, lse) = unsafe {
            let len = tokens.len();
            (loss.slice(tokens.start, len), lse.slice(tokens.start, len))
        };
        dispatch(Forward { args, logits, targets, tokens, loss, lse });
    });
}

/// Writes the gradient of the logits.
///
/// # Panics
/// If lengths do not fit or a target is no class.
pub fn backward<T: Lane>(args: &Backward<'_>, logits: &[T], dlogits: &mut [T]) {
    assert_eq!(dlogits.len(), logits.len(), "one entry a logit");
    let source = SharedMut::from_ptr(logits.as_ptr().cast_mut());
    start(args, logits.len(), source, SharedMut::new(dlogits));
}

/// Replaces logits by their gradient.
///
/// # Panics
/// As [`backward`].
pub fn backward_in_place<T: Lane>(args: &Backward<'_>, logits: &mut [T]) {
    let len = logits.len();
    let shared = SharedMut::new(logits);
    start(args, len, shared, shared);
}

fn start<T: Lane>(args: &Backward<'_>, len: usize, logits: SharedMut<T>, dlogits: SharedMut<T>) {
    check(&args.args, len, args.targets);
    let tokens = args.targets.len();
    assert!(args.lse.len() == tokens && args.dloss.len() == tokens, "one value a token");
    assert!(args.dlse.is_none_or(|dlse| dlse.len() == tokens), "one value a token");
    let (tasks, per_task) = split_rows(tokens, args.args.vocab);
    threads::for_each(tasks, |task| {
        dispatch(Rows { args, tokens: rows_of(task, per_task, tokens), logits, dlogits });
    });
}
