//! Softmax cross-entropy over logits `[tokens, vocab]` and targets `[tokens]`.
//!
//! With `lse = ln(sum_j e^(z_j))`, target t and label smoothing e, the loss of a token is
//!
//! `lse - (1 - e) z_t - e / vocab sum_j z_j + z_loss lse^2`
//!
//! (smoothing: Szegedy et al. 2016; z-loss: PaLM, Chowdhery et al. 2022). Tokens whose target is
//! `ignore_index` have loss 0 and no gradient. The mean divides by the number of the others; where
//! there are none it is 0, so that an empty micro-batch does not poison a run.
//!
//! The forward pass reads the logits once (maximum and sum are carried along in blocks) and keeps
//! `loss` and `lse`, f32 per token; probabilities are never stored. The backward pass reads the
//! logits once more and writes their gradient. Sums are f32 for f32 and bf16, f64 for f64. A NaN or
//! plus infinity among the logits makes the loss NaN; minus infinity is a masked class.

pub mod cpu;
pub(crate) mod cuda;
pub mod linear;
pub mod reference;

#[cfg(test)]
mod tests;

use crate::hook::{
    self, check_float, check_shape, dense, empty_like, integers, match_float, required,
};
use danaus_runtime::pool::Scratch;
use danaus_tensor::registry::{Arg, Args, Attr, Kind, OpSpec};
use danaus_tensor::{Backward, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply};

/// What the loss adds up, per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Classes: length of a row of logits.
    pub vocab: usize,
    /// Target of tokens without a loss.
    pub ignore_index: i64,
    /// Weight of the uniform distribution in the target, in [0, 1).
    pub label_smoothing: f64,
    /// Weight of lse^2.
    pub z_loss: f64,
}

/// How the losses of the tokens become the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Divided by the number of tokens that are not ignored.
    Mean,
    /// Added up.
    Sum,
    /// One loss a token.
    None,
}

impl Reduction {
    /// Factor of every token's loss.
    pub(crate) fn factor(self, ignore_index: i64, targets: &[i64]) -> f64 {
        match self {
            Reduction::Sum | Reduction::None => 1.0,
            Reduction::Mean => {
                let counted = targets.iter().filter(|&&target| target != ignore_index).count();
                1.0 / counted.max(1) as f64
            }
        }
    }

    /// The reduction of a name.
    fn from_name(op: &'static str, name: &str) -> Result<Self> {
        match name {
            "mean" => Ok(Reduction::Mean),
            "sum" => Ok(Reduction::Sum),
            "none" => Ok(Reduction::None),
            other => Err(Error::argument(op, "reduction", other, "mean, sum or none")),
        }
    }
}

/// Options of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Target of tokens without a loss; -100 by default.
    pub ignore_index: i64,
    /// Weight of the uniform distribution in the target, in [0, 1).
    pub label_smoothing: f64,
    /// Weight of lse^2; 0 or more.
    pub z_loss: f64,
    /// What becomes of the tokens' losses.
    pub reduction: Reduction,
}

impl Default for Options {
    fn default() -> Self {
        let reduction = Reduction::Mean;
        Self { ignore_index: -100, label_smoothing: 0.0, z_loss: 0.0, reduction }
    }
}

impl Options {
    /// Refuses values out of range.
    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        if !(0.0..1.0).contains(&self.label_smoothing) {
            let valid = "0 or more and below 1";
            return Err(Error::argument(op, "label_smoothing", self.label_smoothing, valid));
        }
        if self.z_loss.is_nan() || self.z_loss < 0.0 {
            return Err(Error::argument(op, "z_loss", self.z_loss, "0 or more"));
        }
        Ok(())
    }

    pub(crate) fn for_vocab(&self, vocab: usize) -> CrossEntropy {
        let Options { ignore_index, label_smoothing, z_loss, .. } = *self;
        CrossEntropy { vocab, ignore_index, label_smoothing, z_loss }
    }

    /// The targets, each a class or `ignore_index`.
    pub(crate) fn targets(
        &self,
        op: &'static str,
        targets: &Tensor,
        vocab: usize,
    ) -> Result<Vec<i64>> {
        let targets = integers(op, "targets", targets)?;
        let known = |target: &i64| {
            *target == self.ignore_index || usize::try_from(*target).is_ok_and(|t| t < vocab)
        };
        if let Some(target) = targets.iter().find(|target| !known(target)) {
            let valid = format!("a class below {vocab}, or ignore_index = {}", self.ignore_index);
            return Err(Error::argument(op, "targets", target, valid));
        }
        Ok(targets)
    }

    /// The reduced losses: one value, or one a token.
    pub(crate) fn reduce<T: num_traits::Float>(&self, losses: &[T], factor: f64, out: &mut [T]) {
        if self.reduction == Reduction::None {
            return out.copy_from_slice(losses);
        }
        // In f64 and in order: a sum of a million f32 losses keeps its digits.
        let sum: f64 = losses.iter().filter_map(|loss| loss.to_f64()).sum();
        out[0] = T::from(sum * factor).unwrap_or_else(T::nan);
    }
}

/// `(loss, lse)`: the loss is a scalar, or one value a token with `Reduction::None`; `lse` is the
/// log-sum-exp of every token. `logits` is `[.., vocab]`, `targets` (i32 or i64) `[..]`. Both results
/// are f32 (f64 for f64) and differentiable.
///
/// # Errors
/// When shapes, dtypes, options or targets are not as stated.
pub fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    options: Options,
) -> Result<(Tensor, Tensor)> {
    hook::pair(apply(Loss(options), &[Some(logits), Some(targets)])?)
}

struct Loss(Options);

impl Op for Loss {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let op = self.name();
        let logits = required(op, inputs, 0, "logits")?;
        let targets = required(op, inputs, 1, "targets")?;
        check_float(op, "logits", logits)?;
        let vocab = hook::last_dim(op, "logits", logits)?;
        if vocab == 0 {
            return Err(Error::shape(op, "logits", logits.shape(), "at least one class"));
        }
        let tokens = &logits.dims()[..logits.rank() - 1];
        check_shape(op, "targets", targets, tokens)?;
        self.0.check(op)?;
        if targets.device().is_cuda() {
            hook::check_index(op, "targets", targets)?;
        } else {
            self.0.targets(op, targets, vocab)?;
        }
        let loss = if self.0.reduction == Reduction::None { tokens } else { &[] };
        let dtype = logits.dtype().accumulator();
        Ok(vec![Meta::new(loss, dtype), Meta::new(tokens, dtype)])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0, 1]).and_outputs(&[1])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let logits = dense(required(self.name(), inputs, 0, "logits")?)?;
        let args = self.0.for_vocab(hook::last_dim(self.name(), "logits", &logits)?);
        let targets = required(self.name(), inputs, 1, "targets")?;
        let [loss, lse] = outputs else {
            return Err(Error::internal("cross_entropy has two outputs"));
        };
        if logits.device().is_cuda() {
            return cuda::forward(&self.0, &logits, targets, loss, lse);
        }
        let targets = self.0.targets(self.name(), targets, args.vocab)?;
        let factor = self.0.reduction.factor(self.0.ignore_index, &targets);
        match_float!(self.name(), logits.dtype(), T => {
            let mut losses = Scratch::<f32>::new(targets.len());
            let inputs = (logits.as_slice::<T>()?, &targets[..]);
            cpu::forward(&args, inputs, (&mut losses, lse.as_slice_mut()?));
            self.0.reduce::<f32>(&losses, factor, loss.as_slice_mut()?);
        }, f64 => {
            let mut losses = Scratch::<f64>::new(targets.len());
            let inputs = (logits.as_slice::<f64>()?, &targets[..]);
            reference::forward(&args, inputs, (&mut losses, lse.as_slice_mut()?));
            self.0.reduce::<f64>(&losses, factor, loss.as_slice_mut()?);
        });
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let (logits, lse) = (dense(ctx.input(0)?)?, dense(ctx.output(1)?)?);
        if logits.device().is_cuda() {
            let dlse = dense(&ctx.grad_or_zeros(1, &lse)?)?;
            let (targets, grads) = (ctx.input(1)?, (ctx.grads[0].as_ref(), &dlse));
            let mut dlogits = empty_like(&logits)?;
            cuda::backward(&self.0, &logits, targets, &lse, grads, &mut dlogits)?;
            return Ok(vec![Some(dlogits), None]);
        }
        let args = self.0.for_vocab(hook::last_dim(self.name(), "logits", &logits)?);
        let targets = self.0.targets(self.name(), ctx.input(1)?, args.vocab)?;
        let factor = self.0.reduction.factor(self.0.ignore_index, &targets);
        let dloss = spread(ctx.grads[0].as_ref(), &lse, factor)?;
        let dlse = dense(&ctx.grad_or_zeros(1, &lse)?)?;
        let mut dlogits = empty_like(&logits)?;
        match_float!(self.name(), logits.dtype(), T => {
            let backward = cpu::Backward {
                args,
                targets: &targets,
                lse: lse.as_slice()?,
                dloss: dloss.as_slice()?,
                dlse: Some(dlse.as_slice()?),
            };
            cpu::backward::<T>(&backward, logits.as_slice()?, dlogits.as_slice_mut()?);
        }, f64 => {
            let inputs = (logits.as_slice::<f64>()?, &targets[..], lse.as_slice()?);
            let cotangents = (dloss.as_slice()?, dlse.as_slice()?);
            reference::backward(&args, inputs, cotangents, dlogits.as_slice_mut()?);
        });
        Ok(vec![Some(dlogits), None])
    }
}

/// The cotangent of every token's loss, from that of the reduced loss; shaped like `lse`.
pub(crate) fn spread(grad: Option<&Tensor>, lse: &Tensor, factor: f64) -> Result<Tensor> {
    match grad {
        None => Tensor::zeros(lse.shape(), lse.dtype(), &lse.device()),
        Some(grad) => dense(&grad.detach().affine(factor, 0.0)?.broadcast_to(lse.shape())?),
    }
}

/// Attributes of both forms of the loss.
pub(crate) const ATTRIBUTES: &[Attr] = &[
    Attr::new("ignore_index", Kind::Int, "-100", "target of tokens without a loss"),
    Attr::new("label_smoothing", Kind::Float, "0", "weight of the uniform target, in [0, 1)"),
    Attr::new("z_loss", Kind::Float, "0", "weight of lse^2"),
    Attr::new("reduction", Kind::Text, "mean", "mean (over tokens that count), sum or none"),
];

/// Reads [`ATTRIBUTES`].
pub(crate) fn options(op: &'static str, args: &Args) -> Result<Options> {
    Ok(Options {
        ignore_index: args.int("ignore_index")?.unwrap_or(-100),
        label_smoothing: args.float("label_smoothing")?.unwrap_or(0.0),
        z_loss: args.float("z_loss")?.unwrap_or(0.0),
        reduction: Reduction::from_name(op, args.text("reduction").unwrap_or("mean"))?,
    })
}

/// The operator of this folder for the operator runner.
pub const SPECS: &[OpSpec] = &[OpSpec {
    name: "cross_entropy",
    summary: "softmax cross-entropy with label smoothing and z-loss",
    inputs: &[Arg::float("logits", "... vocab"), Arg::int("targets", "...")],
    attributes: ATTRIBUTES,
    outputs: &["loss", "lse"],
    call: |args| {
        let options = options("cross_entropy", args)?;
        let (loss, lse) = cross_entropy(args.input("logits")?, args.input("targets")?, options)?;
        Ok(vec![Some(loss), Some(lse)])
    },
}];
