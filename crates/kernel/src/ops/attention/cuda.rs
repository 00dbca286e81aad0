//! Attention on GPUs: what the kernels serve, their arguments and launches.
//!
//! | file | holds |
//! | --- | --- |
//! | `params.cuh`, `params.rs` | the kernels' arguments |
//! | `tile_range.cuh`, `mask.cuh` | which tiles are visible, and which elements of them |
//! | `softmax.cuh` | the online softmax of a thread's rows |
//! | `scheduler.cuh` | which tile a thread block works on next |
//! | `forward_pipeline.cuh`, `forward.cuh`, `epilogue.cuh` | producer, consumers, output |
//! | `backward_order.cuh` | who adds to dq in turn |
//! | `backward_pipeline.cuh`, `backward.cuh`, `backward_epilogue.cuh` | producer and writers, consumers, dk and dv |
//! | `backward_rows.cuh` | query rows before and after |
//! | `backward_wide_pipeline.cuh`, `backward_wide.cuh`, `wide.rs` | head dims beyond 128: one kernel for dk and dv, one for dq |
//! | `fp8_*.cuh`, `fp8.rs` | eight-bit operands, forward |
//! | `forward_entry.cuh`, `backward_entry.cuh`, `backward_wide_entry.cuh` | entry points of one configuration |
//! | `plain*.cuh`, `plain.rs` | every option on any chip, without matrix units |
//! | `decode.cuh`, `cache.cuh`, `cache.rs` | few rows against a cache: append, parts, join |
//!
//! The Hopper kernels serve bf16 and f16, equal head dims of 64, 128, 192 and 256, grouped heads,
//! causality, windows, softcap, packed sequences, gradients of out and lse; the plain kernels everything
//! else, with head dims up to 256. Same inputs give the same bits: nothing is added in an order that
//! depends on timing.
//!
//! # Measured facts
//! H100 (80 GB, driver 580), 25 November 2026; figures of tile choices are in `config.rs`. TFLOP/s, ours :
//! cuDNN 9.19 through PyTorch 2.11 in the same process, in turns, medians, random data; 16k tokens a
//! batch, hidden 2048, causal counted as half, the backward pass with all its kernels:
//!
//! | case | forward 1k | 4k | 16k | backward 1k | 4k | 16k |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | d 64 | 433 : 429 | 513 : 456 | 578 : 480 | 399 : 342 | 517 : 435 | 583 : 449 |
//! | d 64 causal | 309 : 345 | 465 : 407 | 563 : 451 | 282 : 235 | 479 : 372 | 581 : 434 |
//! | d 128 | 590 : 578 | 672 : 610 | 741 : 660 | 436 : 412 | 563 : 541 | 630 : 558 |
//! | d 128 causal | 450 : 429 | 628 : 509 | 720 : 579 | 320 : 288 | 513 : 464 | 621 : 555 |
//! | d 256 | 658 : 602 | 756 : 672 | 816 : 733 | | | |
//! | d 256 causal | 472 : 449 | 707 : 573 | 800 : 607 | | | |
//!
//! Another H100 of the same day ran both sides 5 to 12 % slower, at the same ratios. Largest relative
//! error against f64: out 2.4e-3, gradients 3.1e-3, lse 2e-6 absolute; 21 runs gave the same bits.
//!
//! * ptxas moves arithmetic behind a `wgmma.wait_group` that it does not depend on. Softmax then runs
//!   after the product that it should hide under. `wgmma::hold_wait` ties them together.
//! * Products in flight across a loop's edge, or issued under a condition, make ptxas serialise all of
//!   them (C7514, C7512). Loops are turned, and last rounds peeled, so that none is.
//! * A warp shuffle in a branch that some lanes have left waits for them forever.
//! * Rescaling the output only when a row's maximum grows by more than 2^8 leaves most tiles without any.
//! * Letting dq lag one visit behind took the backward pass at d 64 from 498 to 555 TFLOP/s (16k, full,
//!   additions in any order), at d 128 causal from 585 to 607.
//! * One writer thread could not wait, add, and publish within a visit: a second gave 6 to 10 %.
//! * Orders of dq in which a tile waits for tiles that start later (a rotation around the row blocks,
//!   alternating directions) were no faster than starting order, and could wait forever when the device
//!   is shared.
//! * Rounding products of eight-bit codes on the matrix units keeps about 14 bits of a sum: log-sum-exps of
//!   FP8 attention differ from f64 by up to 0.1 where scores reach hundreds, outputs by 1e-4 in cosine.
//! * Head dims beyond 128: see `config.rs` for tries; the two kernels run at 680 and 780 TFLOP/s.

use super::config::{self, Shape};
use super::prepare::{self, Prepared, readable};
use super::problem::Problem;
use crate::device::{BARRIER, MATH, SHARED_TILE, TMA, TYPES, WGMMA, WGMMA_TABLE};
use danaus_runtime::cuda::tensor_map::MapType;
use danaus_runtime::cuda::{
    Argument, Defines, DeviceBuffer, Header, Launch, Source, Swizzle, TensorMap, TensorMapSpec,
    Variant,
};
use danaus_tensor::{Backward, DType, Error, Inputs, Result, Tensor};
use params::{BackwardParams, ForwardParams, Rows, Schedule};
use std::f64::consts::LOG2_E;

const OP: &str = "attention";

macro_rules! header {
    ($name:literal) => {
        Header { name: concat!("attention/", $name), text: include_str!($name) }
    };
}

/// What the plain and the decoding kernels are given.
const PLAIN_PROBLEM: Header = header!("plain_problem.cuh");
const PLAIN_TILES: Header = header!("plain_tiles.cuh");

pub(super) mod cache;
pub(super) mod fp8;
mod params;
mod plain;
mod wide;

const HEADERS: &[Header] = &[
    TYPES,
    MATH,
    BARRIER,
    TMA,
    SHARED_TILE,
    WGMMA,
    WGMMA_TABLE,
    header!("params.cuh"),
    header!("tile_range.cuh"),
    header!("mask.cuh"),
    header!("softmax.cuh"),
    header!("scheduler.cuh"),
    header!("epilogue.cuh"),
    header!("forward_pipeline.cuh"),
    header!("forward.cuh"),
    header!("backward_order.cuh"),
    header!("backward_pipeline.cuh"),
    header!("backward_epilogue.cuh"),
    header!("backward.cuh"),
    header!("backward_rows.cuh"),
];
static FORWARD: Source =
    Source::new("forward_entry.cuh", include_str!("forward_entry.cuh"), HEADERS);
static BACKWARD: Source =
    Source::new("backward_entry.cuh", include_str!("backward_entry.cuh"), HEADERS);

/// Threads of the kernels that handle rows before and after the backward kernel.
const ROW_THREADS: u32 = 256;
/// Threads of the backward kernel.
const BACKWARD_THREADS: u32 = 384;
/// Windows beyond this many keys are as good as none, and sums of positions stay far from overflow.
const FAR: usize = 1 << 29;

/// A call that the kernels serve.
struct Call<'a> {
    problem: &'a Problem<'a>,
    shape: Shape,
    dtype: DType,
    packed: bool,
    batch: usize,
    /// Rows of q: of a sequence, or of all packed ones.
    q_rows: usize,
    /// Bounds of packed q and k on the device.
    bounds: Option<[Tensor; 2]>,
}

impl<'a> Call<'a> {
    fn new(prepared: &Prepared, problem: &'a Problem<'a>, q: &Tensor) -> Result<Self> {
        let sizes = &prepared.sizes;
        let longest = |len: fn(&super::problem::Sequence) -> usize| {
            problem.sequences.iter().map(len).max().unwrap_or(0)
        };
        let shape = Shape {
            head_dim: sizes.head_dim,
            q_len: longest(|sequence| sequence.q_len),
            k_len: longest(|sequence| sequence.k_len),
            group: problem.group(),
            window: problem.window,
        };
        let bounds = |start: fn(&super::problem::Sequence) -> [usize; 2]| {
            let ends = problem.sequences.iter().map(|sequence| start(sequence)[1] as i32);
            let list: Vec<i32> = std::iter::once(0).chain(ends).collect();
            crate::lists::list(&list, &q.device())
        };
        let bounds = match sizes.packed {
            true => Some([
                bounds(|sequence| [sequence.q_start, sequence.q_start + sequence.q_len])?,
                bounds(|sequence| [sequence.k_start, sequence.k_start + sequence.k_len])?,
            ]),
            false => None,
        };
        let (dtype, batch) = (q.dtype(), problem.sequences.len());
        let (packed, q_rows) = (sizes.packed, sizes.q_rows);
        Ok(Self { problem, shape, dtype, packed, batch, q_rows, bounds })
    }

    /// Whether no query or no key exists.
    fn is_empty(&self) -> bool {
        self.shape.q_len == 0 || self.shape.k_len == 0 || self.problem.heads == 0
    }

    fn params(&self) -> Result<params::Problem> {
        let (scale, softcap) = (self.problem.softmax_scale, self.problem.softcap);
        let address = |index: usize| self.bounds.as_ref().map(|b| b[index].device_address());
        let window = |side: Option<usize>| side.unwrap_or(FAR).min(FAR) as i32;
        Ok(params::Problem {
            cu_seqlens_q: address(0).transpose()?.unwrap_or(0),
            cu_seqlens_k: address(1).transpose()?.unwrap_or(0),
            batch: int(self.batch)?,
            heads: int(self.problem.heads)?,
            group: int(self.shape.group)?,
            q_len: int(self.shape.q_len)?,
            k_len: int(self.shape.k_len)?,
            total_q: int(self.q_rows)?,
            window_left: window(self.shape.window.left),
            window_right: window(self.shape.window.right),
            score_factor: softcap.map_or(0.0, |cap| (scale / cap) as f32),
            exponent_factor: (softcap.unwrap_or(scale) * LOG2_E) as f32,
        })
    }

    fn defines(&self, [block_m, block_n]: [usize; 2]) -> Defines {
        let features = [self.packed, self.problem.softcap.is_some()];
        defines(self.dtype, &self.shape, [block_m, block_n], features)
    }

    fn map(&self, tensor: &Tensor, rows: usize) -> Result<TensorMap> {
        row_map(tensor, self.shape.head_dim, rows)
    }
}

/// Queries of q or out, keys of k or v, as tiles of `rows`.
fn row_map(tensor: &Tensor, head_dim: usize, rows: usize) -> Result<TensorMap> {
    let (view, head_dim) = (RowView::of(tensor)?, head_dim as u64);
    let bytes = |stride: i64| 2 * stride as u64;
    let spec = TensorMapSpec {
        address: view.rows.data,
        dtype: if tensor.dtype() == DType::F16 { MapType::F16 } else { MapType::Bf16 },
        dims: &[64, view.len, head_dim / 64, view.heads, view.batch],
        strides: &[
            bytes(view.rows.row_stride),
            128,
            bytes(view.rows.head_stride),
            bytes(view.rows.batch_stride),
        ],
        box_dims: &[64, rows as u32, (head_dim / 64) as u32, 1, 1],
        swizzle: Swizzle::B128,
    };
    Ok(spec.encode()?)
}

/// Name of an element type of the matrix units.
fn element(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::BF16 => Some("Bf16"),
        DType::F16 => Some("F16"),
        _ => None,
    }
}

fn defines(
    dtype: DType,
    shape: &Shape,
    [block_m, block_n]: [usize; 2],
    [packed, softcap]: [bool; 2],
) -> Defines {
    let right = shape.window.right.is_some_and(|right| right > 0);
    Defines::new()
        .set("ELEMENT", element(dtype).unwrap_or_default())
        .set("HEAD_DIM", shape.head_dim)
        .set("BLOCK_M", block_m)
        .set("BLOCK_N", block_n)
        .set("CAUSAL", shape.is_causal())
        .set("WINDOW_LEFT", shape.window.left.is_some())
        .set("WINDOW_RIGHT", right)
        .set("SOFTCAP", softcap)
        .set("PACKED", packed)
}

fn forward_defines(
    dtype: DType,
    shape: &Shape,
    tiles: &config::Forward,
    features: [bool; 2],
) -> Defines {
    defines(dtype, shape, [tiles.block_m, tiles.block_n], features)
        .set("STAGES", tiles.stages)
        .set("OUT_OVER_QUERY", tiles.out_over_query)
}

fn int(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| Error::not_on_cuda(OP, format!("a size of {size}")))
}

/// Whether the Hopper kernels do what is asked for; the plain ones do everything else.
fn is_hopper(prepared: &Prepared, q: &Tensor) -> Result<bool> {
    let sizes = &prepared.sizes;
    let positive = prepared.attributes.softmax_scale.is_none_or(|scale| scale > 0.0);
    let plain = prepared.has_masks()
        || prepared.has_biases
        || prepared.uses_lengths
        || prepared.attributes.p_drop > 0.0;
    Ok(q.gpu()?.arch().number() == 90
        && element(q.dtype()).is_some()
        && [64, 128, 192, 256].contains(&sizes.head_dim)
        && sizes.value_dim == sizes.head_dim
        && positive
        && !plain)
}

/// A tensor (batch, rows, heads, dim) or (rows, heads, dim) as the kernels see it.
struct RowView {
    rows: Rows,
    len: u64,
    heads: u64,
    batch: u64,
}

impl RowView {
    fn of(tensor: &Tensor) -> Result<Self> {
        let (dims, strides) = (tensor.dims(), tensor.strides());
        let (first, rank) = (tensor.rank().saturating_sub(3), tensor.rank());
        if !(3..=4).contains(&rank) {
            return Err(Error::internal("an operand of attention has three or four axes"));
        }
        let stride = |axis: usize| strides[axis] as i64;
        let batch = if first == 1 { dims[0] } else { 1 };
        let whole = stride(first) * dims[first] as i64;
        let rows = Rows {
            data: tensor.device_address()?,
            row_stride: stride(first),
            head_stride: stride(first + 1),
            batch_stride: if first == 1 { stride(0) } else { whole },
        };
        Ok(Self {
            rows,
            len: dims[first] as u64,
            heads: dims[first + 1] as u64,
            batch: batch as u64,
        })
    }
}

/// A tensor that the copy engine can read: rows of 16-byte pieces, nothing repeated; else a copy.
fn aligned(tensor: &Tensor) -> Result<Tensor> {
    let tensor = readable(tensor)?;
    let last = tensor.rank() - 1;
    let plain = tensor.strides()[..last].iter().all(|&stride| stride > 0 && stride % 8 == 0);
    if plain && tensor.device_address()?.is_multiple_of(16) {
        Ok(tensor)
    } else {
        tensor.contiguous()
    }
}

/// Writes out and lse.
pub(super) fn forward(prepared: &Prepared, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
    let given = inputs[prepare::Q].ok_or_else(|| Error::internal("attention without q"))?;
    if !is_hopper(prepared, given)? {
        return plain::forward(prepared, inputs, outputs);
    }
    let [q, k, v] = operands(|position| inputs[position])?;
    let problem = prepared.problem()?;
    let call = Call::new(prepared, &problem, &q)?;
    let [out, lse] = outputs else {
        return Err(Error::internal("attention has two outputs"));
    };
    if call.is_empty() || !prepared.covers_queries {
        *out = Tensor::zeros(out.shape(), out.dtype(), &out.device())?;
        *lse = Tensor::full(f32::NEG_INFINITY, lse.shape(), &lse.device())?;
    }
    if call.is_empty() {
        return Ok(());
    }
    let tiles = call.shape.forward();
    let of_head = call.shape.q_len.div_ceil(tiles.block_m);
    let all = of_head * problem.heads * call.batch;
    let gpu = q.gpu()?;
    let ticket = DeviceBuffer::zeroed(gpu, size_of::<i32>())?;
    // Fresh tensors: the addresses below are those of `device_address_mut`.
    out.device_address_mut()?;
    let params = ForwardParams {
        problem: call.params()?,
        schedule: schedule(&ticket, all, of_head, tiles.section)?,
        lse: lse.device_address_mut()?,
        out: RowView::of(out)?.rows,
    };
    let maps = [
        call.map(&q, 64)?,
        call.map(&k, tiles.block_n)?,
        call.map(&v, tiles.block_n)?,
        call.map(out, 64)?,
    ];
    let features = [call.packed, problem.softcap.is_some()];
    let defines = forward_defines(call.dtype, &call.shape, &tiles, features);
    let kernel = gpu.kernel(&FORWARD, "attention_forward", &defines)?;
    let blocks = gpu.limits().multiprocessors.min(int(all)? as u32);
    let launch =
        Launch::linear(blocks, tiles.threads()).shared(tiles.shared_bytes(call.shape.head_dim));
    let arguments: [&dyn Argument; 5] = [&maps[0], &maps[1], &maps[2], &maps[3], &params];
    // SAFETY: maps and strides come from the tensors' own shapes; sequences were checked against them;
    // outputs are fresh, and `bounds` and the ticket outlive the launch in stream order.
    unsafe { kernel.launch(&launch, &arguments)? };
    Ok(())
}

fn operands<'a>(input: impl Fn(usize) -> Option<&'a Tensor>) -> Result<[Tensor; 3]> {
    let operand = |position: usize| {
        let found = input(position).map(aligned).transpose()?;
        found.ok_or_else(|| Error::internal("attention runs after its arguments are checked"))
    };
    Ok([operand(prepare::Q)?, operand(prepare::K)?, operand(prepare::V)?])
}

fn schedule(
    ticket: &DeviceBuffer,
    tiles: usize,
    of_head: usize,
    section: usize,
) -> Result<Schedule> {
    Ok(Schedule {
        ticket: ticket.address(),
        tiles: int(tiles)?,
        tiles_of_head: int(of_head)?,
        section: int(section)?,
    })
}

/// Memory of one backward pass beyond its tensors.
struct Workspace {
    ticket: DeviceBuffer,
    turns: DeviceBuffer,
    log_sum_exp_2: DeviceBuffer,
    delta: DeviceBuffer,
    dq_sum: DeviceBuffer,
}

/// Gradients in the places of their inputs.
pub(super) fn backward(ctx: &Backward, prepared: &Prepared) -> Result<Vec<Option<Tensor>>> {
    if !is_hopper(prepared, ctx.input(prepare::Q)?)? {
        return plain::backward(ctx, prepared);
    }
    let mut grads = vec![None; prepare::INPUTS];
    let found = hopper_backward(ctx, prepared)?.map(Some);
    grads[..=prepare::V].clone_from_slice(&found);
    Ok(grads)
}

/// Gradients of q, k and v.
fn hopper_backward(ctx: &Backward, prepared: &Prepared) -> Result<[Tensor; 3]> {
    let [q, k, v] = operands(|position| ctx.input(position).ok())?;
    let problem = prepared.problem()?;
    let call = Call::new(prepared, &problem, &q)?;
    let fresh = |like: &Tensor| match call.packed || call.is_empty() {
        true => Tensor::zeros(like.shape(), like.dtype(), &like.device()),
        false => Tensor::empty(like.shape(), like.dtype(), &like.device()),
    };
    let mut grads = [fresh(&q)?, fresh(&k)?, fresh(&v)?];
    if call.is_empty() {
        return Ok(grads);
    }
    let (out, lse) = (ctx.output(0)?.detach(), ctx.output(1)?.detach());
    let grad_out = aligned(&ctx.grad_or_zeros(0, &out)?)?;
    let grad_lse = ctx.grads[1].as_ref().map(|grad| grad.detach().contiguous()).transpose()?;
    let tiles = call.shape.backward();
    let (work, row_blocks) = workspace(&call, &q, tiles.block_m)?;
    let of_head = call.shape.k_len.div_ceil(tiles.block_n);
    let blocks = of_head * problem.kv_heads * call.batch;
    for grad in &mut grads {
        grad.device_address_mut()?;
    }
    let rows = |tensor: &Tensor| RowView::of(tensor).map(|view| view.rows);
    let params = BackwardParams {
        problem: call.params()?,
        schedule: schedule(&work.ticket, blocks, of_head, tiles.section)?,
        row_blocks: int(row_blocks)?,
        softmax_scale: problem.softmax_scale as f32,
        turns: work.turns.address(),
        log_sum_exp_2: work.log_sum_exp_2.address(),
        delta: work.delta.address(),
        dq_sum: work.dq_sum.address(),
        lse: lse.device_address()?,
        grad_lse: grad_lse.as_ref().map_or(Ok(0), Tensor::device_address)?,
        out: rows(&out)?,
        grad_out: rows(&grad_out)?,
        dq: rows(&grads[0])?,
        dk: rows(&grads[1])?,
        dv: rows(&grads[2])?,
    };
    let maps = [
        call.map(&q, tiles.block_m)?,
        call.map(&k, tiles.block_n)?,
        call.map(&v, tiles.block_n)?,
        call.map(&grad_out, tiles.block_m)?,
        call.map(&grads[1], tiles.block_n)?,
        call.map(&grads[2], tiles.block_n)?,
    ];
    if call.shape.head_dim > 128 {
        let [q_map, k_map, v_map, grad_map, dk_map, dv_map] = maps;
        let dq_map = call.map(&grads[0], tiles.block_m)?;
        let maps = [q_map, k_map, v_map, grad_map, dq_map, dk_map, dv_map];
        wide::launch(&call, params, &maps, q.gpu()?)?;
    } else {
        launch_backward(&call, &tiles, &params, &maps, q.gpu()?)?;
    }
    Ok(grads)
}

/// Also returns the row blocks of a head.
fn workspace(call: &Call, q: &Tensor, block_m: usize) -> Result<(Workspace, usize)> {
    let (row_blocks, heads) = match call.packed {
        // Each sequence starts at a block of its own.
        true => ((call.q_rows + call.batch * block_m) / block_m + 1, call.problem.heads),
        false => (call.shape.q_len.div_ceil(block_m), call.problem.heads * call.batch),
    };
    let (gpu, blocks) = (q.gpu()?, row_blocks * heads);
    let rows = size_of::<f32>() * blocks * block_m;
    let sums = rows * call.shape.head_dim;
    let work = Workspace {
        ticket: DeviceBuffer::zeroed(gpu, size_of::<i32>())?,
        turns: DeviceBuffer::uninit(gpu, size_of::<i32>() * blocks)?,
        log_sum_exp_2: DeviceBuffer::uninit(gpu, rows)?,
        delta: DeviceBuffer::uninit(gpu, rows)?,
        // The kernels for wide heads write dq as it is.
        dq_sum: DeviceBuffer::uninit(gpu, if call.shape.head_dim > 128 { 0 } else { sums })?,
    };
    Ok((work, row_blocks))
}

fn launch_backward(
    call: &Call,
    tiles: &config::Backward,
    params: &BackwardParams,
    maps: &[TensorMap; 6],
    gpu: &std::sync::Arc<danaus_runtime::cuda::Gpu>,
) -> Result<()> {
    let defines = call.defines([tiles.block_m, tiles.block_n]);
    let grid = [call.shape.q_len.div_ceil(tiles.block_m), call.problem.heads, call.batch];
    let rows = Launch::new(grid.map(|extent| extent as u32), [ROW_THREADS, 1, 1]);
    let head_dim = call.shape.head_dim;
    let main = Launch::linear(params.schedule.tiles as u32, BACKWARD_THREADS)
        .shared(tiles.shared_bytes(head_dim));
    let kernel = |entry: &str| gpu.kernel(&BACKWARD, entry, &defines);
    let [q, k, v, grad_out, dk, dv] = maps;
    // SAFETY: as in `forward`; the workspace has a place for every row block that a sequence has.
    unsafe {
        kernel("attention_prepare_rows")?.launch(&rows, &[params])?;
        let arguments: [&dyn Argument; 7] = [q, k, v, grad_out, dk, dv, params];
        kernel("attention_backward")?.launch(&main, &arguments)?;
        let rows = rows.shared(tiles.finish_bytes(head_dim));
        kernel("attention_finish_rows")?.launch(&rows, &[params])?;
    }
    Ok(())
}

/// Element types of the kernels.
const DTYPES: [DType; 2] = [DType::BF16, DType::F16];

/// The kernels that are shipped: what language models use.
pub(crate) fn variants() -> Vec<Variant> {
    let few = "a few addresses, outside of the products";
    let mut all: Vec<Variant> = Vec::new();
    let mut add = |variant: Variant| {
        let same = |other: &Variant| {
            other.source.name() == variant.source.name() && other.defines == variant.defines
        };
        if !all.iter().any(same) {
            all.push(Variant { spills: Some(few), ..variant.from(90) });
        }
    };
    for (head_dim, dtype) in
        [64, 128, 192, 256].into_iter().flat_map(|dim| DTYPES.map(|dtype| (dim, dtype)))
    {
        for right in [None, Some(0)] {
            for packed in [false, true] {
                for len in [1024, 16_384] {
                    if dtype == DType::F16 && len == 1024 {
                        continue; // short tiles of f16 are compiled when they are asked for
                    }
                    let window = super::tile_range::Window { left: None, right };
                    let shape = Shape { head_dim, q_len: len, k_len: len, group: 1, window };
                    let features = [packed, false];
                    let tiles = shape.forward();
                    add(Variant::new(
                        FORWARD.clone(),
                        forward_defines(dtype, &shape, &tiles, features),
                    ));
                    let tiles = shape.backward();
                    let blocks = [tiles.block_m, tiles.block_n];
                    add(match head_dim {
                        64 | 128 => {
                            let defines = defines(dtype, &shape, blocks, features);
                            Variant::new(BACKWARD.clone(), defines)
                        }
                        _ => wide::variant(dtype, &shape, packed),
                    });
                }
            }
        }
    }
    all.extend(plain::variants());
    all.extend(cache::variants());
    all.extend(fp8::variants());
    all
}
