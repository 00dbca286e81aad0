//! The product written down: the oracle of the tests and the path of f64.

use super::Layout;
use std::ops::{AddAssign, Mul};

/// Numbers of the reference.
pub trait Scalar: Copy + Default + Mul<Output = Self> + AddAssign {}
impl Scalar for f32 {}
impl Scalar for f64 {}

/// Adds `x W^T` to y; `[inp, out]` are the features of a row.
pub fn forward<T: Scalar>(
    layout: &Layout,
    blocks: &[T],
    [inp, out]: [usize; 2],
    x: &[T],
    y: &mut [T],
) {
    for (x, y) in x.chunks_exact(inp).zip(y.chunks_exact_mut(out)) {
        each(layout, [inp, out], |at, row, col| y[row] += blocks[at] * x[col]);
    }
}

/// Adds `dy W` to dx and the sums of `dy^T x` on the blocks to dblocks.
pub fn backward<T: Scalar>(
    layout: &Layout,
    blocks: &[T],
    [inp, out]: [usize; 2],
    (x, dy): (&[T], &[T]),
    (dx, dblocks): (&mut [T], &mut [T]),
) {
    let rows = x.chunks_exact(inp).zip(dy.chunks_exact(out)).zip(dx.chunks_exact_mut(inp));
    for ((x, dy), dx) in rows {
        each(layout, [inp, out], |at, row, col| {
            dx[col] += blocks[at] * dy[row];
            dblocks[at] += dy[row] * x[col];
        });
    }
}

/// Calls with the place in the blocks, the row and the column of every element inside of the matrix.
fn each(layout: &Layout, [inp, out]: [usize; 2], mut visit: impl FnMut(usize, usize, usize)) {
    let block = layout.block();
    for (index, (row, col)) in layout.places().enumerate() {
        let rows = (out - (row * block).min(out)).min(block);
        let cols = (inp - (col * block).min(inp)).min(block);
        for i in 0..rows {
            for j in 0..cols {
                visit((index * block + i) * block + j, row * block + i, col * block + j);
            }
        }
    }
}
