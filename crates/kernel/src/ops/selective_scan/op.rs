//! The operator on the tape: dispatch to the f64 recurrence or the vectorised kernels.

use super::problem::{
    A, B, C, CU_SEQLENS, D, DELTA, DELTA_BIAS, INITIAL, NAMES, OP, Plain, Problem, SEQ_IDX, U,
    Wide, Z, at, nan_in_delta, validate,
};
use super::{cpu, cuda, reference};
use crate::ops::ssd::arrays::{Held, empty_like, like, plain, plain_optional, slice, target, wide};
use danaus_tensor::{Backward, DType, Error, Inputs, Meta, Op, Result, Saves, Tensor};

/// Inputs as in [`NAMES`], channel-last; outputs y and last_state.
pub(super) struct SelectiveScan {
    pub(super) delta_softplus: bool,
}

/// One gradient an input.
type Slots = Vec<Option<Tensor>>;

impl SelectiveScan {
    fn run_f64(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let problem = Problem::new(inputs, self.delta_softplus)?;
        let arrays = Plain::new(inputs)?;
        let (y, last) = reference::forward(&arrays.scan(&problem)?);
        outputs[0].as_slice_mut::<f64>()?.copy_from_slice(&y);
        outputs[1].as_slice_mut::<f64>()?.copy_from_slice(&last);
        Ok(())
    }

    fn backward_f64(&self, inputs: Inputs, dy: &Tensor, dlast: Option<&Tensor>) -> Result<Slots> {
        let problem = Problem::new(inputs, self.delta_softplus)?;
        let arrays = Plain::new(inputs)?;
        let (dy, dlast) = (plain(dy)?, plain_optional(dlast)?);
        let grads = reference::backward(&arrays.scan(&problem)?, dy.as_slice()?, slice(&dlast)?);
        let mut slots: Slots = vec![None; NAMES.len()];
        let values = [
            (U, grads.u),
            (DELTA, grads.delta),
            (A, grads.a),
            (B, grads.b),
            (C, grads.c),
            (D, grads.d),
            (Z, grads.z),
            (DELTA_BIAS, grads.delta_bias),
            (INITIAL, grads.initial_states),
        ];
        for (index, values) in values {
            slots[index] = inputs[index].map(|tensor| like(values, tensor)).transpose()?;
        }
        Ok(slots)
    }

    fn run_wide(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let problem = Problem::new(inputs, self.delta_softplus)?;
        let arrays = Wide::new(inputs)?;
        let [y, last] = outputs else {
            return Err(Error::internal("selective_scan has two outputs"));
        };
        let scan = arrays.scan(&problem)?;
        cpu::forward::forward(&scan, target(y)?, last.as_slice_mut()?).map_err(|_| nan_in_delta())
    }

    fn backward_wide(&self, inputs: Inputs, dy: &Tensor, dlast: Option<&Tensor>) -> Result<Slots> {
        let problem = Problem::new(inputs, self.delta_softplus)?;
        let arrays = Wide::new(inputs)?;
        let (held, dlast) = (Held::new(dy, 1)?, plain_optional(dlast)?);
        let cotangents = cpu::backward::Cotangents { y: held.rows()?, last_state: slice(&dlast)? };
        let new = |index: usize| at(inputs, index).and_then(empty_like);
        let (mut du, mut ddelta, mut da) = (new(U)?, new(DELTA)?, new(A)?);
        let (mut db, mut dc) = (new(B)?, new(C)?);
        let mut dz = inputs[Z].map(empty_like).transpose()?;
        let mut dinitial = inputs[INITIAL].map(empty_like).transpose()?;
        let channels = problem.shape.channels;
        let (mut dd, mut dbias) = (vec![0.0f32; channels], vec![0.0f32; channels]);
        let gradients = cpu::backward::Gradients {
            u: target(&mut du)?,
            delta: target(&mut ddelta)?,
            delta_bias: &mut dbias,
            a: da.as_slice_mut()?,
            b: map_target(&mut db)?,
            c: map_target(&mut dc)?,
            d: &mut dd,
            z: dz.as_mut().map(target).transpose()?,
            initial_states: dinitial.as_mut().map(Tensor::as_slice_mut).transpose()?,
        };
        cpu::backward::backward(&arrays.scan(&problem)?, &cotangents, gradients);
        let mut slots: Slots = vec![None; NAMES.len()];
        for (index, gradient) in [(U, du), (DELTA, ddelta), (A, da), (B, db), (C, dc)] {
            slots[index] = Some(gradient);
        }
        (slots[Z], slots[INITIAL]) = (dz, dinitial);
        slots[D] = inputs[D].map(|d| like(dd, d)).transpose()?;
        slots[DELTA_BIAS] = inputs[DELTA_BIAS].map(|bias| like(dbias, bias)).transpose()?;
        Ok(slots)
    }
}

/// Where the gradient of B or C goes; constants have two dimensions.
fn map_target(gradient: &mut Tensor) -> Result<cpu::MapGradient<'_>> {
    Ok(match gradient.rank() {
        2 => cpu::MapGradient::Constant(gradient.as_slice_mut()?),
        _ => cpu::MapGradient::Token(target(gradient)?),
    })
}

impl Op for SelectiveScan {
    fn name(&self) -> &'static str {
        OP
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let (shape, packing) = validate(inputs)?;
        let u = at(inputs, U)?;
        let state = vec![packing.states, shape.channels, shape.d_state];
        Ok(vec![Meta::new(u.shape(), u.dtype()), Meta::new(state, wide(u.dtype()))])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    }

    fn host_inputs(&self) -> &'static [usize] {
        &[SEQ_IDX, CU_SEQLENS]
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        if outputs[0].device().is_cuda() {
            let problem = Problem::new(inputs, self.delta_softplus)?;
            let [y, last] = outputs else {
                return Err(Error::internal("selective_scan has two outputs"));
            };
            return cuda::forward(&problem, inputs, y, last);
        }
        match outputs[0].dtype() {
            DType::F64 => self.run_f64(inputs, outputs),
            _ => self.run_wide(inputs, outputs),
        }
    }

    fn backward(&self, ctx: &Backward) -> Result<Slots> {
        let inputs: Vec<Option<&Tensor>> = ctx.inputs.iter().map(Option::as_ref).collect();
        let u = ctx.input(U)?;
        let dy = ctx.grad_or_zeros(0, u)?;
        let dlast = ctx.grads[1].as_ref();
        let slots = match u.dtype() {
            _ if u.device().is_cuda() => {
                let problem = Problem::new(&inputs, self.delta_softplus)?;
                cuda::backward(&problem, &inputs, &dy, dlast)
            }
            DType::F64 => self.backward_f64(&inputs, &dy, dlast),
            _ => self.backward_wide(&inputs, &dy, dlast),
        }?;
        Ok(slots.into_iter().zip(ctx.needs).map(|(slot, &need)| slot.filter(|_| need)).collect())
    }
}
