//! Optimisers: one fused pass over all parameters per step.
//!
//! A step reads every gradient once and updates moments and parameter in the same pass (`fused.rs`),
//! so that its cost is the traffic of these arrays and nothing else. With learning rate `lr`, weight
//! decay `wd` (decoupled; applied where [`Param::decays`] says so) and gradient `g` after scaling:
//!
//! ```text
//! AdamW  m = m + (1 - beta1) (g - m)         Loshchilov and Hutter, 2019
//!        v = beta2 v + (1 - beta2) g^2
//!        p = p (1 - lr wd) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
//! Lion   p = p (1 - lr wd) - lr sign(beta1 m + (1 - beta1) g)       Chen et al., 2023
//!        m = beta2 m + (1 - beta2) g
//! SGD    m = momentum m + g
//!        p = p (1 - lr wd) - lr (g + momentum m  if nesterov  else  m)
//! Muon   orthogonalised momentum for matrices, AdamW for the rest; see [`muon`]
//! ```
//!
//! On a GPU the pass is one launch over all parameters, and a step copies a table of addresses there and
//! nothing back. Parameters are f32 masters (a model that computes in bf16 casts them on the tape) or f64. State has
//! the dtype of its parameter. A parameter without gradient in a step is left alone.

mod accumulate;
mod config;
mod fused;
pub mod muon;
mod rules;

pub use accumulate::{GradientSet, global_norm};
pub use config::{AdamW, Lion, Muon, OptimizerConfig, Sgd};

use crate::{Error, Result};
use danaus_tensor::param::TensorSource;
use danaus_tensor::{DType, Param, ParamSet, Tensor, update_all};

/// Names under which the state of a parameter is saved, after the parameter's own name and a dot.
const SLOT_NAMES: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// The state of one parameter.
struct Slots {
    /// Chosen once, from the configuration and the parameter.
    by_muon: bool,
    /// As many of [`SLOT_NAMES`] as the rule keeps.
    tensors: Vec<Tensor>,
}

/// An optimiser with its state for one set of parameters.
pub struct Optimizer {
    config: OptimizerConfig,
    params: ParamSet,
    slots: Vec<Slots>,
    /// Updates done so far.
    step: u64,
}

impl Optimizer {
    /// A new optimiser; all moments start at zero.
    ///
    /// # Errors
    /// A setting out of range; parameters that are not all f32 or all f64; no memory for the state.
    pub fn new(config: OptimizerConfig, params: &ParamSet) -> Result<Self> {
        config.validate()?;
        let dtype = params.iter().next().map_or(DType::F32, |param| param.tensor().dtype());
        let mut slots = Vec::with_capacity(params.len());
        for param in params.iter() {
            let value = param.tensor();
            if value.dtype() != dtype || !matches!(dtype, DType::F32 | DType::F64) {
                let field = format!("dtype of parameter {}", param.name());
                return Err(Error::config(field, value.dtype(), "f32, or f64 for all parameters"));
            }
            let by_muon = config.uses_muon(param);
            let count = config.slots(by_muon);
            let zeros = || Tensor::zeros(value.shape(), dtype, &value.device());
            let tensors = (0..count).map(|_| Ok(zeros()?)).collect::<Result<_>>()?;
            slots.push(Slots { by_muon, tensors });
        }
        Ok(Self { config, params: params.clone(), slots, step: 0 })
    }

    /// The settings.
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Updates done so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Bytes of the state of `params` under `config`.
    pub fn state_bytes(config: &OptimizerConfig, params: &ParamSet) -> u64 {
        let of = |param: &Param| config.slots(config.uses_muon(param)) * param.tensor().bytes();
        params.iter().map(|param| of(param) as u64).sum()
    }

    /// One update. Gradients are multiplied by `grad_scale` (for clipping and averaging) and the base
    /// rate by `lr_factor` (the schedule).
    ///
    /// # Errors
    /// Gradients that do not fit the parameters; no memory.
    pub fn step(&mut self, gradients: &GradientSet, grad_scale: f64, lr_factor: f64) -> Result<()> {
        if gradients.len() != self.params.len() {
            let (found, expected) = (gradients.len(), self.params.len());
            return Err(Error::Internal(format!("{found} gradients, {expected} parameters")));
        }
        self.step += 1;
        let rule = rules::step(&self.config, self.step, grad_scale, lr_factor);
        let mut jobs = Vec::new();
        let mut params = Vec::new();
        for (index, (param, slots)) in self.params.iter().zip(&mut self.slots).enumerate() {
            let Some(gradient) = gradients.get(index) else { continue };
            if slots.by_muon {
                let context = muon::Context { grad_scale, lr_factor };
                muon::step(&self.config, param, gradient, &mut slots.tensors, &context)?;
            } else {
                params.push(param);
                jobs.push((gradient, &mut slots.tensors[..], param.decays()));
            }
        }
        let pass = |values: &mut [&mut Tensor]| match values.first().map(|value| value.dtype()) {
            None => Ok(()),
            Some(_) if values[0].device().is_cuda() => fused::run_on_gpu(&rule, values, &mut jobs),
            Some(DType::F64) => fused::run::<f64>(&rule, values, &mut jobs),
            Some(_) => fused::run::<f32>(&rule, values, &mut jobs),
        };
        Ok(update_all(&params, pass)?)
    }

    /// All state tensors with the names they are saved under.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let named = |(param, slots): (&Param, &Slots)| {
            let name = param.name().to_string();
            let tensors = slots.tensors.iter().cloned().zip(SLOT_NAMES);
            tensors.map(|(t, slot)| (format!("{name}.{slot}"), t)).collect::<Vec<_>>()
        };
        self.params.iter().zip(&self.slots).flat_map(named).collect()
    }

    /// Takes over a saved state.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape or dtype.
    pub fn restore(&mut self, step: u64, source: &dyn TensorSource) -> Result<()> {
        for (param, slots) in self.params.iter().zip(&mut self.slots) {
            for (tensor, slot) in slots.tensors.iter_mut().zip(SLOT_NAMES) {
                let name = format!("{}.{slot}", param.name());
                *tensor = fetch(source, &name, tensor)?;
            }
        }
        self.step = step;
        Ok(())
    }
}

/// An owned copy of a saved tensor that must look like `like`.
pub(crate) fn fetch(source: &dyn TensorSource, name: &str, like: &Tensor) -> Result<Tensor> {
    let missing = || {
        let valid = format!("a tensor {} in the checkpoint", like.shape());
        Error::config(format!("tensor {name}"), "missing", valid)
    };
    let found = source.tensor(name)?.ok_or_else(missing)?;
    if found.shape() != like.shape() || found.dtype() != like.dtype() {
        let given = format!("{} {}", found.dtype(), found.shape());
        let valid = format!("{} {}", like.dtype(), like.shape());
        return Err(Error::config(format!("tensor {name}"), given, valid));
    }
    Ok(found.to_device(&like.device())?.copy()?)
}

#[cfg(test)]
mod tests;
