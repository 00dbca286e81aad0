//! Cosine and sine transforms: a permutation, a complex butterfly, the real part.
//!
//! With v = even elements followed by the odd ones in reverse order (Makhoul 1980), the DCT-II of x
//! is the real part of `2 e^(-i pi k / 2n)` times the DFT of v. The others differ by diagonals,
//! which are folded into the first or last factor of the DFT. The definitions are those of the
//! field's libraries (factor 2, and the orthonormal variants).

use super::fourier::{Decimation, Scaling, bit_reversal, fft_twiddle, ifft_twiddle};
use super::log_size;
use crate::structured::algebra::{Chain, Map};
use danaus_tensor::Result;
use num_complex::Complex;
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// Normalisation of a transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// The plain sums, with the customary factor 2.
    None,
    /// Orthogonal.
    Ortho,
}

impl Norm {
    fn scaling(self) -> Scaling {
        match self {
            Norm::None => Scaling::None,
            Norm::Ortho => Scaling::Unitary,
        }
    }
}

/// Even elements, then the odd ones in reverse order.
fn even_odd(n: usize) -> Vec<usize> {
    (0..n).step_by(2).chain((1..n).step_by(2).rev()).collect()
}

/// A unit of angle `turns pi`.
fn unit(turns: f64) -> Complex<f64> {
    Complex::cis(turns * PI)
}

/// Input order, factor before and factor after the DFT.
struct Recipe<'a> {
    before: Option<&'a dyn Fn(usize) -> Complex<f64>>,
    after: &'a dyn Fn(usize) -> Complex<f64>,
}

/// Permutation, bit reversal, DFT with diagonals folded in, real part.
fn forward(op: &'static str, n: usize, norm: Norm, recipe: &Recipe) -> Result<Map> {
    log_size(op, n)?;
    let order = even_odd(n);
    let perm: Vec<usize> = bit_reversal(n)?.into_iter().map(|i| order[i]).collect();
    let mut twiddle = fft_twiddle(n, Decimation::Time, norm.scaling())?;
    if let Some(before) = recipe.before {
        // The diagonal is given for the natural order of the input.
        let d: Vec<Complex<f64>> = perm.iter().map(|&index| before(index)).collect();
        twiddle = twiddle.after_diagonal(&d);
    }
    let twiddle = twiddle.before_diagonal(&(0..n).map(recipe.after).collect::<Vec<_>>());
    let chain = Chain::butterfly(&twiddle.complex_tensor()?, true)?;
    Ok(Map::permutation(&perm)?.then(&Map::Chain(chain))?.real())
}

/// `y[k] = 2 sum over j of x[j] cos(pi k (2 j + 1) / 2n)`.
///
/// # Errors
/// When n is no power of two from 2 on.
pub fn dct2(n: usize, norm: Norm) -> Result<Map> {
    let size = n as f64;
    let after = |k: usize| {
        let scale = match (norm, k) {
            (Norm::None, _) => 2.0,
            (Norm::Ortho, 0) => 1.0,
            (Norm::Ortho, _) => 2.0 * FRAC_1_SQRT_2,
        };
        unit(-(k as f64) / (2.0 * size)) * scale
    };
    forward("dct2", n, norm, &Recipe { before: None, after: &after })
}

/// The inverse of [`dct2`] but for a factor 2 n: `y[j] = x[0] + 2 sum from k = 1 of
/// x[k] cos(pi k (2 j + 1) / 2n)`; orthonormal, its inverse.
///
/// # Errors
/// When n is no power of two from 2 on.
pub fn dct3(n: usize, norm: Norm) -> Result<Map> {
    log_size("dct3", n)?;
    let size = n as f64;
    let before = |k: usize| {
        let scale = match (norm, k) {
            (Norm::None, 0) | (Norm::Ortho, 0) => 1.0,
            (Norm::None, _) => 2.0,
            (Norm::Ortho, _) => 2.0 * FRAC_1_SQRT_2,
        };
        unit(k as f64 / (2.0 * size)) * scale
    };
    // The inverse DFT without its 1 / n.
    let twiddle = match norm {
        Norm::None => fft_twiddle(n, Decimation::Frequency, Scaling::None)?.conj(),
        Norm::Ortho => ifft_twiddle(n, Decimation::Frequency, Scaling::Unitary)?,
    };
    let twiddle = twiddle.after_diagonal(&(0..n).map(before).collect::<Vec<_>>());
    let (order, reversal) = (even_odd(n), bit_reversal(n)?);
    let mut perm = vec![0; n];
    order.iter().enumerate().for_each(|(from, &to)| perm[to] = reversal[from]);
    let chain = Chain::butterfly(&twiddle.complex_tensor()?, false)?;
    Map::Chain(chain).real().then(&Map::permutation(&perm)?)
}

/// `y[k] = 2 sum over j of x[j] cos(pi (2 k + 1) (2 j + 1) / 4n)`.
///
/// # Errors
/// When n is no power of two from 2 on.
pub fn dct4(n: usize, norm: Norm) -> Result<Map> {
    let size = n as f64;
    let before = |j: usize| match j % 2 {
        0 => unit(-(j as f64 + 0.5) / (2.0 * size)),
        _ => unit((j as f64 + 0.5) / (2.0 * size)),
    };
    let after = |k: usize| unit(-(k as f64) / (2.0 * size)) * factor(norm);
    forward("dct4", n, norm, &Recipe { before: Some(&before), after: &after })
}

/// `y[k] = 2 sum over j of x[j] sin(pi (k + 1) (2 j + 1) / 2n)`.
///
/// # Errors
/// When n is no power of two from 2 on.
pub fn dst2(n: usize, norm: Norm) -> Result<Map> {
    let size = n as f64;
    let before = |j: usize| match j % 2 {
        0 => unit(-(j as f64) / size),
        _ => -unit((j as f64 + 1.0) / size),
    };
    let after = |k: usize| {
        let scale = match (norm, k + 1 == n) {
            (Norm::None, _) => 2.0,
            (Norm::Ortho, true) => 1.0,
            (Norm::Ortho, false) => 2.0 * FRAC_1_SQRT_2,
        };
        Complex::<f64>::I * unit(-(k as f64 + 1.0) / (2.0 * size)) * scale
    };
    forward("dst2", n, norm, &Recipe { before: Some(&before), after: &after })
}

/// `y[k] = 2 sum over j of x[j] sin(pi (2 k + 1) (2 j + 1) / 4n)`.
///
/// # Errors
/// When n is no power of two from 2 on.
pub fn dst4(n: usize, norm: Norm) -> Result<Map> {
    let size = n as f64;
    let before = |j: usize| match j % 2 {
        0 => unit(-(j as f64) / (2.0 * size)),
        _ => -unit((j as f64 + 1.0) / (2.0 * size)),
    };
    let after =
        |k: usize| Complex::<f64>::I * unit(-(k as f64 + 0.5) / (2.0 * size)) * factor(norm);
    forward("dst4", n, norm, &Recipe { before: Some(&before), after: &after })
}

/// The factor of transforms whose rows all have the same norm.
fn factor(norm: Norm) -> f64 {
    match norm {
        Norm::None => 2.0,
        Norm::Ortho => 2.0 * FRAC_1_SQRT_2,
    }
}
