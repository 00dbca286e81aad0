//! What the loop needs to know of a task.

use crate::Result;
use danaus_model::decoder::Noise;
use danaus_tensor::{ParamSet, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// A loss with what is needed to average it.
pub struct Loss {
    /// Mean loss over the targets of the batch: a tracked scalar.
    pub mean: Tensor,
    /// Number of targets the mean is over; micro-batches are weighted by it.
    pub targets: u64,
    /// Tokens (examples) read, for throughput.
    pub tokens: u64,
    /// Bytes of text that the targets stand for; 0 where there is no text.
    pub bytes: u64,
}

/// Where in the run a batch is used; the key of everything random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Seed of the run.
    pub seed: u64,
    /// Update, from 0.
    pub step: u64,
    /// Micro-batch within the update, from 0.
    pub micro_batch: u64,
}

impl Moment {
    /// What keys dropout: it differs between all micro-batches of a run.
    pub fn noise(&self) -> Noise {
        Noise { seed: self.seed, step: (self.step << 16) | self.micro_batch }
    }
}

/// Result of a validation pass.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Mean loss per target, in nats for likelihoods.
    pub loss: f64,
    /// Bits per byte of held-out text, for language models.
    pub bits_per_byte: Option<f64>,
    /// Accuracy, for classifiers.
    pub accuracy: Option<f64>,
}

/// A piece of model output to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Such as `completion` or `infilling`.
    pub kind: String,
    /// What the model was given.
    pub prompt: String,
    /// What it wrote.
    pub output: String,
    /// What follows the output (the text after an infilled gap).
    pub suffix: String,
}

/// One term of the memory a run needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryTerm {
    /// Such as `weights`.
    pub what: String,
    /// Bytes.
    pub bytes: u64,
}

/// A model with its data and loss. The loop (see [`crate::Trainer`]) calls these in order.
pub trait Task {
    /// One micro-batch.
    type Batch;

    /// All trainable parameters, always in the same order.
    fn params(&self) -> &ParamSet;

    /// The next micro-batch; `None` when the data has an end and it is reached.
    ///
    /// # Errors
    /// When the data cannot be read.
    fn next_batch(&mut self) -> Result<Option<Self::Batch>>;

    /// Forward pass, recorded on the tape.
    ///
    /// # Errors
    /// When an operator fails.
    fn loss(&self, batch: &Self::Batch, moment: Moment) -> Result<Loss>;

    /// Loss on held-out data; `None` when there is none. Must not change what training sees.
    ///
    /// # Errors
    /// When the data cannot be read or an operator fails.
    fn validate(&self) -> Result<Option<Validation>> {
        Ok(None)
    }

    /// Model output to look at. Must not change what training sees.
    ///
    /// # Errors
    /// When an operator fails.
    fn samples(&self) -> Result<Vec<Sample>> {
        Ok(Vec::new())
    }

    /// Position in the data after the last batch handed out.
    ///
    /// # Errors
    /// When it cannot be written down.
    fn cursor(&self) -> Result<Value>;

    /// Goes on from a saved position.
    ///
    /// # Errors
    /// When the position is none of this data.
    fn seek(&mut self, cursor: &Value) -> Result<()>;

    /// What identifies model and data: saved with checkpoints and compared on resume.
    ///
    /// # Errors
    /// When it cannot be written down.
    fn identity(&self) -> Result<Identity>;

    /// Writes what makes a folder with the weights loadable (configuration, tokenizer); the weights
    /// are written by the caller.
    ///
    /// # Errors
    /// When a file cannot be written.
    fn save(&self, folder: &Path) -> Result<()>;

    /// Memory beyond weights, gradients and optimiser state: mostly activations.
    fn memory(&self) -> Vec<MemoryTerm> {
        Vec::new()
    }
}

/// What must be equal for a checkpoint to be continued.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Name of the task.
    pub task: String,
    /// Configuration of the model.
    pub model: Value,
    /// Digest of the tokenizer, where there is one.
    pub tokenizer: Option<String>,
}
