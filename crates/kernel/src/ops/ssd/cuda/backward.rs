//! The backward pass: states before and gradients of states behind every chunk, then each chunk by
//! itself, then what belongs to dt.

use super::super::op::{A, B, C, D, DT, DT_BIAS, INITIAL, Problem, Slots, Ssd, X, Z};
use super::forward::{Pass, Walk, output};
use super::{Call, GENERIC, GRADIENT, STEPS, Tables, Tiles, optional, params, plan, step};
use crate::ops::ssd::arrays::{Held, empty_like, plain, plain_optional};
use danaus_runtime::cuda::{Argument, Defines, Launch};
use danaus_tensor::{DType, Inputs, Result, Tensor, no_grad};

/// States before every chunk.
pub(super) const STATES: Pass = Pass { output: false, images: true, reverse: false };
/// Gradients of the states behind every chunk.
pub(super) const DSTATES: Pass = Pass { output: false, images: true, reverse: true };
/// What segments add to those.
pub(super) const DENDS: Pass = Pass { output: false, images: false, reverse: true };

/// Constants of the gradient kernel.
pub(super) fn defines(d_state: usize) -> Defines {
    Defines::new().set("STATE", d_state).set("STAGES", plan::STAGES)
}

/// Gradients that the passes over chunks give.
struct Gradients {
    x: Tensor,
    b: Tensor,
    c: Tensor,
    /// By chunk, `[chunks, heads, head_dim]`.
    d: Option<Tensor>,
    initial: Option<Tensor>,
    /// Like the steps: two parts of the decay's gradient, and the scale's.
    steps: Tensor,
}

/// A gradient for every input that has one.
pub(in super::super) fn backward(
    op: &Ssd,
    problem: &Problem,
    inputs: Inputs,
    dy: &Tensor,
    dfinal: Option<&Tensor>,
) -> Result<Slots> {
    let call = Call::new(problem, &op.options.steps(), op.core)?;
    let matrix = call.is_matrix(op.options.chunk_size);
    let chunk = match matrix {
        true => plan::CHUNK,
        false => op.options.chunk_size.unwrap_or(plan::GENERIC_CHUNK).min(plan::GENERIC_CHUNK),
    };
    let tables = Tables::new(call.shape(), call.runs(), chunk, problem.x.tensor())?;
    let mut slots: Slots = vec![None; inputs.len()];
    if tables.chunks() == 0 {
        return empty(inputs, dfinal, slots);
    }
    let steps = call.steps(&tables)?;
    let mut dy = dy.detach();
    if problem.z.is_some() {
        let (before, dz) = call.through_gate(&tables, &steps, matrix, inputs, &dy)?;
        (dy, slots[Z]) = (before, Some(dz));
    }
    let (dy, dfinal) = (Held::new(&dy, 2)?, plain_optional(dfinal)?);
    let grads = match matrix {
        true => call.matrix(&tables, &steps, &dy, dfinal.as_ref())?,
        false => call.generic(&tables, &steps, &dy, dfinal.as_ref())?,
    };
    call.step_gradients(&tables, &grads.steps, &mut slots)?;
    let one_d = inputs[D].is_some_and(|d| d.rank() == 1);
    slots[D] = grads.d.map(|parts| skip_gradient(&parts, one_d)).transpose()?;
    (slots[X], slots[B], slots[C]) = (Some(grads.x), Some(grads.b), Some(grads.c));
    slots[INITIAL] = grads.initial;
    Ok(slots)
}

/// Without tokens, states pass through and everything else is zero.
fn empty(inputs: Inputs, dfinal: Option<&Tensor>, mut slots: Slots) -> Result<Slots> {
    for (slot, input) in slots.iter_mut().zip(inputs) {
        if let Some(input) = input.filter(|input| input.dtype().is_float()) {
            *slot = Some(Tensor::zeros(input.shape(), input.dtype(), &input.device())?);
        }
    }
    if let (Some(_), Some(dfinal)) = (inputs[INITIAL], dfinal) {
        slots[INITIAL] = Some(dfinal.detach());
    }
    Ok(slots)
}

fn skip_gradient(parts: &Tensor, one_d: bool) -> Result<Tensor> {
    no_grad(|| {
        let sum = parts.sum(0)?;
        if one_d { sum.sum(1) } else { Ok(sum) }
    })
}

impl Call<'_> {
    /// The cotangent before the gate, and the gate's gradient. Computes y again rather than keeping it.
    fn through_gate(
        &self,
        tables: &Tables,
        steps: &Tensor,
        matrix: bool,
        inputs: Inputs,
        dy: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let z = plain(super::super::arrays::required(super::OP, inputs, &["z"; 11], Z)?)?;
        let (dy, mut y) = (plain(dy)?, empty_like(&z)?);
        if matrix {
            output(self, tables, steps, (y.device_address_mut()?, 0), (0, 0))?;
        } else {
            step::recurrent(self, &mut y, None)?;
        }
        let (mut before, mut dz) = (empty_like(&z)?, empty_like(&z)?);
        let (y, z, dy) = (y.device_address()?, z.device_address()?, dy.device_address()?);
        let (to, dz_to) = (before.device_address_mut()?, dz.device_address_mut()?);
        let count = before.elem_count();
        let elements = count as i64;
        let arguments: [&dyn Argument; 6] = [&y, &z, &dy, &to, &dz_to, &elements];
        let kernel = self.gpu.kernel(&STEPS, "gate_backward", &self.element()?)?;
        // SAFETY: all five have the same number of elements.
        unsafe { kernel.launch(&super::threads(count)?, &arguments)? };
        Ok((before, dz))
    }

    fn fresh(&self, tables: &Tables) -> Result<Gradients> {
        let (problem, shape) = (self.problem, self.shape());
        let rows = [tables.chunks(), shape.heads, shape.head_dim];
        let steps = [shape.heads, tables.chunks(), 3, tables.problem.chunk as usize];
        Ok(Gradients {
            x: empty_like(problem.x.tensor())?,
            b: empty_like(problem.b.tensor())?,
            c: empty_like(problem.c.tensor())?,
            d: problem.d.as_ref().map(|_| self.empty(&rows, self.wide)).transpose()?,
            initial: problem.initial.as_ref().map(empty_like).transpose()?,
            steps: self.empty(&steps, self.wide)?,
        })
    }

    fn matrix(
        &self,
        tables: &Tables,
        steps: &Tensor,
        dy: &Held,
        dfinal: Option<&Tensor>,
    ) -> Result<Gradients> {
        let (problem, shape) = (self.problem, self.shape());
        let (per_head, per_group) = ((shape.heads, 64), (shape.groups, shape.d_state));
        let (x, g) = (Tiles::new(&problem.x, per_head)?, Tiles::new(dy, per_head)?);
        let (b, c) = (Tiles::new(&problem.b, per_group)?, Tiles::new(&problem.c, per_group)?);
        let mut grads = self.fresh(tables)?;
        let images = [tables.chunks(), shape.heads, 64 * shape.d_state];
        let mut states = self.empty(&images, DType::BF16)?;
        let mut dstates = self.empty(&images, DType::BF16)?;
        let (states_at, dstates_at) = (states.device_address_mut()?, dstates.device_address_mut()?);
        let none = (0, 0);
        let (first, last) = (problem.initial.as_ref(), 0);
        let (pass, images, y, z, d) = (STATES, states_at, 0, none, 0);
        let walk = Walk { pass, v: &x, k: &b, c: &c, steps, first, last, images, y, z, d };
        self.walk(tables, &walk)?;
        let last = grads.initial.as_mut().map_or(Ok(0), Tensor::device_address_mut)?;
        let (pass, first, images) = (DSTATES, dfinal, dstates_at);
        let walk = Walk { pass, v: &g, k: &c, c: &b, steps, first, last, images, y, z, d };
        self.walk(tables, &walk)?;
        self.launch_gradient(tables, steps, [&x, &g, &b, &c], [states_at, dstates_at], &mut grads)?;
        Ok(grads)
    }

    /// Every chunk by itself, with the matrix units.
    fn launch_gradient(
        &self,
        tables: &Tables,
        steps: &Tensor,
        [x, g, b, c]: [&Tiles; 4],
        [states, dstates]: [u64; 2],
        grads: &mut Gradients,
    ) -> Result<()> {
        let shape = self.shape();
        let shares = plan::shares(shape, tables.chunks(), self.multiprocessors());
        let (mut db, mut dc) = (grads.b.device_address_mut()?, grads.c.device_address_mut()?);
        let mut parts = None;
        if shares > 1 {
            let sums = [2, shares, shape.tokens * shape.groups * shape.d_state];
            let mut sums = self.empty(&sums, DType::F32)?;
            db = sums.device_address_mut()?;
            dc = db + (sums.elem_count() / 2 * size_of::<f32>()) as u64;
            parts = Some(sums);
        }
        let params = params::Gradient {
            problem: tables.problem,
            steps: steps.device_address()?,
            states,
            dstates,
            dsteps: grads.steps.device_address_mut()?,
            dx: grads.x.device_address_mut()?,
            d: optional(self.problem.d.as_ref())?,
            dd: grads.d.as_mut().map_or(Ok(0), Tensor::device_address_mut)?,
            db,
            dc,
            shares: shares as i32,
        };
        let kernel = self.gpu.kernel(&GRADIENT, "ssd_gradient", &defines(shape.d_state))?;
        let blocks = super::int(tables.chunks() * shape.groups * shares)? as u32;
        let launch = Launch::linear(blocks, 384).shared(plan::gradient_bytes(shape.d_state));
        let arguments: [&dyn Argument; 5] = [&x.map, &g.map, &b.map, &c.map, &params];
        // SAFETY: as in the forward pass.
        unsafe { kernel.launch(&launch, &arguments)? };
        if parts.is_some() {
            let count = shape.tokens * shape.groups * shape.d_state;
            for (from, to) in [(db, &mut grads.b), (dc, &mut grads.c)] {
                self.sum_parts(from, to, [count, shares, count, 0])?;
            }
        }
        Ok(())
    }

    /// Sums of f32 (or f64) parts: of `inner` neighbours `parts` times at `part_step`, the next
    /// neighbours `outer_step` further.
    fn sum_parts(
        &self,
        from: u64,
        to: &mut Tensor,
        [inner, parts, part_step, outer_step]: [usize; 4],
    ) -> Result<()> {
        let count = to.elem_count();
        let numbers = [count, inner, parts, part_step, outer_step].map(|number| number as i64);
        let to = to.device_address_mut()?;
        let [count_at, inner, parts, part_step, outer_step] = &numbers;
        let arguments: [&dyn Argument; 7] =
            [&from, &to, count_at, inner, parts, part_step, outer_step];
        let kernel = self.gpu.kernel(&GENERIC, "sum_parts", &self.element()?)?;
        // SAFETY: the parts have the shape that the caller names.
        unsafe { kernel.launch(&super::threads(count)?, &arguments)? };
        Ok(())
    }

    fn generic(
        &self,
        tables: &Tables,
        steps: &Tensor,
        dy: &Held,
        dfinal: Option<&Tensor>,
    ) -> Result<Gradients> {
        let (problem, shape) = (self.problem, self.shape());
        let mut grads = self.fresh(tables)?;
        let size = shape.head_dim * shape.d_state;
        let mut states = self.empty(&[2, tables.chunks(), shape.heads, size], self.wide)?;
        let states_at = states.device_address_mut()?;
        let dstates = states_at + (states.elem_count() / 2 * self.wide.size()) as u64;
        let initial = grads.initial.as_mut().map_or(Ok(0), Tensor::device_address_mut)?;
        let first = optional(problem.initial.as_ref())?;
        self.walk_states([&problem.x, &problem.b], tables, steps, [first, states_at, 0], false)?;
        let ends = [optional(dfinal)?, dstates, initial];
        self.walk_states([dy, &problem.c], tables, steps, ends, true)?;
        let mut sums = self.empty(&[2, shape.tokens, shape.heads, shape.d_state], self.wide)?;
        let db = sums.device_address_mut()?;
        let dc = db + (sums.elem_count() / 2 * self.wide.size()) as u64;
        let ((x, x_row), (dy, dy_row)) = (problem.x.on_device()?, dy.on_device()?);
        let ((b, b_row), (c, c_row)) = (problem.b.on_device()?, problem.c.on_device()?);
        let arrays = params::GenericArrays {
            x,
            b,
            c,
            dy,
            d: optional(problem.d.as_ref())?,
            steps: steps.device_address()?,
            states: states_at,
            dstates,
            dx: grads.x.device_address_mut()?,
            dsteps: grads.steps.device_address_mut()?,
            db,
            dc,
            dd: grads.d.as_mut().map_or(Ok(0), Tensor::device_address_mut)?,
            x_row: x_row as i64,
            b_row: b_row as i64,
            c_row: c_row as i64,
            dy_row: dy_row as i64,
        };
        let kernel = self.gpu.kernel(&GENERIC, "chunk_gradient", &self.element()?)?;
        let blocks = super::int(tables.chunks() * shape.heads)? as u32;
        let arguments: [&dyn Argument; 2] = [&arrays, &tables.problem];
        // SAFETY: shapes were checked; sums and states have a place for all that is written.
        unsafe { kernel.launch(&Launch::linear(blocks, 256), &arguments)? };
        let (n, heads) = (shape.d_state, shape.heads_per_group());
        for (from, to) in [(db, &mut grads.b), (dc, &mut grads.c)] {
            self.sum_parts(from, to, [n, heads, n, heads * n])?;
        }
        Ok(grads)
    }

    fn walk_states(
        &self,
        [v, k]: [&Held; 2],
        tables: &Tables,
        steps: &Tensor,
        [first, states, last]: [u64; 3],
        reverse: bool,
    ) -> Result<()> {
        let shape = self.shape();
        let ((v, v_row), (k, k_row)) = (v.on_device()?, k.on_device()?);
        let (v_row, k_row, reverse) = (v_row as i64, k_row as i64, i32::from(reverse));
        let steps = steps.device_address()?;
        let blocks =
            self.runs().len() * shape.heads * (shape.head_dim * shape.d_state).div_ceil(256);
        let problem = &tables.problem;
        let arguments: [&dyn Argument; 10] =
            [&v, &v_row, &k, &k_row, &steps, &first, &states, &last, problem, &reverse];
        let kernel = self.gpu.kernel(&GENERIC, "walk_states", &self.element()?)?;
        // SAFETY: as above.
        unsafe { kernel.launch(&super::threads(256 * blocks)?, &arguments)? };
        Ok(())
    }

    /// Through the prologue, or as they are for the core.
    fn step_gradients(&self, tables: &Tables, dsteps: &Tensor, slots: &mut Slots) -> Result<()> {
        let problem = self.problem;
        let core = self.options.core != 0;
        let (mut ddt, mut da) = (empty_like(&problem.dt)?, empty_like(&problem.a)?);
        let mut sums = self.empty(&[tables.chunks(), 2, self.shape().heads], self.wide)?;
        let (dt, a) = (problem.dt.device_address()?, problem.a.device_address()?);
        let (bias, grads) = (optional(problem.dt_bias.as_ref())?, dsteps.device_address()?);
        let (to, decay) = (ddt.device_address_mut()?, da.device_address_mut()?);
        let parts = sums.device_address_mut()?;
        let decay = if core { decay } else { 0 };
        let arguments: [&dyn Argument; 9] =
            [&dt, &a, &bias, &grads, &to, &decay, &parts, &tables.problem, &self.options];
        let kernel = self.gpu.kernel(&STEPS, "prologue_backward", &self.element()?)?;
        // SAFETY: as in the prologue.
        unsafe { kernel.launch(&self.per_chunk(tables), &arguments)? };
        slots[DT] = Some(ddt);
        if core {
            slots[A] = Some(da);
            return Ok(());
        }
        let sums = no_grad(|| sums.sum(0))?;
        slots[A] = Some(sums.select(0, 0)?.contiguous()?);
        if problem.dt_bias.is_some() {
            slots[DT_BIAS] = Some(sums.select(0, 1)?.contiguous()?);
        }
        Ok(())
    }
}
