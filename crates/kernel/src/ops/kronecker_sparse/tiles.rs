//! Factors with small blocks, above all butterflies: all factors on a tile of 32 rows of x at once.
//!
//! A tile lies feature by feature in a buffer that stays in the second-level cache, so that every
//! vector operation works on one feature of many rows, no lane ever moves to another, and all
//! strides are the same to it. Up to four neighbouring butterfly factors are merged into one pass
//! of radix 16: sixteen vectors are read, multiplied by 32 blocks of 2 x 2 in registers, and
//! written; x and y cross memory once, the tile crosses the cache once for four factors. Merging
//! changes no bit: every element sees the same operations in the same order.
//!
//! Rows of a tile that do not exist are zeros, so that a row's bits do not depend on the others.

use super::pattern::{Blocks, Step};
use super::radix::{Butterfly, pass};
use crate::vector::{load, store, sum_blocks};
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{Kernel, Lane, Simd, dispatch};
use danaus_runtime::threads::{self, SharedMut};
use std::ops::Range;

/// Rows of a tile: two vectors of AVX-512.
pub(super) const TILE: usize = 32;

/// Tasks of a backward pass at most: each has its own sums of the factors' gradients.
const BACKWARD_TASKS: usize = 8;

/// The widest vectors have this many lanes.
const MOST_LANES: usize = 16;

/// A product of factors with all of its values in f32.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// Factors in the order they are applied.
    pub steps: &'a [Step],
    /// Values.
    pub sources: &'a [&'a [f32]],
}

impl Product<'_> {
    fn values(&self, step: &Step) -> &[f32] {
        &self.sources[step.source][step.range()]
    }

    fn widest(&self) -> usize {
        self.steps.iter().map(|step| step.rows().max(step.cols())).max().unwrap_or(0)
    }

    fn dims(&self) -> (usize, usize) {
        let first = self.steps.first().map_or(0, Step::cols);
        (first, self.steps.last().map_or(0, Step::rows))
    }
}

/// Reads `count` rows of `features` elements into a tile.
///
/// # Safety
/// The rows are readable at `from`; the tile holds `features * TILE` elements.
#[inline(always)]
unsafe fn read_tile<S: Simd, T: Lane>(
    s: S,
    from: *const T,
    (features, count): (usize, usize),
    tile: *mut f32,
) {
    let mut lines = [0f32; TILE * MOST_LANES];
    for feature in (0..features).step_by(S::LANES) {
        let width = (features - feature).min(S::LANES);
        // SAFETY: rows and features stay in the ranges that the caller promised.
        unsafe {
            for row in 0..count {
                let line = load(s, from.add(row * features + feature), width);
                s.store(lines.as_mut_ptr().add(row * S::LANES), line);
            }
            for lane in 0..width {
                let to = tile.add((feature + lane) * TILE);
                for row in 0..TILE {
                    *to.add(row) = lines[row * S::LANES + lane];
                }
            }
        }
    }
}

/// Writes the first `count` rows of a tile.
///
/// # Safety
/// As [`read_tile`], with writable rows.
#[inline(always)]
unsafe fn write_tile<S: Simd, T: Lane>(
    s: S,
    tile: *const f32,
    (features, count): (usize, usize),
    to: *mut T,
) {
    let mut lines = [0f32; TILE * MOST_LANES];
    for feature in (0..features).step_by(S::LANES) {
        let width = (features - feature).min(S::LANES);
        // SAFETY: as in `read_tile`.
        unsafe {
            for lane in 0..width {
                let from = tile.add((feature + lane) * TILE);
                for row in 0..TILE {
                    lines[row * S::LANES + lane] = *from.add(row);
                }
            }
            for row in 0..count {
                let line = s.load(lines.as_ptr().add(row * S::LANES));
                store(s, to.add(row * features + feature), line, width);
            }
        }
    }
}

/// `to = W from` for blocks of any (small) size.
///
/// # Safety
/// The tiles hold the step's columns and rows, `values` its values; they do not overlap.
#[inline(always)]
unsafe fn multiply<S: Simd>(
    s: S,
    blocks: Blocks,
    values: *const f32,
    from: *const f32,
    to: *mut f32,
) {
    for g in 0..blocks.count() {
        let (row, col, value) = blocks.start(g);
        for p in 0..blocks.rows {
            for lane in (0..TILE).step_by(S::LANES) {
                let mut sum = s.zero();
                // SAFETY: promised by the caller.
                unsafe {
                    for q in 0..blocks.cols {
                        let at = value + p * blocks.row_stride + q * blocks.col_stride;
                        let x = s.load(from.add((col + q * blocks.d) * TILE + lane));
                        sum = s.fma(s.splat(*values.add(at)), x, sum);
                    }
                    s.store(to.add((row + p * blocks.d) * TILE + lane), sum);
                }
            }
        }
    }
}

/// `dx = W^T dy` and `dvalues += dy x^T`. `SIZE` is the side of square blocks, or 0 for any.
///
/// # Safety
/// As [`multiply`]; `dvalues` is as large as the values.
#[inline(always)]
unsafe fn pull<S: Simd, const SIZE: usize>(
    s: S,
    blocks: Blocks,
    (values, dvalues): (*const f32, *mut f32),
    (x, dy): (*const f32, *const f32),
    dx: *mut f32,
) {
    let (rows, cols) = if SIZE > 0 { (SIZE, SIZE) } else { (blocks.rows, blocks.cols) };
    for g in 0..blocks.count() {
        let (row, col, value) = blocks.start(g);
        for q in 0..cols {
            let feature = (col + q * blocks.d) * TILE;
            // SAFETY: promised by the caller.
            unsafe {
                for p in 0..rows {
                    let up = dy.add((row + p * blocks.d) * TILE);
                    let mut sum = s.zero();
                    for lane in (0..TILE).step_by(S::LANES) {
                        sum = s.fma(s.load(up.add(lane)), s.load(x.add(feature + lane)), sum);
                    }
                    let at = value + p * blocks.row_stride + q * blocks.col_stride;
                    *dvalues.add(at) += s.reduce_add(sum);
                }
                for lane in (0..TILE).step_by(S::LANES) {
                    let mut sum = s.zero();
                    for p in 0..rows {
                        let at = value + p * blocks.row_stride + q * blocks.col_stride;
                        let up = s.load(dy.add((row + p * blocks.d) * TILE + lane));
                        sum = s.fma(s.splat(*values.add(at)), up, sum);
                    }
                    s.store(dx.add(feature + lane), sum);
                }
            }
        }
    }
}

/// Neighbouring butterfly factors that one pass takes: their number, or `None` for another factor.
fn mergeable(steps: &[Step]) -> Option<usize> {
    let square = |step: &Step| step.pattern.b == 2 && step.pattern.c == 2;
    let first = steps.first().filter(|step| square(step))?;
    let stride = first.pattern.d;
    let fits = |index: usize, up: bool| {
        steps.get(index).is_some_and(|step| {
            let wanted = if up { Some(stride << index) } else { halved(stride, index) };
            square(step) && step.rows() == first.rows() && wanted == Some(step.pattern.d)
        })
    };
    let run = |up: bool| (1..4).take_while(|&index| fits(index, up)).count() + 1;
    Some(run(true).max(run(false)))
}

/// `stride / 2^times` where that is exact.
fn halved(stride: usize, times: usize) -> Option<usize> {
    stride.is_multiple_of(1 << times).then_some(stride >> times)
}

/// Some tiles of a forward pass.
struct Forward<'a, T> {
    product: Product<'a>,
    x: &'a [T],
    y: SharedMut<T>,
    tiles: Range<usize>,
    rows: usize,
}

impl<T: Lane> Kernel for Forward<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { product, x, y, tiles, rows } = self;
        let (features, results) = product.dims();
        let size = product.widest() * TILE;
        let (mut a, mut b) = (Scratch::<f32>::new(size), Scratch::<f32>::new(size));
        for tile in tiles {
            let start = tile * TILE;
            let count = (rows - start).min(TILE);
            let vectors = count.div_ceil(S::LANES);
            // SAFETY: `forward` checked the lengths; a tile's rows belong to one task.
            unsafe {
                let from = x.as_ptr().add(start * features);
                read_tile(s, from, (features, count), a.as_mut_ptr());
                let mut steps = product.steps;
                while let Some(step) = steps.first() {
                    let count = match mergeable(steps) {
                        Some(count) => {
                            let group = Butterfly::of(&steps[..count], product.sources);
                            pass(s, &group, step.rows(), a.as_mut_ptr(), vectors);
                            count
                        }
                        None => {
                            let values = product.values(step).as_ptr();
                            multiply(s, step.blocks(), values, a.as_ptr(), b.as_mut_ptr());
                            std::mem::swap(&mut a, &mut b);
                            1
                        }
                    };
                    steps = &steps[count..];
                }
                write_tile(s, a.as_ptr(), (results, count), y.ptr().add(start * results));
            }
        }
    }
}

/// Rows of `y` from rows of `x`.
pub fn forward<T: Lane>(product: Product, x: &[T], y: &mut [T]) {
    let (features, results) = product.dims();
    let rows = x.len() / features;
    assert!(x.len() == rows * features && y.len() == rows * results, "whole rows");
    let count = rows.div_ceil(TILE);
    let (tasks, each) = threads::split(count, 1);
    let y = SharedMut::new(y);
    threads::for_each(tasks, |task| {
        let tiles = task * each..((task + 1) * each).min(count);
        dispatch(Forward { product, x, y, tiles, rows });
    });
}

/// Some tiles of a backward pass.
struct Backward<'a, T> {
    product: Product<'a>,
    x: &'a [T],
    dy: &'a [T],
    dx: SharedMut<T>,
    /// Sums of this task, the sources one after another.
    dvalues: &'a mut [f32],
    tiles: Range<usize>,
    rows: usize,
}

impl<T: Lane> Kernel for Backward<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { product, x, dy, dx, dvalues, tiles, rows } = self;
        let (features, results) = product.dims();
        let steps = product.steps;
        let starts = starts(product.sources);
        let size = product.widest() * TILE;
        let (mut up, mut down) = (Scratch::<f32>::new(size), Scratch::<f32>::new(size));
        let mut kept: Vec<Scratch<f32>> =
            steps.iter().map(|step| Scratch::new(step.cols() * TILE)).collect();
        for tile in tiles {
            let start = tile * TILE;
            let count = (rows - start).min(TILE);
            // SAFETY: `backward` checked the lengths; a tile's rows belong to one task.
            unsafe {
                let from = x.as_ptr().add(start * features);
                read_tile(s, from, (features, count), kept[0].as_mut_ptr());
                for index in 0..steps.len() - 1 {
                    let (from, to) = (kept[index].as_ptr(), kept[index + 1].as_mut_ptr());
                    let values = product.values(&steps[index]).as_ptr();
                    multiply(s, steps[index].blocks(), values, from, to);
                }
                let from = dy.as_ptr().add(start * results);
                read_tile(s, from, (results, count), up.as_mut_ptr());
                for (index, step) in steps.iter().enumerate().rev() {
                    let values = product.values(step).as_ptr();
                    let sums = dvalues.as_mut_ptr().add(starts[step.source] + step.offset);
                    let (x, blocks) = (kept[index].as_ptr(), step.blocks());
                    let (pair, batch) = ((values, sums), (x, up.as_ptr()));
                    match (blocks.rows, blocks.cols) {
                        (2, 2) => pull::<S, 2>(s, blocks, pair, batch, down.as_mut_ptr()),
                        _ => pull::<S, 0>(s, blocks, pair, batch, down.as_mut_ptr()),
                    }
                    std::mem::swap(&mut up, &mut down);
                }
                write_tile(s, up.as_ptr(), (features, count), dx.ptr().add(start * features));
            }
        }
    }
}

/// Where every source starts when they lie one after another; the last entry is their length.
fn starts(sources: &[&[f32]]) -> Vec<usize> {
    let mut starts = vec![0];
    for source in sources {
        starts.push(starts[starts.len() - 1] + source.len());
    }
    starts
}

/// Gradients of `x` and of every source. Sums over rows are taken in fixed blocks and added in
/// order.
pub fn backward<T: Lane>(
    product: Product,
    (x, dy): (&[T], &[T]),
    dx: &mut [T],
    dsources: &mut [Vec<f32>],
) {
    let (features, results) = product.dims();
    let rows = x.len() / features;
    assert!(x.len() == rows * features && dy.len() == rows * results, "whole rows");
    assert!(dx.len() == x.len(), "whole rows");
    let count = rows.div_ceil(TILE);
    let (tasks, each) = threads::split(count, count.div_ceil(BACKWARD_TASKS));
    let starts = starts(product.sources);
    let total = starts[starts.len() - 1];
    let mut parts = Scratch::<f32>::new(tasks * total);
    let (shared, dx) = (SharedMut::new(&mut parts), SharedMut::new(dx));
    threads::for_each(tasks, |task| {
        let tiles = task * each..((task + 1) * each).min(count);
        // SAFETY: every task has its own block of the scratch memory.
        let dvalues = unsafe { shared.slice(task * total, total) };
        dispatch(Backward { product, x, dy, dx, dvalues, tiles, rows });
    });
    let mut sums = vec![0.0; total];
    sum_blocks(&parts, total, &mut sums);
    for (to, start) in dsources.iter_mut().zip(&starts) {
        let len = to.len();
        to.copy_from_slice(&sums[*start..start + len]);
    }
}
