//! Circulant and Toeplitz matrices as two butterflies with a diagonal between them.
//!
//! `C = F^-1 diag(F c) F`. The DFT decimated in frequency leaves its result in bit-reversed order,
//! which is the order that the inverse decimated in time wants: both permutations cancel, and C is
//! one product of two butterflies with the reordered spectrum between them.

use super::fourier::{Decimation, Scaling, bit_reversal, fft, fft_twiddle, ifft_twiddle};
use crate::structured::algebra::{Chain, Map, numbers};
use danaus_tensor::{Device, Error, Result, Tensor};
use num_complex::Complex;

/// The parts of a circulant matrix of n points, n a power of two.
#[derive(Clone)]
pub struct CirculantParts {
    /// Unitary DFT, decreasing strides.
    pub first: Tensor,
    /// The spectrum in bit-reversed order.
    pub diagonal: Tensor,
    /// Unitary inverse DFT, increasing strides.
    pub second: Tensor,
}

fn vector(op: &'static str, name: &str, values: &Tensor) -> Result<Vec<Complex<f64>>> {
    if values.rank() != 1 || values.elem_count() == 0 {
        return Err(Error::shape(op, name, values.shape(), "[n] with at least one element"));
    }
    numbers(values)
}

/// The parts of the circulant matrix of a first column whose length is a power of two from 2 on.
///
/// # Errors
/// When the length is another one.
pub fn circulant_parts(column: &Tensor) -> Result<CirculantParts> {
    let column = vector("circulant", "column", column)?;
    let n = column.len();
    let reversal = bit_reversal(n)?;
    let transform = fft(n, Decimation::Time, Scaling::None)?;
    let column = Tensor::from_vec(column, [1, n], &Device::Cpu)?;
    let spectrum = transform.apply(&column)?.to_vec::<Complex<f64>>()?;
    let diagonal = reversal.into_iter().map(|index| spectrum[index]).collect();
    Ok(CirculantParts {
        first: fft_twiddle(n, Decimation::Frequency, Scaling::Unitary)?.complex_tensor()?,
        diagonal: Tensor::from_vec(diagonal, [n], &Device::Cpu)?,
        second: ifft_twiddle(n, Decimation::Time, Scaling::Unitary)?.complex_tensor()?,
    })
}

impl CirculantParts {
    /// The matrix.
    ///
    /// # Errors
    /// An internal error when parts do not fit.
    pub fn map(&self) -> Result<Map> {
        Map::product([
            Map::Chain(Chain::butterfly(&self.first, false)?),
            Map::diagonal(&self.diagonal)?,
            Map::Chain(Chain::butterfly(&self.second, true)?),
        ])
    }
}

/// A circulant matrix of size `size` >= 2 n - 1 whose corner has the columns `col` and rows `row`.
fn embedded(col: &[Complex<f64>], row: &[Complex<f64>], size: usize) -> Result<Map> {
    let mut all = vec![Complex::ZERO; size];
    all[..col.len()].copy_from_slice(col);
    for (k, &value) in row.iter().enumerate().skip(1) {
        all[size - k] = value;
    }
    let corner = |rows, cols| Map::Identity { rows, cols };
    let circulant = circulant_parts(&Tensor::from_vec(all, [size], &Device::Cpu)?)?.map()?;
    corner(size, row.len()).then(&circulant)?.then(&corner(col.len(), size))
}

fn real_if(map: Map, inputs: &[&Tensor]) -> Map {
    match inputs.iter().any(|tensor| tensor.dtype().is_complex()) {
        true => map,
        false => map.real(),
    }
}

/// The circulant matrix of a first column of any length: `y[i] = sum over j of column[i - j] x[j]`.
///
/// # Errors
/// When there is no element.
pub fn circulant(column: &Tensor) -> Result<Map> {
    let values = vector("circulant", "column", column)?;
    let n = values.len();
    let map = if n.is_power_of_two() && n > 1 {
        circulant_parts(column)?.map()?
    } else {
        let row: Vec<Complex<f64>> = (0..n).map(|k| values[(n - k) % n]).collect();
        embedded(&values, &row, (2 * n - 1).next_power_of_two().max(2))?
    };
    Ok(real_if(map, &[column]))
}

/// The Toeplitz matrix of a first column and a first row (whose first element is not used).
///
/// # Errors
/// When either is empty.
pub fn toeplitz(col: &Tensor, row: &Tensor) -> Result<Map> {
    let (first, across) = (vector("toeplitz", "col", col)?, vector("toeplitz", "row", row)?);
    let size = (first.len() + across.len() - 1).next_power_of_two().max(2);
    Ok(real_if(embedded(&first, &across, size)?, &[col, row]))
}
