//! The mixers of a state-spaces model: `ssm_cfg` of either generation, `attn_cfg`.

use crate::Result;
use crate::families::Fields;
use danaus_matrix::mixer::{AttentionConfig, Mamba1Config, Mamba2Config};
use serde_json::Value;

/// Settings of initialisation, and of the choice between kernels with equal results.
const HARMLESS: &[&str] = &[
    "A_init_range",
    "conv_init",
    "dt_init",
    "dt_init_floor",
    "dt_max",
    "dt_min",
    "dt_scale",
    "use_fast_path",
    "use_mem_eff_path",
];

pub(super) fn mamba1(f: &mut Fields, m: &mut Mamba1Config, d_model: usize) -> Result<()> {
    f.size_or("d_state", &mut m.d_state, 16)?;
    f.size_or("d_conv", &mut m.conv_width, 4)?;
    f.size_or("expand", &mut m.expand, 2)?;
    match f.value("dt_rank") {
        Some(rank) if rank == "auto" => m.dt_rank = None,
        _ => f.size_unless("dt_rank", &mut m.dt_rank, d_model.div_ceil(16))?,
    }
    f.flag("conv_bias", &mut m.conv_bias, true)?;
    f.flag("bias", &mut m.bias, false)?;
    f.done(HARMLESS)
}

pub(super) fn mamba2(f: &mut Fields, m: &mut Mamba2Config) -> Result<()> {
    f.only("activation", "swish")?;
    f.only("D_has_hdim", false)?;
    f.size_or("d_state", &mut m.d_state, 128)?;
    f.size_or("d_conv", &mut m.conv_width, 4)?;
    f.size_or("expand", &mut m.expand, 2)?;
    f.size_or("headdim", &mut m.head_dim, 64)?;
    f.size_or("ngroups", &mut m.n_groups, 1)?;
    f.size_or("chunk_size", &mut m.chunk_size, 256)?;
    if f.writing() {
        f.put("d_ssm", m.d_ssm);
    } else {
        m.d_ssm = f.size_if("d_ssm")?;
    }
    f.flag("rmsnorm", &mut m.rms_norm, true)?;
    f.flag("norm_before_gate", &mut m.norm_before_gate, false)?;
    f.limits("dt_limit", &mut m.dt_limit)?;
    f.flag("conv_bias", &mut m.conv_bias, true)?;
    f.flag("bias", &mut m.bias, false)?;
    f.done(HARMLESS)
}

pub(super) fn heads(f: &mut Fields, a: &mut AttentionConfig, d_model: usize) -> Result<()> {
    let mut taps = a.conv_width.unwrap_or(0);
    f.size_or("d_conv", &mut taps, 0)?;
    a.conv_width = (taps > 0).then_some(taps);
    f.only("mlp_dim", 0)?;
    // Its own default is false, which a language model cannot mean.
    f.put("causal", true);
    if !f.writing() && f.value("causal") != Some(&Value::Bool(true)) {
        return Err(f.refuse("causal", "false", "true"));
    }
    f.size("num_heads", &mut a.n_heads)?;
    f.size_unless("num_heads_kv", &mut a.n_kv_heads, a.n_heads)?;
    f.size_unless("head_dim", &mut a.head_dim, d_model / a.n_heads.max(1))?;
    f.flag("qkv_proj_bias", &mut a.bias, true)?;
    let mut out_bias = a.out_bias.unwrap_or(a.bias);
    f.flag("out_proj_bias", &mut out_bias, true)?;
    a.out_bias = (out_bias != a.bias).then_some(out_bias);
    let dim = a.head_dim.unwrap_or(d_model / a.n_heads.max(1));
    let mut rotated = if a.rope_theta.is_some() { a.rotary_dim.unwrap_or(dim) } else { 0 };
    f.size_or("rotary_emb_dim", &mut rotated, 0)?;
    let mut theta = a.rope_theta.unwrap_or(10_000.0);
    f.number("rotary_emb_base", &mut theta, 10_000.0)?;
    f.flag("rotary_emb_interleaved", &mut a.rope_interleaved, false)?;
    a.rope_theta = (rotated > 0).then_some(theta);
    a.rope_interleaved &= rotated > 0;
    a.rotary_dim = (rotated > 0 && rotated != dim).then_some(rotated);
    if f.writing() {
        f.put("softmax_scale", a.softmax_scale);
    } else {
        a.softmax_scale = f.number_if("softmax_scale")?;
    }
    Ok(())
}
