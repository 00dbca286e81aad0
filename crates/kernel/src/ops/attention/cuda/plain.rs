//! The kernels that serve every option on any chip: arguments and launches.
//!
//! Plain tiles in shared memory with sums in f32 (f64 for f64), no matrix units. They run where the
//! Hopper kernels do not: f32 and f64, head dims up to 256 of any size, values of another width, ALiBi,
//! sinks, dropout, masks, prefix lengths, paged caches.

use super::super::options::Attributes;
use super::super::prepare::{self, Prepared, readable};
use super::super::problem::{Sequence, WHOLE};
use super::params::Rows;
use super::{FAR, OP, PLAIN_PROBLEM, PLAIN_TILES, RowView, int};
use crate::lists::list;
use danaus_runtime::cuda::{Argument, Defines, Gpu, Header, Launch, Source, Variant};
use danaus_tensor::cuda::{BLOCK, PHILOX, SCALAR, device_type};
use danaus_tensor::{Backward, DType, Device, Error, Inputs, Result, Tensor};

const HEADERS: &[Header] = &[SCALAR, BLOCK, PHILOX, PLAIN_PROBLEM, PLAIN_TILES];
static FORWARD: Source = Source::new("plain.cuh", include_str!("../plain.cuh"), HEADERS);
static BACKWARD: Source =
    Source::new("plain_backward.cuh", include_str!("../plain_backward.cuh"), HEADERS);

/// Threads of the kernels with tiles.
const THREADS: u32 = 256;
/// The widest head.
const MAX_DIM: usize = 256;

/// `Problem` of `plain_problem.cuh`, field by field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct PlainProblem {
    pub sequences: u64,
    pub q: Rows,
    pub k: Rows,
    pub v: Rows,
    pub out: Rows,
    pub lse: u64,
    pub lse_batch: i64,
    pub lse_head: i64,
    pub lse_part: i64,
    pub pages: u64,
    pub per_sequence: i32,
    pub page_size: i32,
    pub slopes: u64,
    pub sinks: u64,
    pub block_mask: u64,
    pub mask_batch: i64,
    pub mask_head: i64,
    pub mask_columns: i32,
    pub block_size: i32,
    pub keep: u64,
    pub keep_q: i64,
    pub keep_k: i64,
    pub seed: u64,
    pub drop_offset: u32,
    pub threshold: u32,
    pub dropout: i32,
    pub slopes_per_batch: i32,
    pub batch: i32,
    pub heads: i32,
    pub kv_heads: i32,
    pub group: i32,
    pub head_dim: i32,
    pub value_dim: i32,
    pub window_left: i32,
    pub window_right: i32,
    pub part_keys: i32,
    pub pad: i32,
    pub softmax_scale: f64,
    pub softcap: f64,
    pub drop_scale: f64,
}

/// `Cotangents` of `plain_backward.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Cotangents {
    out: Rows,
    grad_out: Rows,
    grad_lse: u64,
    delta: u64,
    dq: Rows,
    dk: Rows,
    dv: Rows,
    grad_sinks: u64,
}

// SAFETY: plain fields in the order of the kernel's struct, without padding.
unsafe impl Argument for PlainProblem {}
// SAFETY: as above.
unsafe impl Argument for Cotangents {}

/// Shared memory of a block that the tiles may take.
fn shared_limit(arch_number: u32) -> usize {
    if arch_number >= 90 { 226 << 10 } else { 162 << 10 }
}

/// Instantiation of the kernels: widest head and side of the tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiles {
    dim: usize,
    side: usize,
    sum_bytes: usize,
}

impl Tiles {
    /// The largest tiles whose operands, `kept` of them, fit the chip.
    fn new(width: usize, sum_bytes: usize, (kept, squares): (usize, usize), limit: usize) -> Self {
        let dim = width.next_power_of_two().max(64);
        let fits = |&side: &usize| {
            let cells = kept * side * (dim + 1) + squares * side * (side + 1);
            sum_bytes * cells <= limit
        };
        let side = [64, 32].into_iter().find(fits).unwrap_or(16);
        Self { dim, side, sum_bytes }
    }

    pub(super) fn forward(width: usize, dtype: DType, gpu: &Gpu) -> Self {
        Self::new(width, sum_bytes(dtype), FORWARD_TILES, shared_limit(gpu.arch().number()))
    }

    fn backward(width: usize, dtype: DType, gpu: &Gpu) -> Self {
        Self::new(width, sum_bytes(dtype), BACKWARD_TILES, shared_limit(gpu.arch().number()))
    }

    fn shared_bytes(&self, (kept, squares): (usize, usize)) -> u32 {
        let cells = kept * self.side * (self.dim + 1) + squares * self.side * (self.side + 1);
        (self.sum_bytes * cells) as u32
    }

    fn defines(&self, element: &str) -> Defines {
        Defines::new().set("ELEMENT", element).set("DIM", self.dim).set("TILE", self.side)
    }
}

/// Operands and squares of scores in shared memory.
const FORWARD_TILES: (usize, usize) = (2, 1);
const BACKWARD_TILES: (usize, usize) = (4, 2);

fn sum_bytes(dtype: DType) -> usize {
    dtype.accumulator().size()
}

/// The sequences as the kernels read them; `Sequence` of `plain_problem.cuh`.
pub(super) fn sequence_list(sequences: &[Sequence], device: &Device) -> Result<Tensor> {
    let mut values = Vec::with_capacity(6 * sequences.len());
    for s in sequences {
        debug_assert_eq!(s.part, WHOLE);
        for size in [s.q_batch, s.q_start, s.q_len, s.kv_batch, s.k_start, s.k_len] {
            values.push(int(size)?);
        }
    }
    list(&values, device)
}

/// Tensors whose addresses a [`PlainProblem`] holds.
pub(super) struct Kept {
    tensors: Vec<Tensor>,
}

impl Kept {
    /// The address of a contiguous copy in this dtype, or 0 for none.
    fn address(&mut self, tensor: Option<&Tensor>, dtype: DType) -> Result<u64> {
        let Some(tensor) = tensor else { return Ok(0) };
        let dense = tensor.detach().to_dtype(dtype)?.contiguous()?;
        let address = dense.device_address()?;
        self.tensors.push(dense);
        Ok(address)
    }
}

/// What the options say, for kernels.
pub(super) fn scores(attributes: &Attributes, head_dim: usize) -> PlainProblem {
    let window = |side: Option<usize>| side.map_or(-1, |keys| keys.min(FAR) as i32);
    let none = Rows { data: 0, row_stride: 0, head_stride: 0, batch_stride: 0 };
    let scale = attributes.softmax_scale.unwrap_or_else(|| 1.0 / (head_dim as f64).sqrt());
    let threshold = (256.0 * (1.0 - attributes.p_drop)).round().clamp(1.0, 256.0) as u32;
    PlainProblem {
        sequences: 0,
        q: none,
        k: none,
        v: none,
        out: none,
        lse: 0,
        lse_batch: 0,
        lse_head: 0,
        lse_part: 0,
        pages: 0,
        per_sequence: 0,
        page_size: 1,
        slopes: 0,
        sinks: 0,
        block_mask: 0,
        mask_batch: 0,
        mask_head: 0,
        mask_columns: 0,
        block_size: 1,
        keep: 0,
        keep_q: 0,
        keep_k: 0,
        seed: attributes.seed,
        drop_offset: attributes.dropout_offset,
        threshold,
        dropout: i32::from(attributes.p_drop > 0.0),
        slopes_per_batch: 0,
        batch: 0,
        heads: 0,
        kv_heads: 0,
        group: 0,
        head_dim: 0,
        value_dim: 0,
        window_left: window(attributes.window.left),
        window_right: window(attributes.window.right),
        part_keys: 0,
        pad: 0,
        softmax_scale: scale,
        softcap: attributes.softcap.unwrap_or(0.0),
        drop_scale: 256.0 / f64::from(threshold),
    }
}

/// The problem without its output; what it points to lives in the second part.
fn problem(
    prepared: &Prepared,
    input: impl Fn(usize) -> Option<Tensor>,
) -> Result<(PlainProblem, Kept)> {
    let sizes = &prepared.sizes;
    check_dims(OP, [sizes.head_dim, sizes.value_dim])?;
    let operand = |position: usize| {
        let found = input(position).as_ref().map(readable).transpose()?;
        found.ok_or_else(|| Error::internal("attention runs after its arguments are checked"))
    };
    let (q, k, v) = (operand(prepare::Q)?, operand(prepare::K)?, operand(prepare::V)?);
    let sequences = sequence_list(&prepared.sequences, &q.device())?;
    let sum = q.dtype().accumulator();
    let mut kept = Kept { tensors: Vec::new() };
    let mut p = scores(&prepared.attributes, sizes.head_dim);
    (p.q, p.k, p.v) = (RowView::of(&q)?.rows, RowView::of(&k)?.rows, RowView::of(&v)?.rows);
    p.sequences = sequences.device_address()?;
    (p.batch, p.heads) = (int(prepared.sequences.len())?, int(sizes.heads)?);
    (p.kv_heads, p.group) = (int(sizes.kv_heads)?, int(sizes.heads / sizes.kv_heads)?);
    (p.head_dim, p.value_dim) = (int(sizes.head_dim)?, int(sizes.value_dim)?);
    (p.lse_head, p.lse_batch) = (sizes.q_rows as i64, (sizes.heads * sizes.q_rows) as i64);
    let slopes = input(prepare::ALIBI_SLOPES);
    p.slopes_per_batch = i32::from(slopes.as_ref().is_some_and(|slopes| slopes.rank() == 2));
    p.slopes = kept.address(slopes.as_ref(), sum)?;
    p.sinks = kept.address(input(prepare::SINKS).as_ref(), sum)?;
    if let (Some(mask), Some(size)) = (&prepared.block_mask, prepared.attributes.block_size) {
        let (dims, rank) = (mask.dims(), mask.rank());
        let area = (dims[rank - 2] * dims[rank - 1]) as i64;
        p.mask_batch = if rank == 4 { dims[1] as i64 * area } else { 0 };
        p.mask_head = if rank >= 3 { area } else { 0 };
        (p.mask_columns, p.block_size) = (int(dims[rank - 1])?, int(size)?);
        p.block_mask = kept.address(Some(mask), DType::U8)?;
    }
    if let Some(keep) = &prepared.keep {
        (p.keep_q, p.keep_k) = (sizes.q_rows as i64, sizes.k_rows as i64);
        p.keep = kept.address(Some(keep), DType::U8)?;
        (p.dropout, p.drop_scale) = (1, 1.0 / (1.0 - prepared.attributes.p_drop));
    }
    kept.tensors.extend([q, k, v, sequences]);
    Ok((p, kept))
}

/// Refuses heads that no kernel has room for.
pub(super) fn check_dims(op: &'static str, dims: [usize; 2]) -> Result<()> {
    if dims.into_iter().all(|dim| dim <= MAX_DIM) {
        return Ok(());
    }
    Err(Error::not_on_cuda(op, format!("head dims {dims:?} of q and v; valid: up to {MAX_DIM}")))
}

/// Blocks of one tile of one key head of one sequence each.
pub(super) fn blocks(tiles: usize, p: &PlainProblem, parts: usize) -> Result<u32> {
    Ok(int(tiles * p.kv_heads as usize * p.batch as usize * parts)? as u32)
}

fn longest(prepared: &Prepared, len: fn(&Sequence) -> usize) -> usize {
    prepared.sequences.iter().map(len).max().unwrap_or(0)
}

/// Launches the forward kernel over `parts` parts of the keys; `q_len` is the longest sequence's.
///
/// # Safety
/// Every address of the problem is that of live memory of the shapes that it states.
pub(super) unsafe fn launch_forward(
    gpu: &std::sync::Arc<Gpu>,
    p: &PlainProblem,
    [dtype, result]: [DType; 2],
    [q_len, parts]: [usize; 2],
) -> Result<()> {
    let tiles = Tiles::forward(p.head_dim.max(p.value_dim) as usize, dtype, gpu);
    let defines = tiles.defines(device_type(OP, dtype)?).set("RESULT", device_type(OP, result)?);
    let kernel = gpu.kernel(&FORWARD, "plain_forward", &defines)?;
    let of_head = (q_len * p.group as usize).div_ceil(tiles.side);
    let launch = Launch::linear(blocks(of_head, p, parts)?, THREADS)
        .shared(tiles.shared_bytes(FORWARD_TILES));
    let count = int(of_head)?;
    let arguments: [&dyn Argument; 3] = [p, &count, &p.out.data];
    // SAFETY: promised by the caller; tiles stay inside of their sequences.
    unsafe { kernel.launch(&launch, &arguments) }.map_err(Into::into)
}

/// Writes out and lse.
pub(super) fn forward(prepared: &Prepared, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
    let [out, lse] = outputs else {
        return Err(Error::internal("attention has two outputs"));
    };
    let q_len = longest(prepared, |sequence| sequence.q_len);
    if !prepared.covers_queries || q_len == 0 {
        *out = Tensor::zeros(out.shape(), out.dtype(), &out.device())?;
        *lse =
            Tensor::full(f64::NEG_INFINITY, lse.shape(), &lse.device())?.to_dtype(lse.dtype())?;
    }
    if q_len == 0 || prepared.sizes.heads == 0 {
        return Ok(());
    }
    let (mut p, _kept) = problem(prepared, |position| inputs[position].cloned())?;
    p.lse = lse.device_address_mut()?;
    out.device_address_mut()?;
    p.out = RowView::of(out)?.rows;
    let (gpu, dtype) = (out.gpu()?.clone(), out.dtype());
    // SAFETY: addresses and strides are those of live tensors whose shapes were checked; outputs are
    // fresh.
    unsafe { launch_forward(&gpu, &p, [dtype, dtype], [q_len, 1]) }
}

/// Gradients in the places of their inputs.
pub(super) fn backward(ctx: &Backward, prepared: &Prepared) -> Result<Vec<Option<Tensor>>> {
    let (mut p, mut kept) = problem(prepared, |position| ctx.inputs[position].clone())?;
    let of = |position: usize| ctx.input(position);
    // Rows outside of every sequence have no gradient.
    let fresh = |like: &Tensor| Tensor::zeros(like.shape(), like.dtype(), &like.device());
    let mut grads = [fresh(of(prepare::Q)?)?, fresh(of(prepare::K)?)?, fresh(of(prepare::V)?)?];
    let mut all = vec![None; prepare::INPUTS];
    let (out, lse) = (ctx.output(0)?.detach(), ctx.output(1)?.detach());
    let grad_out = readable(&ctx.grad_or_zeros(0, &out)?)?;
    let mut delta = Tensor::zeros(lse.shape(), lse.dtype(), &lse.device())?;
    let sinks = ctx.inputs[prepare::SINKS].as_ref();
    let mut grad_sinks = Tensor::zeros([prepared.sizes.heads], lse.dtype(), &lse.device())?;
    let q_len = longest(prepared, |sequence| sequence.q_len);
    if q_len > 0 && prepared.sizes.heads > 0 {
        for grad in &mut grads {
            grad.device_address_mut()?;
        }
        p.lse = lse.device_address()?;
        let rows = |tensor: &Tensor| RowView::of(tensor).map(|view| view.rows);
        let g = Cotangents {
            out: rows(&out)?,
            grad_out: rows(&grad_out)?,
            grad_lse: kept.address(ctx.grads[1].as_ref(), lse.dtype())?,
            delta: delta.device_address_mut()?,
            dq: rows(&grads[0])?,
            dk: rows(&grads[1])?,
            dv: rows(&grads[2])?,
            grad_sinks: grad_sinks.device_address_mut()?,
        };
        let k_len = longest(prepared, |sequence| sequence.k_len);
        // SAFETY: as in `forward`; gradients are fresh and as large as their inputs.
        unsafe { launch_backward(out.gpu()?, &p, &g, out.dtype(), [q_len, k_len])? };
    }
    let [dq, dk, dv] = grads;
    (all[prepare::Q], all[prepare::K], all[prepare::V]) = (Some(dq), Some(dk), Some(dv));
    if let Some(sinks) = sinks {
        all[prepare::SINKS] = Some(grad_sinks.to_dtype(sinks.dtype())?);
    }
    Ok(all)
}

/// # Safety
/// As [`launch_forward`].
unsafe fn launch_backward(
    gpu: &std::sync::Arc<Gpu>,
    p: &PlainProblem,
    g: &Cotangents,
    dtype: DType,
    [q_len, k_len]: [usize; 2],
) -> Result<()> {
    let tiles = Tiles::backward(p.head_dim.max(p.value_dim) as usize, dtype, gpu);
    let defines = tiles.defines(device_type(OP, dtype)?);
    let kernel = |entry: &str| gpu.kernel(&BACKWARD, entry, &defines);
    let rows = q_len * (p.heads as usize) * (p.batch as usize);
    let delta = Launch::linear(int(rows.div_ceil(8))? as u32, THREADS);
    let row_tiles = (q_len * p.group as usize).div_ceil(tiles.side);
    let key_tiles = k_len.div_ceil(tiles.side);
    let shared = tiles.shared_bytes(BACKWARD_TILES);
    let (longest, of_rows, of_keys) = (int(q_len)?, int(row_tiles)?, int(key_tiles)?);
    // SAFETY: promised by the caller.
    unsafe {
        kernel("plain_delta")?.launch(&delta, &[p, g, &longest])?;
        if p.sinks != 0 {
            kernel("plain_sinks")?.launch(&Launch::linear(p.heads as u32, THREADS), &[p, g])?;
        }
        if k_len > 0 {
            let launch = Launch::linear(blocks(key_tiles, p, 1)?, THREADS).shared(shared);
            kernel("plain_keys")?.launch(&launch, &[p, g, &of_keys])?;
        }
        let launch = Launch::linear(blocks(row_tiles, p, 1)?, THREADS).shared(shared);
        kernel("plain_queries")?.launch(&launch, &[p, g, &of_rows])?;
    }
    Ok(())
}

/// The kernels that are shipped.
pub(super) fn variants() -> Vec<Variant> {
    let mut all: Vec<Variant> = Vec::new();
    let mut add = |source: &Source, defines: Defines| {
        if !all.iter().any(|variant| variant.defines == defines) {
            all.push(Variant::new(source.clone(), defines));
        }
    };
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        let Ok(element) = device_type(OP, dtype) else { continue };
        let results = if dtype == DType::BF16 { &["bf16", "float"][..] } else { &[element][..] };
        for dim in [64, 128, 256] {
            // Of the chips that releases ship for, the smallest room would be one more tile size.
            let limit = shared_limit(90);
            let tiles = Tiles::new(dim, sum_bytes(dtype), FORWARD_TILES, limit);
            for result in results {
                add(&FORWARD, tiles.defines(element).set("RESULT", result));
            }
            let tiles = Tiles::new(dim, sum_bytes(dtype), BACKWARD_TILES, limit);
            add(&BACKWARD, tiles.defines(element));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_every_chip() {
        for arch in [80, 90] {
            for dtype in [DType::BF16, DType::F32, DType::F64] {
                for width in [1, 64, 65, 96, 128, 192, 256] {
                    for kind in [FORWARD_TILES, BACKWARD_TILES] {
                        let limit = shared_limit(arch);
                        let tiles = Tiles::new(width, sum_bytes(dtype), kind, limit);
                        assert!(tiles.shared_bytes(kind) as usize <= limit, "{tiles:?}");
                        assert!(tiles.dim >= width && tiles.dim <= MAX_DIM);
                    }
                }
            }
        }
    }
}
