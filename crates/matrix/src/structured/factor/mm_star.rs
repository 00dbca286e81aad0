//! Factors of a product of two Monarch matrices, `M = (P L1 P^T) R (P L2 P^T)` (class MM*).
//!
//! For n = m^2 points, L1, R, L2 have m blocks of m x m and P transposes an m x m grid. In the order of P,
//! the blocks of M are `M_ij = A_i D_ij C_j` with A_i, C_j the blocks of L1, L2 and diagonal D_ij, whose
//! entries are those of R. So all `M_i1^-1 M_ij M_1j^-1 M_11 = C_1^-1 (diagonal) C_1` commute: the
//! eigenvectors of a random combination of them are `C_1^-1`, and the rest follows from D_i1 = D_1j = 1
//! (Dao et al., Monarch, ICML 2022). Alternating least squares then take rounding away, or approach a
//! matrix that is no member. Factors of a real M may be complex.

use super::Entries;
use super::small::{Lu, Number, adjoint, eigenvectors, multiply};
use crate::structured::algebra::{Chain, Map};
use crate::structured::named;
use danaus_kernel::ops::kronecker_sparse::Pattern;
use danaus_tensor::rng::Rng;
use danaus_tensor::{DType, Device, Error, Result, Tensor};
use num_complex::Complex;

const NAME: &str = "factor_mm_star";
/// Random combinations that are tried.
const TRIES: u64 = 3;
/// Sweeps of least squares at most, and the relative error at which they end.
const SWEEPS: usize = 20;
const ROUNDING: f64 = 1e-14;

/// What [`factor_mm_star`] gives: blocks `[m, m, m]`.
pub struct MmStar {
    /// Blocks of the last factor that is applied.
    pub l1: Tensor,
    /// Blocks of the one between.
    pub r: Tensor,
    /// Blocks of the first one.
    pub l2: Tensor,
    /// Frobenius norm of the difference as a part of the norm, measured.
    pub relative_error: f64,
}

impl MmStar {
    /// The product.
    ///
    /// # Errors
    /// An internal error when the factors do not fit.
    pub fn map(&self) -> Result<Map> {
        let spread = |blocks: &Tensor| -> Result<Map> {
            let m = blocks.dims()[0];
            Ok(Map::Chain(Chain::new(&[(Pattern::new(1, m, m, m), blocks.clone())])?))
        };
        Map::product([spread(&self.l2)?, named::block_diagonal(&self.r)?, spread(&self.l1)?])
    }
}

/// Blocks in the order of P, and the factors so far.
struct Factors {
    m: usize,
    a: Vec<Vec<Number>>,
    c: Vec<Vec<Number>>,
    /// Diagonals, `[i m + j][t]`.
    d: Vec<Vec<Number>>,
}

/// Factors a square matrix of m^2 rows, m at least 2.
///
/// # Errors
/// When the size is no square, an element is not finite, or blocks that must be inverted are singular.
pub fn factor_mm_star(matrix: &Tensor) -> Result<MmStar> {
    let entries = Entries::of(NAME, matrix)?;
    let m = entries.rows.isqrt();
    if entries.rows != entries.cols || m * m != entries.rows || m < 2 {
        let given = format!("{} x {}", entries.rows, entries.cols);
        return Err(Error::argument(
            NAME,
            "matrix",
            given,
            "a square one of m^2 rows, m at least 2",
        ));
    }
    let n = m * m;
    let block = |at: usize| -> Vec<Number> {
        let (i, j) = (at / m, at % m);
        (0..n).map(|e| entries.values[(e / m * m + i) * n + e % m * m + j]).collect()
    };
    let blocks: Vec<Vec<Number>> = (0..n).map(block).collect();
    let norm = entries.norm();
    let mut best: Option<(f64, Factors)> = None;
    for seed in 0..TRIES {
        let Some(found) = diagonalised(&blocks, m, seed)? else { continue };
        let (error, found) = refined(&blocks, found, norm);
        if best.as_ref().is_none_or(|best| error < best.0) {
            best = Some((error, found));
        }
        if best.as_ref().is_some_and(|best| best.0 <= 100.0 * ROUNDING) {
            break;
        }
    }
    let Some((relative_error, found)) = best.filter(|best| best.0.is_finite()) else {
        let valid = "one whose blocks in the order of the transposed grid are invertible";
        return Err(Error::argument(NAME, "matrix", "one with singular blocks", valid));
    };
    let r = (0..m * n).map(|at| found.d[at % n][at / n]).collect();
    let (l1, l2) = (found.a.concat(), found.c.concat());
    let all = [l1, r, l2];
    let real = !matrix.dtype().is_complex()
        && all.iter().flatten().all(|z: &Number| z.im.abs() <= ROUNDING * z.norm());
    let tensor = |values: Vec<Number>| match real {
        true => Tensor::from_vec(values.iter().map(|z| z.re).collect(), [m, m, m], &Device::Cpu),
        false => Tensor::from_vec(values, [m, m, m], &Device::Cpu),
    };
    let [l1, r, l2] = all.map(tensor);
    Ok(MmStar { l1: l1?, r: r?, l2: l2?, relative_error })
}

/// The closed form, or `None` where blocks are singular or eigenvectors do not come out.
fn diagonalised(blocks: &[Vec<Number>], m: usize, seed: u64) -> Result<Option<Factors>> {
    let numbers = Rng::new(seed, 0).normal(0.0, 1.0, [m * m])?.to_dtype(DType::F64)?;
    let numbers = numbers.to_vec::<f64>()?;
    let inverse = |block: &[Number]| Lu::new(block, m, 0.0).map(|lu| lu.inverse());
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for k in 0..m {
        let (Some(l), Some(r)) = (inverse(&blocks[k * m]), inverse(&blocks[k])) else {
            return Ok(None);
        };
        left.push(l);
        right.push(r);
    }
    let mut sum = vec![Number::ZERO; m * m];
    for (at, block) in blocks.iter().enumerate() {
        let inner = multiply(&multiply(&left[at / m], block, m), &right[at % m], m);
        sum.iter_mut().zip(inner).for_each(|(sum, z)| *sum += numbers[at] * z);
    }
    let Some(v) = eigenvectors(&multiply(&sum, &blocks[0], m), m) else { return Ok(None) };
    let a: Vec<Vec<Number>> = (0..m).map(|i| multiply(&blocks[i * m], &v, m)).collect();
    let Some(first) = inverse(&a[0]) else { return Ok(None) };
    let c: Vec<Vec<Number>> = (0..m).map(|j| multiply(&first, &blocks[j], m)).collect();
    let mut found = Factors { m, a, c, d: Vec::new() };
    Ok(found.fit_diagonals(blocks).then_some(found))
}

/// Least squares in turn while they help; the error relative to `norm`.
fn refined(blocks: &[Vec<Number>], mut best: Factors, norm: f64) -> (f64, Factors) {
    let relative = |found: &Factors| if norm > 0.0 { found.error(blocks) / norm } else { 0.0 };
    let mut error = relative(&best);
    for _ in 0..SWEEPS {
        if error <= ROUNDING {
            break;
        }
        let mut next =
            Factors { m: best.m, a: best.a.clone(), c: best.c.clone(), d: best.d.clone() };
        let solved = next.fit_left(blocks) && next.fit_right(blocks) && next.fit_diagonals(blocks);
        let found = relative(&next);
        if !solved || found.is_nan() || found > 0.99 * error {
            break;
        }
        (error, best) = (found, next);
    }
    (error, best)
}

impl Factors {
    /// `A_i D_ij C_j`.
    fn product(&self, at: usize) -> Vec<Number> {
        multiply(&self.a[at / self.m], &self.scaled(at), self.m)
    }

    /// `D_ij C_j`.
    fn scaled(&self, at: usize) -> Vec<Number> {
        let (m, d) = (self.m, &self.d[at]);
        self.c[at % m].iter().enumerate().map(|(e, z)| d[e / m] * z).collect()
    }

    /// Frobenius norm of the difference.
    fn error(&self, blocks: &[Vec<Number>]) -> f64 {
        let one = |(at, block): (usize, &Vec<Number>)| -> f64 {
            self.product(at).iter().zip(block).map(|(a, b)| (a - b).norm_sqr()).sum()
        };
        blocks.iter().enumerate().map(one).sum::<f64>().sqrt()
    }

    /// Best diagonals: normal equations `(A^H A .* (C C^H)^T) d = diag(A^H M C^H)`.
    fn fit_diagonals(&mut self, blocks: &[Vec<Number>]) -> bool {
        let m = self.m;
        let grams = |all: &[Vec<Number>], left: bool| -> Vec<Vec<Number>> {
            let gram = |x: &Vec<Number>| match left {
                true => multiply(&adjoint(x, m), x, m),
                false => multiply(x, &adjoint(x, m), m),
            };
            all.iter().map(gram).collect()
        };
        let (a, c) = (grams(&self.a, true), grams(&self.c, false));
        let mut d = Vec::with_capacity(m * m);
        for (at, block) in blocks.iter().enumerate() {
            let (i, j) = (at / m, at % m);
            let normal: Vec<Number> =
                (0..m * m).map(|e| a[i][e] * c[j][e % m * m + e / m]).collect();
            let inner = multiply(&adjoint(&self.a[i], m), block, m);
            let inner = multiply(&inner, &adjoint(&self.c[j], m), m);
            let wanted: Vec<Number> = (0..m).map(|t| inner[t * m + t]).collect();
            let Some(lu) = Lu::new(&normal, m, 0.0) else { return false };
            d.push(lu.solve(&wanted));
        }
        self.d = d;
        true
    }

    /// Best A_i: `sum_j M_ij X_j^H (sum_j X_j X_j^H)^-1` with `X_j = D_ij C_j`.
    fn fit_left(&mut self, blocks: &[Vec<Number>]) -> bool {
        let m = self.m;
        for i in 0..m {
            let (mut right, mut gram) = (vec![Number::ZERO; m * m], vec![Number::ZERO; m * m]);
            for j in 0..m {
                let x = self.scaled(i * m + j);
                let back = adjoint(&x, m);
                add(&mut right, multiply(&blocks[i * m + j], &back, m));
                add(&mut gram, multiply(&x, &back, m));
            }
            let Some(lu) = Lu::new(&gram, m, 0.0) else { return false };
            self.a[i] = multiply(&right, &lu.inverse(), m);
        }
        true
    }

    /// Best C_j: `(sum_i Y_i^H Y_i)^-1 sum_i Y_i^H M_ij` with `Y_i = A_i D_ij`.
    fn fit_right(&mut self, blocks: &[Vec<Number>]) -> bool {
        let m = self.m;
        for j in 0..m {
            let (mut left, mut gram) = (vec![Number::ZERO; m * m], vec![Number::ZERO; m * m]);
            for i in 0..m {
                let d = &self.d[i * m + j];
                let y: Vec<Number> =
                    self.a[i].iter().enumerate().map(|(e, z)| z * d[e % m]).collect();
                let back = adjoint(&y, m);
                add(&mut left, multiply(&back, &blocks[i * m + j], m));
                add(&mut gram, multiply(&back, &y, m));
            }
            let Some(lu) = Lu::new(&gram, m, 0.0) else { return false };
            self.c[j] = multiply(&lu.inverse(), &left, m);
        }
        true
    }
}

fn add(sum: &mut [Number], term: Vec<Number>) {
    sum.iter_mut().zip(term).for_each(|(sum, z)| *sum += z);
}

#[cfg(test)]
mod tests {
    use super::*;
    use danaus_testkit::{assert_close, golden, randn};

    fn random(m: usize, complex: bool) -> Tensor {
        let part = |seed: u64| randn(seed, &[m, m, m], DType::F64);
        let blocks = |seed: u64| match complex {
            true => Tensor::complex(&part(seed), &part(seed + 9)).unwrap(),
            false => part(seed),
        };
        let (l1, r, l2) = (blocks(1), blocks(2), blocks(3));
        MmStar { l1, r, l2, relative_error: 0.0 }.map().unwrap().to_dense().unwrap()
    }

    #[test]
    fn golden_products_are_factored() {
        let file = golden("20-monarch", "expressive");
        let dense = file.get("mmstar.dense");
        let found = factor_mm_star(dense).unwrap();
        assert!(found.relative_error < 1e-10, "{:e}", found.relative_error);
        let product = found.map().unwrap().to_dense().unwrap();
        let real = if product.dtype().is_complex() { product.real().unwrap() } else { product };
        assert_close("mmstar", &real, dense, 1e-9);
    }

    #[test]
    fn members_are_found_and_the_error_is_measured() {
        for (m, complex) in [(2, false), (3, true), (4, false), (6, false), (8, true)] {
            let matrix = random(m, complex);
            let found = factor_mm_star(&matrix).unwrap();
            assert!(found.relative_error < 1e-8, "{m}: {:e}", found.relative_error);
        }
        // No member: an error that the product confirms.
        let matrix = randn(5, &[16, 16], DType::F64);
        let found = factor_mm_star(&matrix).unwrap();
        let product = found.map().unwrap().to_dense().unwrap();
        let wide =
            Tensor::complex(&matrix, &Tensor::zeros([16, 16], DType::F64, &Device::Cpu).unwrap());
        let product = match product.dtype().is_complex() {
            true => product,
            false => Tensor::complex(&product, &product.affine(0.0, 0.0).unwrap()).unwrap(),
        };
        let norm = |t: &Tensor| Entries::of("test", t).unwrap().norm();
        let measured = norm(&product.sub(&wide.unwrap()).unwrap()) / norm(&matrix);
        assert!((measured - found.relative_error).abs() < 1e-9 && measured > 0.01, "{measured}");
    }

    #[test]
    fn singular_blocks_and_other_sizes_are_refused() {
        let message = |t: &Tensor| factor_mm_star(t).err().unwrap().to_string();
        assert!(message(&randn(1, &[8, 8], DType::F64)).contains("m^2"));
        assert!(message(&Tensor::eye(16, DType::F64, &Device::Cpu).unwrap()).contains("singular"));
    }
}
