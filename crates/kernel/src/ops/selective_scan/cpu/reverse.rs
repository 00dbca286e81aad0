//! The gradient of the recurrence over a tile of tokens for one block of channels, and that of the gate.

use super::plan::BLOCK;
use super::sweep::{Columns, Kept, Values};
use danaus_runtime::simd::{Kernel, Simd, math};
use std::f32::consts::LN_2;

/// Through `out = (y + d u) silu(z)`: from `g`, the cotangent of `out`, to that of `y + d u` in place; `z`
/// becomes its gradient.
pub struct Gate<'a> {
    /// Where the block lies in the tiles.
    pub columns: Columns,
    /// Tile of `y`.
    pub y: &'a [f32],
    /// Tile of `u`.
    pub u: &'a [f32],
    /// `[BLOCK]`.
    pub d: &'a [f32],
    /// Tile of `z`.
    pub z: &'a mut [f32],
    /// Tile of cotangents.
    pub g: &'a mut [f32],
}

impl Kernel for Gate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for tile in [self.y.len(), self.u.len(), self.z.len(), self.g.len()] {
            self.columns.check(tile);
        }
        assert!(self.d.len() >= BLOCK);
        let one = s.splat(1.0);
        for lane in (0..BLOCK).step_by(S::LANES) {
            for t in 0..self.columns.rows {
                let at = self.columns.at(t, lane);
                // SAFETY: the block lies in every tile.
                unsafe {
                    let d = s.load(self.d.as_ptr().add(lane));
                    let u = s.load(self.u.as_ptr().add(at));
                    let y = s.fma(d, u, s.load(self.y.as_ptr().add(at)));
                    let (z, g) = (self.z.as_mut_ptr().add(at), self.g.as_mut_ptr().add(at));
                    let (gate, cotangent) = (s.load(z), s.load(g));
                    let sigmoid = math::sigmoid(s, gate);
                    s.store(g, s.mul(cotangent, s.mul(gate, sigmoid)));
                    let slope = s.mul(sigmoid, s.fma(gate, s.sub(one, sigmoid), one));
                    s.store(z, s.mul(s.mul(cotangent, y), slope));
                }
            }
        }
    }
}

/// Sums for a gradient of B or C: `[tokens, n, BLOCK]`, or `[n, BLOCK]` of a constant.
pub struct Sums<'a> {
    /// Added to.
    pub data: &'a mut [f32],
    /// Distance between tokens, 0 for a constant.
    pub row: usize,
}

/// The reverse recurrence, from the last token to the first:
///
/// ```text
/// ds += g C            dC += g s_t           dB += ds delta u        e = decay s_(t-1) ds
/// dA += delta e        du = delta <ds, B> + d g
/// ddelta = (u <ds, B> + <e, A>) slope        ds <- decay ds
/// ```
pub struct Reverse<'a> {
    /// Where the block lies in the tiles.
    pub columns: Columns,
    /// Numbers of a state.
    pub n: usize,
    /// `[n, BLOCK]`, times log2 e.
    pub a: &'a [f32],
    /// What was written.
    pub b: Values<'a>,
    /// What was read.
    pub c: Values<'a>,
    /// `[BLOCK]`.
    pub d: &'a [f32],
    /// States and decays of the tile.
    pub kept: Kept<'a>,
    /// Tile of `u`.
    pub u: &'a [f32],
    /// Tile of step sizes before softplus.
    pub raw: &'a [f32],
    /// Tile of step sizes.
    pub delta: &'a [f32],
    /// Whether softplus was applied.
    pub softplus: bool,
    /// Tile of the cotangent of `y + d u`.
    pub g: &'a [f32],
    /// `[n, BLOCK]`, the state's cotangent, carried.
    pub ds: &'a mut [f32],
    /// Of A, `[n, BLOCK]`, added to.
    pub da: &'a mut [f32],
    /// Of B.
    pub db: Sums<'a>,
    /// Of C.
    pub dc: Sums<'a>,
    /// Of D, `[BLOCK]`, added to.
    pub dd: &'a mut [f32],
    /// Of the bias, `[BLOCK]`, added to.
    pub dbias: &'a mut [f32],
    /// Tile of the gradient of `u`.
    pub du: &'a mut [f32],
    /// Tile of the gradient of `delta`.
    pub ddelta: &'a mut [f32],
}

impl Reverse<'_> {
    #[inline(always)]
    fn check(&self) {
        let (rows, len) = (self.columns.rows, self.n * BLOCK);
        self.b.check(rows, self.n);
        self.c.check(rows, self.n);
        let read = [self.u.len(), self.raw.len(), self.delta.len(), self.g.len()];
        for tile in read.into_iter().chain([self.du.len(), self.ddelta.len()]) {
            self.columns.check(tile);
        }
        assert!(self.kept.states.len() >= (rows + 1) * len);
        assert!(self.kept.decays.len() >= rows * len);
        assert!(self.a.len() >= len && self.ds.len() >= len && self.da.len() >= len);
        for sums in [&self.db, &self.dc] {
            assert!(rows == 0 || sums.data.len() >= (rows - 1) * sums.row + len);
        }
        assert!(self.d.len() >= BLOCK && self.dd.len() >= BLOCK && self.dbias.len() >= BLOCK);
    }
}

impl Kernel for Reverse<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        self.check();
        for lane in (0..BLOCK).step_by(S::LANES) {
            // SAFETY: checked above.
            unsafe {
                match (self.b.per_channel, self.c.per_channel) {
                    (false, false) => reverse::<S, false, false>(s, &mut self, lane),
                    (false, true) => reverse::<S, false, true>(s, &mut self, lane),
                    (true, false) => reverse::<S, true, false>(s, &mut self, lane),
                    (true, true) => reverse::<S, true, true>(s, &mut self, lane),
                }
            }
        }
    }
}

/// # Safety
/// [`Reverse::check`] passed.
#[inline(always)]
unsafe fn reverse<S: Simd, const B: bool, const C: bool>(s: S, work: &mut Reverse, lane: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        let d = s.load(work.d.as_ptr().add(lane));
        let mut dd = s.load(work.dd.as_ptr().add(lane));
        let mut dbias = s.load(work.dbias.as_ptr().add(lane));
        for t in (0..work.columns.rows).rev() {
            let at = work.columns.at(t, lane);
            let u = s.load(work.u.as_ptr().add(at));
            let delta = s.load(work.delta.as_ptr().add(at));
            let g = s.load(work.g.as_ptr().add(at));
            let (through_input, through_decay) =
                state::<S, B, C>(s, work, (t, lane), (delta, s.mul(delta, u), g));
            let slope = if work.softplus {
                let raw = s.load(work.raw.as_ptr().add(at));
                let linear = s.lt(s.splat(20.0), raw);
                s.select(linear, s.splat(1.0), math::sigmoid(s, raw))
            } else {
                s.splat(1.0)
            };
            // A was multiplied by log2 e.
            let exponent = s.mul(through_decay, s.splat(LN_2));
            let ddelta = s.mul(s.fma(u, through_input, exponent), slope);
            s.store(work.ddelta.as_mut_ptr().add(at), ddelta);
            s.store(work.du.as_mut_ptr().add(at), s.fma(delta, through_input, s.mul(d, g)));
            dbias = s.add(dbias, ddelta);
            dd = s.fma(g, u, dd);
        }
        s.store(work.dd.as_mut_ptr().add(lane), dd);
        s.store(work.dbias.as_mut_ptr().add(lane), dbias);
    }
}

/// One token: updates the sums and `ds`; returns `(<ds, B>, <e, A>)`.
///
/// # Safety
/// As [`reverse`].
#[inline(always)]
unsafe fn state<S: Simd, const B: bool, const C: bool>(
    s: S,
    work: &mut Reverse,
    (t, lane): (usize, usize),
    (delta, input, g): (S::F, S::F, S::F),
) -> (S::F, S::F) {
    let len = work.n * BLOCK;
    let (mut through_input, mut through_decay) = (s.zero(), s.zero());
    for k in 0..work.n {
        let place = k * BLOCK + lane;
        // SAFETY: promised by the caller.
        unsafe {
            let before = s.load(work.kept.states.as_ptr().add(t * len + place));
            let after = s.load(work.kept.states.as_ptr().add((t + 1) * len + place));
            let decay = s.load(work.kept.decays.as_ptr().add(t * len + place));
            let carried = work.ds.as_mut_ptr().add(place);
            let ds = s.fma(g, work.c.at::<S, C>(s, (t, k), lane), s.load(carried));
            let dc = work.dc.data.as_mut_ptr().add(t * work.dc.row + place);
            s.store(dc, s.fma(g, after, s.load(dc)));
            let db = work.db.data.as_mut_ptr().add(t * work.db.row + place);
            s.store(db, s.fma(input, ds, s.load(db)));
            through_input = s.fma(ds, work.b.at::<S, B>(s, (t, k), lane), through_input);
            let next = s.mul(decay, ds);
            let e = s.mul(next, before);
            let da = work.da.as_mut_ptr().add(place);
            s.store(da, s.fma(delta, e, s.load(da)));
            through_decay = s.fma(e, s.load(work.a.as_ptr().add(place)), through_decay);
            s.store(carried, next);
        }
    }
    (through_input, through_decay)
}
