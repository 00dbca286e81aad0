//! One way to test numbers: golden files, comparison with a stated tolerance, and gradient checks.
//!
//! Only tests use this crate, so it panics where a library would return an error.

pub mod archive;
mod compare;
mod golden;
mod gradcheck;

pub use compare::{assert_close, max_relative_error};
pub use golden::{Golden, golden};
pub use gradcheck::gradcheck;

use danaus_tensor::{DType, Tensor, rng::Rng};

/// A normal random tensor that depends on `seed` and the shape alone.
pub fn randn(seed: u64, shape: &[usize], dtype: DType) -> Tensor {
    let tensor = Rng::new(seed, 0x7e57).normal(0.0, 1.0, shape).expect("memory for a test tensor");
    tensor.to_dtype(dtype).expect("a floating-point dtype")
}
