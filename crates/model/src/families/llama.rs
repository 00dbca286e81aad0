//! Llama, Mistral, Qwen2 and Qwen3 (dense): rotary attention with grouped heads and a gated MLP.
//!
//! They differ in which projections have biases (Llama, Qwen3: a setting for all four; Qwen2: q, k and
//! v), in the norm of queries and keys (Qwen3) and in when attention is windowed.

use super::{Family, Fields, NameMap, rope, windows};
use crate::Result;
use crate::config::{Config, MlpConfig};

/// The family.
pub const FAMILY: Family = Family {
    name: "llama",
    kinds: &[
        ("llama", "LlamaForCausalLM"),
        ("qwen3", "Qwen3ForCausalLM"),
        ("qwen2", "Qwen2ForCausalLM"),
        ("mistral", "MistralForCausalLM"),
    ],
    translate,
    names,
};

fn translate(f: &mut Fields, c: &mut Config) -> Result<()> {
    let kind = f.kind().to_string();
    f.size("vocab_size", &mut c.vocab_size)?;
    f.size("hidden_size", &mut c.d_model)?;
    f.size("max_position_embeddings", &mut c.max_positions)?;
    f.number("rms_norm_eps", &mut c.norm.eps, 1e-6)?;
    f.flag("tie_word_embeddings", &mut c.tied_head, false)?;
    let (mut d_ff, mut activation, mut bias) = c.mlp.parts();
    f.size("intermediate_size", &mut d_ff)?;
    f.activation("hidden_act", &mut activation, "silu")?;
    f.flag("mlp_bias", &mut bias, false)?;
    c.mlp = MlpConfig::Gated { d_ff, activation, bias };
    let a = c.attention.get_or_insert_default();
    f.size("num_attention_heads", &mut a.n_heads)?;
    f.size_unless("num_key_value_heads", &mut a.n_kv_heads, a.n_heads)?;
    if kind == "qwen3" && !f.writing() && !f.has("head_dim") {
        return Err(f.refuse("head_dim", "missing", "a whole number"));
    }
    f.size_unless("head_dim", &mut a.head_dim, c.d_model / a.n_heads.max(1))?;
    match &*kind {
        "qwen2" => (a.bias, a.out_bias) = (true, Some(false)),
        "mistral" => a.bias = false,
        _ => f.flag("attention_bias", &mut a.bias, false)?,
    }
    a.qk_norm_eps = (kind == "qwen3").then_some(c.norm.eps);
    rope::translate(f, c.d_model, a)?;
    windows::translate(f, &mut c.layers, a)?;
    f.done(&[])
}

fn names(config: &Config) -> NameMap {
    NameMap::new(&config.layers)
        .row("embedding", "model.embed_tokens")
        .row("norm", "model.norm")
        .row("head", "lm_head")
        .row("layers.{}.norm", "model.layers.{}.input_layernorm")
        .row("layers.{}.norm2", "model.layers.{}.post_attention_layernorm")
        .row("layers.{}.mixer.q", "model.layers.{}.self_attn.q_proj")
        .row("layers.{}.mixer.k", "model.layers.{}.self_attn.k_proj")
        .row("layers.{}.mixer.v", "model.layers.{}.self_attn.v_proj")
        .row("layers.{}.mixer.out", "model.layers.{}.self_attn.o_proj")
        .row("layers.{}.mixer.q_norm", "model.layers.{}.self_attn.q_norm")
        .row("layers.{}.mixer.k_norm", "model.layers.{}.self_attn.k_norm")
        .row("layers.{}.mlp.gate", "model.layers.{}.mlp.gate_proj")
        .row("layers.{}.mlp.up", "model.layers.{}.mlp.up_proj")
        .row("layers.{}.mlp.down", "model.layers.{}.mlp.down_proj")
        .ignore("model.layers.{}.self_attn.rotary_emb.inv_freq")
}
