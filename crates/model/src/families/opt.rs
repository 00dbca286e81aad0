//! OPT: learned positions from row 2 on, layer norms before the mixers, biases everywhere.

use super::{Family, Fields, NameMap};
use crate::Result;
use crate::config::{Config, MlpConfig, NormConfig, NormKind};

/// The family.
pub const FAMILY: Family =
    Family { name: "opt", kinds: &[("opt", "OPTForCausalLM")], translate, names };

fn translate(f: &mut Fields, c: &mut Config) -> Result<()> {
    f.only("do_layer_norm_before", true)?;
    f.only("_remove_final_layer_norm", false)?;
    f.only("layer_norm_elementwise_affine", true)?;
    f.size("vocab_size", &mut c.vocab_size)?;
    f.size("hidden_size", &mut c.d_model)?;
    f.size_unless("word_embed_proj_dim", &mut c.embedding_width, c.d_model)?;
    f.size("max_position_embeddings", &mut c.max_positions)?;
    f.layers("num_hidden_layers", &mut c.layers, 'A')?;
    f.flag("tie_word_embeddings", &mut c.tied_head, true)?;
    (c.learned_positions, c.position_offset) = (true, 2);
    c.norm = NormConfig { kind: NormKind::Layer, eps: 1e-5, bias: true };
    let a = c.attention.get_or_insert_default();
    f.size("num_attention_heads", &mut a.n_heads)?;
    f.flag("enable_bias", &mut a.bias, true)?;
    let (mut d_ff, mut activation, _) = c.mlp.parts();
    f.size("ffn_dim", &mut d_ff)?;
    f.activation("activation_function", &mut activation, "relu")?;
    c.mlp = MlpConfig::Dense { d_ff, activation, bias: a.bias };
    f.done(&["output_projection", "share_decoder_input_output_embed"])
}

fn names(config: &Config) -> NameMap {
    NameMap::new(&config.layers)
        .optional_prefix("model.")
        .row("embedding", "model.decoder.embed_tokens")
        .row("positions", "model.decoder.embed_positions")
        .row("project_in", "model.decoder.project_in")
        .row("project_out", "model.decoder.project_out")
        .row("norm", "model.decoder.final_layer_norm")
        .row("head", "lm_head")
        .row("layers.{}.norm", "model.decoder.layers.{}.self_attn_layer_norm")
        .row("layers.{}.norm2", "model.decoder.layers.{}.final_layer_norm")
        .row("layers.{}.mixer.q", "model.decoder.layers.{}.self_attn.q_proj")
        .row("layers.{}.mixer.k", "model.decoder.layers.{}.self_attn.k_proj")
        .row("layers.{}.mixer.v", "model.decoder.layers.{}.self_attn.v_proj")
        .row("layers.{}.mixer.out", "model.decoder.layers.{}.self_attn.out_proj")
        .row("layers.{}.mlp.up", "model.decoder.layers.{}.fc1")
        .row("layers.{}.mlp.down", "model.decoder.layers.{}.fc2")
}
