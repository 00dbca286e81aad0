//! Memory that a model takes: to load, and for the states of a sequence.

use crate::Result;
use crate::config::{Config, MixerKind};
use serde::Serialize;

/// Bytes of states, computed in f32.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Parameters as f32, for training or a model that is not quantised.
    pub load_f32: u64,
    /// Parameters as they are stored.
    pub load_stored: u64,
    /// Grows with every token of a sequence: keys and values of attention.
    pub state_per_token: u64,
    /// As that, for attention in a window: only until the window is full.
    pub state_per_token_in_window: u64,
    /// The same for every length: states of recurrent layers.
    pub state_per_sequence: u64,
}

/// Bytes of an f32.
const F32: u64 = 4;

impl Memory {
    /// The memory of a model whose tensors take `stored` bytes.
    ///
    /// # Errors
    /// When the config does not pass its check.
    pub fn of(config: &Config, stored: u64) -> Result<Self> {
        let mut memory = Self {
            load_f32: F32 * config.elem_count()? as u64,
            load_stored: stored,
            state_per_token: 0,
            state_per_token_in_window: 0,
            state_per_sequence: 0,
        };
        for mixer in config.mixers()? {
            match mixer {
                MixerKind::Attention | MixerKind::Window => {
                    let attention = config.attention()?;
                    let natural = config.d_model / attention.n_heads.max(1);
                    let head_dim = attention.head_dim.unwrap_or(natural);
                    let channels = (attention.n_heads + 2 * attention.kv_heads()) * head_dim;
                    let taps = attention.conv_width.map_or(0, |width| width - 1);
                    memory.state_per_sequence += F32 * (channels * taps) as u64;
                    let bytes = F32 * 2 * (attention.kv_heads() * head_dim) as u64;
                    match mixer {
                        MixerKind::Window => memory.state_per_token_in_window += bytes,
                        _ => memory.state_per_token += bytes,
                    }
                }
                MixerKind::Mamba2 => {
                    let bytes = config.mamba2()?.state_bytes(config.d_model);
                    memory.state_per_sequence += bytes as u64;
                }
                MixerKind::Mamba1 => {
                    let mamba1 = config.mamba1()?;
                    let inner = mamba1.d_inner(config.d_model);
                    let elements = inner * (mamba1.conv_width - 1 + mamba1.d_state);
                    memory.state_per_sequence += F32 * elements as u64;
                }
                MixerKind::Linear(kind) => {
                    let elements = config.linear_attention()?.state_elements(config.d_model, kind);
                    memory.state_per_sequence += F32 * elements as u64;
                }
            }
        }
        Ok(memory)
    }
}
