//! Softmax attention with its projections.
//!
//! `q, k, v = x W_qkv^T (+ b)`, a short causal convolution of each of their channels where configured
//! (the published hybrids with Mamba-2), RMS norm of each query and key head where configured (Henry et al.
//! 2020), rotary embedding where configured, attention per head, `y = o W_o^T (+ b)`.
//! Parameters: `qkv` `[(n_heads + 2 n_kv_heads) head_dim, d_model]` (or `q`, `k`, `v` where a checkpoint
//! has them apart) and `out` `[d_model, n_heads head_dim]`, each a structured matrix, with optional biases `qkv.bias`, `out.bias` and optional norms
//! `q_norm.weight`, `k_norm.weight` `[head_dim]`, and the convolution's `conv1d.weight` `[channels, 1,
//! width]`, `conv1d.bias`.

use super::rope::{Rope, RopeScaling};
use super::{SequenceMixer, check_states, foreign_state, identity_columns};
use crate::state::KvState;
use crate::structured::Format;
use crate::{LayerState, SeqBatch, StructuredMatrix};
use danaus_kernel::lists::list;
use danaus_kernel::ops::attention::{AttentionOptions, CacheOptions, NewKeys, attention_varlen};
use danaus_kernel::ops::conv1d::{ConvInputs, ConvOptions, causal_conv1d};
use danaus_kernel::ops::linear::Extras;
use danaus_kernel::ops::norm::{Affine, rms_norm};
use danaus_kernel::ops::rotary::Positions;
use danaus_tensor::{DType, Device, Error, Init, Param, ParamBuilder, Result, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Shape and options of attention.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionConfig {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; default `n_heads`, must divide it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_kv_heads: Option<usize>,
    /// Width of a head; default `d_model / n_heads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Base of the rotary angles; absent means no rotary embedding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Stretching of the rotary angles; absent means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Leading entries of a head that are rotated; default all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotary_dim: Option<usize>,
    /// Whether neighbours are rotated together (GPT-J) and not the halves of a head (GPT-NeoX, Llama).
    #[serde(default)]
    pub rope_interleaved: bool,
    /// Keys visible to the left of a query; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Cap of the scores; absent means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softcap: Option<f64>,
    /// Factor of the dot products; default `head_dim^-1/2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softmax_scale: Option<f64>,
    /// Whether the projections have biases.
    #[serde(default)]
    pub bias: bool,
    /// Whether the output projection has a bias; default as `bias`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_bias: Option<bool>,
    /// `eps` of an RMS norm of each query and key head; absent means no such norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qk_norm_eps: Option<f64>,
    /// Taps of a causal convolution of queries, keys and values; absent means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conv_width: Option<usize>,
}

impl AttentionConfig {
    /// Key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    /// Width of a head in a model of this width.
    pub fn dim(&self, d_model: usize) -> usize {
        self.head_dim.unwrap_or(d_model / self.n_heads.max(1))
    }

    fn has_out_bias(&self) -> bool {
        self.out_bias.unwrap_or(self.bias)
    }

    /// Refuses shapes that do not fit `d_model`.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self, d_model: usize) -> Result<()> {
        let (heads, kv, dim) = (self.n_heads, self.kv_heads(), self.dim(d_model));
        let refuse = |field: &str, given: &dyn std::fmt::Display, valid: &str| {
            Err(Error::argument("config", format!("attention.{field}"), given, valid))
        };
        if heads == 0
            || heads > 1 << 14
            || (self.head_dim.is_none() && !d_model.is_multiple_of(heads))
        {
            let valid = format!("a divisor of d_model = {d_model}, or give head_dim");
            return refuse("n_heads", &heads, &valid);
        }
        if kv == 0 || !heads.is_multiple_of(kv) {
            return refuse("n_kv_heads", &kv, &format!("a divisor of n_heads = {heads}"));
        }
        if dim == 0 || dim > 1 << 12 {
            return refuse("head_dim", &dim, "1..=4096");
        }
        if let Some(width) = self.conv_width.filter(|width| !(1..=8).contains(width)) {
            return refuse("conv_width", &width, "1..=8, or absent for no convolution");
        }
        self.check_rope(dim)?;
        let positive = |value: Option<f64>| value.is_none_or(|v| v.is_finite() && v > 0.0);
        for (field, value) in [
            ("softcap", self.softcap),
            ("softmax_scale", self.softmax_scale),
            ("qk_norm_eps", self.qk_norm_eps),
        ] {
            if !positive(value) {
                return refuse(field, &value.unwrap_or_default(), "above 0");
            }
        }
        Ok(())
    }

    fn check_rope(&self, dim: usize) -> Result<()> {
        let refuse = |field: &str, given: &dyn std::fmt::Display, valid: &str| {
            Err(Error::argument("config", format!("attention.{field}"), given, valid))
        };
        let Some(theta) = self.rope_theta else {
            let set = self.rope_scaling.is_some() || self.rotary_dim.is_some();
            return match set || self.rope_interleaved {
                true => refuse("rope_theta", &"missing", "a base, with the other rope settings"),
                false => Ok(()),
            };
        };
        if !(theta.is_finite() && theta > 0.0) {
            return refuse("rope_theta", &theta, "above 0, usually 10000");
        }
        match self.rotary_dim {
            None if dim % 2 == 1 => refuse("head_dim", &dim, "even with rope_theta"),
            Some(rotated) if rotated == 0 || rotated > dim || rotated % 2 == 1 => {
                refuse("rotary_dim", &rotated, &format!("even and at most head_dim = {dim}"))
            }
            rotated => match &self.rope_scaling {
                Some(scaling) => scaling.check(rotated.unwrap_or(dim) / 2),
                None => Ok(()),
            },
        }
    }

    /// Number of parameter elements.
    pub fn elem_count(&self, d_model: usize, format: Format) -> usize {
        let dim = self.dim(d_model);
        let (q, qkv) = (self.n_heads * dim, (self.n_heads + 2 * self.kv_heads()) * dim);
        let qkv_bias = if self.bias { qkv } else { 0 };
        let out_bias = if self.has_out_bias() { d_model } else { 0 };
        let norms = if self.qk_norm_eps.is_some() { 2 * dim } else { 0 };
        let taps = self.conv_width.map_or(0, |width| qkv * (width + 1));
        let matrices = format.elem_count(qkv, d_model) + format.elem_count(d_model, q);
        matrices + taps + qkv_bias + out_bias + norms
    }
}

/// The mixer.
pub struct Attention {
    config: AttentionConfig,
    head_dim: usize,
    qkv: Box<dyn StructuredMatrix>,
    out: Box<dyn StructuredMatrix>,
    qkv_bias: Option<Param>,
    out_bias: Option<Param>,
    /// Weights of the norms of queries and keys.
    norms: Option<(Param, Param)>,
    /// Weight and bias of the convolution.
    conv: Option<(Param, Param)>,
    rope: Option<Arc<Rope>>,
    max_positions: usize,
}

impl Attention {
    /// Makes (or loads) the mixer for up to `max_positions` tokens a sequence.
    ///
    /// # Errors
    /// When the config does not fit `d_model`, or a tensor is missing or has another shape.
    pub fn build(
        params: &ParamBuilder,
        config: &AttentionConfig,
        d_model: usize,
        format: Format,
        max_positions: usize,
    ) -> Result<Self> {
        config.check(d_model)?;
        let head_dim = config.dim(d_model);
        let (q, kv) = (config.n_heads * head_dim, config.kv_heads() * head_dim);
        let vector = |wanted: bool, name: &str, param: &str, size: usize, value: f64| {
            let make = || params.pp(name).param_no_decay(param, [size], Init::Constant(value));
            wanted.then(make).transpose()
        };
        let normed = config.qk_norm_eps.is_some();
        let q_norm = vector(normed, "q_norm", "weight", head_dim, 1.0)?;
        let k_norm = vector(normed, "k_norm", "weight", head_dim, 1.0)?;
        Ok(Self {
            qkv: format.build_stacked(
                params,
                "qkv",
                &[("q", q), ("k", kv), ("v", kv)],
                d_model,
                1.0,
            )?,
            out: format.build(&params.pp("out"), [d_model, q], 1.0)?,
            qkv_bias: vector(config.bias, "qkv", "bias", q + 2 * kv, 0.0)?,
            out_bias: vector(config.has_out_bias(), "out", "bias", d_model, 0.0)?,
            norms: q_norm.zip(k_norm),
            conv: config
                .conv_width
                .map(|width| convolution(params, q + 2 * kv, width))
                .transpose()?,
            rope: Rope::new(config, d_model, max_positions).map(Arc::new),
            config: config.clone(),
            head_dim,
            max_positions,
        })
    }

    /// Turns heads by another layer's tables, so that a model has them once.
    pub fn share_rope(&mut self, rope: &Arc<Rope>) {
        if let Some(own) = &mut self.rope {
            *own = rope.clone();
        }
    }

    fn extras<'a>(bias: Option<&'a Tensor>, residual: Option<&'a Tensor>) -> Extras<'a> {
        Extras { bias, residual, activation: None }
    }

    /// Queries, keys and values, `[tokens, heads, head_dim]` each, before rotation; and the last inputs of
    /// the convolution where there is one, `before` being those of earlier tokens.
    fn project(
        &self,
        x: &Tensor,
        batch: &SeqBatch,
        before: Option<&Tensor>,
    ) -> Result<([Tensor; 3], Option<Tensor>)> {
        let bias = self.qkv_bias.as_ref().map(Param::tensor);
        let joined = self.qkv.apply(x, Self::extras(bias.as_ref(), None))?;
        let Some((weight, bias)) = &self.conv else { return Ok((self.heads(&joined)?, None)) };
        let (weight, bias) = (weight.tensor(), bias.tensor());
        let inputs = ConvInputs {
            x: &joined.unsqueeze(0)?,
            weight: &weight,
            bias: Some(&bias),
            initial_states: before,
            seq_idx: None,
            cu_seqlens: Some(batch.cu_seqlens()),
        };
        let options = ConvOptions { silu: false, channel_last: true };
        let (joined, after) = causal_conv1d(&inputs, &options)?;
        Ok((self.heads(&joined.squeeze(0)?)?, Some(after)))
    }

    /// The parts of the projection, normed where configured.
    fn heads(&self, joined: &Tensor) -> Result<[Tensor; 3]> {
        let (heads, kv) = (self.config.n_heads, self.config.kv_heads());
        let sizes = [heads, kv, kv].map(|count| count * self.head_dim);
        let parts = joined.split(-1, &sizes)?;
        let [q, k, v] = &parts[..] else {
            return Err(Error::internal("three parts were asked for"));
        };
        let tokens = joined.dims()[0];
        let shaped = |part: &Tensor, count| part.reshape([tokens, count, self.head_dim]);
        let (mut q, mut k) = (shaped(q, heads)?, shaped(k, kv)?);
        if let (Some((of_q, of_k)), Some(eps)) = (&self.norms, self.config.qk_norm_eps) {
            let norm = |x: &Tensor, weight: &Param| {
                rms_norm(x, Affine { weight: Some(&weight.tensor()), bias: None }, eps)
            };
            (q, k) = (norm(&q, of_q)?, norm(&k, of_k)?);
        }
        Ok([q, k, shaped(v, kv)?])
    }

    /// Turns heads at positions below `end`.
    fn rotate(&self, x: Tensor, positions: Positions, end: usize) -> Result<Tensor> {
        match &self.rope {
            Some(rope) => rope.rotate(&x, positions, end),
            None => Ok(x),
        }
    }

    fn finish(&self, mixed: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let bias = self.out_bias.as_ref().map(Param::tensor);
        let rows = mixed.reshape([mixed.dims()[0], self.config.n_heads * self.head_dim])?;
        self.out.apply(&rows, Self::extras(bias.as_ref(), residual))
    }

    fn check_length(&self, op: &'static str, longest: usize) -> Result<()> {
        if longest <= self.max_positions {
            return Ok(());
        }
        let valid =
            format!("at most {} positions (max_positions of the config)", self.max_positions);
        Err(Error::argument(op, "sequence length", longest, valid))
    }

    fn options(&self) -> AttentionOptions {
        AttentionOptions {
            causal: true,
            window_left: self.config.window,
            softcap: self.config.softcap,
            softmax_scale: self.config.softmax_scale,
            ..AttentionOptions::default()
        }
    }
}

/// `conv1d.weight` `[channels, 1, width]` and `conv1d.bias` `[channels]`.
fn convolution(params: &ParamBuilder, channels: usize, width: usize) -> Result<(Param, Param)> {
    let bound = 1.0 / (width as f64).sqrt();
    let (params, spread) = (params.pp("conv1d"), Init::Uniform(-bound, bound));
    let weight = params.param("weight", [channels, 1, width], spread)?;
    Ok((weight, params.param_no_decay("bias", [channels], spread)?))
}

impl SequenceMixer for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn is_causal(&self) -> bool {
        true
    }

    fn forward(&self, x: &Tensor, batch: &SeqBatch, residual: Option<&Tensor>) -> Result<Tensor> {
        batch.check("attention", x)?;
        self.check_length("attention", batch.max_seqlen())?;
        let ([q, k, v], _) = self.project(x, batch, None)?;
        let packed = || Positions::Packed(batch.cu_seqlens());
        let end = batch.max_seqlen();
        let (q, k) = (self.rotate(q, packed(), end)?, self.rotate(k, packed(), end)?);
        let bounds = batch.cu_seqlens();
        let (mixed, _) = attention_varlen([&q, &k, &v], bounds, bounds, &self.options())?;
        self.finish(&mixed, residual)
    }

    fn init_state(&self, dtype: DType) -> Result<LayerState> {
        let kv = KvState::new(self.config.kv_heads(), self.head_dim, dtype)?;
        let Some(width) = self.config.conv_width else { return Ok(LayerState::Kv(kv)) };
        let channels = (self.config.n_heads + 2 * self.config.kv_heads()) * self.head_dim;
        let conv = Tensor::zeros([1, channels, width - 1], dtype.accumulator(), &Device::Cpu)?;
        Ok(LayerState::ConvKv(conv, kv))
    }

    fn advance(
        &self,
        x: &Tensor,
        batch: &SeqBatch,
        states: &mut [&mut LayerState],
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        batch.check("attention", x)?;
        check_states("attention", batch, states.len())?;
        let (mut caches, mut convs) = (Vec::with_capacity(states.len()), Vec::new());
        for state in states.iter_mut() {
            match &mut **state {
                LayerState::Kv(state) if self.conv.is_none() => caches.push(state),
                LayerState::ConvKv(conv, state) if self.conv.is_some() => {
                    convs.push(conv);
                    caches.push(state);
                }
                _ => return Err(foreign_state("attention")),
            }
        }
        let (mut positions, mut end) = (Vec::with_capacity(batch.tokens()), 0);
        let step = batch.step();
        for (state, count) in caches.iter().zip(batch.lengths()) {
            self.check_length("attention", state.len() + count)?;
            positions.extend(state.len() as i64..(state.len() + count) as i64);
            end = end.max(state.len() + count);
        }
        let positions = match step {
            Some(step) => step.positions.clone(),
            None => list(&positions, &x.device())?,
        };
        // Angles for every position that the step may be replayed at.
        let end = step.map_or(end, |step| step.room.min(self.max_positions));
        let ([q, k, v], after) = match convs.is_empty() {
            true => self.project(x, batch, None)?,
            false => {
                let before: Vec<&Tensor> = convs.iter().map(|conv| &**conv).collect();
                self.project(x, batch, Some(&Tensor::cat(&before, 0)?))?
            }
        };
        let (q, k) = (
            self.rotate(q, Positions::At(&positions), end)?,
            self.rotate(k, Positions::At(&positions), end)?,
        );
        let mut mixed = Vec::new();
        let mut caches = &mut caches[..];
        let mut start = 0;
        while let Some(first) = caches.first() {
            // Neighbours with as many tokens and a common arena are one call.
            let count = batch.bounds()[start + 1] - batch.bounds()[start];
            let lengths = batch.lengths().skip(start);
            let alike = |(state, length): &(&&mut KvState, usize)| {
                *length == count && state.is_beside(first)
            };
            let together = caches.iter().zip(lengths).take_while(alike).count();
            let (group, rest) = std::mem::take(&mut caches).split_at_mut(together);
            let rows = |x: &Tensor| {
                let part = x.narrow(0, batch.bounds()[start], together * count)?;
                part.reshape([together, count, part.dims()[1], part.dims()[2]])
            };
            if count > 0 {
                let (q, k, v) = (rows(&q)?, rows(&k)?, rows(&v)?);
                let options = |paged| CacheOptions {
                    window_left: self.config.window,
                    softcap: self.config.softcap,
                    softmax_scale: self.config.softmax_scale,
                    ..paged
                };
                let new = NewKeys { k: &k, v: &v };
                let out = KvState::attend(group, &q, new, step, options)?;
                mixed.push(out.flatten(0, 1)?);
            }
            (caches, start) = (rest, start + together);
        }
        if let Some(after) = after {
            for (at, conv) in convs.into_iter().enumerate() {
                *conv = after.narrow(0, at, 1)?.copy()?;
            }
        }
        match &mixed[..] {
            [all] => self.finish(all, residual),
            _ => {
                let parts: Vec<&Tensor> = mixed.iter().collect();
                self.finish(&Tensor::cat(&parts, 0)?, residual)
            }
        }
    }

    fn dense(&self, x: &Tensor) -> Result<Tensor> {
        // Attention to one-hot values reads the matrix off, column by column of the identity.
        let batch = SeqBatch::from_lengths(&[x.dims()[0]])?;
        let ([q, k, _], _) = self.project(x, &batch, None)?;
        let packed = || Positions::Packed(batch.cu_seqlens());
        let end = batch.max_seqlen();
        let (q, k) = (self.rotate(q, packed(), end)?, self.rotate(k, packed(), end)?);
        let mut columns = Vec::new();
        for v in identity_columns(x.dims()[0], self.config.kv_heads(), &q)? {
            let (v, bounds) = (v.squeeze(0)?, batch.cu_seqlens());
            let (part, _) = attention_varlen([&q, &k, &v], bounds, bounds, &self.options())?;
            columns.push(part.transpose(0, 1)?);
        }
        let parts: Vec<&Tensor> = columns.iter().collect();
        Tensor::cat(&parts, -1)
    }

    fn flops(&self, batch: &SeqBatch) -> u64 {
        let projections = self.qkv.flops(batch.tokens()) + self.out.flops(batch.tokens());
        let pairs: usize = batch.lengths().map(|length| length * (length + 1) / 2).sum();
        projections + (4 * pairs * self.config.n_heads * self.head_dim) as u64
    }
}
