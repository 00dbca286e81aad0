//! Layer norm and RMS norm over the last dimension, with an optional residual addition in front.
//!
//! For each row h of `cols` values, with learned `weight` and `bias` (both optional):
//!
//! * layer norm (Ba, Kiros, Hinton 2016): `y = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias`,
//!   where var divides by `cols`;
//! * RMS norm (Zhang and Sennrich 2019): `y = h / sqrt(mean(h^2) + eps) * weight + bias`.
//!
//! The fused form takes `x` and `residual`, computes `h = x + residual`, and returns h as well, which
//! pre-norm blocks carry on. h is rounded to the storage type before it is normalised, so `y` is
//! exactly the norm of the h that is returned, and the backward pass needs nothing but h.
//!
//! Statistics are f32 for f32 and bf16 (the variance in a second pass around the mean, so that a large
//! mean does not cancel it), f64 for f64. The backward pass recomputes them: the row is in the nearest
//! cache then, and nothing has to be saved. Column sums for `weight` and `bias` are taken in fixed
//! blocks of rows and added in order, so all results have the same bits on any number of threads.

pub mod cpu;
pub mod cpu_backward;
pub(crate) mod cuda;
pub mod reference;

#[cfg(test)]
mod tests;

use crate::hook::{
    self, check_float, check_like, check_shape, dense, dense_as, empty_like, match_float,
    optional_as, required,
};
use danaus_tensor::registry::{Arg, Args, Attr, Kind as Value, OpSpec};
use danaus_tensor::{Backward, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply, no_grad};

/// Which statistics a row is normalised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Mean and variance.
    Layer,
    /// Root of the mean square.
    Rms,
}

/// What is normalised: rows of `cols` values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Layer or RMS.
    pub kind: Kind,
    /// Added to the variance or mean square.
    pub eps: f64,
    /// Length of a row; at least 1.
    pub cols: usize,
}

/// Learned factor and summand of a norm, one value a column; any float dtype.
#[derive(Clone, Copy, Default)]
pub struct Affine<'a> {
    /// Factor; 1 where absent.
    pub weight: Option<&'a Tensor>,
    /// Summand; 0 where absent.
    pub bias: Option<&'a Tensor>,
}

/// `y` for rows along the last dimension of `x`.
///
/// # Errors
/// When dtypes are not f64, f32 or bf16, `weight` or `bias` do not have one value a column, or `eps`
/// is negative.
pub fn norm(kind: Kind, x: &Tensor, affine: Affine, eps: f64) -> Result<Tensor> {
    let op = Normalise { kind, eps, fused: false };
    hook::first(apply(op, &[Some(x), affine.weight, affine.bias, None])?)
}

/// `(y, x + residual)`, where `y` is the norm of the sum.
///
/// # Errors
/// As [`norm`], and when `residual` is not like `x`.
pub fn add_norm(
    kind: Kind,
    (x, residual): (&Tensor, &Tensor),
    affine: Affine,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let op = Normalise { kind, eps, fused: true };
    hook::pair(apply(op, &[Some(x), affine.weight, affine.bias, Some(residual)])?)
}

/// RMS norm.
///
/// # Errors
/// As [`norm`].
pub fn rms_norm(x: &Tensor, affine: Affine, eps: f64) -> Result<Tensor> {
    norm(Kind::Rms, x, affine, eps)
}

/// Layer norm.
///
/// # Errors
/// As [`norm`].
pub fn layer_norm(x: &Tensor, affine: Affine, eps: f64) -> Result<Tensor> {
    norm(Kind::Layer, x, affine, eps)
}

/// RMS norm of `x + residual`, and the sum.
///
/// # Errors
/// As [`add_norm`].
pub fn add_rms_norm(
    x: &Tensor,
    residual: &Tensor,
    affine: Affine,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    add_norm(Kind::Rms, (x, residual), affine, eps)
}

/// Layer norm of `x + residual`, and the sum.
///
/// # Errors
/// As [`add_norm`].
pub fn add_layer_norm(
    x: &Tensor,
    residual: &Tensor,
    affine: Affine,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    add_norm(Kind::Layer, (x, residual), affine, eps)
}

/// Inputs: x, weight, bias, residual. Outputs: y, and the sum when there is a residual.
struct Normalise {
    kind: Kind,
    eps: f64,
    fused: bool,
}

impl Normalise {
    /// The gradients in the order of the inputs, each in its input's dtype.
    fn gradients(
        &self,
        ctx: &Backward,
        dh: Tensor,
        (dweight, dbias): (Tensor, Tensor),
    ) -> Result<Vec<Option<Tensor>>> {
        let cast = |grad: &Tensor, position: usize| match &ctx.inputs[position] {
            Some(like) => dense_as(grad, like.dtype()).map(Some),
            None => Ok(None),
        };
        let (dweight, dbias) = (cast(&dweight, 1)?, cast(&dbias, 2)?);
        let dresidual = self.fused.then(|| dh.clone());
        Ok(vec![Some(dh), dweight, dbias, dresidual])
    }

    fn norm(&self, cols: usize) -> Norm {
        Norm { kind: self.kind, eps: self.eps, cols }
    }
}

impl Op for Normalise {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Layer => "layer_norm",
            Kind::Rms => "rms_norm",
        }
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let op = self.name();
        let x = required(op, inputs, 0, "x")?;
        check_float(op, "x", x)?;
        let cols = hook::last_dim(op, "x", x)?;
        if cols == 0 {
            return Err(Error::shape(op, "x", x.shape(), "a last dimension of at least 1"));
        }
        for (position, arg) in [(1, "weight"), (2, "bias")] {
            if let Some(values) = hook::given(inputs, position) {
                check_float(op, arg, values)?;
                check_shape(op, arg, values, &[cols])?;
            }
        }
        if self.eps.is_nan() || self.eps < 0.0 {
            return Err(Error::argument(op, "eps", self.eps, "0 or more"));
        }
        let mut outputs = vec![Meta::new(x.shape(), x.dtype())];
        if self.fused {
            check_like(op, ("residual", required(op, inputs, 3, "residual")?), ("x", x))?;
            outputs.push(outputs[0].clone());
        }
        Ok(outputs)
    }

    fn saves(&self) -> Saves {
        match self.fused {
            false => Saves::inputs(&[0, 1, 2]),
            true => Saves::inputs(&[1, 2]).and_outputs(&[1]),
        }
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = dense(required(self.name(), inputs, 0, "x")?)?;
        let residual = hook::given(inputs, 3).map(dense).transpose()?;
        let norm = self.norm(x.dims()[x.rank() - 1]);
        let working = x.dtype().accumulator();
        let weight = optional_as(hook::given(inputs, 1), working)?;
        let bias = optional_as(hook::given(inputs, 2), working)?;
        let (y, sum) = outputs.split_at_mut(1);
        if x.device().is_cuda() {
            let (residual, weight, bias) = (residual.as_ref(), weight.as_ref(), bias.as_ref());
            let args = cuda::Forward { norm, x: &x, residual, weight, bias };
            return cuda::forward(&args, &mut y[0], sum.first_mut());
        }
        match_float!(self.name(), x.dtype(), T => {
            let args = cpu::Forward {
                norm,
                x: x.as_slice::<T>()?,
                residual: residual.as_ref().map(|r| r.as_slice()).transpose()?,
                weight: weight.as_ref().map(|w| w.as_slice()).transpose()?,
                bias: bias.as_ref().map(|b| b.as_slice()).transpose()?,
            };
            let sum = sum.first_mut().map(|sum| sum.as_slice_mut()).transpose()?;
            cpu::forward(&args, y[0].as_slice_mut()?, sum);
        }, f64 => {
            let h = match (&residual, sum.first_mut()) {
                (Some(residual), Some(sum)) => {
                    let added = no_grad(|| x.add(residual))?;
                    sum.as_slice_mut::<f64>()?.copy_from_slice(added.as_slice()?);
                    added
                }
                _ => x,
            };
            let weight = weight.as_ref().map(|w| w.as_slice()).transpose()?;
            let bias = bias.as_ref().map(|b| b.as_slice()).transpose()?;
            reference::forward::<f64>(&norm, h.as_slice()?, weight, bias, y[0].as_slice_mut()?);
        });
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let h = dense(if self.fused { ctx.output(1)? } else { ctx.input(0)? })?;
        let dy = dense(&ctx.grad_or_zeros(0, &h)?)?;
        let dsum = ctx.grads.get(1).and_then(Option::as_ref).map(dense).transpose()?;
        let cols = h.dims()[h.rank() - 1];
        let norm = self.norm(cols);
        let working = h.dtype().accumulator();
        let weight = optional_as(ctx.inputs[1].as_ref(), working)?;
        let mut dh = empty_like(&h)?;
        if h.device().is_cuda() {
            let (dsum, weight) = (dsum.as_ref(), weight.as_ref());
            let args = cuda::Backward { norm, h: &h, dy: &dy, dsum, weight };
            let sums = cuda::backward(&args, &mut dh)?;
            return self.gradients(ctx, dh, sums);
        }
        let mut dweight = Tensor::zeros([cols], working, &h.device())?;
        let mut dbias = Tensor::zeros([cols], working, &h.device())?;
        match_float!(self.name(), h.dtype(), T => {
            let args = cpu_backward::Backward {
                norm,
                h: h.as_slice::<T>()?,
                dy: dy.as_slice()?,
                dsum: dsum.as_ref().map(|d| d.as_slice()).transpose()?,
                weight: weight.as_ref().map(|w| w.as_slice()).transpose()?,
            };
            let sums = (dweight.as_slice_mut()?, dbias.as_slice_mut()?);
            cpu_backward::backward(&args, dh.as_slice_mut()?, sums);
        }, f64 => {
            let rows = (h.as_slice::<f64>()?, dy.as_slice()?);
            let weight = weight.as_ref().map(|w| w.as_slice()).transpose()?;
            let sums = (dweight.as_slice_mut()?, dbias.as_slice_mut()?);
            reference::backward(&norm, rows, weight, dh.as_slice_mut()?, sums);
            if let Some(dsum) = &dsum {
                let more = dsum.as_slice::<f64>()?;
                dh.as_slice_mut::<f64>()?.iter_mut().zip(more).for_each(|(dh, more)| *dh += more);
            }
        });
        self.gradients(ctx, dh, (dweight, dbias))
    }
}

const INPUTS: &[Arg] = &[
    Arg::float("x", "... cols"),
    Arg::float("weight", "cols").optional(),
    Arg::float("bias", "cols").optional(),
    Arg::float("residual", "... cols").optional(),
];

fn call(kind: Kind, args: &Args) -> Result<Vec<Option<Tensor>>> {
    let x = args.input("x")?;
    let affine = Affine { weight: args.optional("weight"), bias: args.optional("bias") };
    let eps = args.float("eps")?.unwrap_or(1e-5);
    match args.optional("residual") {
        None => Ok(vec![Some(norm(kind, x, affine, eps)?), None]),
        Some(residual) => {
            let (y, sum) = add_norm(kind, (x, residual), affine, eps)?;
            Ok(vec![Some(y), Some(sum)])
        }
    }
}

/// The operators of this folder for the operator runner.
pub const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "rms_norm",
        summary: "h / sqrt(mean(h^2) + eps) * weight + bias with h = x + residual",
        inputs: INPUTS,
        attributes: &[Attr::new("eps", Value::Float, "1e-5", "added to the mean square")],
        outputs: &["y", "residual_out"],
        call: |args| call(Kind::Rms, args),
    },
    OpSpec {
        name: "layer_norm",
        summary: "(h - mean(h)) / sqrt(var(h) + eps) * weight + bias with h = x + residual",
        inputs: INPUTS,
        attributes: &[Attr::new("eps", Value::Float, "1e-5", "added to the variance")],
        outputs: &["y", "residual_out"],
        call: |args| call(Kind::Layer, args),
    },
];
