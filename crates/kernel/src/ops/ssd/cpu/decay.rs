//! The decay factors of one chunk of one head, and the masks built from them.
//!
//! With `alpha` the inclusive sum of the log-decays inside the chunk, token `j` reaches token `i >= j`
//! with `E_ij = exp(alpha_i - alpha_j)`, the entering state with `exp(alpha_i)`, and token `j` reaches
//! the leaving state with `exp(alpha_last - alpha_j)`. Differences are taken before the exponential and
//! only inside a chunk, so nothing overflows or cancels.

use super::tile::padded;
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{self, Kernel, Simd, math};

/// Vectors of one chunk and head, each padded with zeros.
pub struct Decays {
    /// Inclusive sums of the log-decays.
    pub alpha: Scratch<f32>,
    /// Factors of the tokens' contributions.
    pub scale: Scratch<f32>,
    /// `exp(alpha_i)`: what is left of the entering state at row `i`.
    pub entering: Scratch<f32>,
    /// `exp(alpha_last - alpha_j)`: what is left of token `j` in the leaving state.
    pub leaving: Scratch<f32>,
    /// `leaving * scale`.
    pub weight: Scratch<f32>,
    /// `exp(alpha_last)`: what is left of the entering state in the leaving one.
    pub total: f32,
}

impl Decays {
    /// Room for chunks of up to `tile` rows.
    pub fn new(tile: usize) -> Self {
        let vector = || Scratch::new(padded(tile));
        Self {
            alpha: vector(),
            scale: vector(),
            entering: vector(),
            leaving: vector(),
            weight: vector(),
            total: 1.0,
        }
    }

    /// Fills all vectors for rows `start..start + rows` of a `[tokens, heads]` pair of arrays.
    pub fn load(
        &mut self,
        (log_decay, scale): (&[f32], &[f32]),
        (start, rows): (usize, usize),
        (head, heads): (usize, usize),
    ) {
        let mut sum = 0.0;
        for row in 0..rows {
            let at = (start + row) * heads + head;
            sum += log_decay[at];
            self.alpha[row] = sum;
            self.scale[row] = scale[at];
        }
        self.alpha[rows..].fill(0.0);
        self.scale[rows..].fill(0.0);
        self.total = math::exp_scalar(sum);
        simd::dispatch(Exponentials { decays: self, last: sum });
    }
}

struct Exponentials<'a> {
    decays: &'a mut Decays,
    last: f32,
}

impl Kernel for Exponentials<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let decays = self.decays;
        for at in (0..decays.alpha.len()).step_by(S::LANES) {
            // SAFETY: all vectors are padded to a multiple of the lanes.
            unsafe {
                let alpha = s.load(decays.alpha.as_ptr().add(at));
                let scale = s.load(decays.scale.as_ptr().add(at));
                let leaving = math::exp(s, s.sub(s.splat(self.last), alpha));
                s.store(decays.entering.as_mut_ptr().add(at), math::exp(s, alpha));
                s.store(decays.leaving.as_mut_ptr().add(at), leaving);
                s.store(decays.weight.as_mut_ptr().add(at), s.mul(leaving, scale));
            }
        }
    }
}

/// `E_ij` for one vector of columns `j` from `column`. Right of the diagonal the result means nothing,
/// possibly not even a number: the caller masks what it computes from it.
///
/// # Safety
/// One vector is readable at `alpha + column`.
#[inline(always)]
unsafe fn decay<S: Simd>(s: S, alpha: *const f32, row: usize, column: usize) -> S::F {
    // SAFETY: promised by the caller; the row is below the padded length.
    let (alpha_i, alpha_j) = unsafe { (s.splat(*alpha.add(row)), s.load(alpha.add(column))) };
    math::exp_negative(s, s.sub(alpha_i, alpha_j))
}

/// The lanes of columns `j <= row` in the vector from `column`.
#[inline(always)]
fn reached<S: Simd>(s: S, row: usize, column: usize) -> S::M {
    s.first((row + 1 - column).min(S::LANES))
}

/// `out_ij = E_ij cb_ij scale_j` on and below the diagonal; zeros right of it up to the next multiple
/// of the vector length.
pub struct MaskForward<'a> {
    /// Vectors of the chunk.
    pub decays: &'a Decays,
    /// Rows of the chunk.
    pub rows: usize,
    /// `C B^T`, rows `padded(tile)` long.
    pub cb: &'a [f32],
    /// Result, laid out alike.
    pub out: &'a mut [f32],
}

impl Kernel for MaskForward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.decays.alpha.len();
        assert!(self.rows <= width);
        assert!(self.cb.len() >= self.rows * width && self.out.len() >= self.rows * width);
        for row in 0..self.rows {
            for column in (0..=row).step_by(S::LANES) {
                let at = row * width + column;
                // SAFETY: rows are `width` long, a multiple of the lanes.
                unsafe {
                    let decay = decay(s, self.decays.alpha.as_ptr(), row, column);
                    let scale = s.load(self.decays.scale.as_ptr().add(column));
                    let cb = s.load(self.cb.as_ptr().add(at));
                    let value = s.mul(s.mul(decay, scale), cb);
                    let value = s.select(reached(s, row, column), value, s.zero());
                    s.store(self.out.as_mut_ptr().add(at), value);
                }
            }
        }
    }
}

/// The masked tiles of the backward pass, and the part of the decay's gradient that stays inside the
/// chunk, from `gx_ij = G_i . x_j`:
///
/// ```text
/// w_ij = E_ij cb_ij,   m_ij = E_ij scale_j gx_ij,   inside_k = sum over i >= k > j of m_ij cb_ij
/// ```
pub struct MaskBackward<'a> {
    /// Vectors of the chunk.
    pub decays: &'a Decays,
    /// Rows of the chunk.
    pub rows: usize,
    /// `C B^T`, rows `padded(tile)` long.
    pub cb: &'a [f32],
    /// `G X^T` on entry, `m` on return.
    pub gx: &'a mut [f32],
    /// `w`.
    pub w: &'a mut [f32],
    /// Sums of `m_ij cb_ij` over the rows from the current one down, one a column.
    pub columns: &'a mut [f32],
    /// `inside`.
    pub inside: &'a mut [f32],
}

impl Kernel for MaskBackward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.decays.alpha.len();
        let needed = self.rows * width;
        assert!(self.rows <= width && self.columns.len() >= width);
        assert!(self.cb.len() >= needed && self.gx.len() >= needed && self.w.len() >= needed);
        self.columns.fill(0.0);
        for row in (0..self.rows).rev() {
            let mut inside = s.zero();
            for column in (0..=row).step_by(S::LANES) {
                let at = row * width + column;
                // SAFETY: rows are `width` long, a multiple of the lanes.
                unsafe {
                    let reached = reached(s, row, column);
                    let decay = decay(s, self.decays.alpha.as_ptr(), row, column);
                    let decay = s.select(reached, decay, s.zero());
                    let scale = s.load(self.decays.scale.as_ptr().add(column));
                    let cb = s.select(reached, s.load(self.cb.as_ptr().add(at)), s.zero());
                    let gx = self.gx.as_mut_ptr().add(at);
                    let m = s.mul(s.mul(decay, scale), s.load(gx));
                    let m = s.select(reached, m, s.zero());
                    s.store(gx, m);
                    s.store(self.w.as_mut_ptr().add(at), s.mul(decay, cb));
                    let sums = self.columns.as_mut_ptr().add(column);
                    let sum = s.fma(m, cb, s.load(sums));
                    s.store(sums, sum);
                    let earlier = s.first((row - column).min(S::LANES));
                    inside = s.add(inside, s.select(earlier, sum, s.zero()));
                }
            }
            self.inside[row] = s.reduce_add(inside);
        }
    }
}

/// `out_r = factor_r row_r` for a tile with rows `width` long.
pub struct ScaleRows<'a> {
    /// The tile.
    pub from: &'a [f32],
    /// One factor a row.
    pub factor: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Length of a row, a multiple of the padding.
    pub width: usize,
    /// Result.
    pub out: &'a mut [f32],
}

impl Kernel for ScaleRows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let len = self.rows * self.width;
        assert!(self.from.len() >= len && self.out.len() >= len && self.factor.len() >= self.rows);
        for row in 0..self.rows {
            let factor = s.splat(self.factor[row]);
            for at in (row * self.width..(row + 1) * self.width).step_by(S::LANES) {
                // SAFETY: `at` plus one vector ends inside the row.
                unsafe {
                    let value = s.mul(factor, s.load(self.from.as_ptr().add(at)));
                    s.store(self.out.as_mut_ptr().add(at), value);
                }
            }
        }
    }
}
