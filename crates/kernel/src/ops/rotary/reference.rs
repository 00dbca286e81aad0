//! Rotation pair by pair, plainly; the oracle and the f64 path.

use super::Layout;
use num_traits::Float;

/// `y` from `x`, where token t has the position `positions[t]`; `inverse` turns the other way.
pub fn rotate<T: Float>(
    layout: &Layout,
    (cos, sin): (&[T], &[T]),
    positions: &[u32],
    inverse: bool,
    x: &[T],
    y: &mut [T],
) {
    let half = layout.rotary_dim / 2;
    y.copy_from_slice(x);
    for (row, y) in y.chunks_exact_mut(layout.head_dim).enumerate() {
        let table = positions[row / layout.heads] as usize * half;
        for pair in 0..half {
            let (i, j) =
                if layout.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + half) };
            let (c, s) = (cos[table + pair], sin[table + pair]);
            let s = if inverse { -s } else { s };
            let (a, b) = (y[i], y[j]);
            y[i] = a * c - b * s;
            y[j] = a * s + b * c;
        }
    }
}
