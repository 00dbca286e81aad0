//! RMS norm with a gate: the norm after Mamba-2's scan and Hydra's.
//!
//! ```text
//! y = weight r(x silu(z))     (norm_before_gate = false, Mamba-2)
//! y = weight r(x) silu(z)     (norm_before_gate = true, Hydra)
//! r(v) = v / sqrt(mean(v^2) + eps), the mean over groups of group_size elements
//! ```
//!
//! `x`, `z`, `y` are `[..., d]`, `weight` is `[d]`; without `z` it is the plain norm. Arithmetic is f32
//! for f32 and bf16, f64 for f64. One pass over memory each way; gradients of the weight are summed over
//! blocks of rows in a fixed order. A row's bits depend on that row alone (the *invariant* level).

pub mod cpu;
pub(crate) mod cuda;
pub mod reference;

use super::ssd::arrays::{
    check_array, check_dtype, check_shape, empty_like, like, plain, plain_optional, required,
    slice, source, target, wide,
};
use cpu::Norm;
use danaus_tensor::registry::{Arg, Attr, Kind, OpSpec};
use danaus_tensor::{
    Backward, DType, Error, Inputs, Level, Meta, Op, Result, Saves, Tensor, apply,
};
use reference::Options;

const OP: &str = "rms_norm_gated";
const NAMES: [&str; 3] = ["x", "weight", "z"];

/// How a call is to be computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNormGatedOptions {
    /// Added to the mean square.
    pub eps: f64,
    /// Elements that share one mean square; `None` is the whole row.
    pub group_size: Option<usize>,
    /// Gate after the norm instead of before it.
    pub norm_before_gate: bool,
}

impl Default for RmsNormGatedOptions {
    fn default() -> Self {
        Self { eps: 1e-5, group_size: None, norm_before_gate: false }
    }
}

/// The gated norm over the last dimension.
///
/// # Errors
/// Naming the argument whose shape, dtype or value does not fit.
pub fn rms_norm_gated(
    x: &Tensor,
    z: Option<&Tensor>,
    weight: &Tensor,
    options: &RmsNormGatedOptions,
) -> Result<Tensor> {
    let weight = weight.to_dtype(wide(x.dtype()))?;
    let z = z.map(|z| z.to_dtype(x.dtype())).transpose()?;
    let outputs = apply(GatedNorm { options: *options }, &[Some(x), Some(&weight), z.as_ref()])?;
    outputs.into_iter().next().ok_or_else(|| Error::internal("rms_norm_gated without output"))
}

struct GatedNorm {
    options: RmsNormGatedOptions,
}

/// Contiguous, off the tape.
struct Arrays {
    x: Tensor,
    weight: Tensor,
    z: Option<Tensor>,
    options: Options,
}

impl GatedNorm {
    fn validate(&self, inputs: Inputs) -> Result<Options> {
        let (x, weight) = (required(OP, inputs, &NAMES, 0)?, required(OP, inputs, &NAMES, 1)?);
        check_array(OP, "x", x)?;
        let Some(&columns) = x.dims().last().filter(|&&columns| columns > 0) else {
            return Err(Error::shape(OP, "x", x.shape(), "[..., d] with d at least 1"));
        };
        check_dtype(OP, "weight", weight, wide(x.dtype()))?;
        check_shape(OP, "weight", weight, &[columns], "[d]")?;
        if let Some(z) = inputs[2] {
            check_dtype(OP, "z", z, x.dtype())?;
            check_shape(OP, "z", z, x.dims(), "the shape of x")?;
        }
        let group_size = self.options.group_size.unwrap_or(columns);
        if group_size == 0 || columns % group_size != 0 {
            let valid = format!("a divisor of d = {columns}");
            return Err(Error::argument(OP, "group_size", group_size, valid));
        }
        let eps = self.options.eps;
        if !(eps >= 0.0 && eps.is_finite()) {
            return Err(Error::argument(OP, "eps", eps, "a finite number, at least 0"));
        }
        Ok(Options { group_size, eps, norm_before_gate: self.options.norm_before_gate })
    }

    fn arrays(&self, inputs: Inputs) -> Result<Arrays> {
        let options = self.validate(inputs)?;
        let at = |index| required(OP, inputs, &NAMES, index).and_then(plain);
        Ok(Arrays { x: at(0)?, weight: at(1)?, z: plain_optional(inputs[2])?, options })
    }
}

impl Arrays {
    fn on_cuda(&self) -> cuda::Norm<'_> {
        let Arrays { x, weight, z, options } = self;
        cuda::Norm { x, weight, z: z.as_ref(), options: *options }
    }

    fn norm(&self) -> Result<Norm<'_>> {
        let weight: &[f32] = self.weight.as_slice()?;
        Ok(Norm {
            x: source(&self.x)?,
            z: self.z.as_ref().map(source).transpose()?,
            weight,
            rows: self.x.elem_count() / weight.len(),
            options: self.options,
        })
    }
}

impl Op for GatedNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        self.validate(inputs)?;
        let x = required(OP, inputs, &NAMES, 0)?;
        Ok(vec![Meta::new(x.shape(), x.dtype())])
    }

    fn level(&self) -> Level {
        Level::Invariant
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0, 1, 2])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let arrays = self.arrays(inputs)?;
        if arrays.x.device().is_cuda() {
            return arrays.on_cuda().forward(&mut outputs[0]);
        }
        if arrays.x.dtype() != DType::F64 {
            cpu::forward(&arrays.norm()?, target(&mut outputs[0])?);
            return Ok(());
        }
        let (x, weight) = (arrays.x.as_slice::<f64>()?, arrays.weight.as_slice()?);
        let y = reference::forward(x, slice(&arrays.z)?, weight, &arrays.options);
        outputs[0].as_slice_mut()?.copy_from_slice(&y);
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let inputs: Vec<Option<&Tensor>> = ctx.inputs.iter().map(Option::as_ref).collect();
        let arrays = self.arrays(&inputs)?;
        let dy = plain(&ctx.grad_or_zeros(0, &arrays.x)?)?;
        if arrays.x.device().is_cuda() {
            let grads = arrays.on_cuda().backward(&dy)?;
            return Ok(vec![Some(grads.x), Some(grads.weight), grads.z]);
        }
        if arrays.x.dtype() == DType::F64 {
            let (x, weight) = (arrays.x.as_slice::<f64>()?, arrays.weight.as_slice()?);
            let (z, dy) = (slice(&arrays.z)?, dy.as_slice()?);
            let (dx, dz, dweight) = reference::backward(x, z, weight, &arrays.options, dy);
            let dz = arrays.z.as_ref().map(|z| like(dz, z)).transpose()?;
            return Ok(vec![Some(like(dx, &arrays.x)?), Some(like(dweight, &arrays.weight)?), dz]);
        }
        let (mut dx, mut dweight) = (empty_like(&arrays.x)?, empty_like(&arrays.weight)?);
        let mut dz = arrays.z.as_ref().map(empty_like).transpose()?;
        let dz_target = dz.as_mut().map(target).transpose()?;
        let norm = arrays.norm()?;
        cpu::backward(&norm, source(&dy)?, target(&mut dx)?, dz_target, dweight.as_slice_mut()?);
        Ok(vec![Some(dx), Some(dweight), dz])
    }
}

/// Registry entries.
pub const SPECS: &[OpSpec] = &[OpSpec {
    name: OP,
    summary: "RMS norm with a silu gate before or after it, in groups",
    inputs: &[
        Arg::float("x", "... d"),
        Arg::float("z", "... d").optional(),
        Arg::float("weight", "d"),
    ],
    attributes: &[
        Attr::new("eps", Kind::Float, "1e-5", "added to the mean square"),
        Attr::new("group_size", Kind::Int, "", "elements that share one mean square; divides d"),
        Attr::new("norm_before_gate", Kind::Bool, "false", "gate after the norm"),
    ],
    outputs: &["y"],
    call: |args| {
        let group_size = args.int("group_size")?;
        let group_size = group_size.map(|given| usize::try_from(given).unwrap_or(0));
        let options = RmsNormGatedOptions {
            eps: args.float("eps")?.unwrap_or(1e-5),
            group_size,
            norm_before_gate: args.bool("norm_before_gate")?,
        };
        let (x, weight) = (args.input("x")?, args.input("weight")?);
        Ok(vec![Some(rms_norm_gated(x, args.optional("z"), weight, &options)?)])
    },
}];

#[cfg(test)]
mod tests;
