//! The operators on the tape: validation, and dispatch to the f64 recurrence or the chunked kernels.

use super::arrays::{
    Held, Packing, check_array, check_dtype, check_shape, empty_like, like, plain, plain_optional,
    required, slice, source, target, wide,
};
use super::config::{Plan, Shape};
use super::cpu::backward::{Cotangents, Gradients, backward};
use super::cpu::forward::forward;
use super::cpu::prologue::Prologue;
use super::cpu::rows::{Rows, Source, Target};
use super::cpu::{self, gate_backward};
use super::cuda;
use super::reference::{self, Steps};
use danaus_runtime::pool::Scratch;
use danaus_tensor::{
    Backward, DType, Device, Error, Inputs, Level, Meta, Op, Result, Tensor, asked_level,
};

/// How a call is to be computed.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct SsdOptions {
    /// Apply softplus to `dt + dt_bias`.
    pub dt_softplus: bool,
    /// Bounds of the step size, applied last; `None` leaves it as it is.
    pub dt_limit: Option<(f64, f64)>,
    /// Upper bound on the length of a chunk. It changes rounding, not the result; `None` leaves the
    /// choice to the kernel, which never takes more than 64 on the CPU.
    pub chunk_size: Option<usize>,
}

impl SsdOptions {
    pub(crate) fn steps(&self) -> Steps {
        let dt_limit = self.dt_limit.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
        Steps { dt_softplus: self.dt_softplus, dt_limit }
    }

    pub(crate) fn check_limits(&self, op: &'static str) -> Result<()> {
        match self.dt_limit {
            Some((low, high)) if !(low >= 0.0 && low <= high) => {
                let valid = "two numbers with 0 <= low <= high";
                Err(Error::argument(op, "dt_limit", format!("{low},{high}"), valid))
            }
            _ => Ok(()),
        }
    }
}

/// Positions of the inputs.
pub(super) const X: usize = 0;
pub(super) const DT: usize = 1;
pub(super) const A: usize = 2;
pub(super) const B: usize = 3;
pub(super) const C: usize = 4;
pub(super) const D: usize = 5;
pub(super) const Z: usize = 6;
pub(super) const DT_BIAS: usize = 7;
pub(super) const INITIAL: usize = 8;
const SEQ_IDX: usize = 9;
const CU_SEQLENS: usize = 10;
const NAMES: [&str; 11] =
    ["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states", "seq_idx", "cu_seqlens"];

/// `ssd` and, with `core` set, `ssd_core`, whose `dt` is the scale and whose `A` is the log-decay.
pub(super) struct Ssd {
    pub(super) options: SsdOptions,
    pub(super) core: bool,
}

/// Everything a pass needs, off the tape.
pub(super) struct Problem {
    pub(super) shape: Shape,
    pub(super) packing: Packing,
    pub(super) x: Held,
    pub(super) b: Held,
    pub(super) c: Held,
    pub(super) z: Option<Held>,
    pub(super) dt: Tensor,
    pub(super) a: Tensor,
    /// `[heads, head_dim]`.
    pub(super) d: Option<Tensor>,
    pub(super) dt_bias: Option<Tensor>,
    pub(super) initial: Option<Tensor>,
}

impl Ssd {
    fn names(&self) -> [&'static str; 11] {
        let mut names = NAMES;
        if self.core {
            (names[DT], names[A]) = ("scale", "log_decay");
        }
        names
    }

    fn shape(&self, inputs: Inputs) -> Result<(Shape, usize, usize)> {
        let (op, names) = (self.name(), self.names());
        let x = required(op, inputs, &names, X)?;
        let b = required(op, inputs, &names, B)?;
        check_array(op, "x", x)?;
        let &[batch, seqlen, heads, head_dim] = x.dims() else {
            return Err(Error::shape(op, "x", x.shape(), "[batch, seqlen, heads, head_dim]"));
        };
        let &[_, _, groups, d_state] = b.dims() else {
            return Err(Error::shape(op, "B", b.shape(), "[batch, seqlen, groups, d_state]"));
        };
        if groups == 0 || heads == 0 || head_dim == 0 || d_state == 0 || heads % groups != 0 {
            let expected = format!("groups that divide heads = {heads}, and no empty dimension");
            return Err(Error::shape(op, "B", b.shape(), expected));
        }
        let shape = Shape { tokens: batch * seqlen, heads, groups, head_dim, d_state };
        Ok((shape, batch, seqlen))
    }

    /// Checks every input; returns the sizes and the packing.
    fn validate(&self, inputs: Inputs) -> Result<(Shape, Packing)> {
        let (op, names) = (self.name(), self.names());
        let (shape, batch, seqlen) = self.shape(inputs)?;
        let (heads, p) = (shape.heads, shape.head_dim);
        let at = |index| required(op, inputs, &names, index);
        let narrow = at(X)?.dtype();
        for index in [B, C] {
            check_dtype(op, names[index], at(index)?, narrow)?;
            let expected = [batch, seqlen, shape.groups, shape.d_state];
            let meaning = "[batch, seqlen, groups, d_state]";
            check_shape(op, names[index], at(index)?, &expected, meaning)?;
        }
        if let Some(z) = inputs[Z] {
            check_dtype(op, "z", z, narrow)?;
            check_shape(op, "z", z, at(X)?.dims(), "the shape of x")?;
        }
        for index in [DT, A, D, DT_BIAS, INITIAL] {
            if let Some(tensor) = inputs[index] {
                check_dtype(op, names[index], tensor, wide(narrow))?;
            }
        }
        let per_token = [batch, seqlen, heads];
        check_shape(op, names[DT], at(DT)?, &per_token, "[batch, seqlen, heads]")?;
        match self.core {
            true => check_shape(op, names[A], at(A)?, &per_token, "[batch, seqlen, heads]")?,
            false => check_shape(op, names[A], at(A)?, &[heads], "[heads]")?,
        }
        if let Some(d) = inputs[D].filter(|d| d.dims() != [heads]) {
            check_shape(op, "D", d, &[heads, p], "[heads] or [heads, head_dim]")?;
        }
        if let Some(bias) = inputs[DT_BIAS] {
            check_shape(op, "dt_bias", bias, &[heads], "[heads]")?;
        }
        let size = (batch, seqlen);
        let packing = Packing::new(op, size, inputs[SEQ_IDX], inputs[CU_SEQLENS])?;
        if let Some(initial) = inputs[INITIAL] {
            let expected = [packing.states, heads, p, shape.d_state];
            let meaning = "[batch or sequences, heads, head_dim, d_state]";
            check_shape(op, "initial_states", initial, &expected, meaning)?;
        }
        self.check_values(at(DT)?, at(A)?)?;
        Ok((shape, packing))
    }

    fn check_values(&self, dt: &Tensor, a: &Tensor) -> Result<()> {
        let (op, names) = (self.name(), self.names());
        self.options.check_limits(op)?;
        if self.options.chunk_size == Some(0) {
            return Err(Error::argument(op, "chunk_size", 0, "at least 1"));
        }
        if dt.device().is_cuda() {
            // Looking at them here would wait for the GPU.
            return Ok(());
        }
        // A reduction without branches: the loop runs over every step of the model.
        if any(dt, f64::is_nan, f32::is_nan)? {
            return Err(Error::argument(op, names[DT], "NaN somewhere", "numbers"));
        }
        if self.core && any(a, |v| v.is_nan() || v.is_infinite(), |v| !v.is_finite())? {
            let valid = "finite numbers; separate sequences with seq_idx or cu_seqlens";
            return Err(Error::argument(op, "log_decay", "infinite or NaN", valid));
        }
        if !self.core && any(a, |v| v.is_nan() || v > 0.0, |v| v.is_nan() || v > 0.0)? {
            let valid = "at most 0 (A = -exp(A_log)): positive values let the state explode";
            return Err(Error::argument(op, "A", "positive or NaN", valid));
        }
        Ok(())
    }

    fn problem(&self, inputs: Inputs) -> Result<Problem> {
        let (shape, packing) = self.validate(inputs)?;
        let (op, names) = (self.name(), self.names());
        let at = |index| required(op, inputs, &names, index);
        let d = inputs[D].map(|d| {
            let d = d.detach();
            let d = if d.rank() == 1 { d.unsqueeze(1)? } else { d };
            d.broadcast_to(vec![shape.heads, shape.head_dim])?.contiguous()
        });
        Ok(Problem {
            shape,
            packing,
            x: Held::new(at(X)?, 2)?,
            b: Held::new(at(B)?, 2)?,
            c: Held::new(at(C)?, 2)?,
            z: inputs[Z].map(|z| Held::new(z, 2)).transpose()?,
            dt: plain(at(DT)?)?,
            a: plain(at(A)?)?,
            d: d.transpose()?,
            dt_bias: plain_optional(inputs[DT_BIAS])?,
            initial: plain_optional(inputs[INITIAL])?,
        })
    }

    fn run_f64(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let problem = self.problem(inputs)?;
        let plain = PlainF64::new(&problem, inputs)?;
        let (scale, log_decay) = plain.steps(self)?;
        let core = plain.core(&problem, &scale, &log_decay)?;
        let (mut y, last) = reference::core_forward(&core);
        if let Some(z) = &plain.z {
            reference::gate(&mut y, z.as_slice()?);
        }
        outputs[0].as_slice_mut::<f64>()?.copy_from_slice(&y);
        outputs[1].as_slice_mut::<f64>()?.copy_from_slice(&last);
        Ok(())
    }

    fn backward_f64(&self, inputs: Inputs, dy: &Tensor, dfinal: Option<&Tensor>) -> Result<Slots> {
        let problem = self.problem(inputs)?;
        let plain = PlainF64::new(&problem, inputs)?;
        let (scale, log_decay) = plain.steps(self)?;
        let core = plain.core(&problem, &scale, &log_decay)?;
        let mut slots: Slots = vec![None; NAMES.len()];
        let mut g = dy.detach().contiguous()?.as_slice::<f64>()?.to_vec();
        if let Some(z) = &plain.z {
            let (y, _) = reference::core_forward(&core);
            let (before, dz) = reference::gate_backward(&y, z.as_slice()?, &g);
            g = before;
            slots[Z] = Some(like(dz, z)?);
        }
        let dfinal = plain_optional(dfinal)?;
        let grads = reference::core_backward(&core, &g, slice(&dfinal)?);
        for (index, values) in [(X, grads.x), (B, grads.b), (C, grads.c)] {
            slots[index] = inputs[index].map(|tensor| like(values, tensor)).transpose()?;
        }
        slots[INITIAL] =
            inputs[INITIAL].map(|tensor| like(grads.initial_states, tensor)).transpose()?;
        slots[D] = inputs[D].map(|d| skip_gradient(grads.d, &problem.shape, d)).transpose()?;
        if self.core {
            slots[DT] = Some(like(grads.scale, &problem.dt)?);
            slots[A] = Some(like(grads.log_decay, &problem.a)?);
            return Ok(slots);
        }
        let parameters = (problem.dt.as_slice()?, problem.a.as_slice()?, slice(&problem.dt_bias)?);
        let steps = self.options.steps();
        let (ddt, da, dbias) =
            reference::prologue_backward(parameters, &steps, &grads.scale, &grads.log_decay);
        slots[DT] = Some(like(ddt, &problem.dt)?);
        slots[A] = Some(like(da, &problem.a)?);
        slots[DT_BIAS] = problem.dt_bias.as_ref().map(|bias| like(dbias, bias)).transpose()?;
        Ok(slots)
    }

    /// Step sizes and log-decays, `[tokens, heads]`.
    fn steps(&self, problem: &Problem) -> Result<(Scratch<f32>, Scratch<f32>)> {
        let len = problem.shape.tokens * problem.shape.heads;
        let (mut scale, mut log_decay) = (Scratch::new(len), Scratch::new(len));
        if self.core {
            scale.copy_from_slice(problem.dt.as_slice()?);
            log_decay.copy_from_slice(problem.a.as_slice()?);
        } else {
            self.prologue(problem)?.forward(&mut scale, &mut log_decay);
        }
        Ok((scale, log_decay))
    }

    fn prologue<'a>(&self, problem: &'a Problem) -> Result<Prologue<'a>> {
        Ok(Prologue {
            dt: Rows::f32(problem.dt.as_slice()?, problem.shape.heads),
            tokens: problem.shape.tokens,
            a: problem.a.as_slice()?,
            dt_bias: slice(&problem.dt_bias)?,
            steps: self.options.steps(),
        })
    }

    fn run_f32(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let problem = self.problem(inputs)?;
        let (scale, log_decay) = self.steps(&problem)?;
        let core = problem.core(&scale, &log_decay)?;
        let [y, last] = outputs else { return Err(Error::internal("ssd has two outputs")) };
        if asked_level() == Level::Invariant {
            cpu::step::recurrent(&core, target(y)?, last.as_slice_mut()?);
        } else {
            let plan = Plan::forward(&core.shape, core.runs, self.options.chunk_size);
            forward(&core, &plan, target(y)?, Some(last.as_slice_mut()?));
        }
        Ok(())
    }

    fn backward_chunked(
        &self,
        inputs: Inputs,
        dy: &Tensor,
        dfinal: Option<&Tensor>,
    ) -> Result<Slots> {
        let problem = self.problem(inputs)?;
        let (scale, log_decay) = self.steps(&problem)?;
        let mut core = problem.core(&scale, &log_decay)?;
        let plan = Plan::backward(&core.shape, core.runs, self.options.chunk_size);
        let mut slots: Slots = vec![None; NAMES.len()];
        let row = core.shape.heads * core.shape.head_dim;
        // The gate needs y before it, which is cheaper to compute again than to keep.
        let mut before = Scratch::<f32>::new(if core.z.is_some() { dy.elem_count() } else { 0 });
        let held = Held::new(dy, 2)?;
        let mut g = held.rows()?;
        if let Some(z) = inputs[Z] {
            core.z = None;
            let mut y = Scratch::<f32>::new(dy.elem_count());
            forward(&core, &plan, Target::f32(&mut y), None);
            let (z, dy) = (plain(z)?, plain(dy)?);
            let mut dz = empty_like(&z)?;
            gate_backward(&y, source(&z)?, source(&dy)?, &mut before, target(&mut dz)?);
            slots[Z] = Some(dz);
            g = Rows { data: Source::F32(&before), stride: row };
        }
        let new = |index: usize| -> Result<Tensor> {
            inputs[index].map_or_else(|| Err(Error::internal("a missing input")), empty_like)
        };
        let (mut dx, mut db, mut dc) = (new(X)?, new(B)?, new(C)?);
        let mut dinitial = inputs[INITIAL].map(empty_like).transpose()?;
        let mut dd = vec![0.0f32; core.shape.heads * core.shape.head_dim];
        let (mut dscale, mut ddecay) =
            (Scratch::<f32>::new(scale.len()), Scratch::<f32>::new(scale.len()));
        let dfinal = plain_optional(dfinal)?;
        let gradients = Gradients {
            x: target(&mut dx)?,
            b: target(&mut db)?,
            c: target(&mut dc)?,
            log_decay: &mut ddecay,
            scale: &mut dscale,
            d: Some(&mut dd),
            initial_states: dinitial.as_mut().map(Tensor::as_slice_mut).transpose()?,
        };
        backward(&core, &plan, &Cotangents { y: g, final_state: slice(&dfinal)? }, gradients);
        (slots[X], slots[B], slots[C], slots[INITIAL]) = (Some(dx), Some(db), Some(dc), dinitial);
        slots[D] = inputs[D].map(|d| skip_gradient(dd, &core.shape, d)).transpose()?;
        self.step_gradients(&problem, (&dscale, &ddecay), &mut slots)?;
        Ok(slots)
    }

    /// Through the prologue, or as they are for the core.
    fn step_gradients(
        &self,
        problem: &Problem,
        (dscale, ddecay): (&[f32], &[f32]),
        slots: &mut Slots,
    ) -> Result<()> {
        let (mut ddt, mut da) = (empty_like(&problem.dt)?, empty_like(&problem.a)?);
        if self.core {
            ddt.as_slice_mut()?.copy_from_slice(dscale);
            da.as_slice_mut()?.copy_from_slice(ddecay);
        } else {
            let mut dbias = vec![0.0f32; problem.shape.heads];
            let da = da.as_slice_mut()?;
            self.prologue(problem)?.backward(dscale, ddecay, target(&mut ddt)?, da, &mut dbias);
            slots[DT_BIAS] = problem.dt_bias.as_ref().map(|bias| like(dbias, bias)).transpose()?;
        }
        (slots[DT], slots[A]) = (Some(ddt), Some(da));
        Ok(())
    }
}

/// One gradient an input.
pub(super) type Slots = Vec<Option<Tensor>>;

/// Whether an element of an f64 or f32 tensor has a property.
fn any(tensor: &Tensor, wide: impl Fn(f64) -> bool, narrow: impl Fn(f32) -> bool) -> Result<bool> {
    let tensor = plain(tensor)?;
    Ok(match tensor.dtype() {
        DType::F64 => tensor.as_slice()?.iter().fold(false, |found, &value| found | wide(value)),
        _ => tensor.as_slice()?.iter().fold(false, |found, &value| found | narrow(value)),
    })
}

/// The gradient of D from that of its `[heads, head_dim]` form.
fn skip_gradient<T: danaus_tensor::Element>(
    values: Vec<T>,
    shape: &Shape,
    d: &Tensor,
) -> Result<Tensor> {
    let full = Tensor::from_vec(values, vec![shape.heads, shape.head_dim], &Device::Cpu)?;
    if d.rank() == 1 { full.sum(1) } else { Ok(full) }
}

impl Problem {
    fn core<'a>(&'a self, scale: &'a [f32], log_decay: &'a [f32]) -> Result<cpu::Core<'a>> {
        Ok(cpu::Core {
            shape: self.shape,
            runs: &self.packing.runs,
            x: self.x.rows()?,
            b: self.b.rows()?,
            c: self.c.rows()?,
            log_decay,
            scale,
            d: slice(&self.d)?,
            z: self.z.as_ref().map(Held::rows).transpose()?,
            initial_states: slice(&self.initial)?,
        })
    }
}

/// Contiguous f64 arrays.
struct PlainF64<'a> {
    problem: &'a Problem,
    x: Tensor,
    b: Tensor,
    c: Tensor,
    z: Option<Tensor>,
}

impl<'a> PlainF64<'a> {
    fn new(problem: &'a Problem, inputs: Inputs) -> Result<Self> {
        let at = |index| required("ssd", inputs, &NAMES, index).and_then(plain);
        Ok(Self { problem, x: at(X)?, b: at(B)?, c: at(C)?, z: plain_optional(inputs[Z])? })
    }

    fn steps(&self, op: &Ssd) -> Result<(Vec<f64>, Vec<f64>)> {
        let (dt, a) = (self.problem.dt.as_slice::<f64>()?, self.problem.a.as_slice::<f64>()?);
        if op.core {
            return Ok((dt.to_vec(), a.to_vec()));
        }
        Ok(reference::prologue(dt, a, slice(&self.problem.dt_bias)?, &op.options.steps()))
    }

    fn core<'b>(
        &'b self,
        problem: &'b Problem,
        scale: &'b [f64],
        log_decay: &'b [f64],
    ) -> Result<reference::Core<'b, f64>> {
        Ok(reference::Core {
            shape: problem.shape,
            runs: &problem.packing.runs,
            x: self.x.as_slice()?,
            log_decay,
            scale,
            b: self.b.as_slice()?,
            c: self.c.as_slice()?,
            d: slice(&problem.d)?,
            initial_states: slice(&problem.initial)?,
            states: problem.packing.states,
        })
    }
}

impl Op for Ssd {
    fn name(&self) -> &'static str {
        if self.core { "ssd_core" } else { "ssd" }
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let (shape, packing) = self.validate(inputs)?;
        let x = required(self.name(), inputs, &self.names(), X)?;
        let state = vec![packing.states, shape.heads, shape.head_dim, shape.d_state];
        Ok(vec![Meta::new(x.shape(), x.dtype()), Meta::new(state, wide(x.dtype()))])
    }

    fn saves(&self) -> danaus_tensor::Saves {
        danaus_tensor::Saves::inputs(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    }

    fn host_inputs(&self) -> &'static [usize] {
        &[SEQ_IDX, CU_SEQLENS]
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        if outputs[0].device().is_cuda() {
            let [y, last] = outputs else { return Err(Error::internal("ssd has two outputs")) };
            return cuda::forward(self, &self.problem(inputs)?, y, last);
        }
        match outputs[0].dtype() {
            DType::F64 => self.run_f64(inputs, outputs),
            _ => self.run_f32(inputs, outputs),
        }
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let inputs: Vec<Option<&Tensor>> = ctx.inputs.iter().map(Option::as_ref).collect();
        let x = ctx.input(X)?;
        let dy = ctx.grad_or_zeros(0, x)?;
        let dfinal = ctx.grads[1].as_ref();
        let slots = match x.dtype() {
            _ if x.device().is_cuda() => {
                cuda::backward(self, &self.problem(&inputs)?, &inputs, &dy, dfinal)
            }
            DType::F64 => self.backward_f64(&inputs, &dy, dfinal),
            _ => self.backward_chunked(&inputs, &dy, dfinal),
        }?;
        Ok(slots.into_iter().zip(ctx.needs).map(|(slot, &need)| slot.filter(|_| need)).collect())
    }
}
