//! The layer as three nested loops; the oracle.

use crate::ops::activation::{Activation, reference::value_and_slope};
use num_traits::{Float, FloatConst};

/// `f(x W^T + b) + residual` for `x` `[rows, in]` and `weight` `[out, in]`.
pub fn forward<T: Float + FloatConst>(
    (x, weight): (&[T], &[T]),
    features: usize,
    bias: Option<&[T]>,
    activation: Option<Activation>,
    residual: Option<&[T]>,
) -> Vec<T> {
    let out = weight.len() / features.max(1);
    let mut y = Vec::with_capacity(x.len() / features.max(1) * out);
    for row in x.chunks_exact(features) {
        for (col, weight) in weight.chunks_exact(features).enumerate() {
            let start = bias.map_or(T::zero(), |bias| bias[col]);
            let sum = row.iter().zip(weight).fold(start, |sum, (&x, &w)| sum + x * w);
            let value = activation.map_or(sum, |activation| value_and_slope(activation, sum).0);
            y.push(value + residual.map_or(T::zero(), |residual| residual[y.len()]));
        }
    }
    y
}
