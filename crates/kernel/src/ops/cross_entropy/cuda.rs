//! Cross-entropy on a GPU: one block a token, logits are read once each way. The number of tokens
//! that count stays on the device; targets are checked there.

use super::{CrossEntropy, Options, Reduction};
use danaus_runtime::cuda::blas::{MatMul, Matrix, Type, matmul};
use danaus_runtime::cuda::{Argument, Defines, Header, Launch, Source, Variant, fault};
use danaus_tensor::cuda::{BLOCK, SCALAR, device_type};
use danaus_tensor::ops::evaluate_into;
use danaus_tensor::ops::expr::Expr;
use danaus_tensor::{DType, Error, Result, Tensor, no_grad};

const OP: &str = "cross_entropy";
const HEADERS: &[Header] = &[SCALAR, BLOCK, fault::HEADER];
static SOURCE: Source =
    Source::new("cross_entropy.cuh", include_str!("cross_entropy.cuh"), HEADERS);

/// The kernel's `Loss`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Loss {
    ignore: i64,
    smoothing: f64,
    z_loss: f64,
    vocab: i32,
    pad: i32,
}

// SAFETY: plain numbers in the order of the kernel's struct.
unsafe impl Argument for Loss {}

impl Loss {
    fn new(args: &CrossEntropy) -> Result<Self> {
        let vocab = i32::try_from(args.vocab)
            .map_err(|_| Error::not_on_cuda(OP, "a vocabulary of more than 2^31 entries"))?;
        let CrossEntropy { ignore_index, label_smoothing, z_loss, .. } = *args;
        Ok(Self { ignore: ignore_index, smoothing: label_smoothing, z_loss, vocab, pad: 0 })
    }
}

fn launch(tokens: usize) -> Result<Launch> {
    let blocks = i32::try_from(tokens)
        .map_err(|_| Error::not_on_cuda(OP, "a batch of more than 2^31 tokens"))?;
    Ok(Launch::linear(blocks as u32, 256))
}

/// Targets as contiguous i64.
fn wide(targets: &Tensor) -> Result<Tensor> {
    targets.detach().to_dtype(DType::I64)?.contiguous()
}

/// 1 / (number of tokens that count), at most 1, as a scalar of the given dtype on the device.
fn factor(options: &Options, targets: &Tensor, dtype: DType) -> Result<Tensor> {
    let ignored = Tensor::scalar(options.ignore_index, &targets.device())?;
    let counted = wide(targets)?.ne(&ignored)?.to_dtype(DType::F64)?.sum_all()?;
    let mut factor = Tensor::empty([], DType::F64, &targets.device())?;
    let one = Expr::constant(1.0);
    let most = Expr::input(0).binary(danaus_tensor::ops::expr::Binary::Max, &one);
    evaluate_into(&[one / most], &[&counted], std::slice::from_mut(&mut factor))?;
    factor.to_dtype(dtype)
}

/// Writes loss and lse from contiguous logits.
pub(super) fn forward(
    options: &Options,
    logits: &Tensor,
    targets: &Tensor,
    loss: &mut Tensor,
    lse: &mut Tensor,
) -> Result<()> {
    let args = Loss::new(&options.for_vocab(logits.dims()[logits.rank() - 1]))?;
    let (targets, tokens) = (wide(targets)?, lse.elem_count());
    let mut losses = Tensor::empty(lse.shape(), lse.dtype(), &lse.device())?;
    if tokens > 0 {
        self::losses(&args, logits, &targets, &mut losses, lse)?;
    }
    no_grad(|| {
        let result = match options.reduction {
            Reduction::None => losses,
            Reduction::Sum => losses.sum_all()?,
            Reduction::Mean => losses.sum_all()?.mul(&factor(options, &targets, lse.dtype())?)?,
        };
        evaluate_into(&[Expr::input(0)], &[&result], std::slice::from_mut(loss))
    })
}

/// The gradient of contiguous logits from the cotangents of loss and lse.
pub(super) fn backward(
    options: &Options,
    logits: &Tensor,
    targets: &Tensor,
    lse: &Tensor,
    (dloss, dlse): (Option<&Tensor>, &Tensor),
    dlogits: &mut Tensor,
) -> Result<()> {
    let args = Loss::new(&options.for_vocab(logits.dims()[logits.rank() - 1]))?;
    let (targets, tokens) = (wide(targets)?, lse.elem_count());
    if tokens == 0 {
        return Ok(());
    }
    let mut dloss = super::spread(dloss, lse, 1.0)?;
    if options.reduction == Reduction::Mean {
        dloss = no_grad(|| dloss.mul(&factor(options, &targets, lse.dtype())?))?;
    }
    let (dloss, dlse) = (dloss.contiguous()?, dlse.contiguous()?);
    let known = Known { logits, targets: &targets, lse, dloss: &dloss, dlse: Some(&dlse) };
    gradient(&args, &known, tokens, dlogits)
}

/// What the gradient of contiguous logits is made from, all contiguous.
#[derive(Clone, Copy)]
struct Known<'a> {
    logits: &'a Tensor,
    targets: &'a Tensor,
    lse: &'a Tensor,
    dloss: &'a Tensor,
    dlse: Option<&'a Tensor>,
}

/// Writes the gradient, which may have a narrower type than the logits.
fn gradient(args: &Loss, known: &Known, tokens: usize, dlogits: &mut Tensor) -> Result<()> {
    let Known { logits, targets, lse, dloss, dlse } = *known;
    let gpu = logits.gpu()?.clone();
    let kernel = gpu.kernel(&SOURCE, "backward", &defines(logits.dtype(), dlogits.dtype())?)?;
    let (z, t, log) = (logits.device_address()?, targets.device_address()?, lse.device_address()?);
    let (g, h) = (dloss.device_address()?, dlse.map_or(Ok(0), Tensor::device_address)?);
    let to = dlogits.device_address_mut()?;
    let arguments: [&dyn Argument; 7] = [&z, &t, &log, &g, &h, &to, args];
    // SAFETY: as in `forward`; bad targets change nothing but their own row.
    unsafe { kernel.launch(&launch(tokens)?, &arguments) }.map_err(Into::into)
}

fn defines(logits: DType, gradient: DType) -> Result<Defines> {
    let kinds = (device_type(OP, logits)?, device_type(OP, gradient)?);
    Ok(Defines::new().set("ELEMENT", kinds.0).set("GRADIENT", kinds.1))
}

/// Losses and log-sum-exps of a chunk of contiguous logits.
fn losses(
    args: &Loss,
    logits: &Tensor,
    targets: &Tensor,
    losses: &mut Tensor,
    lse: &mut Tensor,
) -> Result<()> {
    let gpu = logits.gpu()?.clone();
    let kernel = gpu.kernel(&SOURCE, "forward", &defines(logits.dtype(), logits.dtype())?)?;
    let (z, t) = (logits.device_address()?, targets.device_address()?);
    let (to, log) = (losses.device_address_mut()?, lse.device_address_mut()?);
    let check = gpu.check(OP, "targets");
    let arguments: [&dyn Argument; 7] = [&z, &t, &to, &log, args, &check.address, &check.number];
    // SAFETY: logits are contiguous with one row of `vocab` a token; outputs are fresh; targets are
    // checked by the kernel.
    unsafe { kernel.launch(&launch(lse.elem_count())?, &arguments) }.map_err(Into::into)
}

/// Elements of a chunk of logits of the fused loss: enough rows for fast products, little memory.
const CHUNK: usize = 1 << 27;

/// The fused linear layer and loss: `loss`, and the gradients of x and weight where there are places.
///
/// Logits and losses are f32 for bf16 inputs; the gradient of the logits is rounded to bf16 before its
/// two products, whose sums are f32.
pub(super) fn linear(
    options: &Options,
    [x, weight, targets]: [&Tensor; 3],
    loss: &mut Tensor,
    grads: &mut [Tensor],
) -> Result<()> {
    let (vocab, dim, sum) = (weight.dims()[0], weight.dims()[1], loss.dtype());
    let (args, targets) = (Loss::new(&options.for_vocab(vocab))?, wide(targets)?);
    let (tokens, device) = (targets.elem_count(), x.device());
    let factor = match options.reduction {
        Reduction::Mean => factor(options, &targets, sum)?,
        _ => Tensor::full(1.0, [], &device)?.to_dtype(sum)?,
    };
    let (x, targets) = (x.reshape([tokens, dim])?, targets.flatten(0, -1)?);
    let rows = (CHUNK / vocab).clamp(1024, 8192).min(tokens.max(1));
    let dloss = factor.broadcast_to([rows])?.contiguous()?;
    let mut total = Tensor::zeros([], sum, &device)?;
    let (mut parts, mut weights) = (Vec::new(), None);
    for start in (0..tokens).step_by(rows) {
        let count = rows.min(tokens - start);
        let chunk = x.narrow(0, start, count)?;
        let of_chunk = targets.narrow(0, start, count)?.contiguous()?;
        let mut logits = Tensor::empty([count, vocab], sum, &device)?;
        product((&chunk, false), (weight, true), &mut logits, false)?;
        let mut own = Tensor::empty([count], sum, &device)?;
        let mut lse = Tensor::empty([count], sum, &device)?;
        losses(&args, &logits, &of_chunk, &mut own, &mut lse)?;
        total = total.add(&own.sum_all()?)?;
        if grads.is_empty() {
            continue;
        }
        let dloss = dloss.narrow(0, 0, count)?;
        let known =
            Known { logits: &logits, targets: &of_chunk, lse: &lse, dloss: &dloss, dlse: None };
        let mut dlogits = Tensor::empty([count, vocab], x.dtype(), &device)?;
        gradient(&args, &known, count, &mut dlogits)?;
        let mut dx = Tensor::empty([count, dim], x.dtype(), &device)?;
        product((&dlogits, false), (weight, false), &mut dx, false)?;
        parts.push(dx);
        let adds = weights.is_some();
        let mut dweight = match weights.take() {
            Some(sums) => sums,
            None => Tensor::empty([vocab, dim], sum, &device)?,
        };
        product((&dlogits, true), (&chunk, false), &mut dweight, adds)?;
        weights = Some(dweight);
    }
    let result = total.mul(&factor)?;
    evaluate_into(&[Expr::input(0)], &[&result], std::slice::from_mut(loss))?;
    if let [dx, dweight] = grads {
        *dx = match &parts[..] {
            [] => Tensor::zeros(dx.shape(), dx.dtype(), &device)?,
            parts => Tensor::cat(&parts.iter().collect::<Vec<_>>(), 0)?.reshape(dx.shape())?,
        };
        *dweight = match weights {
            Some(sums) => sums.to_dtype(dweight.dtype())?,
            None => Tensor::zeros(dweight.shape(), dweight.dtype(), &device)?,
        };
    }
    Ok(())
}

/// `out (+)= a b`, each factor given as stored and whether it is used transposed; sums and `out` in the
/// accumulator's type.
fn product(a: (&Tensor, bool), b: (&Tensor, bool), out: &mut Tensor, adds: bool) -> Result<()> {
    let matrix = |(tensor, transposed): (&Tensor, bool)| -> Result<Matrix> {
        let (address, columns) = (tensor.device_address()?, tensor.dims()[1] as i64);
        let (row_stride, col_stride) = if transposed { (1, columns) } else { (columns, 1) };
        Ok(Matrix { address, row_stride, col_stride, batch_stride: 0 })
    };
    let inner = a.0.dims()[if a.1 { 0 } else { 1 }];
    let (m, n) = (out.dims()[0], out.dims()[1]);
    let kind = |dtype: DType| match dtype {
        DType::F64 => Type::F64,
        DType::F32 => Type::F32,
        _ => Type::Bf16,
    };
    let gpu = out.gpu()?.clone();
    let (left, right) = (matrix(a)?, matrix(b)?);
    let to = Matrix {
        address: out.device_address_mut()?,
        row_stride: n as i64,
        col_stride: 1,
        batch_stride: 0,
    };
    let problem = MatMul {
        output: kind(out.dtype()),
        beta: if adds { 1.0 } else { 0.0 },
        tf32: danaus_tensor::cuda::tf32(),
        ..MatMul::new([m, n, inner], kind(a.0.dtype()), left, right, to)
    };
    // SAFETY: the matrices are contiguous tensors of these sides; `out` is not shared.
    unsafe { matmul(&gpu, &problem) }.map_err(Into::into)
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    let kinds = [DType::F32, DType::BF16, DType::F64].map(|dtype| (dtype, dtype));
    let all = kinds.into_iter().chain([(DType::F32, DType::BF16)]);
    let defines = all.filter_map(|(logits, gradient)| defines(logits, gradient).ok());
    defines.map(|defines| Variant::new(SOURCE.clone(), defines)).collect()
}
