//! `config.json`: what a model consists of.
//!
//! ```json
//! {
//!   "model_type": "danaus", "version": 1,
//!   "vocab_size": 2048, "d_model": 128, "layers": "MMAM", "max_positions": 2048,
//!   "attention": { "n_heads": 2, "rope_theta": 10000.0 },
//!   "mamba2": { "d_state": 64, "head_dim": 64 },
//!   "mlp": { "kind": "none" }, "norm": { "kind": "rms", "eps": 1e-5 },
//!   "tied_head": true, "weights": "dense"
//! }
//! ```
//!
//! `layers` has one letter per block: `A` attention, `M` Mamba-2, `S` Mamba-1. Unknown fields and values are
//! errors that name the valid ones.

use crate::{Error, Result};
use danaus_kernel::ops::activation::Activation;
use danaus_matrix::mixer::{AttentionConfig, Mamba1Config, Mamba2Config};
use danaus_matrix::structured::Format;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The value of `model_type`.
pub const MODEL_TYPE: &str = "danaus";
/// The version this crate writes.
pub const VERSION: u32 = 1;

/// A whole model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Always `danaus`.
    pub model_type: String,
    /// Version of the format.
    pub version: u32,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// One letter per block: `A` attention, `M` Mamba-2, `S` Mamba-1.
    pub layers: String,
    /// Longest sequence (rotary tables and learned positions).
    pub max_positions: usize,
    /// Whether positions are learned and added to the embeddings.
    #[serde(default)]
    pub learned_positions: bool,
    /// Needed where `layers` has an `A`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<AttentionConfig>,
    /// Needed where `layers` has an `M`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mamba2: Option<Mamba2Config>,
    /// Needed where `layers` has an `S`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mamba1: Option<Mamba1Config>,
    /// The channel mixer of every block.
    #[serde(default)]
    pub mlp: MlpConfig,
    /// The norms.
    #[serde(default)]
    pub norm: NormConfig,
    /// Whether the head shares the embedding.
    pub tied_head: bool,
    /// How weights are stored.
    #[serde(default)]
    pub weights: Format,
}

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
    /// `down(silu(gate(x)) * up(x))`.
    Swiglu {
        /// Inner width.
        d_ff: usize,
    },
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

/// The mixer of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MixerKind {
    /// `A`.
    Attention,
    /// `M`.
    Mamba2,
    /// `S`.
    Mamba1,
}

impl Config {
    /// Reads and checks a config file.
    ///
    /// # Errors
    /// When it cannot be read, is malformed, or its parts do not fit; the field is named.
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).map_err(|error| danaus_tensor::Error::io(path, error))?;
        Self::parse(&text, path)
    }

    /// Parses and checks the text of a config file; `path` appears in messages.
    ///
    /// # Errors
    /// When it is malformed or its parts do not fit.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let fail = |detail: String| Error::Config { path: path.to_path_buf(), detail };
        let config: Self = serde_json::from_str(text).map_err(|error| fail(error.to_string()))?;
        config.check().map_err(|error| fail(error.to_string()))?;
        Ok(config)
    }

    /// The text of a config file.
    pub fn to_json(&self) -> String {
        // Plain numbers, strings and enums always serialise.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// The mixers of the blocks.
    ///
    /// # Errors
    /// When a letter is unknown.
    pub fn mixers(&self) -> Result<Vec<MixerKind>> {
        let kind = |letter| match letter {
            'A' => Ok(MixerKind::Attention),
            'M' => Ok(MixerKind::Mamba2),
            'S' => Ok(MixerKind::Mamba1),
            other => {
                let valid = "letters A (attention), M (mamba2) and S (mamba1)";
                Err(Error::argument("layers", other, valid))
            }
        };
        self.layers.chars().map(kind).collect()
    }

    /// Refuses configs whose parts do not fit.
    ///
    /// # Errors
    /// Naming the field, its value and what is valid.
    pub fn check(&self) -> Result<()> {
        if self.model_type != MODEL_TYPE {
            return Err(Error::argument("model_type", &self.model_type, MODEL_TYPE));
        }
        if self.version != VERSION {
            return Err(Error::argument("version", self.version, VERSION.to_string()));
        }
        let positive = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("max_positions", self.max_positions),
        ];
        for (field, value) in positive {
            if value == 0 || value > 1 << 28 {
                return Err(Error::argument(field, value, "1..=268435456"));
            }
        }
        if !(self.norm.eps > 0.0 && self.norm.eps < 1.0) {
            return Err(Error::argument("norm.eps", self.norm.eps, "between 0 and 1"));
        }
        if self.norm.bias && self.norm.kind == NormKind::Rms {
            return Err(Error::argument("norm.bias", true, "false with kind rms"));
        }
        match &self.mlp {
            MlpConfig::None => {}
            MlpConfig::Dense { d_ff: 0, .. } | MlpConfig::Swiglu { d_ff: 0 } => {
                return Err(Error::argument("mlp.d_ff", 0, "at least 1"));
            }
            MlpConfig::Dense { activation, .. } => {
                parse_activation(activation)?;
            }
            MlpConfig::Swiglu { .. } => {}
        }
        for mixer in self.mixers()? {
            match mixer {
                MixerKind::Attention => self.attention()?.check(self.d_model)?,
                MixerKind::Mamba2 => self.mamba2()?.check(self.d_model)?,
                MixerKind::Mamba1 => self.mamba1()?.check(self.d_model)?,
            }
        }
        Ok(())
    }

    /// The attention section.
    ///
    /// # Errors
    /// When it is missing.
    pub fn attention(&self) -> Result<&AttentionConfig> {
        let missing = || Error::argument("attention", "missing", "a section, for the A in layers");
        self.attention.as_ref().ok_or_else(missing)
    }

    /// The Mamba-2 section.
    ///
    /// # Errors
    /// When it is missing.
    pub fn mamba2(&self) -> Result<&Mamba2Config> {
        let missing = || Error::argument("mamba2", "missing", "a section, for the M in layers");
        self.mamba2.as_ref().ok_or_else(missing)
    }

    /// The Mamba-1 section.
    ///
    /// # Errors
    /// When it is missing.
    pub fn mamba1(&self) -> Result<&Mamba1Config> {
        let missing = || Error::argument("mamba1", "missing", "a section, for the S in layers");
        self.mamba1.as_ref().ok_or_else(missing)
    }

    /// Number of parameter elements, without building the model.
    ///
    /// # Errors
    /// When the config does not pass [`Self::check`].
    pub fn elem_count(&self) -> Result<usize> {
        let (d, format) = (self.d_model, self.weights);
        let norm = if self.norm.bias { 2 * d } else { d };
        let mlp = match &self.mlp {
            MlpConfig::None => 0,
            MlpConfig::Dense { d_ff, bias, .. } => {
                let biases = if *bias { d_ff + d } else { 0 };
                format.elem_count(*d_ff, d) + format.elem_count(d, *d_ff) + biases + norm
            }
            MlpConfig::Swiglu { d_ff } => {
                format.elem_count(2 * d_ff, d) + format.elem_count(d, *d_ff) + norm
            }
        };
        let mut total = self.vocab_size * d + norm;
        if self.learned_positions {
            total += self.max_positions * d;
        }
        if !self.tied_head {
            total += self.vocab_size * d;
        }
        for mixer in self.mixers()? {
            total += norm + mlp;
            total += match mixer {
                MixerKind::Attention => self.attention()?.elem_count(d, format),
                MixerKind::Mamba2 => self.mamba2()?.elem_count(d, format),
                MixerKind::Mamba1 => self.mamba1()?.elem_count(d, format),
            };
        }
        Ok(total)
    }

    /// Bytes that training takes: masters, gradients, two moments, and activations of a batch of
    /// `tokens`, each with its share.
    ///
    /// # Errors
    /// When the config does not pass [`Self::check`].
    pub fn training_bytes(&self, tokens: usize) -> Result<Vec<(&'static str, u64)>> {
        let elements = self.elem_count()? as u64;
        let inner = match &self.mlp {
            MlpConfig::None => 0,
            MlpConfig::Dense { d_ff, .. } => 2 * d_ff,
            MlpConfig::Swiglu { d_ff } => 3 * d_ff,
        };
        let expand2 = self.mamba2.as_ref().map_or(0, |mamba2| mamba2.expand);
        let expand = expand2.max(self.mamba1.as_ref().map_or(0, |mamba1| mamba1.expand));
        let per_layer = self.d_model * (8 + 6 * expand) + inner;
        let activations = 4 * tokens * (self.layers.len() * per_layer + 4 * self.d_model);
        Ok(vec![
            ("parameters", 4 * elements),
            ("gradients", 4 * elements),
            ("optimiser state", 8 * elements),
            ("activations", activations as u64),
        ])
    }
}

/// The activation of a config name.
pub(crate) fn parse_activation(name: &str) -> Result<Activation> {
    Activation::from_name(name).ok_or_else(|| {
        let names = Activation::ALL.map(Activation::name).join(", ");
        Error::argument("mlp.activation", name, names)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;

    #[test]
    fn presets_round_trip() {
        for config in [presets::transformer(), presets::mamba2(), presets::quickstart(2048)] {
            let again = Config::parse(&config.to_json(), Path::new("config.json")).unwrap();
            assert_eq!(again, config);
        }
    }

    #[test]
    fn complaints_name_field_and_valid_values() {
        let base = presets::quickstart(2048).to_json();
        let cases = [
            (
                "\"layers\": \"MMAM\"",
                "\"layers\": \"MXAM\"",
                "letters A (attention), M (mamba2) and S (mamba1)",
            ),
            ("\"tied_head\": true", "\"tied_haed\": true", "unknown field `tied_haed`"),
            ("\"kind\": \"rms\"", "\"kind\": \"rsm\"", "unknown variant `rsm`"),
            ("\"model_type\": \"danaus\"", "\"model_type\": \"llama\"", "valid is danaus"),
            ("\"version\": 1", "\"version\": 2", "version is 2"),
            ("\"weights\": \"dense\"", "\"weights\": \"dence\"", "lowrank(RANK)"),
            ("\"n_heads\": 2", "\"n_heads\": 3", "attention.n_heads is 3"),
        ];
        for (from, to, expected) in cases {
            assert!(base.contains(from), "{from} is not in {base}");
            let text = base.replacen(from, to, 1);
            let message = Config::parse(&text, Path::new("config.json")).unwrap_err().to_string();
            assert!(message.contains(expected), "{to}: {message}");
        }
    }
}
