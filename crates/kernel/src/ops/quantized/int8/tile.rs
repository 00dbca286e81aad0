//! The inner loops: codes of rows of W times codes of rows of x.
//!
//! An element of the product is `sum over groups of float(integer sum) * (d_w * d_x)`, from zero, groups
//! in rising order, every product and sum rounded to f32 by itself; for types with minima
//! `m * (d_x * sum of codes of x)` follows in every group. Integer sums are exact and start from
//! `-OFFSET * sum of codes of x`. All paths keep this order and have no fused steps, so that bits depend
//! neither on the instruction set nor on other rows.

use super::super::decode::GROUP;
use super::formats::{Codes, for_steps};
use super::lanes::Lanes;
use super::rounded::{HIGHEST, RECORD, Rounded, TileOfX, tiles};
use danaus_runtime::pool::Scratch;
use std::marker::PhantomData;

/// Elements of k of a panel of decoded rows: sixteen rows of 1024 codes are 16 KiB, a tile of x 8 KiB.
const DEPTH: usize = 1024;

/// Rows of W whose blocks are all there, and where their sums go.
pub(super) struct Rows<'a> {
    /// The rows, a multiple of [`Lanes::ROWS`].
    pub blocks: &'a [u8],
    /// Their number.
    pub rows: usize,
    /// Rows of x.
    pub x: &'a Rounded,
    /// Results `[count, stride]`.
    pub sums: &'a mut [f32],
    /// Elements from one row of sums to the next.
    pub stride: usize,
}

/// Multiplies; `F` is the type of the blocks.
///
/// # Safety
/// The processor has the instructions of `L`.
///
/// # Panics
/// If a length does not fit.
#[inline(always)]
pub(super) unsafe fn multiply<L: Lanes, F: Codes>(l: L, task: Rows) {
    let Rows { blocks, rows, x, sums, stride } = task;
    let row_bytes = x.cols / F::KIND.block_len() * F::KIND.block_bytes();
    assert!(x.cols.is_multiple_of(F::KIND.block_len()), "whole blocks");
    assert!(rows.is_multiple_of(L::ROWS) && blocks.len() == rows * row_bytes, "rows of blocks");
    assert!(rows <= stride && sums.len() + stride >= x.count * stride + rows, "sums");
    let panel_of = |first: usize| blocks[first * row_bytes..].as_ptr();
    // SAFETY: the lengths were checked, and tiles write rows of `sums` that exist.
    unsafe {
        if x.count == 1 {
            for first in (0..rows).step_by(L::ROWS) {
                let to = sums[first..].as_mut_ptr();
                alone::<L, F>(l, panel_of(first), row_bytes, x, to);
            }
            return;
        }
        let mut panel = Panel::<L, F>::new(x.cols.min(DEPTH));
        for first in (0..rows).step_by(L::ROWS) {
            for start in (0..x.cols).step_by(DEPTH) {
                let depth = DEPTH.min(x.cols - start);
                let ahead = L::ROWS * row_bytes;
                let at = start / F::KIND.block_len() * F::KIND.block_bytes();
                panel.decode(l, panel_of(first).add(at), row_bytes, depth, ahead);
                for index in 0..tiles(x.count) {
                    let tile = x.tile(index);
                    let to = sums[tile.first * stride + first..].as_mut_ptr();
                    panel.any_height(l, tile, start, depth, to, stride);
                }
            }
        }
    }
}

/// Vectors of codes, scales and minima of one group.
struct Group<L: Lanes> {
    w: [L::I; 8],
    d: [L::F; 2],
    m: L::F,
}

#[inline(always)]
unsafe fn dot<L: Lanes, F: Codes>(l: L, sum: L::I, w: L::I, x: *const u8) -> L::I {
    // SAFETY: promised by the caller: four codes of x.
    unsafe { if F::WIDE { l.dot::<true>(sum, w, x) } else { l.dot::<false>(sum, w, x) } }
}

/// Adds the products of a group with `M` rows of x, whose codes and record these are.
#[inline(always)]
unsafe fn accumulate<L: Lanes, F: Codes, const M: usize>(
    l: L,
    group: &Group<L>,
    x: *const u8,
    record: *const u32,
    sums: &mut [L::F; M],
) {
    // SAFETY: promised by the caller; a group has eight steps of `4 M` codes and a record of `4 M` words.
    unsafe {
        let number = |kind: usize, m: usize| record.add(kind * M + m).read();
        let steps = 8 / F::SCALES;
        for part in 0..F::SCALES {
            let mut found = [l.splat_i(0); M];
            for m in 0..M {
                found[m] = l.splat_i(number(2 + part, m) as i32);
            }
            for j in part * steps..(part + 1) * steps {
                for m in 0..M {
                    found[m] = dot::<L, F>(l, found[m], group.w[j], x.add(4 * (j * M + m)));
                }
            }
            for m in 0..M {
                let scale = l.mul(group.d[part], l.splat(f32::from_bits(number(0, m))));
                sums[m] = l.add(sums[m], l.mul(l.to_f(found[m]), scale));
            }
        }
        if F::MINIMA {
            for m in 0..M {
                let sum = l.splat(f32::from_bits(number(1, m)));
                sums[m] = l.add(sums[m], l.mul(group.m, sum));
            }
        }
    }
}

/// One row of x against the rows of one vector, codes straight from registers.
#[inline(always)]
unsafe fn alone<L: Lanes, F: Codes>(
    l: L,
    rows: *const u8,
    stride: usize,
    x: &Rounded,
    to: *mut f32,
) {
    let tile = x.tile(0);
    let (len, bytes) = (F::KIND.block_len(), F::KIND.block_bytes());
    // The rows follow each other: what the next call reads is as far ahead as these are long.
    let next = rows.wrapping_add(L::ROWS * stride);
    let mut sums = [l.splat(0.0)];
    for block in 0..x.cols / len {
        for line in (0..L::ROWS * bytes).step_by(64) {
            l.prefetch(next.wrapping_add(block * L::ROWS * bytes + line));
        }
        // SAFETY: the caller's rows have so many blocks, x as many groups.
        unsafe {
            let from = rows.add(block * bytes);
            let scales = F::scales(l, from, stride);
            for_steps!(F, P => {
                let codes = F::codes::<L, P>(l, from, stride);
                for s in 0..F::STEP {
                    let own = P * F::STEP + s;
                    let d = [scales.d[own * F::SCALES], scales.d[(own * F::SCALES + 1) % 16]];
                    let group = Group { w: codes[s], d, m: scales.m[own] };
                    let index = block * (len / GROUP) + own;
                    let codes = tile.codes.add(index * GROUP);
                    let record = tile.records.add(index * RECORD);
                    accumulate::<L, F, 1>(l, &group, codes, record, &mut sums);
                }
            });
        }
    }
    // SAFETY: promised by the caller.
    unsafe { l.store(to, sums[0]) };
}

/// The rows of one vector as codes in scratch memory.
struct Panel<L, F> {
    /// `[depth / 4][ROWS]`.
    codes: Scratch<u32>,
    /// `[depth / 32][SCALES][ROWS]`.
    d: Scratch<f32>,
    /// `[depth / 32][ROWS]`.
    m: Scratch<f32>,
    marker: PhantomData<(L, F)>,
}

impl<L: Lanes, F: Codes> Panel<L, F> {
    fn new(depth: usize) -> Self {
        Self {
            codes: Scratch::new(depth / 4 * L::ROWS),
            d: Scratch::new(depth / GROUP * F::SCALES * L::ROWS),
            m: Scratch::new(if F::MINIMA { depth / GROUP * L::ROWS } else { 0 }),
            marker: PhantomData,
        }
    }

    /// Decodes `depth` columns, and asks for the bytes `ahead`.
    #[inline(always)]
    unsafe fn decode(&mut self, l: L, rows: *const u8, stride: usize, depth: usize, ahead: usize) {
        let (len, bytes) = (F::KIND.block_len(), F::KIND.block_bytes());
        let (codes_to, d_to) = (self.codes.as_mut_ptr(), self.d.as_mut_ptr());
        let m_to = self.m.as_mut_ptr();
        for block in 0..depth / len {
            // SAFETY: the caller's rows have so many blocks, the buffers room for them.
            unsafe {
                let from = rows.add(block * bytes);
                for row in 0..L::ROWS {
                    for line in (0..bytes).step_by(64) {
                        l.prefetch(from.wrapping_add(ahead + row * stride + line));
                    }
                }
                let scales = F::scales(l, from, stride);
                for_steps!(F, P => {
                    let codes = F::codes::<L, P>(l, from, stride);
                    for s in 0..F::STEP {
                        let own = P * F::STEP + s;
                        let index = block * (len / GROUP) + own;
                        for j in 0..8 {
                            l.store_i(codes_to.add((index * 8 + j) * L::ROWS), codes[s][j]);
                        }
                        for part in 0..F::SCALES {
                            let to = d_to.add((index * F::SCALES + part) * L::ROWS);
                            l.store(to, scales.d[own * F::SCALES + part]);
                        }
                        if F::MINIMA {
                            l.store(m_to.add(index * L::ROWS), scales.m[own]);
                        }
                    }
                });
            }
        }
    }

    #[inline(always)]
    unsafe fn any_height(
        &self,
        l: L,
        tile: TileOfX,
        start: usize,
        depth: usize,
        to: *mut f32,
        stride: usize,
    ) {
        // SAFETY: promised by the caller.
        unsafe {
            match tile.height {
                1 => self.multiply::<1>(l, tile, start, depth, to, stride),
                2 => self.multiply::<2>(l, tile, start, depth, to, stride),
                4 => self.multiply::<4>(l, tile, start, depth, to, stride),
                _ => self.multiply::<HIGHEST>(l, tile, start, depth, to, stride),
            }
        }
    }

    /// Columns `start..start + depth` of a tile of x; later pieces add to what is there.
    #[inline(always)]
    unsafe fn multiply<const M: usize>(
        &self,
        l: L,
        tile: TileOfX,
        start: usize,
        depth: usize,
        to: *mut f32,
        stride: usize,
    ) {
        let (codes, d, m) = (self.codes.as_ptr(), self.d.as_ptr(), self.m.as_ptr());
        // SAFETY: promised by the caller: `M` rows of x and of sums exist, and the panel holds `depth`.
        unsafe {
            let mut sums = [l.splat(0.0); M];
            if start > 0 {
                for row in 0..M {
                    sums[row] = l.load(to.add(row * stride));
                }
            }
            for index in 0..depth / GROUP {
                let mut w = [l.splat_i(0); 8];
                for j in 0..8 {
                    w[j] = l.load_i(codes.add((index * 8 + j) * L::ROWS));
                }
                let first = l.load(d.add(index * F::SCALES * L::ROWS));
                let mut group = Group { w, d: [first; 2], m: first };
                if F::SCALES == 2 {
                    group.d[1] = l.load(d.add((index * 2 + 1) * L::ROWS));
                }
                if F::MINIMA {
                    group.m = l.load(m.add(index * L::ROWS));
                }
                let at = start / GROUP + index;
                let x = tile.codes.add(at * GROUP * M);
                let record = tile.records.add(at * RECORD * M);
                accumulate::<L, F, M>(l, &group, x, record, &mut sums);
            }
            for row in 0..M {
                l.store(to.add(row * stride), sums[row]);
            }
        }
    }
}
