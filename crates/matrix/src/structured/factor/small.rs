//! Linear algebra of small dense complex matrices, row by row: products, solutions, eigenvectors.
//!
//! Eigenvalues come from the shifted QR method on a Hessenberg matrix (Francis, 1961; Wilkinson's shifts),
//! eigenvectors from inverse iteration. For the few dozen rows that blocks have; large matrices go
//! elsewhere.

use num_complex::Complex;

pub(super) type Number = Complex<f64>;

/// `A B` for `m x m` matrices.
pub(super) fn multiply(a: &[Number], b: &[Number], m: usize) -> Vec<Number> {
    let mut c = vec![Number::ZERO; m * m];
    for (row, to) in a.chunks_exact(m).zip(c.chunks_exact_mut(m)) {
        for (&factor, b) in row.iter().zip(b.chunks_exact(m)) {
            to.iter_mut().zip(b).for_each(|(to, b)| *to += factor * b);
        }
    }
    c
}

/// The conjugate transpose.
pub(super) fn adjoint(a: &[Number], m: usize) -> Vec<Number> {
    (0..m * m).map(|at| a[at % m * m + at / m].conj()).collect()
}

/// A factored with row exchanges.
pub(super) struct Lu {
    values: Vec<Number>,
    order: Vec<usize>,
    m: usize,
}

impl Lu {
    /// Factors A; a pivot that is rounding beside the largest entry is replaced by `least`, or refuses the
    /// matrix where `least` is 0.
    pub(super) fn new(a: &[Number], m: usize, least: f64) -> Option<Self> {
        let (mut values, mut order) = (a.to_vec(), (0..m).collect::<Vec<_>>());
        let largest = a.iter().map(|z| z.norm()).fold(0.0, f64::max);
        for k in 0..m {
            let size = |row: &usize| values[row * m + k].norm();
            let pivot = (k..m).max_by(|a, b| size(a).total_cmp(&size(b)))?;
            for col in 0..m {
                values.swap(k * m + col, pivot * m + col);
            }
            order.swap(k, pivot);
            if values[k * m + k].norm() <= f64::EPSILON * m as f64 * largest {
                if least == 0.0 {
                    return None;
                }
                values[k * m + k] = Complex::from(least);
            }
            for row in k + 1..m {
                let factor = values[row * m + k] / values[k * m + k];
                values[row * m + k] = factor;
                for col in k + 1..m {
                    let above = values[k * m + col];
                    values[row * m + col] -= factor * above;
                }
            }
        }
        Some(Self { values, order, m })
    }

    /// Solves `A x = b`.
    pub(super) fn solve(&self, b: &[Number]) -> Vec<Number> {
        let (m, values) = (self.m, &self.values);
        let mut x: Vec<Number> = self.order.iter().map(|&row| b[row]).collect();
        for row in 0..m {
            for col in 0..row {
                let before = x[col];
                x[row] -= values[row * m + col] * before;
            }
        }
        for row in (0..m).rev() {
            for col in row + 1..m {
                let after = x[col];
                x[row] -= values[row * m + col] * after;
            }
            x[row] /= values[row * m + row];
        }
        x
    }

    /// The inverse.
    pub(super) fn inverse(&self) -> Vec<Number> {
        let m = self.m;
        let mut inverse = vec![Number::ZERO; m * m];
        for col in 0..m {
            let mut unit = vec![Number::ZERO; m];
            unit[col] = Complex::ONE;
            for (row, value) in self.solve(&unit).into_iter().enumerate() {
                inverse[row * m + col] = value;
            }
        }
        inverse
    }
}

/// Similar to A, with zeros below the first subdiagonal: Gauss's method with exchanges.
fn hessenberg(a: &[Number], m: usize) -> Vec<Number> {
    let mut h = a.to_vec();
    for k in 1..m.saturating_sub(1) {
        let size = |row: &usize| h[row * m + k - 1].norm();
        let Some(pivot) = (k..m).max_by(|a, b| size(a).total_cmp(&size(b))) else { continue };
        if h[pivot * m + k - 1] == Number::ZERO {
            continue;
        }
        for at in 0..m {
            h.swap(k * m + at, pivot * m + at);
        }
        for at in 0..m {
            h.swap(at * m + k, at * m + pivot);
        }
        for row in k + 1..m {
            let factor = h[row * m + k - 1] / h[k * m + k - 1];
            for col in 0..m {
                let above = h[k * m + col];
                h[row * m + col] -= factor * above;
            }
            for at in 0..m {
                let beside = h[at * m + row];
                h[at * m + k] += factor * beside;
            }
        }
    }
    h
}

/// One step of the QR method with a shift on rows and columns `low..=high`.
fn step(h: &mut [Number], m: usize, (low, high): (usize, usize), shift: Number) {
    (low..=high).for_each(|k| h[k * m + k] -= shift);
    let mut turns = Vec::with_capacity(high - low);
    for k in low..high {
        let (a, b) = (h[k * m + k], h[(k + 1) * m + k]);
        let r = a.norm().hypot(b.norm());
        let (c, s) = if r > 0.0 { (a / r, b / r) } else { (Complex::ONE, Number::ZERO) };
        for col in k..=high {
            let (x, y) = (h[k * m + col], h[(k + 1) * m + col]);
            h[k * m + col] = c.conj() * x + s.conj() * y;
            h[(k + 1) * m + col] = c * y - s * x;
        }
        turns.push((c, s));
    }
    for (k, (c, s)) in (low..high).zip(turns) {
        for row in low..=k + 1 {
            let (x, y) = (h[row * m + k], h[row * m + k + 1]);
            h[row * m + k] = x * c + y * s;
            h[row * m + k + 1] = y * c.conj() - x * s.conj();
        }
    }
    (low..=high).for_each(|k| h[k * m + k] += shift);
}

/// All eigenvalues, or `None` where the method does not converge.
pub(super) fn eigenvalues(a: &[Number], m: usize) -> Option<Vec<Number>> {
    let mut h = hessenberg(a, m);
    let (mut high, mut rounds) = (m.checked_sub(1)?, 0);
    while high > 0 {
        let small = |k: usize, h: &[Number]| {
            let beside = h[(k - 1) * m + k - 1].norm() + h[k * m + k].norm();
            h[k * m + k - 1].norm() <= f64::EPSILON * beside
        };
        let low = (1..=high).rev().find(|&k| small(k, &h)).unwrap_or(0);
        if low == high {
            (high, rounds) = (high - 1, 0);
            continue;
        }
        rounds += 1;
        if rounds > 60 {
            return None;
        }
        let at = |i: usize, j: usize| h[(high - 1 + i) * m + high - 1 + j];
        // The eigenvalue of the last 2 x 2 block that is nearer to its corner.
        let (half, corner) = ((at(0, 0) - at(1, 1)) / 2.0, at(1, 1));
        let root = (half * half + at(0, 1) * at(1, 0)).sqrt();
        let (one, two) = (corner + half + root, corner + half - root);
        let near = if (one - corner).norm() < (two - corner).norm() { one } else { two };
        let shift = if rounds % 10 == 0 { corner + at(1, 0).norm() } else { near };
        step(&mut h, m, (low, high), shift);
    }
    Some((0..m).map(|k| h[k * m + k]).collect())
}

/// Eigenvectors as columns, of length one, for simple eigenvalues.
pub(super) fn eigenvectors(a: &[Number], m: usize) -> Option<Vec<Number>> {
    let values = eigenvalues(a, m)?;
    let mut vectors = vec![Number::ZERO; m * m];
    let largest = a.iter().map(|z| z.norm()).fold(0.0, f64::max);
    let least = f64::EPSILON * if largest > 0.0 { largest } else { 1.0 };
    for (col, value) in values.into_iter().enumerate() {
        let mut shifted = a.to_vec();
        (0..m).for_each(|k| shifted[k * m + k] -= value);
        let lu = Lu::new(&shifted, m, least)?;
        // Any start that is not orthogonal to the vector; three steps leave rounding.
        let mut x: Vec<Number> = (0..m).map(|k| Complex::cis(0.7 + 1.3 * (k * k) as f64)).collect();
        for _ in 0..3 {
            x = lu.solve(&x);
            let norm = x.iter().map(|z| z.norm_sqr()).sum::<f64>().sqrt();
            if !(norm.is_finite() && norm > 0.0) {
                return None;
            }
            x.iter_mut().for_each(|z| *z /= norm);
        }
        (0..m).for_each(|row| vectors[row * m + col] = x[row]);
    }
    Some(vectors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use danaus_testkit::randn;

    fn random(seed: u64, m: usize) -> Vec<Number> {
        let part = |seed| randn(seed, &[m * m], danaus_tensor::DType::F64).to_vec::<f64>().unwrap();
        part(seed).into_iter().zip(part(seed + 50)).map(|(re, im)| Complex::new(re, im)).collect()
    }

    #[test]
    fn inverses_and_eigenvectors_solve_their_equations() {
        for m in [1, 2, 5, 16, 33] {
            let a = random(m as u64, m);
            let product = multiply(&a, &Lu::new(&a, m, 0.0).unwrap().inverse(), m);
            for (at, z) in product.iter().enumerate() {
                let expected = if at / m == at % m { 1.0 } else { 0.0 };
                assert!((z - expected).norm() < 1e-10, "inverse of {m}");
            }
            let (values, vectors) = (eigenvalues(&a, m).unwrap(), eigenvectors(&a, m).unwrap());
            let moved = multiply(&a, &vectors, m);
            for at in 0..m * m {
                let error = (moved[at] - vectors[at] * values[at % m]).norm();
                assert!(error < 1e-9, "eigenvectors of {m}: {error:e}");
            }
        }
        // Real matrices have complex pairs.
        let turn: Vec<Number> = [0.0, -1.0, 1.0, 0.0].map(Complex::from).to_vec();
        let mut found = eigenvalues(&turn, 2).unwrap();
        found.sort_by(|a, b| a.im.total_cmp(&b.im));
        assert!((found[0] + Complex::I).norm() < 1e-14 && (found[1] - Complex::I).norm() < 1e-14);
        assert!(Lu::new(&[Number::ZERO; 4], 2, 0.0).is_none());
    }
}
