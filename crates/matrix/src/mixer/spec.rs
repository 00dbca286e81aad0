//! Mixers as operators: `danaus op run block.mamba2` with parameters as inputs.

use super::{
    Attention, AttentionConfig, LinearAttention, LinearAttentionConfig, LinearAttentionKind,
    Mamba1, Mamba1Config, Mamba2, Mamba2Config, SequenceMixer,
};
use crate::SeqBatch;
use crate::structured::Format;
use danaus_tensor::registry::{Arg, Args, Attr, Kind, OpSpec};
use danaus_tensor::{Error, ParamBuilder, Result, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

const U: Arg = Arg::float("u", "batch seqlen d_model");

/// `block.attention`, `block.linear_attention`, `block.mamba1`, `block.mamba2`.
pub const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "block.attention",
        summary: "causal softmax attention with its projections",
        inputs: &[
            U,
            Arg::float("param.qkv.weight", "(n_heads+2*n_kv_heads)*head_dim d_model"),
            Arg::float("param.out.weight", "d_model n_heads*head_dim"),
            Arg::float("param.qkv.bias", "(n_heads+2*n_kv_heads)*head_dim").optional(),
            Arg::float("param.out.bias", "d_model").optional(),
            Arg::float("param.conv1d.weight", "(n_heads+2*n_kv_heads)*head_dim 1 width").optional(),
            Arg::float("param.conv1d.bias", "(n_heads+2*n_kv_heads)*head_dim").optional(),
            Arg::float("param.q_norm.weight", "head_dim").optional(),
            Arg::float("param.k_norm.weight", "head_dim").optional(),
        ],
        attributes: &[
            Attr::new("n_heads", Kind::Int, "1", "query heads"),
            Attr::new("n_kv_heads", Kind::Int, "", "key and value heads, default n_heads"),
            Attr::new("head_dim", Kind::Int, "", "default d_model / n_heads"),
            Attr::new("rope_theta", Kind::Float, "", "base of the rotary angles, absent: none"),
            Attr::new("window", Kind::Int, "", "keys visible to the left, absent: all"),
            Attr::new("softcap", Kind::Float, "", "cap of the scores, absent: none"),
            Attr::new("softmax_scale", Kind::Float, "", "default head_dim^-1/2"),
            Attr::new("rotary_dim", Kind::Int, "", "entries of a head that turn, default all"),
            Attr::new("rope_interleaved", Kind::Bool, "false", "turn neighbours and not halves"),
            Attr::new("qk_norm_eps", Kind::Float, "1e-6", "eps of the norms of q and k"),
        ],
        outputs: &["y"],
        call: call_attention,
    },
    OpSpec {
        name: "block.mamba1",
        summary: "the Mamba-1 block: projection, convolution, selection, gated scan, projection",
        inputs: &[
            U,
            Arg::float("param.in_proj.weight", "2*channels d_model"),
            Arg::float("param.in_proj.bias", "2*channels").optional(),
            Arg::float("param.conv1d.weight", "channels 1 width"),
            Arg::float("param.conv1d.bias", "channels").optional(),
            Arg::float("param.x_proj.weight", "dt_rank+2*d_state channels"),
            Arg::float("param.dt_proj.weight", "channels dt_rank"),
            Arg::float("param.dt_proj.bias", "channels"),
            Arg::float("param.A_log", "channels d_state"),
            Arg::float("param.D", "channels"),
            Arg::float("param.out_proj.weight", "d_model channels"),
            Arg::float("param.out_proj.bias", "d_model").optional(),
        ],
        attributes: &[],
        outputs: &["y"],
        call: call_mamba1,
    },
    OpSpec {
        name: "block.mamba2",
        summary: "the Mamba-2 block: projection, convolution, scan, gated norm, projection",
        inputs: &[
            U,
            Arg::float("param.in_proj.weight", "projected d_model"),
            Arg::float("param.in_proj.bias", "projected").optional(),
            Arg::float("param.conv1d.weight", "channels 1 width"),
            Arg::float("param.conv1d.bias", "channels").optional(),
            Arg::float("param.dt_bias", "n_heads"),
            Arg::float("param.A_log", "n_heads"),
            Arg::float("param.D", "n_heads"),
            Arg::float("param.norm.weight", "d_ssm").optional(),
            Arg::float("param.out_proj.weight", "d_model d_inner"),
            Arg::float("param.out_proj.bias", "d_model").optional(),
        ],
        attributes: &[
            Attr::new("d_state", Kind::Int, "128", "width of a head's state"),
            Attr::new("head_dim", Kind::Int, "64", "width of a head"),
            Attr::new("expand", Kind::Int, "2", "inner width over d_model"),
            Attr::new("n_groups", Kind::Int, "1", "groups of heads that share B and C"),
            Attr::new("d_ssm", Kind::Int, "", "features that are scanned, default all"),
            Attr::new("chunk_size", Kind::Int, "256", "tokens of a chunk at most"),
            Attr::new("norm_eps", Kind::Float, "1e-5", "added to the norm's mean square"),
            Attr::new("norm_before_gate", Kind::Bool, "false", "normalise before the gate"),
            Attr::new("dt_limit", Kind::Floats, "", "low,high: bounds of the step size"),
        ],
        outputs: &["y"],
        call: call_mamba2,
    },
    OpSpec {
        name: "block.linear_attention",
        summary: "linear attention, RetNet or gated linear attention with its projections",
        inputs: &[
            U,
            Arg::float(
                "param.in_proj.weight",
                "2*n_heads*head_dim+values[+values][+n_heads] d_model",
            ),
            Arg::float("param.out_proj.weight", "d_model values"),
            Arg::float("param.norm.weight", "values").optional(),
            Arg::float("param.decay.bias", "n_heads").optional(),
        ],
        attributes: &[
            Attr::new("kind", Kind::Text, "linear", "linear, retnet or gated"),
            Attr::new("n_heads", Kind::Int, "1", "heads"),
            Attr::new("head_dim", Kind::Int, "", "default d_model / n_heads"),
            Attr::new("norm_eps", Kind::Float, "1e-5", "added to the norm's mean square"),
        ],
        outputs: &["y"],
        call: call_linear_attention,
    },
];

fn count(args: &Args, op: &'static str, name: &'static str) -> Result<Option<usize>> {
    let Some(given) = args.int(name)? else { return Ok(None) };
    let valid = "a whole number from 0";
    usize::try_from(given).map(Some).map_err(|_| Error::argument(op, name, given, valid))
}

/// The parameters given as inputs, and the shape of `u`.
fn inputs(args: &Args, spec: &OpSpec) -> Result<(ParamBuilder, Tensor, [usize; 3])> {
    let u = args.input("u")?;
    let &[batch, length, d_model] = u.dims() else {
        return Err(Error::shape(spec.name, "u", u.shape(), "[batch, seqlen, d_model]"));
    };
    let named = spec.inputs.iter().filter_map(|arg| {
        Some((arg.name.strip_prefix("param.")?.to_string(), args.optional(arg.name)?.clone()))
    });
    let source: BTreeMap<String, Tensor> = named.collect();
    let params = ParamBuilder::borrow(Arc::new(source), u.dtype(), u.device());
    Ok((params, u.reshape([batch * length, d_model])?, [batch, length, d_model]))
}

fn run(
    mixer: &dyn SequenceMixer,
    u: &Tensor,
    [batch, length, d_model]: [usize; 3],
) -> Result<Vec<Option<Tensor>>> {
    let y = mixer.forward(u, &SeqBatch::equal(batch, length)?, None)?;
    Ok(vec![Some(y.reshape([batch, length, d_model])?)])
}

fn call_attention(args: &Args) -> Result<Vec<Option<Tensor>>> {
    const OP: &str = "block.attention";
    let (params, u, shape) = inputs(args, &SPECS[0])?;
    let config = AttentionConfig {
        n_heads: count(args, OP, "n_heads")?.unwrap_or(1),
        n_kv_heads: count(args, OP, "n_kv_heads")?,
        head_dim: count(args, OP, "head_dim")?,
        rope_theta: args.float("rope_theta")?,
        rope_scaling: None,
        rotary_dim: count(args, OP, "rotary_dim")?,
        rope_interleaved: args.bool("rope_interleaved")?,
        window: count(args, OP, "window")?,
        softcap: args.float("softcap")?,
        softmax_scale: args.float("softmax_scale")?,
        bias: args.optional("param.qkv.bias").is_some(),
        out_bias: Some(args.optional("param.out.bias").is_some()),
        conv_width: match args.optional("param.conv1d.weight") {
            Some(_) => Some(last_dim(args, "param.conv1d.weight")?),
            None => None,
        },
        qk_norm_eps: match args.optional("param.q_norm.weight") {
            Some(_) => Some(args.float("qk_norm_eps")?.unwrap_or(1e-6)),
            None => None,
        },
    };
    let mixer = Attention::build(&params, &config, shape[2], Format::Dense, shape[1])?;
    run(&mixer, &u, shape)
}

fn last_dim(args: &Args, name: &str) -> Result<usize> {
    Ok(args.input(name)?.dims().last().copied().unwrap_or(0))
}

/// All sizes follow from the parameters.
fn call_mamba1(args: &Args) -> Result<Vec<Option<Tensor>>> {
    let (params, u, shape) = inputs(args, &SPECS[1])?;
    let channels = args.input("param.D")?.elem_count();
    if channels == 0 || channels % shape[2].max(1) != 0 {
        let valid = format!("a multiple of d_model = {}", shape[2]);
        return Err(Error::argument("block.mamba1", "channels (of param.D)", channels, valid));
    }
    let config = Mamba1Config {
        d_state: last_dim(args, "param.A_log")?,
        expand: channels / shape[2],
        dt_rank: Some(last_dim(args, "param.dt_proj.weight")?),
        conv_width: last_dim(args, "param.conv1d.weight")?,
        conv_bias: args.optional("param.conv1d.bias").is_some(),
        bias: args.optional("param.in_proj.bias").is_some(),
    };
    let mixer = Mamba1::build(&params, &config, shape[2], Format::Dense, 1.0)?;
    run(&mixer, &u, shape)
}

fn dt_limit(args: &Args, op: &'static str) -> Result<(f64, Option<f64>)> {
    match args.floats("dt_limit")?.as_deref() {
        None => Ok((0.0, None)),
        Some(&[low, high]) => Ok((low, Some(high))),
        Some(other) => {
            let given = format!("{other:?}");
            Err(Error::argument(op, "dt_limit", given, "two numbers: low,high"))
        }
    }
}

fn call_mamba2(args: &Args) -> Result<Vec<Option<Tensor>>> {
    const OP: &str = "block.mamba2";
    let (params, u, shape) = inputs(args, &SPECS[2])?;
    let default = Mamba2Config::default();
    let config = Mamba2Config {
        d_state: count(args, OP, "d_state")?.unwrap_or(default.d_state),
        head_dim: count(args, OP, "head_dim")?.unwrap_or(default.head_dim),
        expand: count(args, OP, "expand")?.unwrap_or(default.expand),
        n_groups: count(args, OP, "n_groups")?.unwrap_or(default.n_groups),
        d_ssm: count(args, OP, "d_ssm")?,
        conv_width: last_dim(args, "param.conv1d.weight")?,
        chunk_size: count(args, OP, "chunk_size")?.unwrap_or(default.chunk_size),
        rms_norm: args.optional("param.norm.weight").is_some(),
        norm_eps: args.float("norm_eps")?.unwrap_or(default.norm_eps),
        norm_before_gate: args.bool("norm_before_gate")?,
        dt_limit: dt_limit(args, OP)?,
        conv_bias: args.optional("param.conv1d.bias").is_some(),
        bias: args.optional("param.in_proj.bias").is_some(),
    };
    let mixer = Mamba2::build(&params, &config, shape[2], Format::Dense, 1.0)?;
    run(&mixer, &u, shape)
}

/// The width of the values follows from `param.out_proj.weight`.
fn call_linear_attention(args: &Args) -> Result<Vec<Option<Tensor>>> {
    const OP: &str = "block.linear_attention";
    let (params, u, shape) = inputs(args, &SPECS[3])?;
    let name = args.text("kind").unwrap_or("linear");
    let kind = LinearAttentionKind::from_short(name)
        .ok_or_else(|| Error::argument(OP, "kind", name, "linear, retnet or gated"))?;
    let n_heads = count(args, OP, "n_heads")?.unwrap_or(1);
    let values = last_dim(args, "param.out_proj.weight")?;
    if n_heads == 0 || !values.is_multiple_of(n_heads) {
        let valid = format!("a divisor of the {values} values of param.out_proj.weight");
        return Err(Error::argument(OP, "n_heads", n_heads, valid));
    }
    let config = LinearAttentionConfig {
        n_heads,
        head_dim: count(args, OP, "head_dim")?,
        value_dim: Some(values / n_heads),
        norm_eps: args.float("norm_eps")?.unwrap_or(1e-5),
    };
    let gains = (1.0, shape[1]);
    let mixer = LinearAttention::build(&params, kind, &config, shape[2], Format::Dense, gains)?;
    run(&mixer, &u, shape)
}
