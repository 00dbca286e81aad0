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

/// The only output of an operator.
pub(crate) fn single(mut outputs: Vec<Tensor>) -> Result<Tensor> {
    outputs.pop().ok_or_else(|| Error::internal("operator without output"))
}
