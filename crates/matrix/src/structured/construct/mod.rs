//! Exact constructions: named transforms and structured matrices as products of sparse factors.
//!
//! | map | factors | source |
//! | --- | --- | --- |
//! | DFT, inverse | bit reversal and one butterfly ([`fft`]) | Cooley and Tukey 1965 |
//! | Hadamard, Haar | one butterfly | |
//! | DCT-II, III, IV, DST-II, IV | permutation, butterfly, real part | Makhoul 1980 |
//! | circulant, Toeplitz, convolution | two butterflies with a diagonal between, no permutation | |
//! | any permutation | two butterflies of identities and swaps | Benes 1964; Waksman 1968 |
//! | DFT of any composite size | permutation and one Monarch matrix | Dao et al., ICML 2022 |
//!
//! All twiddles are `[1, nblocks, log_n, n / 2, 2, 2]` in f64 or c128, layout and order as
//! [`Chain::butterfly`](super::algebra::Chain::butterfly) takes them.

mod cosine;
mod fourier;
mod kronecker;
mod monarch;
mod permutation;
mod toeplitz;
mod twiddle;
mod wavelet;

#[cfg(test)]
mod tests;

pub use cosine::{Norm, dct2, dct3, dct4, dst2, dst4};
pub use fourier::{Decimation, Scaling, bit_reversal, fft, fft_twiddle, ifft, ifft_twiddle};
pub use kronecker::{kronecker_twiddle, stride_flip};
pub use monarch::monarch_dft;
pub use permutation::permutation_twiddle;
pub use toeplitz::{circulant, circulant_parts, toeplitz};
pub use twiddle::Twiddle;
pub use wavelet::{haar, hadamard, hadamard_twiddle};

use danaus_tensor::{Error, Result};

/// log2 of a size that butterflies have.
pub(crate) fn log_size(op: &'static str, n: usize) -> Result<usize> {
    match n.is_power_of_two() && n > 1 {
        true => Ok(n.trailing_zeros() as usize),
        false => Err(Error::argument(op, "n", n, "a power of two from 2 on")),
    }
}
