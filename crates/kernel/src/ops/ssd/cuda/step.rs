//! The recurrence token by token.

use super::super::op::Problem;
use super::super::reference::Steps;
use super::{Call, MAX_D_STATE, OP, RECURRENT, Tables, int, optional, params};
use danaus_runtime::cuda::{Argument, Defines, Launch};
use danaus_tensor::cuda::device_type;
use danaus_tensor::{Error, Result, Tensor};

/// Warps of a block.
const WARPS: usize = 4;
/// Rows of the state that a warp keeps.
const ROWS: usize = 4;

/// Numbers of a row that a lane keeps.
fn lane_states(d_state: usize) -> usize {
    d_state.div_ceil(32).next_power_of_two()
}

/// Constants of the kernel.
pub(super) fn defines(kind: &str, d_state: usize, vector: bool) -> Defines {
    Defines::new()
        .set("ELEMENT", kind)
        .set("ROWS", ROWS)
        .set("LANE_STATES", lane_states(d_state))
        .set("VECTOR", u8::from(vector))
}

/// Writes `y` and the states that runs leave; `core` says that dt is the scale and A the decay.
pub(in super::super) fn step(
    steps: &Steps,
    core: bool,
    problem: &Problem,
    y: &mut Tensor,
    last: &mut Tensor,
) -> Result<()> {
    recurrent(&Call::new(problem, steps, core)?, y, Some(last))
}

/// Writes `y`, gated if final states are asked for: without, `y` is what enters the gate.
pub(super) fn recurrent(call: &Call, y: &mut Tensor, last: Option<&mut Tensor>) -> Result<()> {
    let (problem, shape) = (call.problem, call.shape());
    if shape.d_state > MAX_D_STATE {
        let what = format!("d_state {}; valid: at most {MAX_D_STATE}", shape.d_state);
        return Err(Error::not_on_cuda(OP, what));
    }
    let warps = call.runs().len() * shape.heads * shape.head_dim.div_ceil(ROWS);
    if warps == 0 {
        return Ok(());
    }
    // Chunks play no part here; one token each keeps their number in range.
    let tables = Tables::new(shape, call.runs(), plan_chunk(shape.tokens), problem.x.tensor())?;
    let (x, x_row) = problem.x.on_device()?;
    let (b, b_row) = problem.b.on_device()?;
    let (c, c_row) = problem.c.on_device()?;
    let (z, z_row) = match &problem.z {
        Some(z) if last.is_some() => z.on_device()?,
        _ => (0, 0),
    };
    let initial = optional(problem.initial.as_ref())?;
    let lane = lane_states(shape.d_state);
    let (narrow, wide) = (lane * call.narrow.size(), lane * call.wide.size());
    let vector = shape.d_state == 32 * lane
        && [b, c].iter().all(|address| address.is_multiple_of(narrow as u64))
        && [b_row, c_row].iter().all(|row| row % lane == 0)
        && initial.is_multiple_of(wide as u64);
    let arrays = params::RecurrentArrays {
        x,
        b,
        c,
        z,
        dt: problem.dt.device_address()?,
        a: problem.a.device_address()?,
        d: optional(problem.d.as_ref())?,
        bias: optional(problem.dt_bias.as_ref())?,
        initial,
        y: y.device_address_mut()?,
        last: last.map_or(Ok(0), Tensor::device_address_mut)?,
        x_row: x_row as i64,
        b_row: b_row as i64,
        c_row: c_row as i64,
        z_row: z_row as i64,
    };
    let defines = defines(device_type(OP, call.narrow)?, shape.d_state, vector);
    let kernel = call.gpu.kernel(&RECURRENT, "recurrent", &defines)?;
    let launch = Launch::linear(int(warps.div_ceil(WARPS))? as u32, 32 * WARPS as u32);
    let arguments: [&dyn Argument; 3] = [&arrays, &tables.problem, &call.options];
    // SAFETY: shapes were checked; runs lie inside the tokens and states inside theirs; outputs are
    // fresh.
    unsafe { kernel.launch(&launch, &arguments)? };
    Ok(())
}

/// A chunk length that keeps the number of chunks of any problem small.
fn plan_chunk(tokens: usize) -> usize {
    tokens.clamp(1, 1 << 30)
}
