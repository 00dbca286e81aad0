//! Singular values of many slices, in parallel.

use danaus_tensor::{Error, Result};
use faer::{Mat, MatRef, c64};
use num_complex::Complex;

/// The `rank` leading singular triples of a matrix, and the sum of the squares of the others.
pub(super) struct Leading {
    /// `[rows, rank]`, columns times the roots of their singular values.
    pub left: Vec<Complex<f64>>,
    /// `[rank, cols]`, rows times the roots of their singular values.
    pub right: Vec<Complex<f64>>,
    /// Sum of the squares of the singular values left out.
    pub tail: f64,
}

/// Splits `values` (`rows x cols`, row by row) at `rank`. Real matrices stay real.
pub(super) fn leading(
    values: &[Complex<f64>],
    (rows, cols): (usize, usize),
    rank: usize,
) -> Result<Leading> {
    let failed = |_| Error::internal("the singular value decomposition did not converge");
    if values.iter().all(|z| z.im == 0.0) {
        let real: Vec<f64> = values.iter().map(|z| z.re).collect();
        let matrix = MatRef::from_row_major_slice(&real, rows, cols);
        let svd = matrix.thin_svd().map_err(failed)?;
        let s: Vec<f64> = svd.S().column_vector().iter().copied().collect();
        let (u, v): (Mat<f64>, Mat<f64>) = (svd.U().to_owned(), svd.V().to_owned());
        let parts = (|i, c| Complex::from(u[(i, c)]), |c, j| Complex::from(v[(j, c)]));
        return Ok(assemble(&s, (rows, cols), rank, parts));
    }
    let matrix: MatRef<c64> = MatRef::from_row_major_slice(values, rows, cols);
    let svd = matrix.thin_svd().map_err(failed)?;
    let s: Vec<f64> = svd.S().column_vector().iter().map(|z| z.re).collect();
    let (u, v) = (svd.U().to_owned(), svd.V().to_owned());
    let parts = (|i, c| u[(i, c)], |c, j| v[(j, c)].conj());
    Ok(assemble(&s, (rows, cols), rank, parts))
}

/// Both sides with the roots of the singular values in them.
fn assemble(
    s: &[f64],
    (rows, cols): (usize, usize),
    rank: usize,
    (u, v): (impl Fn(usize, usize) -> Complex<f64>, impl Fn(usize, usize) -> Complex<f64>),
) -> Leading {
    let root = |c: usize| s.get(c).copied().unwrap_or(0.0).max(0.0).sqrt();
    let inside = |c: usize| c < s.len();
    let mut left = vec![Complex::ZERO; rows * rank];
    let mut right = vec![Complex::ZERO; rank * cols];
    for c in (0..rank).filter(|&c| inside(c)) {
        (0..rows).for_each(|i| left[i * rank + c] = u(i, c) * root(c));
        (0..cols).for_each(|j| right[c * cols + j] = v(c, j) * root(c));
    }
    let tail = s.iter().skip(rank).map(|value| value * value).sum();
    Leading { left, right, tail }
}
