//! Named configs.

use crate::config::{Config, MlpConfig, NormConfig, NormKind};
use crate::{Error, Result};
use danaus_matrix::mixer::{AttentionConfig, LinearAttentionConfig, Mamba1Config, Mamba2Config};

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

/// The same with linear attention (`L`), RetNet (`R`) or gated linear attention (`G`), 4 heads of 64.
pub fn linear_attention(letter: char) -> Config {
    Config {
        layers: String::from_iter([letter; 4]),
        attention: None,
        linear_attention: Some(LinearAttentionConfig {
            n_heads: 4,
            ..LinearAttentionConfig::default()
        }),
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

/// Names for [`uniform`].
pub const MIXERS: &str =
    "attention, mamba1, mamba2, linear_attention, retnet, gated_linear_attention";

/// The size of a model whose blocks are all alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uniform {
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Width.
    pub d_model: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Width of a head's (Mamba-2) or channel's (Mamba-1) state; `None` is the mixer's default.
    pub d_state: Option<usize>,
}

/// Equal blocks with one mixer, for experiments: state-space mixers without MLP, as published; the others
/// with one of twice the width, rotary positions and heads of at most 64.
///
/// # Errors
/// When there is no such mixer, or it has no state whose width could be chosen.
pub fn uniform(mixer: &str, shape: &Uniform) -> Result<Config> {
    let Uniform { vocab_size, d_model, depth, d_state } = *shape;
    let n_heads = d_model.div_ceil(64).max(1);
    let bare = |letter: char| Config {
        tied_head: true,
        ..Config::bare(vocab_size, d_model, String::from_iter(vec![letter; depth]))
    };
    let mlp = MlpConfig::Dense { d_ff: 2 * d_model, activation: "gelu_tanh".into(), bias: true };
    let linear = |letter| {
        let section = LinearAttentionConfig { n_heads, ..LinearAttentionConfig::default() };
        Config { linear_attention: Some(section), mlp: mlp.clone(), ..bare(letter) }
    };
    let config = match mixer {
        "attention" => {
            let section = attention(n_heads, Some(10_000.0), false);
            Config { attention: Some(section), mlp: mlp.clone(), ..bare('A') }
        }
        "mamba1" => {
            let default = Mamba1Config::default();
            let d_state = d_state.unwrap_or(default.d_state);
            Config { mamba1: Some(Mamba1Config { d_state, ..default }), ..bare('S') }
        }
        "mamba2" => {
            let default = Mamba2Config::default();
            let d_state = d_state.unwrap_or(default.d_state);
            Config { mamba2: Some(Mamba2Config { d_state, ..default }), ..bare('M') }
        }
        "linear_attention" => linear('L'),
        "retnet" => linear('R'),
        "gated_linear_attention" => linear('G'),
        other => return Err(Error::argument("mixer", other, MIXERS)),
    };
    if let (Some(given), "attention" | "linear_attention" | "retnet" | "gated_linear_attention") =
        (d_state, mixer)
    {
        let valid =
            format!("only with mamba1 or mamba2: the state of {mixer} follows from d_model");
        return Err(Error::argument("d_state", given, valid));
    }
    Ok(config)
}

/// Names for [`by_name`].
pub const NAMES: &str =
    "transformer, mamba2, linear_attention, retnet, gated_linear_attention, quickstart";

/// A preset by name, with another vocabulary.
pub fn by_name(name: &str, vocab_size: usize) -> Option<Config> {
    let config = match name {
        "transformer" => transformer(),
        "mamba2" => mamba2(),
        "linear_attention" => linear_attention('L'),
        "retnet" => linear_attention('R'),
        "gated_linear_attention" => linear_attention('G'),
        "quickstart" => quickstart(vocab_size),
        _ => return None,
    };
    Some(Config { vocab_size, ..config })
}
