//! The recurrence over a tile of tokens for one block of channels.

use super::plan::BLOCK;
use danaus_runtime::simd::{Kernel, Simd, math};

/// B or C of a tile.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    /// Row `t` at `t * row`: one number a state; or, per channel, one vector of [`BLOCK`] a state.
    pub data: &'a [f32],
    /// Distance between the tokens' rows, 0 for constants.
    pub row: usize,
    /// Whether there is a number for every channel.
    pub per_channel: bool,
}

impl Values<'_> {
    /// Panics unless `rows` tokens of `n` numbers are there.
    pub fn check(&self, rows: usize, n: usize) {
        let len = if self.per_channel { n * BLOCK } else { n };
        assert!(rows == 0 || self.data.len() >= (rows - 1) * self.row + len);
    }

    /// The value of state `k` at token `t` for the lanes from `lane`.
    ///
    /// # Safety
    /// [`Self::check`] passed for more than `t` rows and more than `k` numbers.
    #[inline(always)]
    pub unsafe fn at<S: Simd, const PER_CHANNEL: bool>(
        &self,
        s: S,
        (t, k): (usize, usize),
        lane: usize,
    ) -> S::F {
        // SAFETY: promised by the caller.
        unsafe {
            let row = self.data.as_ptr().add(t * self.row);
            if PER_CHANNEL { s.load(row.add(k * BLOCK + lane)) } else { s.splat(*row.add(k)) }
        }
    }
}

/// A column block of a tile.
#[derive(Clone, Copy)]
pub struct Columns {
    /// Tokens.
    pub rows: usize,
    /// Length of a row.
    pub width: usize,
    /// First column.
    pub first: usize,
}

impl Columns {
    /// Panics unless a tile of this length holds the block.
    pub fn check(&self, len: usize) {
        assert!(self.first + BLOCK <= self.width && len >= self.rows * self.width);
    }

    /// Position of row `t`, lanes from `lane`.
    #[inline(always)]
    pub fn at(&self, t: usize, lane: usize) -> usize {
        t * self.width + self.first + lane
    }
}

/// States and decays of every token, for the backward pass.
pub struct Kept<'a> {
    /// `[1 + tokens, n, BLOCK]`: the entering state, then the one after each token.
    pub states: &'a mut [f32],
    /// `[tokens, n, BLOCK]`.
    pub decays: &'a mut [f32],
}

/// `s <- 2^(delta a) s + delta u B`, `y = <s, C>`.
pub struct Sweep<'a> {
    /// Where the block lies in the tiles.
    pub columns: Columns,
    /// Numbers of a state.
    pub n: usize,
    /// `[n, BLOCK]`, times log2 e.
    pub a: &'a [f32],
    /// What is written.
    pub b: Values<'a>,
    /// What is read.
    pub c: Values<'a>,
    /// Tile of step sizes.
    pub delta: &'a [f32],
    /// Tile of values.
    pub u: &'a [f32],
    /// `[n, BLOCK]`, advanced.
    pub state: &'a mut [f32],
    /// Tile of the result.
    pub y: &'a mut [f32],
    /// Keeps what the backward pass needs.
    pub kept: Option<Kept<'a>>,
}

impl Kernel for Sweep<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (rows, len) = (self.columns.rows, self.n * BLOCK);
        self.b.check(rows, self.n);
        self.c.check(rows, self.n);
        for tile in [self.delta.len(), self.u.len(), self.y.len()] {
            self.columns.check(tile);
        }
        assert!(self.a.len() >= len && self.state.len() >= len);
        if let Some(kept) = &self.kept {
            assert!(kept.states.len() >= (rows + 1) * len && kept.decays.len() >= rows * len);
        }
        match (self.b.per_channel, self.c.per_channel) {
            (false, false) => sweep::<S, false, false>(s, self),
            (false, true) => sweep::<S, false, true>(s, self),
            (true, false) => sweep::<S, true, false>(s, self),
            (true, true) => sweep::<S, true, true>(s, self),
        }
    }
}

#[inline(always)]
fn sweep<S: Simd, const B: bool, const C: bool>(s: S, work: Sweep) {
    let n = work.n;
    match work.kept {
        None => {
            for lane in (0..BLOCK).step_by(S::LANES) {
                for t in 0..work.columns.rows {
                    let at = work.columns.at(t, lane);
                    // SAFETY: `run` checked every length.
                    unsafe {
                        let delta = s.load(work.delta.as_ptr().add(at));
                        let input = s.mul(delta, s.load(work.u.as_ptr().add(at)));
                        let mut sum = s.zero();
                        for k in 0..n {
                            let a = s.load(work.a.as_ptr().add(k * BLOCK + lane));
                            let state = work.state.as_mut_ptr().add(k * BLOCK + lane);
                            let decay = math::exp2(s, s.mul(delta, a));
                            let b = work.b.at::<S, B>(s, (t, k), lane);
                            let value = s.fma(decay, s.load(state), s.mul(input, b));
                            s.store(state, value);
                            sum = s.fma(value, work.c.at::<S, C>(s, (t, k), lane), sum);
                        }
                        s.store(work.y.as_mut_ptr().add(at), sum);
                    }
                }
            }
        }
        Some(kept) => {
            let len = n * BLOCK;
            kept.states[..len].copy_from_slice(&work.state[..len]);
            for lane in (0..BLOCK).step_by(S::LANES) {
                for t in 0..work.columns.rows {
                    let at = work.columns.at(t, lane);
                    // SAFETY: as above.
                    unsafe {
                        let delta = s.load(work.delta.as_ptr().add(at));
                        let input = s.mul(delta, s.load(work.u.as_ptr().add(at)));
                        let mut sum = s.zero();
                        for k in 0..n {
                            let a = s.load(work.a.as_ptr().add(k * BLOCK + lane));
                            let place = t * len + k * BLOCK + lane;
                            let before = s.load(kept.states.as_ptr().add(place));
                            let decay = math::exp2(s, s.mul(delta, a));
                            let b = work.b.at::<S, B>(s, (t, k), lane);
                            let value = s.fma(decay, before, s.mul(input, b));
                            s.store(kept.states.as_mut_ptr().add(place + len), value);
                            s.store(kept.decays.as_mut_ptr().add(place), decay);
                            sum = s.fma(value, work.c.at::<S, C>(s, (t, k), lane), sum);
                        }
                        s.store(work.y.as_mut_ptr().add(at), sum);
                    }
                }
            }
            let end = work.columns.rows * len;
            work.state[..len].copy_from_slice(&kept.states[end..end + len]);
        }
    }
}
