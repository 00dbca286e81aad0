//! A GGUF file as a model: its metadata as the settings of a family.

use super::{Opened, SpecialTokens};
use crate::families;
use crate::formats::dequantized::{Dequantized, block_name};
use crate::formats::gguf::{GgufFile, GgufSource, Value, tokenizer};
use crate::{Error, Result};
use danaus_tensor::DType;
use danaus_tensor::param::TensorSource;
use serde_json::{Map, Value as Json};
use std::path::Path;
use std::sync::Arc;

/// Divisors of rotary frequencies, a tensor and not metadata.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";
const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// Recognises a GGUF file; with `dequantize`, its weights are read as f32.
///
/// # Errors
/// As [`GgufFile::open`]; an unknown architecture, a setting that is not implemented.
pub(super) fn open(path: &Path, dequantize: bool) -> Result<Opened> {
    let source = Arc::new(GgufSource::open(path)?);
    let file = source.file().clone();
    let wrong = |error: Error| match error {
        Error::Field { .. } | Error::Argument { .. } => {
            Error::Checkpoint { path: path.to_path_buf(), detail: error.to_string() }
        }
        other => other,
    };
    let family = families::recognise_gguf(file.architecture()?).map_err(wrong)?;
    let fields = settings(&file, source.as_ref())?;
    let quantized = source.names().iter().any(|name| block_name(name).is_some());
    let tensors: Arc<dyn TensorSource> =
        if dequantize { Arc::new(Dequantized::new(source)) } else { source };
    let mut opened = Opened::translated(path, family, &fields, tensors).map_err(wrong)?;
    opened.quantized = quantized;
    match tokenizer::read(&file) {
        Ok(None) => {}
        Ok(Some(described)) => {
            opened.special = SpecialTokens {
                bos: described.bos,
                eos: described.eos.into_iter().collect(),
                pad: None,
            };
            opened.own_tokenizer =
                Some(described.into_tokenizer().map_err(|error| error.to_string()));
        }
        // A model can be looked at and converted without its tokenizer; asking for it tells why not.
        Err(Error::Checkpoint { detail, .. }) => opened.own_tokenizer = Some(Err(detail)),
        Err(error) => opened.own_tokenizer = Some(Err(error.to_string())),
    }
    Ok(opened)
}

/// The keys of the architecture without its name, and the facts that GGUF keeps elsewhere.
fn settings(file: &GgufFile, source: &GgufSource) -> Result<Map<String, Json>> {
    let prefix = format!("{}.", file.architecture()?);
    let mut fields = Map::new();
    for (key, value) in file.metadata() {
        if let Some(field) = key.strip_prefix(&prefix) {
            fields.insert(field.to_string(), json(value));
        }
    }
    let rows = file.info(EMBEDDING).map(|info| info.shape()[0]);
    fields.insert("vocab_size".into(), rows.into());
    fields.insert("tied".into(), file.info(HEAD).is_none().into());
    for (fact, tensor) in
        [("qkv_bias", "blk.0.attn_q.bias"), ("output_bias", "blk.0.attn_output.bias")]
    {
        fields.insert(fact.into(), file.info(tensor).is_some().into());
    }
    if let Some(factors) = source.tensor(ROPE_FACTORS)? {
        let factors = factors.to_dtype(DType::F64)?.to_vec::<f64>()?;
        fields.insert("rope_factors".into(), factors.into());
    }
    Ok(fields)
}

/// A value as JSON; numbers that JSON does not have become null, which families refuse.
fn json(value: Value<'_>) -> Json {
    if let Some(array) = value.as_array() {
        return array.iter().map(json).collect();
    }
    let integer = value.as_integer().map(|integer| match u64::try_from(integer) {
        Ok(unsigned) => Json::from(unsigned),
        Err(_) => Json::from(integer as i64),
    });
    integer
        .or(value.as_float().map(short).map(Json::from))
        .or(value.as_bool().map(Json::from))
        .unwrap_or_else(|| Json::from(value.as_str().unwrap_or_default()))
}

/// The f64 that is written like an f32: 1e-5 and not 9.999999747378752e-6.
fn short(value: f64) -> f64 {
    match (value as f32) as f64 == value {
        true => (value as f32).to_string().parse().unwrap_or(value),
        false => value,
    }
}
