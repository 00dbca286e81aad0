//! The convolution on the tape, channel-last.

use super::reference;
use super::{cpu, cuda};
use crate::ops::ssd::arrays::{
    Held, Packing, check_array, check_dtype, check_shape, empty_like, like, plain, plain_optional,
    required, slice, target, wide,
};
use danaus_tensor::{Backward, DType, Error, Inputs, Meta, Op, Result, Saves, Tensor};

const NAMES: [&str; 6] = ["x", "weight", "bias", "initial_states", "seq_idx", "cu_seqlens"];

/// Inputs x `[batch, seqlen, channels]`, weight `[channels, width]`, bias, initial_states, seq_idx,
/// cu_seqlens; outputs y and final_states.
pub(super) struct CausalConv1d {
    pub(super) silu: bool,
}

/// Sizes of a checked call.
struct Sizes {
    channels: usize,
    width: usize,
    packing: Packing,
}

impl CausalConv1d {
    fn validate(&self, inputs: Inputs) -> Result<Sizes> {
        let op = self.name();
        let (x, weight) = (required(op, inputs, &NAMES, 0)?, required(op, inputs, &NAMES, 1)?);
        check_array(op, "x", x)?;
        let &[batch, seqlen, channels] = x.dims() else {
            return Err(Error::shape(op, "x", x.shape(), "[batch, seqlen, channels]"));
        };
        let width = weight.dims().last().copied().unwrap_or(0);
        check_shape(op, "weight", weight, &[channels, width], "[channels, width]")?;
        if width == 0 || width > cpu::MAX_WIDTH {
            let valid = format!("1 to {}", cpu::MAX_WIDTH);
            return Err(Error::argument(op, "width (of weight)", width, valid));
        }
        let packing = Packing::new(op, (batch, seqlen), inputs[4], inputs[5])?;
        for index in 1..4 {
            if let Some(tensor) = inputs[index] {
                check_dtype(op, NAMES[index], tensor, wide(x.dtype()))?;
            }
        }
        if let Some(bias) = inputs[2] {
            check_shape(op, "bias", bias, &[channels], "[channels]")?;
        }
        if let Some(initial) = inputs[3] {
            let expected = [packing.states, channels, width - 1];
            let meaning = "[batch or sequences, channels, width - 1]";
            check_shape(op, "initial_states", initial, &expected, meaning)?;
        }
        Ok(Sizes { channels, width, packing })
    }
}

/// Off-tape inputs of either path.
struct Arrays {
    sizes: Sizes,
    weight: Tensor,
    bias: Option<Tensor>,
    initial: Option<Tensor>,
    silu: bool,
}

impl Arrays {
    fn new(op: &CausalConv1d, inputs: Inputs) -> Result<Self> {
        let sizes = op.validate(inputs)?;
        let weight = plain(required(op.name(), inputs, &NAMES, 1)?)?;
        let (bias, initial) = (plain_optional(inputs[2])?, plain_optional(inputs[3])?);
        Ok(Self { sizes, weight, bias, initial, silu: op.silu })
    }

    fn on_cuda<'a>(&'a self, x: &'a Tensor) -> cuda::Conv<'a> {
        let runs = &self.sizes.packing.runs[..];
        cuda::Conv {
            x,
            weight: &self.weight,
            bias: self.bias.as_ref(),
            initial: self.initial.as_ref(),
            runs,
            silu: self.silu,
            even: cuda::even(runs, x.dims()[1]),
        }
    }

    fn reference<'a>(&'a self, x: &'a Tensor) -> Result<reference::Conv<'a, f64>> {
        Ok(reference::Conv {
            runs: &self.sizes.packing.runs,
            channels: self.sizes.channels,
            width: self.sizes.width,
            x: x.as_slice()?,
            weight: self.weight.as_slice()?,
            bias: slice(&self.bias)?,
            initial_states: slice(&self.initial)?,
            states: self.sizes.packing.states,
            silu: self.silu,
        })
    }

    fn vectorised<'a>(&'a self, x: &'a Held) -> Result<cpu::Conv<'a>> {
        Ok(cpu::Conv {
            runs: &self.sizes.packing.runs,
            channels: self.sizes.channels,
            width: self.sizes.width,
            x: x.rows()?,
            weight: self.weight.as_slice()?,
            bias: slice(&self.bias)?,
            initial_states: slice(&self.initial)?,
            silu: self.silu,
        })
    }

    fn backward_f64(
        &self,
        x: &Tensor,
        dy: &Tensor,
        dfinal: Option<&Tensor>,
    ) -> Result<Vec<Option<Tensor>>> {
        let (x, dy, dfinal) = (plain(x)?, plain(dy)?, plain_optional(dfinal)?);
        let conv = self.reference(&x)?;
        let grads = reference::backward(&conv, dy.as_slice()?, slice(&dfinal)?);
        let initial = self.initial.as_ref().map(|t| like(grads.initial_states, t)).transpose()?;
        let bias = self.bias.as_ref().map(|t| like(grads.bias, t)).transpose()?;
        let (dx, dweight) = (like(grads.x, &x)?, like(grads.weight, &self.weight)?);
        Ok(vec![Some(dx), Some(dweight), bias, initial, None, None])
    }

    fn backward_f32(
        &self,
        x: &Tensor,
        dy: &Tensor,
        dfinal: Option<&Tensor>,
    ) -> Result<Vec<Option<Tensor>>> {
        let (held, dy, dfinal) = (Held::new(x, 1)?, Held::new(dy, 1)?, plain_optional(dfinal)?);
        let mut dx = empty_like(x)?;
        let mut dweight = empty_like(&self.weight)?;
        let mut dbias = vec![0.0f32; self.sizes.channels];
        let mut dinitial = self.initial.as_ref().map(empty_like).transpose()?;
        let gradients = cpu::Gradients {
            x: target(&mut dx)?,
            weight: dweight.as_slice_mut()?,
            bias: &mut dbias,
            initial_states: dinitial.as_mut().map(Tensor::as_slice_mut).transpose()?,
        };
        cpu::backward(&self.vectorised(&held)?, dy.rows()?, slice(&dfinal)?, gradients);
        let bias = self.bias.as_ref().map(|t| like(dbias, t)).transpose()?;
        Ok(vec![Some(dx), Some(dweight), bias, dinitial, None, None])
    }
}

impl Op for CausalConv1d {
    fn name(&self) -> &'static str {
        "causal_conv1d"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let sizes = self.validate(inputs)?;
        let x = required(self.name(), inputs, &NAMES, 0)?;
        let states = vec![sizes.packing.states, sizes.channels, sizes.width - 1];
        Ok(vec![Meta::new(x.shape(), x.dtype()), Meta::new(states, wide(x.dtype()))])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0, 1, 2, 3, 4, 5])
    }

    fn host_inputs(&self) -> &'static [usize] {
        &[4, 5]
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let arrays = Arrays::new(self, inputs)?;
        let x = required(self.name(), inputs, &NAMES, 0)?;
        let [y, states] = outputs else {
            return Err(Error::internal("causal_conv1d has two outputs"));
        };
        if x.device().is_cuda() {
            return arrays.on_cuda(&plain(x)?).forward(y, states);
        }
        if x.dtype() == DType::F64 {
            let x = plain(x)?;
            let (values, last) = reference::forward(&arrays.reference(&x)?);
            y.as_slice_mut()?.copy_from_slice(&values);
            states.as_slice_mut()?.copy_from_slice(&last);
            return Ok(());
        }
        let held = Held::new(x, 1)?;
        let conv = arrays.vectorised(&held)?;
        cpu::forward(&conv, target(y)?);
        cpu::final_states(&conv, states.as_slice_mut()?);
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let inputs: Vec<Option<&Tensor>> = ctx.inputs.iter().map(Option::as_ref).collect();
        let arrays = Arrays::new(self, &inputs)?;
        let x = ctx.input(0)?;
        let dy = ctx.grad_or_zeros(0, x)?;
        if x.device().is_cuda() {
            let dlast = plain_optional(ctx.grads[1].as_ref())?;
            let grads = arrays.on_cuda(&plain(x)?).backward(&plain(&dy)?, dlast.as_ref())?;
            let bias = arrays.bias.is_some().then_some(grads.bias);
            return Ok(vec![Some(grads.x), Some(grads.weight), bias, grads.initial, None, None]);
        }
        match x.dtype() {
            DType::F64 => arrays.backward_f64(x, &dy, ctx.grads[1].as_ref()),
            _ => arrays.backward_f32(x, &dy, ctx.grads[1].as_ref()),
        }
    }
}
