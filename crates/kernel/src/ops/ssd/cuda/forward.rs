//! The forward pass: one walk over chunks with the matrix units, or the recurrence.

use super::super::op::{Problem, Ssd};
use super::{Call, GENERIC, SWEEP, Tables, Tiles, optional, params, plan, step};
use danaus_runtime::cuda::{Argument, Defines, Launch};
use danaus_tensor::{DType, Level, Result, Tensor, asked_level};

/// What a walk over chunks is for.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    /// Writes y.
    pub output: bool,
    /// Writes the state at every chunk.
    pub images: bool,
    /// From the last token to the first.
    pub reverse: bool,
}

pub(super) const OUTPUT: Pass = Pass { output: true, images: false, reverse: false };
/// What segments add to the state.
pub(super) const ENDS: Pass = Pass { output: false, images: false, reverse: false };

impl Pass {
    pub(super) fn defines(self, d_state: usize) -> Defines {
        Defines::new()
            .set("STATE", d_state)
            .set("OUTPUT", u8::from(self.output))
            .set("IMAGES", u8::from(self.images))
            .set("REVERSE", u8::from(self.reverse))
            .set("STAGES", plan::STAGES)
    }
}

/// Arrays of a walk: `v` per head, `k` and `c` per group.
pub(super) struct Walk<'a> {
    pub pass: Pass,
    pub v: &'a Tiles,
    pub k: &'a Tiles,
    pub c: &'a Tiles,
    pub steps: &'a Tensor,
    /// By state: what runs start from, and what they leave.
    pub first: Option<&'a Tensor>,
    pub last: u64,
    pub images: u64,
    pub y: u64,
    pub z: (u64, usize),
    pub d: u64,
}

/// Writes `y` and the final states.
pub(in super::super) fn forward(
    op: &Ssd,
    problem: &Problem,
    y: &mut Tensor,
    last: &mut Tensor,
) -> Result<()> {
    let call = Call::new(problem, &op.options.steps(), op.core)?;
    let recurrent = !call.is_matrix(op.options.chunk_size)
        || plan::is_short(call.runs())
        || asked_level() == Level::Invariant;
    if recurrent {
        return step::recurrent(&call, y, Some(last));
    }
    let tables = Tables::new(call.shape(), call.runs(), plan::CHUNK, problem.x.tensor())?;
    let steps = call.steps(&tables)?;
    let z = problem.z.as_ref().map(|z| z.on_device()).transpose()?.unwrap_or((0, 0));
    let last = last.device_address_mut()?;
    output(&call, &tables, &steps, (y.device_address_mut()?, last), z)
}

/// The matrix kernels' forward pass: `y` at an address, with the gate at another, final states at `last`
/// unless it is 0.
pub(super) fn output(
    call: &Call,
    tables: &Tables,
    steps: &Tensor,
    (y, last): (u64, u64),
    z: (u64, usize),
) -> Result<()> {
    let (problem, shape) = (call.problem, call.shape());
    let (v, k, c) = (
        Tiles::new(&problem.x, (shape.heads, shape.head_dim))?,
        Tiles::new(&problem.b, (shape.groups, shape.d_state))?,
        Tiles::new(&problem.c, (shape.groups, shape.d_state))?,
    );
    let first = problem.initial.as_ref();
    let d = optional(problem.d.as_ref())?;
    let walk = Walk { pass: OUTPUT, v: &v, k: &k, c: &c, steps, first, last, images: 0, y, z, d };
    call.walk(tables, &walk)
}

impl Call<'_> {
    /// Walks every run, in segments where runs are too few to fill the chip.
    pub(super) fn walk(&self, tables: &Tables, walk: &Walk) -> Result<()> {
        let shape = self.shape();
        let longest = self.runs().iter().map(|run| run.len.div_ceil(plan::CHUNK)).max();
        let walks = plan::walks(shape, self.runs().len());
        let segments = plan::segments(walks, longest.unwrap_or(0), self.multiprocessors());
        let first = optional(walk.first)?;
        let mut params = params::Sweep {
            problem: tables.problem,
            steps: walk.steps.device_address()?,
            entering: 0,
            first,
            leaving: 0,
            decays: 0,
            last: walk.last,
            images: walk.images,
            y: walk.y,
            z: walk.z.0,
            d: walk.d,
            z_row: walk.z.1 as i64,
            segments: segments as i32,
        };
        let states;
        if segments > 1 {
            states = self.entering(tables, walk, &params)?;
            params.entering = states.device_address()?;
        }
        self.launch_walk(walk, walk.pass, &params, walks * segments)
    }

    /// The states that segments enter with.
    fn entering(&self, tables: &Tables, walk: &Walk, params: &params::Sweep) -> Result<Tensor> {
        let shape = self.shape();
        let segments = params.segments as usize;
        let (heads, size) = (shape.heads, shape.head_dim * shape.d_state);
        let places = self.runs().len() * segments * heads;
        let mut states = self.empty(&[places, size], DType::F32)?;
        let mut decays = self.empty(&[places], DType::F32)?;
        let (states_at, decays_at) = (states.device_address_mut()?, decays.device_address_mut()?);
        let ends =
            params::Sweep { leaving: states_at, decays: decays_at, first: 0, last: 0, ..*params };
        let pass = Pass { output: false, images: false, ..walk.pass };
        let walks = plan::walks(shape, self.runs().len());
        self.launch_walk(walk, pass, &ends, walks * segments)?;
        let kernel = self.gpu.kernel(&GENERIC, "join_segments", &self.element()?)?;
        let blocks = self.runs().len() * heads * size.div_ceil(256);
        let reverse = i32::from(walk.pass.reverse);
        let problem = &tables.problem;
        let arguments: [&dyn Argument; 6] =
            [&states_at, &decays_at, &params.first, problem, &params.segments, &reverse];
        // SAFETY: one place for each run, segment and head.
        unsafe { kernel.launch(&super::threads(256 * blocks)?, &arguments)? };
        Ok(states)
    }

    fn launch_walk(
        &self,
        walk: &Walk,
        pass: Pass,
        params: &params::Sweep,
        blocks: usize,
    ) -> Result<()> {
        let d_state = self.shape().d_state;
        let kernel = self.gpu.kernel(&SWEEP, "ssd_sweep", &pass.defines(d_state))?;
        let launch = Launch::linear(super::int(blocks)? as u32, 384).shared(plan::sweep_bytes(
            d_state,
            pass.output,
            pass.images,
        ));
        let arguments: [&dyn Argument; 4] = [&walk.v.map, &walk.k.map, &walk.c.map, params];
        // SAFETY: maps come from the tensors' own shapes; runs and chunks were cut from them; outputs
        // are fresh and have a place for everything that is written.
        unsafe { kernel.launch(&launch, &arguments)? };
        Ok(())
    }
}
