//! The operator runner on files: `danaus op run`.

use danaus_tensor::registry::{Call, Registry};
use danaus_tensor::safetensors::{TensorFile, save};
use danaus_tensor::{DType, Device, Error, Result, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

/// A call of one operator on tensors from a file.
#[derive(Clone, Debug)]
pub struct FileCall {
    /// Operator.
    pub op: String,
    /// Safetensors file with inputs (and cotangents).
    pub input: PathBuf,
    /// Where outputs (and gradients) go.
    pub output: PathBuf,
    /// `key=value` attributes.
    pub set: Vec<String>,
    /// `name=name-in-file` for inputs, cotangents and results.
    pub map: Vec<String>,
    /// Element type that floating-point inputs are cast to.
    pub dtype: Option<DType>,
    /// Whether gradients are wanted.
    pub grad: bool,
    /// Where to compute.
    pub device: Device,
}

/// `key=value` pairs.
fn pairs(option: &'static str, items: &[String]) -> Result<BTreeMap<String, String>> {
    let split = |item: &String| {
        let pair = item.split_once('=').filter(|(key, _)| !key.is_empty());
        let pair = pair.map(|(key, value)| (key.to_string(), value.to_string()));
        pair.ok_or_else(|| Error::argument("op run", option, item, "KEY=VALUE"))
    };
    items.iter().map(split).collect()
}

/// Runs the call and returns the names of the tensors written.
///
/// Tensors of the file that are no input of the operator are ignored, so that a golden file with
/// expected values can be used as it is.
///
/// # Errors
/// Unreadable files, unknown names, and whatever the operator reports.
pub fn run(registry: &Registry, request: &FileCall) -> Result<Vec<String>> {
    let spec = registry.find(&request.op)?;
    let map = pairs("--map", &request.map)?;
    let file = TensorFile::open(&request.input)?;
    let in_file = |name: &str| map.get(name).cloned().unwrap_or_else(|| name.to_string());
    let cotangents = spec.outputs.iter().map(|output| format!("grad_out.{output}"));
    let inputs = spec.inputs.iter().map(|arg| arg.name.to_string());
    let mut wanted: Vec<String> = inputs.chain(cotangents.filter(|_| request.grad)).collect();
    let pairs_of_complex =
        spec.inputs.iter().flat_map(|arg| ["re", "im"].map(|part| format!("{}.{part}", arg.name)));
    wanted.extend(pairs_of_complex);
    if let Some(name) =
        map.keys().find(|name| !wanted.contains(name) && !is_result(spec.outputs, name))
    {
        let inputs: Vec<&str> = spec.inputs.iter().map(|arg| arg.name).collect();
        return Err(Error::argument("op run", "--map", name, inputs.join(", ")));
    }
    let mut tensors = BTreeMap::new();
    for name in wanted {
        let source = in_file(&name);
        if file.info(&source).is_some() {
            tensors.insert(name, file.tensor(&source)?);
        } else if map.contains_key(&name) {
            return Err(Error::argument("op run", "--map", source, file.names().join(", ")));
        }
    }
    let call = Call {
        op: request.op.clone(),
        tensors,
        attributes: pairs("--set", &request.set)?,
        dtype: request.dtype,
        grad: request.grad,
        device: request.device,
    };
    let results: BTreeMap<String, Tensor> =
        registry.run(&call)?.into_iter().map(|(name, tensor)| (in_file(&name), tensor)).collect();
    let entries = results.iter().map(|(name, tensor)| (name.as_str(), tensor));
    save(&request.output, entries, HashMap::from([("op".to_string(), request.op.clone())]))?;
    Ok(results.into_keys().collect())
}

fn is_result(outputs: &[&str], name: &str) -> bool {
    outputs.contains(&name) || name.starts_with("grad.")
}
