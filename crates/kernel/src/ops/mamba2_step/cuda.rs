//! The step on a GPU: one launch, whatever the rows replay. Slots, counts and states are read on the
//! device.
//!
//! # Measured facts
//! H100 (80 GB, driver 580), 25 November 2026, 80 heads of 64, d_state 128, width 4, bf16 with f32 states,
//! replayed graphs; the share is that of the copy of the same process for the states alone.
//!
//! | variant | 64 sequences | 256 | 1 |
//! | --- | --- | --- | --- |
//! | states in registers, loads in the order of use | 212 us, 52 % | 809 us, 55 % | |
//! | parameters and rings asked for first | 142 us, 78 % | 543 us, 82 % | 6.9 us |
//! | and three blocks a multiprocessor | 138 us, 80 % | 524 us, 85 % | 7.7 us |
//! | states by the copy engine, four blocks | 122 us, 91 % | 465 us, 96 % | 7.2 us |
//!
//! Half a head a block convolves B and C twice: 135 us. Quarters do not help a single sequence.
//! A draft of 5 tokens behind 3 replayed ones takes 198 us for 64 sequences, 1.6 times a single token: its
//! arithmetic, about 180 instructions a warp and token, no longer hides behind the memory.

use super::{Call, Mamba2Pool, OP};
use crate::device::{BARRIER, TMA, TYPES};
use crate::lists::list;
use crate::ops::ssd::arrays::plain;
use crate::ops::ssd::cuda::{STEP_SIZE, StepOptions, int, optional};
use danaus_runtime::cuda::{Argument, Defines, Header, Launch, Source, Variant, fault};
use danaus_tensor::cuda::{SCALAR, device_type};
use danaus_tensor::{DType, Device, Error, Result, Tensor};

const HEADERS: &[Header] = &[SCALAR, fault::HEADER, STEP_SIZE, TYPES, BARRIER, TMA];
static SOURCE: Source = Source::new("step.cuh", include_str!("step.cuh"), HEADERS);

/// Threads of a block.
const THREADS: u32 = 256;
/// Rows of a head that a block keeps.
const BLOCK_ROWS: usize = 64;
/// Largest state: a lane keeps eight numbers of a row.
const MAX_D_STATE: usize = 256;
/// Dynamic shared memory that every chip since sm_80 has.
const MAX_SHARED: usize = 160 * 1024;

/// `Arrays` of `step.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arrays {
    z: u64,
    xbc: u64,
    dt: u64,
    weight: u64,
    conv_bias: u64,
    dt_bias: u64,
    a_log: u64,
    d: u64,
    slots: u64,
    to_slots: u64,
    accepted: u64,
    rings: u64,
    steps: u64,
    states: u64,
    cursors: u64,
    y: u64,
    fault: u64,
    z_row: i64,
    xbc_row: i64,
    dt_row: i64,
}

/// `Sizes` of `step.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sizes {
    batch: i32,
    seqlen: i32,
    heads: i32,
    groups: i32,
    head_dim: i32,
    d_state: i32,
    places: i32,
    slots: i32,
    most: i32,
    per_head: i32,
    commit: i32,
    slot_check: u32,
    accepted_check: u32,
    cursor_check: u32,
}

// SAFETY: plain numbers in the order of the kernel's struct.
unsafe impl Argument for Arrays {}
// SAFETY: as above.
unsafe impl Argument for Sizes {}

/// Numbers of a row that a lane keeps.
fn lane_states(d_state: usize) -> usize {
    d_state.div_ceil(32).next_power_of_two()
}

/// How states move, and what a multiprocessor holds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Plan {
    /// Vectors of 16 bytes.
    vector: bool,
    /// By the copy engine.
    bulk: bool,
    /// Blocks of a multiprocessor at least.
    blocks: usize,
}

impl Plan {
    /// A function of the shape and the chip.
    fn new(dtype: DType, d_state: usize, arch: u32) -> Self {
        let narrow = dtype != DType::F64;
        let vector = d_state == 32 * lane_states(d_state);
        let bulk = vector && narrow && arch >= 90;
        let blocks = match (bulk, lane_states(d_state)) {
            (true, 8) => 2,
            (true, _) => 4,
            (false, 8) => 1,
            // What registers hold without spills.
            (false, _) => {
                if narrow && vector {
                    3
                } else {
                    1
                }
            }
        };
        Self { vector, bulk, blocks }
    }

    /// Bytes of shared memory for a block's part of a state and its barrier.
    fn state_bytes(&self, d_state: usize) -> usize {
        if self.bulk { BLOCK_ROWS * 4 * 32 * lane_states(d_state) + 16 } else { 0 }
    }
}

fn defines(kind: &str, width: usize, d_state: usize, plan: Plan) -> Defines {
    Defines::new()
        .set("ELEMENT", kind)
        .set("TAPS", width)
        .set("LANE_STATES", lane_states(d_state))
        .set("VECTOR", u8::from(plan.vector))
        .set("BULK", u8::from(plan.bulk))
        .set("BLOCKS", plan.blocks)
}

/// Integers of the call beside the pool.
fn numbers(tensor: &Tensor, device: &Device) -> Result<Tensor> {
    if tensor.device() != Device::Cpu {
        return plain(&tensor.to_dtype(DType::I32)?);
    }
    list(&plain(&tensor.to_dtype(DType::I32)?)?.to_vec::<i32>()?, device)
}

/// Advances the states and writes `y`.
pub(super) fn step(call: &Call, pool: &mut Mamba2Pool, y: &mut Tensor) -> Result<()> {
    let sizes = &call.sizes;
    if sizes.d_state > MAX_D_STATE {
        let what = format!("d_state {}; valid: at most {MAX_D_STATE}", sizes.d_state);
        return Err(Error::not_on_cuda(OP, what));
    }
    if sizes.batch == 0 {
        return Ok(());
    }
    let (gpu, dtype) = (y.gpu()?.clone(), y.dtype());
    let plan = Plan::new(dtype, sizes.d_state, gpu.arch().number());
    let shared = shared_bytes(call, dtype, plan)?;
    let defines = defines(device_type(OP, dtype)?, sizes.width, sizes.d_state, plan);
    let kernel = gpu.kernel(&SOURCE, "mamba2_step", &defines)?;
    let blocks = sizes.batch * sizes.heads * sizes.head_dim.div_ceil(BLOCK_ROWS);
    let launch = Launch::linear(int(blocks)? as u32, THREADS).shared(shared);
    let device = y.device();
    let list = |tensor: Option<&Tensor>| tensor.map(|t| numbers(t, &device)).transpose();
    let (slots, to_slots) = (numbers(call.rows.slots, &device)?, list(call.rows.to_slots)?);
    let accepted = list(call.rows.accepted)?;
    let arrays = arrays(call, pool, y, [Some(&slots), to_slots.as_ref(), accepted.as_ref()])?;
    let steps = call.options.ssd().steps();
    let options = StepOptions {
        low: steps.dt_limit.0,
        high: steps.dt_limit.1,
        softplus: i32::from(steps.dt_softplus),
        core: 0,
    };
    let arguments: [&dyn Argument; 3] = [&arrays, &kernel_sizes(call, y)?, &options];
    // SAFETY: shapes were checked, slots and counts are by the kernel; the pool is nobody else's.
    unsafe { kernel.launch(&launch, &arguments)? };
    Ok(())
}

/// Shared memory of a block: its part of a state, what the convolution gives for every token, and a row of
/// numbers behind them that no one uses.
fn shared_bytes(call: &Call, dtype: DType, plan: Plan) -> Result<u32> {
    let sizes = &call.sizes;
    let replayed = call.rows.accepted.map_or(0, |_| sizes.most_replayed());
    let width = sizes.head_dim.min(BLOCK_ROWS) + 2 * sizes.d_state;
    let (token, tokens) = (width.next_multiple_of(4) + 2, replayed + sizes.seqlen);
    let (size, state) = (dtype.accumulator().size(), plan.state_bytes(sizes.d_state));
    let bytes = state + (tokens * token + BLOCK_ROWS) * size;
    if bytes > MAX_SHARED {
        let most = (MAX_SHARED - state) / (token * size) - 1;
        let what = format!("{tokens} tokens, replayed ones and new; valid: at most {most}");
        return Err(Error::not_on_cuda(OP, what));
    }
    Ok(bytes as u32)
}

fn arrays(
    call: &Call,
    pool: &mut Mamba2Pool,
    y: &mut Tensor,
    [slots, to_slots, accepted]: [Option<&Tensor>; 3],
) -> Result<Arrays> {
    let (xbc, xbc_row) = call.xbc.on_device()?;
    let (dt, dt_row) = call.dt.on_device()?;
    let (z, z_row) = call.z.as_ref().map_or(Ok((0, 0)), |z| z.on_device())?;
    Ok(Arrays {
        z,
        xbc,
        dt,
        weight: call.weight.device_address()?,
        conv_bias: optional(call.conv_bias.as_ref())?,
        dt_bias: optional(call.dt_bias.as_ref())?,
        a_log: call.a_log.device_address()?,
        d: optional(call.d.as_ref())?,
        slots: optional(slots)?,
        to_slots: optional(to_slots)?,
        accepted: optional(accepted)?,
        rings: pool.conv.device_address_mut()?,
        steps: pool.dt.device_address_mut()?,
        states: pool.scan.device_address_mut()?,
        cursors: pool.cursor.device_address_mut()?,
        y: y.device_address_mut()?,
        fault: y.gpu()?.check(OP, "slots").address,
        z_row: z_row as i64,
        xbc_row: xbc_row as i64,
        dt_row: dt_row as i64,
    })
}

fn kernel_sizes(call: &Call, y: &Tensor) -> Result<Sizes> {
    let (sizes, gpu) = (&call.sizes, y.gpu()?);
    Ok(Sizes {
        batch: int(sizes.batch)?,
        seqlen: int(sizes.seqlen)?,
        heads: int(sizes.heads)?,
        groups: int(sizes.groups)?,
        head_dim: int(sizes.head_dim)?,
        d_state: int(sizes.d_state)?,
        places: int(sizes.places)?,
        slots: int(sizes.slots)?,
        most: int(sizes.most_replayed())?,
        per_head: i32::from(call.d.as_ref().is_some_and(|d| d.rank() == 1)),
        commit: i32::from(call.options.commit),
        slot_check: gpu.check(OP, "slots").number,
        accepted_check: gpu.check(OP, "accepted").number,
        cursor_check: gpu.check(OP, "cursor").number,
    })
}

/// Overwrites a slot of one of the pool's tensors, in place.
pub(super) fn write_row(tensor: &mut Tensor, slot: usize, row: &Tensor) -> Result<()> {
    let row = plain(row)?;
    let (bytes, gpu) = (row.bytes(), row.gpu()?.clone());
    if bytes == 0 {
        return Ok(());
    }
    let to = tensor.device_address_mut()? + (slot * bytes) as u64;
    let (from, count) = (row.device_address()?, (bytes / 2) as i64);
    let kernel = gpu.kernel(&SOURCE, "copy_row", &plain_defines(DType::F32)?)?;
    let launch = Launch::linear(int((bytes / 2).div_ceil(256).min(1024))? as u32, 256);
    let arguments: [&dyn Argument; 3] = [&from, &to, &count];
    // SAFETY: the row has the size of a slot, which exists; the tensor is nobody else's.
    unsafe { kernel.launch(&launch, &arguments) }.map_err(Into::into)
}

/// Copies the last inputs of a slot to `conv` `[1, channels, history]`.
pub(super) fn read_ring(pool: &Mamba2Pool, slot: usize, conv: &mut Tensor) -> Result<()> {
    let count = conv.elem_count();
    if count == 0 {
        return Ok(());
    }
    let gpu = conv.gpu()?.clone();
    let kernel = gpu.kernel(&SOURCE, "read_ring", &plain_defines(pool.conv.dtype())?)?;
    let (rings, cursors) = (pool.conv.device_address()?, pool.cursor.device_address()?);
    let (to, slot) = (conv.device_address_mut()?, slot as i64);
    let sizes = [pool.conv.dims()[1], pool.conv.dims()[2], conv.dims()[2]];
    let [places, channels, history] = sizes.map(int);
    let (places, channels, history) = (places?, channels?, history?);
    let launch = Launch::linear(int(count.div_ceil(256))? as u32, 256);
    let arguments: [&dyn Argument; 7] =
        [&rings, &cursors, &to, &slot, &places, &channels, &history];
    // SAFETY: the slot exists, and the target has a place for every channel and input.
    unsafe { kernel.launch(&launch, &arguments) }.map_err(Into::into)
}

/// Constants for the entries that only move elements.
fn plain_defines(dtype: DType) -> Result<Defines> {
    Ok(defines(device_type(OP, dtype)?, 4, 128, Plan::new(dtype, 128, 80)))
}

/// The kernels that are shipped: the shapes that models use.
pub(crate) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for dtype in [DType::BF16, DType::F32] {
        for (d_state, arch) in [(64, 80), (128, 80), (256, 80), (64, 90), (128, 90), (256, 90)] {
            let kind = if dtype == DType::BF16 { "bf16" } else { "float" };
            let defines = defines(kind, 4, d_state, Plan::new(dtype, d_state, arch));
            all.push(Variant::new(SOURCE.clone(), defines).from(arch));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_engine_serves_whole_vectors_where_it_exists() {
        let plan = |dtype, d_state, arch| Plan::new(dtype, d_state, arch);
        assert_eq!(plan(DType::BF16, 128, 90), Plan { vector: true, bulk: true, blocks: 4 });
        assert_eq!(plan(DType::F32, 128, 80), Plan { vector: true, bulk: false, blocks: 3 });
        assert!(!plan(DType::BF16, 100, 90).vector && !plan(DType::F64, 128, 90).bulk);
        // Four blocks' states fit a multiprocessor of Hopper.
        assert!(4 * plan(DType::BF16, 128, 90).state_bytes(128) <= 228 * 1024);
    }
}
