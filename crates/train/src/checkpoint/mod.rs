//! Training checkpoints: everything a run needs to go on as if it had never stopped.
//!
//! ```text
//! RUN/checkpoints/
//!     step-200/                 one folder a checkpoint
//!         model.safetensors     weights (f32 masters) under the parameters' names
//!         optimizer.safetensors moments
//!         training.json         the manifest: versions, counters, cursor, settings; written last
//!         ...                   what the task adds to make the folder loadable as a model
//!     step-400/
//!     latest                    one line: the name of the newest complete checkpoint
//! ```
//!
//! A checkpoint is written to `step-N.tmp`, flushed to disk, renamed, and only then named in `latest`,
//! which is itself replaced in one step. A process killed at any moment leaves the previous checkpoint
//! named and whole. Randomness needs no state beyond the seed: every random number is a function of
//! (seed, step, element).

mod store;

pub use store::Store;

use crate::config::TrainConfig;
use crate::optim::{Optimizer, fetch};
use crate::task::{Identity, Task, Validation};
use crate::{Error, Result};
use danaus_tensor::safetensors::{self, Checkpoint, SINGLE_NAME, TensorFile};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Version of the format; raised with every change that older builds cannot read.
pub const VERSION: u64 = 1;
/// This build, as written into checkpoints.
pub const BUILD: &str = concat!("danaus ", env!("CARGO_PKG_VERSION"));
/// Name of the manifest.
pub const MANIFEST_NAME: &str = "training.json";
const OPTIMIZER_NAME: &str = "optimizer.safetensors";

/// Counters and running figures of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Updates done.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Exponential mean of the loss.
    pub smooth_loss: Option<f64>,
    /// The lowest value it had.
    pub best_loss: Option<f64>,
    /// Steps in a row with a loss far above it.
    pub steps_above: u64,
    /// Last validation.
    pub validation: Option<Validation>,
}

/// The manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`] of the writer.
    pub version: u64,
    /// Build of the writer.
    pub build: String,
    /// Counters and running figures.
    pub counters: Counters,
    /// Settings, the seed among them.
    pub config: TrainConfig,
    /// Model and tokenizer.
    pub identity: Identity,
    /// Position in the data.
    pub cursor: Value,
}

/// Writes all files of a checkpoint into an existing folder; the manifest comes last.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write<T: Task>(
    folder: &Path,
    task: &T,
    optimizer: &Optimizer,
    manifest: &Manifest,
) -> Result<()> {
    write_model(folder, task)?;
    let state = optimizer.state();
    let state = state.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::save(folder.join(OPTIMIZER_NAME), state, HashMap::new())?;
    let path = folder.join(MANIFEST_NAME);
    let write = |writer: &mut std::io::BufWriter<std::fs::File>| {
        Ok(serde_json::to_writer_pretty(writer, manifest)?)
    };
    danaus_runtime::fs::write_atomic(&path, write).map_err(Error::io(&path))
}

/// Writes weights and whatever the task adds: a folder that can be loaded as a model.
pub(crate) fn write_model<T: Task>(folder: &Path, task: &T) -> Result<()> {
    let weights: BTreeMap<String, _> =
        task.params().iter().map(|param| (param.name().to_string(), param.tensor())).collect();
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let named = weights.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::save(folder.join(SINGLE_NAME), named, metadata)?;
    task.save(folder)
}

/// Writes a model folder, replaced in one step.
pub(crate) fn export<T: Task>(folder: &Path, task: &T) -> Result<()> {
    store::replace_folder(folder, |temporary| write_model(temporary, task))
}

/// Reads the manifest of a checkpoint folder.
///
/// # Errors
/// When it cannot be read, is no manifest, or has another version.
pub fn manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST_NAME);
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let invalid = |error: serde_json::Error| Error::format(&path, format!("not valid: {error}"));
    let value: Value = serde_json::from_slice(&bytes).map_err(invalid)?;
    // The version decides how to read the rest, so it is looked at first and alone.
    let found = value.get("version").and_then(Value::as_u64);
    let found = found.ok_or_else(|| Error::format(&path, "no number \"version\""))?;
    if found != VERSION {
        return Err(Error::Version { path, found, supported: VERSION, build: BUILD });
    }
    serde_json::from_value(value).map_err(invalid)
}

/// Puts weights, optimiser and data position back.
///
/// # Errors
/// When the checkpoint belongs to another model, tokenizer or optimiser, or a file is damaged.
pub(crate) fn restore<T: Task>(
    folder: &Path,
    task: &mut T,
    optimizer: &mut Optimizer,
    config: &TrainConfig,
) -> Result<Manifest> {
    let manifest = manifest(folder)?;
    check(folder, &manifest, &task.identity()?, config)?;
    let weights = Checkpoint::open(folder)?;
    for param in task.params().iter() {
        param.set(&fetch(&weights, param.name(), &param.tensor())?)?;
    }
    let state = TensorFile::open(folder.join(OPTIMIZER_NAME))?.tensors()?;
    optimizer.restore(manifest.counters.step, &state)?;
    task.seek(&manifest.cursor)?;
    Ok(manifest)
}

/// What a resumed run must share with its checkpoint. Limits, schedule and rates may change.
fn check(
    folder: &Path,
    manifest: &Manifest,
    identity: &Identity,
    config: &TrainConfig,
) -> Result<()> {
    let saved = &manifest.identity;
    let text = |value: &Value| value.to_string();
    let tokenizer = |identity: &Identity| identity.tokenizer.clone().unwrap_or("none".into());
    let pairs = [
        ("the task", saved.task.clone(), identity.task.clone()),
        ("the tokenizer", tokenizer(saved), tokenizer(identity)),
        ("the model", text(&saved.model), text(&identity.model)),
        ("the seed", manifest.config.seed.to_string(), config.seed.to_string()),
        (
            "the optimizer",
            manifest.config.optimizer.name().to_string(),
            config.optimizer.name().to_string(),
        ),
    ];
    match pairs.into_iter().find(|(_, found, expected)| found != expected) {
        None => Ok(()),
        Some((what, found, expected)) => {
            let (path, what) = (folder.to_path_buf(), what.to_string());
            Err(Error::Mismatch { path, what, found, expected })
        }
    }
}

#[cfg(test)]
mod tests;
