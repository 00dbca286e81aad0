//! The layers of a state-spaces model: `n_layer`, `ssm_cfg`, `attn_layer_idx`, `attn_cfg`.

use crate::Result;
use crate::config::Config;
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

pub(super) fn translate(f: &mut Fields, c: &mut Config) -> Result<()> {
    let attends: Vec<bool> = c.layers.chars().map(|letter| letter == 'A').collect();
    f.section("ssm_cfg", |f| {
        let mut second = c.mamba2.is_some();
        match f.text_if("layer")? {
            Some("Mamba2") => second = true,
            Some("Mamba1") | None => {}
            Some(other) => return Err(f.refuse("layer", other, "Mamba1 or Mamba2")),
        }
        f.put("layer", if second { "Mamba2" } else { "Mamba1" });
        match second {
            true => mamba2(f, c.mamba2.get_or_insert_default()),
            false => mamba1(f, c.mamba1.get_or_insert_default(), c.d_model),
        }
    })?;
    let letter = if c.mamba2.is_some() { 'M' } else { 'S' };
    f.layers("n_layer", &mut c.layers, letter)?;
    let places = attention_places(f, c.layers.len(), &attends)?;
    let letters = (0..c.layers.len()).map(|at| if places.contains(&at) { 'A' } else { letter });
    c.layers = letters.collect();
    let mut attention = c.attention.take().filter(|_| !places.is_empty());
    f.section("attn_cfg", |f| {
        if !places.is_empty() {
            heads(f, attention.get_or_insert_default(), c.d_model)?;
        }
        // Without attention layers the section is not looked at.
        if places.is_empty() { Ok(()) } else { f.done(&[]) }
    })?;
    c.attention = attention;
    Ok(())
}

fn attention_places(f: &mut Fields, count: usize, attends: &[bool]) -> Result<Vec<usize>> {
    let own: Vec<usize> = (0..attends.len()).filter(|&at| attends[at]).collect();
    f.put("attn_layer_idx", own.clone());
    if f.writing() {
        return Ok(own);
    }
    let place = |value: &Value| value.as_u64().and_then(|at| usize::try_from(at).ok());
    let given = f.list("attn_layer_idx")?;
    let read: Option<Vec<usize>> = given.iter().map(place).collect();
    read.filter(|places| places.iter().all(|&at| at < count)).ok_or_else(|| {
        let shown = Value::from(given.to_vec());
        f.refuse("attn_layer_idx", shown, format!("a list of numbers below n_layer = {count}"))
    })
}

fn mamba1(f: &mut Fields, m: &mut Mamba1Config, d_model: usize) -> Result<()> {
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

fn mamba2(f: &mut Fields, m: &mut Mamba2Config) -> Result<()> {
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

fn heads(f: &mut Fields, a: &mut AttentionConfig, d_model: usize) -> Result<()> {
    f.only("d_conv", 0)?;
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
