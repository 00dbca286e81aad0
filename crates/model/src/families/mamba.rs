//! Mamba-1 in the spelling of Hugging Face.

use super::{Family, Fields, NameMap, UNBOUNDED};
use crate::Result;
use crate::config::Config;

/// The family.
pub const FAMILY: Family =
    Family { name: "mamba", kinds: &[("mamba", "MambaForCausalLM")], translate, names };

/// Settings of initialisation, and of the choice between kernels with equal results.
pub const HARMLESS: &[&str] = &[
    "A_initializer_range",
    "emb_initializer_range",
    "fused_add_norm",
    "pad_vocab_size_multiple",
    "rescale_prenorm_residual",
    "time_step_floor",
    "time_step_init_scheme",
    "time_step_max",
    "time_step_min",
    "time_step_scale",
    "use_associative_scan",
    "use_mambapy",
    "use_mem_eff_path",
];

fn translate(f: &mut Fields, c: &mut Config) -> Result<()> {
    translate_shared(f, c, 'S', true)?;
    let m = c.mamba1.get_or_insert_default();
    f.size_or("state_size", &mut m.d_state, 16)?;
    f.size_or("expand", &mut m.expand, 2)?;
    let inner = m.expand.saturating_mul(c.d_model);
    f.implied("intermediate_size", inner, "expand")?;
    f.agrees("d_inner", inner, "expand")?;
    f.size_or("conv_kernel", &mut m.conv_width, 4)?;
    f.flag("use_conv_bias", &mut m.conv_bias, true)?;
    f.flag("use_bias", &mut m.bias, false)?;
    match f.value("time_step_rank") {
        Some(rank) if rank == "auto" => m.dt_rank = None,
        _ => f.size_unless("time_step_rank", &mut m.dt_rank, c.d_model.div_ceil(16))?,
    }
    if f.has("rms_norm") {
        f.only("rms_norm", true)?;
    }
    f.done(HARMLESS)
}

/// Settings that both generations share.
pub fn translate_shared(f: &mut Fields, c: &mut Config, letter: char, tied: bool) -> Result<()> {
    f.only("hidden_act", "silu")?;
    f.size("vocab_size", &mut c.vocab_size)?;
    f.size("hidden_size", &mut c.d_model)?;
    f.layers("num_hidden_layers", &mut c.layers, letter)?;
    f.number("layer_norm_epsilon", &mut c.norm.eps, 1e-5)?;
    f.flag("residual_in_fp32", &mut c.residual_f32, true)?;
    f.flag("tie_word_embeddings", &mut c.tied_head, tied)?;
    c.max_positions = UNBOUNDED;
    // Some converted files keep the older names beside the newer ones.
    f.agrees("d_model", c.d_model, "hidden_size")?;
    f.agrees("n_layer", c.layers.len(), "num_hidden_layers")
}

/// Both generations keep our names inside of layers.
pub fn names(config: &Config) -> NameMap {
    NameMap::new(&config.layers)
        .row("embedding", "backbone.embeddings")
        .row("norm", "backbone.norm_f")
        .row("head", "lm_head")
        .row("layers.{}", "backbone.layers.{}")
}
