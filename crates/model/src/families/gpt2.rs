//! GPT-2: learned positions, layer norms before the mixers, matrices stored as `[in, out]`.

use super::{Family, Fields, How, NameMap};
use crate::Result;
use crate::config::{Config, MlpConfig, NormConfig, NormKind};

/// The family.
pub const FAMILY: Family =
    Family { name: "gpt2", kinds: &[("gpt2", "GPT2LMHeadModel")], translate, names };

fn translate(f: &mut Fields, c: &mut Config) -> Result<()> {
    f.only("scale_attn_by_inverse_layer_idx", false)?;
    translate_shared(f, c, "gelu_new")?;
    f.done(&["n_ctx", "reorder_and_upcast_attn"])
}

fn names(config: &Config) -> NameMap {
    names_as(config, How::Transposed, How::Transposed)
}

/// Settings that GPT-2 and GPTBigCode share.
pub fn translate_shared(f: &mut Fields, c: &mut Config, gelu: &str) -> Result<()> {
    f.only("add_cross_attention", false)?;
    f.size("vocab_size", &mut c.vocab_size)?;
    f.size("n_embd", &mut c.d_model)?;
    f.size("n_positions", &mut c.max_positions)?;
    f.layers("n_layer", &mut c.layers, 'A')?;
    f.flag("tie_word_embeddings", &mut c.tied_head, true)?;
    c.learned_positions = true;
    c.norm = NormConfig { kind: NormKind::Layer, eps: c.norm.eps, bias: true };
    f.number("layer_norm_epsilon", &mut c.norm.eps, 1e-5)?;
    let (mut d_ff, mut activation, _) = c.mlp.parts();
    f.size_or("n_inner", &mut d_ff, c.d_model.saturating_mul(4))?;
    f.activation("activation_function", &mut activation, gelu)?;
    c.mlp = MlpConfig::Dense { d_ff, activation, bias: true };
    let a = c.attention.get_or_insert_default();
    f.size("n_head", &mut a.n_heads)?;
    a.bias = true;
    let mut scaled = a.softmax_scale.is_none();
    f.flag("scale_attn_weights", &mut scaled, true)?;
    a.softmax_scale = if scaled { None } else { Some(1.0) };
    Ok(())
}

/// The table, with how q, k and v and the other matrices are stored.
pub fn names_as(config: &Config, qkv: How, others: How) -> NameMap {
    NameMap::new(&config.layers)
        .optional_prefix("transformer.")
        .row("embedding", "transformer.wte")
        .row("positions", "transformer.wpe")
        .row("norm", "transformer.ln_f")
        .row("head", "lm_head")
        .row("layers.{}.norm", "transformer.h.{}.ln_1")
        .row("layers.{}.norm2", "transformer.h.{}.ln_2")
        .row_as("layers.{}.mixer.qkv", "transformer.h.{}.attn.c_attn", qkv)
        .row_as("layers.{}.mixer.out", "transformer.h.{}.attn.c_proj", others)
        .row_as("layers.{}.mlp.up", "transformer.h.{}.mlp.c_fc", others)
        .row_as("layers.{}.mlp.down", "transformer.h.{}.mlp.c_proj", others)
        .ignore("transformer.h.{}.attn.bias")
        .ignore("transformer.h.{}.attn.masked_bias")
}
