//! Reading and writing rows of the operator's arrays: any row stride, f32 or bf16, widened into padded
//! f32 tiles and rounded on the way out.

use super::tile::padded;
use danaus_runtime::simd::{self, Kernel, Lane, Simd};
use danaus_runtime::threads::SharedMut;
use half::bf16;

/// Elements to read.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half of it, widened on load.
    Bf16(&'a [bf16]),
}

/// A matrix to read: row `r` starts at element `r * stride`.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The elements.
    pub data: Source<'a>,
    /// Distance between rows.
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// Contiguous rows of f32.
    pub fn f32(data: &'a [f32], stride: usize) -> Self {
        Self { data: Source::F32(data), stride }
    }
}

/// Elements to write, one task each its own.
#[derive(Clone, Copy)]
pub enum Target {
    /// Single precision.
    F32(SharedMut<f32>),
    /// Rounded to nearest even.
    Bf16(SharedMut<bf16>),
}

impl Target {
    /// Writes into f32 elements.
    pub fn f32(data: &mut [f32]) -> Self {
        Target::F32(SharedMut::new(data))
    }

    /// Writes into bf16 elements.
    pub fn bf16(data: &mut [bf16]) -> Self {
        Target::Bf16(SharedMut::new(data))
    }
}

/// A block of a matrix: `rows x columns` elements whose first lies at `offset`.
#[derive(Clone, Copy)]
pub struct Block {
    /// Index of the first element.
    pub offset: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Distance between rows.
    pub stride: usize,
}

impl Block {
    /// One past the last element.
    fn end(&self) -> usize {
        match self.rows {
            0 => self.offset,
            rows => self.offset + (rows - 1) * self.stride + self.columns,
        }
    }
}

/// Copies `rows` rows from `first_row`, `columns` columns from `first_column`, into a tile whose rows
/// are `padded(columns)` long; the padding becomes zero.
pub fn pack(
    from: Rows,
    (first_row, first_column): (usize, usize),
    (rows, columns): (usize, usize),
    tile: &mut [f32],
) {
    let offset = first_row * from.stride + first_column;
    let block = Block { offset, rows, columns, stride: from.stride };
    simd::dispatch(Pack { from: from.data, block, tile });
}

struct Pack<'a> {
    from: Source<'a>,
    block: Block,
    tile: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.from {
            Source::F32(data) => pack_rows(s, data, self.block, self.tile),
            Source::Bf16(data) => pack_rows(s, data, self.block, self.tile),
        }
    }
}

#[inline(always)]
fn pack_rows<S: Simd, T: Lane>(s: S, data: &[T], block: Block, tile: &mut [f32]) {
    let width = padded(block.columns);
    assert!(data.len() >= block.end() && tile.len() >= block.rows * width);
    for row in 0..block.rows {
        let from = data[block.offset + row * block.stride..].as_ptr();
        let to = tile[row * width..].as_mut_ptr();
        let mut column = 0;
        prefetch(data, block.offset + (row + block.rows) * block.stride, block.columns);
        // SAFETY: the assertion above covers every row of both sides.
        unsafe {
            while column + S::LANES <= block.columns {
                s.store(to.add(column), T::load(s, from.add(column)));
                column += S::LANES;
            }
            if column < block.columns {
                let rest = T::load_partial(s, from.add(column), block.columns - column);
                s.store(to.add(column), rest);
                column += S::LANES;
            }
            while column < width {
                s.store(to.add(column), s.zero());
                column += S::LANES;
            }
        }
    }
}

/// Asks for the row that the next chunk will start from: rows of one head lie pages apart, too far for
/// the hardware to guess.
#[inline(always)]
fn prefetch<T>(data: &[T], at: usize, columns: usize) {
    #[cfg(target_arch = "x86_64")]
    if at + columns <= data.len() {
        let line = (64 / size_of::<T>()).max(1);
        for column in (0..columns).step_by(line) {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            // SAFETY: a prefetch never faults, and the element exists.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(data.as_ptr().add(at + column).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, at, columns);
}

/// Writes a padded tile to a block of the target.
///
/// # Safety
/// The block lies in the target and no other task touches it meanwhile.
pub unsafe fn unpack(tile: &[f32], to: Target, block: Block) {
    simd::dispatch(Unpack { tile, to, block });
}

struct Unpack<'a> {
    tile: &'a [f32],
    to: Target,
    block: Block,
}

impl Kernel for Unpack<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: promised by the caller of `unpack`.
        unsafe {
            match self.to {
                Target::F32(data) => unpack_rows(s, self.tile, data.ptr(), self.block),
                Target::Bf16(data) => unpack_rows(s, self.tile, data.ptr(), self.block),
            }
        }
    }
}

/// # Safety
/// As [`unpack`].
#[inline(always)]
unsafe fn unpack_rows<S: Simd, T: Lane>(s: S, tile: &[f32], data: *mut T, block: Block) {
    let width = padded(block.columns);
    assert!(tile.len() >= block.rows * width);
    for row in 0..block.rows {
        let from = tile[row * width..].as_ptr();
        let mut column = 0;
        // SAFETY: the block lies in the target, the row in the tile.
        unsafe {
            let to = data.add(block.offset + row * block.stride);
            while column + S::LANES <= block.columns {
                T::store(s, to.add(column), s.load(from.add(column)));
                column += S::LANES;
            }
            if column < block.columns {
                let rest = block.columns - column;
                T::store_partial(s, to.add(column), s.load_partial(from.add(column), rest), rest);
            }
        }
    }
}

/// Rows that [`transpose`] reads side by side.
const STRIP: usize = 8;

/// `to[c, r] = from[r, c]` for tiles with padded rows; the padding of `to` becomes zero.
pub fn transpose(from: &[f32], (rows, columns): (usize, usize), to: &mut [f32]) {
    let (from_row, to_row) = (padded(columns), padded(rows));
    let to = &mut to[..columns * to_row];
    let row = |index: usize| &from[index * from_row..index * from_row + columns];
    let whole = rows / STRIP * STRIP;
    for first in (0..whole).step_by(STRIP) {
        let strip: [&[f32]; STRIP] = std::array::from_fn(|r| row(first + r));
        for (column, to) in to.chunks_exact_mut(to_row).enumerate() {
            let lane: [f32; STRIP] = std::array::from_fn(|r| strip[r][column]);
            to[first..first + STRIP].copy_from_slice(&lane);
        }
    }
    for (column, to) in to.chunks_exact_mut(to_row).enumerate() {
        for index in whole..rows {
            to[index] = row(index)[column];
        }
        to[rows..].fill(0.0);
    }
}
