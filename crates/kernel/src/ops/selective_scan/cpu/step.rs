//! Step sizes of a tile.

use danaus_runtime::simd::{Kernel, Simd, math};

/// `raw <- raw + bias`, `delta = softplus(raw)` or `raw`; returns whether no `raw` is NaN.
pub struct Steps<'a> {
    /// Rows as long as the bias.
    pub raw: &'a mut [f32],
    /// Laid out alike.
    pub delta: &'a mut [f32],
    /// One number a column, a multiple of the vector.
    pub bias: &'a [f32],
    /// Whether softplus is applied.
    pub softplus: bool,
}

impl Kernel for Steps<'_> {
    type Out = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let width = self.bias.len();
        assert!(self.raw.len() == self.delta.len() && width.is_multiple_of(S::LANES));
        // 0 times a number is 0: the sum is NaN if any value was.
        let mut marks = s.zero();
        for row in (0..self.raw.len()).step_by(width) {
            for column in (0..width).step_by(S::LANES) {
                // SAFETY: rows are `width` long, a multiple of the lanes.
                unsafe {
                    let raw = self.raw.as_mut_ptr().add(row + column);
                    let value = s.load(raw);
                    // The order of `min` and `max` keeps NaN and turns infinities into numbers.
                    let finite = s.min(s.splat(1.0), s.max(s.splat(-1.0), value));
                    marks = s.fma(finite, s.zero(), marks);
                    let value = s.add(value, s.load(self.bias.as_ptr().add(column)));
                    s.store(raw, value);
                    let step = if self.softplus { math::softplus(s, value) } else { value };
                    s.store(self.delta.as_mut_ptr().add(row + column), step);
                }
            }
        }
        !s.reduce_add(marks).is_nan()
    }
}
