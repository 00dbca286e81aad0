//! Elementary operators, one file a family. Each is a method of [`Tensor`].

mod accumulate;
mod binary;
mod cast;
mod cat;
mod compare;
mod complex;
mod copy;
mod create;
mod elementwise;
pub mod expr;
mod fused;
mod index;
mod matmul;
mod reduce;
mod scan;
mod sort;
mod specs;
mod unary;
mod view;

pub(crate) use accumulate::accumulate;
pub(crate) use copy::cuda::fill_all as fill_cuda;
pub use elementwise::evaluate_into;
pub use index::index_select_into;
pub use specs::SPECS;

use crate::{Error, Inputs, Result, Tensor};

/// Element types of formulas, for messages.
const FLOATS_AND_BOOL: &str = "f64, f32, bf16, f16 or bool";

/// An input that must be there.
pub(crate) fn required<'a>(
    op: &'static str,
    inputs: Inputs<'a>,
    index: usize,
) -> Result<&'a Tensor> {
    let tensor = inputs.get(index).copied().flatten();
    tensor.ok_or_else(|| Error::argument(op, format!("input {index}"), "missing", "a tensor"))
}

/// Sets all bytes of a fresh GPU tensor to zero.
pub(crate) fn zero_cuda(out: &mut Tensor) -> Result<()> {
    match out.storage_mut() {
        Some(crate::storage::Storage::Cuda(buffer)) => Ok(buffer.set_bytes(0)?),
        _ => Err(Error::internal("zero_cuda on a tensor that is shared or not on a GPU")),
    }
}

/// Kernels of this crate that `danaus kernels build` compiles.
pub fn kernels() -> Vec<danaus_runtime::cuda::Variant> {
    let families = [
        copy::cuda::variants(),
        elementwise::cuda::variants(),
        index::cuda::variants(),
        reduce::cuda::variants(),
        crate::rng::cuda::variants(),
    ];
    families.into_iter().flatten().collect()
}

/// The only output of an operator.
pub(crate) fn single(mut outputs: Vec<Tensor>) -> Result<Tensor> {
    outputs.pop().ok_or_else(|| Error::internal("operator without output"))
}
