//! Dropout element by element; the oracle and the f64 path.

use super::Dropout;
use danaus_runtime::philox;
use num_traits::Float;

/// Applies the mask to `x`, or to a cotangent.
pub fn apply<T: Float>(dropout: &Dropout, x: &[T], y: &mut [T]) {
    let scale = T::from(dropout.scale()).unwrap_or_else(T::nan);
    for (index, (x, y)) in x.iter().zip(y).enumerate() {
        let bits = philox::element(dropout.seed, dropout.stream, index as u64);
        let kept = u64::from(bits) >= dropout.threshold();
        *y = if kept { *x * scale } else { T::zero() };
    }
}
