//! Named configs.

use crate::config::{Config, MlpConfig, NormConfig, NormKind};
use danaus_matrix::mixer::{AttentionConfig, Mamba2Config};

fn attention(n_heads: usize, rope_theta: Option<f64>, bias: bool) -> AttentionConfig {
    AttentionConfig { n_heads, rope_theta, bias, ..AttentionConfig::default() }
}

/// The benchmark's transformer: 4 layers, width 256, 4 heads, layer norm, biases, GELU MLP of 4x,
/// no positions, own head.
pub fn transformer() -> Config {
    Config {
        attention: Some(attention(4, None, true)),
        mlp: MlpConfig::Dense { d_ff: 1024, activation: "gelu_tanh".into(), bias: true },
        norm: NormConfig { kind: NormKind::Layer, eps: 1e-5, bias: true },
        ..Config::bare(512, 256, "AAAA")
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
        max_positions: 2048,
        attention: Some(attention(2, Some(10_000.0), false)),
        mamba2: Some(Mamba2Config { d_state: 64, head_dim: 64, ..Mamba2Config::default() }),
        tied_head: true,
        ..Config::bare(vocab_size, 128, "MMAM")
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
