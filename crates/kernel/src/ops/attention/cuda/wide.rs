//! The backward pass at head dims beyond 128: two kernels without sums across thread blocks.

use super::params::{BackwardParams, Schedule, WideParams};
use super::{Call, HEADERS, ROW_THREADS};
use crate::ops::attention::config::Shape;
use danaus_runtime::cuda::{
    Argument, Defines, DeviceBuffer, Gpu, Header, Launch, Source, TensorMap, Variant,
};
use danaus_tensor::{DType, Result};
use std::sync::Arc;

macro_rules! header {
    ($name:literal) => {
        Header { name: concat!("attention/", $name), text: include_str!(concat!("../", $name)) }
    };
}

const OWN: [Header; 2] = [header!("backward_wide_pipeline.cuh"), header!("backward_wide.cuh")];
const ALL: [Header; HEADERS.len() + OWN.len()] = {
    let mut all = [OWN[0]; HEADERS.len() + OWN.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = if i < HEADERS.len() { HEADERS[i] } else { OWN[i - HEADERS.len()] };
        i += 1;
    }
    all
};
static WIDE: Source =
    Source::new("backward_wide_entry.cuh", include_str!("../backward_wide_entry.cuh"), &ALL);

/// Threads of both kernels: a producer's warpgroup and two of 64 rows.
const THREADS: u32 = 384;
/// Keys of a block, and queries of a row block.
pub(super) const TILE: usize = 64;
/// Queries of a block of the kernel for queries.
const QUERIES: usize = 128;

fn defines(dtype: DType, shape: &Shape, features: [bool; 2]) -> Defines {
    super::defines(dtype, shape, [TILE, TILE], features)
}

/// Gradients from statistics; `params.schedule` is not read, `maps` are those of q, k, v, grad_out, dq,
/// dk, dv in boxes of 64 rows.
pub(super) fn launch(
    call: &Call,
    params: BackwardParams,
    maps: &[TensorMap; 7],
    gpu: &Arc<Gpu>,
) -> Result<()> {
    let problem = call.problem;
    let features = [call.packed, problem.softcap.is_some()];
    let defines = defines(call.dtype, &call.shape, features);
    let ticket = DeviceBuffer::uninit(gpu, 0)?;
    let [keys, queries] = call.shape.wide_sections();
    let schedule = |of_head: usize, heads: usize, section: usize| -> Result<Schedule> {
        super::schedule(&ticket, of_head * heads * call.batch, of_head, section)
    };
    let params = WideParams {
        base: BackwardParams {
            schedule: schedule(call.shape.k_len.div_ceil(TILE), problem.kv_heads, keys)?,
            ..params
        },
        query_schedule: schedule(call.shape.q_len.div_ceil(QUERIES), problem.heads, queries)?,
    };
    let grid = [call.shape.q_len.div_ceil(TILE), problem.heads, call.batch];
    let rows = Launch::new(grid.map(|extent| extent as u32), [ROW_THREADS, 1, 1]);
    let [keys_bytes, queries_bytes] = call.shape.wide_shared_bytes();
    let keys = Launch::linear(params.base.schedule.tiles as u32, THREADS).shared(keys_bytes);
    let queries = Launch::linear(params.query_schedule.tiles as u32, THREADS).shared(queries_bytes);
    let kernel = |entry: &str| gpu.kernel(&WIDE, entry, &defines);
    let [q, k, v, grad_out, dq, dk, dv] = maps;
    let arguments: [&dyn Argument; 8] = [q, k, v, grad_out, dq, dk, dv, &params];
    // SAFETY: as for the other kernels: maps and strides come from the tensors' shapes, the gradients are
    // fresh, and the workspace has a place for every row block that a sequence has.
    unsafe {
        kernel("attention_prepare_rows")?.launch(&rows, &[&params])?;
        kernel("attention_backward_keys")?.launch(&keys, &arguments)?;
        kernel("attention_backward_queries")?.launch(&queries, &arguments)?;
    }
    Ok(())
}

/// The kernel of one shape, for the list of those that are shipped.
pub(super) fn variant(dtype: DType, shape: &Shape, packed: bool) -> Variant {
    Variant::new(WIDE.clone(), defines(dtype, shape, [packed, false])).from(90)
}
