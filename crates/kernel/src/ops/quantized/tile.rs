//! The inner loops: blocks times f32 rows.
//!
//! Every sum is one vector of partial sums, `sum[lane] += w[k + lane] x[k + lane]` with k in steps of a
//! vector, fused, whose lanes are added at the end by [`Simd::reduce_add`]. One row of x from
//! registers, and tiles over decoded rows with sums put aside between pieces of k, follow the same
//! order and give the same bits.

use super::decode::{Format, GROUP, for_groups};
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{Kernel, Simd};
use std::marker::PhantomData;

/// Rows of W that are decoded in registers together: as many streams of memory.
const STREAMS: usize = 4;

/// Rows of W in scratch memory, and rows of x, of a tile of sums: 24 of 32 vector registers.
const PANEL: usize = 6;
const QUAD: usize = 4;

/// Elements of k of a tile: six rows of 512 f32 are 12 KiB, four rows of x 8 KiB.
const DEPTH: usize = 512;

/// Bytes of blocks that are fetched into the first-level cache ahead of their use; more go to the
/// second. Four streams as short as rows of blocks are, each new every few microseconds, are too much
/// for the hardware's own prefetching: without ours, one core reads 9 GB/s, with it 17.
const NEAR_BYTES: usize = 20 << 10;

/// The longest vector.
const MAX_LANES: usize = 16;

/// Decodes blocks one after another.
pub(super) struct Decode<'a, F> {
    blocks: &'a [u8],
    out: &'a mut [f32],
    format: PhantomData<F>,
}

impl<'a, F: Format> Decode<'a, F> {
    /// # Panics
    /// If the blocks do not fill `out`.
    pub(super) fn new(blocks: &'a [u8], out: &'a mut [f32]) -> Self {
        let (bytes, len) = (F::KIND.block_bytes(), F::KIND.block_len());
        assert!(out.len().is_multiple_of(len) && blocks.len() == out.len() / len * bytes, "blocks");
        Self { blocks, out, format: PhantomData }
    }
}

impl<F: Format> Kernel for Decode<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let groups = self.out.len() / GROUP;
        // SAFETY: `new` checked the lengths.
        unsafe { decode_row::<S, F>(s, self.blocks.as_ptr(), groups, 0, self.out.as_mut_ptr()) };
    }
}

/// Decodes `groups` groups of successive blocks, and asks for the bytes `ahead` of them, which will be
/// decoded after the tiles of these rows: between, the hardware would forget what was being read.
///
/// # Safety
/// The blocks exist, `to` has room, and the groups are whole blocks.
#[inline(always)]
unsafe fn decode_row<S: Simd, F: Format>(
    s: S,
    blocks: *const u8,
    groups: usize,
    ahead: usize,
    to: *mut f32,
) {
    let per_block = F::KIND.block_len() / GROUP;
    for block in 0..groups / per_block {
        // SAFETY: promised by the caller.
        unsafe {
            let to = to.add(block * F::KIND.block_len());
            let block = blocks.add(block * F::KIND.block_bytes());
            for line in (0..F::KIND.block_bytes()).step_by(64) {
                s.prefetch_far(block.wrapping_add(ahead + line));
            }
            let shared = F::shared(s, block);
            for_groups!(F, G => {
                let w = F::group::<S, G>(s, block, &shared);
                for i in 0..GROUP / S::LANES {
                    s.store(to.add(G * GROUP + i * S::LANES), w[i]);
                }
            });
        }
    }
}

/// The products of some rows of W with all rows of x.
pub(super) struct Rows<'a> {
    /// The rows of W.
    pub blocks: &'a [u8],
    /// Their number.
    pub rows: usize,
    /// Rows of x, `[count, cols]`.
    pub x: &'a [f32],
    /// Their number.
    pub count: usize,
    /// Columns, a multiple of the block.
    pub cols: usize,
    /// Results, `[count, rows]`.
    pub sums: &'a mut [f32],
}

impl<'a> Rows<'a> {
    /// With the type of the blocks.
    ///
    /// # Panics
    /// If a length does not fit.
    pub(super) fn of<F: Format>(self) -> Typed<'a, F> {
        let row_bytes = self.cols / F::KIND.block_len() * F::KIND.block_bytes();
        assert!(self.cols.is_multiple_of(F::KIND.block_len()), "whole blocks");
        assert!(self.blocks.len() == self.rows * row_bytes, "rows of blocks");
        assert!(self.x.len() == self.count * self.cols, "rows of x");
        assert!(self.sums.len() == self.count * self.rows, "sums");
        Typed { rows: self, row_bytes, format: PhantomData }
    }
}

/// [`Rows`] of one type, with checked lengths.
pub(super) struct Typed<'a, F> {
    rows: Rows<'a>,
    row_bytes: usize,
    format: PhantomData<F>,
}

impl<F: Format> Kernel for Typed<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: `Rows::of` checked all lengths.
        unsafe {
            if self.rows.count == 1 {
                self.alone(s);
            } else {
                self.panels(s);
            }
        }
    }
}

impl<F: Format> Typed<'_, F> {
    /// One row of x.
    #[inline(always)]
    unsafe fn alone<S: Simd>(self, s: S) {
        let Rows { blocks, rows, x, cols, sums, .. } = self.rows;
        let row = |row: usize| blocks.as_ptr().wrapping_add(row * self.row_bytes);
        let mut next = 0;
        while next + STREAMS <= rows {
            let from: [*const u8; STREAMS] = std::array::from_fn(|r| row(next + r));
            // SAFETY: the rows exist and are as long as x.
            let found = unsafe { streams::<S, F, STREAMS>(s, from, x.as_ptr(), cols) };
            sums[next..next + STREAMS].copy_from_slice(&found);
            next += STREAMS;
        }
        while next < rows {
            // SAFETY: as above.
            [sums[next]] = unsafe { streams::<S, F, 1>(s, [row(next)], x.as_ptr(), cols) };
            next += 1;
        }
    }

    /// Several rows of x.
    #[inline(always)]
    unsafe fn panels<S: Simd>(self, s: S) {
        let Rows { blocks, rows, x, count, cols, sums } = self.rows;
        // Rows of the last panel that do not exist stay what they were: their sums are not read.
        let mut panel = Scratch::<f32>::new(PANEL * cols);
        let quads = count.div_ceil(QUAD);
        let mut partial = Scratch::<f32>::new(quads * QUAD * PANEL * MAX_LANES);
        for first in (0..rows).step_by(PANEL) {
            let present = PANEL.min(rows - first);
            for r in 0..present {
                // SAFETY: the row exists, and the panel has room for it.
                unsafe {
                    let from = blocks.as_ptr().add((first + r) * self.row_bytes);
                    let ahead = PANEL * self.row_bytes;
                    let to = panel.as_mut_ptr().add(r * cols);
                    decode_row::<S, F>(s, from, cols / GROUP, ahead, to);
                }
            }
            for start in (0..cols).step_by(DEPTH) {
                let depth = DEPTH.min(cols - start);
                for quad in 0..quads {
                    let at = quad * QUAD * cols + start;
                    let tile = Tile {
                        x: x.as_ptr().wrapping_add(at),
                        w: panel.as_ptr().wrapping_add(start),
                        stride: cols,
                        depth,
                        partial: partial.as_mut_ptr().wrapping_add(quad * QUAD * PANEL * MAX_LANES),
                        fresh: start == 0,
                    };
                    // SAFETY: the rows of the quad and of the panel exist.
                    unsafe { tile.any_height(s, (count - quad * QUAD).min(QUAD)) };
                }
            }
            for row in 0..count {
                for r in 0..present {
                    let at = (row * PANEL + r) * MAX_LANES;
                    // SAFETY: the tiles have written every partial sum of existing rows.
                    let sum = unsafe { s.load(partial.as_ptr().add(at)) };
                    sums[row * rows + first + r] = s.reduce_add(sum);
                }
            }
        }
    }
}

/// The products of `R` successive rows of W with one row of x.
///
/// # Safety
/// The rows exist, one after another, and have `cols` weights, as x has elements.
#[inline(always)]
unsafe fn streams<S: Simd, F: Format, const R: usize>(
    s: S,
    rows: [*const u8; R],
    x: *const f32,
    cols: usize,
) -> [f32; R] {
    let (len, bytes) = (F::KIND.block_len(), F::KIND.block_bytes());
    let row_bytes = cols / len * bytes;
    // The rows follow each other in memory: what the next call reads is as far ahead as these are long.
    let next = rows[0].wrapping_add(R * row_bytes);
    let near = R * row_bytes <= NEAR_BYTES;
    let mut sums = [s.zero(); R];
    for block in 0..cols / len {
        for line in (0..R * bytes).step_by(64) {
            let address = next.wrapping_add(block * R * bytes + line);
            if near { s.prefetch(address) } else { s.prefetch_far(address) }
        }
        // SAFETY: promised by the caller.
        unsafe {
            let x = x.add(block * len);
            let mut shared = [F::shared(s, rows[0].add(block * bytes)); R];
            for r in 1..R {
                shared[r] = F::shared(s, rows[r].add(block * bytes));
            }
            for_groups!(F, G => {
                let mut values = [s.zero(); 4];
                for i in 0..GROUP / S::LANES {
                    values[i] = s.load(x.add(G * GROUP + i * S::LANES));
                }
                for r in 0..R {
                    let w = F::group::<S, G>(s, rows[r].add(block * bytes), &shared[r]);
                    for i in 0..GROUP / S::LANES {
                        sums[r] = s.fma(w[i], values[i], sums[r]);
                    }
                }
            });
        }
    }
    let mut out = [0.0; R];
    for r in 0..R {
        out[r] = s.reduce_add(sums[r]);
    }
    out
}

/// Up to four rows of x against six decoded rows of W over a piece of k.
#[derive(Clone, Copy)]
struct Tile {
    /// First rows, from the piece's first k on.
    x: *const f32,
    w: *const f32,
    /// Elements from one row to the next, of both.
    stride: usize,
    /// Elements of k, a multiple of 32.
    depth: usize,
    /// Vectors of partial sums `[QUAD, PANEL, MAX_LANES]`.
    partial: *mut f32,
    /// Whether to start from zero.
    fresh: bool,
}

impl Tile {
    /// With so many rows of x.
    ///
    /// # Safety
    /// All rows exist; `partial` has its size.
    #[inline(always)]
    unsafe fn any_height<S: Simd>(self, s: S, rows: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            match rows {
                1 => self.any_width::<S, 1>(s),
                2 => self.any_width::<S, 2>(s),
                3 => self.any_width::<S, 3>(s),
                _ => self.any_width::<S, QUAD>(s),
            }
        }
    }

    /// Six rows of W at once where there are 32 registers, else twice three.
    #[inline(always)]
    unsafe fn any_width<S: Simd, const M: usize>(self, s: S) {
        // SAFETY: promised by the caller.
        unsafe {
            if S::LANES == 16 {
                self.multiply::<S, M, PANEL>(s, 0);
            } else {
                self.multiply::<S, M, { PANEL / 2 }>(s, 0);
                self.multiply::<S, M, { PANEL / 2 }>(s, PANEL / 2);
            }
        }
    }

    /// `M` rows of x against `R` rows of W from row `first` on.
    #[inline(always)]
    unsafe fn multiply<S: Simd, const M: usize, const R: usize>(self, s: S, first: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            let w = self.w.add(first * self.stride);
            let partial = self.partial.add(first * MAX_LANES);
            let mut sums = [[s.zero(); R]; M];
            if !self.fresh {
                for m in 0..M {
                    for r in 0..R {
                        sums[m][r] = s.load(partial.add((m * PANEL + r) * MAX_LANES));
                    }
                }
            }
            for k in (0..self.depth).step_by(S::LANES) {
                let mut weights = [s.zero(); R];
                for r in 0..R {
                    weights[r] = s.load(w.add(r * self.stride + k));
                }
                for m in 0..M {
                    let x = s.load(self.x.add(m * self.stride + k));
                    for r in 0..R {
                        sums[m][r] = s.fma(weights[r], x, sums[m][r]);
                    }
                }
            }
            for m in 0..M {
                for r in 0..R {
                    s.store(partial.add((m * PANEL + r) * MAX_LANES), sums[m][r]);
                }
            }
        }
    }
}
