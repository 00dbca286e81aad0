//! The Mamba-1 block: a gated selective scan with a short convolution.
//!
//! ```text
//! x, z = u W_in^T
//! x = silu(conv1d(x));  dt, B, C = x W_x^T;  dt = softplus(dt W_dt^T + b_dt)
//! out = (scan(x, dt, -e^(A_log), B, C) + D x) silu(z) W_out^T
//! ```
//!
//! Every one of the `expand d_model` channels has its own step size and `d_state` decay rates, where
//! Mamba-2 has one of each per head. Parameters carry the names of the published checkpoints:
//! `in_proj.weight`, `conv1d.weight` `[channels, 1, width]`, `conv1d.bias`, `x_proj.weight`
//! `[dt_rank + 2 d_state, channels]`, `dt_proj.weight` `[channels, dt_rank]`, `dt_proj.bias`, `A_log`
//! `[channels, d_state]`, `D`, `out_proj.weight`. The weights' format is that of the two large
//! projections; `x_proj` and `dt_proj` are small and always dense. Source: Gu and Dao, Mamba, 2023.

use super::{
    SequenceMixer, check_states, initial_dt_bias, join_states, part_states, projection_biases,
};
use crate::state::RecurrentState;
use crate::structured::{Dense, Format};
use crate::{LayerState, SeqBatch, StructuredMatrix};
use danaus_kernel::ops::conv1d::{ConvInputs, ConvOptions, causal_conv1d};
use danaus_kernel::ops::linear::Extras;
use danaus_kernel::ops::selective_scan::{ScanInputs, ScanOptions, selective_scan};
use danaus_kernel::recording::constant;
use danaus_tensor::{DType, Device, Error, Init, Param, ParamBuilder, Result, Tensor};
use serde::{Deserialize, Serialize};

/// Shape and options of a Mamba-1 block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mamba1Config {
    /// Width of a channel's state.
    pub d_state: usize,
    /// Channels over `d_model`.
    pub expand: usize,
    /// Rank of the projection to step sizes; default `d_model / 16`, rounded up.
    pub dt_rank: Option<usize>,
    /// Taps of the convolution.
    pub conv_width: usize,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether `in_proj` and `out_proj` have biases.
    pub bias: bool,
}

impl Default for Mamba1Config {
    fn default() -> Self {
        Self { d_state: 16, expand: 2, dt_rank: None, conv_width: 4, conv_bias: true, bias: false }
    }
}

impl Mamba1Config {
    /// Channels of the scan.
    pub fn d_inner(&self, d_model: usize) -> usize {
        self.expand * d_model
    }

    /// Rank of the projection to step sizes.
    pub fn dt_rank(&self, d_model: usize) -> usize {
        self.dt_rank.unwrap_or(d_model.div_ceil(16))
    }

    /// Refuses shapes that do not fit `d_model`.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self, d_model: usize) -> Result<()> {
        let channels = self.d_inner(d_model);
        let fields = [
            ("d_state", self.d_state, 256),
            ("expand", self.expand, 64),
            ("dt_rank", self.dt_rank(d_model), channels),
            ("conv_width", self.conv_width, 8),
        ];
        for (field, given, most) in fields {
            if given == 0 || given > most {
                let valid = format!("1..={most}");
                return Err(Error::argument("config", format!("mamba1.{field}"), given, valid));
            }
        }
        Ok(())
    }

    /// Number of parameter elements.
    pub fn elem_count(&self, d_model: usize, format: Format) -> usize {
        let (channels, rank) = (self.d_inner(d_model), self.dt_rank(d_model));
        let taps = self.conv_width + usize::from(self.conv_bias);
        let biases = if self.bias { 2 * channels + d_model } else { 0 };
        format.elem_count(2 * channels, d_model)
            + format.elem_count(d_model, channels)
            + channels * (taps + rank + 2 * self.d_state)
            + channels * (rank + 1)
            + channels * (self.d_state + 1)
            + biases
    }
}

/// ln of the rates 1, 2, ..., the real parts of S4's diagonal initialisation.
fn initial_a_log(index: usize) -> f64 {
    (index as f64 + 1.0).ln()
}

/// The mixer.
pub struct Mamba1 {
    config: Mamba1Config,
    channels: usize,
    dt_rank: usize,
    in_proj: Box<dyn StructuredMatrix>,
    out_proj: Box<dyn StructuredMatrix>,
    /// Of both projections.
    biases: Option<(Param, Param)>,
    conv_weight: Param,
    conv_bias: Option<Param>,
    x_proj: Dense,
    dt_proj: Dense,
    dt_bias: Param,
    a_log: Param,
    d: Param,
}

/// Inputs of the scan: packed tokens, `[1, tokens, ..]`.
struct Selected {
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
}

impl Mamba1 {
    /// Makes (or loads) the mixer. `depth_gain` scales the output projection, usually
    /// `1 / sqrt(layers)`.
    ///
    /// # Errors
    /// When the config does not fit `d_model`, or a tensor is missing or has another shape.
    pub fn build(
        params: &ParamBuilder,
        config: &Mamba1Config,
        d_model: usize,
        format: Format,
        depth_gain: f64,
    ) -> Result<Self> {
        config.check(d_model)?;
        let (channels, rank) = (config.d_inner(d_model), config.dt_rank(d_model));
        let (taps, n) = (config.conv_width, config.d_state);
        let bound = 1.0 / (taps as f64).sqrt();
        let (conv, spread) = (params.pp("conv1d"), Init::Uniform(-bound, bound));
        let conv_bias = match config.conv_bias {
            true => Some(conv.param_no_decay("bias", [channels], spread)?),
            false => None,
        };
        let dt_proj = params.pp("dt_proj");
        Ok(Self {
            biases: projection_biases(params, config.bias, [2 * channels, d_model])?,
            in_proj: format.build(&params.pp("in_proj"), [2 * channels, d_model], 1.0)?,
            out_proj: format.build(&params.pp("out_proj"), [d_model, channels], depth_gain)?,
            conv_weight: conv.param("weight", [channels, 1, taps], spread)?,
            conv_bias,
            x_proj: Dense::build(&params.pp("x_proj"), [rank + 2 * n, channels], 1.0)?,
            dt_bias: dt_proj.param_no_decay("bias", [channels], Init::Map(initial_dt_bias))?,
            dt_proj: Dense::build(&dt_proj, [channels, rank], 1.0)?,
            a_log: params.param_no_decay("A_log", [channels, n], Init::Index(initial_a_log))?,
            d: params.param_no_decay("D", [channels], Init::Constant(1.0))?,
            config: config.clone(),
            channels,
            dt_rank: rank,
        })
    }

    /// `(x, z)`, `[tokens, channels]` each.
    fn project(&self, u: &Tensor) -> Result<(Tensor, Tensor)> {
        let bias = self.biases.as_ref().map(|(bias, _)| bias.tensor());
        let joined = self.in_proj.apply(u, Extras { bias: bias.as_ref(), ..Extras::default() })?;
        let mut parts = joined.split(-1, &[self.channels; 2])?.into_iter();
        match (parts.next(), parts.next()) {
            (Some(x), Some(z)) => Ok((x, z)),
            _ => Err(Error::internal("too few parts")),
        }
    }

    /// Convolution and selection; also the convolution's states.
    fn select(
        &self,
        x: &Tensor,
        batch: &SeqBatch,
        initial_states: Option<&Tensor>,
    ) -> Result<(Selected, Tensor)> {
        let weight = self.conv_weight.tensor();
        let bias = self.conv_bias.as_ref().map(Param::tensor);
        let inputs = ConvInputs {
            x: &x.unsqueeze(0)?,
            weight: &weight,
            bias: bias.as_ref(),
            initial_states,
            seq_idx: None,
            cu_seqlens: Some(batch.cu_seqlens()),
        };
        let options = ConvOptions { silu: true, channel_last: true };
        let (x, states) = causal_conv1d(&inputs, &options)?;
        let n = self.config.d_state;
        let low = self.x_proj.apply(&x, Extras::default())?;
        let mut parts = low.split(-1, &[self.dt_rank, n, n])?.into_iter();
        let mut next = || parts.next().ok_or_else(|| Error::internal("too few parts"));
        // The bias of `dt_proj` is added in f32 by the scan.
        let dt = self.dt_proj.apply(&next()?, Extras::default())?;
        let (b, c) = (next()?, next()?);
        Ok((Selected { x, dt, b, c }, states))
    }

    /// Decay rates `-e^(A_log)`.
    fn rates(&self) -> Result<Tensor> {
        constant(|| self.a_log.tensor().exp()?.neg())
    }

    /// From the projection to the output: packed tokens from `states` (conv, scan) or from nothing.
    fn mix(
        &self,
        u: &Tensor,
        batch: &SeqBatch,
        states: Option<(&Tensor, &Tensor)>,
        residual: Option<&Tensor>,
    ) -> Result<(Tensor, [Tensor; 2])> {
        let (x, z) = self.project(u)?;
        let (chosen, conv_states) = self.select(&x, batch, states.map(|(conv, _)| conv))?;
        let Selected { x, dt, b, c } = &chosen;
        let (a, d, dt_bias) = (self.rates()?, self.d.tensor(), self.dt_bias.tensor());
        let inputs = ScanInputs {
            d: Some(&d),
            z: Some(&z.unsqueeze(0)?),
            delta_bias: Some(&dt_bias),
            initial_states: states.map(|(_, scan)| scan),
            cu_seqlens: Some(batch.cu_seqlens()),
            ..ScanInputs::new(x, dt, &a, b, c)
        };
        let options = ScanOptions { delta_softplus: true, channel_last: true };
        let (y, scan_states) = selective_scan(&inputs, &options)?;
        let bias = self.biases.as_ref().map(|(_, bias)| bias.tensor());
        let extras = Extras { bias: bias.as_ref(), residual, ..Extras::default() };
        let out = self.out_proj.apply(&y.squeeze(0)?, extras)?;
        Ok((out, [conv_states, scan_states]))
    }
}

impl SequenceMixer for Mamba1 {
    fn name(&self) -> &'static str {
        "mamba1"
    }

    fn is_causal(&self) -> bool {
        true
    }

    fn forward(&self, x: &Tensor, batch: &SeqBatch, residual: Option<&Tensor>) -> Result<Tensor> {
        batch.check("mamba1", x)?;
        Ok(self.mix(x, batch, None, residual)?.0)
    }

    fn init_state(&self, dtype: DType) -> Result<LayerState> {
        let wide = dtype.accumulator();
        let conv = [1, self.channels, self.config.conv_width - 1];
        let scan = [1, self.channels, self.config.d_state];
        Ok(LayerState::Recurrent(RecurrentState::new(
            Tensor::zeros(conv, wide, &Device::Cpu)?,
            Tensor::zeros(scan, wide, &Device::Cpu)?,
        )))
    }

    fn advance(
        &self,
        x: &Tensor,
        batch: &SeqBatch,
        states: &mut [&mut LayerState],
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        batch.check("mamba1", x)?;
        check_states("mamba1", batch, states.len())?;
        let (conv, scan) = join_states("mamba1", states)?;
        let (y, after) = self.mix(x, batch, Some((&conv, &scan)), residual)?;
        part_states(states, after)?;
        Ok(y)
    }

    fn dense(&self, x: &Tensor) -> Result<Tensor> {
        // Every channel mixes time by its own matrix: the scan of one-hot inputs, all columns at once as
        // a batch of sequences, without D and gate.
        let tokens = x.dims()[0];
        let single = SeqBatch::from_lengths(&[tokens])?;
        let (x, _) = self.project(x)?;
        let (chosen, _) = self.select(&x, &single, None)?;
        let (a, dt_bias) = (self.rates()?, self.dt_bias.tensor());
        let repeat = |x: &Tensor| {
            let width = x.dims()[2];
            x.broadcast_to([tokens, tokens, width])?.contiguous()
        };
        let identity: Vec<f64> = (0..tokens * tokens)
            .flat_map(|at| {
                let value = if at / tokens == at % tokens { 1.0 } else { 0.0 };
                vec![value; self.channels]
            })
            .collect();
        let one_hot = Tensor::from_vec(identity, [tokens, tokens, self.channels], &x.device())?;
        let one_hot = one_hot.to_dtype(chosen.x.dtype())?;
        let (dt, b, c) = (repeat(&chosen.dt)?, repeat(&chosen.b)?, repeat(&chosen.c)?);
        let inputs =
            ScanInputs { delta_bias: Some(&dt_bias), ..ScanInputs::new(&one_hot, &dt, &a, &b, &c) };
        let options = ScanOptions { delta_softplus: true, channel_last: true };
        let (columns, _) = selective_scan(&inputs, &options)?;
        // [column, row, channel] to [channel, row, column].
        columns.transpose(0, 2)
    }

    fn flops(&self, batch: &SeqBatch) -> u64 {
        let (tokens, n) = (batch.tokens(), self.config.d_state);
        // An exponential counts as one operation, as in the published counts.
        let scan = tokens * self.channels * 7 * n;
        let conv = 2 * tokens * self.channels * self.config.conv_width;
        let projections =
            [&*self.in_proj, &*self.out_proj, &self.x_proj, &self.dt_proj].map(|m| m.flops(tokens));
        projections.iter().sum::<u64>() + (scan + conv) as u64
    }
}
