//! Vector-by-vector loops over slices, shared by the pointwise and row-wise operators.
//!
//! Nothing here takes closures: code below a [`Kernel`] must be `#[inline(always)]` to be compiled
//! with the chosen instruction set, which a closure cannot promise. Functions are traits instead.

use danaus_runtime::simd::{Kernel, Lane, Simd, dispatch, math};
use danaus_runtime::threads::{self, SharedMut};
use half::bf16;
use std::ops::Range;

/// Elements that make a task worth starting on another thread.
pub(crate) const GRAIN: usize = 1 << 14;

/// Elements of one piece when a long flat array is walked as rows.
const PIECE: usize = 1 << 12;

/// Reads `count <= LANES` elements; the other lanes are 0.
///
/// # Safety
/// `count` elements are readable at `from`.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd, T: Lane>(s: S, from: *const T, count: usize) -> S::F {
    // SAFETY: promised by the caller.
    unsafe { if count == S::LANES { T::load(s, from) } else { T::load_partial(s, from, count) } }
}

/// Writes the first `count <= LANES` lanes.
///
/// # Safety
/// `count` elements are writable at `to`.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd, T: Lane>(s: S, to: *mut T, value: S::F, count: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        if count == S::LANES {
            T::store(s, to, value);
        } else {
            T::store_partial(s, to, value, count);
        }
    }
}

/// e^x for x <= 0 (positive x up to 88 are fine), where NaN stays NaN, so that a broken logit is seen.
#[inline(always)]
pub(crate) fn exp_keep_nan<S: Simd>(s: S, x: S::F) -> S::F {
    // The order of the arguments of `max` keeps NaN; the product below is 0 or NaN.
    let clamped = s.max(s.splat(-88.0), x);
    s.fma(clamped, s.zero(), math::exp_negative(s, clamped))
}

/// The rows `start..end` of task `task` when `rows` rows are cut in pieces of `per_task`.
pub(crate) fn rows_of(task: usize, per_task: usize, rows: usize) -> Range<usize> {
    task * per_task..((task + 1) * per_task).min(rows)
}

/// Splits rows of `cols` elements into `(tasks, rows per task)`, by shape alone.
pub(crate) fn split_rows(rows: usize, cols: usize) -> (usize, usize) {
    threads::split(rows, GRAIN.div_ceil(cols.max(1)))
}

/// A function of `IN` numbers with `OUT` results.
pub trait Pointwise<const IN: usize, const OUT: usize>: Copy + Send + Sync {
    /// On vectors; mark it `#[inline(always)]`.
    fn vector<S: Simd>(self, s: S, x: [S::F; IN]) -> [S::F; OUT];
    /// In double precision.
    fn exact(self, x: [f64; IN]) -> [f64; OUT];
}

/// Rows of equal length at a fixed distance in a slice; the first starts at 0.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T> {
    /// The memory from the first row on.
    pub data: &'a [T],
    /// Elements from one row to the next.
    pub stride: usize,
}

/// Writable [`Rows`] of a buffer that several outputs may share column by column.
#[derive(Clone, Copy)]
pub struct RowsMut<T> {
    start: SharedMut<T>,
    len: usize,
    stride: usize,
}

impl<T> RowsMut<T> {
    /// Rows in `data` from element `offset` on.
    pub(crate) fn new(data: &mut [T], offset: usize, stride: usize) -> Self {
        let tail = &mut data[offset..];
        Self { start: SharedMut::new(tail), len: tail.len(), stride }
    }
}

/// A function with the rows it reads and writes.
#[derive(Clone, Copy)]
pub struct Walk<'a, O, T, const IN: usize, const OUT: usize> {
    function: O,
    cols: usize,
    total: usize,
    inputs: [Rows<'a, T>; IN],
    outputs: [RowsMut<T>; OUT],
}

impl<O, T, const IN: usize, const OUT: usize> Walk<'_, O, T, IN, OUT> {
    /// Panics unless every row lies in its slice: the loops below rely on it.
    fn check(&self, rows: usize) {
        let last_end = |stride: usize| match rows {
            0 => 0,
            _ => (rows - 1) * stride + self.cols.min(self.total - (rows - 1) * self.cols),
        };
        assert!(self.inputs.iter().all(|rows| last_end(rows.stride) <= rows.data.len()));
        assert!(self.outputs.iter().all(|rows| last_end(rows.stride) <= rows.len));
    }

    /// Elements of one row: the last one of a flat array may be short.
    #[inline(always)]
    fn len_of(&self, row: usize) -> usize {
        self.cols.min(self.total - row * self.cols)
    }
}

struct Task<'a, O, T, const IN: usize, const OUT: usize>(Walk<'a, O, T, IN, OUT>, Range<usize>);

impl<O, T, const IN: usize, const OUT: usize> Kernel for Task<'_, O, T, IN, OUT>
where
    O: Pointwise<IN, OUT>,
    T: Lane,
{
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Task(walk, rows) = self;
        for row in rows {
            let len = walk.len_of(row);
            let mut start = 0;
            while start < len {
                let count = (len - start).min(S::LANES);
                let mut x = [s.zero(); IN];
                // SAFETY: `check` found every row inside its slice; rows of one output belong to one
                // task, so nobody else touches them.
                unsafe {
                    for k in 0..IN {
                        let rows = &walk.inputs[k];
                        x[k] = load(s, rows.data.as_ptr().add(row * rows.stride + start), count);
                    }
                    let y = walk.function.vector(s, x);
                    for k in 0..OUT {
                        let rows = &walk.outputs[k];
                        let to = rows.start.ptr().add(row * rows.stride + start);
                        store(s, to, y[k], count);
                    }
                }
                start += count;
            }
        }
    }
}

/// Element types of the pointwise operators: f32 and bf16 by vectors, f64 by the exact form.
pub trait Real: danaus_tensor::Element {
    #[doc(hidden)]
    fn walk<O: Pointwise<IN, OUT>, const IN: usize, const OUT: usize>(
        walk: Walk<'_, O, Self, IN, OUT>,
        rows: Range<usize>,
    );
}

macro_rules! real_lane {
    ($type:ty) => {
        impl Real for $type {
            fn walk<O: Pointwise<IN, OUT>, const IN: usize, const OUT: usize>(
                walk: Walk<'_, O, Self, IN, OUT>,
                rows: Range<usize>,
            ) {
                dispatch(Task(walk, rows));
            }
        }
    };
}
real_lane!(f32);
real_lane!(bf16);

impl Real for f64 {
    fn walk<O: Pointwise<IN, OUT>, const IN: usize, const OUT: usize>(
        walk: Walk<'_, O, Self, IN, OUT>,
        rows: Range<usize>,
    ) {
        for row in rows {
            for col in 0..walk.len_of(row) {
                let x = walk.inputs.map(|rows| rows.data[row * rows.stride + col]);
                let y = walk.function.exact(x);
                for (rows, value) in walk.outputs.iter().zip(y) {
                    // SAFETY: `check` found every row inside its slice; a row belongs to one task.
                    unsafe { *rows.start.ptr().add(row * rows.stride + col) = value };
                }
            }
        }
    }
}

/// Applies a function to rows, in parallel.
pub(crate) fn map_rows<O, T, const IN: usize, const OUT: usize>(
    function: O,
    (rows, cols): (usize, usize),
    inputs: [Rows<'_, T>; IN],
    outputs: [RowsMut<T>; OUT],
) where
    O: Pointwise<IN, OUT>,
    T: Real,
{
    run(Walk { function, cols, total: rows * cols, inputs, outputs }, rows);
}

/// Applies a function to flat arrays of one length, in parallel.
pub(crate) fn map<O, T, const IN: usize, const OUT: usize>(
    function: O,
    inputs: [&[T]; IN],
    outputs: [&mut [T]; OUT],
) where
    O: Pointwise<IN, OUT>,
    T: Real,
{
    let total = inputs[0].len();
    let inputs = inputs.map(|data| Rows { data, stride: PIECE });
    let outputs = outputs.map(|data| RowsMut::new(data, 0, PIECE));
    run(Walk { function, cols: PIECE, total, inputs, outputs }, total.div_ceil(PIECE));
}

fn run<O, T, const IN: usize, const OUT: usize>(walk: Walk<'_, O, T, IN, OUT>, rows: usize)
where
    O: Pointwise<IN, OUT>,
    T: Real,
{
    walk.check(rows);
    let (tasks, per_task) = split_rows(rows, walk.cols);
    threads::for_each(tasks, |task| T::walk(walk, rows_of(task, per_task, rows)));
}

/// Adds partial sums in the order of their blocks: `out[c] = sum over b of parts[b * stride + c]`.
///
/// The blocks come from a split by shape, so the sum has the same bits on any number of threads.
pub(crate) fn sum_blocks(parts: &[f32], stride: usize, out: &mut [f32]) {
    out.fill(0.0);
    for block in parts.chunks(stride.max(1)) {
        for (out, part) in out.iter_mut().zip(block) {
            *out += part;
        }
    }
}
