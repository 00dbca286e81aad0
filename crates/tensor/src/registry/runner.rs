//! Calling an operator by name: casts, cotangents and gradients around [`OpSpec::call`].
//!
//! Inputs are looked up by the specification's names. With gradients, the cotangent of output `y` is
//! the input named `grad_out.y` and the gradient of input `x` is returned as `grad.x`. A missing
//! cotangent means zero. Where all are missing, they are ones: for the scalar outputs (losses) if there
//! are any, else for all outputs.

use super::{Arg, Args, OpSpec};
use crate::{DType, Device, Error, Result, Tensor, backward_with, no_grad};
use std::collections::BTreeMap;

/// Every operator of the engine, by name.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<&'static str, &'static OpSpec>);

/// One call by name.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// Operator.
    pub op: String,
    /// Inputs and cotangents by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Attributes as text.
    pub attributes: BTreeMap<String, String>,
    /// Element type that floating-point inputs are cast to first.
    pub dtype: Option<DType>,
    /// Whether gradients are wanted.
    pub grad: bool,
    /// Where to compute; inputs and cotangents are moved there, and results stay there.
    pub device: Device,
}

impl Registry {
    /// Joins the lists of several rooms.
    ///
    /// # Errors
    /// When two operators have the same name.
    pub fn join(lists: &[&'static [OpSpec]]) -> Result<Self> {
        let mut all = BTreeMap::new();
        for spec in lists.iter().copied().flatten() {
            if all.insert(spec.name, spec).is_some() {
                return Err(Error::internal(format!("two operators are called {}", spec.name)));
            }
        }
        Ok(Self(all))
    }

    /// All operators in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = &'static OpSpec> {
        self.0.values().copied()
    }

    /// The operator of that name.
    ///
    /// # Errors
    /// When there is none; the message lists those that look alike, or all.
    pub fn find(&self, name: &str) -> Result<&'static OpSpec> {
        self.0.get(name).copied().ok_or_else(|| {
            let alike = |known: &&&str| known.contains(name) || name.contains(**known);
            let close: Vec<&str> = self.0.keys().filter(alike).copied().collect();
            let valid = if close.is_empty() { self.0.keys().copied().collect() } else { close };
            Error::argument("op run", "operator", name, valid.join(", "))
        })
    }

    /// Runs a call and returns outputs and gradients by name.
    ///
    /// # Errors
    /// Whatever the arguments or the operator make wrong.
    pub fn run(&self, call: &Call) -> Result<BTreeMap<String, Tensor>> {
        let spec = self.find(&call.op)?;
        let device = call.device.open()?;
        let (cotangents, inputs) = split_cotangents(spec, call)?;
        let (cotangents, inputs) = (moved(cotangents, &device)?, moved(inputs, &device)?);
        let inputs = cast(spec, inputs, call.dtype)?;
        if !call.grad {
            let args = Args::new(spec, inputs, call.attributes.clone())?;
            return Ok(named(spec, &no_grad(|| (spec.call)(&args))?));
        }
        let leaves: BTreeMap<String, Tensor> = inputs
            .into_iter()
            .map(|(name, tensor)| {
                let differentiable = tensor.dtype().is_differentiable();
                (name, if differentiable { tensor.tracked() } else { tensor })
            })
            .collect();
        let args = Args::new(spec, leaves.clone(), call.attributes.clone())?;
        let mut results = named(spec, &(spec.call)(&args)?);
        let gradients = pull(spec, &results, &cotangents)?;
        results.values_mut().for_each(|tensor| *tensor = tensor.detach());
        for (name, leaf) in &leaves {
            if let Some(grad) = gradients.get(leaf) {
                results.insert(format!("grad.{name}"), grad.clone());
            }
        }
        Ok(results)
    }
}

type Named = BTreeMap<String, Tensor>;

fn moved(tensors: Named, device: &Device) -> Result<Named> {
    tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.to_device(device)?))).collect()
}

fn split_cotangents(spec: &OpSpec, call: &Call) -> Result<(Named, Named)> {
    let (mut cotangents, mut inputs) = (Named::new(), Named::new());
    for (name, tensor) in &call.tensors {
        match name.strip_prefix("grad_out.") {
            Some(output) if spec.outputs.contains(&output) => {
                cotangents.insert(output.to_string(), tensor.clone());
            }
            Some(output) => {
                let valid = spec.outputs.join(", ");
                return Err(Error::argument(spec.name, "grad_out", output, valid));
            }
            None => {
                inputs.insert(name.clone(), tensor.clone());
            }
        }
    }
    Ok((cotangents, inputs))
}

/// Casts floating-point inputs, and complex ones to the type with parts of that size.
///
/// An input that exists in other types only (decay rates in f32) gets f32; a type that no input of the
/// operator has is refused.
fn cast(spec: &OpSpec, inputs: Named, dtype: Option<DType>) -> Result<Named> {
    let Some(dtype) = dtype else { return Ok(inputs) };
    let real = inputs.iter().filter(|(_, tensor)| tensor.dtype().is_float());
    let args: Vec<&Arg> = real.filter_map(|(name, _)| spec.input(name)).collect();
    if !args.is_empty() && args.iter().all(|arg| !arg.dtypes.contains(&dtype)) {
        let offered = |dtype: &&DType| args.iter().any(|arg| arg.dtypes.contains(dtype));
        let floats = DType::ALL.iter().filter(|dtype| dtype.is_float()).filter(offered);
        let names: Vec<&str> = floats.map(|dtype| dtype.name()).collect();
        return Err(Error::argument(spec.name, "--dtype", dtype, names.join(", ")));
    }
    let convert = |(name, tensor): (String, Tensor)| {
        let allowed = spec.input(&name).is_none_or(|arg| arg.dtypes.contains(&dtype));
        let wanted = match tensor.dtype() {
            real if real.is_float() && allowed => dtype,
            real if real.is_float() => DType::F32,
            complex if complex.is_complex() && dtype == DType::F64 => DType::C128,
            complex if complex.is_complex() => DType::C64,
            other => other,
        };
        Ok((name, tensor.to_dtype(wanted)?))
    };
    inputs.into_iter().map(convert).collect()
}

fn named(spec: &OpSpec, outputs: &[Option<Tensor>]) -> Named {
    let pairs = spec.outputs.iter().zip(outputs);
    pairs.filter_map(|(name, tensor)| Some((name.to_string(), tensor.clone()?))).collect()
}

fn pull(spec: &OpSpec, outputs: &Named, cotangents: &Named) -> Result<crate::Gradients> {
    let tracked = || outputs.iter().filter(|(_, output)| output.is_tracked());
    let losses = tracked().any(|(_, output)| output.rank() == 0);
    let mut pairs = Vec::new();
    for (name, output) in tracked() {
        match cotangents.get(name) {
            Some(cotangent) => pairs.push((output.clone(), cotangent.clone())),
            None if cotangents.is_empty() && (output.rank() == 0 || !losses) => {
                let ones = Tensor::full(1.0f64, output.shape(), &output.device())?;
                pairs.push((output.clone(), ones));
            }
            None => {}
        }
    }
    if pairs.is_empty() {
        let valid = "an operator with a differentiable output and input";
        return Err(Error::argument(spec.name, "--grad", "true", valid));
    }
    let borrowed: Vec<(&Tensor, &Tensor)> = pairs.iter().map(|(a, b)| (a, b)).collect();
    backward_with(&borrowed)
}
