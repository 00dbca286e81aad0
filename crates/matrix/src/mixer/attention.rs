//! Softmax attention with its projections.
//!
//! `q, k, v = x W_qkv^T (+ b)`, rotary embedding where configured, attention per head, `y = o W_o^T`.
//! Parameters: `qkv` `[(n_heads + 2 n_kv_heads) head_dim, d_model]` and `out` `[d_model, n_heads
//! head_dim]`, each a structured matrix, with optional biases `qkv.bias`, `out.bias`.

use super::{SequenceMixer, check_states, foreign_state};
use crate::state::KvState;
use crate::structured::Format;
use crate::{LayerState, SeqBatch, StructuredMatrix};
use danaus_kernel::ops::attention::{AttentionOptions, CacheOptions, NewKeys, attention_varlen};
use danaus_kernel::ops::linear::Extras;
use danaus_kernel::ops::rotary::{Positions, rotary, tables};
use danaus_tensor::{DType, Device, Error, Init, Param, ParamBuilder, Result, Tensor};
use serde::{Deserialize, Serialize};

/// Shape and options of attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionConfig {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; default `n_heads`, must divide it.
    #[serde(default)]
    pub n_kv_heads: Option<usize>,
    /// Width of a head; default `d_model / n_heads`.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// Base of the rotary angles; absent means no rotary embedding.
    #[serde(default)]
    pub rope_theta: Option<f64>,
    /// Keys visible to the left of a query; absent means all.
    #[serde(default)]
    pub window: Option<usize>,
    /// Cap of the scores; absent means none.
    #[serde(default)]
    pub softcap: Option<f64>,
    /// Whether the projections have biases.
    #[serde(default)]
    pub bias: bool,
}

impl AttentionConfig {
    fn kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    fn dim(&self, d_model: usize) -> usize {
        self.head_dim.unwrap_or(d_model / self.n_heads.max(1))
    }

    /// Refuses shapes that do not fit `d_model`.
    ///
    /// # Errors
    /// Naming the field.
    pub fn check(&self, d_model: usize) -> Result<()> {
        let (heads, kv, dim) = (self.n_heads, self.kv_heads(), self.dim(d_model));
        if heads == 0 || (self.head_dim.is_none() && !d_model.is_multiple_of(heads)) {
            let valid = format!("a divisor of d_model = {d_model}, or give head_dim");
            return Err(Error::argument("config", "attention.n_heads", heads, valid));
        }
        if kv == 0 || !heads.is_multiple_of(kv) {
            let valid = format!("a divisor of n_heads = {heads}");
            return Err(Error::argument("config", "attention.n_kv_heads", kv, valid));
        }
        if dim == 0 || (self.rope_theta.is_some() && dim % 2 == 1) {
            let valid = "positive, and even with rope_theta";
            return Err(Error::argument("config", "attention.head_dim", dim, valid));
        }
        Ok(())
    }

    /// Number of parameter elements.
    pub fn elem_count(&self, d_model: usize, format: Format) -> usize {
        let dim = self.dim(d_model);
        let (q, qkv) = (self.n_heads * dim, (self.n_heads + 2 * self.kv_heads()) * dim);
        let bias = if self.bias { qkv + d_model } else { 0 };
        format.elem_count(qkv, d_model) + format.elem_count(d_model, q) + bias
    }
}

/// The mixer.
pub struct Attention {
    config: AttentionConfig,
    head_dim: usize,
    qkv: Box<dyn StructuredMatrix>,
    out: Box<dyn StructuredMatrix>,
    biases: Option<(Param, Param)>,
    /// Rotary cosines and sines for `max_positions`.
    tables: Option<(Tensor, Tensor)>,
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
        let zeros = |name: &str, size: usize| {
            params.pp(name).param_no_decay("bias", [size], Init::Constant(0.0))
        };
        let biases = match config.bias {
            true => Some((zeros("qkv", q + 2 * kv)?, zeros("out", d_model)?)),
            false => None,
        };
        let rotary_tables = |theta| tables(max_positions, head_dim, theta);
        Ok(Self {
            qkv: format.build(&params.pp("qkv"), [q + 2 * kv, d_model], 1.0)?,
            out: format.build(&params.pp("out"), [d_model, q], 1.0)?,
            tables: config.rope_theta.map(rotary_tables).transpose()?,
            config: config.clone(),
            head_dim,
            biases,
            max_positions,
        })
    }

    fn extras<'a>(bias: Option<&'a Tensor>, residual: Option<&'a Tensor>) -> Extras<'a> {
        Extras { bias, residual, activation: None }
    }

    /// Queries, keys and values, `[tokens, heads, head_dim]` each, before rotation.
    fn project(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let bias = self.biases.as_ref().map(|(qkv, _)| qkv.tensor());
        let joined = self.qkv.apply(x, Self::extras(bias.as_ref(), None))?;
        let (heads, kv) = (self.config.n_heads, self.config.kv_heads());
        let sizes = [heads, kv, kv].map(|count| count * self.head_dim);
        let parts = joined.split(-1, &sizes)?;
        let [q, k, v] = &parts[..] else {
            return Err(Error::internal("three parts were asked for"));
        };
        let shaped = |part: &Tensor, count| part.reshape([x.dims()[0], count, self.head_dim]);
        Ok([shaped(q, heads)?, shaped(k, kv)?, shaped(v, kv)?])
    }

    fn rotate(&self, x: Tensor, positions: Positions) -> Result<Tensor> {
        match &self.tables {
            Some((cos, sin)) => rotary(&x, (cos, sin), positions, false),
            None => Ok(x),
        }
    }

    fn finish(&self, mixed: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let bias = self.biases.as_ref().map(|(_, out)| out.tensor());
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
            ..AttentionOptions::default()
        }
    }
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
        let [q, k, v] = self.project(x)?;
        let packed = || Positions::Packed(batch.cu_seqlens());
        let (q, k) = (self.rotate(q, packed())?, self.rotate(k, packed())?);
        let bounds = batch.cu_seqlens();
        let (mixed, _) = attention_varlen([&q, &k, &v], bounds, bounds, &self.options())?;
        self.finish(&mixed, residual)
    }

    fn init_state(&self, dtype: DType) -> Result<LayerState> {
        Ok(LayerState::Kv(KvState::new(self.config.kv_heads(), self.head_dim, dtype)?))
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
        let mut caches = Vec::with_capacity(states.len());
        for state in states.iter_mut() {
            let LayerState::Kv(state) = &mut **state else {
                return Err(foreign_state("attention"));
            };
            caches.push(state);
        }
        let mut positions = Vec::with_capacity(batch.tokens());
        for (state, count) in caches.iter().zip(batch.lengths()) {
            self.check_length("attention", state.len() + count)?;
            positions.extend(state.len() as i64..(state.len() + count) as i64);
        }
        let positions = Tensor::from_vec(positions, [batch.tokens()], &Device::Cpu)?;
        let [q, k, v] = self.project(x)?;
        let (q, k) = (
            self.rotate(q, Positions::At(&positions))?,
            self.rotate(k, Positions::At(&positions))?,
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
                    ..paged
                };
                let out = KvState::attend(group, &q, NewKeys { k: &k, v: &v }, options)?;
                mixed.push(out.flatten(0, 1)?);
            }
            (caches, start) = (rest, start + together);
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
        let [q, k, _] = self.project(x)?;
        let packed = || Positions::Packed(batch.cu_seqlens());
        let (q, k) = (self.rotate(q, packed())?, self.rotate(k, packed())?);
        let (tokens, kv) = (x.dims()[0], self.config.kv_heads());
        let mut columns = Vec::new();
        for start in (0..tokens).step_by(64) {
            let width = 64.min(tokens - start);
            let mut values = vec![0f64; tokens * kv * width];
            for token in start..start + width {
                for head in 0..kv {
                    values[(token * kv + head) * width + token - start] = 1.0;
                }
            }
            let v = Tensor::from_vec(values, [tokens, kv, width], &Device::Cpu)?;
            let v = v.to_dtype(q.dtype())?;
            let bounds = batch.cu_seqlens();
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
