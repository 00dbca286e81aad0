//! Rows of x rounded to eight bits.
//!
//! Thirty-two elements share a scale `d = max|x| / 127`; codes are `x / d` to the nearest integer, ties
//! to even. A group that holds a NaN or an infinity has a NaN for a scale, one whose elements are all
//! below 2^-100 counts as zero.
//!
//! Rows lie in tiles of 8, 4, 2 and 1, four codes of every row of a tile side by side: what one step of
//! the inner loop reads are successive bytes. Beside the codes stands a [`Record`] for every group.

use super::super::decode::GROUP;
use crate::vector::rows_of;
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{Kernel, Simd, dispatch};
use danaus_runtime::threads::{self, SharedMut};

/// Rows of the highest tile.
pub(super) const HIGHEST: usize = 8;

/// Numbers that a group has for every row: scale, scale times the sum of codes, and the two integers
/// that sums of products start from.
pub(super) const RECORD: usize = 4;

/// Elements worth a task.
const GRAIN: usize = 1 << 14;

/// What a type of W makes of the sums of codes.
#[derive(Clone, Copy)]
pub(super) struct Starts {
    /// What was added to the codes of W.
    pub offset: i32,
    /// Scales in 32 weights, 1 or 2.
    pub scales: usize,
}

/// Rows of x as codes.
pub(in super::super) struct Rounded {
    pub count: usize,
    pub cols: usize,
    codes: Scratch<u32>,
    records: Scratch<u32>,
}

/// Successive rows that are multiplied together.
#[derive(Clone, Copy)]
pub(super) struct TileOfX {
    pub first: usize,
    pub height: usize,
    /// Codes `[cols / 4][height][4]`.
    pub codes: *const u8,
    /// Records `[cols / 32][RECORD][height]`, 32 bits each.
    pub records: *const u32,
}

/// Number of tiles of so many rows, and the rows `(first, height)` of one.
pub(super) fn tiles(count: usize) -> usize {
    count / HIGHEST + (count % HIGHEST).count_ones() as usize
}

fn tile(count: usize, index: usize) -> (usize, usize) {
    if index < count / HIGHEST {
        return (index * HIGHEST, HIGHEST);
    }
    let (mut first, mut left) = (count / HIGHEST * HIGHEST, index - count / HIGHEST);
    for height in [4, 2, 1] {
        if count & height != 0 {
            if left == 0 {
                return (first, height);
            }
            (first, left) = (first + height, left - 1);
        }
    }
    (count, 0)
}

impl Rounded {
    /// Rounds `count` rows of `cols` elements, a multiple of 32, in parallel.
    pub(super) fn new(x: &[f32], cols: usize, starts: Starts) -> Self {
        let count = x.len() / cols.max(1);
        assert!(cols.is_multiple_of(GROUP) && x.len() == count * cols, "rows of whole groups");
        let mut codes = Scratch::<u32>::new(count * cols / 4);
        let mut records = Scratch::<u32>::new(count * cols / GROUP * RECORD);
        let (shared, beside) = (SharedMut::new(&mut codes), SharedMut::new(&mut records));
        let (tasks, per_task) = threads::split(tiles(count), GRAIN / (HIGHEST * cols).max(1));
        threads::for_each(tasks, |task| {
            for index in rows_of(task, per_task, tiles(count)) {
                let (first, height) = tile(count, index);
                let len = height * cols;
                // SAFETY: tiles are apart, and lie one after another.
                let (codes, records) = unsafe {
                    let each = cols / GROUP * RECORD;
                    let records = beside.slice(first * each, height * each);
                    (shared.slice(first * cols / 4, len / 4), records)
                };
                let x = &x[first * cols..][..len];
                dispatch(Round { x, cols, height, starts, codes, records });
            }
        });
        Self { count, cols, codes, records }
    }

    pub(super) fn tile(&self, index: usize) -> TileOfX {
        let (first, height) = tile(self.count, index);
        TileOfX {
            first,
            height,
            codes: self.codes[first * self.cols / 4..].as_ptr().cast(),
            records: self.records[first * self.cols / GROUP * RECORD..].as_ptr(),
        }
    }
}

/// The scale of a group and its inverse.
#[inline(always)]
pub(in super::super) fn scale(x: &[f32; GROUP]) -> (f32, f32) {
    // The order of bit patterns without sign is that of magnitudes, with NaN and infinities above all.
    let mut largest = 0u32;
    for value in x {
        largest = largest.max(value.to_bits() & 0x7fff_ffff);
    }
    let most = f32::from_bits(largest);
    if !most.is_finite() {
        (f32::NAN, 0.0)
    } else if most < TINY {
        (0.0, 0.0)
    } else {
        (most / 127.0, 127.0 / most)
    }
}

/// 2^-100: below, the inverse of a scale would overflow.
const TINY: f32 = f32::from_bits((127 - 100) << 23);

/// 1.5 * 2^23: added to a number below 2^22 it leaves the nearest integer in the lowest bits.
const MAGIC: f32 = 12_582_912.0;

/// The code of an element, at most 127 in magnitude.
#[inline(always)]
pub(in super::super) fn code(x: f32, inverse: f32) -> i32 {
    // An infinite x has an inverse of 0 and gives a NaN here, whose bits are of no use but do no harm:
    // the scale is a NaN.
    let bits = (x * inverse + MAGIC).to_bits();
    i32::from((bits & 0xff) as u8 as i8)
}

/// One tile.
struct Round<'a> {
    x: &'a [f32],
    cols: usize,
    height: usize,
    starts: Starts,
    codes: &'a mut [u32],
    records: &'a mut [u32],
}

impl Kernel for Round<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { x, cols, height, starts, codes, records } = self;
        for (row, x) in x.chunks_exact(cols).enumerate() {
            let (groups, _) = x.as_chunks::<GROUP>();
            for (group, x) in groups.iter().enumerate() {
                let (d, inverse) = scale(x);
                let mut found = [0i32; GROUP];
                for e in 0..GROUP {
                    found[e] = code(x[e], inverse);
                }
                let mut sums = [0i32; 2];
                for e in 0..GROUP / 2 {
                    sums[0] += found[e];
                    sums[1] += found[GROUP / 2 + e];
                }
                for j in 0..GROUP / 4 {
                    let byte = |i: usize| (found[4 * j + i] as u32 & 0xff) << (8 * i);
                    let four = byte(0) | byte(1) | byte(2) | byte(3);
                    codes[(group * GROUP / 4 + j) * height + row] = four.to_le();
                }
                let record = &mut records[group * RECORD * height..][..RECORD * height];
                let whole = sums[0] + sums[1];
                let first = if starts.scales == 1 { whole } else { sums[0] };
                record[row] = d.to_bits();
                record[height + row] = (d * whole as f32).to_bits();
                record[2 * height + row] = (-starts.offset * first) as u32;
                record[3 * height + row] = (-starts.offset * sums[1]) as u32;
            }
        }
    }
}
