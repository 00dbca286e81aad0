//! Gradients of the norms for f32 and bf16, in one pass over memory.

use super::Kind;
use super::Norm;
use super::cpu::{parameter, statistics};
use crate::vector::{load, rows_of, split_rows, store, sum_blocks};
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{Kernel, Lane, Simd, dispatch};
use danaus_runtime::threads::{self, SharedMut};
use std::ops::Range;

/// Inputs of the backward pass; slices hold rows of `norm.cols` values.
#[derive(Clone, Copy)]
pub struct Backward<'a, T> {
    /// Kind, eps and row length.
    pub norm: Norm,
    /// What was normalised: `x`, or the sum with the residual.
    pub h: &'a [T],
    /// Cotangent of `y`.
    pub dy: &'a [T],
    /// Cotangent of `h` from elsewhere, when the sum was returned and used.
    pub dsum: Option<&'a [T]>,
    /// One factor a column.
    pub weight: Option<&'a [f32]>,
}

struct Rows<'a, T> {
    args: &'a Backward<'a, T>,
    rows: Range<usize>,
    dh: SharedMut<T>,
    /// Sums of this task for `weight` and `bias`, `cols` each.
    parts: &'a mut [f32],
}

/// Per-row scalars as vectors.
#[derive(Clone, Copy)]
struct Statistics<F> {
    mean: F,
    scale: F,
}

impl<T: Lane> Rows<'_, T> {
    /// Adds the row at `offset` to the column sums; returns the row's sums of g and g * normal.
    ///
    /// # Safety
    /// The row lies in every slice.
    #[inline(always)]
    unsafe fn sums<S: Simd>(&mut self, s: S, offset: usize, row: Statistics<S::F>) -> (f32, f32) {
        let cols = self.args.norm.cols;
        let (dweight, dbias) = self.parts.split_at_mut(cols);
        let (mut sum, mut product) = (s.zero(), s.zero());
        let mut start = 0;
        while start < cols {
            let count = (cols - start).min(S::LANES);
            // SAFETY: the row lies in the slices, and the parts hold `cols` sums each.
            unsafe {
                let h = load(s, self.args.h.as_ptr().add(offset + start), count);
                let dy = load(s, self.args.dy.as_ptr().add(offset + start), count);
                let normal = s.mul(s.sub(h, row.mean), row.scale);
                let to = dweight.as_mut_ptr().add(start);
                store(s, to, s.fma(dy, normal, load(s, to, count)), count);
                let to = dbias.as_mut_ptr().add(start);
                store(s, to, s.add(dy, load(s, to, count)), count);
                // Lanes beyond the row have dy = 0, so they add nothing.
                let g = s.mul(dy, parameter(s, self.args.weight, start, count, 1.0));
                sum = s.add(sum, g);
                product = s.fma(g, normal, product);
            }
            start += count;
        }
        (s.reduce_add(sum), s.reduce_add(product))
    }

    /// Writes the gradient of the row at `offset`: scale (g - shift - normal * slope) + dsum.
    ///
    /// # Safety
    /// The row lies in every slice and belongs to this task.
    #[inline(always)]
    unsafe fn write<S: Simd>(
        &self,
        s: S,
        offset: usize,
        row: Statistics<S::F>,
        (shift, slope): (S::F, S::F),
    ) {
        let cols = self.args.norm.cols;
        let mut start = 0;
        while start < cols {
            let count = (cols - start).min(S::LANES);
            // SAFETY: promised by the caller.
            unsafe {
                let h = load(s, self.args.h.as_ptr().add(offset + start), count);
                let dy = load(s, self.args.dy.as_ptr().add(offset + start), count);
                let normal = s.mul(s.sub(h, row.mean), row.scale);
                let g = s.mul(dy, parameter(s, self.args.weight, start, count, 1.0));
                let inner = s.sub(s.sub(g, shift), s.mul(normal, slope));
                let carried = match self.args.dsum {
                    Some(dsum) => load(s, dsum.as_ptr().add(offset + start), count),
                    None => s.zero(),
                };
                let dh = s.fma(row.scale, inner, carried);
                store(s, self.dh.ptr().add(offset + start), dh, count);
            }
            start += count;
        }
    }
}

impl<T: Lane> Kernel for Rows<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let norm = self.args.norm;
        let count = norm.cols as f32;
        for row in self.rows.clone() {
            let offset = row * norm.cols;
            // SAFETY: `backward` checked that the rows lie in every slice; tasks have disjoint rows.
            unsafe {
                let (mean, scale) = statistics(s, &norm, self.args.h.as_ptr().add(offset));
                let row = Statistics { mean: s.splat(mean), scale: s.splat(scale) };
                let (sum, product) = self.sums(s, offset, row);
                let shift = if norm.kind == Kind::Layer { sum / count } else { 0.0 };
                self.write(s, offset, row, (s.splat(shift), s.splat(product / count)));
            }
        }
    }
}

/// Writes the gradient of `h` (which is that of `x` and of `residual`), of `weight` and of `bias`.
///
/// # Panics
/// If the slices do not have the lengths that `h` and `norm.cols` imply.
pub fn backward<T: Lane>(
    args: &Backward<'_, T>,
    dh: &mut [T],
    (dweight, dbias): (&mut [f32], &mut [f32]),
) {
    let cols = args.norm.cols;
    let rows = args.h.len() / cols.max(1);
    let len = rows * cols;
    assert!(
        args.h.len() == len && args.dy.len() == len && dh.len() == len,
        "rows of {cols} values"
    );
    assert!(args.dsum.is_none_or(|dsum| dsum.len() == len));
    assert!(args.weight.is_none_or(|weight| weight.len() == cols));
    assert!(dweight.len() == cols && dbias.len() == cols);
    let dh = SharedMut::new(dh);
    let (tasks, per_task) = split_rows(rows, cols);
    let mut parts = Scratch::<f32>::new(tasks * 2 * cols);
    let shared = SharedMut::new(&mut parts);
    threads::for_each(tasks, |task| {
        // SAFETY: every task has its own block of the scratch memory.
        let parts = unsafe { shared.slice(task * 2 * cols, 2 * cols) };
        dispatch(Rows { args, rows: rows_of(task, per_task, rows), dh, parts });
    });
    sum_blocks(&parts, 2 * cols, dweight);
    sum_blocks(&parts[cols.min(parts.len())..], 2 * cols, dbias);
}
