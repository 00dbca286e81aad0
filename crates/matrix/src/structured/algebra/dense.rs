//! The matrix itself, from the definitions.

use super::{Chain, Map, meet, scaled};
use danaus_tensor::{DType, Device, Result, Tensor};
use num_complex::Complex;

impl Map {
    /// All elements, `[rows, cols]`, in f64 or c128, without history.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn to_dense(&self) -> Result<Tensor> {
        let complex = self.is_complex() || self.tensors().iter().any(|t| t.dtype().is_complex());
        let (rows, cols) = (self.rows(), self.cols());
        match self {
            Map::Identity { .. } => from_entries(rows, cols, false, |put| {
                (0..rows.min(cols)).for_each(|i| put(i, i, Complex::ONE));
                Ok(())
            }),
            Map::Repeated { times, n, transposed } => from_entries(rows, cols, false, |put| {
                for i in 0..times * n {
                    let (row, col) = if *transposed { (i % n, i) } else { (i, i % n) };
                    put(row, col, Complex::ONE);
                }
                Ok(())
            }),
            Map::Permutation(perm) => from_entries(rows, cols, false, |put| {
                perm.iter().enumerate().for_each(|(i, &j)| put(i, j, Complex::ONE));
                Ok(())
            }),
            Map::Diagonal(values) => from_entries(rows, cols, complex, |put| {
                let values = numbers(values)?;
                values.iter().enumerate().for_each(|(i, &value)| put(i, i, value));
                Ok(())
            }),
            Map::Toeplitz { col, row } => from_entries(rows, cols, complex, |put| {
                let (col, row) = (numbers(col)?, numbers(row)?);
                for i in 0..rows {
                    for j in 0..cols {
                        put(i, j, if i >= j { col[i - j] } else { row[j - i] });
                    }
                }
                Ok(())
            }),
            Map::ToeplitzLike { g, h } => {
                let lower = |row: Tensor| -> Result<Tensor> {
                    let zeros = Tensor::zeros(row.shape(), row.dtype(), &Device::Cpu)?;
                    Map::Toeplitz { col: row, row: zeros }.to_dense()
                };
                let mut sum = Tensor::zeros([rows, cols], DType::F64, &Device::Cpu)?;
                for i in 0..g.dims()[0] {
                    let (g, h) =
                        (lower(g.detach().select(0, i)?)?, lower(h.detach().select(0, i)?)?);
                    sum = sum.add(&g.matmul(&h.transpose(0, 1)?)?)?;
                }
                Ok(sum)
            }
            Map::Chain(chain) => chain_matrix(chain, complex),
            Map::Dense(values) => {
                let wide = if complex { DType::C128 } else { DType::F64 };
                values.detach().to_dtype(wide)
            }
            Map::Product(maps) => {
                let mut matrices = maps.iter().map(Map::to_dense);
                let first = matrices.next().unwrap_or_else(|| Map::identity(0).to_dense())?;
                matrices.try_fold(first, |before, next| {
                    let (next, before) = meet(&next?, &before)?;
                    next.matmul(&before)
                })
            }
            Map::Sum(maps) => {
                let mut matrices = maps.iter().map(Map::to_dense);
                let first = matrices.next().unwrap_or_else(|| Map::identity(0).to_dense())?;
                matrices.try_fold(first, |sum, next| {
                    let (sum, next) = meet(&sum, &next?)?;
                    sum.add(&next)
                })
            }
            Map::Kronecker(a, b) => from_entries(rows, cols, complex, |put| {
                let (left, right) = (numbers(&a.to_dense()?)?, numbers(&b.to_dense()?)?);
                let (rows, cols) = (b.rows(), b.cols());
                for (i, &outer) in left.iter().enumerate() {
                    let (row, col) = (i / a.cols() * rows, i % a.cols() * cols);
                    for (j, &inner) in right.iter().enumerate() {
                        put(row + j / cols, col + j % cols, outer * inner);
                    }
                }
                Ok(())
            }),
            Map::Real(map) => {
                let dense = map.to_dense()?;
                if dense.dtype().is_complex() { dense.real() } else { Ok(dense) }
            }
            Map::Scaled(factor, map) => scaled(&map.to_dense()?, *factor),
        }
    }
}

/// The elements in row-major order as complex numbers.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<Complex<f64>>> {
    let tensor = tensor.detach();
    if tensor.dtype().is_complex() {
        return tensor.to_dtype(DType::C128)?.to_vec();
    }
    let real = tensor.to_dtype(DType::F64)?.to_vec::<f64>()?;
    Ok(real.into_iter().map(Complex::from).collect())
}

/// A matrix of zeros where `fill` puts numbers.
fn from_entries(
    rows: usize,
    cols: usize,
    complex: bool,
    fill: impl FnOnce(&mut dyn FnMut(usize, usize, Complex<f64>)) -> Result<()>,
) -> Result<Tensor> {
    let mut entries = vec![Complex::ZERO; rows * cols];
    fill(&mut |row, col, value| entries[row * cols + col] = value)?;
    if complex {
        return Tensor::from_vec(entries, [rows, cols], &Device::Cpu);
    }
    Tensor::from_vec(entries.iter().map(|z| z.re).collect(), [rows, cols], &Device::Cpu)
}

/// The product of the factors as matrices.
fn chain_matrix(chain: &Chain, complex: bool) -> Result<Tensor> {
    let mut product: Option<Tensor> = None;
    for step in chain.steps() {
        let values = numbers(&chain.values(step)?)?;
        let (blocks, rows, cols) = (step.blocks(), step.rows(), step.cols());
        let factor = from_entries(rows, cols, complex, |put| {
            for g in 0..blocks.count() {
                let (row, col, value) = blocks.start(g);
                for (index, &entry) in values[value..value + blocks.elems()].iter().enumerate() {
                    let (p, q) = (index / blocks.cols, index % blocks.cols);
                    put(row + p * blocks.d, col + q * blocks.d, entry);
                }
            }
            Ok(())
        })?;
        product = Some(match product {
            None => factor,
            Some(before) => factor.matmul(&before)?,
        });
    }
    product.map_or_else(|| Map::identity(0).to_dense(), Ok)
}
