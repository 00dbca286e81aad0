//! Cross-entropy on a GPU: one block a token, logits are read once each way. The number of tokens
//! that count stays on the device; targets are checked there.

use super::{CrossEntropy, Options, Reduction};
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
        let gpu = logits.gpu()?.clone();
        let defines = Defines::new().set("ELEMENT", device_type(OP, logits.dtype())?);
        let kernel = gpu.kernel(&SOURCE, "forward", &defines)?;
        let (z, t) = (logits.device_address()?, targets.device_address()?);
        let (to, log) = (losses.device_address_mut()?, lse.device_address_mut()?);
        let check = gpu.check(OP, "targets");
        let arguments: [&dyn Argument; 7] =
            [&z, &t, &to, &log, &args, &check.address, &check.number];
        // SAFETY: logits are contiguous with one row of `vocab` a token; outputs are fresh; targets
        // are checked by the kernel.
        unsafe { kernel.launch(&launch(tokens)?, &arguments)? };
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
    let gpu = logits.gpu()?.clone();
    let defines = Defines::new().set("ELEMENT", device_type(OP, logits.dtype())?);
    let kernel = gpu.kernel(&SOURCE, "backward", &defines)?;
    let (z, t, log) = (logits.device_address()?, targets.device_address()?, lse.device_address()?);
    let (dloss, dlse) = (dloss.contiguous()?, dlse.contiguous()?);
    let (g, h, to) =
        (dloss.device_address()?, dlse.device_address()?, dlogits.device_address_mut()?);
    let arguments: [&dyn Argument; 7] = [&z, &t, &log, &g, &h, &to, &args];
    // SAFETY: as in `forward`; bad targets change nothing but their own row.
    unsafe { kernel.launch(&launch(tokens)?, &arguments) }.map_err(Into::into)
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    let kinds = ["float", "bf16", "double"];
    kinds.map(|kind| Variant::new(SOURCE.clone(), Defines::new().set("ELEMENT", kind))).to_vec()
}
