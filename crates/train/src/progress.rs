//! What the loop tells whoever watches it.

use crate::task::{MemoryTerm, Sample, Validation};
use std::path::{Path, PathBuf};

/// Known before the first step.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Trainable numbers.
    pub parameters: u64,
    /// Step that training starts at: 0, or that of the checkpoint it continues.
    pub first_step: u64,
    /// Memory needed, term by term.
    pub memory: Vec<MemoryTerm>,
    /// Memory available, where the system tells.
    pub memory_available: Option<u64>,
}

/// One update.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Updates done, this one included.
    pub step: u64,
    /// Updates expected in all: exact when the run is limited by steps.
    pub total_steps: f64,
    /// Part of the run that is done, in [0, 1].
    pub fraction: f64,
    /// Mean training loss of this update.
    pub loss: f64,
    /// Exponential mean of the loss.
    pub smooth_loss: f64,
    /// The smoothed loss in bits per byte of training text, for language models.
    pub bits_per_byte: Option<f64>,
    /// Learning rate of this update.
    pub lr: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens seen so far.
    pub tokens: u64,
    /// Tokens per second of this update.
    pub tokens_per_s: f64,
    /// Seconds since the beginning, earlier parts of a resumed run included.
    pub seconds: f64,
    /// Expected seconds to the end.
    pub eta_seconds: f64,
}

/// Receives what happens; every method may be left out.
pub trait Observer {
    /// Before the first step.
    fn started(&mut self, _plan: &Plan) {}
    /// After every update.
    fn stepped(&mut self, _progress: &Progress) {}
    /// After a validation pass.
    fn validated(&mut self, _step: u64, _validation: &Validation, _samples: &[Sample]) {}
    /// After a checkpoint was written.
    fn saved(&mut self, _step: u64, _folder: &Path) {}
}

impl Observer for () {}

/// Why a run ended without error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All steps are done.
    Steps,
    /// The time is up.
    Time,
    /// The data is used up.
    Data,
    /// Someone asked to stop (Ctrl-C).
    Interrupted,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Steps => "all steps done",
            Self::Time => "time is up",
            Self::Data => "data used up",
            Self::Interrupted => "interrupted",
        })
    }
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Why it ended.
    pub ending: Ending,
    /// Updates done.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Smoothed training loss.
    pub loss: f64,
    /// Last validation.
    pub validation: Option<Validation>,
    /// Last samples.
    pub samples: Vec<Sample>,
    /// The checkpoint of the last step.
    pub checkpoint: PathBuf,
}
