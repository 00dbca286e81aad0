//! Forward norms for f32 and bf16: one pass over memory, the row stays in the nearest cache.

use super::{Kind, Norm};
use crate::vector::{load, rows_of, split_rows, store};
use danaus_runtime::simd::{Kernel, Lane, Simd, dispatch};
use danaus_runtime::threads::{self, SharedMut};
use std::ops::Range;

/// Inputs of the forward pass; `x` and `residual` are rows of `norm.cols` values.
#[derive(Clone, Copy)]
pub struct Forward<'a, T> {
    /// Kind, eps and row length.
    pub norm: Norm,
    /// Rows to normalise.
    pub x: &'a [T],
    /// Added to `x` first.
    pub residual: Option<&'a [T]>,
    /// One factor a column.
    pub weight: Option<&'a [f32]>,
    /// One summand a column.
    pub bias: Option<&'a [f32]>,
}

/// Sum over a row of x (`center` none) or of (x - center)^2.
///
/// Four running sums hide the latency of the additions.
///
/// # Safety
/// `len` elements are readable at `row`.
#[inline(always)]
unsafe fn row_sum<S: Simd, T: Lane>(s: S, row: *const T, len: usize, center: Option<f32>) -> f32 {
    let mut sums = [s.zero(); 4];
    let mut start = 0;
    // SAFETY: all reads lie below `len`.
    unsafe {
        while start + 4 * S::LANES <= len {
            for k in 0..4 {
                let x = T::load(s, row.add(start + k * S::LANES));
                sums[k] = term(s, x, center, sums[k]);
            }
            start += 4 * S::LANES;
        }
        while start < len {
            let count = (len - start).min(S::LANES);
            let x = load(s, row.add(start), count);
            let sum = term(s, x, center, sums[0]);
            sums[0] = s.select(s.first(count), sum, sums[0]);
            start += count;
        }
    }
    s.reduce_add(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

#[inline(always)]
fn term<S: Simd>(s: S, x: S::F, center: Option<f32>, sum: S::F) -> S::F {
    match center {
        None => s.add(sum, x),
        Some(center) => {
            let d = s.sub(x, s.splat(center));
            s.fma(d, d, sum)
        }
    }
}

/// Mean (0 for RMS) and reciprocal deviation of a row.
///
/// # Safety
/// `norm.cols` elements are readable at `row`.
#[inline(always)]
pub(super) unsafe fn statistics<S: Simd, T: Lane>(s: S, norm: &Norm, row: *const T) -> (f32, f32) {
    let count = norm.cols as f32;
    // SAFETY: promised by the caller.
    unsafe {
        let mean = match norm.kind {
            Kind::Layer => row_sum(s, row, norm.cols, None) / count,
            Kind::Rms => 0.0,
        };
        let square = row_sum(s, row, norm.cols, Some(mean)) / count;
        (mean, 1.0 / (square + norm.eps as f32).sqrt())
    }
}

/// Reads a weight or bias vector, `default` where there is none.
///
/// # Safety
/// `count <= LANES` elements are readable at `start` of the slice, if there is one.
#[inline(always)]
pub(super) unsafe fn parameter<S: Simd>(
    s: S,
    values: Option<&[f32]>,
    start: usize,
    count: usize,
    default: f32,
) -> S::F {
    match values {
        // SAFETY: promised by the caller.
        Some(values) => unsafe { load(s, values.as_ptr().add(start), count) },
        None => s.splat(default),
    }
}

/// Some rows of the forward pass.
struct Rows<'a, T> {
    args: &'a Forward<'a, T>,
    rows: Range<usize>,
    y: SharedMut<T>,
    /// Where `x + residual` goes, if there is a residual.
    sum: SharedMut<T>,
}

impl<T: Lane> Rows<'_, T> {
    /// Writes `x + residual` of the row at `offset` and returns where the row to normalise lies.
    ///
    /// # Safety
    /// The row lies in all slices and in `sum`, and no other task touches it.
    #[inline(always)]
    unsafe fn add<S: Simd>(&self, s: S, offset: usize) -> *const T {
        // SAFETY: promised by the caller.
        unsafe {
            let x = self.args.x.as_ptr().add(offset);
            let Some(residual) = self.args.residual else { return x };
            let residual = residual.as_ptr().add(offset);
            let sum = self.sum.ptr().add(offset);
            let cols = self.args.norm.cols;
            let mut start = 0;
            while start < cols {
                let count = (cols - start).min(S::LANES);
                let a = load(s, x.add(start), count);
                let b = load(s, residual.add(start), count);
                store(s, sum.add(start), s.add(a, b), count);
                start += count;
            }
            sum
        }
    }
}

impl<T: Lane> Kernel for Rows<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Forward { norm, weight, bias, .. } = *self.args;
        for row in self.rows.clone() {
            // SAFETY: `forward` checked that the rows lie in every slice; tasks have disjoint rows.
            unsafe {
                let h = self.add(s, row * norm.cols);
                let y = self.y.ptr().add(row * norm.cols);
                let (mean, scale) = statistics(s, &norm, h);
                let (mean, scale) = (s.splat(mean), s.splat(scale));
                let mut start = 0;
                while start < norm.cols {
                    let count = (norm.cols - start).min(S::LANES);
                    let normal = s.mul(s.sub(load(s, h.add(start), count), mean), scale);
                    let weight = parameter(s, weight, start, count, 1.0);
                    let bias = parameter(s, bias, start, count, 0.0);
                    store(s, y.add(start), s.fma(normal, weight, bias), count);
                    start += count;
                }
            }
        }
    }
}

/// Writes `y`, and `x + residual` to `sum` when there is a residual.
///
/// # Panics
/// If the slices do not have the lengths that `x` and `norm.cols` imply.
pub fn forward<T: Lane>(args: &Forward<'_, T>, y: &mut [T], sum: Option<&mut [T]>) {
    let cols = args.norm.cols;
    let rows = args.x.len() / cols.max(1);
    let len = rows * cols;
    assert!(args.x.len() == len && y.len() == len, "rows of {cols} values");
    assert!(args.residual.is_none_or(|residual| residual.len() == len));
    assert!([args.weight, args.bias].iter().flatten().all(|values| values.len() == cols));
    let y = SharedMut::new(y);
    let sum = match sum {
        Some(sum) => {
            assert_eq!(sum.len(), len);
            SharedMut::new(sum)
        }
        None => {
            assert!(args.residual.is_none(), "a residual needs a place for the sum");
            y
        }
    };
    let (tasks, per_task) = split_rows(rows, cols);
    threads::for_each(tasks, |task| {
        dispatch(Rows { args, rows: rows_of(task, per_task, rows), y, sum });
    });
}
