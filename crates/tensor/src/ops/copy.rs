//! Moving elements: row-major copies of any layout, blocks of a larger tensor, constant padding.
//!
//! Copies only care about the size of an element, so they are compiled once a size. Large
//! transpositions go through tiles, so that both sides use whole cache lines.

pub(crate) mod cuda;

use super::elementwise::{coalesce, start};
use crate::{Element, Result, Tensor, match_dtype};
use danaus_runtime::threads::{self, SharedMut};

/// Fewest elements that are worth a task.
const GRAIN: usize = 1 << 15;
/// Rows and columns of a tile of a transposition.
const TILE: usize = 32;

/// Runs a block with `$E` bound to a plain type of the element size.
macro_rules! match_size {
    ($size:expr, $E:ident => $body:expr) => {
        match $size {
            1 => {
                type $E = u8;
                $body
            }
            2 => {
                type $E = u16;
                $body
            }
            4 => {
                type $E = u32;
                $body
            }
            8 => {
                type $E = u64;
                $body
            }
            // Two words, not u128: complex numbers are aligned to 8 bytes only.
            _ => {
                type $E = [u64; 2];
                $body
            }
        }
    };
}

pub(super) use match_size;

/// Start of a fresh tensor's elements, for writing.
pub(super) fn write_start(tensor: &mut Tensor) -> Result<*mut u8> {
    match_dtype!(tensor.dtype(), T => Ok(tensor.as_slice_mut::<T>()?.as_mut_ptr().cast()))
}

/// Copies `x`, of any layout, to the fresh tensor `out` of the same shape and dtype.
pub(super) fn contiguous_into(x: &Tensor, out: &mut Tensor) -> Result<()> {
    if x.device().is_cuda() {
        return cuda::contiguous_into(x, out);
    }
    let (dims, mut strides) = coalesce(x.shape(), &[Some(x.detach())]);
    let strides = strides.pop().unwrap_or_default();
    let to = write_start(out)?;
    match_size!(x.dtype().size(), E => {
        let walk = Walk { from: start(x).cast::<E>(), to: to.cast::<E>(), dims, strides };
        walk.run(x.elem_count());
    });
    Ok(())
}

/// A strided source and a row-major target.
struct Walk<E> {
    from: *const E,
    to: *mut E,
    dims: Vec<usize>,
    strides: Vec<isize>,
}

// SAFETY: tasks read shared elements and write disjoint ones.
unsafe impl<E> Sync for Walk<E> {}

impl<E: Copy + Send + Sync> Walk<E> {
    fn run(&self, len: usize) {
        let last = self.dims.len().saturating_sub(1);
        let scattered = self.strides.last().is_some_and(|&stride| stride != 0 && stride != 1);
        let across = self.strides.iter().position(|&stride| stride == 1);
        match across {
            Some(axis) if scattered && self.dims[axis] >= 8 && self.dims[last] >= 8 => {
                self.transpose(axis, len);
            }
            _ => self.rows(len),
        }
    }

    /// Row by row.
    fn rows(&self, len: usize) {
        let (inner, stride) = match (self.dims.last(), self.strides.last()) {
            (Some(&inner), Some(&stride)) => (inner, stride),
            _ => (1, 1),
        };
        let outer = &self.dims[..self.dims.len().saturating_sub(1)];
        let (tasks, per_task) = threads::split(len, GRAIN);
        threads::for_each(tasks, |task| {
            let (mut at, end) = (task * per_task, ((task + 1) * per_task).min(len));
            while at < end {
                let (row, column) = (at / inner, at % inner);
                let count = (inner - column).min(end - at);
                let position = offset(outer, &self.strides, row) + column as isize * stride;
                // SAFETY: the row's elements are the source's; `at..at + count` belongs to this task.
                unsafe {
                    let (from, to) = (self.from.offset(position), self.to.add(at));
                    if stride == 1 {
                        std::ptr::copy_nonoverlapping(from, to, count);
                    } else {
                        for index in 0..count {
                            to.add(index).write(*from.offset(index as isize * stride));
                        }
                    }
                }
                at += count;
            }
        });
    }

    /// The source is contiguous along `axis`, the target along the last dimension.
    fn transpose(&self, axis: usize, len: usize) {
        let last = self.dims.len() - 1;
        let (rows, columns) = (self.dims[axis], self.dims[last]);
        let row_step: usize = self.dims[axis + 1..].iter().product();
        let others: Vec<usize> = (0..last).filter(|&other| other != axis).collect();
        let sizes: Vec<usize> = others.iter().map(|&other| self.dims[other]).collect();
        let strides: Vec<isize> = others.iter().map(|&other| self.strides[other]).collect();
        let steps: Vec<isize> = others
            .iter()
            .map(|&other| self.dims[other + 1..].iter().product::<usize>() as isize)
            .collect();
        let bands = rows.div_ceil(TILE);
        let units = len / (rows * columns).max(1) * bands;
        let (tasks, per_task) = threads::split(units, GRAIN.div_ceil(TILE * columns));
        threads::for_each(tasks, |task| {
            for unit in task * per_task..((task + 1) * per_task).min(units) {
                let (matrix, band) = (unit / bands, unit % bands);
                let rows = band * TILE..((band + 1) * TILE).min(rows);
                let from = offset(&sizes, &strides, matrix);
                let to = offset(&sizes, &steps, matrix);
                for first in (0..columns).step_by(TILE) {
                    for row in rows.clone() {
                        for column in first..(first + TILE).min(columns) {
                            let source = row as isize + column as isize * self.strides[last];
                            // SAFETY: both are elements of the matrix; rows belong to this unit.
                            unsafe {
                                let value = *self.from.offset(from + source);
                                self.to.offset(to).add(row * row_step + column).write(value);
                            }
                        }
                    }
                }
            }
        });
    }
}

/// Position of the row-major index `index` over `dims` under strides.
fn offset(dims: &[usize], strides: &[isize], mut index: usize) -> isize {
    let mut position = 0;
    for (&dim, &stride) in dims.iter().zip(strides).rev() {
        position += (index % dim) as isize * stride;
        index /= dim;
    }
    position
}

/// Copies `part` into the positions from `first` on along `dim` of the fresh tensor `out`.
pub(super) fn place(part: &Tensor, out: &mut Tensor, dim: usize, first: usize) -> Result<()> {
    if part.device().is_cuda() {
        return cuda::place(part, out, dim, first);
    }
    let part = part.detach().contiguous()?;
    let inner: usize = out.dims()[dim + 1..].iter().product();
    let (width, row) = (part.dims()[dim] * inner, out.dims()[dim] * inner);
    let len = part.elem_count();
    let to = SharedMut::from_ptr(write_start(out)?);
    let from = start(&part);
    let (tasks, per_task) = threads::split(len, GRAIN);
    let size = part.dtype().size();
    // A shared reference crosses threads where a pointer would not.
    // SAFETY: the part is contiguous and `len` elements long.
    let from = unsafe { std::slice::from_raw_parts(from, len * size) };
    threads::for_each(tasks, |task| {
        let (mut at, end) = (task * per_task, ((task + 1) * per_task).min(len));
        while at < end {
            let column = at % width;
            let count = (width - column).min(end - at);
            let target = (at / width * row + first * inner + column) * size;
            // SAFETY: tasks write disjoint ranges, all inside the output.
            let target = unsafe { to.slice(target, count * size) };
            target.copy_from_slice(&from[at * size..(at + count) * size]);
            at += count;
        }
    });
    Ok(())
}

/// Sets the positions `range` along `dim` of the fresh tensor `out` to `value`.
pub(super) fn fill<T: Element>(
    out: &mut Tensor,
    dim: usize,
    range: std::ops::Range<usize>,
    value: T,
) -> Result<()> {
    if out.device().is_cuda() {
        return cuda::fill(out, dim, range, value);
    }
    let inner: usize = out.dims()[dim + 1..].iter().product();
    let row = out.dims()[dim] * inner;
    if row > 0 && !range.is_empty() {
        for row in out.as_slice_mut::<T>()?.chunks_exact_mut(row) {
            row[range.start * inner..range.end * inner].fill(value);
        }
    }
    Ok(())
}
