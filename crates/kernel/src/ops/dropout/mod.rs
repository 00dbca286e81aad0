//! Dropout (Srivastava et al. 2014) with a mask that is computed, never stored.
//!
//! Element i is kept when `bits(seed, stream, i) >= round(p 2^32)`, where `bits` is Philox4x32-10
//! (see `danaus_runtime::philox`), and is then divided by 1 - p. The gradient applies the same mask
//! to the cotangent. A dropped element is 0 whatever it was, NaN and infinity too.

pub mod cpu;
pub(crate) mod cuda;
pub mod reference;

#[cfg(test)]
mod tests;

use crate::hook::{self, check_float, dense, empty_like, listed, match_float, required};
use danaus_tensor::registry::{Arg, Attr, Kind, OpSpec};
use danaus_tensor::{Backward, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply};

/// Which elements are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping an element, 0 to 1.
    pub p: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Which mask of this seed: one for each layer and step.
    pub stream: u64,
}

impl Dropout {
    /// Random words below this are dropped.
    pub(crate) fn threshold(&self) -> u64 {
        (self.p * (1u64 << 32) as f64).round() as u64
    }

    /// Factor of the elements that are kept; 0 when none is.
    pub(crate) fn scale(&self) -> f64 {
        if self.p < 1.0 { 1.0 / (1.0 - self.p) } else { 0.0 }
    }
}

/// Drops elements of `x` and scales the others.
///
/// # Errors
/// When `p` is not in [0, 1] or `x` is not f64, f32 or bf16.
pub fn dropout(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    hook::first(apply(dropout, &[Some(x)])?)
}

impl Dropout {
    /// The mask on `x` or on a cotangent.
    fn write(&self, x: &Tensor, y: &mut Tensor) -> Result<()> {
        if x.device().is_cuda() {
            return cuda::apply(self, x, y);
        }
        match_float!(self.name(), x.dtype(), T => {
            cpu::apply::<T>(self, x.as_slice()?, y.as_slice_mut()?);
        }, f64 => {
            reference::apply::<f64>(self, x.as_slice()?, y.as_slice_mut()?);
        });
        Ok(())
    }
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = required(self.name(), inputs, 0, "x")?;
        check_float(self.name(), "x", x)?;
        if !(0.0..=1.0).contains(&self.p) {
            return Err(Error::argument(self.name(), "p", self.p, "0 to 1"));
        }
        Ok(vec![Meta::new(x.shape(), x.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        self.write(&dense(required(self.name(), inputs, 0, "x")?)?, &mut outputs[0])
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(dy) = &ctx.grads[0] else { return Ok(vec![None]) };
        let mut dx = empty_like(dy)?;
        self.write(&dense(dy)?, &mut dx)?;
        Ok(vec![Some(dx)])
    }
}

/// The operator of this folder for the operator runner.
pub const SPECS: &[OpSpec] = &[OpSpec {
    name: "dropout",
    summary: "drops elements with probability p and divides the others by 1 - p",
    inputs: &[Arg::float("x", "...")],
    attributes: &[
        Attr::new("p", Kind::Float, "0.1", "probability of dropping, 0 to 1"),
        Attr::new("seed", Kind::Int, "0", "seed of the run"),
        Attr::new("stream", Kind::Int, "0", "which mask of the seed"),
    ],
    outputs: &["y"],
    call: |args| {
        let number = |name| Ok::<u64, Error>(args.int(name)?.unwrap_or(0) as u64);
        let p = args.float("p")?.unwrap_or(0.1);
        let options = Dropout { p, seed: number("seed")?, stream: number("stream")? };
        listed(dropout(args.input("x")?, options)?)
    },
}];
