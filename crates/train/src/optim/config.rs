//! Settings of the optimisers, with the defaults of their papers.

use crate::{Error, Result};
use danaus_tensor::Param;
use serde::{Deserialize, Serialize};

/// AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamW {
    /// Base learning rate.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squares.
    pub beta2: f64,
    /// Added to the root of the mean of squares.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { lr: 3e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 }
    }
}

/// Lion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lion {
    /// Base learning rate; a third to a tenth of AdamW's.
    pub lr: f64,
    /// Weight of the momentum in the update.
    pub beta1: f64,
    /// Decay of the momentum.
    pub beta2: f64,
    /// Decoupled weight decay; three to ten times AdamW's.
    pub weight_decay: f64,
}

impl Default for Lion {
    fn default() -> Self {
        Self { lr: 1e-4, beta1: 0.9, beta2: 0.99, weight_decay: 0.3 }
    }
}

/// Stochastic gradient descent with momentum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sgd {
    /// Base learning rate.
    pub lr: f64,
    /// Decay of the momentum; 0 for none.
    pub momentum: f64,
    /// Look ahead along the momentum.
    pub nesterov: bool,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { lr: 0.1, momentum: 0.9, nesterov: false, weight_decay: 0.0 }
    }
}

/// Muon for matrices, AdamW for the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Muon {
    /// Base learning rate. Updates are scaled to the size of AdamW's, so AdamW's rates fit.
    pub lr: f64,
    /// Decay of the momentum.
    pub momentum: f64,
    /// Look ahead along the momentum.
    pub nesterov: bool,
    /// Newton-Schulz iterations.
    pub iterations: u32,
    /// Decoupled weight decay of the matrices.
    pub weight_decay: f64,
    /// Matrices whose names contain one of these are left to AdamW.
    pub exclude: Vec<String>,
    /// The optimiser of everything else; its `lr` follows the same schedule.
    pub rest: AdamW,
}

impl Default for Muon {
    fn default() -> Self {
        Self {
            lr: 3e-4,
            momentum: 0.95,
            nesterov: true,
            iterations: 5,
            weight_decay: 0.1,
            exclude: ["embed", "positions", "head.", "conv"].map(String::from).to_vec(),
            rest: AdamW::default(),
        }
    }
}

/// Which optimiser, and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum OptimizerConfig {
    /// AdamW.
    AdamW(AdamW),
    /// Lion.
    Lion(Lion),
    /// Muon with AdamW.
    Muon(Muon),
    /// SGD with momentum.
    Sgd(Sgd),
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::AdamW(AdamW::default())
    }
}

impl OptimizerConfig {
    /// Names of all optimisers.
    pub const NAMES: [&'static str; 4] = ["adamw", "lion", "muon", "sgd"];

    /// The optimiser of that name with its default settings.
    ///
    /// # Errors
    /// An unknown name.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "adamw" => Ok(Self::AdamW(AdamW::default())),
            "lion" => Ok(Self::Lion(Lion::default())),
            "muon" => Ok(Self::Muon(Muon::default())),
            "sgd" => Ok(Self::Sgd(Sgd::default())),
            _ => Err(Error::config("optimizer", name, Self::NAMES.join(", "))),
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AdamW(_) => "adamw",
            Self::Lion(_) => "lion",
            Self::Muon(_) => "muon",
            Self::Sgd(_) => "sgd",
        }
    }

    /// The base learning rate.
    pub fn lr(&self) -> f64 {
        match self {
            Self::AdamW(adamw) => adamw.lr,
            Self::Lion(lion) => lion.lr,
            Self::Muon(muon) => muon.lr,
            Self::Sgd(sgd) => sgd.lr,
        }
    }

    /// Sets the base learning rate (of both parts of Muon).
    pub fn set_lr(&mut self, lr: f64) {
        match self {
            Self::AdamW(adamw) => adamw.lr = lr,
            Self::Lion(lion) => lion.lr = lr,
            Self::Muon(muon) => {
                muon.lr = lr;
                muon.rest.lr = lr;
            }
            Self::Sgd(sgd) => sgd.lr = lr,
        }
    }

    /// Sets the decoupled weight decay (of both parts of Muon).
    pub fn set_weight_decay(&mut self, weight_decay: f64) {
        match self {
            Self::AdamW(adamw) => adamw.weight_decay = weight_decay,
            Self::Lion(lion) => lion.weight_decay = weight_decay,
            Self::Muon(muon) => {
                muon.weight_decay = weight_decay;
                muon.rest.weight_decay = weight_decay;
            }
            Self::Sgd(sgd) => sgd.weight_decay = weight_decay,
        }
    }

    /// Refuses values that have no meaning.
    ///
    /// # Errors
    /// Naming the setting and its range.
    pub fn validate(&self) -> Result<()> {
        let check = |field: &str, value: f64, valid: &str, ok: bool| {
            let field = format!("{}.{field}", self.name());
            if ok { Ok(()) } else { Err(Error::config(field, value, valid)) }
        };
        let rate = |field: &str, value: f64| {
            let ok = value >= 0.0 && value.is_finite();
            check(field, value, "a finite number, at least 0", ok)
        };
        let decay = |field: &str, value: f64| {
            check(field, value, "at least 0 and below 1", (0.0..1.0).contains(&value))
        };
        let adamw = |adamw: &AdamW| {
            rate("lr", adamw.lr)?;
            rate("weight_decay", adamw.weight_decay)?;
            rate("eps", adamw.eps)?;
            decay("beta1", adamw.beta1)?;
            decay("beta2", adamw.beta2)
        };
        match self {
            Self::AdamW(config) => adamw(config),
            Self::Lion(lion) => {
                rate("lr", lion.lr)?;
                rate("weight_decay", lion.weight_decay)?;
                decay("beta1", lion.beta1)?;
                decay("beta2", lion.beta2)
            }
            Self::Muon(muon) => {
                rate("lr", muon.lr)?;
                rate("weight_decay", muon.weight_decay)?;
                decay("momentum", muon.momentum)?;
                let iterations = f64::from(muon.iterations);
                check("iterations", iterations, "1 to 20", (1..=20).contains(&muon.iterations))?;
                adamw(&muon.rest)
            }
            Self::Sgd(sgd) => {
                rate("lr", sgd.lr)?;
                rate("weight_decay", sgd.weight_decay)?;
                decay("momentum", sgd.momentum)
            }
        }
    }

    /// Whether this parameter is orthogonalised: matrices of hidden layers.
    pub(super) fn uses_muon(&self, param: &Param) -> bool {
        match self {
            Self::Muon(muon) => {
                let excluded = muon.exclude.iter().any(|part| param.name().contains(part));
                param.tensor().rank() == 2 && !excluded
            }
            _ => false,
        }
    }

    /// State tensors a parameter needs.
    pub(super) fn slots(&self, by_muon: bool) -> usize {
        match self {
            Self::AdamW(_) => 2,
            Self::Muon(_) => 2 - usize::from(by_muon),
            Self::Lion(_) => 1,
            Self::Sgd(sgd) => usize::from(sgd.momentum > 0.0),
        }
    }
}
