//! Llama, Mamba and Mamba-2 in GGUF's names: settings are metadata without the architecture's prefix.
//!
//! Beside them stand facts that GGUF keeps elsewhere: `vocab_size` (rows of the embedding), `tied`
//! (whether there is an output matrix), `qkv_bias` and `output_bias` (whether attention has these
//! tensors) and `rope_factors` (the tensor `rope_freqs`).

use super::{Family, Fields, How, NameMap, UNBOUNDED};
use crate::Result;
use crate::config::{Config, MlpConfig};
use danaus_matrix::mixer::RopeScaling;

/// The architectures.
pub const FAMILIES: &[Family] = &[
    Family { name: "gguf llama", kinds: &[("llama", "llama")], translate: llama, names },
    Family { name: "gguf mamba", kinds: &[("mamba", "mamba")], translate: mamba, names },
    Family { name: "gguf mamba2", kinds: &[("mamba2", "mamba2")], translate: mamba2, names },
];

/// Settings that no arithmetic here depends on.
const HARMLESS: &[&str] = &["attention.value_length", "feed_forward_length", "context_length"];

fn shared(f: &mut Fields, c: &mut Config, letter: char) -> Result<()> {
    f.size("vocab_size", &mut c.vocab_size)?;
    f.flag("tied", &mut c.tied_head, true)?;
    f.size("embedding_length", &mut c.d_model)?;
    f.layers("block_count", &mut c.layers, letter)?;
    f.number("attention.layer_norm_rms_epsilon", &mut c.norm.eps, 1e-5)
}

fn llama(f: &mut Fields, c: &mut Config) -> Result<()> {
    shared(f, c, 'A')?;
    f.size("context_length", &mut c.max_positions)?;
    let mut d_ff = c.mlp.parts().0;
    f.size("feed_forward_length", &mut d_ff)?;
    c.mlp = MlpConfig::Gated { d_ff, activation: "silu".into(), bias: false };
    f.only("expert_count", 0)?;
    let a = c.attention.get_or_insert_default();
    f.size("attention.head_count", &mut a.n_heads)?;
    f.size_unless("attention.head_count_kv", &mut a.n_kv_heads, a.n_heads)?;
    let natural = c.d_model / a.n_heads.max(1);
    f.size_unless("attention.key_length", &mut a.head_dim, natural)?;
    let dim = a.head_dim.unwrap_or(natural);
    f.size_unless("rope.dimension_count", &mut a.rotary_dim, dim)?;
    let mut theta = a.rope_theta.unwrap_or(10_000.0);
    f.number("rope.freq_base", &mut theta, 10_000.0)?;
    a.rope_theta = Some(theta);
    f.flag("qkv_bias", &mut a.bias, false)?;
    let mut out_bias = a.out_bias.unwrap_or(a.bias);
    f.flag("output_bias", &mut out_bias, a.bias)?;
    a.out_bias = (out_bias != a.bias).then_some(out_bias);
    match &a.rope_scaling {
        Some(RopeScaling::Factors { factors }) => f.put("rope_factors", factors.clone()),
        Some(RopeScaling::Linear { factor }) => {
            f.put("rope.scaling.type", "linear");
            f.put("rope.scaling.factor", *factor);
        }
        _ => {}
    }
    let factors: Vec<f64> = f.list("rope_factors")?.iter().filter_map(|v| v.as_f64()).collect();
    match f.text_if("rope.scaling.type")?.unwrap_or("none") {
        "none" if factors.is_empty() => {}
        "none" => a.rope_scaling = Some(RopeScaling::Factors { factors }),
        "linear" => {
            let mut factor = 1.0;
            f.number("rope.scaling.factor", &mut factor, 1.0)?;
            a.rope_scaling = Some(RopeScaling::Linear { factor });
        }
        other => return Err(f.refuse("rope.scaling.type", other, "none or linear")),
    }
    f.done(HARMLESS)
}

fn mamba(f: &mut Fields, c: &mut Config) -> Result<()> {
    shared(f, c, 'S')?;
    (c.max_positions, c.residual_f32) = (UNBOUNDED, true);
    let m = c.mamba1.get_or_insert_default();
    let mut inner = m.d_inner(c.d_model);
    f.size("ssm.inner_size", &mut inner)?;
    m.expand = expand(f, inner, c.d_model)?;
    f.size("ssm.state_size", &mut m.d_state)?;
    f.size("ssm.conv_kernel", &mut m.conv_width)?;
    f.size_unless("ssm.time_step_rank", &mut m.dt_rank, c.d_model.div_ceil(16))?;
    f.only("ssm.dt_b_c_rms", false)?;
    f.done(&[HARMLESS, &["attention.head_count"]].concat())
}

fn mamba2(f: &mut Fields, c: &mut Config) -> Result<()> {
    shared(f, c, 'M')?;
    (c.max_positions, c.residual_f32) = (UNBOUNDED, true);
    let m = c.mamba2.get_or_insert_default();
    let mut inner = m.expand.saturating_mul(c.d_model);
    let mut heads = inner / m.head_dim.max(1);
    f.size("ssm.inner_size", &mut inner)?;
    m.expand = expand(f, inner, c.d_model)?;
    f.size("ssm.time_step_rank", &mut heads)?;
    m.head_dim = inner / heads.max(1);
    f.size("ssm.state_size", &mut m.d_state)?;
    f.size("ssm.conv_kernel", &mut m.conv_width)?;
    f.size("ssm.group_count", &mut m.n_groups)?;
    m.norm_eps = c.norm.eps;
    f.done(&[HARMLESS, &["attention.head_count"]].concat())
}

fn expand(f: &Fields, inner: usize, d_model: usize) -> Result<usize> {
    match d_model > 0 && inner > 0 && inner.is_multiple_of(d_model) {
        true => Ok(inner / d_model),
        false => Err(f.refuse("ssm.inner_size", inner, format!("a multiple of {d_model}"))),
    }
}

fn names(config: &Config) -> NameMap {
    let attention = config.attention.as_ref();
    let heads = attention.map_or(1, |attention| attention.n_heads);
    let kv_heads = attention.and_then(|attention| attention.n_kv_heads).unwrap_or(heads);
    NameMap::new(&config.layers)
        .row("embedding", "token_embd")
        .row("norm", "output_norm")
        .row("head", "output")
        .row("layers.{}.norm", "blk.{}.attn_norm")
        .row("layers.{}.norm2", "blk.{}.ffn_norm")
        // The rows of a head stand as neighbours that turn together.
        .row_as("layers.{}.mixer.q", "blk.{}.attn_q", How::Neighbours(heads))
        .row_as("layers.{}.mixer.k", "blk.{}.attn_k", How::Neighbours(kv_heads))
        .row("layers.{}.mixer.v", "blk.{}.attn_v")
        .row("layers.{}.mixer.out", "blk.{}.attn_output")
        .row("layers.{}.mlp.gate", "blk.{}.ffn_gate")
        .row("layers.{}.mlp.up", "blk.{}.ffn_up")
        .row("layers.{}.mlp.down", "blk.{}.ffn_down")
        .row("layers.{}.mixer.in_proj", "blk.{}.ssm_in")
        .row_as("layers.{}.mixer.conv1d", "blk.{}.ssm_conv1d", How::Flat)
        .row("layers.{}.mixer.x_proj", "blk.{}.ssm_x")
        .row_for("M", "layers.{}.mixer.dt_bias", "blk.{}.ssm_dt.bias", How::Same)
        .row_for("S", "layers.{}.mixer.dt_proj", "blk.{}.ssm_dt", How::Same)
        .row_as("layers.{}.mixer.A_log", "blk.{}.ssm_a", How::Rate)
        .row_for("M", "layers.{}.mixer.D", "blk.{}.ssm_d", How::Column)
        .row_for("S", "layers.{}.mixer.D", "blk.{}.ssm_d", How::Same)
        .row_as("layers.{}.mixer.norm", "blk.{}.ssm_norm", How::Column)
        .row("layers.{}.mixer.out_proj", "blk.{}.ssm_out")
        .ignore("rope_freqs")
}
