//! Attention without softmax, whose state does not grow: linear attention, RetNet, gated linear attention.
//!
//! All three are the scan of [`ssd_core`] with another decay `a`, one number a head and token:
//!
//! ```text
//! S_t = e^(a_t) S_(t-1) + v_t k_t^T,   o_t = S_t q_t,   q, k, v [, z] [, g] = x W_in^T
//! ```
//!
//! | kind | decay a | q and k | y |
//! | --- | --- | --- | --- |
//! | `linear` | 0 | `elu + 1` of both | `o_t / (q_t . sum of k up to t + eps)` |
//! | `retnet` | `ln(1 - 2^(-5 - h))` of head h | turned by rotary angles | `norm(o) silu(z)` |
//! | `gated` | `ln sigmoid(g + b) / 16` | as they are | `norm(o) silu(z)` |
//!
//! RetNet and the gated kind scale k by `head_dim^(-1/2)` and normalise each head's output. The sum of
//! keys that `linear` divides by is one more column of the values, so that it takes part in chunks,
//! packing, states and gradients like any other.
//!
//! Parameters: `in_proj.weight`, `out_proj.weight`, `norm.weight` `[n_heads * value_dim]` (not `linear`),
//! `decay.bias` `[n_heads]` (`gated`). Sources: Katharopoulos et al., Transformers are RNNs, ICML 2020; Sun
//! et al., Retentive Network, 2023; Yang et al., Gated Linear Attention Transformers, ICML 2024 (the decay
//! of a head instead of a channel).

use super::{AttentionConfig, Rope, SequenceMixer, check_states, identity_columns, join_states};
use super::{foreign_state, part_states};
use crate::state::RecurrentState;
use crate::structured::Format;
use crate::{LayerState, SeqBatch, StructuredMatrix};
use danaus_kernel::lists::list;
use danaus_kernel::ops::linear::Extras;
use danaus_kernel::ops::rms_norm_gated::{RmsNormGatedOptions, rms_norm_gated};
use danaus_kernel::ops::rotary::Positions;
use danaus_kernel::ops::ssd::{SsdCoreInputs, ssd_core};
use danaus_kernel::recording::constant;
use danaus_tensor::ops::expr::{Expr, Unary};
use danaus_tensor::{DType, Device, Error, Init, Param, ParamBuilder, Result, Tensor};
use serde::{Deserialize, Serialize};

/// Added to the sum that `linear` divides by: in f32 the features of far negative entries are 0.
const EPS: f64 = 1e-6;
/// Divides the logarithm of the gate, so that a new model forgets over some ten to hundred tokens.
const GATE_NORMALIZER: f64 = 16.0;
/// Base of RetNet's angles.
const ROPE_THETA: f64 = 10_000.0;

/// What a head forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearAttentionKind {
    /// Nothing; the output is a weighted mean of the values.
    Linear,
    /// A fixed share of everything at each token.
    RetNet,
    /// A share that the token chooses.
    Gated,
}

impl LinearAttentionKind {
    /// The name in configs and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear_attention",
            Self::RetNet => "retnet",
            Self::Gated => "gated_linear_attention",
        }
    }

    /// The kind of a name in the table above: `linear`, `retnet`, `gated`.
    pub fn from_short(name: &str) -> Option<Self> {
        match name {
            "linear" => Some(Self::Linear),
            "retnet" => Some(Self::RetNet),
            "gated" => Some(Self::Gated),
            _ => None,
        }
    }
}

/// Shape of the mixer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinearAttentionConfig {
    /// Heads.
    pub n_heads: usize,
    /// Width of a head's queries and keys; default `d_model / n_heads`.
    pub head_dim: Option<usize>,
    /// Width of a head's values; default `head_dim`.
    pub value_dim: Option<usize>,
    /// Added to the mean square by the norm of a head's output.
    pub norm_eps: f64,
}

impl Default for LinearAttentionConfig {
    fn default() -> Self {
        Self { n_heads: 1, head_dim: None, value_dim: None, norm_eps: 1e-5 }
    }
}

/// Features of the parts of the input projection.
#[derive(Clone, Copy)]
struct Widths {
    keys: usize,
    values: usize,
    gate: usize,
    decay: usize,
}

impl Widths {
    fn projected(&self) -> usize {
        2 * self.keys + self.values + self.gate + self.decay
    }
}

impl LinearAttentionConfig {
    fn key_dim(&self, d_model: usize) -> usize {
        self.head_dim.unwrap_or(d_model / self.n_heads.max(1))
    }

    fn value_dim(&self, d_model: usize) -> usize {
        self.value_dim.unwrap_or_else(|| self.key_dim(d_model))
    }

    fn widths(&self, d_model: usize, kind: LinearAttentionKind) -> Widths {
        let values = self.n_heads * self.value_dim(d_model);
        Widths {
            keys: self.n_heads * self.key_dim(d_model),
            values,
            gate: if kind == LinearAttentionKind::Linear { 0 } else { values },
            decay: if kind == LinearAttentionKind::Gated { self.n_heads } else { 0 },
        }
    }

    /// Refuses shapes that do not fit `d_model`.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self, d_model: usize, kind: LinearAttentionKind) -> Result<()> {
        let refuse = |field: &str, given: String, valid: String| {
            Err(Error::argument("config", format!("linear_attention.{field}"), given, valid))
        };
        if self.n_heads == 0 || (self.head_dim.is_none() && !d_model.is_multiple_of(self.n_heads)) {
            let valid = format!("a divisor of d_model = {d_model}, or set head_dim");
            return refuse("n_heads", self.n_heads.to_string(), valid);
        }
        let head_dim = self.key_dim(d_model);
        if !(1..=256).contains(&head_dim) {
            return refuse("head_dim", head_dim.to_string(), "1..=256".into());
        }
        if kind == LinearAttentionKind::RetNet && head_dim % 2 == 1 {
            let valid = "even, for the rotary angles of retnet";
            return refuse("head_dim", head_dim.to_string(), valid.into());
        }
        // The scan's heads are 256 wide at most, and `linear` needs a column for the sum of keys.
        let widest = if kind == LinearAttentionKind::Linear { 255 } else { 256 };
        let value_dim = self.value_dim(d_model);
        if !(1..=widest).contains(&value_dim) {
            return refuse("value_dim", value_dim.to_string(), format!("1..={widest}"));
        }
        if self.n_heads > super::MAX_WIDTH / head_dim.max(value_dim) {
            let valid = format!("at most {} features in all", super::MAX_WIDTH);
            return refuse("n_heads", self.n_heads.to_string(), valid);
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return refuse("norm_eps", self.norm_eps.to_string(), "between 0 and 1".into());
        }
        Ok(())
    }

    /// Numbers of a sequence's state, the same for every length.
    pub fn state_elements(&self, d_model: usize, kind: LinearAttentionKind) -> usize {
        let sum = usize::from(kind == LinearAttentionKind::Linear);
        self.n_heads * (self.value_dim(d_model) + sum) * self.key_dim(d_model)
    }

    /// Number of parameter elements.
    pub fn elem_count(&self, d_model: usize, kind: LinearAttentionKind, format: Format) -> usize {
        let widths = self.widths(d_model, kind);
        format.elem_count(widths.projected(), d_model)
            + format.elem_count(d_model, widths.values)
            + widths.gate
            + widths.decay
    }
}

/// The mixer.
pub struct LinearAttention {
    kind: LinearAttentionKind,
    config: LinearAttentionConfig,
    widths: Widths,
    head_dim: usize,
    value_dim: usize,
    in_proj: Box<dyn StructuredMatrix>,
    out_proj: Box<dyn StructuredMatrix>,
    norm: Option<Param>,
    decay_bias: Option<Param>,
    rope: Option<Rope>,
}

/// What goes into the scan, `[1, tokens, heads, ...]` each, and the gate `[tokens, heads * value_dim]`.
struct Projected {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    gate: Option<Tensor>,
}

impl LinearAttention {
    /// Makes (or loads) the mixer for up to `max_positions` tokens a sequence. `depth_gain` scales the
    /// output projection, usually `1 / sqrt(layers)`.
    ///
    /// # Errors
    /// When the config does not fit `d_model`, or a tensor is missing or has another shape.
    pub fn build(
        params: &ParamBuilder,
        kind: LinearAttentionKind,
        config: &LinearAttentionConfig,
        d_model: usize,
        format: Format,
        (depth_gain, max_positions): (f64, usize),
    ) -> Result<Self> {
        config.check(d_model, kind)?;
        let widths = config.widths(d_model, kind);
        let vector = |name: &str, param: &str, size: usize, init: Init| {
            let make = || params.pp(name).param_no_decay(param, [size], init);
            (size > 0).then(make).transpose()
        };
        let angles = AttentionConfig {
            head_dim: Some(config.key_dim(d_model)),
            rope_theta: (kind == LinearAttentionKind::RetNet).then_some(ROPE_THETA),
            ..AttentionConfig::default()
        };
        Ok(Self {
            in_proj: format.build(&params.pp("in_proj"), [widths.projected(), d_model], 1.0)?,
            out_proj: format.build(&params.pp("out_proj"), [d_model, widths.values], depth_gain)?,
            norm: vector("norm", "weight", widths.gate, Init::Constant(1.0))?,
            decay_bias: vector("decay", "bias", widths.decay, Init::Constant(0.0))?,
            rope: Rope::new(&angles, d_model, max_positions),
            head_dim: config.key_dim(d_model),
            value_dim: config.value_dim(d_model),
            config: config.clone(),
            kind,
            widths,
        })
    }

    /// Splits the projection and makes features, decays and turned heads of it. `positions` are below
    /// `end`.
    fn project(&self, x: &Tensor, positions: Positions, end: usize) -> Result<Projected> {
        let joined = self.in_proj.apply(x, Extras::default())?;
        let Widths { keys, values, gate, decay } = self.widths;
        let parts = joined.split(-1, &[keys, keys, values, gate, decay])?;
        let [q, k, v, gate, decay] = &parts[..] else {
            return Err(Error::internal("five parts were asked for"));
        };
        let (tokens, heads) = (x.dims()[0], self.config.n_heads);
        let shaped = |part: &Tensor, width| part.reshape([1, tokens, heads, width]);
        let (mut q, mut k) = (shaped(q, self.head_dim)?, shaped(k, self.head_dim)?);
        let mut v = shaped(v, self.value_dim)?;
        if self.kind == LinearAttentionKind::Linear {
            (q, k) = (features(&q)?, features(&k)?);
            let one = Tensor::full(1.0f64, [1, tokens, heads, 1], &x.device())?;
            v = Tensor::cat(&[&v, &one.to_dtype(v.dtype())?], -1)?;
        } else {
            k = k.affine((self.head_dim as f64).powf(-0.5), 0.0)?;
        }
        if let Some(rope) = &self.rope {
            let turn = |x: Tensor| rope.rotate(&x.squeeze(0)?, positions, end)?.unsqueeze(0);
            (q, k) = (turn(q)?, turn(k)?);
        }
        let log_decay = self.log_decay(decay, tokens)?.unsqueeze(0)?;
        let gate = (self.widths.gate > 0).then(|| gate.clone());
        Ok(Projected { q, k, v, log_decay, gate })
    }

    /// Logarithms of what a head keeps, `[tokens, heads]`, f32 (f64 beside f64).
    fn log_decay(&self, logits: &Tensor, tokens: usize) -> Result<Tensor> {
        let (dtype, heads) = (logits.dtype().accumulator(), self.config.n_heads);
        match (&self.decay_bias, self.kind) {
            (Some(bias), _) => {
                let gate = logits.to_dtype(dtype)?.add(&bias.tensor().to_dtype(dtype)?)?;
                // ln sigmoid(g) = -softplus(-g)
                let softplus = Expr::input(0).unary(Unary::Neg).unary(Unary::Softplus);
                Tensor::fused(&(softplus * (-1.0 / GATE_NORMALIZER)), &[&gate])
            }
            (None, LinearAttentionKind::RetNet) => {
                let keeps = |head: usize| (-(2f64.powf(-5.0 - head as f64))).ln_1p();
                let row: Vec<f64> = (0..heads).map(keeps).collect();
                constant(|| {
                    let row = Tensor::from_vec(row, [1, heads], &Device::Cpu)?.to_dtype(dtype)?;
                    row.to_device(&logits.device())?.broadcast_to([tokens, heads])?.contiguous()
                })
            }
            (None, _) => Tensor::zeros([tokens, heads], dtype, &logits.device()),
        }
    }

    /// The scan of packed tokens, from `states` or from nothing: `(o, final states)`.
    fn scan(
        &self,
        parts: &Projected,
        values: &Tensor,
        batch: &SeqBatch,
        states: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let ones = Tensor::full(1.0f64, parts.log_decay.shape(), &values.device())?
            .to_dtype(parts.log_decay.dtype())?;
        let inputs = SsdCoreInputs {
            x: values,
            log_decay: &parts.log_decay,
            b: &parts.k,
            c: &parts.q,
            scale: &ones,
            initial_states: states,
            seq_idx: None,
            cu_seqlens: Some(batch.cu_seqlens()),
        };
        ssd_core(&inputs, None)
    }

    /// From the scan's output to the layer's.
    fn finish(
        &self,
        o: &Tensor,
        gate: Option<&Tensor>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let tokens = o.dims()[1];
        let y = match (&self.norm, gate) {
            (Some(weight), Some(gate)) => {
                let options = RmsNormGatedOptions {
                    eps: self.config.norm_eps,
                    group_size: Some(self.value_dim),
                    norm_before_gate: true,
                };
                let o = o.reshape([tokens, self.widths.values])?;
                rms_norm_gated(&o, Some(gate), &weight.tensor(), &options)?
            }
            _ => self.mean(o)?.reshape([tokens, self.widths.values])?,
        };
        self.out_proj.apply(&y, Extras { residual, ..Extras::default() })
    }

    /// The weighted mean: all columns but the last over the last, which is the sum of the weights.
    fn mean(&self, o: &Tensor) -> Result<Tensor> {
        let width = o.dims()[3] - 1;
        let (sum, weight) = (o.narrow(-1, 0, width)?, o.narrow(-1, width, 1)?);
        sum.div(&weight.affine(1.0, EPS)?)
    }
}

/// `elu(x) + 1`: above 0 everywhere.
fn features(x: &Tensor) -> Result<Tensor> {
    let x0 = Expr::input(0);
    let below = x0.unary(Unary::Neg).unary(Unary::Relu).unary(Unary::Neg).unary(Unary::Exp);
    Tensor::fused(&(x0.unary(Unary::Relu) + below), &[x])
}

/// Tokens that a state has seen; kept where other recurrent layers have their convolution's inputs, on the
/// processor.
fn seen(state: &LayerState, op: &'static str) -> Result<usize> {
    let LayerState::Recurrent(state) = state else { return Err(foreign_state(op)) };
    Ok(state.conv.to_scalar()? as usize)
}

impl SequenceMixer for LinearAttention {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn is_causal(&self) -> bool {
        true
    }

    fn forward(&self, x: &Tensor, batch: &SeqBatch, residual: Option<&Tensor>) -> Result<Tensor> {
        batch.check(self.name(), x)?;
        let packed = Positions::Packed(batch.cu_seqlens());
        let parts = self.project(x, packed, batch.max_seqlen())?;
        let (o, _) = self.scan(&parts, &parts.v, batch, None)?;
        self.finish(&o, parts.gate.as_ref(), residual)
    }

    fn init_state(&self, dtype: DType) -> Result<LayerState> {
        let sum = usize::from(self.kind == LinearAttentionKind::Linear);
        let scan = [1, self.config.n_heads, self.value_dim + sum, self.head_dim];
        let seen = Tensor::zeros([1, 1, 1], DType::I64, &Device::Cpu)?;
        let scan = Tensor::zeros(scan, dtype.accumulator(), &Device::Cpu)?;
        Ok(LayerState::Recurrent(RecurrentState::new(seen, scan)))
    }

    fn advance(
        &self,
        x: &Tensor,
        batch: &SeqBatch,
        states: &mut [&mut LayerState],
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        batch.check(self.name(), x)?;
        check_states(self.name(), batch, states.len())?;
        let (_, scan) = join_states(self.name(), states)?;
        let (mut positions, mut counts) = (Vec::with_capacity(batch.tokens()), Vec::new());
        for (state, length) in states.iter().zip(batch.lengths()) {
            let before = seen(state, self.name())?;
            positions.extend((before..before + length).map(|position| position as i64));
            counts.push((before + length) as i64);
        }
        let end = counts.iter().copied().max().unwrap_or(0) as usize;
        let (positions, end) = match batch.step() {
            Some(step) => (step.positions.clone(), step.room),
            None => (list(&positions, &x.device())?, end),
        };
        let parts = self.project(x, Positions::At(&positions), end)?;
        let (o, scan) = self.scan(&parts, &parts.v, batch, Some(&scan))?;
        let counts = Tensor::from_vec(counts, [states.len(), 1, 1], &Device::Cpu)?;
        part_states(states, [counts, scan])?;
        self.finish(&o, parts.gate.as_ref(), residual)
    }

    fn dense(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = x.dims()[0];
        let batch = SeqBatch::from_lengths(&[tokens])?;
        let parts = self.project(x, Positions::Packed(batch.cu_seqlens()), tokens)?;
        let is_mean = self.kind == LinearAttentionKind::Linear;
        let ones = parts.v.narrow(-1, parts.v.dims()[3] - 1, 1)?;
        let mut columns = Vec::new();
        for one_hot in identity_columns(tokens, self.config.n_heads, x)? {
            let values = if is_mean { Tensor::cat(&[&one_hot, &ones], -1)? } else { one_hot };
            let (o, _) = self.scan(&parts, &values, &batch, None)?;
            let part = if is_mean { self.mean(&o)? } else { o };
            columns.push(part.squeeze(0)?.transpose(0, 1)?);
        }
        let borrowed: Vec<&Tensor> = columns.iter().collect();
        Tensor::cat(&borrowed, -1)
    }

    fn flops(&self, batch: &SeqBatch) -> u64 {
        let (tokens, n, chunk) = (batch.tokens(), self.head_dim, 64);
        let scan = tokens * (self.widths.values * (chunk + 4 * n) + self.widths.keys * chunk);
        self.in_proj.flops(tokens) + self.out_proj.flops(tokens) + scan as u64
    }
}

#[cfg(test)]
mod tests;
