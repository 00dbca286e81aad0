//! The product in f32 by register tiles.
//!
//! Rows of vectors are first laid into panels, one a column of blocks: `[block column][row][width]`, with
//! the width of a block rounded up to whole vectors and zeros beyond the features. Then every operand of
//! every tile is contiguous: `y_i += x_j W_ij^T`, `dx_j += dy_i W_ij` and `dW_ij += dy_i^T x_j` are calls
//! of the tile product of attention (`C += A B`, A broadcast in any strides), with one block at a time as
//! B or C. A task owns one row (or column) of blocks, so results depend on no order of tasks, and a
//! row of y only on its row of x.

use super::Layout;
use crate::ops::attention::microkernel::Product;
use crate::ops::attention::pack::Words;
use danaus_runtime::threads::{self, SharedMut};

/// Rows of vectors that a tile takes: 128 of 32 floats are 16 KiB, and so are their sums.
const ROWS: usize = 128;

/// Lanes of the widest vector, of which tiles have whole ones.
const LANES: usize = 16;

/// Vectors cut into blocks.
struct Panels {
    values: Vec<f32>,
    rows: usize,
    width: usize,
}

impl Panels {
    /// `x` has `rows` rows of `features`, which `count` blocks of `block` cover.
    fn new(x: &[f32], features: usize, count: usize, block: usize) -> Self {
        let (rows, width) = (x.len() / features.max(1), block.next_multiple_of(LANES));
        let mut values = vec![0.0; count * rows * width];
        let to = SharedMut::new(&mut values);
        threads::for_each(count, |index| {
            let first = index * block;
            let len = block.min(features.saturating_sub(first));
            // SAFETY: every panel belongs to one task.
            let panel = unsafe { to.slice(index * rows * width, rows * width) };
            for (to, x) in panel.chunks_exact_mut(width).zip(x.chunks_exact(features)) {
                to[..len].copy_from_slice(&x[first..first + len]);
            }
        });
        Self { values, rows, width }
    }

    /// Rows from `row` on of a panel.
    fn at(&self, panel: usize, row: usize) -> *const f32 {
        self.values[(panel * self.rows + row) * self.width..].as_ptr()
    }
}

/// The kept blocks of one block of results, ready as right operands: `[k][width]` each.
struct Side {
    /// Panels of the left operand.
    sources: Vec<usize>,
    values: Vec<f32>,
}

/// The blocks of a row, transposed: `B[k][n] = W[n][k]`.
fn transposed(blocks: &[f32], kept: &[(usize, usize)], block: usize, width: usize) -> Side {
    let mut values = vec![0.0; kept.len() * block * width];
    for ((index, _), to) in kept.iter().zip(values.chunks_exact_mut(block * width)) {
        let from = &blocks[index * block * block..][..block * block];
        for (k, to) in to.chunks_exact_mut(width).enumerate() {
            (0..block).for_each(|n| to[n] = from[n * block + k]);
        }
    }
    Side { sources: kept.iter().map(|pair| pair.1).collect(), values }
}

/// The blocks of a column as they are.
fn padded(blocks: &[f32], kept: &[(usize, usize)], block: usize, width: usize) -> Side {
    let mut values = vec![0.0; kept.len() * block * width];
    for ((index, _), to) in kept.iter().zip(values.chunks_exact_mut(block * width)) {
        let from = &blocks[index * block * block..][..block * block];
        for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(block)) {
            to[..block].copy_from_slice(from);
        }
    }
    Side { sources: kept.iter().map(|pair| pair.1).collect(), values }
}

/// Adds the products of the panels with one block of results to columns `first..` of `to`, whose rows
/// have `features`.
fn column(
    panels: &Panels,
    side: &Side,
    block: usize,
    (to, features, first): (SharedMut<f32>, usize, usize),
) {
    let width = panels.width;
    let len = block.min(features.saturating_sub(first));
    let mut sums = vec![0.0f32; ROWS * width];
    for row in (0..panels.rows).step_by(ROWS) {
        let m = ROWS.min(panels.rows - row);
        for (at, &source) in side.sources.iter().enumerate() {
            let product = Product {
                a: panels.at(source, row),
                a_row: width,
                a_step: 1,
                b: side.values[at * block * width..].as_ptr(),
                b_stride: width,
                c: sums.as_mut_ptr(),
                c_stride: width,
                m,
                n: width,
                k: block,
                accumulate: at > 0,
            };
            // SAFETY: a panel has `m` more rows of `width >= block` words, B is `block` rows of
            // `width`, and the sums have ROWS of them.
            unsafe { product.run(Words::F32) };
        }
        for (index, sums) in sums.chunks_exact(width).take(m).enumerate() {
            // SAFETY: these columns of all rows belong to this task.
            let to = unsafe { to.slice((row + index) * features + first, len) };
            to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
        }
    }
}

/// Adds `x W^T` to y; `[inp, out]` are the features of a row.
pub fn forward(layout: &Layout, blocks: &[f32], [inp, out]: [usize; 2], x: &[f32], y: &mut [f32]) {
    let block = layout.block();
    let panels = Panels::new(x, inp, layout.cols(), block);
    let y = SharedMut::new(y);
    threads::for_each(layout.rows(), |row| {
        let kept: Vec<(usize, usize)> = layout.row(row).collect();
        if !kept.is_empty() {
            let side = transposed(blocks, &kept, block, panels.width);
            column(&panels, &side, block, (y, out, row * block));
        }
    });
}

/// Adds `dy W` to dx, where it is wanted, and gives the sums of `dy^T x` on the blocks.
pub fn backward(
    layout: &Layout,
    blocks: &[f32],
    [inp, out]: [usize; 2],
    (x, dy): (&[f32], &[f32]),
    dx: &mut [f32],
) -> Vec<f32> {
    let block = layout.block();
    let dy = Panels::new(dy, out, layout.rows(), block);
    let to = SharedMut::new(dx);
    let by_column = layout.by_column();
    threads::for_each(layout.cols(), |col| {
        let kept = &by_column[col];
        if !kept.is_empty() {
            let side = padded(blocks, kept, block, dy.width);
            column(&dy, &side, block, (to, inp, col * block));
        }
    });
    let x = Panels::new(x, inp, layout.cols(), block);
    let mut sums = vec![0.0f32; layout.len() * block * block];
    let to = SharedMut::new(&mut sums);
    threads::for_each(layout.rows(), |row| {
        let kept: Vec<(usize, usize)> = layout.row(row).collect();
        let Some(&(first, _)) = kept.first() else { return };
        // SAFETY: the blocks of a row lie one after the other and belong to this task.
        let to = unsafe { to.slice(first * block * block, kept.len() * block * block) };
        weights(&dy, &x, row, &kept, block, to);
    });
    sums
}

/// `dy_row^T x_col` for the blocks of a row.
fn weights(
    dy: &Panels,
    x: &Panels,
    row: usize,
    kept: &[(usize, usize)],
    block: usize,
    to: &mut [f32],
) {
    let width = x.width;
    let mut sums = vec![0.0f32; kept.len() * block * width];
    for first in (0..x.rows).step_by(ROWS) {
        for ((_, col), sums) in kept.iter().zip(sums.chunks_exact_mut(block * width)) {
            let product = Product {
                a: dy.at(row, first),
                a_row: 1,
                a_step: width,
                b: x.at(*col, first),
                b_stride: width,
                c: sums.as_mut_ptr(),
                c_stride: width,
                m: block,
                n: width,
                k: ROWS.min(x.rows - first),
                accumulate: first > 0,
            };
            // SAFETY: both panels have that many more rows of `width >= block` words, the sums of a
            // block are `block` rows of them.
            unsafe { product.run(Words::F32) };
        }
    }
    for (to, sums) in to.chunks_exact_mut(block).zip(sums.chunks_exact(width)) {
        to.copy_from_slice(&sums[..block]);
    }
}
