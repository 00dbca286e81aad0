//! Softmax for f32 and bf16: each row is read from memory once and written once.

use super::Form;
use crate::vector::{exp_keep_nan, load, rows_of, split_rows, store};
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{Kernel, Lane, Simd, dispatch};
use danaus_runtime::threads::{self, SharedMut};
use std::ops::Range;

/// The largest value of a row; NaN entries are passed over (the sum sees them).
///
/// # Safety
/// `len` elements are readable at `row`.
#[inline(always)]
pub(crate) unsafe fn row_max<S: Simd, T: Lane>(s: S, row: *const T, len: usize) -> f32 {
    let lowest = s.splat(f32::NEG_INFINITY);
    let mut best = [lowest; 4];
    let mut start = 0;
    // SAFETY: all reads lie below `len`.
    unsafe {
        while start + 4 * S::LANES <= len {
            for k in 0..4 {
                // `max` returns its second argument when one is NaN.
                best[k] = s.max(T::load(s, row.add(start + k * S::LANES)), best[k]);
            }
            start += 4 * S::LANES;
        }
        while start < len {
            let count = (len - start).min(S::LANES);
            let x = s.select(s.first(count), load(s, row.add(start), count), lowest);
            best[0] = s.max(x, best[0]);
            start += count;
        }
    }
    s.reduce_max(s.max(s.max(best[0], best[1]), s.max(best[2], best[3])))
}

struct Forward<'a, T> {
    form: Form,
    cols: usize,
    x: &'a [T],
    y: SharedMut<T>,
    rows: Range<usize>,
    /// The exponentials of one row, in full precision.
    row: &'a mut [f32],
}

impl<T: Lane> Forward<'_, T> {
    /// Sum of e^(x - largest) over a row; keeps the exponentials when `keep` is set.
    ///
    /// # Safety
    /// `cols` elements are readable at `x`.
    #[inline(always)]
    unsafe fn exponentials<S: Simd>(&mut self, s: S, x: *const T, largest: f32, keep: bool) -> f32 {
        let largest = s.splat(largest);
        let mut sums = [s.zero(); 2];
        let mut start = 0;
        let mut turn = 0;
        while start < self.cols {
            let count = (self.cols - start).min(S::LANES);
            // SAFETY: reads and writes lie below `cols`.
            unsafe {
                let e = exp_keep_nan(s, s.sub(load(s, x.add(start), count), largest));
                if keep {
                    store(s, self.row.as_mut_ptr().add(start), e, count);
                }
                sums[turn] = s.select(s.first(count), s.add(sums[turn], e), sums[turn]);
            }
            start += count;
            turn ^= 1;
        }
        s.reduce_add(s.add(sums[0], sums[1]))
    }
}

impl<T: Lane> Kernel for Forward<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for row in self.rows.clone() {
            // SAFETY: `forward` checked that the rows lie in both slices; tasks have disjoint rows.
            unsafe {
                let x = self.x.as_ptr().add(row * self.cols);
                let y = self.y.ptr().add(row * self.cols);
                let largest = row_max(s, x, self.cols);
                let softmax = self.form == Form::Softmax;
                let sum = self.exponentials(s, x, largest, softmax);
                let factor = s.splat(1.0 / sum);
                let (largest, log) = (s.splat(largest), s.splat(sum.ln()));
                let mut start = 0;
                while start < self.cols {
                    let count = (self.cols - start).min(S::LANES);
                    let value = if softmax {
                        s.mul(load(s, self.row.as_ptr().add(start), count), factor)
                    } else {
                        s.sub(s.sub(load(s, x.add(start), count), largest), log)
                    };
                    store(s, y.add(start), value, count);
                    start += count;
                }
            }
        }
    }
}

struct Backward<'a, T> {
    form: Form,
    cols: usize,
    y: &'a [T],
    dy: &'a [T],
    dx: SharedMut<T>,
    rows: Range<usize>,
}

impl<T: Lane> Backward<'_, T> {
    /// Sum over the row at `offset` of y dy, or of dy for the logarithm.
    ///
    /// # Safety
    /// The row lies in both slices.
    #[inline(always)]
    unsafe fn row_sum<S: Simd>(&self, s: S, offset: usize) -> f32 {
        let mut sum = s.zero();
        let mut start = 0;
        while start < self.cols {
            let count = (self.cols - start).min(S::LANES);
            // SAFETY: promised by the caller. Lanes beyond the row are 0.
            unsafe {
                let dy = load(s, self.dy.as_ptr().add(offset + start), count);
                let y = load(s, self.y.as_ptr().add(offset + start), count);
                sum = if self.form == Form::Softmax { s.fma(y, dy, sum) } else { s.add(sum, dy) };
            }
            start += count;
        }
        s.reduce_add(sum)
    }
}

impl<T: Lane> Kernel for Backward<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.rows.clone() {
            let offset = row * self.cols;
            // SAFETY: `backward` checked that the rows lie in all slices; tasks have disjoint rows.
            unsafe {
                let sum = s.splat(self.row_sum(s, offset));
                let mut start = 0;
                while start < self.cols {
                    let count = (self.cols - start).min(S::LANES);
                    let dy = load(s, self.dy.as_ptr().add(offset + start), count);
                    let y = load(s, self.y.as_ptr().add(offset + start), count);
                    let dx = match self.form {
                        Form::Softmax => s.mul(y, s.sub(dy, sum)),
                        Form::LogSoftmax => s.sub(dy, s.mul(exp_keep_nan(s, y), sum)),
                    };
                    store(s, self.dx.ptr().add(offset + start), dx, count);
                    start += count;
                }
            }
        }
    }
}

/// Writes `y` for rows of `cols` values.
///
/// # Panics
/// If the slices differ in length or are no multiple of `cols`.
pub fn forward<T: Lane>(form: Form, cols: usize, x: &[T], y: &mut [T]) {
    let rows = x.len() / cols.max(1);
    assert!(x.len() == rows * cols && y.len() == x.len(), "rows of {cols} values");
    let y = SharedMut::new(y);
    let (tasks, per_task) = split_rows(rows, cols);
    let mut buffers = Scratch::<f32>::new(tasks * cols);
    let shared = SharedMut::new(&mut buffers);
    threads::for_each(tasks, |task| {
        // SAFETY: every task has its own row of the scratch memory.
        let row = unsafe { shared.slice(task * cols, cols) };
        dispatch(Forward { form, cols, x, y, rows: rows_of(task, per_task, rows), row });
    });
}

/// Writes `dx` from the output `y` and its cotangent `dy`.
///
/// # Panics
/// If the slices differ in length or are no multiple of `cols`.
pub fn backward<T: Lane>(form: Form, cols: usize, (y, dy): (&[T], &[T]), dx: &mut [T]) {
    let rows = y.len() / cols.max(1);
    assert!(y.len() == rows * cols, "rows of {cols} values");
    assert!(dy.len() == y.len() && dx.len() == y.len(), "equal lengths");
    let dx = SharedMut::new(dx);
    let (tasks, per_task) = split_rows(rows, cols);
    threads::for_each(tasks, |task| {
        dispatch(Backward { form, cols, y, dy, dx, rows: rows_of(task, per_task, rows) });
    });
}
