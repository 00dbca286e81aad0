//! Matrices of low displacement rank: `M = sum over i of K(A, G_i) K(B, H_i)^T` with the Krylov matrices
//! `K(A, v) = [v, A v, .., A^(n-1) v]` of two sparse operators.
//!
//! | class | A and B | product |
//! | --- | --- | --- |
//! | `subdiagonal` | subdiagonals | transforms of scaled shifts, or dense |
//! | `subdiagonal-corner` | these with a corner `[0, n - 1]` | dense Krylov matrices |
//! | `tridiagonal`, `tridiagonal-corner` | three diagonals; two corners | dense Krylov matrices |
//! | `toeplitz` | cyclic shift, and its negative corner | transforms |
//! | `hankel` | the same with the outputs reversed | transforms |
//! | `vandermonde` | a diagonal, and the shift | dense powers and transforms |
//!
//! A subdiagonal operator is a scaled shift, `A = diag(p) Z diag(p)^-1` with p the running products of
//! its entries, so the matrix is `diag(p_A) T diag(p_B)` with a sum T of products of triangular Toeplitz
//! matrices of `G_i / p_A` and `H_i / p_B`. That loses as many digits as p spans: where the largest is
//! more than [`range`] times the smallest, or an entry is zero, M is solved from `M - A M B^T = G^T H`
//! instead, which is stable for all of them and costs n^2 numbers.
//!
//! Source: Thomas, Gu, Dao, Rudra, Re, Learning Compressed Transforms with Low Displacement Rank,
//! NeurIPS 2018. Corners follow its code: A has `[ur, ll]` where B has `[ll, ur]`.

use super::algebra::Map;
use danaus_kernel::ops::krylov::{Bands, krylov, stein};
use danaus_tensor::{DType, Error, Init, Result, Tensor};

/// Name in messages.
const NAME: &str = "ldr";

/// Which operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LdrClass {
    /// Both subdiagonal.
    Subdiagonal,
    /// Both subdiagonal with a corner.
    SubdiagonalCorner,
    /// Both tridiagonal.
    Tridiagonal,
    /// Both tridiagonal with two corners.
    TridiagonalCorner,
    /// Cyclic shifts of signs 1 and -1.
    Toeplitz,
    /// As Toeplitz, outputs reversed.
    Hankel,
    /// Diagonal, and the shift.
    Vandermonde,
}

/// A parameter of a class: name, length over n, value of a new one.
pub(super) type Operator = (&'static str, isize, Init);

/// A scalar of a new Vandermonde-like matrix: uniform in (-0.7, 0.7), so that powers die out.
const NODES: Init = Init::Uniform(-0.7, 0.7);
const ONES: Init = Init::Constant(1.0);
const ZEROS: Init = Init::Constant(0.0);

impl LdrClass {
    /// All classes.
    pub const ALL: [Self; 7] = [
        Self::Subdiagonal,
        Self::SubdiagonalCorner,
        Self::Tridiagonal,
        Self::TridiagonalCorner,
        Self::Toeplitz,
        Self::Hankel,
        Self::Vandermonde,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Subdiagonal => "subdiagonal",
            Self::SubdiagonalCorner => "subdiagonal-corner",
            Self::Tridiagonal => "tridiagonal",
            Self::TridiagonalCorner => "tridiagonal-corner",
            Self::Toeplitz => "toeplitz",
            Self::Hankel => "hankel",
            Self::Vandermonde => "vandermonde",
        }
    }

    /// What a config calls a weight of it, before the rank.
    pub const fn format(self) -> &'static str {
        match self {
            Self::Subdiagonal => "ldr",
            Self::SubdiagonalCorner => "ldr-sdc",
            Self::Tridiagonal => "ldr-td",
            Self::TridiagonalCorner => "ldr-tdc",
            Self::Toeplitz => "ldr-toeplitz",
            Self::Hankel => "ldr-hankel",
            Self::Vandermonde => "ldr-vandermonde",
        }
    }

    /// The class of a name.
    ///
    /// # Errors
    /// When there is none; the names are listed.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|class| class.name() == name);
        let names = || Self::ALL.map(Self::name).join(", ");
        found.ok_or_else(|| Error::argument(NAME, "class", name, names()))
    }

    /// Parameters of the operators in the order [`ldr`] takes them. Lengths are n + so much; corners,
    /// which have two numbers, have a length above 1.
    pub(super) const fn operators(self) -> &'static [Operator] {
        match self {
            Self::Subdiagonal => &[("subd_a", -1, ONES), ("subd_b", -1, ONES)],
            Self::SubdiagonalCorner => {
                &[("subd_a", -1, ONES), ("subd_b", -1, ONES), ("corners", 2, ZEROS)]
            }
            Self::Tridiagonal => &[
                ("subd_a", -1, ONES),
                ("diag_a", 0, ZEROS),
                ("supd_a", -1, ZEROS),
                ("subd_b", -1, ONES),
                ("diag_b", 0, ZEROS),
                ("supd_b", -1, ZEROS),
            ],
            Self::TridiagonalCorner => &[
                ("subd_a", -1, ONES),
                ("diag_a", 0, ZEROS),
                ("supd_a", -1, ZEROS),
                ("subd_b", -1, ONES),
                ("diag_b", 0, ZEROS),
                ("supd_b", -1, ZEROS),
                ("corners", 2, ZEROS),
            ],
            Self::Toeplitz | Self::Hankel => &[],
            Self::Vandermonde => &[("diag_a", 0, NODES)],
        }
    }

    /// Length of a parameter for n points.
    pub(super) fn length(n: usize, (_, more, _): &Operator) -> usize {
        match *more {
            2 => 2,
            0 => n,
            _ => n - 1,
        }
    }

    /// Numbers in a matrix of n points.
    pub fn parameters(self, rank: usize, n: usize) -> usize {
        let own: usize = self.operators().iter().map(|one| Self::length(n, one)).sum();
        2 * rank * n + own
    }

    /// Sum of the products of generators in an output, over those of one generator: what a new matrix
    /// is scaled by.
    pub(super) fn terms(self, rank: usize, n: usize) -> f64 {
        let (rank, n) = (rank as f64, n as f64);
        match self {
            // Output i has i + 1 by n - k of them: n^2 / 3 on average.
            Self::Subdiagonal | Self::SubdiagonalCorner => rank * n * n / 3.0,
            Self::Tridiagonal | Self::TridiagonalCorner => rank * n * n / 3.0,
            Self::Toeplitz | Self::Hankel => rank * n * n,
            // The mean of 1 / (1 - d^2) for the nodes, a geometric series.
            Self::Vandermonde => rank * n * 1.239,
        }
    }
}

/// Largest quotient of running products at which transforms are used.
pub fn range(dtype: DType) -> f64 {
    if dtype == DType::F64 { 1e10 } else { 1e4 }
}

/// The matrix of a class: operators in the order of the table of parameters (subdiagonals `[n - 1]`,
/// diagonals `[n]`, corners `[2]`), generators `[rank, n]`.
///
/// # Errors
/// When shapes do not fit, or powers of an operator overflow.
pub fn ldr(class: LdrClass, operators: &[&Tensor], g: &Tensor, h: &Tensor) -> Result<Map> {
    let n = match *g.dims() {
        [rank, n] if rank > 0 && n > 1 && h.dims() == g.dims() => n,
        _ => {
            let expected = "[rank, n] for G and H, rank at least 1, n at least 2";
            return Err(Error::shape(NAME, "G", g.shape(), expected));
        }
    };
    let wanted = class.operators();
    if operators.len() != wanted.len() {
        let names: Vec<&str> = wanted.iter().map(|one| one.0).collect();
        let valid = format!("{} of {}: {}", wanted.len(), class.name(), names.join(", "));
        return Err(Error::argument(NAME, "operators", operators.len(), valid));
    }
    for (one, tensor) in wanted.iter().zip(operators) {
        let len = LdrClass::length(n, one);
        if tensor.dims() != [len] {
            return Err(Error::shape(NAME, one.0, tensor.shape(), format!("[{len}]")));
        }
    }
    match (class, operators) {
        (LdrClass::Subdiagonal, [a, b]) => subdiagonal(a, b, g, h),
        (LdrClass::SubdiagonalCorner, [a, b, corners]) => {
            // One corner each, in the upper right.
            let corner = |index: usize| corners.narrow(0, index, 1)?.pad(0, 0, 1, 0.0);
            let (ca, cb) = (corner(0)?, corner(1)?);
            let a = Bands { sub: Some(a), corners: Some(&ca), ..Bands::default() };
            banded((a, g), (Bands { sub: Some(b), corners: Some(&cb), ..Bands::default() }, h))
        }
        (LdrClass::Tridiagonal, [sa, da, ua, sb, db, ub]) => {
            let bands = |sub, diag, sup| Bands {
                sub: Some(sub),
                diag: Some(diag),
                sup: Some(sup),
                corners: None,
            };
            banded((bands(sa, da, ua), g), (bands(sb, db, ub), h))
        }
        (LdrClass::TridiagonalCorner, [sa, da, ua, sb, db, ub, corners]) => {
            let flipped = corners.flip(0)?;
            let a = Bands { sub: Some(sa), diag: Some(da), sup: Some(ua), corners: Some(corners) };
            let b = Bands { sub: Some(sb), diag: Some(db), sup: Some(ub), corners: Some(&flipped) };
            banded((a, g), (b, h))
        }
        (LdrClass::Toeplitz, _) => cyclic(g, h),
        (LdrClass::Hankel, _) => {
            let reversed: Vec<usize> = (0..n).rev().collect();
            cyclic(g, h)?.then(&Map::permutation(&reversed)?)
        }
        (_, [nodes, ..]) => vandermonde(nodes, g, h),
        _ => Err(Error::internal("operators of another class")),
    }
}

/// Running products `[1, a0, a0 a1, ..]`.
fn products(values: &Tensor) -> Result<Tensor> {
    let one = Tensor::full(1.0f64, [1], &values.device())?.to_dtype(values.dtype())?;
    Tensor::cat(&[&one, &values.cumprod(0)?], 0)
}

/// Whether dividing by running products keeps digits.
fn keeps_digits(products: &Tensor) -> Result<bool> {
    let values = products.detach().to_dtype(DType::F64)?.to_vec::<f64>()?;
    let (mut least, mut most) = (f64::INFINITY, 0.0f64);
    for value in values.iter().map(|value| value.abs()) {
        (least, most) = (least.min(value), most.max(value));
    }
    // False for NaN as well.
    Ok(most.is_finite() && least > 0.0 && most <= range(products.dtype()) * least)
}

fn subdiagonal(a: &Tensor, b: &Tensor, g: &Tensor, h: &Tensor) -> Result<Map> {
    let (pa, pb) = (products(a)?, products(b)?);
    if keeps_digits(&pa)? && keeps_digits(&pb)? {
        let like = Map::ToeplitzLike { g: g.div(&pa)?, h: h.div(&pb)? };
        return Map::product([Map::diagonal(&pb)?, like, Map::diagonal(&pa)?]);
    }
    Map::dense(&stein(&g.transpose(0, 1)?.matmul(h)?, a, b)?)
}

/// Dense Krylov matrices, as two products.
fn banded((a, g): (Bands, &Tensor), (b, h): (Bands, &Tensor)) -> Result<Map> {
    let flat = |v: &Tensor, bands: Bands| -> Result<Tensor> {
        let k = krylov(v, bands)?;
        let (rank, n) = (v.dims()[0], v.dims()[1]);
        k.reshape([rank * n, n])
    };
    let second = flat(g, a)?.transpose(0, 1)?;
    Map::dense(&flat(h, b)?)?.then(&Map::dense(&second)?)
}

/// `K(Z_f, v)` for the shift whose corner is f: v on and below the diagonal, f v around its end above.
fn shifted(v: &Tensor, f: f64) -> Result<Map> {
    let n = v.elem_count();
    let wrapped = v.narrow(0, 1, n - 1)?.flip(0)?.affine(f, 0.0)?;
    Ok(Map::Toeplitz { col: v.clone(), row: Tensor::cat(&[&v.narrow(0, 0, 1)?, &wrapped], 0)? })
}

fn cyclic(g: &Tensor, h: &Tensor) -> Result<Map> {
    let term = |index: usize| -> Result<Map> {
        let (g, h) = (g.select(0, index)?, h.select(0, index)?);
        shifted(&h, -1.0)?.transpose()?.then(&shifted(&g, 1.0)?)
    };
    let terms = (0..g.dims()[0]).map(term).collect::<Result<Vec<_>>>()?;
    Ok(Map::Sum(terms))
}

fn vandermonde(nodes: &Tensor, g: &Tensor, h: &Tensor) -> Result<Map> {
    let n = nodes.elem_count();
    let ones = Tensor::full(1.0f64, [n, 1], &nodes.device())?.to_dtype(nodes.dtype())?;
    let repeated = nodes.reshape([n, 1])?.repeat(-1, n - 1)?;
    let powers = Map::dense(&Tensor::cat(&[&ones, &repeated.cumprod(-1)?], -1)?)?;
    let term = |index: usize| -> Result<Map> {
        let inner = shifted(&h.select(0, index)?, 0.0)?.transpose()?;
        inner.then(&powers)?.then(&Map::diagonal(&g.select(0, index)?)?)
    };
    let terms = (0..g.dims()[0]).map(term).collect::<Result<Vec<_>>>()?;
    Ok(Map::Sum(terms))
}

#[cfg(test)]
mod tests;
