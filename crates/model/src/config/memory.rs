//! How much memory a config asks for, before anything is built.

use super::{Config, MixerKind, MlpConfig};
use crate::{Error, Result};
use danaus_runtime::memory::in_words;

/// What takes memory, and how many bytes.
pub type Terms = Vec<(&'static str, u64)>;

impl Config {
    /// Bytes that training takes: masters, gradients, two moments, and activations of a batch of
    /// `tokens`, each with its share. With `recompute` blocks keep their inputs only, and one block at a
    /// time has its activations.
    ///
    /// # Errors
    /// When the config does not pass [`Self::check`].
    pub fn training_bytes(&self, tokens: usize, recompute: bool) -> Result<Terms> {
        let elements = self.elem_count()? as u64;
        let inner = match &self.mlp {
            MlpConfig::None => 0,
            MlpConfig::Dense { d_ff, .. } => 2 * d_ff,
            MlpConfig::Gated { d_ff, .. } => 3 * d_ff,
        } as u64;
        let mamba1 = self.mamba1.as_ref().map_or(0, |mamba1| mamba1.expand as u64);
        let mamba2 = self.mamba2.as_ref().map_or(0, |mamba2| mamba2.expand as u64);
        let linear = self.linear_attention.as_ref().map_or(0, |linear| {
            // Projection and its parts, features or turned heads, output and its norm.
            let key_dim = linear.head_dim.unwrap_or(self.d_model / linear.n_heads.max(1));
            let value_dim = linear.value_dim.unwrap_or(key_dim);
            linear.n_heads.saturating_mul(6 * key_dim + 7 * value_dim) as u64
        });
        // Rows of `d_model` that a mixer and its norms keep, backward's temporaries among them: measured
        // on the presets with 2048 and 4096 tokens a batch (Mamba-1 taken like Mamba-2).
        let width = self.d_model as u64;
        let block = |mixer| match mixer {
            MixerKind::Attention | MixerKind::Window => 11 * width + inner,
            MixerKind::Mamba2 => (8 + 6 * mamba2) * width + inner,
            MixerKind::Mamba1 => (8 + 6 * mamba1) * width + inner,
            MixerKind::Linear(_) => 5 * width + linear + inner,
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

    /// Refuses a new model whose f32 parameters would not fit into memory, before any is made.
    ///
    /// # Errors
    /// [`Error::Memory`] with their number and size.
    pub fn check_memory(&self, available: Option<u64>) -> Result<()> {
        let elements = self.elem_count()? as u64;
        let needed = elements.saturating_mul(4);
        match available {
            Some(available) if needed > available => Err(Error::Memory {
                needed: in_words(needed),
                sum: format!("{elements} parameters of 4 bytes"),
                available: in_words(available),
            }),
            _ => Ok(()),
        }
    }
}
