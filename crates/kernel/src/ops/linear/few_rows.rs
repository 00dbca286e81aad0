//! Products with one to four rows on a GPU, as in decoding: W is streamed once, everything else is small.
//!
//! The library reads W at a lower rate here, and needs further launches for residuals and for sums over
//! parts of k.

use danaus_runtime::cuda::{Argument, Defines, Header, Launch, Source, Variant};
use danaus_tensor::cuda::{SCALAR, device_type};
use danaus_tensor::{DType, Result, Tensor};

const HEADERS: &[Header] = &[SCALAR];
static SOURCE: Source = Source::new("few_rows.cuh", include_str!("few_rows.cuh"), HEADERS);

/// Most rows of x.
pub(super) const MOST: usize = 4;
/// Rows of W that a block has, and its threads.
const BLOCK_ROWS: usize = 4;
const THREADS: u32 = 128;

fn defines(kind: &str, rows: usize) -> Defines {
    Defines::new().set("ELEMENT", kind).set("ROWS", rows)
}

/// Whether the kernel serves a product of contiguous matrices.
pub(super) fn serves(x: &Tensor, weight: &Tensor, rows: usize) -> Result<bool> {
    let dtype = weight.dtype();
    let row = weight.dims()[1] * dtype.size();
    let aligned = [x, weight].into_iter().map(Tensor::device_address);
    let aligned = aligned.collect::<Result<Vec<_>>>()?.iter().all(|at| at.is_multiple_of(16));
    Ok((1..=MOST).contains(&rows)
        && x.dtype() == dtype
        && matches!(dtype, DType::BF16 | DType::F32)
        && aligned
        && row.is_multiple_of(16)
        && i32::try_from(weight.dims()[0]).is_ok()
        && i32::try_from(row / 16).is_ok())
}

/// Writes `y = x weight^T + bias + residual`.
pub(super) fn product(
    x: &Tensor,
    weight: &Tensor,
    [bias, residual]: [Option<&Tensor>; 2],
    y: &mut Tensor,
) -> Result<()> {
    let (out, row) = (weight.dims()[0], weight.dims()[1] * weight.dtype().size());
    let rows = y.elem_count() / out.max(1);
    let optional = |tensor: Option<&Tensor>| tensor.map_or(Ok(0), Tensor::device_address);
    let gpu = y.gpu()?.clone();
    let kernel =
        gpu.kernel(&SOURCE, "few_rows", &defines(device_type("linear", x.dtype())?, rows))?;
    let launch = Launch::linear(out.div_ceil(BLOCK_ROWS) as u32, THREADS).overlapping(&gpu);
    let (from, weights) = (x.device_address()?, weight.device_address()?);
    let (bias, residual) = (optional(bias)?, optional(residual)?);
    let (to, out, pieces) = (y.device_address_mut()?, out as i32, (row / 16) as i32);
    // In a graph, weights that were there before it are not written by what is in front.
    let early = i32::from(weight.precedes_capture());
    let arguments: [&dyn Argument; 8] =
        [&from, &weights, &bias, &residual, &to, &out, &pieces, &early];
    // SAFETY: all are contiguous and of the shapes that were checked; the kernel waits for the one in front
    // before it reads what that may have written.
    unsafe { kernel.launch(&launch, &arguments) }.map_err(Into::into)
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    let kinds = ["bf16", "float"];
    let all = kinds.into_iter().flat_map(|kind| (1..=MOST).map(move |rows| defines(kind, rows)));
    all.map(|defines| Variant::new(SOURCE.clone(), defines)).collect()
}
