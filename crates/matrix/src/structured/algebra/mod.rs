//! One algebra of structured matrices: leaves with a fast product, and what can be built from them.
//!
//! A [`Map`] is a matrix `rows x cols` made of products of Kronecker-sparse factors ([`Chain`]:
//! butterfly, Monarch, block-diagonal), diagonals, fixed permutations, Toeplitz and dense terms,
//! and of products, sums, Kronecker products, real parts and multiples of such maps. Transpose,
//! conjugate and adjoint are maps again: of leaves they change addresses or flags, of compositions
//! the order. Low rank is a product of two dense factors.
//!
//! `apply` multiplies rows of vectors through the operators of the tape, so gradients reach every
//! tensor inside. `to_dense` is made from the definitions, entry by entry and by plain products,
//! and shares no code with `apply`: it is the oracle. Parameters, operations and bytes are counted
//! exactly.
//!
//! Real and complex meet by promotion: a real leaf multiplies a complex x, and a complex leaf makes
//! a real x complex. [`Map::real`] takes the real part of a result.

mod chain;
mod compose;
mod dense;
mod size;

#[cfg(test)]
mod tests;

pub use chain::Chain;
pub(crate) use dense::numbers;

use danaus_kernel::ops::toeplitz::{toeplitz, toeplitz_like};
use danaus_tensor::{DType, Error, Result, Tensor};
use std::sync::Arc;

/// A structured matrix as an expression. Cloning shares the tensors.
#[derive(Clone)]
pub enum Map {
    /// Ones on the main diagonal of `rows x cols`: cuts vectors, or pads them with zeros.
    Identity {
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
    },
    /// A vector of n numbers several times, one copy behind the other; transposed, the sum of the
    /// pieces.
    Repeated {
        /// Copies.
        times: usize,
        /// Length of one.
        n: usize,
        /// Whether pieces are summed.
        transposed: bool,
    },
    /// These values on the diagonal, `[n]`.
    Diagonal(Tensor),
    /// `y[i] = x[perm[i]]`.
    Permutation(Arc<[usize]>),
    /// A product of Kronecker-sparse factors.
    Chain(Chain),
    /// Entry (i, j) is `col[i - j]` on and below the diagonal and `row[j - i]` above it.
    Toeplitz {
        /// First column, `[rows]`.
        col: Tensor,
        /// First row, `[cols]`; its first element is not used.
        row: Tensor,
    },
    /// `sum over i of L(G_i) L(H_i)^T` for lower triangular Toeplitz matrices L of first column
    /// G_i, H_i.
    ToeplitzLike {
        /// Generators of the outputs, `[rank, n]`.
        g: Tensor,
        /// Generators of the inputs, `[rank, n]`.
        h: Tensor,
    },
    /// All elements, `[rows, cols]`.
    Dense(Tensor),
    /// Maps in the order they are applied.
    Product(Vec<Map>),
    /// The sum of maps of one shape.
    Sum(Vec<Map>),
    /// The Kronecker product `A (x) B`.
    Kronecker(Arc<Map>, Arc<Map>),
    /// The real part of what the map gives.
    Real(Arc<Map>),
    /// A multiple.
    Scaled(f64, Arc<Map>),
}

impl Map {
    /// The identity of size n.
    pub fn identity(n: usize) -> Self {
        Map::Identity { rows: n, cols: n }
    }

    /// `y[i] = x[perm[i]]`.
    ///
    /// # Errors
    /// When `perm` does not hold each of `0..n` once.
    pub fn permutation(perm: &[usize]) -> Result<Self> {
        let mut seen = vec![false; perm.len()];
        for &index in perm {
            match seen.get_mut(index) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => return Err(not_a_permutation(perm.len(), index, "occurs twice")),
                None => return Err(not_a_permutation(perm.len(), index, "is out of range")),
            }
        }
        Ok(Map::Permutation(perm.into()))
    }

    /// A dense term.
    ///
    /// # Errors
    /// When the tensor is no matrix.
    pub fn dense(values: &Tensor) -> Result<Self> {
        match values.rank() {
            2 => Ok(Map::Dense(values.clone())),
            _ => Err(Error::shape("Map::dense", "values", values.shape(), "[rows, cols]")),
        }
    }

    /// The diagonal matrix of these values.
    ///
    /// # Errors
    /// When the tensor is no vector.
    pub fn diagonal(values: &Tensor) -> Result<Self> {
        match values.rank() {
            1 => Ok(Map::Diagonal(values.clone())),
            _ => Err(Error::shape("Map::diagonal", "values", values.shape(), "[n]")),
        }
    }

    /// The product of a batch: `[.., cols]` to `[.., rows]`.
    ///
    /// # Errors
    /// When the last dimension of x is not [`Self::cols`], or dtypes do not fit.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if x.dims().last() != Some(&self.cols()) {
            let expected = format!("[.., {}]", self.cols());
            return Err(Error::shape("Map::apply", "x", x.shape(), expected));
        }
        match self {
            Map::Identity { rows, cols } if rows > cols => x.pad(-1, 0, rows - cols, 0.0),
            Map::Identity { rows, .. } => x.narrow(-1, 0, *rows),
            Map::Repeated { times, transposed: false, .. } => x.repeat(-1, *times),
            Map::Repeated { times, n, .. } => {
                let mut dims = x.dims().to_vec();
                dims.pop();
                dims.extend([*times, *n]);
                x.reshape(dims)?.sum(-2)
            }
            Map::Diagonal(values) => {
                let (x, values) = beside(x, values)?;
                x.mul(&values)
            }
            Map::Permutation(perm) => {
                let ids: Vec<i64> = perm.iter().map(|&index| index as i64).collect();
                x.index_select(-1, &Tensor::from_vec(ids, [perm.len()], &x.device())?)
            }
            Map::Chain(chain) => chain.apply(x),
            Map::Toeplitz { col, row } => apply_toeplitz(x, col, row),
            Map::ToeplitzLike { g, h } if x.dtype().is_complex() => {
                let (re, im) = (toeplitz_like(&x.real()?, g, h)?, toeplitz_like(&x.imag()?, g, h)?);
                Tensor::complex(&re, &im)
            }
            Map::ToeplitzLike { g, h } => toeplitz_like(x, g, h),
            Map::Dense(values) => {
                let (x, values) = beside(x, values)?;
                let rows = x.elem_count() / x.dims()[x.rank() - 1].max(1);
                let mut dims = x.dims().to_vec();
                dims[x.rank() - 1] = values.dims()[0];
                let flat = x.reshape([rows, values.dims()[1]])?;
                flat.matmul(&values.transpose(0, 1)?)?.reshape(dims)
            }
            Map::Product(maps) => maps.iter().try_fold(x.clone(), |x, map| map.apply(&x)),
            Map::Sum(maps) => {
                let mut terms = maps.iter().map(|map| map.apply(x));
                let first = terms.next().unwrap_or_else(|| Err(Error::internal("an empty sum")))?;
                terms.try_fold(first, |sum, term| {
                    let (sum, term) = meet(&sum, &term?)?;
                    sum.add(&term)
                })
            }
            Map::Kronecker(a, b) => kronecker(a, b, x),
            Map::Real(map) => {
                let y = map.apply(x)?;
                if y.dtype().is_complex() { y.real() } else { Ok(y) }
            }
            Map::Scaled(factor, map) => scaled(&map.apply(x)?, *factor),
        }
    }
}

fn not_a_permutation(len: usize, index: usize, problem: &str) -> Error {
    let valid = format!("each of 0..{len} once ({index} {problem})");
    Error::argument("Map::permutation", "perm", format!("{len} numbers"), valid)
}

/// Both tensors real, or both complex.
pub(super) fn meet(a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
    let complex = |real: &Tensor| -> Result<Tensor> {
        let zeros = Tensor::zeros(real.shape(), real.dtype(), &real.device())?;
        Tensor::complex(real, &zeros)
    };
    match (a.dtype().is_complex(), b.dtype().is_complex()) {
        (true, false) => Ok((a.clone(), complex(b)?)),
        (false, true) => Ok((complex(a)?, b.clone())),
        _ => Ok((a.clone(), b.clone())),
    }
}

/// As [`meet`], with the values in the dtype of the vectors.
fn beside(x: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
    let (x, values) = meet(x, values)?;
    let values = values.to_dtype(x.dtype())?;
    Ok((x, values))
}

/// `factor x` for real and complex x.
fn scaled(x: &Tensor, factor: f64) -> Result<Tensor> {
    match x.dtype() {
        DType::C64 | DType::C128 => {
            Tensor::complex(&x.real()?.affine(factor, 0.0)?, &x.imag()?.affine(factor, 0.0)?)
        }
        _ => x.affine(factor, 0.0),
    }
}

/// Real Toeplitz products of the parts of complex operands.
fn apply_toeplitz(x: &Tensor, col: &Tensor, row: &Tensor) -> Result<Tensor> {
    if !x.dtype().is_complex() && !col.dtype().is_complex() {
        return toeplitz(x, col, row);
    }
    let (x, col) = meet(x, col)?;
    let (_, row) = meet(&x, row)?;
    let part = |x: &Tensor, imaginary: bool| {
        let (col, row) = match imaginary {
            true => (col.imag()?, row.imag()?),
            false => (col.real()?, row.real()?),
        };
        toeplitz(x, &col, &row)
    };
    let (re, im) = (x.real()?, x.imag()?);
    let real = part(&re, false)?.sub(&part(&im, true)?)?;
    let imaginary = part(&re, true)?.add(&part(&im, false)?)?;
    Tensor::complex(&real, &imaginary)
}

/// `(A (x) B) x`: x as a matrix whose rows B sees and whose columns A sees.
fn kronecker(a: &Map, b: &Map, x: &Tensor) -> Result<Tensor> {
    let batch = x.elem_count() / x.dims()[x.rank() - 1].max(1);
    let matrix = x.reshape([batch, a.cols(), b.cols()])?;
    let y = b.apply(&matrix)?.transpose(-2, -1)?;
    let y = a.apply(&y)?.transpose(-2, -1)?;
    let mut dims = x.dims().to_vec();
    dims[x.rank() - 1] = a.rows() * b.rows();
    y.reshape(dims)
}
