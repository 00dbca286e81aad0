//! Decoding: the convolution of new tokens with a state buffer, and buffers from a packed prompt.

use super::reference::{self, UpdateShape};
use super::{cpu::MAX_WIDTH, cuda, on_cpu, taps};
use crate::ops::ssd::arrays::{
    Packing, check_array, check_shape, plain, plain_optional, required, slice, wide,
};
use danaus_tensor::{Backward, DType, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply};

const OP: &str = "causal_conv1d_update";
const NAMES: [&str; 5] = ["x", "conv_state", "weight", "bias", "cache_seqlens"];

/// One step: `(y, conv_state)`. `x` is `[batch, channels]` or, for several new tokens, `[batch,
/// channels, seqlen]`; `conv_state` `[batch, channels, state_len]` with `state_len >= width - 1`.
///
/// Without `cache_seqlens` `[batch]` the buffer is a line, oldest input first. With it the buffer is a
/// ring whose next place is `cache_seqlens % state_len`. Has no gradient.
///
/// # Errors
/// Naming the argument whose shape, dtype or value does not fit.
pub fn causal_conv1d_update(
    x: &Tensor,
    conv_state: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    cache_seqlens: Option<&Tensor>,
    silu: bool,
) -> Result<(Tensor, Tensor)> {
    check_array(OP, "x", x)?;
    let compute = wide(x.dtype());
    let single = x.rank() == 2;
    let timed = if single { x.unsqueeze(2)? } else { x.clone() };
    let owned = [
        Some(timed.to_dtype(compute)?),
        Some(conv_state.to_dtype(compute)?),
        Some(taps(OP, weight, x.dtype())?),
        bias.map(|bias| bias.to_dtype(compute)).transpose()?,
        cache_seqlens.map(|tensor| tensor.to_dtype(DType::I64)).transpose()?,
    ];
    let inputs: Vec<Option<&Tensor>> = owned.iter().map(Option::as_ref).collect();
    let outputs = apply(Update { silu }, &inputs)?;
    let [y, state] = &outputs[..] else {
        return Err(Error::internal("causal_conv1d_update has two outputs"));
    };
    let y = if single { y.squeeze(2)? } else { y.clone() };
    Ok((y.to_dtype(x.dtype())?, state.to_dtype(conv_state.dtype())?))
}

struct Update {
    silu: bool,
}

impl Update {
    fn validate(&self, inputs: Inputs) -> Result<UpdateShape> {
        let at = |index| required(OP, inputs, &NAMES, index);
        let &[batch, channels, seqlen] = at(0)?.dims() else {
            let expected = "[batch, channels] or [batch, channels, seqlen]";
            return Err(Error::shape(OP, "x", at(0)?.shape(), expected));
        };
        let width = at(2)?.dims().last().copied().unwrap_or(0);
        if width == 0 || width > MAX_WIDTH {
            let valid = format!("1 to {MAX_WIDTH}");
            return Err(Error::argument(OP, "width (of weight)", width, valid));
        }
        check_shape(OP, "weight", at(2)?, &[channels, width], "[channels, width]")?;
        let state_len = at(1)?.dims().last().copied().unwrap_or(0);
        let expected = [batch, channels, state_len];
        check_shape(OP, "conv_state", at(1)?, &expected, "[batch, channels, state_len]")?;
        if state_len + 1 < width {
            let valid = format!("at least width - 1 = {}", width - 1);
            return Err(Error::argument(OP, "state_len (of conv_state)", state_len, valid));
        }
        if let Some(bias) = inputs[3] {
            check_shape(OP, "bias", bias, &[channels], "[channels]")?;
        }
        if let Some(seqlens) = inputs[4] {
            check_shape(OP, "cache_seqlens", seqlens, &[batch], "[batch]")?;
        }
        Ok(UpdateShape { batch, channels, seqlen, width, state_len })
    }

    fn run_as<T>(&self, shape: &UpdateShape, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()>
    where
        T: num_traits::Float + danaus_tensor::Element,
    {
        let at = |index| required(OP, inputs, &NAMES, index).and_then(plain);
        let (x, state, weight) = (at(0)?, at(1)?, at(2)?);
        let (bias, seqlens) = (plain_optional(inputs[3])?, plain_optional(inputs[4])?);
        let [y, next] = outputs else {
            return Err(Error::internal("causal_conv1d_update has two outputs"));
        };
        let next = next.as_slice_mut::<T>()?;
        next.copy_from_slice(state.as_slice()?);
        let filter = (weight.as_slice()?, slice(&bias)?);
        let (x, seqlens, y) = (x.as_slice()?, slice(&seqlens)?, y.as_slice_mut()?);
        reference::update(shape, x, next, filter, self.silu, seqlens, y);
        Ok(())
    }
}

impl Op for Update {
    fn name(&self) -> &'static str {
        OP
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        self.validate(inputs)?;
        let at = |index| required(OP, inputs, &NAMES, index);
        let meta = |tensor: &Tensor| Meta::new(tensor.shape(), tensor.dtype());
        Ok(vec![meta(at(0)?), meta(at(1)?)])
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let shape = self.validate(inputs)?;
        if outputs[0].device().is_cuda() {
            let at = |index| required(OP, inputs, &NAMES, index).and_then(plain);
            let (x, state, weight) = (at(0)?, at(1)?, at(2)?);
            let (bias, seqlens) = (plain_optional(inputs[3])?, plain_optional(inputs[4])?);
            let [y, next] = outputs else {
                return Err(Error::internal("causal_conv1d_update has two outputs"));
            };
            let (bias, seqlens) = (bias.as_ref(), seqlens.as_ref());
            return cuda::update([&x, &state, &weight], bias, seqlens, self.silu, [y, next]);
        }
        match outputs[0].dtype() {
            DType::F64 => self.run_as::<f64>(&shape, inputs, outputs),
            _ => self.run_as::<f32>(&shape, inputs, outputs),
        }
    }

    fn backward(&self, _: &Backward) -> Result<Vec<Option<Tensor>>> {
        let remedy = "use causal_conv1d with initial_states, which has gradients";
        Err(Error::unsupported(OP, "a gradient of a decoding step", remedy))
    }
}

/// The last `state_len` inputs of every packed sequence, `[sequences, channels, state_len]`, from `x`
/// `[tokens, channels]`; shorter sequences are preceded by zeros.
///
/// # Errors
/// Naming the argument whose shape or value does not fit.
pub fn causal_conv1d_varlen_states(
    x: &Tensor,
    cu_seqlens: &Tensor,
    state_len: usize,
) -> Result<Tensor> {
    let op = "causal_conv1d_varlen_states";
    on_cpu(op, x)?;
    let &[tokens, channels] = x.dims() else {
        return Err(Error::shape(op, "x", x.shape(), "[tokens, channels]"));
    };
    if state_len == 0 {
        return Err(Error::argument(op, "state_len", state_len, "at least 1"));
    }
    let packing = Packing::new(op, (1, tokens), None, Some(cu_seqlens))?;
    let mut states = Vec::with_capacity(packing.runs.len());
    for run in &packing.runs {
        let kept = run.len.min(state_len);
        let last = x.narrow(0, run.start + run.len - kept, kept)?;
        let zeros = Tensor::zeros(vec![state_len - kept, channels], x.dtype(), &x.device())?;
        states.push(Tensor::cat(&[&zeros, &last], 0)?.transpose(0, 1)?);
    }
    if states.is_empty() {
        return Tensor::zeros(vec![0, channels, state_len], x.dtype(), &x.device());
    }
    Tensor::stack(&states.iter().collect::<Vec<_>>(), 0)
}
