//! Butterfly factors of a dense matrix by hierarchical rank-one splitting.
//!
//! For `T = F_{n/2} .. F_2 F_1` with strides 1, 2, .., n/2, all factors but the first keep the
//! parity of a position. So the rows of one parity in the two columns of a pair are the outer
//! product of a column of the remaining product and a row of the pair's 2 x 2 block: a slice of
//! rank one. Its dominant singular vectors give the block and the same problem at half the size,
//! twice; 2 x 2 matrices are left at the end and are the last factor themselves (Zheng, Riccietti,
//! Gribonval, SIAM J. Matrix Anal. Appl. 2023). The singular vectors of a slice of two columns come
//! from a 2 x 2 Gram matrix, so that all levels together cost n^2 log n operations and read every
//! element twice a level.
//!
//! A member of the class is recovered to rounding. For other matrices each level is the best
//! rank-one choice, and the discarded part of a level bounds what the levels before it lost.

use super::Entries;
use crate::structured::algebra::{Chain, Map};
use crate::structured::construct::Twiddle;
use danaus_tensor::{Error, Result, Tensor};
use num_complex::Complex;

type Number = Complex<f64>;

/// Factors found by [`peel`].
pub struct Peeled {
    /// The factors.
    pub twiddle: Twiddle,
    /// Norm of what the splittings discarded, relative to the norm of the matrix. Zero (to
    /// rounding) means that the matrix is a member; otherwise the distance of the product is of
    /// this size, and measured by whoever needs it exactly.
    pub discarded: f64,
}

impl Peeled {
    /// The product of the factors.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn map(&self) -> Result<Map> {
        let increasing = self.twiddle.is_increasing();
        Ok(Map::Chain(Chain::butterfly(&self.twiddle.tensor()?, increasing)?))
    }
}

/// Splits a square matrix whose size is a power of two into butterfly factors of increasing strides
/// (class B) or decreasing ones (class B*).
///
/// # Errors
/// For other sizes, and elements that are not finite.
pub fn peel(matrix: &Tensor, increasing: bool) -> Result<Peeled> {
    let entries = Entries::of("peel", matrix)?;
    let n = entries.butterfly_size("peel")?;
    let values = if increasing { entries.values } else { transposed(&entries.values, n) };
    let peeled = split(values, n, f64::INFINITY);
    let (twiddle, discarded) =
        peeled.ok_or_else(|| Error::internal("peel: a limit where there is none"))?;
    Ok(Peeled { twiddle: if increasing { twiddle } else { twiddle.transposed() }, discarded })
}

pub(super) fn transposed(values: &[Number], n: usize) -> Vec<Number> {
    (0..n * n).map(|at| values[at % n * n + at / n]).collect()
}

/// Factors of increasing strides, or `None` as soon as a level discards more than `limit` of the
/// norm.
pub(super) fn split(values: Vec<Number>, n: usize, limit: f64) -> Option<(Twiddle, f64)> {
    let norm = values.iter().map(|z| z.norm_sqr()).sum::<f64>();
    let mut blocks: Vec<Vec<[[Number; 2]; 2]>> = Vec::new();
    let (mut level, mut size, mut lost) = (values, n, 0.0);
    while size > 2 {
        let count = n / size;
        let mut factor = vec![[[Complex::ZERO; 2]; 2]; n / 2];
        let mut next = vec![Complex::ZERO; n * size / 2];
        for residue in 0..count {
            let matrix = &level[residue * size * size..][..size * size];
            for parity in 0..2 {
                let child = residue + parity * count;
                let to = &mut next[child * (size / 2) * (size / 2)..][..(size / 2) * (size / 2)];
                let vectors = dominant(matrix, size, parity);
                lost += project(matrix, size, parity, &vectors, to);
                for (j, vector) in vectors.iter().enumerate() {
                    factor[j * count + residue][parity] = vector.map(|z| z.conj());
                }
            }
        }
        if lost > limit * limit * norm {
            return None;
        }
        blocks.push(factor);
        (level, size) = (next, size / 2);
    }
    // What is left are 2 x 2 matrices: the last factor, whose pairs are the residues.
    let last = level.chunks_exact(4).map(|m| [[m[0], m[1]], [m[2], m[3]]]).collect();
    blocks.push(last);
    balance(&mut blocks);
    let stage = |stride: usize| &blocks[stride.trailing_zeros() as usize];
    let twiddle = Twiddle::new(n, true, |stride, pair| stage(stride)[pair]);
    Some((twiddle, if norm > 0.0 { (lost / norm).sqrt() } else { 0.0 }))
}

/// The right singular vector of the largest singular value of every slice: rows of one parity, two
/// columns.
fn dominant(matrix: &[Number], size: usize, parity: usize) -> Vec<[Number; 2]> {
    let half = size / 2;
    let mut grams = vec![(0.0f64, Complex::ZERO, 0.0f64); half];
    for row in matrix.chunks_exact(size).skip(parity).step_by(2) {
        for (gram, pair) in grams.iter_mut().zip(row.chunks_exact(2)) {
            gram.0 += pair[0].norm_sqr();
            gram.1 += pair[0].conj() * pair[1];
            gram.2 += pair[1].norm_sqr();
        }
    }
    grams.into_iter().map(|(a, b, d)| eigenvector(a, b, d)).collect()
}

/// The unit eigenvector of the larger eigenvalue of `[[a, b], [conj b, d]]`.
fn eigenvector(a: f64, b: Number, d: f64) -> [Number; 2] {
    let half = (a - d) / 2.0;
    let radius = half.hypot(b.norm());
    // Of the two formulas the one without cancellation; the first entry is made real.
    let vector = match half >= 0.0 {
        true => [Complex::from(half + radius), b.conj()],
        false => [b, Complex::from(radius - half)],
    };
    let norm = (vector[0].norm_sqr() + vector[1].norm_sqr()).sqrt();
    if norm == 0.0 {
        // An empty slice, or equal columns at a right angle: any vector is as good.
        return [Complex::ONE, Complex::ZERO];
    }
    vector.map(|z| z / norm)
}

/// Writes the left vectors (with the singular values in them) and gives the square of what is lost.
fn project(
    matrix: &[Number],
    size: usize,
    parity: usize,
    vectors: &[[Number; 2]],
    to: &mut [Number],
) -> f64 {
    let half = size / 2;
    let mut lost = 0.0;
    let rows = matrix.chunks_exact(size).skip(parity).step_by(2);
    for (row, to) in rows.zip(to.chunks_exact_mut(half)) {
        for ((pair, vector), to) in row.chunks_exact(2).zip(vectors).zip(to) {
            let along = pair[0] * vector[0] + pair[1] * vector[1];
            *to = along;
            let back = vector.map(|z| along * z.conj());
            lost += (pair[0] - back[0]).norm_sqr() + (pair[1] - back[1]).norm_sqr();
        }
    }
    lost
}

/// Gives all factors the same norm, so that none is large while others vanish.
fn balance(blocks: &mut [Vec<[[Number; 2]; 2]>]) {
    let norm = |factor: &Vec<[[Number; 2]; 2]>| {
        factor.iter().flatten().flatten().map(|z| z.norm_sqr()).sum::<f64>().sqrt()
    };
    let norms: Vec<f64> = blocks.iter().map(norm).collect();
    if norms.contains(&0.0) {
        return;
    }
    let mean = (norms.iter().map(|norm| norm.ln()).sum::<f64>() / norms.len() as f64).exp();
    for (factor, norm) in blocks.iter_mut().zip(norms) {
        factor.iter_mut().flatten().flatten().for_each(|z| *z *= mean / norm);
    }
}
