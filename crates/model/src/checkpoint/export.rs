//! Writing a model in the spelling of Hugging Face.

use super::special::pretty;
use super::{CONFIG_NAME, Model, TOKENIZER_NAME, write_text};
use crate::config::Config;
use crate::families::{self, JOINED, NameMap, stored};
use crate::{Error, Result};
use danaus_tensor::safetensors::{SINGLE_NAME, save};
use danaus_tensor::{DType, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// How to write.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExportOptions {
    /// Element type of the file's floating-point tensors; default as the model has them.
    pub dtype: Option<DType>,
}

/// Writes `config.json`, `generation_config.json`, `model.safetensors` and `tokenizer.json` so that
/// other programs load them; returns the family's name.
///
/// Reading the written folder gives the same config, and the same bits unless a dtype is asked for.
///
/// # Errors
/// When no architecture of Hugging Face can spell the model, a weight is quantised or structured, or a
/// file cannot be written.
pub fn export(model: &Model, folder: &Path, options: ExportOptions) -> Result<&'static str> {
    let config = model.decoder.config();
    let (family, mut fields) = families::spell(config)?;
    let tensors = renamed(model, &family.names(config), options)?;
    let io = |error| danaus_tensor::Error::io(folder, error);
    std::fs::create_dir_all(folder).map_err(io)?;
    if let Some(dtype) = tensors.values().next().map(Tensor::dtype) {
        // The older name; both generations of readers know it.
        fields.insert("torch_dtype".into(), torch_name(options.dtype.unwrap_or(dtype)).into());
    }
    fields.extend(model.special.fields());
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let entries = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    save(folder.join(SINGLE_NAME), entries, metadata)?;
    write_text(&folder.join(CONFIG_NAME), &pretty(fields))?;
    model.special.save(folder)?;
    if let Some(tokenizer) = &model.tokenizer {
        tokenizer.save(&folder.join(TOKENIZER_NAME))?;
    }
    Ok(family.name)
}

fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "float64",
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    }
}

/// All parameters under their names.
fn renamed(
    model: &Model,
    map: &NameMap,
    options: ExportOptions,
) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in whole(model, map)? {
        if !tensor.dtype().is_float() {
            let valid = "floating-point weights: dequantise the model first";
            return Err(Error::argument("tensor", name, valid));
        }
        let tensor = tensor.to_dtype(options.dtype.unwrap_or(tensor.dtype()))?;
        let sizes = part_sizes(model.decoder.config(), &name, tensor.dims()[0]);
        for (theirs, value) in stored(map, &name, &tensor, &sizes)? {
            tensors.insert(theirs, value.contiguous()?);
        }
    }
    Ok(tensors)
}

/// The parameters, with parts joined where their table has only the whole.
fn whole(model: &Model, map: &NameMap) -> Result<BTreeMap<String, Tensor>> {
    let params = model.decoder.params();
    let mut tensors: BTreeMap<String, Tensor> =
        params.iter().map(|param| (param.name().to_string(), param.tensor().detach())).collect();
    for (joined, parts) in JOINED {
        let heads: Vec<String> = tensors
            .keys()
            .filter(|name| name.contains(parts[0]) && map.theirs(name).is_none())
            .cloned()
            .collect();
        for head in heads {
            let names: Vec<String> =
                parts.iter().map(|part| head.replacen(parts[0], part, 1)).collect();
            let Some(values) =
                names.iter().map(|name| tensors.remove(name)).collect::<Option<Vec<_>>>()
            else {
                return Err(Error::argument("tensor", head, "with its other parts"));
            };
            let borrowed: Vec<&Tensor> = values.iter().collect();
            tensors.insert(head.replacen(parts[0], joined, 1), Tensor::cat(&borrowed, 0)?);
        }
    }
    Ok(tensors)
}

/// Rows of the parts of a joined matrix or bias.
pub(crate) fn part_sizes(config: &Config, name: &str, rows: usize) -> Vec<usize> {
    match &config.attention {
        Some(attention) if name.contains(".qkv.") => {
            let (heads, kv) = (attention.n_heads, attention.kv_heads());
            let head_dim = rows / (heads + 2 * kv).max(1);
            vec![heads * head_dim, kv * head_dim, kv * head_dim]
        }
        _ => vec![rows / 2, rows - rows / 2],
    }
}
