//! Twiddles from twiddles: Kronecker products, and the same matrix with strides in the other order.

use super::bit_reversal;
use danaus_kernel::ops::kronecker_sparse::twiddle_shape;
use danaus_tensor::{Device, Error, Result, Tensor};

/// `B2 (x) B1` as one butterfly of size n1 n2, for one block of increasing strides each: first the
/// factors of B1 in all n2 copies, then those of B2 with n1 times their strides.
///
/// # Errors
/// When shapes are not `[1, 1, log_n, n / 2, 2, 2]`.
pub fn kronecker_twiddle(inner: &Tensor, outer: &Tensor) -> Result<Tensor> {
    let (log1, log2) = (single("inner", inner)?, single("outer", outer)?);
    let (n1, n2) = (1usize << log1, 1usize << log2);
    let pairs = n1 * n2 / 2;
    let copies = inner.reshape([log1, 1, n1 / 2, 4])?.broadcast_to([log1, n2, n1 / 2, 4])?;
    let copies = copies.reshape([log1, pairs, 4])?;
    let spread = outer.reshape([log2, n2 / 2, 1, 4])?.broadcast_to([log2, n2 / 2, n1, 4])?;
    let spread = spread.reshape([log2, pairs, 4])?;
    Tensor::cat(&[&copies, &spread], 0)?.reshape([1, 1, log1 + log2, pairs, 2, 2])
}

fn single(name: &str, twiddle: &Tensor) -> Result<usize> {
    match twiddle_shape(twiddle)? {
        [1, 1, log_n] => Ok(log_n),
        _ => {
            let expected = "[1, 1, log_n, n / 2, 2, 2]: one stack, one block";
            Err(Error::shape("kronecker_twiddle", name, twiddle.shape(), expected))
        }
    }
}

/// The twiddle of the same matrix between bit reversals with strides in the other order:
/// `B(t) = R B'(flip(t)) R` where B has increasing and B' decreasing strides, or the reverse.
///
/// # Errors
/// When the shape is no twiddle's.
pub fn stride_flip(twiddle: &Tensor) -> Result<Tensor> {
    let [_, _, log_n] = twiddle_shape(twiddle)?;
    if log_n == 1 {
        return Ok(twiddle.clone());
    }
    let order: Vec<i64> = bit_reversal(1 << (log_n - 1))?.into_iter().map(|i| i as i64).collect();
    let count = order.len();
    twiddle.index_select(3, &Tensor::from_vec(order, [count], &Device::Cpu)?)
}
