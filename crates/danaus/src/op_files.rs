//! The operator runner on files: `danaus op run`.

use danaus_tensor::registry::{Call, OpSpec, Registry};
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
/// expected values can be used as it is. A complex tensor is one entry, or a pair of real ones named
/// `NAME.re` and `NAME.im`; complex results are pairs where an input was one, and always in f64, which
/// the format has no complex type for.
///
/// # Errors
/// Unreadable files, unknown names, and whatever the operator reports.
pub fn run(registry: &Registry, request: &FileCall) -> Result<Vec<String>> {
    let spec = registry.find(&request.op)?;
    let map = pairs("--map", &request.map)?;
    check_map(spec, &map)?;
    let file = TensorFile::open(&request.input)?;
    let in_file = |name: &str| map.get(name).cloned().unwrap_or_else(|| name.to_string());
    let mut tensors = BTreeMap::new();
    let mut found_pairs = false;
    for name in wanted(spec, &file, request.grad) {
        let source = in_file(&name);
        match read(&file, &source)? {
            Some((tensor, is_pair)) => {
                found_pairs |= is_pair;
                tensors.insert(name, tensor);
            }
            None if map.contains_key(&name) && !spec.outputs.contains(&name.as_str()) => {
                return Err(Error::argument("op run", "--map", source, file.names().join(", ")));
            }
            None => {}
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
    let mut results = BTreeMap::new();
    for (name, tensor) in registry.run(&call)? {
        let name = in_file(&name);
        let as_pair = tensor.dtype() == DType::C128 || found_pairs && tensor.dtype().is_complex();
        let parts = match as_pair {
            true => {
                vec![(format!("{name}.re"), tensor.real()?), (format!("{name}.im"), tensor.imag()?)]
            }
            false => vec![(name, tensor)],
        };
        for (name, tensor) in parts {
            if results.contains_key(&name) {
                return Err(Error::argument("op run", "--map", name, "one name for each result"));
            }
            results.insert(name, tensor);
        }
    }
    let entries = results.iter().map(|(name, tensor)| (name.as_str(), tensor));
    save(&request.output, entries, HashMap::from([("op".to_string(), request.op.clone())]))?;
    Ok(results.into_keys().collect())
}

/// Refuses mapped names that are no input, cotangent, output or gradient of the operator.
fn check_map(spec: &OpSpec, map: &BTreeMap<String, String>) -> Result<()> {
    let known = |name: &str| {
        let input = name.strip_prefix("grad.").unwrap_or(name);
        let output = name.strip_prefix("grad_out.").unwrap_or(name);
        spec.input(input).is_some() || spec.outputs.contains(&output)
    };
    match map.keys().find(|name| !known(name)) {
        None => Ok(()),
        Some(name) => {
            let inputs = spec.inputs.iter().map(|arg| arg.name);
            let names: Vec<&str> = inputs.chain(spec.outputs.iter().copied()).collect();
            Err(Error::argument("op run", "--map", name, names.join(", ")))
        }
    }
}

/// Names of the inputs (groups as the file has them) and, with gradients, of the cotangents.
fn wanted(spec: &OpSpec, file: &TensorFile, grad: bool) -> Vec<String> {
    let names = file.names();
    let mut wanted = Vec::new();
    for arg in spec.inputs {
        match arg.prefix() {
            Some(prefix) => {
                wanted.extend(names.iter().filter(|name| name.starts_with(prefix)).cloned());
            }
            None => wanted.push(arg.name.to_string()),
        }
    }
    if grad {
        wanted.extend(spec.outputs.iter().map(|output| format!("grad_out.{output}")));
    }
    wanted
}

/// A tensor of the file, and whether it was a pair of real and imaginary part.
fn read(file: &TensorFile, name: &str) -> Result<Option<(Tensor, bool)>> {
    if file.info(name).is_some() {
        return Ok(Some((file.tensor(name)?, false)));
    }
    let names = ["re", "im"].map(|part| format!("{name}.{part}"));
    if names.iter().any(|part| file.info(part).is_none()) {
        return Ok(None);
    }
    let part = |name: &str| {
        let tensor = file.tensor(name)?;
        let wide = if tensor.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        tensor.to_dtype(wide)
    };
    Ok(Some((Tensor::complex(&part(&names[0])?, &part(&names[1])?)?, true)))
}
