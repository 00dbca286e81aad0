//! From dense matrices to structured ones, with the error that remains.
//!
//! * [`peel`]: a product of butterfly factors by hierarchical rank-one splitting; exact for members
//!   of the class, best level by level for others.
//! * [`recognise`]: finds the fast algorithm of a matrix: its class, permutation and factors.
//! * [`project_monarch`]: the nearest Monarch matrix (for any sizes, block counts and inner rank)
//!   with the exact distance; [`project_low_rank`] the nearest one of a rank.
//!
//! * [`factor_mm_star`]: a product of two Monarch matrices as its three block-diagonal factors.
//! * [`project`]: the nearest matrix of a weight's format, as its parameters, and how far it is;
//!   [`errors`] how far those of several formats would be.
//! * [`analyze`]: what structure a matrix has: ranks, displacement ranks, distances of formats.
//! * [`target`]: dense matrices of named transforms to try them on.
//!
//! Every function reports the residual of what it returns, measured or known exactly; none
//! pretends.

mod analysis;
mod mm_star;
mod monarch;
mod peel;
mod project;
mod recognise;
mod small;
mod sparse;
mod svd;
mod targets;

#[cfg(test)]
mod tests;

pub use analysis::{Analysis, Displacement, Fit, Spectrum, analyze};
pub use mm_star::{MmStar, factor_mm_star};
pub use monarch::{
    LowRankFactors, Monarch, MonarchSizes, project_low_rank, project_monarch, project_monarch_layer,
};
pub use peel::{Peeled, peel};
pub use project::{Projected, errors, project};
pub use recognise::{Recognised, recognise};
pub use targets::{TARGETS, target};

use crate::structured::algebra::numbers;
use danaus_tensor::{Error, Result, Tensor};
use num_complex::Complex;

/// A dense matrix as complex numbers, row by row, refused where it is none or not finite.
pub(crate) struct Entries {
    pub rows: usize,
    pub cols: usize,
    pub values: Vec<Complex<f64>>,
}

impl Entries {
    pub fn of(op: &'static str, matrix: &Tensor) -> Result<Self> {
        let &[rows, cols] = matrix.dims() else {
            return Err(Error::shape(op, "matrix", matrix.shape(), "[rows, cols]"));
        };
        let values = numbers(matrix)?;
        if let Some(at) = values.iter().position(|z| !z.re.is_finite() || !z.im.is_finite()) {
            let place = format!("{} at ({}, {})", values[at], at / cols.max(1), at % cols.max(1));
            return Err(Error::argument(op, "matrix", place, "finite numbers"));
        }
        Ok(Self { rows, cols, values })
    }

    /// The size of a square matrix whose size is a power of two from 2 on.
    pub fn butterfly_size(&self, op: &'static str) -> Result<usize> {
        match self.rows == self.cols && self.rows.is_power_of_two() && self.rows > 1 {
            true => Ok(self.rows),
            false => {
                let given = format!("{} x {}", self.rows, self.cols);
                let valid = "a square matrix whose size is a power of two from 2 on";
                Err(Error::argument(op, "matrix", given, valid))
            }
        }
    }

    /// The Frobenius norm.
    pub fn norm(&self) -> f64 {
        self.values.iter().map(Complex::norm_sqr).sum::<f64>().sqrt()
    }
}
