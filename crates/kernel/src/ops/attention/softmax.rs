//! The online softmax: state of a panel of rows, updated tile by tile.
//!
//! For each row the state is the running maximum `m` of the raw scores, the running sum
//! `l = sum exp(s - m)` and the unnormalised output `o`. A tile with maximum `m'` rescales `l` and
//! `o` by `exp(m - m')`; the end divides by `l`. Exponentials are taken in base 2 with the scale
//! folded into one multiply-add. Rows are lanes, so maxima and sums need no work across lanes.

use super::mask::{PANEL, TileMask};
use super::pack::Words;
use danaus_runtime::simd::{Kernel, Lane, Simd};

/// Splits x into an integer, left in the low bits of the first result, and a fraction within 1/2.
#[inline(always)]
fn split_exponent<S: Simd>(s: S, x: S::F) -> (S::F, S::F) {
    // Adding 1.5 * 2^23 rounds to an integer.
    let shift = s.splat(12_582_912.0);
    let x = s.max(s.splat(-127.0), x);
    let shifted = s.add(x, shift);
    (shifted, s.sub(x, s.sub(shifted, shift)))
}

/// Multiplies p in [0.7, 1.42] by 2^n by adding n to its exponent field, which gives 0 at -127.
#[inline(always)]
fn scale_exponent<S: Simd>(s: S, p: S::F, shifted: S::F) -> S::F {
    s.from_bits(s.add_i(s.bits(p), s.shl_i::<23>(s.bits(shifted))))
}

/// 2^x for x <= 0 within 2 units in the last place; exactly 0 below -127, NaN stays NaN.
#[inline(always)]
pub fn exp2_negative<S: Simd>(s: S, x: S::F) -> S::F {
    let (shifted, f) = split_exponent(s, x);
    let mut p = s.splat(1.535_336_2e-4);
    for c in
        [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, std::f32::consts::LN_2, 1.0]
    {
        p = s.fma(p, f, s.splat(c));
    }
    scale_exponent(s, p, shifted)
}

/// The same within 3e-6 relative, for results that are rounded to bf16.
#[inline(always)]
pub fn exp2_negative_short<S: Simd>(s: S, x: S::F) -> S::F {
    let (shifted, f) = split_exponent(s, x);
    let mut p = s.splat(9.582_856e-3);
    for c in [5.590_642_5e-2, 2.402_409_9e-1, 6.931_242e-1, 1.0] {
        p = s.fma(p, f, s.splat(c));
    }
    scale_exponent(s, p, shifted)
}

/// Running maximum and sum of the rows of a panel.
pub struct State {
    /// Maximum of the scores, before the exponent factor; -inf while no key was seen.
    pub maximum: [f32; PANEL],
    /// Sum of exponentials relative to the maximum.
    pub sum: [f32; PANEL],
}

impl State {
    /// No key seen.
    pub fn new() -> Self {
        Self { maximum: [f32::NEG_INFINITY; PANEL], sum: [0.0; PANEL] }
    }
}

/// One tile's update: scores in, probabilities (relative to the new maximum) out.
pub struct Update<'a> {
    /// Raw dot products (key, lane); f32 probabilities replace them.
    pub scores: &'a mut [f32],
    /// Keys of the tile.
    pub keys: usize,
    /// Lanes in use, rounded up to a multiple of 16.
    pub lanes: usize,
    /// Scores' recipe.
    pub mask: &'a TileMask,
    /// Dropout factors (key, lane).
    pub factors: Option<&'a [f32]>,
    /// State of the panel.
    pub state: &'a mut State,
    /// Unnormalised output (lane, value), rescaled here.
    pub output: &'a mut [f32],
    /// Row length of `output`; a multiple of 16.
    pub output_stride: usize,
    /// Probabilities as bf16 pairs of keys, (key pair, lane), where the words are pairs.
    pub pairs: &'a mut [f32],
    /// What the next product reads.
    pub words: Words,
}

impl Kernel for Update<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut decay = [1.0f32; PANEL];
        for lane in (0..self.lanes).step_by(S::LANES) {
            let maximum = self.maximum(s, lane);
            let (shift, factor) = self.rescale(s, lane, maximum, &mut decay);
            self.exponentials(s, lane, shift, factor);
        }
        for (row, &decay) in self.output.chunks_exact_mut(self.output_stride).zip(&decay) {
            // Later tiles rarely raise the maximum; 1 is exact, so skipping changes no bit.
            if decay != 1.0 {
                for part in row.chunks_exact_mut(S::LANES) {
                    // SAFETY: the part holds one vector.
                    unsafe {
                        let value = s.mul(s.load(part.as_ptr()), s.splat(decay));
                        s.store(part.as_mut_ptr(), value);
                    }
                }
            }
        }
    }
}

impl Update<'_> {
    /// Applies the recipe in place and returns the new maximum of the lanes.
    #[inline(always)]
    fn maximum<S: Simd>(&mut self, s: S, lane: usize) -> S::F {
        let scores = self.scores[..self.keys * PANEL].as_mut_ptr();
        // SAFETY: keys * PANEL scores were just checked; a vector at `lane` ends inside its row.
        unsafe {
            let mut maximum = s.load(self.state.maximum[lane..].as_ptr());
            if self.mask.is_needed() {
                for key in 0..self.keys {
                    let at = scores.add(key * PANEL + lane);
                    let (score, _) = self.mask.score(s, s.load(at), key, lane);
                    s.store(at, score);
                    maximum = s.max(score, maximum);
                }
            } else {
                // Two chains hide the latency of the maximum.
                let mut other = maximum;
                for key in 0..self.keys / 2 {
                    maximum = s.max(s.load(scores.add(2 * key * PANEL + lane)), maximum);
                    other = s.max(s.load(scores.add((2 * key + 1) * PANEL + lane)), other);
                }
                if self.keys % 2 == 1 {
                    other = s.max(s.load(scores.add((self.keys - 1) * PANEL + lane)), other);
                }
                maximum = s.max(maximum, other);
            }
            maximum
        }
    }

    /// Moves the state to the new maximum; returns what to add to scaled scores, and their factor.
    #[inline(always)]
    fn rescale<S: Simd>(
        &mut self,
        s: S,
        lane: usize,
        maximum: S::F,
        decay: &mut [f32; PANEL],
    ) -> (S::F, S::F) {
        // SAFETY: all arrays have PANEL elements and the lanes end inside.
        unsafe {
            let old = s.load(self.state.maximum[lane..].as_ptr());
            let (shift, factor, ratio) = moved(s, self.mask, old, maximum);
            let sum = s.mul(s.load(self.state.sum[lane..].as_ptr()), ratio);
            s.store(self.state.sum[lane..].as_mut_ptr(), sum);
            s.store(self.state.maximum[lane..].as_mut_ptr(), maximum);
            s.store(decay[lane..].as_mut_ptr(), ratio);
            (shift, factor)
        }
    }

    /// Probabilities of all keys for one vector of lanes, their sum, and their words.
    #[inline(always)]
    fn exponentials<S: Simd>(&mut self, s: S, lane: usize, shift: S::F, factor: S::F) {
        let exponent = Exponent {
            scores: self.scores[..self.keys * PANEL].as_mut_ptr(),
            factors: self.factors.map(|f| f[..self.keys * PANEL].as_ptr()),
            factor,
            shift,
        };
        // SAFETY: the slices hold (keys, PANEL) elements and the lanes end inside their row.
        unsafe {
            let mut sum = s.load(self.state.sum[lane..].as_ptr());
            match self.words {
                Words::F32 => {
                    for key in 0..self.keys {
                        let at = key * PANEL + lane;
                        let p = exponent.probability::<S, false>(s, at, &mut sum);
                        s.store(exponent.scores.add(at), p);
                    }
                }
                Words::Bf16Pairs => {
                    let pairs = self.pairs[..self.keys.div_ceil(2) * PANEL].as_mut_ptr();
                    for pair in 0..self.keys / 2 {
                        let at = 2 * pair * PANEL + lane;
                        let low = exponent.probability::<S, true>(s, at, &mut sum);
                        let high = exponent.probability::<S, true>(s, at + PANEL, &mut sum);
                        s.store(pairs.add(pair * PANEL + lane), bf16_pair(s, low, high));
                    }
                    if self.keys % 2 == 1 {
                        let at = (self.keys - 1) * PANEL + lane;
                        let low = exponent.probability::<S, true>(s, at, &mut sum);
                        let word = bf16_pair(s, low, s.zero());
                        s.store(pairs.add(self.keys / 2 * PANEL + lane), word);
                    }
                }
            }
            s.store(self.state.sum[lane..].as_mut_ptr(), sum);
        }
    }
}

/// Keys of a row of scores in [`UpdateRows`].
pub const ROW_KEYS: usize = 64;

/// [`Update`] for a few rows whose scores lie as rows of [`ROW_KEYS`] keys, without mask or dropout:
/// keys are lanes. Sums run over the keys one by one all the same, so that the bits are those of
/// [`Update`].
pub struct UpdateRows<'a> {
    /// Raw dot products (row, key); probabilities replace them.
    pub scores: &'a mut [f32],
    /// Rows in use.
    pub rows: usize,
    /// Keys of the tile.
    pub keys: usize,
    /// Scores' recipe, which is a factor.
    pub mask: &'a TileMask,
    /// State of the panel; row `r` is its lane `r`.
    pub state: &'a mut State,
    /// Unnormalised output (row, value), rescaled here.
    pub output: &'a mut [f32],
    /// Row length of `output`; a multiple of 16.
    pub output_stride: usize,
    /// Probabilities as bf16 pairs of keys, (row, key pair), where the words are pairs.
    pub pairs: &'a mut [f32],
    /// What the next product reads.
    pub words: Words,
}

impl Kernel for UpdateRows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert!(self.keys <= ROW_KEYS && self.scores.len() >= self.rows * ROW_KEYS);
        let end = self.keys.next_multiple_of(S::LANES);
        for row in 0..self.rows {
            let scores = &mut self.scores[row * ROW_KEYS..][..end];
            // Keys that are none do not touch the maximum.
            scores[self.keys..].fill(f32::NEG_INFINITY);
            let ratio = match self.words {
                Words::F32 => update_row::<S, false>(s, scores, row, self.mask, self.state),
                Words::Bf16Pairs => update_row::<S, true>(s, scores, row, self.mask, self.state),
            };
            // Nor are they added, whatever the factor makes of infinity.
            scores[self.keys..].fill(0.0);
            let sum = &mut self.state.sum[row];
            scores[..self.keys].iter().for_each(|p| *sum += p);
            if self.words == Words::Bf16Pairs {
                let pairs = &mut self.pairs[row * ROW_KEYS..];
                for (to, pair) in pairs.iter_mut().zip(scores.chunks_exact(2)) {
                    let bits = [pair[0], pair[1]].map(|p| p.to_bits().wrapping_add(0x8000));
                    *to = f32::from_bits((bits[0] >> 16) | (bits[1] & 0xffff_0000));
                }
            }
            if ratio != 1.0 {
                let output = &mut self.output[row * self.output_stride..][..self.output_stride];
                output.iter_mut().for_each(|value| *value *= ratio);
            }
        }
    }
}

/// Probabilities of whole vectors of keys of one row, and its state without the new sum; returns the
/// factor of its output.
#[inline(always)]
fn update_row<S: Simd, const SHORT: bool>(
    s: S,
    scores: &mut [f32],
    row: usize,
    mask: &TileMask,
    state: &mut State,
) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut maximum = s.splat(state.maximum[row]);
    // SAFETY: the slice holds whole vectors, and so do sixteen lanes.
    unsafe {
        for at in (0..scores.len()).step_by(S::LANES) {
            maximum = s.max(s.load(scores.as_ptr().add(at)), maximum);
        }
        s.store(lanes.as_mut_ptr(), maximum);
    }
    let top =
        lanes.iter().fold(f32::NEG_INFINITY, |top, &lane| if lane > top { lane } else { top });
    let (shift, factor, ratio) = moved(s, mask, s.splat(state.maximum[row]), s.splat(top));
    let sum = s.mul(s.splat(state.sum[row]), ratio);
    state.maximum[row] = top;
    // SAFETY: as above.
    unsafe {
        s.store(lanes.as_mut_ptr(), sum);
        state.sum[row] = lanes[0];
        s.store(lanes.as_mut_ptr(), ratio);
        for at in (0..scores.len()).step_by(S::LANES) {
            let x = s.fma(s.load(scores.as_ptr().add(at)), factor, shift);
            let p = if SHORT { exp2_negative_short(s, x) } else { exp2_negative(s, x) };
            s.store(scores.as_mut_ptr().add(at), p);
        }
    }
    lanes[0]
}

/// What to add to scaled scores after the maximum moved from `old`, their factor, and that of what was
/// summed before.
#[inline(always)]
fn moved<S: Simd>(s: S, mask: &TileMask, old: S::F, maximum: S::F) -> (S::F, S::F, S::F) {
    let factor = s.splat(mask.exponent_factor());
    // A row without any key yet has maximum -inf; 0 in its place avoids -inf - -inf.
    let empty = s.lt(maximum, s.splat(f32::MIN));
    let safe = s.select(empty, s.zero(), maximum);
    let shift = s.sub(s.zero(), s.mul(safe, factor));
    let ratio = exp2_negative(s, s.fma(old, factor, shift));
    let unchanged = s.lt(old, maximum);
    (shift, factor, s.select(unchanged, ratio, s.splat(1.0)))
}

/// From scores to probabilities for one vector of lanes.
struct Exponent<F> {
    scores: *mut f32,
    factors: Option<*const f32>,
    factor: F,
    shift: F,
}

impl<F: Copy> Exponent<F> {
    /// The probability at one offset, with the short polynomial or the full one; adds it to `sum`
    /// before dropout.
    ///
    /// # Safety
    /// A vector is readable there.
    #[inline(always)]
    unsafe fn probability<S: Simd<F = F>, const SHORT: bool>(
        &self,
        s: S,
        at: usize,
        sum: &mut F,
    ) -> F {
        // SAFETY: promised by the caller.
        unsafe {
            let x = s.fma(s.load(self.scores.add(at)), self.factor, self.shift);
            let p = if SHORT { exp2_negative_short(s, x) } else { exp2_negative(s, x) };
            *sum = s.add(*sum, p);
            match self.factors {
                None => p,
                Some(factors) => s.mul(p, s.load(factors.add(at))),
            }
        }
    }
}

/// Rounds two vectors to bf16 (nearest, ties away from zero) and joins them, `low` in the low half.
#[inline(always)]
pub fn bf16_pair<S: Simd>(s: S, low: S::F, high: S::F) -> S::F {
    let half = s.splat_i(0x8000);
    let low = s.shr_i::<16>(s.add_i(s.bits(low), half));
    let high = s.and_i(s.add_i(s.bits(high), half), s.splat_i(0xffff_0000_u32 as i32));
    s.from_bits(s.add_i(low, high))
}

/// The end of a row: divides by the sum and rounds to the output type.
pub struct Finish<'a, T> {
    /// Unnormalised output of the row, padded to whole vectors.
    pub row: &'a [f32],
    /// 1 / sum, or 0 for a row without keys.
    pub factor: f32,
    /// The row of the result.
    pub out: &'a mut [T],
}

impl<T: Lane> Kernel for Finish<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (from, to) in self.row.chunks_exact(S::LANES).zip(self.out.chunks_mut(S::LANES)) {
            // SAFETY: `from` holds a vector and `to` as many elements as are stored.
            unsafe {
                let value = s.mul(s.load(from.as_ptr()), s.splat(self.factor));
                if to.len() == S::LANES {
                    T::store(s, to.as_mut_ptr(), value);
                } else {
                    T::store_partial(s, to.as_mut_ptr(), value, to.len());
                }
            }
        }
    }
}
