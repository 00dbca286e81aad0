//! Softmax and log-softmax over the last dimension.
//!
//! `y = e^(x - max) / sum e^(x - max)`, or `y = x - max - ln(sum e^(x - max))`. Entries of minus
//! infinity get probability 0; a row that has nothing else, or a NaN, or plus infinity, is all NaN,
//! as the quotient is. Sums are f32 for f32 and bf16, f64 for f64.
//!
//! Backward, from the output: `dx = y (dy - sum(y dy))`, and `dx = dy - e^y sum(dy)` for the logarithm.

pub mod cpu;
pub(crate) mod cuda;
pub mod reference;

#[cfg(test)]
mod tests;

use crate::hook::{self, check_float, dense, empty_like, listed, match_float, required};
use danaus_tensor::registry::{Arg, OpSpec};
use danaus_tensor::{Backward, Inputs, Meta, Op, Result, Saves, Tensor, apply};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Probabilities.
    Softmax,
    /// Their logarithms.
    LogSoftmax,
}

/// Probabilities over the last dimension.
///
/// # Errors
/// When `x` is a scalar or not f64, f32 or bf16.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    hook::first(apply(Rows(Form::Softmax), &[Some(x)])?)
}

/// Logarithms of the probabilities over the last dimension.
///
/// # Errors
/// As [`softmax`].
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    hook::first(apply(Rows(Form::LogSoftmax), &[Some(x)])?)
}

struct Rows(Form);

impl Op for Rows {
    fn name(&self) -> &'static str {
        match self.0 {
            Form::Softmax => "softmax",
            Form::LogSoftmax => "log_softmax",
        }
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = required(self.name(), inputs, 0, "x")?;
        check_float(self.name(), "x", x)?;
        hook::last_dim(self.name(), "x", x)?;
        Ok(vec![Meta::new(x.shape(), x.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::none().and_outputs(&[0])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = dense(required(self.name(), inputs, 0, "x")?)?;
        let cols = hook::last_dim(self.name(), "x", &x)?.max(1);
        let y = &mut outputs[0];
        if x.device().is_cuda() {
            return cuda::forward(self.0, &x, y);
        }
        match_float!(self.name(), x.dtype(), T => {
            cpu::forward::<T>(self.0, cols, x.as_slice()?, y.as_slice_mut()?);
        }, f64 => {
            reference::forward::<f64>(self.0, cols, x.as_slice()?, y.as_slice_mut()?);
        });
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(dy) = &ctx.grads[0] else { return Ok(vec![None]) };
        let (y, dy) = (dense(ctx.output(0)?)?, dense(dy)?);
        let cols = hook::last_dim(self.name(), "y", &y)?.max(1);
        let mut dx = empty_like(&y)?;
        if y.device().is_cuda() {
            cuda::backward(self.0, &y, &dy, &mut dx)?;
            return Ok(vec![Some(dx)]);
        }
        match_float!(self.name(), y.dtype(), T => {
            let inputs = (y.as_slice::<T>()?, dy.as_slice()?);
            cpu::backward(self.0, cols, inputs, dx.as_slice_mut()?);
        }, f64 => {
            let inputs = (y.as_slice::<f64>()?, dy.as_slice()?);
            reference::backward(self.0, cols, inputs, dx.as_slice_mut()?);
        });
        Ok(vec![Some(dx)])
    }
}

/// The operators of this folder for the operator runner.
pub const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "softmax",
        summary: "e^x / sum(e^x) over the last dimension",
        inputs: &[Arg::float("x", "... cols")],
        attributes: &[],
        outputs: &["y"],
        call: |args| listed(softmax(args.input("x")?)?),
    },
    OpSpec {
        name: "log_softmax",
        summary: "x - ln(sum(e^x)) over the last dimension",
        inputs: &[Arg::float("x", "... cols")],
        attributes: &[],
        outputs: &["y"],
        call: |args| listed(log_softmax(args.input("x")?)?),
    },
];
