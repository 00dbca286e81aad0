//! The DFT of any composite size as one Monarch matrix after a fixed permutation.

use crate::structured::algebra::{Chain, Map};
use danaus_kernel::ops::kronecker_sparse::Pattern;
use danaus_tensor::{Device, Error, Result, Tensor};
use num_complex::Complex;
use std::f64::consts::PI;

/// The unitary DFT of `n = n1 n2` points as `Monarch P`, with n1 the larger factor nearest to
/// sqrt(n): small DFTs with the twiddle factors in the blocks of the first factor, small DFTs in
/// those of the second (Cooley and Tukey for one step; no power of two is needed).
///
/// # Errors
/// When n is prime or below 4.
pub fn monarch_dft(n: usize) -> Result<Map> {
    let root = (1..).take_while(|r| r * r <= n).last().unwrap_or(1);
    let small = (2..=root).rev().find(|d| n.is_multiple_of(*d));
    let small = small
        .ok_or_else(|| Error::argument("monarch_dft", "n", n, "a composite number from 4 on"))?;
    let large = n / small;
    let unit = |turns: usize, of: usize| Complex::cis(-2.0 * PI * (turns % of) as f64 / of as f64);
    // x[j] with j = i large + k becomes entry i of block k; then frequency = l small + m.
    let order: Vec<usize> =
        (0..large).flat_map(|k| (0..small).map(move |i| i * large + k)).collect();
    let scale = |len: usize| 1.0 / (len as f64).sqrt();
    let mut first = Vec::with_capacity(n * small);
    for k in 0..large {
        for m in 0..small {
            for i in 0..small {
                first.push(unit(i * m, small) * unit(k * m, n) * scale(small));
            }
        }
    }
    // Block m of the second factor: the DFT over k, the same for all m.
    let mut second = Vec::with_capacity(n * large);
    for _ in 0..small {
        for l in 0..large {
            second.extend((0..large).map(|k| unit(k * l, large) * scale(large)));
        }
    }
    let first = Tensor::from_vec(first, [large, small, small], &Device::Cpu)?;
    let second = Tensor::from_vec(second, [small, large, large], &Device::Cpu)?;
    let chain = Chain::new(&[
        (Pattern::new(large, small, small, 1), first),
        (Pattern::new(1, large, large, small), second),
    ])?;
    Map::permutation(&order)?.then(&Map::Chain(chain))
}
