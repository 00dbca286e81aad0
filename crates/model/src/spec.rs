//! Whole models as operators: `danaus op run lm.mamba2` on parameters under their published names.

use crate::config::{Config, NormConfig};
use crate::decoder::{Compute, Decoder};
use danaus_kernel::ops::cross_entropy::{Options, cross_entropy};
use danaus_matrix::SeqBatch;
use danaus_matrix::mixer::Mamba2Config;
use danaus_tensor::registry::{Arg, Args, Attr, Kind, OpSpec};
use danaus_tensor::{DType, Error, ParamBuilder, Result, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

const OP: &str = "lm.mamba2";
/// Target of the last token of a row, which predicts nothing.
const IGNORE: i64 = -100;

/// `lm.mamba2`.
pub const SPECS: &[OpSpec] = &[OpSpec {
    name: OP,
    summary: "a Mamba-2 language model: logits, and the mean loss of the next token",
    inputs: &[
        Arg::int("input_ids", "batch seqlen"),
        Arg::float(
            "param.*",
            "backbone.embedding.weight, backbone.layers.N.mixer.in_proj.weight ..",
        ),
    ],
    attributes: &[
        Attr::new("d_state", Kind::Int, "128", "width of a head's state"),
        Attr::new("head_dim", Kind::Int, "64", "width of a head"),
        Attr::new("expand", Kind::Int, "2", "inner width over d_model"),
        Attr::new("n_groups", Kind::Int, "1", "groups of heads that share B and C"),
        Attr::new("chunk_size", Kind::Int, "256", "tokens of a chunk at most"),
        Attr::new("norm_eps", Kind::Float, "1e-5", "added to the mean square in the norms"),
    ],
    outputs: &["logits", "loss"],
    call,
}];

/// Our name of a published one.
fn own_name(published: &str) -> String {
    match published.strip_prefix("backbone.").unwrap_or(published) {
        "embedding.weight" | "embeddings.weight" => "embedding.weight".to_string(),
        "norm_f.weight" => "norm.weight".to_string(),
        "lm_head.weight" => "head.weight".to_string(),
        layer => layer.to_string(),
    }
}

fn config(args: &Args, params: &BTreeMap<String, Tensor>, length: usize) -> Result<Config> {
    let count = |name: &'static str| {
        let given = args.int(name)?.unwrap_or(0);
        let valid = "a whole number from 1";
        let size = usize::try_from(given).ok().filter(|&size| size > 0);
        size.ok_or_else(|| Error::argument(OP, name, given, valid))
    };
    let shape = |name: &str| params.get(name).map(Tensor::dims);
    let Some(&[vocab_size, d_model]) = shape("embedding.weight") else {
        let valid = "a tensor [vocab, d_model]";
        return Err(Error::argument(OP, "param.backbone.embedding.weight", "missing", valid));
    };
    let layer_of = |name: &String| name.strip_prefix("layers.")?.split('.').next()?.parse().ok();
    let depth = params.keys().filter_map(layer_of).max().map_or(0, |last: usize| last + 1);
    let taps = shape("layers.0.mixer.conv1d.weight").and_then(|dims| dims.last().copied());
    let mamba2 = Mamba2Config {
        d_state: count("d_state")?,
        head_dim: count("head_dim")?,
        expand: count("expand")?,
        n_groups: count("n_groups")?,
        conv_width: taps.unwrap_or(4),
        chunk_size: count("chunk_size")?,
        rms_norm: params.contains_key("layers.0.mixer.norm.weight"),
        ..Mamba2Config::default()
    };
    let eps = args.float("norm_eps")?.unwrap_or(1e-5);
    // A layer that is missing in between is complained about by name.
    let layers = "M".repeat(depth.min(params.len()));
    Ok(Config {
        max_positions: length.max(1),
        mamba2: Some(mamba2),
        norm: NormConfig { eps, ..NormConfig::default() },
        tied_head: !params.contains_key("head.weight"),
        ..Config::bare(vocab_size, d_model, layers)
    })
}

fn call(args: &Args) -> Result<Vec<Option<Tensor>>> {
    let ids = args.input("input_ids")?;
    let &[batch, length] = ids.dims() else {
        return Err(Error::shape(OP, "input_ids", ids.shape(), "[batch, seqlen]"));
    };
    let group = args.group("param.").into_iter();
    let params: BTreeMap<String, Tensor> =
        group.map(|(name, tensor)| (own_name(&name), tensor)).collect();
    let config = config(args, &params, length)?;
    let dtype = params.get("embedding.weight").map_or(DType::F32, Tensor::dtype);
    let builder = ParamBuilder::borrow(Arc::new(params), dtype, ids.device());
    let compute = Compute { device: ids.device(), ..Compute::new(dtype) };
    let decoder = Decoder::build(&builder, &config, compute).map_err(plain)?;
    if let Some(name) = builder.unused().first() {
        return Err(Error::argument(OP, "param", name, "the parameters of Mamba-2 layers"));
    }
    let ids = ids.to_dtype(DType::I64)?.to_vec::<i64>()?;
    let valid = || format!("0..{} (vocab)", config.vocab_size);
    let narrow =
        |&id: &i64| u32::try_from(id).map_err(|_| Error::argument(OP, "input_ids", id, valid()));
    let tokens: Vec<u32> = ids.iter().map(narrow).collect::<Result<_>>()?;
    let packed = SeqBatch::equal(batch, length)?;
    let logits = decoder.logits(&tokens, &packed).map_err(plain)?;
    let is_last = |index: usize| (index + 1).is_multiple_of(length);
    let target = |index: usize| if is_last(index) { IGNORE } else { ids[index + 1] };
    let targets: Vec<i64> = (0..ids.len()).map(target).collect();
    let targets = Tensor::from_slice(&targets, [targets.len()], &logits.device())?;
    let (loss, _) = cross_entropy(&logits, &targets, Options::default())?;
    Ok(vec![Some(logits.reshape([batch, length, config.vocab_size])?), Some(loss)])
}

/// The operator runner speaks the tensor room's error type.
fn plain(error: crate::Error) -> Error {
    match error {
        crate::Error::Tensor(error) => error,
        crate::Error::Argument { arg, given, valid } => Error::argument(OP, arg, given, valid),
        other => Error::argument(OP, "param", other, "parameters that fit the attributes"),
    }
}
