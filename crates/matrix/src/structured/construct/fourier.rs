//! The discrete Fourier transform and its inverse as butterflies.

use super::log_size;
use super::twiddle::Twiddle;
use crate::structured::algebra::{Chain, Map};
use danaus_tensor::Result;
use num_complex::Complex;
use std::f64::consts::{PI, SQRT_2};

/// Which end of the butterfly the bit reversal is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decimation {
    /// In time: bit reversal of the input, then strides 1, 2, .., n/2.
    Time,
    /// In frequency: strides n/2, .., 2, 1, then bit reversal of the output.
    Frequency,
}

/// Factor of a transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scaling {
    /// The DFT without a factor; its inverse with 1 / n.
    None,
    /// Both unitary.
    Unitary,
}

/// `perm[i]` is i with its bits reversed.
///
/// # Errors
/// When n is no power of two from 2 on.
pub fn bit_reversal(n: usize) -> Result<Vec<usize>> {
    let bits = log_size("bit_reversal", n)? as u32;
    Ok((0..n).map(|i| i.reverse_bits() >> (usize::BITS - bits)).collect())
}

/// The factors of the DFT of n points without the bit reversal.
///
/// # Errors
/// When n is no power of two from 2 on.
pub fn fft_twiddle(n: usize, decimation: Decimation, scaling: Scaling) -> Result<Twiddle> {
    log_size("fft", n)?;
    let factor = match scaling {
        Scaling::None => 1.0,
        Scaling::Unitary => 1.0 / SQRT_2,
    };
    let time = Twiddle::new(n, true, |stride, pair| {
        let turn = Complex::cis(-PI * (pair % stride) as f64 / stride as f64);
        let (one, w) = (Complex::from(factor), turn * factor);
        [[one, w], [one, -w]]
    });
    Ok(match decimation {
        Decimation::Time => time,
        // The DFT is symmetric: its transpose is itself with the bit reversal at the other end.
        Decimation::Frequency => time.transposed(),
    })
}

/// The factors of the inverse DFT without the bit reversal.
///
/// # Errors
/// As [`fft_twiddle`].
pub fn ifft_twiddle(n: usize, decimation: Decimation, scaling: Scaling) -> Result<Twiddle> {
    let conjugate = fft_twiddle(n, decimation, scaling)?.conj();
    Ok(match scaling {
        Scaling::None => conjugate.scaled(0.5),
        Scaling::Unitary => conjugate,
    })
}

fn with_reversal(twiddle: &Twiddle) -> Result<Map> {
    let reversal = Map::permutation(&bit_reversal(twiddle.size())?)?;
    let chain = Chain::butterfly(&twiddle.complex_tensor()?, twiddle.is_increasing())?;
    match twiddle.is_increasing() {
        true => reversal.then(&Map::Chain(chain)),
        false => Map::Chain(chain).then(&reversal),
    }
}

/// `y[k] = sum over j of x[j] e^(-2 pi i j k / n)`.
///
/// # Errors
/// As [`fft_twiddle`].
pub fn fft(n: usize, decimation: Decimation, scaling: Scaling) -> Result<Map> {
    with_reversal(&fft_twiddle(n, decimation, scaling)?)
}

/// The inverse of [`fft`] with the same scaling.
///
/// # Errors
/// As [`fft_twiddle`].
pub fn ifft(n: usize, decimation: Decimation, scaling: Scaling) -> Result<Map> {
    with_reversal(&ifft_twiddle(n, decimation, scaling)?)
}
