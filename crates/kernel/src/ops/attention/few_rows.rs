//! A few rows of queries against keys and values where they lie: the decoding step.
//!
//! Packing a tile costs a copy of its keys and values, which pays when a panel of rows uses it and takes
//! longer than the arithmetic when there is one. Here sixteen keys by sixteen features are loaded and
//! transposed in registers, so that keys are lanes, and rows of values are streamed as they are. Every
//! score is summed over the features one by one and every output over the keys of a tile one by one,
//! from zero, as the packed products do: the bits are the same (a tile of a prompt and a step agree).
//!
//! Rows of a cache lie apart by all heads, too short and too far from each other for the hardware to
//! fetch ahead: the rows that follow are asked for while these are used.
//!
//! With AVX-512 and f32 only; other processors and types pack.
//!
//! Measured on 2 cores of Zen 4: a step of 12 heads of 64 over 140 cached tokens went from about 95 to
//! 40 microseconds a layer, most of it reading.

use super::mask::PANEL;
use std::arch::x86_64::*;

/// Rows at most.
pub const MOST: usize = 8;

/// One tile's work.
pub struct Tile<'a> {
    /// Rows of queries, at most [`MOST`].
    pub rows: usize,
    /// Rows of the keys (for scores) or values (for outputs), `width` elements each.
    pub keys: &'a [*const f32],
    /// Features.
    pub width: usize,
}

impl Tile<'_> {
    /// `scores[key][lane] = q[.][lane] . k[key]` for the rows, 0 for the other lanes of the first vector;
    /// `q` is (feature, PANEL).
    ///
    /// # Safety
    /// The processor has AVX-512, `keys` are readable, `q` and `scores` hold PANEL lanes a row.
    pub unsafe fn scores(&self, q: &[f32], scores: &mut [f32]) {
        assert!(q.len() >= self.width * PANEL && scores.len() >= self.keys.len() * PANEL);
        // SAFETY: promised by the caller; the sizes were just checked.
        unsafe {
            match self.rows {
                1 => scores_of::<1>(self, q, scores),
                2 => scores_of::<2>(self, q, scores),
                3..=4 => scores_of::<4>(self, q, scores),
                _ => scores_of::<MOST>(self, q, scores),
            }
        }
    }

    /// `output[lane] += sum over keys of p[key][lane] v[key]`; `output` has rows of `stride` elements.
    ///
    /// # Safety
    /// As [`Self::scores`]; `output` holds the rows.
    pub unsafe fn outputs(&self, p: &[f32], output: &mut [f32], stride: usize) {
        assert!(p.len() >= self.keys.len() * PANEL && output.len() >= self.rows * stride);
        assert!(stride.is_multiple_of(16) && stride >= self.width);
        // SAFETY: as above.
        unsafe {
            match self.rows {
                1 => outputs_of::<1>(self, p, output, stride),
                2 => outputs_of::<2>(self, p, output, stride),
                3..=4 => outputs_of::<4>(self, p, output, stride),
                _ => outputs_of::<MOST>(self, p, output, stride),
            }
        }
    }
}

/// Rows of values that are fetched ahead.
const ROWS_AHEAD: usize = 12;

/// A mask of the first `count` lanes.
fn first(count: usize) -> __mmask16 {
    if count >= 16 { u16::MAX } else { (1 << count) - 1 }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn scores_of<const ROWS: usize>(tile: &Tile, q: &[f32], scores: &mut [f32]) {
    let last = tile.keys.len() - 1;
    // SAFETY: promised to `Tile::scores`; masked lanes are not read.
    unsafe {
        for start in (0..tile.keys.len()).step_by(16) {
            let mut sums = [_mm512_setzero_ps(); ROWS];
            for feature in (0..tile.width).step_by(16) {
                let count = (tile.width - feature).min(16);
                let load = |i: usize| {
                    // Past the last key the last one stands in; its scores are not stored.
                    let key = tile.keys[(start + i).min(last)].add(feature);
                    let next = tile.keys[(start + 16 + i).min(last)].wrapping_add(feature);
                    _mm_prefetch::<_MM_HINT_T0>(next.cast());
                    _mm512_maskz_loadu_ps(first(count), key)
                };
                let lanes = danaus_runtime::simd::transpose_units(std::array::from_fn(load));
                let q = q.as_ptr().add(feature * PANEL);
                if count == 16 {
                    for d in 0..16 {
                        add_feature(&mut sums, lanes[d], q.add(d * PANEL));
                    }
                } else {
                    for d in 0..count {
                        add_feature(&mut sums, lanes[d], q.add(d * PANEL));
                    }
                }
            }
            let mut columns = [[0.0f32; 16]; ROWS];
            for row in 0..ROWS {
                _mm512_storeu_ps(columns[row].as_mut_ptr(), sums[row]);
            }
            let keys = scores[start * PANEL..].chunks_exact_mut(PANEL);
            for (i, lanes) in keys.take((last + 1 - start).min(16)).enumerate() {
                lanes[..16].fill(0.0);
                for row in 0..ROWS {
                    lanes[row] = columns[row][i];
                }
            }
        }
    }
}

/// One feature of sixteen keys times that of every row.
///
/// # Safety
/// `q` holds a value a row.
#[inline(always)]
unsafe fn add_feature<const ROWS: usize>(sums: &mut [__m512; ROWS], keys: __m512, q: *const f32) {
    for row in 0..ROWS {
        // SAFETY: promised by the caller.
        unsafe { sums[row] = _mm512_fmadd_ps(keys, _mm512_set1_ps(*q.add(row)), sums[row]) };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn outputs_of<const ROWS: usize>(tile: &Tile, p: &[f32], output: &mut [f32], stride: usize) {
    // SAFETY: promised to `Tile::outputs`.
    unsafe {
        let mut feature = 0;
        while ROWS <= 4 && feature + 64 <= tile.width {
            columns::<ROWS, 4>(tile, p, output, stride, feature);
            feature += 64;
        }
        while feature + 32 <= tile.width {
            columns::<ROWS, 2>(tile, p, output, stride, feature);
            feature += 32;
        }
        while feature < tile.width {
            columns::<ROWS, 1>(tile, p, output, stride, feature);
            feature += 16;
        }
    }
}

/// `VECTORS` vectors of features of all rows, over all keys.
///
/// # Safety
/// As [`Tile::outputs`]; the features lie below the width, the last vector perhaps in part.
#[inline(always)]
unsafe fn columns<const ROWS: usize, const VECTORS: usize>(
    tile: &Tile,
    p: &[f32],
    output: &mut [f32],
    stride: usize,
    feature: usize,
) {
    // SAFETY: promised by the caller; masked lanes are not read.
    unsafe {
        let mask = first(tile.width - feature - (VECTORS - 1) * 16);
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        let last = tile.keys.len().saturating_sub(1);
        for (key, value) in tile.keys.iter().enumerate() {
            let p = p.as_ptr().add(key * PANEL);
            let later = tile.keys[(key + ROWS_AHEAD).min(last)].wrapping_add(feature);
            for n in 0..VECTORS {
                _mm_prefetch::<_MM_HINT_T0>(later.wrapping_add(16 * n).cast());
            }
            let values: [__m512; VECTORS] = std::array::from_fn(|n| {
                let mask = if n + 1 == VECTORS { mask } else { u16::MAX };
                _mm512_maskz_loadu_ps(mask, value.add(feature + 16 * n))
            });
            for row in 0..ROWS {
                let p = _mm512_set1_ps(*p.add(row));
                for n in 0..VECTORS {
                    sums[row][n] = _mm512_fmadd_ps(p, values[n], sums[row][n]);
                }
            }
        }
        for row in 0..tile.rows.min(ROWS) {
            for n in 0..VECTORS {
                let at = output.as_mut_ptr().add(row * stride + feature + 16 * n);
                _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), sums[row][n]));
            }
        }
    }
}
