//! Norms row by row, plainly; the oracle and the f64 path.

use super::{Kind, Norm};
use num_traits::Float;

fn number<T: Float>(value: f64) -> T {
    T::from(value).unwrap_or_else(T::nan)
}

/// Mean (0 for RMS) and reciprocal deviation of a row.
fn statistics<T: Float>(norm: &Norm, row: &[T]) -> (T, T) {
    let count: T = number(row.len() as f64);
    let sum = |values: &mut dyn Iterator<Item = T>| values.fold(T::zero(), |a, b| a + b);
    let mean = match norm.kind {
        Kind::Layer => sum(&mut row.iter().copied()) / count,
        Kind::Rms => T::zero(),
    };
    let square = sum(&mut row.iter().map(|&h| (h - mean) * (h - mean))) / count;
    (mean, T::one() / (square + number(norm.eps)).sqrt())
}

/// `y` from `h`; missing weights are 1, a missing bias is 0.
pub fn forward<T: Float>(
    norm: &Norm,
    h: &[T],
    weight: Option<&[T]>,
    bias: Option<&[T]>,
    y: &mut [T],
) {
    for (h, y) in h.chunks_exact(norm.cols).zip(y.chunks_exact_mut(norm.cols)) {
        let (mean, scale) = statistics(norm, h);
        for col in 0..norm.cols {
            let weight = weight.map_or(T::one(), |w| w[col]);
            let bias = bias.map_or(T::zero(), |b| b[col]);
            y[col] = (h[col] - mean) * scale * weight + bias;
        }
    }
}

/// Gradients of `h` (written), `weight` and `bias` (added to) for the cotangent `dy`.
pub fn backward<T: Float>(
    norm: &Norm,
    (h, dy): (&[T], &[T]),
    weight: Option<&[T]>,
    dh: &mut [T],
    (dweight, dbias): (&mut [T], &mut [T]),
) {
    let count: T = number(norm.cols as f64);
    for start in (0..h.len()).step_by(norm.cols) {
        let row = start..start + norm.cols;
        let (h, dy, dh) = (&h[row.clone()], &dy[row.clone()], &mut dh[row]);
        let (mean, scale) = statistics(norm, h);
        let (mut sum, mut product) = (T::zero(), T::zero());
        for col in 0..norm.cols {
            let normal = (h[col] - mean) * scale;
            let g = dy[col] * weight.map_or(T::one(), |w| w[col]);
            dweight[col] = dweight[col] + dy[col] * normal;
            dbias[col] = dbias[col] + dy[col];
            sum = sum + g;
            product = product + g * normal;
        }
        let shift = if norm.kind == Kind::Layer { sum / count } else { T::zero() };
        for col in 0..norm.cols {
            let normal = (h[col] - mean) * scale;
            let g = dy[col] * weight.map_or(T::one(), |w| w[col]);
            dh[col] = scale * (g - shift - normal * product / count);
        }
    }
}
