//! A block: `x + mixer(norm(x))`, then `x + mlp(norm(x))`.

use crate::Result;
use crate::config::{Config, MixerKind, MlpConfig, NormConfig, NormKind, parse_activation};
use danaus_kernel::ops::activation::{Activation, gated_packed};
use danaus_kernel::ops::linear::Extras;
use danaus_kernel::ops::norm::{Affine, layer_norm, rms_norm};
use danaus_matrix::mixer::{Attention, Mamba1, Mamba2};
use danaus_matrix::{LayerState, SeqBatch, SequenceMixer, StructuredMatrix};
use danaus_tensor::{Init, Param, ParamBuilder, Tensor};

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
    Swiglu {
        gate_up: Box<dyn StructuredMatrix>,
        down: Box<dyn StructuredMatrix>,
    },
}

impl Mlp {
    fn build(params: &ParamBuilder, config: &Config, gain: f64) -> Result<Option<Self>> {
        let (d, format) = (config.d_model, config.weights);
        Ok(match &config.mlp {
            MlpConfig::None => None,
            MlpConfig::Dense { d_ff, activation, bias } => {
                let zeros = |name: &str, size: usize| {
                    params.pp(name).param_no_decay("bias", [size], Init::Constant(0.0))
                };
                let biases =
                    if *bias { Some((zeros("up", *d_ff)?, zeros("down", d)?)) } else { None };
                Some(Mlp::Dense {
                    up: format.build(&params.pp("up"), [*d_ff, d], 1.0)?,
                    down: format.build(&params.pp("down"), [d, *d_ff], gain)?,
                    activation: parse_activation(activation)?,
                    biases,
                })
            }
            MlpConfig::Swiglu { d_ff } => Some(Mlp::Swiglu {
                gate_up: format.build(&params.pp("gate_up"), [2 * d_ff, d], 1.0)?,
                down: format.build(&params.pp("down"), [d, *d_ff], gain)?,
            }),
        })
    }

    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let residual = Some(residual);
        Ok(match self {
            Mlp::Dense { up, down, activation, biases } => {
                let biases = biases.as_ref().map(|(a, b)| (a.tensor(), b.tensor()));
                let (a, b) = (biases.as_ref().map(|b| &b.0), biases.as_ref().map(|b| &b.1));
                let inner = Extras { bias: a, activation: Some(*activation), residual: None };
                let h = up.apply(x, inner)?;
                down.apply(&h, Extras { bias: b, activation: None, residual })?
            }
            Mlp::Swiglu { gate_up, down } => {
                let h = gated_packed(Activation::Silu, &gate_up.apply(x, Extras::default())?)?;
                down.apply(&h, Extras { residual, ..Extras::default() })?
            }
        })
    }

    fn flops(&self, tokens: usize) -> u64 {
        match self {
            Mlp::Dense { up, down, .. } => up.flops(tokens) + down.flops(tokens),
            Mlp::Swiglu { gate_up, down } => gate_up.flops(tokens) + down.flops(tokens),
        }
    }
}

/// Norm, sequence mixer, norm, channel mixer.
pub struct Block {
    norm: Norm,
    mixer: Box<dyn SequenceMixer>,
    mlp: Option<(Norm, Mlp)>,
}

impl Block {
    /// Makes (or loads) a block of a model with `depth` blocks.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn build(
        params: &ParamBuilder,
        config: &Config,
        kind: MixerKind,
        depth: usize,
    ) -> Result<Self> {
        let (d, format) = (config.d_model, config.weights);
        // Every block adds to the residual stream; the sum keeps its size.
        let gain = 1.0 / (depth as f64).sqrt();
        let inner = params.pp("mixer");
        let mixer: Box<dyn SequenceMixer> = match kind {
            MixerKind::Attention => Box::new(Attention::build(
                &inner,
                config.attention()?,
                d,
                format,
                config.max_positions,
            )?),
            MixerKind::Mamba2 => {
                Box::new(Mamba2::build(&inner, config.mamba2()?, d, format, gain)?)
            }
            MixerKind::Mamba1 => {
                Box::new(Mamba1::build(&inner, config.mamba1()?, d, format, gain)?)
            }
        };
        let mlp = match Mlp::build(&params.pp("mlp"), config, gain)? {
            Some(mlp) => Some((Norm::build(&params.pp("norm2"), &config.norm, d)?, mlp)),
            None => None,
        };
        Ok(Self { norm: Norm::build(&params.pp("norm"), &config.norm, d)?, mixer, mlp })
    }

    /// The sequence mixer.
    pub fn mixer(&self) -> &dyn SequenceMixer {
        &*self.mixer
    }

    /// Packed tokens from empty states.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor, batch: &SeqBatch) -> Result<Tensor> {
        let mixed = self.mixer.forward(&self.norm.forward(x)?, batch, Some(x))?;
        self.channel_mix(mixed)
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
        let mixed = self.mixer.advance(&self.norm.forward(x)?, batch, states, Some(x))?;
        self.channel_mix(mixed)
    }

    fn channel_mix(&self, x: Tensor) -> Result<Tensor> {
        match &self.mlp {
            Some((norm, mlp)) => mlp.forward(&norm.forward(&x)?, &x),
            None => Ok(x),
        }
    }

    /// Arithmetic operations of the forward pass.
    pub fn flops(&self, batch: &SeqBatch) -> u64 {
        let mlp = self.mlp.as_ref().map_or(0, |(_, mlp)| mlp.flops(batch.tokens()));
        self.mixer.flops(batch) + mlp
    }
}
