//! One decoding step (or a few) as an operator.

use super::arrays::{
    Held, Packing, check_array, check_dtype, check_shape, plain, plain_optional, required, slice,
    target, wide,
};
use super::config::Shape;
use super::cpu::prologue::Prologue;
use super::cpu::rows::Rows;
use super::cpu::{self};
use super::cuda;
use super::op::{Problem, SsdOptions};
use super::reference;
use super::runs;
use danaus_runtime::pool::Scratch;
use danaus_tensor::{Backward, DType, Error, Inputs, Meta, Op, Result, Tensor};

const NAMES: [&str; 9] = ["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "state"];

/// `ssd_step`: as `ssd` over a few tokens by the plain recurrence. Inputs have a time dimension here.
pub(super) struct SsdStep {
    pub(super) options: SsdOptions,
}

impl SsdStep {
    fn validate(&self, inputs: Inputs) -> Result<(Shape, usize, usize)> {
        let op = self.name();
        let at = |index| required(op, inputs, &NAMES, index);
        check_array(op, "x", at(0)?)?;
        let &[batch, seqlen, heads, head_dim] = at(0)?.dims() else {
            let expected = "[batch, heads, head_dim] or [batch, seqlen, heads, head_dim]";
            return Err(Error::shape(op, "x", at(0)?.shape(), expected));
        };
        let &[_, _, groups, d_state] = at(3)?.dims() else {
            let expected = "[batch, groups, d_state] or [batch, seqlen, groups, d_state]";
            return Err(Error::shape(op, "B", at(3)?.shape(), expected));
        };
        if groups == 0 || heads % groups != 0 || d_state == 0 || head_dim == 0 {
            let expected = format!("groups that divide heads = {heads}, and no empty dimension");
            return Err(Error::shape(op, "B", at(3)?.shape(), expected));
        }
        let (narrow, wide) = (at(0)?.dtype(), wide(at(0)?.dtype()));
        let per_group = [batch, seqlen, groups, d_state];
        let expected: [(usize, DType, &[usize]); 9] = [
            (0, narrow, &[batch, seqlen, heads, head_dim]),
            (1, wide, &[batch, seqlen, heads]),
            (2, wide, &[heads]),
            (3, narrow, &per_group),
            (4, narrow, &per_group),
            (5, wide, &[heads, head_dim]),
            (6, narrow, &[batch, seqlen, heads, head_dim]),
            (7, wide, &[heads]),
            (8, wide, &[batch, heads, head_dim, d_state]),
        ];
        for (index, dtype, dims) in expected {
            if let Some(tensor) = inputs[index] {
                check_dtype(op, NAMES[index], tensor, dtype)?;
                check_shape(op, NAMES[index], tensor, dims, "the sizes of x and B")?;
            }
        }
        at(8)?;
        self.options.check_limits(op)?;
        let shape = Shape { tokens: batch * seqlen, heads, groups, head_dim, d_state };
        Ok((shape, batch, seqlen))
    }

    fn run_f64(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (shape, batch, seqlen) = self.validate(inputs)?;
        let at = |index| required(self.name(), inputs, &NAMES, index).and_then(plain);
        let (x, dt, a, b, c, state) = (at(0)?, at(1)?, at(2)?, at(3)?, at(4)?, at(8)?);
        let (d, z, bias) =
            (plain_optional(inputs[5])?, plain_optional(inputs[6])?, plain_optional(inputs[7])?);
        let (scale, log_decay) = reference::prologue(
            dt.as_slice()?,
            a.as_slice()?,
            slice(&bias)?,
            &self.options.steps(),
        );
        let core = reference::Core::<f64> {
            shape,
            runs: &runs::from_batch(batch, seqlen),
            x: x.as_slice()?,
            log_decay: &log_decay,
            scale: &scale,
            b: b.as_slice()?,
            c: c.as_slice()?,
            d: slice(&d)?,
            initial_states: Some(state.as_slice()?),
            states: batch,
        };
        let (mut y, last) = reference::core_forward(&core);
        if let Some(z) = slice(&z)? {
            reference::gate(&mut y, z);
        }
        outputs[0].as_slice_mut()?.copy_from_slice(&y);
        outputs[1].as_slice_mut()?.copy_from_slice(&last);
        Ok(())
    }

    fn run_cuda(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (shape, batch, seqlen) = self.validate(inputs)?;
        let at = |index| required(self.name(), inputs, &NAMES, index);
        let problem = Problem {
            shape,
            packing: Packing { runs: runs::from_batch(batch, seqlen), states: batch },
            x: Held::new(at(0)?, 2)?,
            b: Held::new(at(3)?, 2)?,
            c: Held::new(at(4)?, 2)?,
            z: inputs[6].map(|z| Held::new(z, 2)).transpose()?,
            dt: plain(at(1)?)?,
            a: plain(at(2)?)?,
            d: plain_optional(inputs[5])?,
            dt_bias: plain_optional(inputs[7])?,
            initial: Some(plain(at(8)?)?),
        };
        let [y, last] = outputs else { return Err(Error::internal("ssd_step has two outputs")) };
        cuda::step(&self.options.steps(), false, &problem, y, last)
    }

    fn run_f32(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (shape, batch, seqlen) = self.validate(inputs)?;
        let at = |index| required(self.name(), inputs, &NAMES, index);
        let (x, b, c) = (Held::new(at(0)?, 2)?, Held::new(at(3)?, 2)?, Held::new(at(4)?, 2)?);
        let z = inputs[6].map(|z| Held::new(z, 2)).transpose()?;
        let (dt, a, state) = (plain(at(1)?)?, plain(at(2)?)?, plain(at(8)?)?);
        let (d, bias) = (plain_optional(inputs[5])?, plain_optional(inputs[7])?);
        let len = shape.tokens * shape.heads;
        let (mut scale, mut log_decay) = (Scratch::new(len), Scratch::new(len));
        let prologue = Prologue {
            dt: Rows::f32(dt.as_slice()?, shape.heads),
            tokens: shape.tokens,
            a: a.as_slice()?,
            dt_bias: slice(&bias)?,
            steps: self.options.steps(),
        };
        prologue.forward(&mut scale, &mut log_decay);
        let core = cpu::Core {
            shape,
            runs: &runs::from_batch(batch, seqlen),
            x: x.rows()?,
            b: b.rows()?,
            c: c.rows()?,
            log_decay: &log_decay,
            scale: &scale,
            d: slice(&d)?,
            z: z.as_ref().map(Held::rows).transpose()?,
            initial_states: None,
        };
        let [y, last] = outputs else { return Err(Error::internal("ssd_step has two outputs")) };
        let last = last.as_slice_mut()?;
        last.copy_from_slice(state.as_slice()?);
        cpu::step::step(&core, target(y)?, last);
        Ok(())
    }
}

impl Op for SsdStep {
    fn name(&self) -> &'static str {
        "ssd_step"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        self.validate(inputs)?;
        let at = |index| required(self.name(), inputs, &NAMES, index);
        let meta = |tensor: &Tensor| Meta::new(tensor.shape(), tensor.dtype());
        Ok(vec![meta(at(0)?), meta(at(8)?)])
    }

    fn saves(&self) -> danaus_tensor::Saves {
        danaus_tensor::Saves::none()
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        if outputs[0].device().is_cuda() {
            return self.run_cuda(inputs, outputs);
        }
        match outputs[0].dtype() {
            DType::F64 => self.run_f64(inputs, outputs),
            _ => self.run_f32(inputs, outputs),
        }
    }

    fn backward(&self, _: &Backward) -> Result<Vec<Option<Tensor>>> {
        let remedy = "use ssd with initial_states, which computes the same with gradients";
        Err(Error::unsupported(self.name(), "a gradient of a decoding step", remedy))
    }
}
