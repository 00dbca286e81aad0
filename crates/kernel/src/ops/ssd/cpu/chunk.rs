//! The small vector loops at the end of a chunk's backward pass.

use super::tile::padded;
use danaus_runtime::simd::{Kernel, Simd};

/// `du <- scale du + d g` (which is dx), `dscale_j = x_j . du_j` and `dd += sum over rows of g x`.
pub struct Finish<'a> {
    /// Gradient of `scale x`, replaced by that of `x`.
    pub du: &'a mut [f32],
    /// Tile of the input.
    pub x: &'a [f32],
    /// Tile of the cotangent.
    pub g: &'a [f32],
    /// One factor a row.
    pub scale: &'a [f32],
    /// One factor a column.
    pub d: Option<&'a [f32]>,
    /// One result a row.
    pub dscale: &'a mut [f32],
    /// One sum a column, `head_dim` of them.
    pub dd: &'a mut [f32],
    /// Rows.
    pub rows: usize,
}

impl Kernel for Finish<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let columns = self.dd.len();
        let width = padded(columns);
        let len = self.rows * width;
        assert!(self.du.len() >= len && self.x.len() >= len && self.g.len() >= len);
        self.dscale[..self.rows].fill(0.0);
        for column in (0..columns).step_by(S::LANES) {
            let count = (columns - column).min(S::LANES);
            // SAFETY: `count` columns are readable; tiles are padded to whole vectors.
            unsafe {
                let factor = match self.d {
                    Some(d) if count == S::LANES => s.load(d.as_ptr().add(column)),
                    Some(d) => s.load_partial(d.as_ptr().add(column), count),
                    None => s.zero(),
                };
                let mut skip = s.zero();
                for row in 0..self.rows {
                    let at = row * width + column;
                    let du = s.load(self.du.as_ptr().add(at));
                    let x = s.load(self.x.as_ptr().add(at));
                    let g = s.load(self.g.as_ptr().add(at));
                    self.dscale[row] += s.reduce_add(s.mul(x, du));
                    skip = s.fma(g, x, skip);
                    let dx = s.fma(s.splat(self.scale[row]), du, s.mul(factor, g));
                    s.store(self.du.as_mut_ptr().add(at), dx);
                }
                let mut lanes = [0.0f32; 16];
                s.store(lanes.as_mut_ptr(), skip);
                for lane in 0..count {
                    self.dd[column + lane] += lanes[lane];
                }
            }
        }
    }
}

/// Inner product of two padded states.
pub struct Dot<'a>(pub &'a [f32], pub &'a [f32]);

impl Kernel for Dot<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let len = self.0.len();
        assert!(len.is_multiple_of(super::tile::PAD) && self.1.len() == len);
        let mut sums = [s.zero(); 4];
        for (step, at) in (0..len).step_by(S::LANES).enumerate() {
            // SAFETY: the length is a multiple of every vector's.
            let (a, b) =
                unsafe { (s.load(self.0.as_ptr().add(at)), s.load(self.1.as_ptr().add(at))) };
            sums[step % 4] = s.fma(a, b, sums[step % 4]);
        }
        s.reduce_add(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
    }
}

/// Completes the gradient of the log-decays from its four parts; `inside` is replaced by the sum.
pub fn decay_gradient(
    inside: &mut [f32],
    from_entering: &[f32],
    to_leaving: &[f32],
    rows: usize,
    across: f32,
) {
    let mut suffix = 0.0;
    for row in (0..rows).rev() {
        suffix += from_entering[row];
        inside[row] += suffix + across;
    }
    let mut prefix = 0.0;
    for row in 0..rows {
        inside[row] += prefix;
        prefix += to_leaving[row];
    }
}
