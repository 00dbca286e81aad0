//! Parts of a config: channel mixer, norms, the letters of the blocks.

use crate::{Error, Result};
use danaus_kernel::ops::activation::Activation;
use danaus_matrix::mixer::LinearAttentionKind;
use serde::{Deserialize, Serialize};

/// The channel mixer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
pub enum MlpConfig {
    /// No channel mixer; the mixers do it all.
    #[default]
    None,
    /// `down(act(up(x)))`.
    Dense {
        /// Inner width.
        d_ff: usize,
        /// gelu, gelu_tanh, silu or relu.
        activation: String,
        /// Whether both projections have biases.
        #[serde(default)]
        bias: bool,
    },
    /// `down(act(gate(x)) * up(x))`.
    #[serde(alias = "swiglu")]
    Gated {
        /// Inner width.
        d_ff: usize,
        /// As above.
        #[serde(default = "silu")]
        activation: String,
        /// Whether the three projections have biases.
        #[serde(default)]
        bias: bool,
    },
}

fn silu() -> String {
    Activation::Silu.name().to_string()
}

impl MlpConfig {
    /// Inner width, activation and whether there are biases.
    pub(crate) fn parts(&self) -> (usize, String, bool) {
        match self {
            Self::None => (0, String::new(), false),
            Self::Dense { d_ff, activation, bias } | Self::Gated { d_ff, activation, bias } => {
                (*d_ff, activation.clone(), *bias)
            }
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Dense { d_ff, activation, .. } | Self::Gated { d_ff, activation, .. } => {
                if !(1..=super::MAX_INNER).contains(d_ff) {
                    let valid = format!("1..={}", super::MAX_INNER);
                    return Err(Error::argument("mlp.d_ff", d_ff, valid));
                }
                parse_activation(activation).map(drop)
            }
        }
    }
}

/// The norms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NormConfig {
    /// Which norm.
    pub kind: NormKind,
    /// Added to the mean square or variance.
    pub eps: f64,
    /// Whether a bias is added (layer norm).
    pub bias: bool,
}

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Root mean square.
    Rms,
    /// Mean and variance.
    Layer,
}

impl Default for NormConfig {
    fn default() -> Self {
        Self { kind: NormKind::Rms, eps: 1e-5, bias: false }
    }
}

impl NormConfig {
    pub(super) fn check(&self) -> Result<()> {
        if !(self.eps > 0.0 && self.eps < 1.0) {
            return Err(Error::argument("norm.eps", self.eps, "between 0 and 1"));
        }
        if self.bias && self.kind == NormKind::Rms {
            return Err(Error::argument("norm.bias", true, "false with kind rms"));
        }
        Ok(())
    }
}

/// The mixer of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MixerKind {
    /// `A`: attention to all earlier tokens.
    Attention,
    /// `W`: attention to the last `attention.window` tokens before each.
    Window,
    /// `M`.
    Mamba2,
    /// `S`.
    Mamba1,
    /// `L`, `R`, `G`.
    Linear(LinearAttentionKind),
}

impl MixerKind {
    /// Letters and what they mean, for messages.
    pub const VALID: &str = "letters A (attention), W (attention in a window), M (mamba2), S (mamba1), \
        L (linear attention), R (retnet) and G (gated linear attention)";

    /// The mixer of a letter.
    pub(super) fn from_letter(letter: char) -> Result<Self> {
        match letter {
            'A' => Ok(Self::Attention),
            'W' => Ok(Self::Window),
            'M' => Ok(Self::Mamba2),
            'S' => Ok(Self::Mamba1),
            'L' => Ok(Self::Linear(LinearAttentionKind::Linear)),
            'R' => Ok(Self::Linear(LinearAttentionKind::RetNet)),
            'G' => Ok(Self::Linear(LinearAttentionKind::Gated)),
            other => Err(Error::argument("layers", other, Self::VALID)),
        }
    }
}

/// The activation of a config name.
pub(crate) fn parse_activation(name: &str) -> Result<Activation> {
    Activation::from_name(name).ok_or_else(|| {
        let names = Activation::ALL.map(Activation::name).join(", ");
        Error::argument("mlp.activation", name, names)
    })
}
