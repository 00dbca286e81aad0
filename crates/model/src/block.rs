//! A block: `x + mixer(norm(x))`, then `x + mlp(norm(x))`.

use crate::Result;
use crate::config::{Config, MixerKind, MlpConfig, NormConfig, NormKind, parse_activation};
use danaus_kernel::ops::activation::{Activation, gated_packed};
use danaus_kernel::ops::dropout::{Dropout, dropout};
use danaus_kernel::ops::linear::Extras;
use danaus_kernel::ops::norm::{Affine, layer_norm, rms_norm};
use danaus_matrix::mixer::{Attention, LinearAttention, Mamba1, Mamba2, Rope};
use danaus_matrix::{LayerState, SeqBatch, SequenceMixer, StructuredMatrix};
use danaus_tensor::{DType, Init, Param, ParamBuilder, Tensor};
use std::sync::Arc;

/// A norm with its parameters.
pub struct Norm {
    config: NormConfig,
    weight: Param,
    bias: Option<Param>,
}

impl Norm {
    /// Makes (or loads) `weight` and, where configured, `bias`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn build(params: &ParamBuilder, config: &NormConfig, d_model: usize) -> Result<Self> {
        let made = |name, value| params.param_no_decay(name, [d_model], Init::Constant(value));
        let bias = if config.bias { Some(made("bias", 0.0)?) } else { None };
        Ok(Self { config: config.clone(), weight: made("weight", 1.0)?, bias })
    }

    /// Normalises rows.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.weight.tensor(), self.bias.as_ref().map(Param::tensor));
        let affine = Affine { weight: Some(&weight), bias: bias.as_ref() };
        Ok(match self.config.kind {
            NormKind::Rms => rms_norm(x, affine, self.config.eps)?,
            NormKind::Layer => layer_norm(x, affine, self.config.eps)?,
        })
    }
}

/// The channel mixer.
enum Mlp {
    Dense {
        up: Box<dyn StructuredMatrix>,
        down: Box<dyn StructuredMatrix>,
        activation: Activation,
        biases: Option<(Param, Param)>,
    },
    Gated {
        gate_up: Box<dyn StructuredMatrix>,
        down: Box<dyn StructuredMatrix>,
        activation: Activation,
        biases: Option<(Param, Param)>,
    },
}

impl Mlp {
    fn build(params: &ParamBuilder, config: &Config, gain: f64) -> Result<Option<Self>> {
        let (d, format) = (config.d_model, config.weights);
        let zeros = |name: &str, size: usize| {
            params.pp(name).param_no_decay("bias", [size], Init::Constant(0.0))
        };
        Ok(match &config.mlp {
            MlpConfig::None => None,
            MlpConfig::Dense { d_ff, activation, bias } => {
                let biases =
                    if *bias { Some((zeros("up", *d_ff)?, zeros("down", d)?)) } else { None };
                Some(Mlp::Dense {
                    up: format.build(&params.pp("up"), [*d_ff, d], 1.0)?,
                    down: format.build(&params.pp("down"), [d, *d_ff], gain)?,
                    activation: parse_activation(activation)?,
                    biases,
                })
            }
            MlpConfig::Gated { d_ff, activation, bias } => {
                let (inner, halves) = (2 * d_ff, [("gate", *d_ff), ("up", *d_ff)]);
                let biases =
                    if *bias { Some((zeros("gate_up", inner)?, zeros("down", d)?)) } else { None };
                Some(Mlp::Gated {
                    gate_up: format.build_stacked(params, "gate_up", &halves, d, 1.0)?,
                    down: format.build(&params.pp("down"), [d, *d_ff], gain)?,
                    activation: parse_activation(activation)?,
                    biases,
                })
            }
        })
    }

    fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let (Mlp::Dense { biases, .. } | Mlp::Gated { biases, .. }) = self;
        let biases = biases.as_ref().map(|(a, b)| (a.tensor(), b.tensor()));
        let (first, last) = (biases.as_ref().map(|b| &b.0), biases.as_ref().map(|b| &b.1));
        let (h, down) = match self {
            Mlp::Dense { up, down, activation, .. } => {
                let inner = Extras { bias: first, activation: Some(*activation), residual: None };
                (up.apply(x, inner)?, down)
            }
            Mlp::Gated { gate_up, down, activation, .. } => {
                let inner = Extras { bias: first, ..Extras::default() };
                (gated_packed(*activation, &gate_up.apply(x, inner)?)?, down)
            }
        };
        Ok(down.apply(&h, Extras { bias: last, activation: None, residual })?)
    }

    fn flops(&self, tokens: usize) -> u64 {
        match self {
            Mlp::Dense { up, down, .. } => up.flops(tokens) + down.flops(tokens),
            Mlp::Gated { gate_up, down, .. } => gate_up.flops(tokens) + down.flops(tokens),
        }
    }
}

/// What the blocks of a model have in common.
pub struct Shared<'a> {
    /// The model.
    pub config: &'a Config,
    /// Number of blocks.
    pub depth: usize,
    /// The rotation of attention heads.
    pub rope: Option<Arc<Rope>>,
    /// Element type of activations inside of blocks.
    pub dtype: DType,
}

/// Norm, sequence mixer, norm, channel mixer.
///
/// Blocks compute in one dtype; the residual stream may be wider (`residual_f32`), and is then added
/// outside of the products.
pub struct Block {
    norm: Norm,
    mixer: Box<dyn SequenceMixer>,
    mlp: Option<(Norm, Mlp)>,
    dtype: DType,
}

impl Block {
    /// Makes (or loads) a block.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn build(params: &ParamBuilder, shared: &Shared, kind: MixerKind) -> Result<Self> {
        let Shared { config, depth, rope, dtype } = shared;
        let (d, format) = (config.d_model, config.weights);
        // Every block adds to the residual stream; the sum keeps its size.
        let gain = 1.0 / (*depth as f64).sqrt();
        let inner = params.pp("mixer");
        let mixer: Box<dyn SequenceMixer> = match kind {
            MixerKind::Attention | MixerKind::Window => {
                let mut own = config.attention()?.clone();
                if kind == MixerKind::Attention {
                    own.window = None;
                }
                let mut mixer = Attention::build(&inner, &own, d, format, config.max_positions)?;
                if let Some(rope) = rope {
                    mixer.share_rope(rope);
                }
                Box::new(mixer)
            }
            MixerKind::Mamba2 => {
                Box::new(Mamba2::build(&inner, config.mamba2()?, d, format, gain)?)
            }
            MixerKind::Mamba1 => {
                Box::new(Mamba1::build(&inner, config.mamba1()?, d, format, gain)?)
            }
            MixerKind::Linear(kind) => {
                let (own, sizes) = (config.linear_attention()?, (gain, config.max_positions));
                Box::new(LinearAttention::build(&inner, kind, own, d, format, sizes)?)
            }
        };
        let mlp = match Mlp::build(&params.pp("mlp"), config, gain)? {
            Some(mlp) => Some((Norm::build(&params.pp("norm2"), &config.norm, d)?, mlp)),
            None => None,
        };
        let norm = Norm::build(&params.pp("norm"), &config.norm, d)?;
        Ok(Self { norm, mixer, mlp, dtype: *dtype })
    }

    /// The sequence mixer.
    pub fn mixer(&self) -> &dyn SequenceMixer {
        &*self.mixer
    }

    /// Packed tokens from empty states; `drops` says what of the mixers' outputs is dropped.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(
        &self,
        x: &Tensor,
        batch: &SeqBatch,
        drops: [Option<Dropout>; 2],
    ) -> Result<Tensor> {
        let [of_mixer, of_mlp] = drops;
        let mix =
            |h: &Tensor, residual: Option<&Tensor>| Ok(self.mixer.forward(h, batch, residual)?);
        self.channel_mix(self.branch(&self.norm, x, of_mixer, mix)?, of_mlp)
    }

    /// The next tokens of several sequences.
    ///
    /// # Errors
    /// When shapes or states do not fit.
    pub fn advance(
        &self,
        x: &Tensor,
        batch: &SeqBatch,
        states: &mut [&mut LayerState],
    ) -> Result<Tensor> {
        let mixed = self.branch(&self.norm, x, None, |h, residual| {
            Ok(self.mixer.advance(h, batch, states, residual)?)
        })?;
        self.channel_mix(mixed, None)
    }

    fn channel_mix(&self, x: Tensor, drop: Option<Dropout>) -> Result<Tensor> {
        match &self.mlp {
            Some((norm, mlp)) => {
                self.branch(norm, &x, drop, |h, residual| mlp.forward(h, residual))
            }
            None => Ok(x),
        }
    }

    /// `x + drop(f(norm(x)))`; `f` adds the residual itself where nothing comes between.
    fn branch(
        &self,
        norm: &Norm,
        x: &Tensor,
        drop: Option<Dropout>,
        f: impl FnOnce(&Tensor, Option<&Tensor>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let h = norm.forward(x)?;
        if x.dtype() == self.dtype && drop.is_none() {
            return f(&h, Some(x));
        }
        let mut y = f(&h.to_dtype(self.dtype)?, None)?;
        if let Some(drop) = drop {
            y = dropout(&y, drop)?;
        }
        Ok(x.add(&y.to_dtype(x.dtype())?)?)
    }

    /// Arithmetic operations of the forward pass.
    pub fn flops(&self, batch: &SeqBatch) -> u64 {
        let mlp = self.mlp.as_ref().map_or(0, |(_, mlp)| mlp.flops(batch.tokens()));
        self.mixer.flops(batch) + mlp
    }
}
