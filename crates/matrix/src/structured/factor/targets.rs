//! Dense matrices of named transforms, from their formulas: what factorisations are tried on.

use danaus_tensor::rng::Rng;
use danaus_tensor::{DType, Device, Error, Result, Tensor};
use num_complex::Complex;
use std::f64::consts::PI;

/// Names that [`target`] knows.
pub const TARGETS: [&str; 12] = [
    "dft",
    "idft",
    "dct2",
    "dct3",
    "dct4",
    "dst2",
    "dst4",
    "hadamard",
    "hartley",
    "circulant",
    "toeplitz",
    "random",
];

/// The dense matrix of a transform of n points with orthonormal or unitary scaling; for
/// `circulant`, `toeplitz` and `random`, normal numbers of a seed.
///
/// # Errors
/// When the name is none of [`TARGETS`], n is 0, or no power of two for `hadamard`.
pub fn target(name: &str, n: usize, seed: u64) -> Result<Tensor> {
    if n == 0 {
        return Err(Error::argument("target", "n", n, "1 or more"));
    }
    let size = n as f64;
    let root = |factor: f64| (factor / size).sqrt();
    let half = |k: usize, special: usize| root(if k == special { 1.0 } else { 2.0 });
    // Angles of transforms repeat; whole numbers keep them exact.
    let turn = |k: usize, of: usize| 2.0 * PI * (k % of) as f64 / of as f64;
    let real: &dyn Fn(usize, usize) -> f64 = match name {
        "dft" | "idft" => {
            let sign = if name == "dft" { -1.0 } else { 1.0 };
            let entry = |at: usize| Complex::cis(sign * turn(at / n * (at % n), n)) * root(1.0);
            return Tensor::from_vec((0..n * n).map(entry).collect(), [n, n], &Device::Cpu);
        }
        "dct2" => &|k, j| half(k, 0) * turn(k * (2 * j + 1), 4 * n).cos(),
        "dct3" => &|j, k| half(k, 0) * turn(k * (2 * j + 1), 4 * n).cos(),
        "dct4" => &|k, j| root(2.0) * turn((2 * k + 1) * (2 * j + 1), 8 * n).cos(),
        "dst2" => &|k, j| half(k, n - 1) * turn((k + 1) * (2 * j + 1), 4 * n).sin(),
        "dst4" => &|k, j| root(2.0) * turn((2 * k + 1) * (2 * j + 1), 8 * n).sin(),
        "hartley" => &|k, j| root(1.0) * (turn(k * j, n).cos() + turn(k * j, n).sin()),
        "hadamard" => {
            crate::structured::construct::log_size("target", n)?;
            &|k, j| root(1.0) * if (k & j).count_ones() % 2 == 0 { 1.0 } else { -1.0 }
        }
        "circulant" | "toeplitz" | "random" => return random(name, n, seed),
        _ => return Err(Error::argument("target", "name", name, TARGETS.join(", "))),
    };
    Tensor::from_vec((0..n * n).map(|at| real(at / n, at % n)).collect(), [n, n], &Device::Cpu)
}

fn random(name: &str, n: usize, seed: u64) -> Result<Tensor> {
    let numbers = |count: usize| -> Result<Vec<f64>> {
        let values = Rng::new(seed, 0).normal(0.0, 1.0 / (n as f64).sqrt(), [count])?;
        values.to_dtype(DType::F64)?.to_vec()
    };
    let entries: Vec<f64> = match name {
        "random" => numbers(n * n)?,
        "circulant" => {
            let column = numbers(n)?;
            (0..n * n).map(|at| column[(at / n + n - at % n) % n]).collect()
        }
        _ => {
            let diagonals = numbers(2 * n - 1)?;
            (0..n * n).map(|at| diagonals[at / n + n - 1 - at % n]).collect()
        }
    };
    Tensor::from_vec(entries, [n, n], &Device::Cpu)
}
