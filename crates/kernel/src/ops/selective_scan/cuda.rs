//! The selective scan on a GPU, channel-last: channels in the lanes, tokens one by one, without atomics.
//! Serves f64, f32 and bf16 with every option and a d_state of up to 512 (f64: 256). Values of delta and A
//! are not looked at on the host: a NaN in delta arrives in the results of its channel.
//!
//! # Measured facts
//! H100 (80 GB, driver 580), 25 November 2026, 8 x 8,192 tokens of 4,096 channels, n 16, bf16: forward
//! 3.8 ms, backward 14.5 ms (3.5 of it for the states before chunks, 10.8 for the walk back). Fetching one
//! token ahead instead of a chunk took 6.4 ms and 24.4 ms. Relative error of results and gradients against
//! f64, in norm: 1.8e-3, one rounding to bf16; from f32 inputs 3.4e-7.

use super::problem::{A, B, C, D, DELTA, DELTA_BIAS, HeldMap, INITIAL, OP, Problem, U, Wide, Z};
use crate::ops::ssd::arrays::{Held, empty_like, plain_optional, wide};
use crate::ops::ssd::config;
use crate::ops::ssd::cuda::{PROBLEM, STEP_SIZE, StepOptions, Tables, int, optional, threads};
use danaus_runtime::cuda::{Argument, Defines, Gpu, Header, Launch, Source, Variant};
use danaus_tensor::cuda::{SCALAR, device_type};
use danaus_tensor::{DType, Error, Inputs, Result, Tensor, no_grad};
use std::sync::Arc;

const HEADERS: &[Header] = &[SCALAR, PROBLEM, STEP_SIZE];
static SOURCE: Source = Source::new("scan.cuh", include_str!("scan.cuh"), HEADERS);

/// Threads of a block.
const THREADS: usize = 128;
/// Tokens between two states that backward keeps: as many as fit shared memory with three blocks.
const CHUNK: usize = 8;

/// `Arrays` of `scan.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Arrays {
    u: u64,
    delta: u64,
    z: u64,
    dy: u64,
    b: u64,
    c: u64,
    a: u64,
    d: u64,
    bias: u64,
    initial: u64,
    dlast: u64,
    y: u64,
    du: u64,
    ddelta: u64,
    dz: u64,
    last: u64,
    checkpoints: u64,
    dinitial: u64,
    da: u64,
    db_constant: u64,
    dc_constant: u64,
    dd: u64,
    dbias: u64,
    db: u64,
    dc: u64,
    u_row: i64,
    delta_row: i64,
    z_row: i64,
    dy_row: i64,
    b_row: i64,
    c_row: i64,
}

// SAFETY: plain numbers in the order of the kernel's struct.
unsafe impl Argument for Arrays {}

/// How a channel's state is spread over lanes.
#[derive(Clone, Copy)]
struct Spread {
    lanes: usize,
    states: usize,
}

impl Spread {
    fn of(d_state: usize, dtype: DType) -> Self {
        let most = if dtype == DType::F64 { 8 } else { 16 };
        let states = d_state.next_power_of_two().min(most);
        Self { lanes: d_state.div_ceil(states).next_power_of_two(), states }
    }

    fn defines(self, kind: &str, maps: u32) -> Defines {
        Defines::new()
            .set("ELEMENT", kind)
            .set("LANES", self.lanes)
            .set("STATES", self.states)
            .set("MAPS", maps)
    }
}

/// One call on its GPU.
struct Call<'a> {
    problem: &'a Problem,
    wide: Wide,
    tables: Tables,
    spread: Spread,
    options: StepOptions,
    defines: Defines,
    gpu: Arc<Gpu>,
    narrow: DType,
    arrays: Arrays,
}

fn map_address(map: &HeldMap) -> Result<(u64, usize)> {
    match map {
        HeldMap::Token(held) => held.on_device(),
        HeldMap::Constant(tensor) => Ok((tensor.device_address()?, 0)),
    }
}

impl<'a> Call<'a> {
    fn new(problem: &'a Problem, inputs: Inputs) -> Result<Self> {
        let arrays = Wide::new(inputs)?;
        let u = arrays.u.tensor();
        let (narrow, shape) = (u.dtype(), problem.shape);
        let spread = Spread::of(shape.d_state, narrow);
        if spread.lanes > 32 {
            let what = format!("d_state {}; valid: at most {}", shape.d_state, 32 * spread.states);
            return Err(Error::not_on_cuda(OP, what));
        }
        let sizes = config::Shape {
            tokens: shape.tokens,
            heads: shape.channels,
            groups: shape.groups,
            head_dim: 1,
            d_state: shape.d_state,
        };
        let tables = Tables::new(&sizes, &problem.packing.runs, CHUNK, u)?;
        let ((b, b_row), (c, c_row)) = (map_address(&arrays.b)?, map_address(&arrays.c)?);
        let constant = |map: &HeldMap| matches!(map, HeldMap::Constant(_));
        let (u_at, u_row) = arrays.u.on_device()?;
        let (delta, delta_row) = arrays.delta.on_device()?;
        let (z, z_row) = arrays.z.as_ref().map_or(Ok((0, 0)), Held::on_device)?;
        let addresses = Arrays {
            u: u_at,
            delta,
            z,
            b,
            c,
            a: problem.a.device_address()?,
            d: optional(problem.d.as_ref())?,
            bias: optional(problem.delta_bias.as_ref())?,
            initial: optional(problem.initial.as_ref())?,
            u_row: u_row as i64,
            delta_row: delta_row as i64,
            z_row: z_row as i64,
            b_row: b_row as i64,
            c_row: c_row as i64,
            ..Arrays::default()
        };
        let row = |row: usize| (row * narrow.size()).is_multiple_of(16);
        let even = spread.lanes * spread.states == shape.d_state
            && [b, c, addresses.a, addresses.initial].iter().all(|at| at.is_multiple_of(16))
            && row(b_row)
            && row(c_row)
            && row(shape.d_state);
        let bits = [even, constant(&arrays.b), constant(&arrays.c)];
        let maps = bits.iter().enumerate().map(|(bit, &set)| u32::from(set) << bit).sum();
        let options = StepOptions {
            low: f64::NEG_INFINITY,
            high: f64::INFINITY,
            softplus: i32::from(problem.delta_softplus),
            core: 0,
        };
        Ok(Self {
            problem,
            tables,
            spread,
            options,
            defines: spread.defines(device_type(OP, narrow)?, maps),
            gpu: u.gpu()?.clone(),
            narrow,
            arrays: addresses,
            wide: arrays,
        })
    }

    /// Warps of channels of a group.
    fn warps(&self) -> usize {
        let channels = THREADS / self.spread.lanes;
        self.problem.shape.channels_per_group().div_ceil(channels) * (THREADS / 32)
    }

    fn launch(&self, entry: &str, arrays: &Arrays, shared: usize) -> Result<()> {
        let runs = self.problem.packing.runs.len();
        let blocks = runs * self.problem.shape.groups * self.warps() / (THREADS / 32);
        if blocks == 0 {
            return Ok(());
        }
        let launch = Launch::linear(int(blocks)? as u32, THREADS as u32).shared(shared as u32);
        let arguments: [&dyn Argument; 3] = [arrays, &self.tables.problem, &self.options];
        let kernel = self.gpu.kernel(&SOURCE, entry, &self.defines)?;
        // SAFETY: shapes were checked; runs lie inside the tokens and states inside theirs; what is
        // written is fresh and has a place for every run, token and channel.
        unsafe { kernel.launch(&launch, &arguments)? };
        Ok(())
    }

    fn empty(&self, shape: &[usize]) -> Result<Tensor> {
        Tensor::empty(shape, wide(self.narrow), &self.problem.a.device())
    }
}

/// Writes `y` and the last states.
pub(super) fn forward(
    problem: &Problem,
    inputs: Inputs,
    y: &mut Tensor,
    last: &mut Tensor,
) -> Result<()> {
    let call = Call::new(problem, inputs)?;
    let (y, last) = (y.device_address_mut()?, last.device_address_mut()?);
    call.launch("scan", &Arrays { y, last, ..call.arrays }, 0)
}

/// A gradient for every input that has one.
pub(super) fn backward(
    problem: &Problem,
    inputs: Inputs,
    dy: &Tensor,
    dlast: Option<&Tensor>,
) -> Result<Vec<Option<Tensor>>> {
    let call = Call::new(problem, inputs)?;
    let shape = problem.shape;
    let (runs, channels, n) = (problem.packing.runs.len(), shape.channels, shape.d_state);
    let (dy, dlast) = (Held::new(dy, 1)?, plain_optional(dlast)?);
    let (dy_at, dy_row) = dy.on_device()?;
    let new = |index: usize| -> Result<Tensor> {
        inputs[index].map_or_else(|| Err(Error::internal("a missing input")), empty_like)
    };
    let (mut du, mut ddelta) = (new(U)?, new(DELTA)?);
    let mut dz = inputs[Z].map(empty_like).transpose()?;
    let mut dinitial = inputs[INITIAL].map(empty_like).transpose()?;
    let spread = call.spread;
    let mut kept = call.empty(&[call.tables.chunks(), spread.states, channels, spread.lanes])?;
    let mut da = call.empty(&[runs, channels, n])?;
    let (mut dd, mut dbias) = (call.empty(&[runs, channels])?, call.empty(&[runs, channels])?);
    // By run for constants, else by token, group and warp.
    let parts = |map: &HeldMap| match map {
        HeldMap::Constant(_) => call.empty(&[runs, channels, n]),
        HeldMap::Token(_) => call.empty(&[shape.tokens * shape.groups, call.warps(), n]),
    };
    let (mut db, mut dc) = (parts(&call.wide.b)?, parts(&call.wide.c)?);
    let (db_at, dc_at) = (db.device_address_mut()?, dc.device_address_mut()?);
    let arrays = Arrays {
        checkpoints: kept.device_address_mut()?,
        dy: dy_at,
        dlast: optional(dlast.as_ref())?,
        du: du.device_address_mut()?,
        ddelta: ddelta.device_address_mut()?,
        dz: dz.as_mut().map_or(Ok(0), Tensor::device_address_mut)?,
        dinitial: dinitial.as_mut().map_or(Ok(0), Tensor::device_address_mut)?,
        da: da.device_address_mut()?,
        db_constant: db_at,
        dc_constant: dc_at,
        dd: dd.device_address_mut()?,
        dbias: dbias.device_address_mut()?,
        db: db_at,
        dc: dc_at,
        dy_row: dy_row as i64,
        ..call.arrays
    };
    let states = Arrays { checkpoints: arrays.checkpoints, ..call.arrays };
    call.launch("scan", &states, 0)?;
    let shared = CHUNK * (spread.states + 3) * THREADS * wide(call.narrow).size();
    call.launch("scan_backward", &arrays, shared)?;
    let mut slots: Vec<Option<Tensor>> = vec![None; inputs.len()];
    for (index, parts) in [(B, db), (C, dc)] {
        slots[index] = Some(call.map_gradient(&parts, new(index)?)?);
    }
    (slots[U], slots[DELTA], slots[Z], slots[INITIAL]) = (Some(du), Some(ddelta), dz, dinitial);
    no_grad(|| {
        slots[A] = Some(da.sum(0)?);
        slots[D] = inputs[D].map(|_| dd.sum(0)).transpose()?;
        slots[DELTA_BIAS] = inputs[DELTA_BIAS].map(|_| dbias.sum(0)).transpose()?;
        Ok(slots)
    })
}

impl Call<'_> {
    /// From parts to the gradient of B or C.
    fn map_gradient(&self, parts: &Tensor, mut gradient: Tensor) -> Result<Tensor> {
        if gradient.rank() == 2 {
            return no_grad(|| parts.sum(0));
        }
        let count = gradient.elem_count();
        if count == 0 {
            return Ok(gradient);
        }
        let (from, to) = (parts.device_address()?, gradient.device_address_mut()?);
        let (elements, n) = (count as i64, self.problem.shape.d_state as i64);
        let warps = self.warps() as i64;
        let arguments: [&dyn Argument; 5] = [&from, &to, &elements, &n, &warps];
        let kernel = self.gpu.kernel(&SOURCE, "sum_rows", &self.defines)?;
        // SAFETY: the parts have `warps` rows for each row of the gradient.
        unsafe { kernel.launch(&threads(count)?, &arguments)? };
        Ok(gradient)
    }
}

/// The kernels that are shipped: the state sizes of models, with B and C per token.
pub(crate) fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for (kind, dtype) in [("bf16", DType::BF16), ("float", DType::F32), ("double", DType::F64)] {
        for d_state in [16, 64] {
            for maps in [0, 1, 6] {
                let defines = Spread::of(d_state, dtype).defines(kind, maps);
                let variant = Variant::new(SOURCE.clone(), defines);
                let spills = (dtype == DType::F64).then_some("gradients in f64, for checks");
                all.push(Variant { spills, ..variant });
            }
        }
    }
    all
}
