//! The Hadamard transform and the Haar wavelets.

use super::log_size;
use super::twiddle::Twiddle;
use crate::structured::algebra::{Chain, Map};
use danaus_tensor::Result;
use num_complex::Complex;
use std::f64::consts::FRAC_1_SQRT_2;

/// The factors of the Hadamard matrix of Sylvester's order; with `orthonormal` divided by sqrt(n).
///
/// # Errors
/// When n is no power of two from 2 on.
pub fn hadamard_twiddle(n: usize, orthonormal: bool, increasing: bool) -> Result<Twiddle> {
    log_size("hadamard", n)?;
    let one = Complex::from(if orthonormal { FRAC_1_SQRT_2 } else { 1.0 });
    Ok(Twiddle::new(n, increasing, |_, _| [[one, one], [one, -one]]))
}

/// The Hadamard matrix of Sylvester's order; with `orthonormal` divided by sqrt(n).
///
/// # Errors
/// As [`hadamard_twiddle`].
pub fn hadamard(n: usize, orthonormal: bool) -> Result<Map> {
    let twiddle = hadamard_twiddle(n, orthonormal, true)?;
    Ok(Map::Chain(Chain::butterfly(&twiddle.tensor()?, true)?))
}

/// The orthonormal Haar transform: the approximation first, then details from coarse to fine.
///
/// # Errors
/// When n is no power of two from 2 on.
pub fn haar(n: usize) -> Result<Map> {
    log_size("haar", n)?;
    let (zero, one) = (Complex::ZERO, Complex::ONE);
    let half = Complex::from(FRAC_1_SQRT_2);
    let twiddle = Twiddle::new(n, true, |stride, pair| match pair % stride {
        0 => [[half, half], [half, -half]],
        _ => [[one, zero], [zero, one]],
    });
    // The pair of stride s leaves the detail at the odd multiples of s.
    let mut order = vec![0];
    let mut stride = n / 2;
    while stride > 0 {
        order.extend((stride..n).step_by(2 * stride));
        stride /= 2;
    }
    let chain = Chain::butterfly(&twiddle.tensor()?, true)?;
    Map::Chain(chain).then(&Map::permutation(&order)?)
}
