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
//! `layers` has one letter per block: `A` attention, `M` Mamba-2. Unknown fields and values are
//! errors that name the valid ones.

use crate::{Error, Result};
use danaus_kernel::ops::activation::Activation;
use danaus_matrix::mixer::{AttentionConfig, MAX_WIDTH, Mamba2Config};
use danaus_matrix::structured::Format;
use danaus_runtime::memory::in_words;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// The value of `model_type`.
pub const MODEL_TYPE: &str = "danaus";
/// The version this crate writes.
pub const VERSION: u32 = 1;

/// Bounds that keep every size computed from a config within 64 bits.
const MAX_COUNT: usize = 1 << 28;
const MAX_LAYERS: usize = 1 << 12;

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
    /// One letter per block: `A` attention, `M` Mamba-2.
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
        let given = serde_json::from_str(text).map_err(|error| fail(error.to_string()))?;
        let known = serde_json::to_value(&config).map_err(|error| fail(error.to_string()))?;
        if let Some(field) = unknown_field(&given, &known) {
            return Err(fail(format!("unknown field `{field}`")));
        }
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
            other => Err(Error::argument("layers", other, "letters A (attention) and M (mamba2)")),
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
        let bounded = [
            ("vocab_size", self.vocab_size, MAX_COUNT),
            ("d_model", self.d_model, MAX_WIDTH),
            ("max_positions", self.max_positions, MAX_COUNT),
            ("number of layers", self.layers.len(), MAX_LAYERS),
        ];
        for (field, value, most) in bounded {
            if value == 0 || value > most {
                return Err(Error::argument(field, value, format!("1..={most}")));
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
            MlpConfig::Dense { d_ff, .. } | MlpConfig::Swiglu { d_ff }
                if *d_ff == 0 || *d_ff > MAX_WIDTH =>
            {
                return Err(Error::argument("mlp.d_ff", d_ff, format!("1..={MAX_WIDTH}")));
            }
            MlpConfig::Dense { activation, .. } => {
                parse_activation(activation)?;
            }
            MlpConfig::Swiglu { .. } => {}
        }
        if let Format::LowRank(rank) = self.weights
            && rank > MAX_WIDTH
        {
            return Err(Error::argument("weights", rank, format!("a rank of 1..={MAX_WIDTH}")));
        }
        for mixer in self.mixers()? {
            match mixer {
                MixerKind::Attention => self.attention()?.check(self.d_model)?,
                MixerKind::Mamba2 => self.mamba2()?.check(self.d_model)?,
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
            };
        }
        Ok(total)
    }

    /// Bytes that training takes: masters, gradients, two moments, and activations of a batch of
    /// `tokens`, each with its share. With `recompute` blocks keep their inputs only, and one block at a
    /// time has its activations.
    ///
    /// # Errors
    /// When the config does not pass [`Self::check`].
    pub fn training_bytes(
        &self,
        tokens: usize,
        recompute: bool,
    ) -> Result<Vec<(&'static str, u64)>> {
        let elements = self.elem_count()? as u64;
        let inner = match &self.mlp {
            MlpConfig::None => 0,
            MlpConfig::Dense { d_ff, .. } => 2 * d_ff,
            MlpConfig::Swiglu { d_ff } => 3 * d_ff,
        };
        let expand = self.mamba2.as_ref().map_or(0, |mamba2| mamba2.expand);
        // Rows of `d_model` that a mixer and its norms keep, backward's temporaries among them: measured
        // on the presets with 2048 and 4096 tokens a batch.
        let width = self.d_model as u64;
        let block = |mixer| match mixer {
            MixerKind::Attention => 11 * width + inner as u64,
            MixerKind::Mamba2 => (8 + 6 * expand as u64) * width + inner as u64,
        };
        let mut blocks = 0;
        for kept in self.mixers()?.into_iter().map(block) {
            blocks = if recompute { kept.max(blocks) } else { blocks + kept };
        }
        let inputs = if recompute { self.layers.len() as u64 * width } else { 0 };
        let per_token = blocks + inputs + 4 * width;
        Ok(vec![
            ("parameters", 4 * elements),
            ("gradients", 4 * elements),
            ("optimiser state", 8 * elements),
            ("activations", per_token.saturating_mul((tokens as u64).saturating_mul(4))),
        ])
    }

    /// Refuses a model that would not fit into memory, before any of it is made.
    ///
    /// # Errors
    /// [`Error::Memory`] with the sum.
    pub fn check_memory(&self, available: Option<u64>) -> Result<()> {
        let terms = self.model_bytes()?;
        let needed = terms.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        match available {
            Some(available) if needed > available => {
                let terms =
                    terms.iter().map(|(what, bytes)| format!("{what} {}", in_words(*bytes)));
                Err(Error::Memory {
                    needed: in_words(needed),
                    sum: terms.collect::<Vec<_>>().join(" + "),
                    available: in_words(available),
                })
            }
            _ => Ok(()),
        }
    }

    /// Bytes of a model without training: parameters in f32 and the tables of rotary angles.
    ///
    /// # Errors
    /// When the config does not pass [`Self::check`].
    pub fn model_bytes(&self) -> Result<Vec<(&'static str, u64)>> {
        let rotary = match &self.attention {
            Some(attention) if attention.rope_theta.is_some() => {
                let layers = self.layers.matches('A').count() as u64;
                let table = 4 * (self.max_positions * attention.dim(self.d_model)) as u64;
                layers.saturating_mul(table)
            }
            _ => 0,
        };
        Ok(vec![("parameters", 4 * self.elem_count()? as u64), ("rotary tables", rotary)])
    }
}

/// A field of `given` that is not in `known`, the same config written by us: the parser refuses unknown
/// fields by itself except beside a variant without fields (`"kind": "none"`).
fn unknown_field(given: &Value, known: &Value) -> Option<String> {
    let (given, known) = (given.as_object()?, known.as_object()?);
    given.iter().filter(|(_, value)| !value.is_null()).find_map(|(name, value)| {
        match known.get(name) {
            None => Some(name.clone()),
            Some(inner) => unknown_field(value, inner).map(|field| format!("{name}.{field}")),
        }
    })
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
    fn recomputing_needs_less_memory() {
        let config = presets::transformer();
        let activations = |recompute| config.training_bytes(4096, recompute).unwrap()[3].1;
        // Four blocks of 11 d + 2 d_ff numbers a token, against one block and four inputs.
        let (d, d_ff) = (256, 1024);
        assert_eq!(activations(false), 4 * 4096 * (4 * (11 * d + 2 * d_ff) + 4 * d));
        assert_eq!(activations(true), 4 * 4096 * (11 * d + 2 * d_ff + 4 * d + 4 * d));
    }

    #[test]
    fn memory_is_refused_with_the_sum() {
        let mut config = presets::quickstart(2048);
        config.max_positions = 1 << 28;
        assert!(config.check_memory(None).is_ok());
        let message = config.check_memory(Some(1 << 30)).unwrap_err().to_string();
        assert!(message.contains("rotary tables 64.0 GiB), 1.0 GiB are available"), "{message}");
    }

    #[test]
    fn complaints_name_field_and_valid_values() {
        let base = presets::quickstart(2048).to_json();
        let cases = [
            (
                "\"layers\": \"MMAM\"",
                "\"layers\": \"MXAM\"",
                "letters A (attention) and M (mamba2)",
            ),
            ("\"tied_head\": true", "\"tied_haed\": true", "unknown field `tied_haed`"),
            ("\"kind\": \"rms\"", "\"kind\": \"rsm\"", "unknown variant `rsm`"),
            ("\"model_type\": \"danaus\"", "\"model_type\": \"llama\"", "valid is danaus"),
            ("\"version\": 1", "\"version\": 2", "version is 2"),
            ("\"weights\": \"dense\"", "\"weights\": \"dence\"", "lowrank(RANK)"),
            ("\"n_heads\": 2", "\"n_heads\": 3", "attention.n_heads is 3"),
            ("\"kind\": \"none\"", "\"kind\": \"none\", \"d_ff\": 5", "unknown field `mlp.d_ff`"),
            ("\"d_model\": 128", "\"d_model\": 999999999", "d_model is 999999999"),
            ("\"expand\": 2", "\"expand\": 9000000000000000000", "mamba2.expand"),
            ("\"n_heads\": 2", "\"n_heads\": 9000000000000000000", "attention.n_heads"),
            ("\"n_groups\": 1", "\"n_groups\": 9000000000000000000", "mamba2.n_groups"),
            ("\"weights\": \"dense\"", "\"weights\": \"lowrank(99999999999)\"", "weights is"),
            ("\"layers\": \"MMAM\"", "\"layers\": \"\"", "number of layers is 0"),
        ];
        for (from, to, expected) in cases {
            assert!(base.contains(from), "{from} is not in {base}");
            let text = base.replacen(from, to, 1);
            let message = Config::parse(&text, Path::new("config.json")).unwrap_err().to_string();
            assert!(message.contains(expected), "{to}: {message}");
        }
    }
}
