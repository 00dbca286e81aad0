//! A few rows of queries against keys and values where they lie: the decoding step.
//!
//! Packing a tile costs a copy of its keys and values, which pays when a panel of rows uses it and takes
//! longer than the arithmetic when there is one. Here sixteen keys by sixteen words of features are
//! loaded and transposed in registers, so that keys are lanes, and rows of values are streamed as they
//! are. Every score is summed over the features one by one and every output over the keys of a tile one
//! by one, from zero, as the packed products do: the bits are the same (a tile of a prompt and a step
//! agree). Words are f32, or pairs of bf16: neighbours along the features for scores, of two keys for
//! outputs.
//!
//! Scores of few rows would fill one lane of sixteen in the panel's layout, and their exponentials as
//! many. Where the tile needs no mask they lie as rows of keys instead ([`Layout::ROWS`]).
//!
//! Rows of a cache lie apart by all heads, too short and too far from each other for the hardware to
//! fetch ahead: the rows that follow are asked for while these are used.
//!
//! With AVX-512, f32 and bf16 only; other processors and types pack.

use super::mask::PANEL;
use super::softmax::ROW_KEYS;
use half::bf16;
use std::arch::x86_64::*;

/// Rows at most.
pub const MOST: usize = 8;

/// Where scores and probabilities lie: distances of keys (or pairs of keys) and of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    key: usize,
    row: usize,
}

impl Layout {
    /// Rows are lanes, as in the panels of many rows.
    pub const LANES: Self = Self { key: PANEL, row: 1 };
    /// A row is contiguous.
    pub const ROWS: Self = Self { key: 1, row: ROW_KEYS };
}

/// One tile's work.
pub struct Tile<'a, T> {
    /// Rows of queries, at most [`MOST`].
    pub rows: usize,
    /// Rows of the keys (for scores) or values (for outputs), `width` elements each.
    pub keys: &'a [*const T],
    /// Features.
    pub width: usize,
    /// Where scores lie.
    pub layout: Layout,
}

/// Elements that can be read in place.
pub trait InPlace: Sized {
    /// Elements of a word along a contraction.
    const STEP: usize;
    /// The first of up to sixteen words of a row of features, of which so many elements are left.
    ///
    /// # Safety
    /// Those elements are readable.
    unsafe fn features(from: *const Self, left: usize) -> __m512;
    /// Words of [`Self::STEP`] rows (the second is zero where there is none), sixteen features or the
    /// first few.
    ///
    /// # Safety
    /// The features of the mask are readable.
    unsafe fn values(first: *const Self, second: Option<*const Self>, mask: __mmask16) -> __m512;
    /// `sum + a . b`, word by word.
    ///
    /// # Safety
    /// The processor has the instruction.
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512;
    /// [`Tile::scores`] with the instructions of the type.
    ///
    /// # Safety
    /// As [`Tile::scores`].
    unsafe fn scores<const ROWS: usize>(tile: &Tile<Self>, q: &[f32], scores: &mut [f32]);
    /// [`Tile::outputs`] with the instructions of the type.
    ///
    /// # Safety
    /// As [`Tile::outputs`].
    unsafe fn outputs<const ROWS: usize>(
        tile: &Tile<Self>,
        p: &[f32],
        output: &mut [f32],
        stride: usize,
    );
}

// SAFETY of every block: addresses are readable as the callers promise, masked lanes are not read.
#[allow(clippy::undocumented_unsafe_blocks)]
impl InPlace for f32 {
    const STEP: usize = 1;
    #[inline(always)]
    unsafe fn features(from: *const Self, left: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(first(left), from) }
    }
    #[inline(always)]
    unsafe fn values(row: *const Self, _: Option<*const Self>, mask: __mmask16) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(mask, row) }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn scores<const ROWS: usize>(tile: &Tile<Self>, q: &[f32], scores: &mut [f32]) {
        unsafe { scores_of::<Self, ROWS>(tile, q, scores) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn outputs<const ROWS: usize>(
        tile: &Tile<Self>,
        p: &[f32],
        output: &mut [f32],
        stride: usize,
    ) {
        unsafe { outputs_of::<Self, ROWS>(tile, p, output, stride) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl InPlace for bf16 {
    const STEP: usize = 2;
    #[inline(always)]
    unsafe fn features(from: *const Self, left: usize) -> __m512 {
        let mask = if left >= 32 { u32::MAX } else { (1 << left) - 1 };
        unsafe { _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, from.cast())) }
    }
    #[inline(always)]
    unsafe fn values(row: *const Self, next: Option<*const Self>, mask: __mmask16) -> __m512 {
        unsafe {
            let low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row.cast()));
            let Some(next) = next else { return _mm512_castsi512_ps(low) };
            let high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, next.cast()));
            _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high)))
        }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        unsafe {
            let pairs = |x| std::mem::transmute::<__m512, __m512bh>(x);
            _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
        }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn scores<const ROWS: usize>(tile: &Tile<Self>, q: &[f32], scores: &mut [f32]) {
        unsafe { scores_of::<Self, ROWS>(tile, q, scores) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn outputs<const ROWS: usize>(
        tile: &Tile<Self>,
        p: &[f32],
        output: &mut [f32],
        stride: usize,
    ) {
        unsafe { outputs_of::<Self, ROWS>(tile, p, output, stride) }
    }
}

impl<T: InPlace> Tile<'_, T> {
    /// `scores[key][row] = q[.][row] . k[key]`, by the layout; in that of lanes the other lanes of the
    /// first vector become 0. `q` is (word of feature, [`MOST`]).
    ///
    /// # Safety
    /// The processor has AVX-512 (and its bf16 part for bf16), `keys` are readable, `scores` holds
    /// (64, PANEL) elements.
    pub unsafe fn scores(&self, q: &[f32], scores: &mut [f32]) {
        assert!(q.len() >= self.width.div_ceil(T::STEP) * MOST && self.keys.len() <= ROW_KEYS);
        assert!(scores.len() >= ROW_KEYS * PANEL && self.rows <= MOST);
        // SAFETY: promised by the caller; the sizes were just checked.
        unsafe {
            match self.rows {
                1 => T::scores::<1>(self, q, scores),
                2 => T::scores::<2>(self, q, scores),
                3..=4 => T::scores::<4>(self, q, scores),
                _ => T::scores::<MOST>(self, q, scores),
            }
        }
    }

    /// `output[row] += sum over keys of p[key][row] v[key]`; `output` has rows of `stride` elements.
    ///
    /// # Safety
    /// As [`Self::scores`]; `p` holds probabilities by the layout, in words.
    pub unsafe fn outputs(&self, p: &[f32], output: &mut [f32], stride: usize) {
        let words = self.keys.len().div_ceil(T::STEP);
        let (last_key, last_row) = (words.saturating_sub(1) * self.layout.key, MOST - 1);
        assert!(p.len() > last_key + last_row * self.layout.row);
        assert!(self.rows <= MOST && output.len() >= self.rows * stride);
        assert!(stride.is_multiple_of(16) && stride >= self.width);
        // SAFETY: as above.
        unsafe {
            match self.rows {
                1 => T::outputs::<1>(self, p, output, stride),
                2 => T::outputs::<2>(self, p, output, stride),
                3..=4 => T::outputs::<4>(self, p, output, stride),
                _ => T::outputs::<MOST>(self, p, output, stride),
            }
        }
    }
}

/// Rows of values that are fetched ahead.
const ROWS_AHEAD: usize = 12;

/// A mask of the first `count` lanes.
#[inline(always)]
fn first(count: usize) -> __mmask16 {
    if count >= 16 { u16::MAX } else { (1 << count) - 1 }
}

/// # Safety
/// As [`Tile::scores`]; inlined where the instructions are enabled.
#[inline(always)]
unsafe fn scores_of<T: InPlace, const ROWS: usize>(tile: &Tile<T>, q: &[f32], scores: &mut [f32]) {
    let last = tile.keys.len() - 1;
    let words = tile.width.div_ceil(T::STEP);
    // SAFETY: promised by the caller; masked lanes are not read.
    unsafe {
        for start in (0..tile.keys.len()).step_by(16) {
            let mut sums = [_mm512_setzero_ps(); ROWS];
            for word in (0..words).step_by(16) {
                let feature = word * T::STEP;
                let load = |i: usize| {
                    // Past the last key the last one stands in; its scores are not used.
                    let key = tile.keys[(start + i).min(last)].add(feature);
                    let next = tile.keys[(start + 16 + i).min(last)].wrapping_add(feature);
                    _mm_prefetch::<_MM_HINT_T0>(next.cast());
                    T::features(key, tile.width - feature)
                };
                let lanes = danaus_runtime::simd::transpose_units(std::array::from_fn(load));
                let q = q.as_ptr().add(word * MOST);
                if words - word >= 16 {
                    for d in 0..16 {
                        add_word::<T, ROWS>(&mut sums, lanes[d], q.add(d * MOST));
                    }
                } else {
                    for d in 0..words - word {
                        add_word::<T, ROWS>(&mut sums, lanes[d], q.add(d * MOST));
                    }
                }
            }
            store_scores(tile, start, &sums, scores);
        }
    }
}

/// Scores of sixteen keys from `start` on.
///
/// # Safety
/// As [`Tile::scores`].
#[inline(always)]
unsafe fn store_scores<T, const ROWS: usize>(
    tile: &Tile<T>,
    start: usize,
    sums: &[__m512; ROWS],
    scores: &mut [f32],
) {
    // SAFETY: rows of ROW_KEYS keys have room for whole vectors.
    unsafe {
        if tile.layout == Layout::ROWS {
            for row in 0..tile.rows.min(ROWS) {
                let to = scores.as_mut_ptr().add(row * ROW_KEYS + start);
                _mm512_storeu_ps(to, sums[row]);
            }
            return;
        }
        let mut columns = [[0.0f32; 16]; ROWS];
        for row in 0..ROWS {
            _mm512_storeu_ps(columns[row].as_mut_ptr(), sums[row]);
        }
        let keys = scores[start * PANEL..].chunks_exact_mut(PANEL);
        for (i, lanes) in keys.take((tile.keys.len() - start).min(16)).enumerate() {
            lanes[..16].fill(0.0);
            for row in 0..ROWS {
                lanes[row] = columns[row][i];
            }
        }
    }
}

/// One word of sixteen keys times that of every row.
///
/// # Safety
/// `q` holds a value a row.
#[inline(always)]
unsafe fn add_word<T: InPlace, const ROWS: usize>(
    sums: &mut [__m512; ROWS],
    keys: __m512,
    q: *const f32,
) {
    for row in 0..ROWS {
        // SAFETY: promised by the caller.
        unsafe { sums[row] = T::multiply_add(keys, _mm512_set1_ps(*q.add(row)), sums[row]) };
    }
}

/// # Safety
/// As [`Tile::outputs`]; inlined where the instructions are enabled.
#[inline(always)]
unsafe fn outputs_of<T: InPlace, const ROWS: usize>(
    tile: &Tile<T>,
    p: &[f32],
    output: &mut [f32],
    stride: usize,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut feature = 0;
        while ROWS <= 4 && feature + 64 <= tile.width {
            columns::<T, ROWS, 4>(tile, p, output, stride, feature);
            feature += 64;
        }
        while feature + 32 <= tile.width {
            columns::<T, ROWS, 2>(tile, p, output, stride, feature);
            feature += 32;
        }
        while feature < tile.width {
            columns::<T, ROWS, 1>(tile, p, output, stride, feature);
            feature += 16;
        }
    }
}

/// `VECTORS` vectors of features of all rows, over all keys.
///
/// # Safety
/// As [`Tile::outputs`]; the features lie below the width, the last vector perhaps in part.
#[inline(always)]
unsafe fn columns<T: InPlace, const ROWS: usize, const VECTORS: usize>(
    tile: &Tile<T>,
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
        for (word, rows) in tile.keys.chunks(T::STEP).enumerate() {
            let p = p.as_ptr().add(word * tile.layout.key);
            for ahead in 0..T::STEP {
                let later = (word * T::STEP + ahead + ROWS_AHEAD).min(last);
                let later = tile.keys[later].wrapping_add(feature);
                // A line holds 16 STEP elements.
                for n in (0..VECTORS).step_by(T::STEP) {
                    _mm_prefetch::<_MM_HINT_T0>(later.wrapping_add(16 * n).cast());
                }
            }
            let values: [__m512; VECTORS] = std::array::from_fn(|n| {
                let mask = if n + 1 == VECTORS { mask } else { u16::MAX };
                let at = feature + 16 * n;
                T::values(rows[0].add(at), rows.get(1).map(|row| row.add(at)), mask)
            });
            for row in 0..ROWS {
                let p = _mm512_set1_ps(*p.add(row * tile.layout.row));
                for n in 0..VECTORS {
                    sums[row][n] = T::multiply_add(p, values[n], sums[row][n]);
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
