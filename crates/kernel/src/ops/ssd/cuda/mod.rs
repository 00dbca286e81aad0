//! State space duality on a GPU: what serves a call, and what its passes share.
//!
//! | file | holds |
//! | --- | --- |
//! | `problem.cuh`, `params.rs` | runs, chunks, the kernels' arguments |
//! | `step_size.cuh`, `steps.cuh` | from dt to what the passes read, and the gradients back; the gate's gradient |
//! | `recurrent.cuh` | the recurrence token by token: every shape and type, decoding, the invariant level |
//! | `sweep.cuh`, `tile_math.cuh` | Hopper, bf16: the forward pass, and states for the backward pass |
//! | `gradient.cuh`, `gradient_rows.cuh`, `gradient_columns.cuh` | Hopper, bf16: the backward pass of a chunk |
//! | `generic.cuh` | the backward pass for every shape and type; joins of parts |
//! | `plan.rs` | which of them, and how they fill the chip |
//!
//! The matrix kernels serve bf16 with head dim 64 and d_state 64 or 128 on sm_90a, with every option;
//! the others serve f64, f32 and bf16 up to a d_state of 256. Nothing is added in an order that depends
//! on timing: same inputs, same bits. Values of dt and A are not looked at on the host: a NaN in dt
//! arrives in the results of its head.
//!
//! # Measured facts
//! H100 (80 GB, driver 580), 25 November 2026, kernels alone, medians, random data, 65,536 tokens in
//! bf16; copy reaches 2.97 to 3.00 TB/s there. Forward with D and final states; backward with its two walks
//! over states.
//!
//! | case | forward | share of copy | backward |
//! | --- | --- | --- | --- |
//! | 64 x 1k, 80 heads, n 128 | 1.04 ms | 45 % | 3.74 ms |
//! | 1 x 64k, 80 heads, n 128 | 1.32 ms | 35 % | 4.53 ms |
//! | 64 x 1k, 32 heads, n 64 | 0.38 ms | 50 % | 1.23 ms |
//! | 1 x 64k, 32 heads, n 64 | 0.48 ms | 39 % | 1.49 ms |
//!
//! Relative error against f64, in norm: y 2.2e-3, states 1.9e-3, gradients of x, B, C 2.5e-3, of dt
//! 1.8e-3, of A and dt_bias, which cancel, 4e-3. Walks that write states move 88 % of what a copy does, the
//! gradient kernel 78 %; the forward pass waits for its own instructions: about 1,300 a warp and chunk.
//! Computing C B^T of the next chunk while this one's output leaves changed nothing (1.00 : 0.95 ms at
//! n 128, 0.31 : 0.32 at 64). Decoding steps of 64 sequences move 84 %, of 256 87 %, of a copy
//! ([`mamba2_step`](crate::ops::mamba2_step) with its convolution 91 % and 96 %).
//!
//! Of the backward pass at n 128 (64 x 1k) the walks take 0.78 ms each and the gradient kernel 2.11. Writing
//! states of every second chunk only makes the walks 0.55 ms, but the gradient kernel then has to take the
//! missing one through a chunk itself: 2.91 ms where the consumers do it, 2.74 to 2.86 where the producing
//! warpgroup does it a head ahead (two stages fit beside its tiles, and registers spill). Not kept.

mod backward;
mod forward;
mod params;
pub(super) mod plan;
mod step;

use super::config::Shape;
use super::op::Problem;
use super::reference::Steps;
use super::runs::Run;
use crate::device::{BARRIER, MATH, SHARED_TILE, TMA, TYPES, WGMMA, WGMMA_TABLE};
use crate::ops::ssd::arrays::{Held, wide};
use danaus_runtime::cuda::tensor_map::MapType;
use danaus_runtime::cuda::{
    Argument, Defines, Gpu, Header, Launch, Source, Swizzle, TensorMap, TensorMapSpec, Variant,
};
use danaus_tensor::cuda::{BLOCK, SCALAR, device_type};
use danaus_tensor::{DType, Error, Result, Tensor};
use std::sync::Arc;

pub(super) use backward::backward;
pub(super) use forward::forward;
pub(crate) use params::StepOptions;
pub(super) use step::step;

const OP: &str = "ssd";
/// Largest state of the token-by-token kernel.
const MAX_D_STATE: usize = 256;

macro_rules! header {
    ($name:literal) => {
        Header { name: concat!("ssd/", $name), text: include_str!(concat!("../", $name)) }
    };
}

pub(crate) const PROBLEM: Header = header!("problem.cuh");
pub(crate) const STEP_SIZE: Header = header!("step_size.cuh");
const GENERAL: &[Header] = &[SCALAR, BLOCK, PROBLEM, STEP_SIZE];
const MATRIX: &[Header] = &[
    TYPES,
    MATH,
    BARRIER,
    TMA,
    SHARED_TILE,
    WGMMA,
    WGMMA_TABLE,
    PROBLEM,
    header!("tile_math.cuh"),
    header!("sweep.cuh"),
    header!("gradient.cuh"),
    header!("gradient_rows.cuh"),
    header!("gradient_columns.cuh"),
];

static STEPS: Source = Source::new("steps.cuh", include_str!("../steps.cuh"), GENERAL);
static RECURRENT: Source = Source::new("recurrent.cuh", include_str!("../recurrent.cuh"), GENERAL);
static GENERIC: Source = Source::new("generic.cuh", include_str!("../generic.cuh"), GENERAL);
static SWEEP: Source = Source::new("sweep_entry.cuh", include_str!("../sweep_entry.cuh"), MATRIX);
static GRADIENT: Source =
    Source::new("gradient_entry.cuh", include_str!("../gradient_entry.cuh"), MATRIX);

pub(crate) fn int(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| Error::not_on_cuda(OP, format!("a size of {size}")))
}

pub(crate) fn optional(tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), Tensor::device_address)
}

/// `count` threads in blocks of 256.
pub(crate) fn threads(count: usize) -> Result<Launch> {
    Ok(Launch::linear(int(count.div_ceil(256))? as u32, 256))
}

/// Runs and chunks as the kernels see them; the selective scan's too.
pub(crate) struct Tables {
    pub(crate) problem: params::Problem,
    /// Held for the addresses in `problem`.
    _tables: Option<[Tensor; 2]>,
}

impl Tables {
    pub(crate) fn new(shape: &Shape, runs: &[Run], chunk: usize, like: &Tensor) -> Result<Self> {
        let seqlen = runs.first().map_or(0, |run| run.len);
        let even = runs.iter().enumerate().all(|(index, run)| {
            let own = run.initial == Some(index) && run.last == Some(index);
            own && run.len == seqlen && run.start == index * seqlen
        });
        let mut first_chunk = 0usize;
        let (mut rows, mut chunk_run) = (Vec::new(), Vec::new());
        let state = |index: Option<usize>| index.map_or(-1, |index| index as i64);
        for (index, run) in runs.iter().enumerate() {
            let chunks = run.len.div_ceil(chunk);
            if !even {
                let (initial, last) = (state(run.initial), state(run.last));
                rows.extend([run.start as i64, run.len as i64, initial, last, first_chunk as i64]);
                chunk_run.extend(std::iter::repeat_n(index as i32, chunks));
            }
            first_chunk += chunks;
        }
        let device = like.device();
        let tables = match even {
            true => None,
            false => Some([
                Tensor::from_vec(rows, [runs.len(), 5], &device)?,
                Tensor::from_vec(chunk_run, [first_chunk], &device)?,
            ]),
        };
        let address = |index: usize| tables.as_ref().map(|tables| tables[index].device_address());
        let problem = params::Problem {
            runs: address(0).transpose()?.unwrap_or(0),
            chunk_run: address(1).transpose()?.unwrap_or(0),
            tokens: shape.tokens as i64,
            seqlen: seqlen as i64,
            heads: int(shape.heads)?,
            groups: int(shape.groups)?,
            head_dim: int(shape.head_dim)?,
            d_state: int(shape.d_state)?,
            run_count: int(runs.len())?,
            chunk_count: int(first_chunk)?,
            chunk: int(chunk)?,
        };
        Ok(Self { problem, _tables: tables })
    }

    pub(crate) fn chunks(&self) -> usize {
        self.problem.chunk_count as usize
    }
}

/// One call on its GPU.
struct Call<'a> {
    problem: &'a Problem,
    options: params::StepOptions,
    gpu: &'a Arc<Gpu>,
    /// Type of x, and of everything small.
    narrow: DType,
    wide: DType,
}

impl<'a> Call<'a> {
    fn new(problem: &'a Problem, steps: &Steps, core: bool) -> Result<Self> {
        let narrow = problem.x.tensor().dtype();
        let options = params::StepOptions {
            low: steps.dt_limit.0,
            high: steps.dt_limit.1,
            softplus: i32::from(steps.dt_softplus),
            core: i32::from(core),
        };
        let gpu = problem.x.tensor().gpu()?;
        Ok(Self { problem, options, gpu, narrow, wide: wide(narrow) })
    }

    fn shape(&self) -> &Shape {
        &self.problem.shape
    }

    fn runs(&self) -> &[Run] {
        &self.problem.packing.runs
    }

    fn multiprocessors(&self) -> usize {
        self.gpu.limits().multiprocessors as usize
    }

    /// Whether the matrix kernels serve the call, apart from how its arrays lie.
    fn is_matrix(&self, chunk_size: Option<usize>) -> bool {
        self.narrow == DType::BF16
            && self.gpu.arch().number() == 90
            && plan::has_matrix_kernels(self.shape())
            && chunk_size.is_none_or(|size| size >= plan::CHUNK)
            && self.shape().tokens < 1 << 31
    }

    fn element(&self) -> Result<Defines> {
        Ok(Defines::new().set("ELEMENT", device_type(OP, self.narrow)?))
    }

    fn empty(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Tensor::empty(shape, dtype, &self.problem.x.tensor().device())
    }

    /// What the passes over chunks read of dt and A: `[heads, chunks, 3, chunk]`.
    fn steps(&self, tables: &Tables) -> Result<Tensor> {
        let (heads, chunk) = (self.shape().heads, tables.problem.chunk as usize);
        let mut steps = self.empty(&[heads, tables.chunks(), 3, chunk], self.wide)?;
        let to = steps.device_address_mut()?;
        let (dt, a) = (self.problem.dt.device_address()?, self.problem.a.device_address()?);
        let bias = optional(self.problem.dt_bias.as_ref())?;
        let arguments: [&dyn Argument; 6] = [&dt, &a, &bias, &to, &tables.problem, &self.options];
        let kernel = self.gpu.kernel(&STEPS, "prologue", &self.element()?)?;
        // SAFETY: shapes were checked; the result has a place for every chunk of every head.
        unsafe { kernel.launch(&self.per_chunk(tables), &arguments)? };
        Ok(steps)
    }

    /// A block for each chunk and 32 heads.
    fn per_chunk(&self, tables: &Tables) -> Launch {
        let grid = [tables.chunks() as u32, self.shape().heads.div_ceil(32) as u32, 1];
        Launch::new(grid, [256, 1, 1])
    }
}

/// Rows of `width` columns per head (or group) for the copy engine, in tiles of a chunk; a copy where
/// it cannot read them.
struct Tiles {
    /// Kept for the address in the map.
    _held: Tensor,
    map: TensorMap,
}

impl Tiles {
    fn new(rows: &Held, (heads, width): (usize, usize)) -> Result<Self> {
        let (address, stride) = rows.on_device()?;
        let readable = stride % 8 == 0 && address.is_multiple_of(16);
        let held = if readable { rows.tensor().clone() } else { rows.tensor().affine(1.0, 0.0)? };
        let (address, stride) = match readable {
            true => (address, stride),
            false => (held.device_address()?, heads * width),
        };
        let tokens = rows.count() as u64;
        let row = 2 * stride as u64;
        let spec = TensorMapSpec {
            address,
            dtype: MapType::Bf16,
            dims: &[64, tokens, width as u64 / 64, heads as u64, 1],
            strides: &[row, 128, 2 * width as u64, row * tokens],
            box_dims: &[64, plan::CHUNK as u32, width as u32 / 64, 1, 1],
            swizzle: Swizzle::B128,
        };
        Ok(Self { map: spec.encode()?, _held: held })
    }
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for kind in ["bf16", "float", "double"] {
        let element = || Defines::new().set("ELEMENT", kind);
        all.push(Variant::new(STEPS.clone(), element()));
        all.push(Variant::new(GENERIC.clone(), element()));
        for d_state in [16, 64, 128, 256] {
            let defines = step::defines(kind, d_state, d_state >= 32);
            all.push(Variant::new(RECURRENT.clone(), defines));
        }
    }
    for d_state in [64, 128] {
        for pass in
            [forward::OUTPUT, forward::ENDS, backward::STATES, backward::DSTATES, backward::DENDS]
        {
            all.push(Variant::new(SWEEP.clone(), pass.defines(d_state)).from(90));
        }
        all.push(Variant::new(GRADIENT.clone(), backward::defines(d_state)).from(90));
    }
    all
}
