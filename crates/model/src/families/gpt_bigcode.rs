//! GPTBigCode (StarCoder): GPT-2 with matrices as `[out, in]` and, usually, one key and value head.

use super::gpt2::{names_as, translate_shared};
use super::{Family, Fields, How, NameMap};
use crate::Result;
use crate::config::Config;

/// The family.
pub const FAMILY: Family = Family {
    name: "gpt_bigcode",
    kinds: &[("gpt_bigcode", "GPTBigCodeForCausalLM")],
    translate,
    names,
};

/// How the softmax is rounded (here f32 in any case), and settings of other runners.
const HARMLESS: &[&str] = &[
    "attention_softmax_in_fp32",
    "inference_runner",
    "max_batch_size",
    "max_sequence_length",
    "n_ctx",
    "pad_key_length",
    "pre_allocate_kv_cache",
    "scale_attention_softmax_in_fp32",
    "validate_runner_input",
];

fn translate(f: &mut Fields, c: &mut Config) -> Result<()> {
    translate_shared(f, c, "gelu_pytorch_tanh")?;
    let a = c.attention.get_or_insert_default();
    let mut multi_query = a.n_kv_heads == Some(1);
    f.flag("multi_query", &mut multi_query, true)?;
    a.n_kv_heads = multi_query.then_some(1);
    f.implied("num_key_value_heads", a.n_kv_heads.unwrap_or(a.n_heads), "multi_query")?;
    f.done(HARMLESS)
}

fn names(config: &Config) -> NameMap {
    // Without multi_query the rows of q, k and v alternate head by head.
    let qkv = match &config.attention {
        Some(attention) if attention.n_kv_heads.is_none() => How::ByHead(attention.n_heads),
        _ => How::Same,
    };
    names_as(config, qkv, How::Same)
}
