//! Dropout on a GPU, with the processor's mask.

use super::Dropout;
use danaus_runtime::cuda::{Argument, Defines, Header, Launch, Source, Variant};
use danaus_tensor::cuda::{PHILOX, SCALAR, device_type};
use danaus_tensor::{Result, Tensor};

const HEADERS: &[Header] = &[SCALAR, PHILOX];
static SOURCE: Source = Source::new("dropout.cuh", include_str!("dropout.cuh"), HEADERS);

/// The mask on the contiguous `x`.
pub(super) fn apply(dropout: &Dropout, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let count = x.elem_count();
    if count == 0 {
        return Ok(());
    }
    let gpu = x.gpu()?.clone();
    let defines = Defines::new().set("ELEMENT", device_type("dropout", x.dtype())?);
    let (from, to) = (x.device_address()?, y.device_address_mut()?);
    let (elements, threshold, scale) = (count as i64, dropout.threshold(), dropout.scale());
    let arguments: [&dyn Argument; 7] =
        [&from, &to, &elements, &dropout.seed, &dropout.stream, &threshold, &scale];
    let blocks = u32::try_from(count.div_ceil(4 * 256)).unwrap_or(u32::MAX);
    let kernel = gpu.kernel(&SOURCE, "drop", &defines)?;
    // SAFETY: both tensors are contiguous with `count` elements; the output is fresh.
    unsafe { kernel.launch(&Launch::linear(blocks, 256), &arguments) }.map_err(Into::into)
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    let kinds = ["float", "bf16", "double"];
    kinds.map(|kind| Variant::new(SOURCE.clone(), Defines::new().set("ELEMENT", kind))).to_vec()
}
