//! The nearest Monarch matrix, and the nearest one of a rank.
//!
//! With w1 `[k, q, p]` and w2 `[l, s, r]`, l r = k q, the entry of row `s_i l + l_i` and column
//! `k_i p + p_i` is a sum of q / l products. So a matrix is Monarch exactly if each slice of fixed
//! (k_i, l_i), a matrix `s x p`, has rank q / l at most, and the nearest one takes the leading
//! singular triples of every slice: the distance squared is the sum of the squares of all singular
//! values left out. One rule for square and rectangular matrices, sqrt(n) blocks (rank 1) and few
//! large blocks (rank n / blocks^2).

use super::Entries;
use super::svd::leading;
use crate::structured::algebra::Map;
use crate::structured::named;
use danaus_runtime::threads;
use danaus_tensor::{Device, Error, Result, Tensor};
use num_complex::Complex;
use std::sync::Mutex;

/// Sizes of a Monarch matrix as it is projected on: k blocks in the first factor, l in the second,
/// and the rank of the slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonarchSizes {
    /// Blocks of the first factor.
    pub k: usize,
    /// Blocks of the second factor.
    pub l: usize,
    /// Rank of a slice: `q = l rank`, `r = k rank`.
    pub rank: usize,
}

impl MonarchSizes {
    /// The sizes of a Monarch layer with this many blocks in both factors: blocks of `in / blocks`
    /// inputs and `out / blocks` outputs (rounded up), the inner size that of the smaller side.
    pub fn layer(blocks: usize, rows: usize, cols: usize) -> Self {
        let blocks = blocks.max(1);
        let inner = rows.div_ceil(blocks).min(cols.div_ceil(blocks));
        Self { k: blocks, l: blocks, rank: inner.div_ceil(blocks) }
    }
}

/// What [`project_monarch`] gives.
pub struct Monarch {
    /// `[k, l rank, p]`.
    pub w1: Tensor,
    /// `[l, s, k rank]`.
    pub w2: Tensor,
    /// Frobenius norm of the difference.
    pub error: f64,
    /// Frobenius norm of the matrix.
    pub norm: f64,
    rows: usize,
    cols: usize,
}

impl Monarch {
    /// The difference as a part of the norm; 0 for a matrix of zeros.
    pub fn relative_error(&self) -> f64 {
        if self.norm > 0.0 { self.error / self.norm } else { 0.0 }
    }

    /// The projected matrix.
    ///
    /// # Errors
    /// An internal error when the factors do not fit.
    pub fn map(&self) -> Result<Map> {
        named::monarch_layer(&self.w1, &self.w2, self.rows, self.cols)
    }
}

/// The Monarch matrix nearest to `matrix` in the Frobenius norm. Rows that l does not divide, and
/// columns that k does not, are padded with zeros. Factors are f64, or c128 for a complex matrix.
///
/// # Errors
/// When the matrix is none or not finite, a size is zero, or the rank exceeds that of a slice.
pub fn project_monarch(matrix: &Tensor, sizes: MonarchSizes) -> Result<Monarch> {
    const OP: &str = "project_monarch";
    let entries = Entries::of(OP, matrix)?;
    let MonarchSizes { k, l, rank } = sizes;
    for (name, value, most) in [("k", k, entries.cols), ("l", l, entries.rows)] {
        if !(1..=most).contains(&value) {
            return Err(Error::argument(OP, name, value, format!("1..={most}")));
        }
    }
    let (p, s) = (entries.cols.div_ceil(k), entries.rows.div_ceil(l));
    if !(1..=s.min(p)).contains(&rank) {
        let valid = format!("1..={} for slices of {s} x {p}", s.min(p));
        return Err(Error::argument(OP, "rank", rank, valid));
    }
    let slice = |block: usize, lane: usize| -> Vec<Complex<f64>> {
        let entry = |at: usize| {
            let (row, col) = (at / p * l + lane, block * p + at % p);
            match row < entries.rows && col < entries.cols {
                true => entries.values[row * entries.cols + col],
                false => Complex::ZERO,
            }
        };
        (0..s * p).map(entry).collect()
    };
    let results = Mutex::new(Vec::with_capacity(k * l));
    threads::for_each(k * l, |index| {
        let (block, lane) = (index / l, index % l);
        let found = leading(&slice(block, lane), (s, p), rank);
        if let Ok(mut results) = results.lock() {
            results.push((block, lane, found));
        }
    });
    let results = results.into_inner().map_err(|_| Error::internal("a slice panicked"))?;
    let (q, r) = (l * rank, k * rank);
    let (mut w1, mut w2) = (vec![Complex::ZERO; k * q * p], vec![Complex::ZERO; l * s * r]);
    let mut tails = vec![0.0; k * l];
    for (block, lane, found) in results {
        let found = found?;
        tails[block * l + lane] = found.tail;
        for c in 0..rank {
            let to = (block * q + c * l + lane) * p;
            w1[to..to + p].copy_from_slice(&found.right[c * p..][..p]);
            for row in 0..s {
                w2[(lane * s + row) * r + block * rank + c] = found.left[row * rank + c];
            }
        }
    }
    let complex = matrix.dtype().is_complex();
    Ok(Monarch {
        w1: tensor(w1, [k, q, p], complex)?,
        w2: tensor(w2, [l, s, r], complex)?,
        error: tails.iter().sum::<f64>().sqrt(),
        norm: entries.norm(),
        rows: entries.rows,
        cols: entries.cols,
    })
}

fn tensor<const N: usize>(
    values: Vec<Complex<f64>>,
    shape: [usize; N],
    complex: bool,
) -> Result<Tensor> {
    match complex {
        true => Tensor::from_vec(values, shape, &Device::Cpu),
        false => Tensor::from_vec(values.iter().map(|z| z.re).collect(), shape, &Device::Cpu),
    }
}

/// What [`project_low_rank`] gives.
pub struct LowRankFactors {
    /// `[rows, rank]`.
    pub u: Tensor,
    /// `[rank, cols]`.
    pub v: Tensor,
    /// Frobenius norm of the difference.
    pub error: f64,
    /// Frobenius norm of the matrix.
    pub norm: f64,
}

impl LowRankFactors {
    /// The difference as a part of the norm; 0 for a matrix of zeros.
    pub fn relative_error(&self) -> f64 {
        if self.norm > 0.0 { self.error / self.norm } else { 0.0 }
    }
}

/// The nearest matrix of a rank in the Frobenius norm.
///
/// # Errors
/// When the matrix is none or not finite, or the rank is not in `1..=min(rows, cols)`.
pub fn project_low_rank(matrix: &Tensor, rank: usize) -> Result<LowRankFactors> {
    const OP: &str = "project_low_rank";
    let entries = Entries::of(OP, matrix)?;
    let most = entries.rows.min(entries.cols);
    if !(1..=most).contains(&rank) {
        return Err(Error::argument(OP, "rank", rank, format!("1..={most}")));
    }
    let found = leading(&entries.values, (entries.rows, entries.cols), rank)?;
    let complex = matrix.dtype().is_complex();
    Ok(LowRankFactors {
        u: tensor(found.left, [entries.rows, rank], complex)?,
        v: tensor(found.right, [rank, entries.cols], complex)?,
        error: found.tail.sqrt(),
        norm: entries.norm(),
    })
}
