//! FP8 attention on Hopper: quantise q, k and v into tiles, then the forward kernel.
//!
//! | file | holds |
//! | --- | --- |
//! | `fp8_params.cuh` | the kernels' arguments |
//! | `fp8_quantize.cuh` | rotation, scales, codes in the layout of shared memory |
//! | `fp8_softmax.cuh` | the online softmax with a scale a tile |
//! | `fp8_pipeline.cuh`, `fp8_forward.cuh` | producer, consumers |
//! | `fp8_entry.cuh`, `fp8_quantize_entry.cuh` | entry points of one configuration |

use super::params::{Problem, Rows, Schedule};
use super::{FAR, HEADERS, OP, RowView, aligned, element, int, row_map, schedule};
use crate::device::{FP8, WGMMA_FP8_TABLE};
use crate::ops::attention::config::{Fp8Forward, Shape};
use crate::ops::attention::fp8::{Fp8Op, Fp8Scales, kernel_tile};
use crate::ops::attention::tile_range::Window;
use danaus_runtime::cuda::{Argument, Defines, DeviceBuffer, Gpu, Header, Launch, Source, Variant};
use danaus_tensor::{DType, Error, Result, Tensor};
use std::f64::consts::LOG2_E;
use std::sync::Arc;

macro_rules! header {
    ($name:literal) => {
        Header { name: concat!("attention/", $name), text: include_str!(concat!("../", $name)) }
    };
}

/// Headers of this folder besides those of the 16-bit kernels.
const OWN: [Header; 7] = [
    FP8,
    WGMMA_FP8_TABLE,
    header!("fp8_params.cuh"),
    header!("fp8_softmax.cuh"),
    header!("fp8_pipeline.cuh"),
    header!("fp8_forward.cuh"),
    header!("fp8_quantize.cuh"),
];
const ALL: [Header; HEADERS.len() + OWN.len()] = {
    let mut all = [FP8; HEADERS.len() + OWN.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = if i < HEADERS.len() { HEADERS[i] } else { OWN[i - HEADERS.len()] };
        i += 1;
    }
    all
};
static FORWARD: Source = Source::new("fp8_entry.cuh", include_str!("../fp8_entry.cuh"), &ALL);
static QUANTIZE: Source =
    Source::new("fp8_quantize_entry.cuh", include_str!("../fp8_quantize_entry.cuh"), &ALL);

/// Threads of the kernels that quantise.
const QUANTIZE_THREADS: u32 = 512;
/// Scales of a tile of keys and values, with padding: one 16-byte copy.
const KEY_SCALES: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Fp8Params {
    problem: Problem,
    schedule: Schedule,
    lse: u64,
    out: Rows,
    q: u64,
    k: u64,
    v: u64,
    q_scales: u64,
    kv_scales: u64,
    q_blocks: i32,
    k_tiles: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct QuantizeParams {
    source: Rows,
    rows: i32,
    heads: i32,
    tiles: i32,
    codes: u64,
    scales: u64,
    scale_stride: i32,
    largest: u64,
    signs: u64,
}

// SAFETY: plain fields in the order of `fp8_params.cuh`; padding is that of the C++ structs.
unsafe impl Argument for Fp8Params {}
// SAFETY: as above.
unsafe impl Argument for QuantizeParams {}

/// Sizes of a call.
struct Call {
    shape: Shape,
    tiles: Fp8Forward,
    batch: usize,
    heads: usize,
    kv_heads: usize,
}

impl Call {
    fn new(op: &Fp8Op, q: &Tensor, k: &Tensor) -> Result<Self> {
        let no = |what: String| Err(Error::not_on_cuda(OP, what));
        let (dims, k_dims) = (q.dims(), k.dims());
        let [batch, q_len, heads, head_dim] = [dims[0], dims[1], dims[2], dims[3]];
        let [k_len, kv_heads] = [k_dims[1], k_dims[2]];
        let chip = q.gpu()?.arch();
        if chip.number() != 90 {
            return no(format!("fp8 on a GPU of {chip}; the kernels are for sm_90a"));
        }
        if element(q.dtype()).is_none() {
            return no(format!("fp8 from {}; valid: bf16, f16", q.dtype()));
        }
        if ![64, 128, 256].contains(&head_dim) {
            return no(format!("fp8 at head dim {head_dim}; valid: 64, 128, 256"));
        }
        let tile = kernel_tile(head_dim);
        if op.tile != tile {
            return no(format!("fp8_tile {:?}; valid at head dim {head_dim}: {tile:?}", op.tile));
        }
        let scale = op.attributes.softmax_scale.unwrap_or(1.0);
        if scale <= 0.0 {
            return no(format!("softmax_scale {scale} with fp8; valid: above 0"));
        }
        let (window, group) = (op.attributes.window, heads / kv_heads);
        let shape = Shape { head_dim, q_len, k_len, group, window };
        Ok(Self { tiles: shape.fp8_forward(), shape, batch, heads, kv_heads })
    }

    fn is_empty(&self) -> bool {
        self.batch * self.heads * self.shape.q_len * self.shape.k_len == 0
    }

    fn problem(&self, op: &Fp8Op) -> Result<Problem> {
        let attributes = &op.attributes;
        let head_dim = self.shape.head_dim as f64;
        let scale = attributes.softmax_scale.unwrap_or_else(|| 1.0 / head_dim.sqrt());
        let bound = |side: Option<usize>| side.unwrap_or(FAR).min(FAR) as i32;
        Ok(Problem {
            cu_seqlens_q: 0,
            cu_seqlens_k: 0,
            batch: int(self.batch)?,
            heads: int(self.heads)?,
            group: int(self.shape.group)?,
            q_len: int(self.shape.q_len)?,
            k_len: int(self.shape.k_len)?,
            total_q: int(self.shape.q_len)?,
            window_left: bound(attributes.window.left),
            window_right: bound(attributes.window.right),
            score_factor: attributes.softcap.map_or(0.0, |cap| (scale / cap) as f32),
            exponent_factor: (attributes.softcap.unwrap_or(scale) * LOG2_E) as f32,
        })
    }
}

/// Codes and scales of q, k and v.
struct Operands {
    codes: [DeviceBuffer; 3],
    q_scales: DeviceBuffer,
    kv_scales: DeviceBuffer,
    q_blocks: usize,
    k_tiles: usize,
}

impl Operands {
    fn new(call: &Call, gpu: &Arc<Gpu>) -> Result<Self> {
        let (head_dim, block_n) = (call.shape.head_dim, call.tiles.block_n);
        // Every warpgroup of a block of the forward kernel has its 64 queries, if only zeros.
        let of_head = call.shape.q_len.div_ceil(call.tiles.block_m);
        let q_blocks = of_head * call.tiles.block_m / 64;
        let k_tiles = call.shape.k_len.div_ceil(block_n);
        let all_q = call.batch * call.heads * q_blocks;
        let all_k = call.batch * call.kv_heads * k_tiles;
        let buffer = |bytes: usize| DeviceBuffer::uninit(gpu, bytes);
        let keys = all_k * block_n * head_dim;
        Ok(Self {
            codes: [buffer(all_q * 64 * head_dim)?, buffer(keys)?, buffer(keys)?],
            q_scales: buffer(size_of::<f32>() * all_q)?,
            kv_scales: buffer(KEY_SCALES * size_of::<f32>() * all_k)?,
            q_blocks,
            k_tiles,
        })
    }
}

fn forward_defines(dtype: DType, shape: &Shape, tiles: &Fp8Forward, softcap: bool) -> Defines {
    let right = shape.window.right.is_some_and(|right| right > 0);
    Defines::new()
        .set("ELEMENT", element(dtype).unwrap_or_default())
        .set("HEAD_DIM", shape.head_dim)
        .set("BLOCK_M", tiles.block_m)
        .set("BLOCK_N", tiles.block_n)
        .set("STAGES", tiles.stages)
        .set("CAUSAL", shape.is_causal())
        .set("WINDOW_LEFT", shape.window.left.is_some())
        .set("WINDOW_RIGHT", right)
        .set("SOFTCAP", softcap)
}

fn quantize_defines(dtype: DType, head_dim: usize, block_n: usize) -> Defines {
    Defines::new()
        .set("ELEMENT", element(dtype).unwrap_or_default())
        .set("HEAD_DIM", head_dim)
        .set("BLOCK_N", block_n)
}

/// Writes out and lse.
pub(in super::super) fn forward(
    op: &Fp8Op,
    [q, k, v]: [&Tensor; 3],
    signs: Option<&Tensor>,
    outputs: &mut [Tensor],
) -> Result<()> {
    let call = Call::new(op, q, k)?;
    let [out, lse] = outputs else {
        return Err(Error::internal("attention has two outputs"));
    };
    if call.is_empty() {
        *out = Tensor::zeros(out.shape(), out.dtype(), &out.device())?;
        *lse = Tensor::full(f32::NEG_INFINITY, lse.shape(), &lse.device())?;
        return Ok(());
    }
    let gpu = q.gpu()?;
    let operands = Operands::new(&call, gpu)?;
    quantize(op, &call, [q, k, v], signs, &operands)?;
    let tiles = &call.tiles;
    let of_head = call.shape.q_len.div_ceil(tiles.block_m);
    let all = of_head * call.heads * call.batch;
    let ticket = DeviceBuffer::zeroed(gpu, size_of::<i32>())?;
    out.device_address_mut()?;
    let params = Fp8Params {
        problem: call.problem(op)?,
        schedule: schedule(&ticket, all, of_head, tiles.section)?,
        lse: lse.device_address_mut()?,
        out: RowView::of(out)?.rows,
        q: operands.codes[0].address(),
        k: operands.codes[1].address(),
        v: operands.codes[2].address(),
        q_scales: operands.q_scales.address(),
        kv_scales: operands.kv_scales.address(),
        q_blocks: int(operands.q_blocks)?,
        k_tiles: int(operands.k_tiles)?,
    };
    let map = row_map(out, call.shape.head_dim, 64)?;
    let softcap = op.attributes.softcap.is_some();
    let defines = forward_defines(q.dtype(), &call.shape, tiles, softcap);
    let kernel = gpu.kernel(&FORWARD, "attention_fp8", &defines)?;
    let blocks = gpu.limits().multiprocessors.min(int(all)? as u32);
    let launch =
        Launch::linear(blocks, tiles.threads()).shared(tiles.shared_bytes(call.shape.head_dim));
    // SAFETY: sizes come from the tensors' own shapes, outputs are fresh, and the operands and the ticket
    // outlive the launch in stream order.
    unsafe { kernel.launch(&launch, &[&map, &params])? };
    Ok(())
}

/// Fills the operands. With a scale a head, a first pass finds the largest magnitudes.
fn quantize(
    op: &Fp8Op,
    call: &Call,
    qkv: [&Tensor; 3],
    signs: Option<&Tensor>,
    operands: &Operands,
) -> Result<()> {
    let gpu = qkv[0].gpu()?;
    let defines = quantize_defines(qkv[0].dtype(), call.shape.head_dim, call.tiles.block_n);
    let signs = signs.map(|signs| signs.detach().to_dtype(DType::F32)?.contiguous()).transpose()?;
    let values = operands.kv_scales.address() + size_of::<f32>() as u64;
    let places = [
        ("q", call.heads, operands.q_blocks, operands.q_scales.address(), 1),
        ("k", call.kv_heads, operands.k_tiles, operands.kv_scales.address(), KEY_SCALES),
        ("v", call.kv_heads, operands.k_tiles, values, KEY_SCALES),
    ];
    for (index, (name, heads, tiles, scales, stride)) in places.into_iter().enumerate() {
        let source = aligned(qkv[index])?;
        let largest = match op.scales {
            Fp8Scales::Tile => None,
            Fp8Scales::Head => {
                Some(DeviceBuffer::zeroed(gpu, size_of::<u32>() * call.batch * heads)?)
            }
        };
        let turned = signs.as_ref().filter(|_| name != "v");
        let params = QuantizeParams {
            source: RowView::of(&source)?.rows,
            rows: int(source.dims()[1])?,
            heads: int(heads)?,
            tiles: int(tiles)?,
            codes: operands.codes[index].address(),
            scales,
            scale_stride: int(stride)?,
            largest: largest.as_ref().map_or(0, DeviceBuffer::address),
            signs: turned.map_or(Ok(0), Tensor::device_address)?,
        };
        let grid = [tiles, heads, call.batch].map(|extent| extent as u32);
        let launch = Launch::new(grid, [QUANTIZE_THREADS, 1, 1]);
        let passes: &[&str] =
            if largest.is_some() { &["largest", "quantize"] } else { &["quantize"] };
        for pass in passes {
            let kernel = gpu.kernel(&QUANTIZE, &format!("attention_{pass}_{name}"), &defines)?;
            // SAFETY: the grid covers tiles that `Operands` has room for; rows beyond the tensor are
            // not read, and what it reads outlives the launch in stream order.
            unsafe { kernel.launch(&launch, &[&params])? };
        }
    }
    Ok(())
}

/// The kernels that are shipped.
pub(super) fn variants() -> Vec<Variant> {
    let few = "a few addresses, outside of the products";
    let mut all = Vec::new();
    for head_dim in [64, 128, 256] {
        for dtype in [DType::BF16, DType::F16] {
            for right in [None, Some(0)] {
                let window = Window { left: None, right };
                let shape = Shape { head_dim, q_len: 8192, k_len: 8192, group: 1, window };
                let tiles = shape.fp8_forward();
                let defines = forward_defines(dtype, &shape, &tiles, false);
                let variant = Variant::new(FORWARD.clone(), defines).from(90);
                all.push(Variant { spills: Some(few), ..variant });
            }
            let [_, block_n] = kernel_tile(head_dim);
            let defines = quantize_defines(dtype, head_dim, block_n);
            all.push(Variant::new(QUANTIZE.clone(), defines).from(90));
        }
    }
    all
}
