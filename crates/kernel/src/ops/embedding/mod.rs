//! Token embedding: `y[t] = weight[ids[t]]`.
//!
//! `weight` is `[vocab, dim]`, `ids` any shape, `y` that shape with `dim` appended. The gradient of
//! `weight` sums the cotangents of equal ids in the order of their positions, in f32, so it has the
//! same bits on any number of threads; atomics would not. Rows of `padding_idx` get no gradient.

pub mod cpu;
mod cuda;
pub mod reference;

#[cfg(test)]
mod tests;

use crate::hook::{self, check_float, dense, indices, listed, match_float, match_real, required};
use danaus_tensor::registry::{Arg, Attr, Kind, OpSpec};
use danaus_tensor::{Backward, DType, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply};
use half::f16;

/// Rows of `weight` at `ids` (i32 or i64); ids equal to `padding_idx` get no gradient.
///
/// # Errors
/// When `weight` is not a float matrix, or an id or `padding_idx` is not a row of it.
pub fn embedding(weight: &Tensor, ids: &Tensor, padding_idx: Option<usize>) -> Result<Tensor> {
    hook::first(apply(Lookup { padding_idx }, &[Some(weight), Some(ids)])?)
}

struct Lookup {
    padding_idx: Option<usize>,
}

impl Lookup {
    fn ids(&self, weight: &Tensor, ids: &Tensor) -> Result<Vec<u32>> {
        indices(self.name(), "ids", ids, (weight.dims()[0], "vocab"))
    }
}

impl Op for Lookup {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let op = self.name();
        let (weight, ids) = (required(op, inputs, 0, "weight")?, required(op, inputs, 1, "ids")?);
        // f16 rows are copied as they are: checkpoints store tables so.
        if weight.dtype() != DType::F16 {
            check_float(op, "weight", weight)?;
        }
        if weight.rank() != 2 {
            return Err(Error::shape(op, "weight", weight.shape(), "[vocab, dim]"));
        }
        if ids.device().is_cuda() {
            hook::check_index(op, "ids", ids)?;
        } else {
            self.ids(weight, ids)?;
        }
        if let Some(padding) = self.padding_idx.filter(|&id| id >= weight.dims()[0]) {
            let valid = format!("a row of weight, 0 to {}", weight.dims()[0].saturating_sub(1));
            return Err(Error::argument(op, "padding_idx", padding, valid));
        }
        let mut dims = ids.dims().to_vec();
        dims.push(weight.dims()[1]);
        Ok(vec![Meta::new(dims, weight.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0, 1])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let weight = dense(required(self.name(), inputs, 0, "weight")?)?;
        let ids = required(self.name(), inputs, 1, "ids")?;
        if weight.device().is_cuda() {
            return cuda::forward(&weight, ids, &mut outputs[0]);
        }
        let ids = self.ids(&weight, ids)?;
        let (dim, y) = (weight.dims()[1], &mut outputs[0]);
        if weight.dtype() == DType::F16 {
            cpu::forward::<f16>(dim, weight.as_slice()?, &ids, y.as_slice_mut()?);
            return Ok(());
        }
        match_real!(self.name(), weight.dtype(), T => {
            cpu::forward::<T>(dim, weight.as_slice()?, &ids, y.as_slice_mut()?);
        });
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(dy) = &ctx.grads[0] else { return Ok(vec![None, None]) };
        let (weight, dy) = (ctx.input(0)?, dense(dy)?);
        if weight.device().is_cuda() {
            let dweight = cuda::backward(weight, ctx.input(1)?, &dy, self.padding_idx)?;
            return Ok(vec![Some(dweight), None]);
        }
        let ids = self.ids(weight, ctx.input(1)?)?;
        let (dim, skip) = (weight.dims()[1], self.padding_idx.map(|id| id as u32));
        if weight.dtype() == DType::F16 {
            let remedy = "cast the weight to f32 or bf16 with to_dtype";
            return Err(Error::unsupported(self.name(), "a gradient in f16", remedy));
        }
        let mut dweight = hook::empty_like(weight)?;
        match_float!(self.name(), weight.dtype(), T => {
            cpu::backward::<T>(dim, &ids, dy.as_slice()?, skip, dweight.as_slice_mut()?);
        }, f64 => {
            reference::backward::<f64>(dim, &ids, dy.as_slice()?, skip, dweight.as_slice_mut()?);
        });
        Ok(vec![Some(dweight), None])
    }
}

/// The operator of this folder for the operator runner.
pub const SPECS: &[OpSpec] = &[OpSpec {
    name: "embedding",
    summary: "rows of weight at ids",
    inputs: &[Arg::float("weight", "vocab dim"), Arg::int("ids", "...")],
    attributes: &[Attr::new("padding_idx", Kind::Int, "", "row that gets no gradient")],
    outputs: &["y"],
    call: |args| {
        let padding = args.int("padding_idx")?.map(usize::try_from).transpose();
        let padding = padding.map_err(|_| {
            let given = args.text("padding_idx").unwrap_or_default();
            Error::argument("embedding", "padding_idx", given, "0 or more")
        })?;
        listed(embedding(args.input("weight")?, args.input("ids")?, padding)?)
    },
}];
