//! Refuses calls whose arguments do not fit together, before anything is written.

use super::{OP, StepInputs, StepOptions, StepParams, StepRows, pool};
use crate::ops::conv1d::cpu::MAX_WIDTH;
use crate::ops::ssd::arrays::{check_array, check_dtype, check_shape, wide};
use crate::ops::ssd::config::Shape;
use danaus_tensor::{DType, Device, Error, Result, Tensor};

/// Sizes of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub batch: usize,
    pub seqlen: usize,
    pub heads: usize,
    pub groups: usize,
    pub head_dim: usize,
    pub d_state: usize,
    pub width: usize,
    pub slots: usize,
    pub places: usize,
}

impl Sizes {
    pub(super) fn check(
        inputs: &StepInputs,
        params: &StepParams,
        rows: &StepRows,
        pool: &pool::Mamba2Pool,
        options: &StepOptions,
    ) -> Result<Self> {
        check_array(OP, "xbc", inputs.xbc)?;
        let sizes = Self::of(inputs, params, pool)?;
        sizes.check_groups(inputs.xbc)?;
        sizes.check_shapes(inputs, params, pool)?;
        sizes.check_rows(rows, &inputs.xbc.device())?;
        options.ssd().check_limits(OP)?;
        let needed = sizes.width - 1 + sizes.seqlen;
        if sizes.places < needed {
            let valid = format!("at least width - 1 + seqlen = {needed}");
            return Err(Error::argument(OP, "places (of conv_states)", sizes.places, valid));
        }
        Ok(sizes)
    }

    fn of(inputs: &StepInputs, params: &StepParams, pool: &pool::Mamba2Pool) -> Result<Self> {
        let &[batch, seqlen, channels] = inputs.xbc.dims() else {
            let expected = "[batch, seqlen, channels]";
            return Err(Error::shape(OP, "xbc", inputs.xbc.shape(), expected));
        };
        let &[slots, heads, head_dim, d_state] = pool.scan.dims() else {
            let expected = "[slots, heads, head_dim, d_state]";
            return Err(Error::shape(OP, "scan_states", pool.scan.shape(), expected));
        };
        let &[_, places, _] = pool.conv.dims() else {
            let expected = "[slots, places, channels]";
            return Err(Error::shape(OP, "conv_states", pool.conv.shape(), expected));
        };
        let width = params.conv_weight.dims().last().copied().unwrap_or(0);
        if width == 0 || width > MAX_WIDTH {
            let valid = format!("1 to {MAX_WIDTH}");
            return Err(Error::argument(OP, "width (of conv_weight)", width, valid));
        }
        let groups = channels.saturating_sub(heads * head_dim) / (2 * d_state).max(1);
        Ok(Self { batch, seqlen, heads, groups, head_dim, d_state, width, slots, places })
    }

    fn check_groups(&self, xbc: &Tensor) -> Result<()> {
        let empty = [self.heads, self.groups, self.head_dim, self.d_state].contains(&0);
        if empty || xbc.dims()[2] != self.channels() || !self.heads.is_multiple_of(self.groups) {
            let values = self.width_out();
            let expected = format!(
                "channels = {values} (heads * head_dim) + 2 groups * {}, groups dividing {} heads",
                self.d_state, self.heads
            );
            return Err(Error::shape(OP, "xbc", xbc.shape(), expected));
        }
        Ok(())
    }

    fn check_shapes(
        &self,
        inputs: &StepInputs,
        params: &StepParams,
        pool: &pool::Mamba2Pool,
    ) -> Result<()> {
        let (narrow, states) = (inputs.xbc.dtype(), wide(inputs.xbc.dtype()));
        let Self { batch, seqlen, heads, slots, places, .. } = *self;
        let (channels, values) = (self.channels(), self.width_out());
        let same: [(&str, Option<&Tensor>, DType, &[usize]); 6] = [
            ("dt", Some(inputs.dt), narrow, &[batch, seqlen, heads]),
            ("z", inputs.z, narrow, &[batch, seqlen, values]),
            ("conv_states", Some(&pool.conv), narrow, &[slots, places, channels]),
            ("dt_states", Some(&pool.dt), narrow, &[slots, places, heads]),
            ("scan_states", Some(&pool.scan), states, pool.scan.dims()),
            ("cursor", Some(&pool.cursor), DType::I64, &[slots, 2]),
        ];
        let device = inputs.xbc.device();
        for (name, tensor, dtype, dims) in same {
            let Some(tensor) = tensor else { continue };
            check_dtype(OP, name, tensor, dtype)?;
            check_shape(OP, name, tensor, dims, "the sizes of xbc and scan_states")?;
            check_device(name, tensor, &device)?;
        }
        let weight: &[usize] = match params.conv_weight.rank() {
            2 => &[channels, self.width],
            _ => &[channels, 1, self.width],
        };
        let d: &[usize] = match params.d.map(Tensor::rank) {
            Some(2) => &[heads, self.head_dim],
            _ => &[heads],
        };
        let params: [(&str, Option<&Tensor>, &[usize]); 5] = [
            ("conv_weight", Some(params.conv_weight), weight),
            ("conv_bias", params.conv_bias, &[channels]),
            ("dt_bias", params.dt_bias, &[heads]),
            ("A_log", Some(params.a_log), &[heads]),
            ("D", params.d, d),
        ];
        for (name, tensor, dims) in params {
            let Some(tensor) = tensor else { continue };
            check_shape(OP, name, tensor, dims, "the sizes of xbc and scan_states")?;
            check_device(name, tensor, &device)?;
        }
        Ok(())
    }

    fn check_rows(&self, rows: &StepRows, device: &Device) -> Result<()> {
        let rows =
            [("slots", Some(rows.slots)), ("to_slots", rows.to_slots), ("accepted", rows.accepted)];
        for (name, tensor) in rows {
            let Some(tensor) = tensor else { continue };
            if !matches!(tensor.dtype(), DType::I32 | DType::I64) {
                return Err(Error::dtype(OP, name, tensor.dtype(), "i32 or i64"));
            }
            check_shape(OP, name, tensor, &[self.batch], "[batch]")?;
            if tensor.device() != Device::Cpu {
                check_device(name, tensor, device)?;
            }
        }
        Ok(())
    }

    /// Inputs of the convolution.
    pub(super) fn channels(&self) -> usize {
        self.width_out() + 2 * self.groups * self.d_state
    }

    /// Elements of y for a token.
    pub(super) fn width_out(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Most tokens that a call may replay.
    pub(super) fn most_replayed(&self) -> usize {
        self.places - (self.width - 1) - self.seqlen
    }

    /// Sizes of the scan over `tokens`.
    pub(super) fn shape(&self, tokens: usize) -> Shape {
        let Self { heads, groups, head_dim, d_state, .. } = *self;
        Shape { tokens, heads, groups, head_dim, d_state }
    }
}

fn check_device(name: &str, tensor: &Tensor, expected: &Device) -> Result<()> {
    if tensor.device() == *expected {
        return Ok(());
    }
    let (arg, found, expected) = (name.to_string(), tensor.device(), *expected);
    Err(Error::DeviceMismatch { op: OP, arg, found, expected })
}
