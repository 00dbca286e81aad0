//! The last linear layer and the cross-entropy in one operator, without the logits in memory.
//!
//! `linear_cross_entropy(x, weight, targets)` is the loss of the logits `x weight^T`, `x` being
//! `[.., dim]` and `weight` `[vocab, dim]`. Tokens are taken in chunks: product, loss, and, when
//! gradients are wanted, the gradient of the chunk's logits in their place and its two products, so
//! that one chunk of logits is all that ever exists (Hsu et al. 2024, Liger). The gradients are those
//! of the reduced loss, so the backward pass only scales them; per-token losses are therefore not
//! offered here. Logits and their gradient are f32 also for bf16 inputs (f64 for f64).

use super::cpu::{self, Backward as Cotangents};
use super::cuda;
use super::{ATTRIBUTES, CrossEntropy, Options, Reduction, options, reference};
use crate::hook::{self, check_dtype, check_float, check_shape, dense, listed, required};
use danaus_runtime::pool::Scratch;
use danaus_tensor::gemm::{self, Mat, MatMut, Output, Times};
use danaus_tensor::registry::{Arg, OpSpec};
use danaus_tensor::{
    Backward, DType, Element, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply, is_recording,
    no_grad,
};

const NAME: &str = "linear_cross_entropy";

/// Tokens of a chunk: 32 MiB of f32 logits, but enough rows for the products to be efficient.
fn chunk_rows(vocab: usize) -> usize {
    ((1 << 23) / vocab.max(1)).clamp(128, 4096)
}

/// The mean or sum of the tokens' losses, f32 (f64 for f64). Gradients flow to `x` and `weight`.
///
/// # Errors
/// When shapes, dtypes, options or targets do not fit, or the reduction is `None`.
pub fn linear_cross_entropy(
    x: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    options: Options,
) -> Result<Tensor> {
    let wanted = is_recording() && (x.is_tracked() || weight.is_tracked());
    hook::first(apply(Fused { options, wanted }, &[Some(x), Some(weight), Some(targets)])?)
}

/// Inputs: x, weight, targets. Outputs: loss, and the gradients of x and weight when wanted.
struct Fused {
    options: Options,
    wanted: bool,
}

impl Op for Fused {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = required(NAME, inputs, 0, "x")?;
        let weight = required(NAME, inputs, 1, "weight")?;
        let targets = required(NAME, inputs, 2, "targets")?;
        check_float(NAME, "x", x)?;
        check_dtype(NAME, ("weight", weight), ("x", x))?;
        let dim = hook::last_dim(NAME, "x", x)?;
        if weight.rank() != 2 || weight.dims()[1] != dim || weight.dims()[0] == 0 {
            let expected = format!("[vocab, {dim}] with at least one class");
            return Err(Error::shape(NAME, "weight", weight.shape(), expected));
        }
        check_shape(NAME, "targets", targets, &x.dims()[..x.rank() - 1])?;
        self.options.check(NAME)?;
        if targets.device().is_cuda() {
            hook::check_index(NAME, "targets", targets)?;
        } else {
            self.options.targets(NAME, targets, weight.dims()[0])?;
        }
        if self.options.reduction == Reduction::None {
            let remedy = "use linear and cross_entropy one after the other";
            return Err(Error::unsupported(NAME, "reduction none", remedy));
        }
        let loss = Meta::new([], x.dtype().accumulator());
        let grads = [Meta::new(x.shape(), x.dtype()), Meta::new(weight.shape(), x.dtype())];
        let grads = grads.into_iter().filter(|_| self.wanted);
        Ok(std::iter::once(loss).chain(grads).collect())
    }

    fn workspace_bytes(&self, inputs: Inputs) -> usize {
        let weight = hook::given(inputs, 1).map_or(&[][..], |weight| weight.dims());
        let vocab = weight.first().copied().unwrap_or(0);
        let sums = if self.wanted { weight.iter().product::<usize>() } else { 0 };
        8 * (chunk_rows(vocab) * vocab + sums)
    }

    fn saves(&self) -> Saves {
        Saves::none().and_outputs(&[1, 2])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = dense(required(NAME, inputs, 0, "x")?)?;
        let weight = dense(required(NAME, inputs, 1, "weight")?)?;
        let targets = required(NAME, inputs, 2, "targets")?;
        let (loss, grads) = outputs.split_at_mut(1);
        let loss = &mut loss[0];
        if x.device().is_cuda() {
            let inputs = [&x, &weight, targets];
            return no_grad(|| cuda::linear(&self.options, inputs, loss, grads));
        }
        let targets = self.options.targets(NAME, targets, weight.dims()[0])?;
        match x.dtype() {
            DType::F32 => run::<f32, f32>(&self.options, (&x, &weight, &targets), loss, grads),
            DType::F64 => run::<f64, f64>(&self.options, (&x, &weight, &targets), loss, grads),
            _ => {
                use half::bf16;
                run::<bf16, f32>(&self.options, (&x, &weight, &targets), loss, grads)
            }
        }
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(dloss) = &ctx.grads[0] else { return Ok(vec![None, None, None]) };
        if dloss.device().is_cuda() {
            // The factor stays where it is: reading it would wait for the device.
            let scaled = |position: usize| {
                let grad = ctx.output(position)?.detach();
                let wide = grad.dtype().accumulator();
                let factor = dloss.detach().to_dtype(wide)?;
                no_grad(|| grad.to_dtype(wide)?.mul(&factor)?.to_dtype(grad.dtype()))
            };
            return Ok(vec![Some(scaled(1)?), Some(scaled(2)?), None]);
        }
        let factor = dloss.to_scalar()?;
        let scaled = |position: usize| {
            let grad = ctx.output(position)?.detach();
            // A loss that is differentiated itself needs no pass over the gradients.
            if factor == 1.0 { Ok(grad) } else { grad.affine(factor, 0.0) }
        };
        Ok(vec![Some(scaled(1)?), Some(scaled(2)?), None])
    }
}

/// Types of logits.
trait Logit: Element + num_traits::Float + Output<Acc = Self> {
    fn forward(args: &CrossEntropy, z: &[Self], targets: &[i64], out: [&mut [Self]; 2]);
    /// Replaces logits by their gradient; every token's loss has the cotangent `dloss[token]`.
    fn backward(args: &CrossEntropy, z: &mut [Self], targets: &[i64], known: [&[Self]; 2]);
}

impl Logit for f32 {
    fn forward(args: &CrossEntropy, z: &[f32], targets: &[i64], [loss, lse]: [&mut [f32]; 2]) {
        cpu::forward(args, (z, targets), (loss, lse));
    }
    fn backward(args: &CrossEntropy, z: &mut [f32], targets: &[i64], [lse, dloss]: [&[f32]; 2]) {
        let cotangents = Cotangents { args: *args, targets, lse, dloss, dlse: None };
        cpu::backward_in_place(&cotangents, z);
    }
}

impl Logit for f64 {
    fn forward(args: &CrossEntropy, z: &[f64], targets: &[i64], [loss, lse]: [&mut [f64]; 2]) {
        reference::forward(args, (z, targets), (loss, lse));
    }
    fn backward(args: &CrossEntropy, z: &mut [f64], targets: &[i64], [lse, dloss]: [&[f64]; 2]) {
        let mut logits = Scratch::<f64>::new(z.len());
        logits.copy_from_slice(z);
        let dlse = vec![0.0; lse.len()];
        reference::backward(args, (&logits, targets, lse), (dloss, &dlse), z);
    }
}

/// All chunks: `T` is the type of x and weight, `A` that of logits and sums.
fn run<T, A>(
    options: &Options,
    (x, weight, targets): (&Tensor, &Tensor, &[i64]),
    loss: &mut Tensor,
    grads: &mut [Tensor],
) -> Result<()>
where
    T: Element + Times<T, Acc = A> + Output<Acc = A>,
    A: Logit + Times<T, Acc = A>,
{
    let (vocab, dim) = (weight.dims()[0], weight.dims()[1]);
    let args = options.for_vocab(vocab);
    let tokens = targets.len();
    let factor = options.reduction.factor(options.ignore_index, targets);
    let rows = chunk_rows(vocab).min(tokens);
    let zero = <A as num_traits::Zero>::zero();
    let one = <A as num_traits::One>::one();
    let mut logits = Scratch::<A>::new(rows * vocab);
    let (mut losses, mut lse) = (Scratch::<A>::new(tokens), Scratch::<A>::new(tokens));
    let dloss = vec![<A as num_traits::NumCast>::from(factor).unwrap_or(one); rows];
    let mut sums = Scratch::<A>::new(if grads.is_empty() { 0 } else { vocab * dim });
    let w = Mat::row_major(weight.as_slice::<T>()?.as_ptr(), vocab, dim);
    let x = x.as_slice::<T>()?;
    let mut dx = grads.first_mut().map(|dx| dx.as_slice_mut::<T>()).transpose()?;
    for start in (0..tokens).step_by(rows.max(1)) {
        let range = start..(start + rows).min(tokens);
        let count = range.len();
        let z = &mut logits[..count * vocab];
        let chunk = Mat::row_major(x[start * dim..].as_ptr(), count, dim);
        let out = MatMut::row_major(z.as_mut_ptr(), count, vocab);
        // SAFETY: the matrices lie in slices of their sizes, and `z` overlaps neither.
        unsafe { gemm::gemm_with(out, chunk, w.transposed(), &gemm::Options::default()) };
        let targets = &targets[range.clone()];
        A::forward(&args, z, targets, [&mut losses[range.clone()], &mut lse[range.clone()]]);
        let Some(dx) = &mut dx else { continue };
        A::backward(&args, z, targets, [&lse[range], &dloss[..count]]);
        let dz = Mat::row_major(z.as_ptr(), count, vocab);
        let out = MatMut::row_major(dx[start * dim..].as_mut_ptr(), count, dim);
        // SAFETY: as above; `dx` is a fresh output.
        unsafe { gemm::gemm_with(out, dz, w, &gemm::Options::default()) };
        let beta = if start == 0 { zero } else { one };
        let add = gemm::Options { beta, ..gemm::Options::default() };
        let out = MatMut::row_major(sums.as_mut_ptr(), vocab, dim);
        // SAFETY: as above; `sums` holds one value an entry of the weight.
        unsafe { gemm::gemm_with(out, dz.transposed(), chunk, &add) };
    }
    options.reduce::<A>(&losses, factor, loss.as_slice_mut()?);
    if let Some(dweight) = grads.get_mut(1) {
        let sums = Tensor::from_slice(&sums, [vocab, dim], &dweight.device())?;
        let sums = sums.to_dtype(dweight.dtype())?;
        dweight.as_slice_mut::<T>()?.copy_from_slice(sums.as_slice()?);
    }
    Ok(())
}

/// The operator of this file for the operator runner.
pub const SPECS: &[OpSpec] = &[OpSpec {
    name: NAME,
    summary: "cross-entropy of the logits x weight^T, which never exist as a whole",
    inputs: &[
        Arg::float("x", "... dim"),
        Arg::float("weight", "vocab dim"),
        Arg::int("targets", "..."),
    ],
    attributes: ATTRIBUTES,
    outputs: &["loss"],
    call: |args| {
        let (x, weight) = (args.input("x")?, args.input("weight")?);
        listed(linear_cross_entropy(x, weight, args.input("targets")?, options(NAME, args)?)?)
    },
}];
