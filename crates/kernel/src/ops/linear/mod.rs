//! Linear layer with bias, activation and residual in one product.
//!
//! `y = f(x W^T + b) + residual`, with `x` `[.., in]`, `weight` W `[out, in]` (the layout of
//! checkpoints), `bias` b `[out]`, `residual` `[.., out]`; b, f and residual are optional. Bias,
//! activation and residual are applied to the sums while they are in registers (the epilogue of
//! `danaus_tensor::gemm`), so y is written once and never read.
//!
//! Backward with dp = f'(p) dy, where p is the value before f: `dx = dp W`, `dW = dp^T x`,
//! `db = sum of the rows of dp`, `dresidual = dy`. dp and db are made in one pass. p is kept only when
//! a gradient is wanted and f needs it; without f, nothing but x and W is.
//!
//! W has the dtype of x, or, beside an f32 x, is bf16 or f16: weights as a checkpoint stores them,
//! widened in registers, with products and sums in f32 as if they had been cast. dW then is the f32
//! sum rounded once.
//!
//! # Bits
//! A row of y depends on its row of x alone, whatever else is in the batch (the *invariant* level):
//! the engine sums every element in an order given by k.

mod cpu;
mod cuda;
pub(crate) mod few_rows;
pub mod reference;

#[cfg(test)]
mod tests;

pub(crate) use cpu::{before_activation, epilogue_activation, matrix, matrix_mut};

use crate::hook::{self, check_dtype, check_float, check_shape, dense, dense_as, listed, required};
use crate::ops::activation::Activation;
use danaus_tensor::registry::{Arg, Args, Attr, Kind, OpSpec};
use danaus_tensor::{
    Backward, DType, Error, Inputs, Level, Meta, Op, Result, Saves, Tensor, apply, is_recording,
};
use half::{bf16, f16};

/// What follows the product.
#[derive(Clone, Copy, Default)]
pub struct Extras<'a> {
    /// Added to every row before the activation; any float dtype.
    pub bias: Option<&'a Tensor>,
    /// Applied to every element.
    pub activation: Option<Activation>,
    /// Added last; shape and dtype of the result.
    pub residual: Option<&'a Tensor>,
}

/// Whether [`linear`] takes weights of one dtype beside an x of another: equal ones (f64, f32, bf16),
/// and bf16 or f16 beside f32.
pub fn accepts(x: DType, weight: DType) -> bool {
    match x {
        DType::F32 => matches!(weight, DType::F32 | DType::BF16 | DType::F16),
        DType::F64 | DType::BF16 => weight == x,
        _ => false,
    }
}

/// `f(x W^T + b) + residual`.
///
/// # Errors
/// When shapes do not fit, `residual` does not have the dtype of `x` (f64, f32, bf16), or `weight` has
/// another one, except bf16 or f16 beside f32.
pub fn linear(x: &Tensor, weight: &Tensor, extras: Extras) -> Result<Tensor> {
    let Extras { bias, activation, residual } = extras;
    let inputs = [Some(x), Some(weight), bias, residual];
    let tracked = inputs.iter().flatten().any(|input| input.is_tracked());
    let keep = activation.is_some() && tracked && is_recording();
    hook::first(apply(Linear { activation, keep }, &inputs)?)
}

/// Inputs: x, weight, bias, residual. Outputs: y, and the value before the activation if kept.
struct Linear {
    activation: Option<Activation>,
    keep: bool,
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let op = self.name();
        let (x, weight) = (required(op, inputs, 0, "x")?, required(op, inputs, 1, "weight")?);
        check_float(op, "x", x)?;
        if !accepts(x.dtype(), weight.dtype()) {
            let narrow = if x.dtype() == DType::F32 { ", bf16 or f16" } else { "" };
            let allowed = format!("{} as x{narrow}", x.dtype());
            return Err(Error::dtype(op, "weight", weight.dtype(), allowed));
        }
        let features = hook::last_dim(op, "x", x)?;
        if weight.rank() != 2 || weight.dims()[1] != features {
            let expected = format!("[out, {features}]");
            return Err(Error::shape(op, "weight", weight.shape(), expected));
        }
        if let Some(bias) = hook::given(inputs, 2) {
            check_float(op, "bias", bias)?;
            check_shape(op, "bias", bias, &weight.dims()[..1])?;
        }
        let mut dims = x.dims().to_vec();
        dims[x.rank() - 1] = weight.dims()[0];
        if let Some(residual) = hook::given(inputs, 3) {
            check_dtype(op, ("residual", residual), ("x", x))?;
            check_shape(op, "residual", residual, &dims)?;
        }
        Ok(vec![Meta::new(dims, x.dtype()); if self.keep { 2 } else { 1 }])
    }

    fn level(&self) -> Level {
        Level::Invariant
    }

    fn saves(&self) -> Saves {
        let inputs = Saves::inputs(&[0, 1, 2]);
        if self.keep { inputs.and_outputs(&[1]) } else { inputs }
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = dense(required(self.name(), inputs, 0, "x")?)?;
        let weight = required(self.name(), inputs, 1, "weight")?.detach();
        let residual = hook::given(inputs, 3).map(dense).transpose()?;
        if x.device().is_cuda() {
            // The vendor's library takes both factors in one type.
            let weight = hook::dense_as(&weight, x.dtype())?;
            let bias = hook::optional_as(hook::given(inputs, 2), x.dtype())?;
            let (bias, residual) = (bias.as_ref(), residual.as_ref());
            let (activation, x, weight) = (self.activation, &x, &weight);
            let product = cuda::Product { x, weight, bias, activation, residual };
            let (y, before) = outputs.split_at_mut(1);
            return product.run(&mut y[0], before.first_mut());
        }
        let bias = hook::optional_as(hook::given(inputs, 2), x.dtype().accumulator())?;
        let (y, before) = outputs.split_at_mut(1);
        let product = cpu::Product {
            x: &x,
            weight: &weight,
            bias: bias.as_ref(),
            activation: self.activation,
            residual: residual.as_ref(),
        };
        let (y, before) = (&mut y[0], before.first_mut());
        cpu::match_pair!("linear", x.dtype(), weight.dtype(), (T, W) => {
            product.run::<T, W>(y, before)
        })
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let (x, weight) = (dense(ctx.input(0)?)?, ctx.input(1)?.detach());
        let Some(dy) = &ctx.grads[0] else { return Ok(vec![None; 4]) };
        let dy = dense(dy)?;
        let curve = match self.activation {
            Some(activation) => Some((activation, dense(ctx.output(1)?)?)),
            None => None,
        };
        let want_bias = ctx.needs[2];
        let on_gpu = x.device().is_cuda();
        let before = if on_gpu { cuda::before_activation } else { cpu::before_activation };
        let by_input = if on_gpu { cuda::dx } else { cpu::dx };
        let by_weight = if on_gpu { cuda::dweight } else { cpu::dweight };
        let (dp, dbias) = before(&dy, curve, want_bias)?;
        let dx = ctx.needs[0].then(|| by_input(&dp, &weight, &x)).transpose()?;
        let dweight = ctx.needs[1].then(|| by_weight(&dp, &weight, &x)).transpose()?;
        let dbias = match (&ctx.inputs[2], dbias) {
            (Some(bias), Some(sums)) => Some(dense_as(&sums, bias.dtype())?),
            _ => None,
        };
        Ok(vec![dx, dweight, dbias, ctx.needs[3].then_some(dy)])
    }
}

/// The attribute that names the activation.
pub(crate) const ACTIVATION: Attr =
    Attr::new("activation", Kind::Text, "none", "none, gelu, gelu_tanh, silu, relu");

/// Its value.
pub(crate) fn activation(op: &'static str, args: &Args) -> Result<Option<Activation>> {
    match args.text("activation") {
        None | Some("none") => Ok(None),
        Some(name) => Activation::from_name(name).map(Some).ok_or_else(|| {
            Error::argument(op, "activation", name, "none, gelu, gelu_tanh, silu or relu")
        }),
    }
}

/// The operator of this folder for the operator runner.
pub const SPECS: &[OpSpec] = &[OpSpec {
    name: "linear",
    summary: "f(x weight^T + bias) + residual",
    inputs: &[
        Arg::float("x", "... in"),
        Arg {
            name: "weight",
            shape: "out in",
            dtypes: &[DType::F64, DType::F32, DType::BF16, DType::F16],
            optional: false,
        },
        Arg::float("bias", "out").optional(),
        Arg::float("residual", "... out").optional(),
    ],
    attributes: &[ACTIVATION],
    outputs: &["y"],
    call: |args| {
        let activation = activation("linear", args)?;
        let (bias, residual) = (args.optional("bias"), args.optional("residual"));
        let extras = Extras { bias, activation, residual };
        listed(linear(args.input("x")?, args.input("weight")?, extras)?)
    },
}];
