//! Indexing on a GPU. Indices are checked by the kernels; a bad one is skipped there and reported by
//! the next call that waits for the device. Sums go in the order of the indices, without atomics.

use super::Split;
use crate::cuda::{SCALAR, bits_type, device_type};
use crate::{DType, Error, Result, Tensor};
use danaus_runtime::cuda::{Argument, Defines, Header, Launch, Source, Variant, fault};

const HEADERS: &[Header] = &[SCALAR, fault::HEADER];
static SOURCE: Source = Source::new("index.cuh", include_str!("index.cuh"), HEADERS);

/// Threads of a block.
const THREADS: usize = 256;

fn copies(dtype: DType) -> Defines {
    Defines::new().set("BITS", bits_type(dtype))
}

fn sums(op: &'static str, dtype: DType) -> Result<Defines> {
    let wide = match dtype {
        DType::F64 => "double",
        DType::F32 | DType::BF16 | DType::F16 => "float",
        DType::I64 | DType::I32 => "i64",
        other => return Err(Error::not_on_cuda(op, other)),
    };
    Ok(Defines::new().set("ELEMENT", device_type(op, dtype)?).set("WIDE", wide))
}

/// The indices as contiguous i64.
fn wide(index: &Tensor) -> Result<Tensor> {
    index.detach().to_dtype(DType::I64)?.contiguous()
}

fn launch(
    op: &'static str,
    entry: &str,
    defines: &Defines,
    blocks: usize,
    arguments: &[&dyn Argument],
    on: &Tensor,
) -> Result<()> {
    if blocks == 0 {
        return Ok(());
    }
    let gpu = on.gpu()?;
    let check = gpu.check(op, "index");
    let mut all = arguments.to_vec();
    all.extend([&check.address as &dyn Argument, &check.number]);
    let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
    let kernel = gpu.kernel(&SOURCE, entry, defines)?;
    // SAFETY: the callers pass contiguous tensors with the sides they state; indices are checked by
    // the kernel; outputs are fresh.
    unsafe { kernel.launch(&Launch::linear(blocks, THREADS as u32), &all) }.map_err(Into::into)
}

/// `y[o, n, i] = x[o, index[n], i]`.
pub(super) fn select(split: Split, x: &Tensor, index: &Tensor, out: &mut Tensor) -> Result<()> {
    let (x, index) = (x.detach().contiguous()?, wide(index)?);
    let count = index.elem_count();
    // Rows as wide elements where they allow it: fewer, larger accesses.
    let (from, places, to) =
        (x.device_address()?, index.device_address()?, out.device_address_mut()?);
    let row = split.inner * x.dtype().size();
    let unit = [16, 8, 4, 2]
        .into_iter()
        .find(|&unit| row.is_multiple_of(unit) && from.is_multiple_of(unit as u64));
    let unit = unit.unwrap_or(1);
    let kind = match unit {
        16 => "u128",
        8 => "u64",
        4 => "u32",
        2 => "u16",
        _ => "u8",
    };
    let [size, count, inner] = [split.size, count, row / unit].map(|side| side as i64);
    let blocks = if inner == 0 { 0 } else { split.outer * count as usize };
    let defines = Defines::new().set("BITS", kind);
    let arguments: [&dyn Argument; 6] = [&from, &places, &to, &size, &count, &inner];
    launch("index_select", "select_rows", &defines, blocks, &arguments, &x)
}

/// `y[o, m, i] = x[o, index[o, m, i], i]`; `count` indices along the dimension.
pub(super) fn gather(
    split: Split,
    count: usize,
    x: &Tensor,
    index: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let (x, index) = (x.detach().contiguous()?, wide(index)?);
    let (from, places, to) =
        (x.device_address()?, index.device_address()?, out.device_address_mut()?);
    let total = index.elem_count();
    let blocks = total.div_ceil(THREADS);
    let [total, size, count, inner] =
        [total, split.size, count, split.inner].map(|side| side as i64);
    let arguments: [&dyn Argument; 7] = [&from, &places, &to, &total, &size, &count, &inner];
    launch("gather", "gather", &copies(x.dtype()), blocks, &arguments, &x)
}

/// `out = x`, then `out[o, index[o, m, i], i] = src[o, m, i]` (or `+=`), in the order of m.
pub(super) fn scatter(
    (split, count, add): (Split, usize, bool),
    x: &Tensor,
    index: &Tensor,
    src: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let (index, src) = (wide(index)?, src.detach().contiguous()?);
    let op = if add { "scatter_add" } else { "scatter" };
    let defines = if add { sums(op, x.dtype())? } else { copies(x.dtype()) };
    super::super::copy::cuda::contiguous_into(x, out)?;
    let (places, from, to) =
        (index.device_address()?, src.device_address()?, out.device_address_mut()?);
    let columns = if count == 0 { 0 } else { split.outer * split.inner };
    let blocks = columns.div_ceil(THREADS);
    let [columns, size, count, inner] =
        [columns, split.size, count, split.inner].map(|side| side as i64);
    let arguments: [&dyn Argument; 7] = [&places, &from, &to, &columns, &size, &count, &inner];
    launch(op, op, &defines, blocks, &arguments, x)
}

/// `out = x`, then `out[o, index[n], i] += src[o, n, i]`.
pub(super) fn index_add(
    split: Split,
    x: &Tensor,
    index: &Tensor,
    src: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let (index, src) = (wide(index)?, src.detach().contiguous()?);
    let defines = sums("index_add", x.dtype())?;
    super::super::copy::cuda::contiguous_into(x, out)?;
    let count = index.elem_count();
    let (places, from, to) =
        (index.device_address()?, src.device_address()?, out.device_address_mut()?);
    let blocks = if split.inner == 0 { 0 } else { split.outer * count };
    let [size, count, inner] = [split.size, count, split.inner].map(|side| side as i64);
    let arguments: [&dyn Argument; 6] = [&places, &from, &to, &size, &count, &inner];
    launch("index_add", "add_rows", &defines, blocks, &arguments, x)
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    let moved = ["u8", "u16", "u32", "u64", "u128"].map(|kind| Defines::new().set("BITS", kind));
    let summed = [DType::F32, DType::BF16, DType::F64, DType::I64];
    let summed = summed.into_iter().filter_map(|dtype| sums("index_add", dtype).ok());
    moved.into_iter().chain(summed).map(|defines| Variant::new(SOURCE.clone(), defines)).collect()
}
