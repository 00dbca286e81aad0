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
//! `weights` is the format of all linear weights; `"weight_overrides": { "layers.*.mlp.up": "monarch(4)" }`
//! gives some of them another one.
//!
//! `layers` has one letter per block: `A` attention, `W` attention in a window, `M` Mamba-2,
//! `S` Mamba-1. Unknown fields and values are errors that name the valid ones.

mod memory;
mod parts;

pub use memory::Terms;
pub(crate) use parts::parse_activation;
pub use parts::{MixerKind, MlpConfig, NormConfig, NormKind};

use crate::decoder::{Compute, Decoder};
use crate::{Error, Result};
use danaus_matrix::mixer::{AttentionConfig, LinearAttentionConfig, Mamba1Config, Mamba2Config};
use danaus_matrix::structured::Format;
use danaus_tensor::param::name_matches;
use danaus_tensor::{DType, Device, MadeMatrix, ParamBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The value of `model_type`.
pub const MODEL_TYPE: &str = "danaus";
/// The version this crate writes.
pub const VERSION: u32 = 1;

/// Bounds that keep products of sizes within 64 bits, far above any model.
const MAX_WIDTH: usize = 1 << 18;
const MAX_INNER: usize = 1 << 20;
const MAX_ROWS: usize = 1 << 28;
pub(crate) const MAX_LAYERS: usize = 1 << 12;

/// A whole model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Always `danaus`.
    pub model_type: String,
    /// Version of the format.
    pub version: u32,
    /// Rows of embedding and head, and so the number of logits.
    pub vocab_size: usize,
    /// Rows that stand for tokens; the rest pads the tables to a round size. Default all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_vocab: Option<usize>,
    /// Width of the residual stream.
    pub d_model: usize,
    /// One letter per block: `A` attention, `W` attention in a window, `M` Mamba-2, `S` Mamba-1.
    pub layers: String,
    /// Longest sequence (rotary tables and learned positions).
    pub max_positions: usize,
    /// Whether positions are learned and added to the embeddings.
    #[serde(default)]
    pub learned_positions: bool,
    /// Row of the learned positions that the first token takes (OPT: 2).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub position_offset: usize,
    /// Width of embedding and head where it is not `d_model`; two projections connect them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_width: Option<usize>,
    /// Whether the residual stream stays f32 when blocks compute in bf16.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub residual_f32: bool,
    /// Needed where `layers` has an `A` or `W`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<AttentionConfig>,
    /// Needed where `layers` has an `M`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mamba2: Option<Mamba2Config>,
    /// Needed where `layers` has an `S`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mamba1: Option<Mamba1Config>,
    /// Needed where `layers` has an `L`, `R` or `G`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linear_attention: Option<LinearAttentionConfig>,
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
    /// Weights that are stored otherwise, by name without the last part (`layers.0.mlp.up`); `*`
    /// stands for any one part. A name counts before patterns, of these the first in order of text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weight_overrides: BTreeMap<String, Format>,
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}

impl Config {
    /// A config without sections: RMS norms, no channel mixer, no positions, own head, dense weights.
    pub fn bare(vocab_size: usize, d_model: usize, layers: impl Into<String>) -> Self {
        Self {
            model_type: MODEL_TYPE.into(),
            version: VERSION,
            vocab_size,
            used_vocab: None,
            d_model,
            layers: layers.into(),
            max_positions: 4096,
            learned_positions: false,
            position_offset: 0,
            embedding_width: None,
            residual_f32: false,
            attention: None,
            mamba2: None,
            mamba1: None,
            linear_attention: None,
            mlp: MlpConfig::None,
            norm: NormConfig::default(),
            tied_head: false,
            weights: Format::Dense,
            weight_overrides: BTreeMap::new(),
        }
    }

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
        self.layers.chars().map(MixerKind::from_letter).collect()
    }

    /// Whether there are recurrent mixers and nothing else.
    pub fn is_recurrent(&self) -> bool {
        self.mlp == MlpConfig::None && self.layers.chars().all(|letter| "MS".contains(letter))
    }

    /// Number of tokens; rows of the tables from there on are padding.
    pub fn tokens(&self) -> usize {
        self.used_vocab.unwrap_or(self.vocab_size)
    }

    /// Width of embedding and head.
    pub fn embedding_width(&self) -> usize {
        self.embedding_width.unwrap_or(self.d_model)
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
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_ROWS),
            ("used_vocab", self.tokens(), self.vocab_size),
            ("d_model", self.d_model, MAX_WIDTH),
            ("embedding_width", self.embedding_width(), MAX_WIDTH),
            ("max_positions", self.max_positions, MAX_ROWS),
            ("number of layers", self.layers.len(), MAX_LAYERS),
        ];
        for (field, value, most) in sizes {
            if value == 0 || value > most {
                return Err(Error::argument(field, value, format!("1..={most}")));
            }
        }
        if self.position_offset > MAX_WIDTH || (self.position_offset > 0 && !self.learned_positions)
        {
            let valid = "0 without learned_positions, at most 1048576 with them";
            return Err(Error::argument("position_offset", self.position_offset, valid));
        }
        for format in self.weight_overrides.values().chain([&self.weights]) {
            if format.largest() > MAX_INNER {
                let valid = format!("numbers of 1..={MAX_INNER}");
                return Err(Error::argument("weights", String::from(*format), valid));
            }
        }
        self.norm.check()?;
        self.mlp.check()?;
        self.check_mixers()
    }

    fn check_mixers(&self) -> Result<()> {
        let mixers = self.mixers()?;
        if let Some(mamba2) = &self.mamba2 {
            let (expand, groups) = ("mamba2.expand", "mamba2.n_groups");
            for (field, value, most) in
                [(expand, mamba2.expand, 64), (groups, mamba2.n_groups, 4096)]
            {
                if value == 0 || value > most {
                    return Err(Error::argument(field, value, format!("1..={most}")));
                }
            }
        }
        for mixer in &mixers {
            match mixer {
                MixerKind::Attention | MixerKind::Window => {
                    self.attention()?.check(self.d_model)?;
                }
                MixerKind::Mamba2 => self.mamba2()?.check(self.d_model)?,
                MixerKind::Mamba1 => self.mamba1()?.check(self.d_model)?,
                MixerKind::Linear(kind) => self.linear_attention()?.check(self.d_model, *kind)?,
            }
        }
        let (has_window, windows) = (
            self.attention.as_ref().is_some_and(|attention| attention.window.is_some()),
            mixers.contains(&MixerKind::Window),
        );
        match (has_window, windows) {
            (true, false) => {
                Err(Error::argument("layers", &self.layers, "with a W for the window"))
            }
            (false, true) => {
                Err(Error::argument("attention.window", "missing", "a width for the W in layers"))
            }
            _ => Ok(()),
        }
    }

    /// The attention section.
    ///
    /// # Errors
    /// When it is missing.
    pub fn attention(&self) -> Result<&AttentionConfig> {
        let missing =
            || Error::argument("attention", "missing", "a section, for the attention in layers");
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

    /// The section of linear attention and its kin.
    ///
    /// # Errors
    /// When it is missing.
    pub fn linear_attention(&self) -> Result<&LinearAttentionConfig> {
        let missing = || {
            Error::argument("linear_attention", "missing", "a section, for the L, R or G in layers")
        };
        self.linear_attention.as_ref().ok_or_else(missing)
    }

    /// Refuses overrides that name no weight.
    pub(crate) fn check_overrides(&self, matrices: &[MadeMatrix]) -> Result<()> {
        let is_unknown =
            |pattern: &&String| !matrices.iter().any(|matrix| name_matches(pattern, &matrix.name));
        let Some(pattern) = self.weight_overrides.keys().find(is_unknown) else { return Ok(()) };
        let first: Vec<&str> = matrices.iter().take(4).map(|m| m.name.as_str()).collect();
        let more = if matrices.len() > first.len() { ", .." } else { "" };
        let valid = format!("names of linear weights ({}{more})", first.join(", "));
        Err(Error::argument("weight_overrides", pattern, valid))
    }

    /// Number of parameter elements, without building the model.
    ///
    /// # Errors
    /// When the config does not pass [`Self::check`].
    pub fn elem_count(&self) -> Result<usize> {
        if !self.weight_overrides.is_empty() {
            let outline = ParamBuilder::outline(DType::F32, Device::Cpu);
            let decoder = Decoder::build(&outline, self, Compute::default())?;
            return Ok(decoder.params().elem_count());
        }
        let (d, format) = (self.d_model, self.weights);
        let norm = if self.norm.bias { 2 * d } else { d };
        let mlp = match &self.mlp {
            MlpConfig::None => 0,
            MlpConfig::Dense { d_ff, bias, .. } => {
                let biases = if *bias { d_ff + d } else { 0 };
                format.elem_count(*d_ff, d) + format.elem_count(d, *d_ff) + biases + norm
            }
            MlpConfig::Gated { d_ff, bias, .. } => {
                let biases = if *bias { 2 * d_ff + d } else { 0 };
                format.elem_count(2 * d_ff, d) + format.elem_count(d, *d_ff) + biases + norm
            }
        };
        let tables = if self.tied_head { 1 } else { 2 };
        let mut total = tables * self.vocab_size * self.embedding_width() + norm;
        if self.learned_positions {
            total += (self.max_positions + self.position_offset) * d;
        }
        if self.embedding_width.is_some() {
            total += 2 * d * self.embedding_width();
        }
        for mixer in self.mixers()? {
            total += norm + mlp;
            total += match mixer {
                MixerKind::Attention | MixerKind::Window => self.attention()?.elem_count(d, format),
                MixerKind::Mamba2 => self.mamba2()?.elem_count(d, format),
                MixerKind::Mamba1 => self.mamba1()?.elem_count(d, format),
                MixerKind::Linear(kind) => self.linear_attention()?.elem_count(d, kind, format),
            };
        }
        Ok(total)
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

#[cfg(test)]
mod tests;
