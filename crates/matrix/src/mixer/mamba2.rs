//! The Mamba-2 block: gated state space duality with a short convolution.
//!
//! ```text
//! [z0, x0], z, xBC, dt = x W_in^T         (the MLP pair only when d_ssm < expand d_model)
//! x, B, C = silu(conv1d(xBC));  y = ssd(x, softplus(dt + dt_bias), -e^(A_log), B, C) + D x
//! out = [silu(z0) x0, norm(y silu(z))] W_out^T
//! ```
//!
//! Parameters carry the names of the published checkpoints: `in_proj.weight`, `conv1d.weight`
//! `[channels, 1, width]`, `conv1d.bias`, `dt_bias`, `A_log`, `D`, `norm.weight`, `out_proj.weight`.
//! Source: Dao and Gu, Transformers are SSMs, ICML 2024.

use super::{
    SequenceMixer, check_states, foreign_state, identity_columns, initial_dt_bias,
    projection_biases,
};
use crate::state::{DRAFT_TOKENS, STEP_TOKENS, SlotState, StepLists, places};
use crate::structured::Format;
use crate::{LayerState, SeqBatch, StructuredMatrix};
use danaus_kernel::ops::activation::swiglu;
use danaus_kernel::ops::conv1d::{ConvInputs, ConvOptions, causal_conv1d};
use danaus_kernel::ops::linear::Extras;
use danaus_kernel::ops::mamba2_step::{PoolShape, StepInputs, StepOptions, StepParams};
use danaus_kernel::ops::rms_norm_gated::{RmsNormGatedOptions, rms_norm_gated};
use danaus_kernel::ops::ssd::{SsdInputs, SsdOptions, ssd};
use danaus_tensor::{DType, Error, Init, Param, ParamBuilder, Result, Tensor, is_recording};
use serde::{Deserialize, Serialize};

/// Shape and options of a Mamba-2 block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mamba2Config {
    /// Width of a head's state.
    pub d_state: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Inner width over `d_model`.
    pub expand: usize,
    /// Groups of heads that share B and C.
    pub n_groups: usize,
    /// Inner features that go through the scan; default all, the rest is a gated MLP.
    pub d_ssm: Option<usize>,
    /// Taps of the convolution.
    pub conv_width: usize,
    /// Upper bound on the tokens of a chunk.
    pub chunk_size: usize,
    /// Whether the gated output is normalised.
    pub rms_norm: bool,
    /// Added to the mean square by that norm.
    pub norm_eps: f64,
    /// Whether the norm comes before the gate: `norm(y) silu(z)` instead of `norm(y silu(z))`.
    pub norm_before_gate: bool,
    /// Bounds of the step size after softplus; `null` leaves it open above.
    pub dt_limit: (f64, Option<f64>),
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether both projections have biases.
    pub bias: bool,
}

impl Default for Mamba2Config {
    fn default() -> Self {
        Self {
            d_state: 128,
            head_dim: 64,
            expand: 2,
            n_groups: 1,
            d_ssm: None,
            conv_width: 4,
            chunk_size: 256,
            rms_norm: true,
            norm_eps: 1e-5,
            norm_before_gate: false,
            dt_limit: (0.0, None),
            conv_bias: true,
            bias: false,
        }
    }
}

/// Widths that follow from a config.
#[derive(Clone, Copy)]
struct Widths {
    d_ssm: usize,
    d_mlp: usize,
    n_heads: usize,
    /// Features of B (and of C).
    bc: usize,
}

impl Widths {
    fn conv(&self) -> usize {
        self.d_ssm + 2 * self.bc
    }

    fn projected(&self) -> usize {
        2 * self.d_mlp + self.d_ssm + self.conv() + self.n_heads
    }
}

impl Mamba2Config {
    /// Bytes of the state of a sequence that is computed in f32: the recurrence's, and rings of the
    /// inputs and step sizes that a step or a replay reads.
    pub fn state_bytes(&self, d_model: usize) -> usize {
        let widths = self.widths(d_model);
        let places = places(self.conv_width);
        let scan = widths.n_heads * self.head_dim * self.d_state;
        let cursor = 2 * size_of::<i64>();
        4 * (places * (widths.conv() + widths.n_heads) + scan) + cursor
    }

    fn widths(&self, d_model: usize) -> Widths {
        let d_inner = self.expand * d_model;
        let d_ssm = self.d_ssm.unwrap_or(d_inner);
        let n_heads = d_ssm / self.head_dim.max(1);
        Widths {
            d_ssm,
            d_mlp: d_inner.saturating_sub(d_ssm),
            n_heads,
            bc: self.n_groups * self.d_state,
        }
    }

    /// Refuses shapes that do not fit `d_model`.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self, d_model: usize) -> Result<()> {
        let widths = self.widths(d_model);
        let refuse = |field: &str, given: usize, valid: String| {
            Err(Error::argument("config", format!("mamba2.{field}"), given, valid))
        };
        if self.d_state == 0 || self.d_state > 256 {
            return refuse("d_state", self.d_state, "1..=256".into());
        }
        if widths.d_ssm == 0 || widths.d_ssm > self.expand * d_model {
            let valid = format!("1..={} (expand d_model)", self.expand * d_model);
            return refuse("d_ssm", widths.d_ssm, valid);
        }
        if self.head_dim == 0 || !widths.d_ssm.is_multiple_of(self.head_dim) {
            return refuse("head_dim", self.head_dim, format!("a divisor of {}", widths.d_ssm));
        }
        if self.n_groups == 0 || !widths.n_heads.is_multiple_of(self.n_groups) {
            return refuse(
                "n_groups",
                self.n_groups,
                format!("a divisor of {} heads", widths.n_heads),
            );
        }
        if !(1..=8).contains(&self.conv_width) {
            return refuse("conv_width", self.conv_width, "1..=8".into());
        }
        if self.chunk_size == 0 {
            return refuse("chunk_size", 0, "at least 1".into());
        }
        self.check_numbers()
    }

    fn check_numbers(&self) -> Result<()> {
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            let valid = "between 0 and 1";
            return Err(Error::argument("config", "mamba2.norm_eps", self.norm_eps, valid));
        }
        let (low, high) = self.dt_limit;
        if !(low >= 0.0 && low.is_finite() && high.is_none_or(|high| high >= low)) {
            let given = format!("{:?}", self.dt_limit);
            let valid = "[low, high] with 0 <= low <= high, high null for no bound";
            return Err(Error::argument("config", "mamba2.dt_limit", given, valid));
        }
        Ok(())
    }

    /// Bounds that change anything: softplus is never below 0.
    fn limits(&self) -> Option<(f64, f64)> {
        match self.dt_limit {
            (0.0, None) => None,
            (low, high) => Some((low, high.unwrap_or(f64::INFINITY))),
        }
    }

    /// Number of parameter elements.
    pub fn elem_count(&self, d_model: usize, format: Format) -> usize {
        let widths = self.widths(d_model);
        let norm = if self.rms_norm { widths.d_ssm } else { 0 };
        let taps = self.conv_width + usize::from(self.conv_bias);
        let biases = if self.bias { widths.projected() + d_model } else { 0 };
        format.elem_count(widths.projected(), d_model)
            + format.elem_count(d_model, widths.d_ssm + widths.d_mlp)
            + widths.conv() * taps
            + 3 * widths.n_heads
            + norm
            + biases
    }
}

/// ln of a rate uniform in [1, 16].
fn initial_a_log(uniform: f64) -> f64 {
    (1.0 + 15.0 * uniform).ln()
}

/// The mixer.
pub struct Mamba2 {
    config: Mamba2Config,
    widths: Widths,
    in_proj: Box<dyn StructuredMatrix>,
    out_proj: Box<dyn StructuredMatrix>,
    /// Of both projections.
    biases: Option<(Param, Param)>,
    conv_weight: Param,
    conv_bias: Option<Param>,
    dt_bias: Param,
    a_log: Param,
    d: Param,
    norm: Option<Param>,
}

/// The parts of the input projection.
struct Projected {
    /// The gated MLP's result where there is one.
    mlp: Option<Tensor>,
    z: Tensor,
    xbc: Tensor,
    dt: Tensor,
}

impl Mamba2 {
    /// Makes (or loads) the mixer. `depth_gain` scales the output projection, usually
    /// `1 / sqrt(layers)`.
    ///
    /// # Errors
    /// When the config does not fit `d_model`, or a tensor is missing or has another shape.
    pub fn build(
        params: &ParamBuilder,
        config: &Mamba2Config,
        d_model: usize,
        format: Format,
        depth_gain: f64,
    ) -> Result<Self> {
        config.check(d_model)?;
        let widths = config.widths(d_model);
        let (heads, channels, taps) = (widths.n_heads, widths.conv(), config.conv_width);
        let bound = 1.0 / (taps as f64).sqrt();
        let conv = params.pp("conv1d");
        let spread = Init::Uniform(-bound, bound);
        let norm = match config.rms_norm {
            true => Some(params.pp("norm").param_no_decay(
                "weight",
                [widths.d_ssm],
                Init::Constant(1.0),
            )?),
            false => None,
        };
        let inner = widths.d_ssm + widths.d_mlp;
        let conv_bias = match config.conv_bias {
            true => Some(conv.param_no_decay("bias", [channels], spread)?),
            false => None,
        };
        Ok(Self {
            biases: projection_biases(params, config.bias, [widths.projected(), d_model])?,
            in_proj: format.build(&params.pp("in_proj"), [widths.projected(), d_model], 1.0)?,
            out_proj: format.build(&params.pp("out_proj"), [d_model, inner], depth_gain)?,
            conv_weight: conv.param("weight", [channels, 1, taps], spread)?,
            conv_bias,
            dt_bias: params.param_no_decay("dt_bias", [heads], Init::Map(initial_dt_bias))?,
            a_log: params.param_no_decay("A_log", [heads], Init::Map(initial_a_log))?,
            d: params.param_no_decay("D", [heads], Init::Constant(1.0))?,
            norm,
            config: config.clone(),
            widths,
        })
    }

    fn project(&self, x: &Tensor) -> Result<Projected> {
        let bias = self.biases.as_ref().map(|(bias, _)| bias.tensor());
        let joined = self.in_proj.apply(x, Extras { bias: bias.as_ref(), ..Extras::default() })?;
        let Widths { d_ssm, d_mlp, n_heads, .. } = self.widths;
        let sizes = [d_mlp, d_mlp, d_ssm, self.widths.conv(), n_heads];
        let skip = if d_mlp == 0 { 2 } else { 0 };
        let mut parts = joined.split(-1, &sizes[skip..])?.into_iter();
        let mut next = || parts.next().ok_or_else(|| Error::internal("too few parts"));
        let mlp = if d_mlp == 0 { None } else { Some(swiglu(&next()?, &next()?)?) };
        Ok(Projected { mlp, z: next()?, xbc: next()?, dt: next()? })
    }

    /// Decay rates `-e^(A_log)`.
    fn rates(&self) -> Result<Tensor> {
        self.a_log.tensor().exp()?.neg()
    }

    /// Convolution, scan, gate, norm: packed tokens from `states` (conv, scan) or from nothing.
    fn mix(
        &self,
        parts: &Projected,
        batch: &SeqBatch,
        states: Option<(&Tensor, &Tensor)>,
    ) -> Result<(Tensor, [Tensor; 2])> {
        let weight = self.conv_weight.tensor();
        let bias = self.conv_bias.as_ref().map(Param::tensor);
        let conv = ConvInputs {
            x: &parts.xbc.unsqueeze(0)?,
            weight: &weight,
            bias: bias.as_ref(),
            initial_states: states.map(|(conv, _)| conv),
            seq_idx: None,
            cu_seqlens: Some(batch.cu_seqlens()),
        };
        let options = ConvOptions { silu: true, channel_last: true };
        let (xbc, conv_states) = causal_conv1d(&conv, &options)?;
        let Widths { d_ssm, n_heads, bc, .. } = self.widths;
        let xbc = xbc.split(-1, &[d_ssm, bc, bc])?;
        let tokens = batch.tokens();
        let heads = |x: &Tensor| x.reshape([1, tokens, n_heads, self.config.head_dim]);
        let groups = |x: &Tensor| x.reshape([1, tokens, self.config.n_groups, self.config.d_state]);
        let (x, b, c) = (heads(&xbc[0])?, groups(&xbc[1])?, groups(&xbc[2])?);
        let (dt, a) = (parts.dt.unsqueeze(0)?, self.rates()?);
        let (d, dt_bias) = (self.d.tensor(), self.dt_bias.tensor());
        // Without a norm the gate belongs to the scan.
        let gate = if self.norm.is_none() { Some(heads(&parts.z)?) } else { None };
        let inputs = SsdInputs {
            d: Some(&d),
            z: gate.as_ref(),
            dt_bias: Some(&dt_bias),
            initial_states: states.map(|(_, scan)| scan),
            cu_seqlens: Some(batch.cu_seqlens()),
            ..SsdInputs::new(&x, &dt, &a, &b, &c)
        };
        let options = SsdOptions {
            dt_softplus: true,
            dt_limit: self.config.limits(),
            chunk_size: Some(self.config.chunk_size),
        };
        let (y, scan_states) = ssd(&inputs, &options)?;
        let y = self.normalise(y.reshape([tokens, d_ssm])?, &parts.z)?;
        Ok((y, [conv_states, scan_states]))
    }

    /// The gated norm where there is one.
    fn normalise(&self, y: Tensor, z: &Tensor) -> Result<Tensor> {
        let Some(norm) = &self.norm else { return Ok(y) };
        let options = RmsNormGatedOptions {
            group_size: Some(self.widths.d_ssm / self.config.n_groups),
            norm_before_gate: self.config.norm_before_gate,
            eps: self.config.norm_eps,
        };
        rms_norm_gated(&y, Some(z), &norm.tensor(), &options)
    }

    /// Tokens of every sequence, if one step can take all of them: few and equally many, states beside
    /// each other, no gradient wanted.
    fn step_len(&self, x: &Tensor, batch: &SeqBatch, states: &[&mut SlotState]) -> Option<usize> {
        let wanted = is_recording() && (x.is_tracked() || self.conv_weight.tensor().is_tracked());
        let beside = states.iter().all(|state| state.is_beside(states[0]));
        let len = batch.lengths().next()?;
        let pending = states.iter().map(|state| state.pending()).max()?;
        let few = len > 0 && len + pending <= STEP_TOKENS;
        let even = batch.lengths().all(|other| other == len);
        (!wanted && beside && few && even).then_some(len)
    }

    /// One step of all sequences on their states.
    fn step(
        &self,
        parts: &Projected,
        len: usize,
        lists: Option<&StepLists>,
        states: &mut [&mut SlotState],
    ) -> Result<Tensor> {
        let rows = |x: &Tensor| match len {
            1 => x.unsqueeze(1),
            _ => x.reshape([states.len(), len, x.dims()[1]]),
        };
        let (xbc, dt, z) = (rows(&parts.xbc)?, rows(&parts.dt)?, rows(&parts.z)?);
        // Without a norm the gate belongs to the scan.
        let gate = self.norm.is_none().then_some(&z);
        let inputs = StepInputs { xbc: &xbc, dt: &dt, z: gate };
        let (conv_weight, dt_bias) = (self.conv_weight.tensor(), self.dt_bias.tensor());
        let conv_bias = self.conv_bias.as_ref().map(Param::tensor);
        let (a_log, d) = (self.a_log.tensor(), self.d.tensor());
        let params = StepParams {
            conv_weight: &conv_weight,
            conv_bias: conv_bias.as_ref(),
            dt_bias: Some(&dt_bias),
            a_log: &a_log,
            d: Some(&d),
        };
        let dt_limit = self.config.limits();
        let options = StepOptions { dt_softplus: true, dt_limit, commit: true };
        let y = SlotState::step(states, &inputs, &params, lists, &options)?;
        if len == 0 {
            return Ok(y);
        }
        self.normalise(y.flatten(0, 1)?, &parts.z)
    }

    /// Before a pass that is no step: replays accepted tokens of drafts where states wait for them.
    fn take_in(&self, states: &mut [&mut SlotState], like: &Tensor) -> Result<()> {
        if states.iter().any(|state| state.drafts()) {
            let valid = format!(
                "at most {DRAFT_TOKENS} tokens a sequence, equally many, in one pool, without gradients"
            );
            return Err(Error::argument("mamba2", "draft", format!("{:?}", like.shape()), valid));
        }
        for state in states.iter_mut().filter(|state| state.pending() > 0) {
            let none = |width| Tensor::zeros([0, width], like.dtype(), &like.device());
            let (xbc, dt) = (none(self.widths.conv())?, none(self.widths.n_heads)?);
            let parts = Projected { mlp: None, z: none(self.widths.d_ssm)?, xbc, dt };
            self.step(&parts, 0, None, std::slice::from_mut(state))?;
        }
        Ok(())
    }

    fn finish(&self, mlp: Option<&Tensor>, y: Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let joined = mlp.map_or(Ok(y.clone()), |mlp| Tensor::cat(&[mlp, &y], -1))?;
        let bias = self.biases.as_ref().map(|(_, bias)| bias.tensor());
        let extras = Extras { bias: bias.as_ref(), residual, ..Extras::default() };
        self.out_proj.apply(&joined, extras)
    }
}

impl SequenceMixer for Mamba2 {
    fn name(&self) -> &'static str {
        "mamba2"
    }

    fn is_causal(&self) -> bool {
        true
    }

    fn forward(&self, x: &Tensor, batch: &SeqBatch, residual: Option<&Tensor>) -> Result<Tensor> {
        batch.check("mamba2", x)?;
        let parts = self.project(x)?;
        let (y, _) = self.mix(&parts, batch, None)?;
        self.finish(parts.mlp.as_ref(), y, residual)
    }

    fn init_state(&self, dtype: DType) -> Result<LayerState> {
        let Widths { n_heads, .. } = self.widths;
        let shape = PoolShape {
            slots: 0,
            places: 0,
            channels: self.widths.conv(),
            heads: n_heads,
            head_dim: self.config.head_dim,
            d_state: self.config.d_state,
        };
        Ok(LayerState::Slot(SlotState::new(&shape, self.config.conv_width, dtype)?))
    }

    fn advance(
        &self,
        x: &Tensor,
        batch: &SeqBatch,
        states: &mut [&mut LayerState],
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        batch.check("mamba2", x)?;
        check_states("mamba2", batch, states.len())?;
        let mut slots = Vec::with_capacity(states.len());
        for state in states.iter_mut() {
            let LayerState::Slot(state) = &mut **state else { return Err(foreign_state("mamba2")) };
            slots.push(state);
        }
        let parts = self.project(x)?;
        let y = match self.step_len(x, batch, &slots) {
            Some(len) => self.step(&parts, len, batch.step(), &mut slots)?,
            None => {
                self.take_in(&mut slots, x)?;
                let before = SlotState::join(&slots)?;
                let before = before.as_ref().map(|(conv, scan)| (conv, scan));
                let (y, [conv, scan]) = self.mix(&parts, batch, before)?;
                for (at, state) in slots.iter_mut().enumerate() {
                    state.set(&conv.narrow(0, at, 1)?, &scan.narrow(0, at, 1)?)?;
                }
                y
            }
        };
        self.finish(parts.mlp.as_ref(), y, residual)
    }

    fn dense(&self, x: &Tensor) -> Result<Tensor> {
        // The scan of one-hot values reads the matrix off: heads see the identity, one block of
        // columns at a time, without D and gate.
        let batch = SeqBatch::from_lengths(&[x.dims()[0]])?;
        let parts = self.project(x)?;
        let Widths { d_ssm, n_heads, bc, .. } = self.widths;
        let weight = self.conv_weight.tensor();
        let bias = self.conv_bias.as_ref().map(Param::tensor);
        let conv = ConvInputs {
            x: &parts.xbc.unsqueeze(0)?,
            weight: &weight,
            bias: bias.as_ref(),
            initial_states: None,
            seq_idx: None,
            cu_seqlens: Some(batch.cu_seqlens()),
        };
        let (xbc, _) = causal_conv1d(&conv, &ConvOptions { silu: true, channel_last: true })?;
        let tokens = batch.tokens();
        let groups = |x: &Tensor| x.reshape([1, tokens, self.config.n_groups, self.config.d_state]);
        let xbc = xbc.split(-1, &[d_ssm, bc, bc])?;
        let (b, c) = (groups(&xbc[1])?, groups(&xbc[2])?);
        let (dt, a, dt_bias) = (parts.dt.unsqueeze(0)?, self.rates()?, self.dt_bias.tensor());
        let mut columns = Vec::new();
        for one_hot in identity_columns(tokens, n_heads, x)? {
            let inputs =
                SsdInputs { dt_bias: Some(&dt_bias), ..SsdInputs::new(&one_hot, &dt, &a, &b, &c) };
            let dt_limit = self.config.limits();
            let options = SsdOptions { dt_softplus: true, dt_limit, chunk_size: None };
            let (part, _) = ssd(&inputs, &options)?;
            columns.push(part.squeeze(0)?.transpose(0, 1)?);
        }
        let borrowed: Vec<&Tensor> = columns.iter().collect();
        Tensor::cat(&borrowed, -1)
    }

    fn flops(&self, batch: &SeqBatch) -> u64 {
        let Widths { d_ssm, .. } = self.widths;
        let (tokens, n, chunk) = (batch.tokens(), self.config.d_state, 64);
        let scan = tokens * (d_ssm * (chunk + 4 * n) + self.config.n_groups * chunk * n);
        let conv = 2 * tokens * self.widths.conv() * self.config.conv_width;
        self.in_proj.flops(tokens) + self.out_proj.flops(tokens) + (scan + conv) as u64
    }
}
