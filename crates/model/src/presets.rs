//! Named configs.

use crate::config::{Config, MODEL_TYPE, MlpConfig, NormConfig, NormKind, VERSION};
use danaus_matrix::mixer::{AttentionConfig, Mamba2Config};
use danaus_matrix::structured::Format;

fn attention(n_heads: usize, rope_theta: Option<f64>, bias: bool) -> AttentionConfig {
    let (n_kv_heads, head_dim, window, softcap) = (None, None, None, None);
    AttentionConfig { n_heads, n_kv_heads, head_dim, rope_theta, window, softcap, bias }
}

/// The benchmark's transformer: 4 layers, width 256, 4 heads, layer norm, biases, GELU MLP of 4x,
/// no positions, own head.
pub fn transformer() -> Config {
    Config {
        model_type: MODEL_TYPE.into(),
        version: VERSION,
        vocab_size: 512,
        d_model: 256,
        layers: "AAAA".into(),
        max_positions: 4096,
        learned_positions: false,
        attention: Some(attention(4, None, true)),
        mamba2: None,
        mamba1: None,
        mlp: MlpConfig::Dense { d_ff: 1024, activation: "gelu_tanh".into(), bias: true },
        norm: NormConfig { kind: NormKind::Layer, eps: 1e-5, bias: true },
        tied_head: false,
        weights: Format::Dense,
    }
}

/// The same with Mamba-2 mixers: state 64, heads of 64.
pub fn mamba2() -> Config {
    Config {
        layers: "MMMM".into(),
        attention: None,
        mamba2: Some(Mamba2Config { d_state: 64, head_dim: 64, ..Mamba2Config::default() }),
        ..transformer()
    }
}

/// The quickstart's hybrid: small enough that a minute and a half on two cores shows it a few million
/// bytes. Measured against wider, deeper and MLP-bearing shapes at equal arithmetic, narrow blocks
/// without MLP learn most in so short a time.
pub fn quickstart(vocab_size: usize) -> Config {
    Config {
        model_type: MODEL_TYPE.into(),
        version: VERSION,
        vocab_size,
        d_model: 128,
        layers: "MMAM".into(),
        max_positions: 2048,
        learned_positions: false,
        attention: Some(attention(2, Some(10_000.0), false)),
        mamba2: Some(Mamba2Config { d_state: 64, head_dim: 64, ..Mamba2Config::default() }),
        mamba1: None,
        mlp: MlpConfig::None,
        norm: NormConfig::default(),
        tied_head: true,
        weights: Format::Dense,
    }
}

/// Names for [`by_name`].
pub const NAMES: &str = "transformer, mamba2, quickstart";

/// A preset by name, with another vocabulary.
pub fn by_name(name: &str, vocab_size: usize) -> Option<Config> {
    let config = match name {
        "transformer" => transformer(),
        "mamba2" => mamba2(),
        "quickstart" => quickstart(vocab_size),
        _ => return None,
    };
    Some(Config { vocab_size, ..config })
}
