//! The operators as seen by the operator runner.

use super::{
    AttentionOptions, CacheOptions, Fp8, Fp8Scales, KvCache, NewKeys, Rotary, attention,
    attention_combine, attention_kvcache, attention_varlen,
};
use danaus_tensor::registry::{Arg, Args, Attr, Kind, OpSpec};
use danaus_tensor::{DType, Error, Result, Tensor};

const MASK: &[DType] = &[DType::U8, DType::Bool];

const fn mask(name: &'static str, shape: &'static str) -> Arg {
    Arg { name, shape, dtypes: MASK, optional: true }
}

const fn operand(name: &'static str, shape: &'static str) -> Arg {
    const FLOATS: &[DType] = &[DType::F64, DType::F32, DType::BF16, DType::F16];
    Arg { name, shape, dtypes: FLOATS, optional: false }
}

const CAUSAL: Attr = Attr::new("causal", Kind::Bool, "false", "hide keys right of the diagonal");
const LEFT: Attr =
    Attr::new("window_left", Kind::Int, "-1", "keys visible left of the diagonal, -1 is all");
const RIGHT: Attr =
    Attr::new("window_right", Kind::Int, "-1", "keys visible right of the diagonal, -1 is all");
const SCALE: Attr =
    Attr::new("softmax_scale", Kind::Float, "", "factor of q . k; absent is head_dim^-1/2");
const SOFTCAP: Attr =
    Attr::new("softcap", Kind::Float, "0", "s -> softcap tanh(s / softcap); 0 is off");

/// `attention`, `attention_kvcache`, `attention_combine`.
pub const SPECS: &[OpSpec] = &[ATTENTION, KVCACHE, COMBINE];

const ATTENTION: OpSpec = OpSpec {
    name: "attention",
    summary: "softmax attention, dense or packed; causal, windows, biases, block masks, dropout",
    inputs: &[
        operand("q", "batch q_len heads head_dim | total_q heads head_dim"),
        operand("k", "batch k_len kv_heads head_dim | total_k kv_heads head_dim"),
        operand("v", "batch k_len kv_heads value_dim | total_k kv_heads value_dim"),
        Arg::int("cu_seqlens_q", "batch+1").optional(),
        Arg::int("cu_seqlens_k", "batch+1").optional(),
        Arg::float("alibi_slopes", "heads | batch heads").optional(),
        Arg::float("sinks", "heads").optional(),
        mask("block_mask", "[batch] [heads] rows columns"),
        mask("keep", "batch heads q_len k_len"),
        Arg::int("q_lens", "batch").optional(),
        Arg::int("k_lens", "batch").optional(),
        Arg::float("fp8_signs", "head_dim").optional(),
    ],
    attributes: &[
        CAUSAL,
        LEFT,
        RIGHT,
        SCALE,
        SOFTCAP,
        Attr::new("block_size", Kind::Int, "", "rows and columns of a block of block_mask"),
        Attr::new("p_drop", Kind::Float, "0", "drop probability in [0, 1)"),
        Attr::new("seed", Kind::Int, "0", "seed of the dropout mask"),
        Attr::new("dropout_offset", Kind::Int, "0", "first counter word of the dropout mask"),
        Attr::new("fp8", Kind::Text, "", "products in e4m3: tile (a scale a tile) or head"),
        Attr::new(
            "fp8_tile",
            Kind::Ints,
            "",
            "rows of a tile of q and of k; absent is the kernels'",
        ),
    ],
    outputs: &["out", "lse"],
    call: call_attention,
};

const KVCACHE: OpSpec = OpSpec {
    name: "attention_kvcache",
    summary: "decoding: rotate, append to the cache, attend to it; contiguous or paged",
    inputs: &[
        Arg::float("q", "batch q_len heads head_dim"),
        Arg::float(
            "k_cache",
            "rows capacity kv_heads head_dim | pages page_size kv_heads head_dim",
        ),
        Arg::float("v_cache", "as k_cache, value_dim"),
        Arg::int("cache_seqlens", "batch"),
        Arg::float("k_new", "batch new kv_heads head_dim").optional(),
        Arg::float("v_new", "batch new kv_heads value_dim").optional(),
        Arg::int("cache_batch_idx", "batch").optional(),
        Arg::int("cache_leftpad", "batch").optional(),
        Arg::int("page_table", "batch pages").optional(),
        Arg::float("rotary_cos", "positions rotary_dim/2").optional(),
        Arg::float("rotary_sin", "positions rotary_dim/2").optional(),
    ],
    attributes: &[
        CAUSAL,
        LEFT,
        RIGHT,
        SCALE,
        SOFTCAP,
        Attr::new("rotary_interleaved", Kind::Bool, "false", "pair neighbours, not halves"),
        Attr::new("num_splits", Kind::Int, "0", "parts of the keys, 0 chooses, at most 256"),
    ],
    outputs: &["out", "lse", "k_cache", "v_cache"],
    call: call_kvcache,
};

const COMBINE: OpSpec = OpSpec {
    name: "attention_combine",
    summary: "merges attention over parts of the keys by their log-sum-exps",
    inputs: &[
        Arg::float("out_partial", "parts batch q_len heads value_dim"),
        Arg::float("lse_partial", "parts batch heads q_len"),
    ],
    attributes: &[],
    outputs: &["out", "lse"],
    call: |args| {
        let (out, lse) = attention_combine(args.input("out_partial")?, args.input("lse_partial")?)?;
        Ok(vec![Some(out), Some(lse)])
    },
};

/// A bound of the window; -1 is none.
fn window(op: &'static str, args: &Args, name: &'static str) -> Result<Option<usize>> {
    match args.int(name)?.unwrap_or(-1) {
        -1 => Ok(None),
        bound => count(op, name, bound, "-1 (unbounded), 0 or more").map(Some),
    }
}

fn count(op: &'static str, name: &'static str, value: i64, valid: &str) -> Result<usize> {
    usize::try_from(value).map_err(|_| Error::argument(op, name, value, valid))
}

/// The cap; 0 is off.
fn softcap(args: &Args) -> Result<Option<f64>> {
    Ok(args.float("softcap")?.filter(|&cap| cap != 0.0))
}

/// Products in eight bits; rotated when signs are given.
fn fp8(op: &'static str, args: &Args) -> Result<Option<Fp8>> {
    let (signs, tile) = (args.optional("fp8_signs").cloned(), args.ints("fp8_tile")?);
    let scales = match args.text("fp8") {
        Some("tile") => Fp8Scales::Tile,
        Some("head") => Fp8Scales::Head,
        Some(other) => return Err(Error::argument(op, "fp8", other, "tile, head")),
        None if signs.is_some() || tile.is_some() => {
            return Err(Error::argument(
                op,
                "fp8",
                "missing",
                "tile or head, with fp8_signs or fp8_tile",
            ));
        }
        None => return Ok(None),
    };
    let tile = match tile.as_deref() {
        None => None,
        Some(&[q, k]) => {
            Some([count(op, "fp8_tile", q, "1 or more")?, count(op, "fp8_tile", k, "1 or more")?])
        }
        Some(other) => {
            return Err(Error::argument(op, "fp8_tile", format!("{other:?}"), "two numbers"));
        }
    };
    Ok(Some(Fp8 { scales, signs, tile }))
}

fn call_attention(args: &Args) -> Result<Vec<Option<Tensor>>> {
    let op = "attention";
    let offset = args.int("dropout_offset")?.unwrap_or(0);
    let block_size = args.int("block_size")?;
    let options = AttentionOptions {
        causal: args.bool("causal")?,
        window_left: window(op, args, "window_left")?,
        window_right: window(op, args, "window_right")?,
        softmax_scale: args.float("softmax_scale")?,
        softcap: softcap(args)?,
        alibi_slopes: args.optional("alibi_slopes").cloned(),
        sinks: args.optional("sinks").cloned(),
        block_mask: args.optional("block_mask").cloned(),
        block_size: block_size.map(|n| count(op, "block_size", n, "1 or more")).transpose()?,
        keep: args.optional("keep").cloned(),
        q_lens: args.optional("q_lens").cloned(),
        k_lens: args.optional("k_lens").cloned(),
        p_drop: args.float("p_drop")?.unwrap_or(0.0),
        seed: args.int("seed")?.unwrap_or(0) as u64,
        dropout_offset: u32::try_from(offset).map_err(|_| {
            Error::argument(op, "dropout_offset", offset, "a 32-bit unsigned number")
        })?,
        fp8: fp8(op, args)?,
    };
    let [q, k, v] = [args.input("q")?, args.input("k")?, args.input("v")?];
    let bounds = (args.optional("cu_seqlens_q"), args.optional("cu_seqlens_k"));
    let (out, lse) = match bounds {
        (Some(cu_q), Some(cu_k)) => attention_varlen([q, k, v], cu_q, cu_k, &options)?,
        (None, None) => attention(q, k, v, &options)?,
        (given, _) => {
            let missing = if given.is_some() { "cu_seqlens_k" } else { "cu_seqlens_q" };
            return Err(Error::argument(op, missing, "missing", "given with the other one"));
        }
    };
    Ok(vec![Some(out), Some(lse)])
}

fn call_kvcache(args: &Args) -> Result<Vec<Option<Tensor>>> {
    let op = "attention_kvcache";
    let both = |a: &'static str, b: &'static str| match (args.optional(a), args.optional(b)) {
        (Some(first), Some(second)) => Ok(Some((first.clone(), second.clone()))),
        (None, None) => Ok(None),
        (first, _) => {
            let missing = if first.is_some() { b } else { a };
            Err(Error::argument(op, missing, "missing", format!("{a} and {b} together")))
        }
    };
    let interleaved = args.bool("rotary_interleaved")?;
    let rotary =
        both("rotary_cos", "rotary_sin")?.map(|(cos, sin)| Rotary { cos, sin, interleaved });
    let splits = args.int("num_splits")?.unwrap_or(0);
    let options = CacheOptions {
        cache_seqlens: args.input("cache_seqlens")?.clone(),
        cache_batch_idx: args.optional("cache_batch_idx").cloned(),
        cache_leftpad: args.optional("cache_leftpad").cloned(),
        page_table: args.optional("page_table").cloned(),
        rotary,
        causal: args.bool("causal")?,
        window_left: window(op, args, "window_left")?,
        window_right: window(op, args, "window_right")?,
        softmax_scale: args.float("softmax_scale")?,
        softcap: softcap(args)?,
        num_splits: count(op, "num_splits", splits, "0 to 256")?,
        on_device: None,
    };
    let mut cache =
        KvCache { k: args.input("k_cache")?.detach(), v: args.input("v_cache")?.detach() };
    let new = both("k_new", "v_new")?;
    let new = new.as_ref().map(|(k, v)| NewKeys { k, v });
    let (out, lse) = attention_kvcache(args.input("q")?, &mut cache, new, &options)?;
    Ok(vec![Some(out), Some(lse), Some(cache.k), Some(cache.v)])
}
