//! Mamba-2 in the spelling of Hugging Face.

use super::mamba::{HARMLESS, names, translate_shared};
use super::{Family, Fields};
use crate::Result;
use crate::config::Config;

/// The family.
pub const FAMILY: Family =
    Family { name: "mamba2", kinds: &[("mamba2", "Mamba2ForCausalLM")], translate, names };

fn translate(f: &mut Fields, c: &mut Config) -> Result<()> {
    translate_shared(f, c, 'M', false)?;
    f.only("rms_norm", true)?;
    let m = c.mamba2.get_or_insert_default();
    f.size_or("state_size", &mut m.d_state, 128)?;
    f.size_or("expand", &mut m.expand, 2)?;
    f.size_or("head_dim", &mut m.head_dim, 64)?;
    let heads = m.expand.saturating_mul(c.d_model) / m.head_dim.max(1);
    f.implied("num_heads", heads, "expand, hidden_size and head_dim")?;
    f.size_or("n_groups", &mut m.n_groups, 8)?;
    f.size_or("conv_kernel", &mut m.conv_width, 4)?;
    f.size_or("chunk_size", &mut m.chunk_size, 256)?;
    f.flag("use_conv_bias", &mut m.conv_bias, true)?;
    f.flag("use_bias", &mut m.bias, false)?;
    f.limits("time_step_limit", &mut m.dt_limit)?;
    m.norm_eps = c.norm.eps;
    // The original gates before the norm whatever `norm_before_gate` says, and has no rank.
    f.done(&[HARMLESS, &["norm_before_gate", "time_step_rank"]].concat())
}
