//! Finding the fast algorithm of a dense matrix.
//!
//! Candidates are products of a permutation and a butterfly, possibly transposed, possibly the real
//! part of a complex one. Permutations are those that a few binary choices make (Dao et al., ICML
//! 2019): at every size from n down to 4 the same three choices (even elements before odd ones;
//! reverse the first half; reverse the second half), and optionally one more step of the kind in
//! front, as cosine transforms need.
//!
//! A real matrix such as the DCT is the real part of a complex product. Its imaginary part is one
//! of its own rows elsewhere: rows of a transform of cosines at frequency c - k are, up to sign,
//! rows of sines at k. So `T_k + i sign T_(c - k)` is tried for the few c that transforms have.
//!
//! Most candidates fail on a sample of slices at the first splitting, which costs n operations; the
//! others are split with a limit on what may be lost. The residual that is reported is measured on
//! the product.

use super::Entries;
use super::peel::{split, transposed};
use crate::structured::algebra::{Chain, Map};
use crate::structured::construct::{circulant, toeplitz};
use danaus_tensor::{Device, Result, Tensor};
use num_complex::Complex;

type Number = Complex<f64>;

/// Part of the norm that a splitting may lose for a candidate to be taken.
const LIMIT: f64 = 1e-9;

/// Slices and rows that a candidate is tested on first.
const SLICES: usize = 4;
const SAMPLE_ROWS: usize = 64;

/// A fast algorithm that was found.
pub struct Recognised {
    /// The product.
    pub map: Map,
    /// The class: `B`, `B P`, `Re(B P)`, their transposes, `circulant` or `toeplitz`.
    pub class: String,
    /// `|T - product| / |T|` in the Frobenius norm, measured.
    pub residual: f64,
    /// Largest difference of an entry, relative to the largest entry.
    pub max_error: f64,
}

impl Recognised {
    /// The factors by name: the tensors of the product in the order they are applied (`factor.0`,
    /// ..), and the permutation `perm` of `y = x[perm]` where there is one.
    pub fn parts(&self) -> Vec<(String, Tensor)> {
        let tensors = self.map.tensors().into_iter().enumerate();
        let mut parts: Vec<(String, Tensor)> =
            tensors.map(|(index, tensor)| (format!("factor.{index}"), tensor)).collect();
        let found = permutation_of(&self.map);
        let ids: Option<Vec<i64>> = found.map(|perm| perm.iter().map(|&i| i as i64).collect());
        // Memory for a list of n numbers is there when that for the factors was.
        let tensor = ids.and_then(|ids| Tensor::from_slice(&ids, [ids.len()], &Device::Cpu).ok());
        parts.extend(tensor.map(|perm| ("perm".to_string(), perm)));
        parts
    }
}

/// The permutation inside a product.
fn permutation_of(map: &Map) -> Option<&[usize]> {
    match map {
        Map::Permutation(perm) => Some(perm),
        Map::Product(maps) => maps.iter().find_map(permutation_of),
        Map::Real(map) | Map::Scaled(_, map) => permutation_of(map),
        _ => None,
    }
}

/// Three choices of a step: even elements before odd ones, reverse the first half, reverse the
/// second.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Choice([bool; 3]);

impl Choice {
    fn all() -> impl Iterator<Item = Self> {
        (0..8).map(|bits: u8| Self([0, 1, 2].map(|bit| bits >> bit & 1 == 1)))
    }

    fn is_identity(self) -> bool {
        self.0 == [false; 3]
    }

    /// Applies the step to a block.
    fn apply(self, block: &mut [usize]) {
        let half = block.len() / 2;
        if self.0[0] {
            let sorted: Vec<usize> =
                block.iter().step_by(2).chain(block.iter().skip(1).step_by(2)).copied().collect();
            block.copy_from_slice(&sorted);
        }
        if self.0[1] {
            block[..half].reverse();
        }
        if self.0[2] {
            block[half..].reverse();
        }
    }
}

/// `perm` of `y = x[perm]` for one step on all of n and then a shared choice at every size from n
/// to 4.
fn permutation(n: usize, first: Choice, shared: Choice) -> Vec<usize> {
    let mut perm: Vec<usize> = (0..n).collect();
    first.apply(&mut perm);
    let mut size = n;
    while size > 2 {
        perm.chunks_exact_mut(size).for_each(|block| shared.apply(block));
        size /= 2;
    }
    perm
}

/// How a real matrix becomes complex: which row stands beside row k.
#[derive(Clone, Copy)]
struct Companion {
    /// Row k gets row `sum - k`.
    sum: usize,
    /// Whether row n counts as row 0; otherwise rows out of range are zero.
    cyclic: bool,
    sign: f64,
}

impl Companion {
    fn all(n: usize) -> Vec<Option<Self>> {
        let mut all = vec![None];
        for (sum, cyclic) in [(n, false), (n, true), (n - 1, false), (n - 2, false)] {
            all.extend([-1.0, 1.0].map(|sign| Some(Self { sum, cyclic, sign })));
        }
        all
    }

    /// The complex matrix whose real part is `t`.
    fn extend(self, t: &[Number], n: usize) -> Vec<Number> {
        let mut all = t.to_vec();
        for k in 0..n {
            let other = match self.sum.checked_sub(k) {
                Some(other) if other < n => other,
                Some(_) if self.cyclic => 0,
                _ => continue,
            };
            for j in 0..n {
                all[k * n + j].im = self.sign * t[other * n + j].re;
            }
        }
        all
    }
}

/// Whether sampled slices of the first splitting of `T[:, inverse permutation]` have rank one.
fn plausible(t: &[Number], n: usize, perm: &[usize]) -> bool {
    // Column c of the permuted problem is column perm[c] of T.
    let pairs = n / 2;
    let step = (pairs / SLICES).max(1);
    for pair in (0..pairs).step_by(step).map(|pair| (pair * 5 + 1) % pairs) {
        let (first, second) = (perm[2 * pair], perm[2 * pair + 1]);
        for parity in 0..2 {
            let stride = 2 * (n / 2 / SAMPLE_ROWS).max(1);
            let (mut a, mut b, mut d) = (0.0, Number::ZERO, 0.0);
            for row in (parity..n).step_by(stride) {
                let (x, y) = (t[row * n + first], t[row * n + second]);
                a += x.norm_sqr();
                b += x.conj() * y;
                d += y.norm_sqr();
            }
            // The determinant of the Gram matrix is the product of both squared singular values.
            if a * d - b.norm_sqr() > 1e-12 * (a + d) * (a + d) {
                return false;
            }
        }
    }
    true
}

/// Looks for a fast algorithm of a square matrix whose size is a power of two; `None` when no
/// candidate loses less than 1e-9 of the norm.
///
/// # Errors
/// For other sizes, and elements that are not finite.
pub fn recognise(matrix: &Tensor) -> Result<Option<Recognised>> {
    let entries = Entries::of("recognise", matrix)?;
    let n = entries.butterfly_size("recognise")?;
    let real = entries.values.iter().all(|z| z.im == 0.0);
    let turned = transposed(&entries.values, n);
    let companions = if real { Companion::all(n) } else { vec![None] };
    for companion in companions {
        for (flipped, values) in [(false, &entries.values), (true, &turned)] {
            let whole = match companion {
                None => values.clone(),
                Some(companion) => companion.extend(values, n),
            };
            if let Some((map, permuted)) = search(&whole, n)? {
                let mut class = if permuted { "B P" } else { "B" }.to_string();
                let mut map = map;
                if companion.is_some() {
                    (class, map) = (format!("Re({class})"), map.real());
                }
                if flipped {
                    (class, map) = (format!("({class})^T"), map.transpose()?);
                }
                return measured(map, class, &entries).map(Some);
            }
        }
    }
    shifted(&entries, real)
}

/// A permutation and a butterfly, and whether the permutation is not the identity.
fn search(t: &[Number], n: usize) -> Result<Option<(Map, bool)>> {
    let mut tried: Vec<Vec<usize>> = Vec::new();
    for (first, shared) in Choice::all().flat_map(|a| Choice::all().map(move |b| (a, b))) {
        let perm = permutation(n, first, shared);
        if tried.contains(&perm) || !plausible(t, n, &perm) {
            continue;
        }
        let permuted: Vec<Number> =
            t.chunks_exact(n).flat_map(|row| perm.iter().map(|&column| row[column])).collect();
        tried.push(perm);
        let Some((twiddle, _)) = split(permuted, n, LIMIT) else { continue };
        let chain = Map::Chain(Chain::butterfly(&twiddle.tensor()?, true)?);
        let (perm, moved) =
            (&tried[tried.len() - 1], !(first.is_identity() && shared.is_identity()));
        let map = if moved { Map::permutation(perm)?.then(&chain)? } else { chain };
        return Ok(Some((map, moved)));
    }
    Ok(None)
}

/// Circulant and Toeplitz matrices, which are constant along diagonals.
fn shifted(entries: &Entries, real: bool) -> Result<Option<Recognised>> {
    let (n, t) = (entries.rows, &entries.values);
    let scale = t.iter().map(|z| z.norm()).fold(0.0, f64::max);
    let constant = (1..n)
        .all(|i| (1..n).all(|j| (t[i * n + j] - t[(i - 1) * n + j - 1]).norm() <= 1e-12 * scale));
    if !constant {
        return Ok(None);
    }
    let vector = |values: Vec<Number>| match real {
        true => Tensor::from_vec(values.iter().map(|z| z.re).collect(), [n], &Device::Cpu),
        false => Tensor::from_vec(values, [n], &Device::Cpu),
    };
    let col = vector((0..n).map(|i| t[i * n]).collect())?;
    let cyclic = (1..n).all(|k| (t[k] - t[(n - k) * n]).norm() <= 1e-12 * scale);
    if cyclic {
        return measured(circulant(&col)?, "circulant".to_string(), entries).map(Some);
    }
    let map = toeplitz(&col, &vector(t[..n].to_vec())?)?;
    measured(map, "toeplitz".to_string(), entries).map(Some)
}

/// The errors of a product, from the product itself.
fn measured(map: Map, class: String, entries: &Entries) -> Result<Recognised> {
    let n = entries.cols;
    let identity = Tensor::eye(n, danaus_tensor::DType::F64, &Device::Cpu)?;
    // Row j of the result is column j of the matrix.
    let columns = crate::structured::algebra::numbers(&map.apply(&identity)?)?;
    let (mut square, mut worst, mut largest) = (0.0, 0.0f64, 0.0f64);
    for (at, &expected) in entries.values.iter().enumerate() {
        let difference = (columns[at % n * entries.rows + at / n] - expected).norm();
        square += difference * difference;
        worst = worst.max(difference);
        largest = largest.max(expected.norm());
    }
    let relative = |error: f64, scale: f64| if scale > 0.0 { error / scale } else { error };
    let residual = relative(square.sqrt(), entries.norm());
    Ok(Recognised { map, class, residual, max_error: relative(worst, largest) })
}
