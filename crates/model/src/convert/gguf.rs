//! A model as a GGUF file: names, settings and tokenizer in its terms, weights in a type of its.
//!
//! Norms, biases, convolutions and state-space parameters are f32, as other writers of the format have
//! them. Matrices, the embedding and the head have the type asked for; a matrix whose rows are no
//! multiple of that type's block falls back to q8_0 and then to f16, and the summary says which. With
//! q4_0 and q4_k a tied embedding, and a head of its own, is q8_0: their errors go straight into the
//! logits, and readers of the format do the same with more bits.

use super::Summary;
use crate::checkpoint::{Opened, ROPE_FACTORS, part_sizes};
use crate::families::{self, Family, NameMap, UNBOUNDED, stored};
use crate::formats::gguf::tokenizer::{self, Described};
use crate::formats::gguf::{MetaValue, TensorPlan, TensorType, ValueType, write as write_file};
use crate::{Error, Result};
use danaus_kernel::ops::quantized::{BlockType, quantize};
use danaus_matrix::mixer::{Mamba2Config, RopeScaling};
use danaus_tensor::{DType, Device, Tensor};
use serde_json::{Map, Value};
use std::path::Path;

/// What matrices may be written as.
pub(super) const TYPES: &[&str] = &["f32", "bf16", "f16", "q8_0", "q4_0", "q4_k"];
/// Architectures of the format that we write.
const ARCHITECTURES: [&str; 3] = ["llama", "mamba", "mamba2"];
/// Settings of a family that the format does not keep in its metadata.
const ELSEWHERE: [&str; 4] = ["tied", "qkv_bias", "output_bias", "rope_factors"];
/// Names of the tables whose errors go into the logits, or come from the input, unmixed.
const TABLES: [&str; 2] = ["token_embd.weight", "output.weight"];

/// Where a tensor of the file comes from.
struct Item {
    ours: String,
    /// Which of the parts, where one of ours becomes several.
    part: usize,
}

/// Writes the file.
///
/// # Errors
/// When the format has no architecture for the model or cannot describe its tokenizer; values that do
/// not fit into the type; whatever reading or writing reports.
pub(super) fn write(opened: &Opened, out: &Path, kind: TensorType) -> Result<Summary> {
    let (architecture, family, fields) = spell(opened)?;
    let map = family.names(opened.config());
    let source = opened.tensors();
    let fetch = |ours: &str| -> Result<Vec<(String, Tensor)>> {
        let missing = || Error::argument("tensor", ours, "a tensor of the source");
        let tensor = source.tensor(ours)?.ok_or_else(missing)?;
        parts_of(opened, &map, ours, &tensor)
    };
    let (mut items, mut plans, mut exceptions) = (Vec::new(), Vec::new(), Vec::new());
    for ours in names(opened) {
        for (part, (name, tensor)) in fetch(&ours)?.into_iter().enumerate() {
            let (chosen, why) = choose(&name, tensor.dims(), kind, opened.config().tied_head);
            exceptions.extend(why.map(|why| format!("{name} as {}: {why}", chosen.name())));
            plans.push(TensorPlan { name, shape: tensor.dims().to_vec(), kind: chosen });
            items.push(Item { ours: ours.clone(), part });
        }
    }
    let factors = fields.get("rope_factors").and_then(Value::as_array).cloned().unwrap_or_default();
    if !factors.is_empty() {
        let (name, kind) = (ROPE_FACTORS.to_string(), TensorType::Plain(DType::F32));
        plans.push(TensorPlan { name, shape: vec![factors.len()], kind });
    }
    let metadata = metadata(opened, &architecture, &fields, kind, out)?;
    write_file(out, &metadata, &plans, |number, plan| match items.get(number) {
        Some(item) => {
            let (_, tensor) = fetch(&item.ours)?.swap_remove(item.part);
            stored_as(&tensor, plan.kind)
        }
        None => {
            let factors: Vec<f32> =
                factors.iter().map(|factor| factor.as_f64().unwrap_or(1.0) as f32).collect();
            Ok(Tensor::from_slice(&factors, [factors.len()], &Device::Cpu)?)
        }
    })?;
    let bytes = std::fs::metadata(out).map_err(|error| danaus_tensor::Error::io(out, error))?.len();
    Ok(Summary {
        architecture,
        tensors: plans.len(),
        bytes,
        elements: kind.name().to_string(),
        tokenizer: opened.tokenizer()?.is_some(),
        exceptions,
    })
}

/// Our tensors; a head that is tied is not stored again.
fn names(opened: &Opened) -> Vec<String> {
    let mut names = opened.tensors().names();
    names.retain(|name| !(opened.config().tied_head && name == "head.weight"));
    names
}

/// The architecture of the format that can say what the model is, and its settings.
fn spell(opened: &Opened) -> Result<(String, &'static Family, Map<String, Value>)> {
    let mut config = opened.config().clone();
    config.used_vocab = None;
    if config.attention.is_none() {
        // Readers of the format keep the residual stream in f32, and bound no recurrent model.
        (config.residual_f32, config.max_positions) = (true, UNBOUNDED);
    }
    if let Some(mamba2) = &mut config.mamba2 {
        // How a scan is cut does not change what it computes, so the format does not keep it.
        mamba2.chunk_size = Mamba2Config::default().chunk_size;
    }
    if let Some(attention) = &mut config.attention
        && matches!(attention.rope_scaling, Some(RopeScaling::Llama3 { .. }))
    {
        // The format keeps the outcome of this rule, a divisor of each frequency.
        let dim = attention.head_dim.unwrap_or(config.d_model / attention.n_heads.max(1));
        let (theta, dim) =
            (attention.rope_theta.unwrap_or(1e4), attention.rotary_dim.unwrap_or(dim));
        let factors = attention.rope_scaling.as_ref().map(|scaling| scaling.factors(theta, dim));
        attention.rope_scaling = factors.map(|factors| RopeScaling::Factors { factors });
    }
    for name in ARCHITECTURES {
        let (family, kind) = families::recognise_gguf(name)?;
        if let Some(fields) = family.write(&kind, &config) {
            return Ok((name.to_string(), family, fields));
        }
    }
    let given = format!("a model of layers {}", config.layers);
    let valid = format!("one that GGUF's {} can say", ARCHITECTURES.join(", "));
    Err(Error::argument("config", given, valid))
}

/// One of our tensors as the file has it.
fn parts_of(
    opened: &Opened,
    map: &NameMap,
    ours: &str,
    tensor: &Tensor,
) -> Result<Vec<(String, Tensor)>> {
    let rows = tensor.dims().first().copied().unwrap_or(0);
    let mut parts = stored(map, ours, tensor, &part_sizes(opened.config(), ours, rows))?;
    if let Some(mamba2) = &opened.config().mamba2 {
        // Other readers of the format want a row for each group.
        for (_, norm) in parts.iter_mut().filter(|(name, _)| name.ends_with("ssm_norm.weight")) {
            *norm = norm.reshape([mamba2.n_groups, norm.elem_count() / mamba2.n_groups])?;
        }
    }
    Ok(parts)
}

/// The type of a tensor, and why it is not the one asked for.
fn choose(
    name: &str,
    shape: &[usize],
    asked: TensorType,
    tied: bool,
) -> (TensorType, Option<&'static str>) {
    let f32 = TensorType::Plain(DType::F32);
    let is_matrix = shape.len() == 2 && name.ends_with(".weight");
    if !is_matrix || name.contains("ssm_conv1d") || name.contains("ssm_norm") {
        return (f32, None);
    }
    let cols = shape[1];
    let fits = |block: BlockType| cols.is_multiple_of(block.block_len());
    let TensorType::Block(block) = asked else { return (asked, None) };
    let is_head = name == TABLES[1] || (tied && name == TABLES[0]);
    let q8_0 = TensorType::Block(BlockType::Q8_0);
    match block {
        BlockType::Q4_0 | BlockType::Q4K if is_head && fits(BlockType::Q8_0) => {
            (q8_0, Some("it makes the logits"))
        }
        block if fits(block) => (asked, None),
        _ if fits(BlockType::Q8_0) => (q8_0, Some("its rows are no multiple of the block")),
        _ => (TensorType::Plain(DType::F16), Some("its rows are no multiple of the block")),
    }
}

/// A tensor's values in a type.
fn stored_as(tensor: &Tensor, kind: TensorType) -> Result<Tensor> {
    let tensor = tensor.contiguous()?;
    Ok(match kind {
        TensorType::Plain(dtype) => tensor.to_dtype(dtype)?,
        TensorType::Block(block) => quantize(&tensor.to_dtype(DType::F32)?, block)?,
    })
}

/// The format's number for the type of most weights.
fn file_type(kind: TensorType) -> u32 {
    match kind {
        TensorType::Plain(DType::F32) => 0,
        TensorType::Plain(DType::BF16) => 32,
        TensorType::Plain(_) => 1,
        TensorType::Block(BlockType::Q4_0) => 2,
        TensorType::Block(BlockType::Q4K) => 14,
        TensorType::Block(_) => 7,
    }
}

fn metadata(
    opened: &Opened,
    architecture: &str,
    fields: &Map<String, Value>,
    kind: TensorType,
    out: &Path,
) -> Result<Vec<(String, MetaValue)>> {
    let name = out.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let mut all = vec![
        ("general.architecture".to_string(), MetaValue::Text(architecture.to_string())),
        ("general.name".to_string(), MetaValue::Text(name)),
        ("general.file_type".to_string(), MetaValue::U32(file_type(kind))),
    ];
    if matches!(kind, TensorType::Block(_)) {
        all.push(("general.quantization_version".to_string(), MetaValue::U32(2)));
    }
    let mut fields = fields.clone();
    // Other readers of the format want these of every architecture.
    let context = opened.config().max_positions.min(1 << 20);
    fields.entry("context_length").or_insert(Value::from(context));
    for zero in ["feed_forward_length", "attention.head_count"] {
        fields.entry(zero).or_insert(Value::from(0));
    }
    for (field, value) in fields.iter().filter(|(field, _)| !ELSEWHERE.contains(&field.as_str())) {
        all.push((format!("{architecture}.{field}"), meta(field, value)?));
    }
    if let Some(tokenizer) = opened.tokenizer()? {
        let special = opened.special();
        let described = Described::of(tokenizer, special.bos, special.eos.first().copied());
        all.extend(tokenizer::metadata(&described, opened.config().vocab_size)?);
    }
    Ok(all)
}

/// A setting in the format's usual types: u32, f32.
fn meta(field: &str, value: &Value) -> Result<MetaValue> {
    let wrong =
        || Error::argument("setting", format!("{field} {value}"), "a u32, f32, bool or text");
    Ok(match value {
        Value::Bool(value) => MetaValue::Bool(*value),
        Value::String(text) => MetaValue::Text(text.clone()),
        Value::Number(number) if number.is_f64() => {
            MetaValue::F32(number.as_f64().unwrap_or_default() as f32)
        }
        Value::Number(number) => {
            let integer = number.as_u64().and_then(|integer| u32::try_from(integer).ok());
            MetaValue::U32(integer.ok_or_else(wrong)?)
        }
        Value::Array(items) => {
            let items = items.iter().map(|item| meta(field, item)).collect::<Result<Vec<_>>>()?;
            let kind = items.first().map_or(ValueType::U32, MetaValue::kind);
            MetaValue::Array(kind, items)
        }
        _ => return Err(wrong()),
    })
}
