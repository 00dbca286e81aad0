//! The elementwise part of the backward pass on one tile.
//!
//! From raw dot products and `dP^T = V dO^T` it makes `P = exp(S - L)` and
//! `dS = P (D dP - Delta)`, with the derivative of the softcap and the dropout factors `D`, in the
//! layouts that the three gradient products read.

use super::mask::{PANEL, TileMask};
use super::pack::{Element, Words};
use super::softmax::{bf16_pair, exp2_negative, exp2_negative_short};
use danaus_runtime::simd::{Kernel, Simd};

/// One tile of probabilities and score gradients, (key, lane).
pub struct TileGradient<'a> {
    /// Raw dot products; f32 probabilities (after dropout) replace them.
    pub scores: &'a mut [f32],
    /// `dP^T`; f32 score gradients replace it.
    pub grads: &'a mut [f32],
    /// Keys of the tile.
    pub keys: usize,
    /// Lanes in use, rounded up to a multiple of 16.
    pub lanes: usize,
    /// Scores' recipe.
    pub mask: &'a TileMask,
    /// Dropout factors.
    pub factors: Option<&'a [f32]>,
    /// log2(e) times the log-sum-exp of each lane; +inf for lanes without a row.
    pub lse: &'a [f32; PANEL],
    /// `dO . O - dL` of each lane.
    pub delta: &'a [f32; PANEL],
    /// bf16 forms, where the words are pairs.
    pub pairs: &'a mut PairTiles,
    /// What the products read.
    pub words: Words,
}

/// Probabilities and score gradients as bf16 pairs.
pub struct PairTiles {
    /// P with pairs along the lanes: (key, lane pair).
    pub p: Vec<f32>,
    /// dS with pairs along the lanes.
    pub ds: Vec<f32>,
    /// dS with pairs along the keys: (key pair, lane).
    pub ds_by_key: Vec<f32>,
}

impl PairTiles {
    /// Tiles of `keys` by [`PANEL`], empty where the words are f32.
    pub fn new(words: Words, keys: usize) -> Self {
        let len = if words == Words::Bf16Pairs { keys.div_ceil(2) * PANEL } else { 0 };
        Self { p: vec![0.0; len], ds: vec![0.0; len], ds_by_key: vec![0.0; len] }
    }
}

impl Kernel for TileGradient<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        assert!(self.scores.len() >= self.keys * PANEL && self.grads.len() >= self.keys * PANEL);
        assert!(self.factors.is_none_or(|f| f.len() >= self.keys * PANEL));
        for lane in (0..self.lanes).step_by(S::LANES) {
            let mut before = s.zero();
            for key in 0..self.keys {
                let ds = self.element(s, key, lane);
                if self.words == Words::Bf16Pairs {
                    self.pair_keys(s, [key, lane], before, ds);
                    before = ds;
                }
            }
        }
    }
}

impl TileGradient<'_> {
    /// One vector: writes P and dS, returns dS.
    #[inline(always)]
    fn element<S: Simd>(&mut self, s: S, key: usize, lane: usize) -> S::F {
        let at = key * PANEL + lane;
        // SAFETY: the tiles hold (keys, PANEL) elements (checked in `run`) and a vector at `lane`
        // ends inside its row; the bf16 tiles hold half as many words.
        unsafe {
            let scores = self.scores.as_mut_ptr().add(at);
            let grads = self.grads.as_mut_ptr().add(at);
            let (mut score, mut derivative) = (s.load(scores), s.splat(1.0));
            if self.mask.is_needed() {
                (score, derivative) = self.mask.score(s, score, key, lane);
            }
            let lse = s.load(self.lse.as_ptr().add(lane));
            let factor = s.splat(self.mask.exponent_factor());
            let x = s.fma(score, factor, s.sub(s.zero(), lse));
            let mut p = match self.words {
                Words::F32 => exp2_negative(s, x),
                Words::Bf16Pairs => exp2_negative_short(s, x),
            };
            let mut dp = s.load(grads);
            let undropped = p;
            if let Some(factors) = self.factors {
                let keep = s.load(factors.as_ptr().add(at));
                dp = s.mul(dp, keep);
                p = s.mul(p, keep);
            }
            let delta = s.load(self.delta.as_ptr().add(lane));
            let ds = s.mul(s.mul(undropped, s.sub(dp, delta)), derivative);
            match self.words {
                Words::F32 => {
                    s.store(scores, p);
                    s.store(grads, ds);
                }
                Words::Bf16Pairs => {
                    s.store_bf16(self.pairs.p.as_mut_ptr().cast::<u16>().add(at), p);
                    s.store_bf16(self.pairs.ds.as_mut_ptr().cast::<u16>().add(at), ds);
                }
            }
            ds
        }
    }

    /// Joins the score gradients of neighbouring keys into words.
    #[inline(always)]
    fn pair_keys<S: Simd>(&mut self, s: S, [key, lane]: [usize; 2], before: S::F, ds: S::F) {
        let word = if key % 2 == 1 {
            bf16_pair(s, before, ds)
        } else if key + 1 == self.keys {
            bf16_pair(s, ds, s.zero())
        } else {
            return;
        };
        // SAFETY: the tile holds (key pairs, PANEL) words.
        unsafe { s.store(self.pairs.ds_by_key.as_mut_ptr().add(key / 2 * PANEL + lane), word) };
    }
}

/// Dot product of two rows, in f32.
pub struct RowDot<'a, T> {
    /// One row.
    pub a: &'a [T],
    /// Another of the same length.
    pub b: &'a [T],
}

impl<T: Element> Kernel for RowDot<'_, T> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let whole = self.a.len() / S::LANES * S::LANES;
        let rest = self.a.len().min(self.b.len()) - whole;
        let mut sum = s.zero();
        // SAFETY: all vectors lie in both rows.
        unsafe {
            for at in (0..whole).step_by(S::LANES) {
                let a = T::load(s, self.a.as_ptr().add(at));
                sum = s.fma(a, T::load(s, self.b.as_ptr().add(at)), sum);
            }
            if rest > 0 {
                let a = T::load_partial(s, self.a.as_ptr().add(whole), rest);
                sum = s.fma(a, T::load_partial(s, self.b.as_ptr().add(whole), rest), sum);
            }
        }
        s.reduce_add(sum)
    }
}
