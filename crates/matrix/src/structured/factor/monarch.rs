//! The nearest Monarch matrix, and the nearest one of a rank.
//!
//! With w1 `[k, q, p]` and w2 `[l, s, r]`, l r = k q, the entry of row `s_i l + l_i` and column
//! `k_i p + p_i` is a sum of q / l products. So a matrix is Monarch exactly if each slice of fixed
//! (k_i, l_i), a matrix `s x p`, has rank q / l at most, and the nearest one takes the leading
//! singular triples of every slice: the distance squared is the sum of the squares of all singular
//! values left out. One rule for square and rectangular matrices, sqrt(n) blocks (rank 1) and few
//! large blocks (rank n / blocks^2).
//!
//! Where l does not divide q, slices have different ranks: each of the k q numbers between the
//! factors, `f = k_i q + q_i = r_i l + l_i`, belongs to one slice and gives it one more. So layers of
//! any sizes have their nearest matrix in the same closed form.

use super::Entries;
use super::svd::leading;
use crate::structured::algebra::Map;
use crate::structured::expression::monarch_shapes;
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
    check_blocks(OP, &entries, [k, l])?;
    let (p, s) = (entries.cols.div_ceil(k), entries.rows.div_ceil(l));
    if !(1..=s.min(p)).contains(&rank) {
        let valid = format!("1..={} for slices of {s} x {p}", s.min(p));
        return Err(Error::argument(OP, "rank", rank, valid));
    }
    project(&entries, [k, l], l * rank, matrix.dtype().is_complex())
}

/// As [`project_monarch`], onto the Monarch layers `monarch(blocks)` of this size: the factors have the
/// shapes of the weight's format.
///
/// # Errors
/// When the matrix is none or not finite, or there are more blocks than rows or columns.
pub fn project_monarch_layer(matrix: &Tensor, blocks: usize) -> Result<Monarch> {
    const OP: &str = "project_monarch";
    let entries = Entries::of(OP, matrix)?;
    let most = entries.rows.min(entries.cols);
    if !(1..=most).contains(&blocks) {
        return Err(Error::argument(OP, "blocks", blocks, format!("1..={most}")));
    }
    let (first, _) = monarch_shapes(blocks, [entries.rows, entries.cols]);
    project(&entries, [blocks, blocks], first[1], matrix.dtype().is_complex())
}

fn check_blocks(op: &'static str, entries: &Entries, [k, l]: [usize; 2]) -> Result<()> {
    for (name, value, most) in [("k", k, entries.cols), ("l", l, entries.rows)] {
        if !(1..=most).contains(&value) {
            return Err(Error::argument(op, name, value, format!("1..={most}")));
        }
    }
    Ok(())
}

/// Projects on k blocks with q outputs in the first factor, l blocks in the second; l divides k q.
fn project(entries: &Entries, [k, l]: [usize; 2], q: usize, complex: bool) -> Result<Monarch> {
    let (p, s) = (entries.cols.div_ceil(k), entries.rows.div_ceil(l));
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
    // Numbers between the factors that belong to a slice.
    let inner = |block: usize, lane: usize| {
        (block * q..(block + 1) * q).filter(move |f| f % l == lane).enumerate()
    };
    let results = Mutex::new(Vec::with_capacity(k * l));
    threads::for_each(k * l, |index| {
        let (block, lane) = (index / l, index % l);
        let found = leading(&slice(block, lane), (s, p), inner(block, lane).count());
        if let Ok(mut results) = results.lock() {
            results.push((block, lane, found));
        }
    });
    let results = results.into_inner().map_err(|_| Error::internal("a slice panicked"))?;
    let r = k * q / l;
    let (mut w1, mut w2) = (vec![Complex::ZERO; k * q * p], vec![Complex::ZERO; l * s * r]);
    let mut tails = vec![0.0; k * l];
    for (block, lane, found) in results {
        let found = found?;
        tails[block * l + lane] = found.tail;
        let rank = inner(block, lane).count();
        for (c, f) in inner(block, lane) {
            w1[f * p..(f + 1) * p].copy_from_slice(&found.right[c * p..][..p]);
            for row in 0..s {
                w2[(lane * s + row) * r + f / l] = found.left[row * rank + c];
            }
        }
    }
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
