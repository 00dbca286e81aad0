//! The spelling of state-spaces: Mamba-1, Mamba-2, and hybrids of either with attention.

mod layers;
mod mixers;

use super::{Family, Fields, How, NameMap, UNBOUNDED};
use crate::Result;
use crate::config::{Config, MlpConfig, NormConfig, NormKind};

/// The family. Its files have no `model_type`; they are known by `ssm_cfg`.
pub const FAMILY: Family = Family {
    name: "state-spaces",
    kinds: &[("state-spaces", "MambaLMHeadModel")],
    translate,
    names,
};

fn translate(f: &mut Fields, c: &mut Config) -> Result<()> {
    f.size("d_model", &mut c.d_model)?;
    vocabulary(f, c)?;
    f.flag("tie_embeddings", &mut c.tied_head, true)?;
    f.flag("residual_in_fp32", &mut c.residual_f32, true)?;
    let mut rms = c.norm.kind == NormKind::Rms;
    f.flag("rms_norm", &mut rms, true)?;
    c.norm = match rms {
        true => NormConfig { kind: NormKind::Rms, eps: 1e-5, bias: false },
        false => NormConfig { kind: NormKind::Layer, eps: 1e-5, bias: true },
    };
    channel_mixer(f, c)?;
    c.max_positions = UNBOUNDED;
    layers::translate(f, c)?;
    f.done(&["fused_add_norm"])
}

/// The tables are padded to a multiple.
fn vocabulary(f: &mut Fields, c: &mut Config) -> Result<()> {
    let (mut tokens, mut multiple) = (c.tokens(), if c.used_vocab.is_some() { 8 } else { 1 });
    f.size("vocab_size", &mut tokens)?;
    f.size_or("pad_vocab_size_multiple", &mut multiple, 8)?;
    c.vocab_size = tokens.div_ceil(multiple.max(1)).saturating_mul(multiple);
    c.used_vocab = (c.vocab_size != tokens).then_some(tokens);
    Ok(())
}

/// A gated one whose width is rounded up, or none.
fn channel_mixer(f: &mut Fields, c: &mut Config) -> Result<()> {
    let mut width = c.mlp.parts().0;
    f.size_or("d_intermediate", &mut width, 0)?;
    let (d_ff, activation) = (width.next_multiple_of(128), "silu".to_string());
    c.mlp = match width {
        0 => MlpConfig::None,
        _ => MlpConfig::Gated { d_ff, activation, bias: false },
    };
    Ok(())
}

fn names(config: &Config) -> NameMap {
    NameMap::new(&config.layers)
        .row("embedding", "backbone.embedding")
        .row("norm", "backbone.norm_f")
        .row("head", "lm_head")
        .row_for("A", "layers.{}.mixer.qkv", "backbone.layers.{}.mixer.in_proj", How::Same)
        .row_for("A", "layers.{}.mixer.out", "backbone.layers.{}.mixer.out_proj", How::Same)
        // The value stands before the gate.
        .row_as("layers.{}.mlp.gate_up", "backbone.layers.{}.mlp.fc1", How::Swapped)
        .row("layers.{}.mlp.down", "backbone.layers.{}.mlp.fc2")
        .row("layers.{}", "backbone.layers.{}")
        .ignore("backbone.layers.{}.mixer.rotary_emb.inv_freq")
}
