//! Training: optimisers, schedules, the loop, checkpoints that survive a kill at any moment, metrics
//! and the report.
//!
//! [`Trainer`] is the loop; it reads data, computes the loss, runs backward, clips, updates, logs,
//! validates and saves, in this order and in one file ([`trainer`]). What is trained is a [`Task`]:
//! parameters, batches and a loss. Everything printed or drawn by others comes through an
//! [`Observer`].
//!
//! | module | holds |
//! | --- | --- |
//! | [`trainer`] | the loop |
//! | [`task`] | what the loop needs of a task |
//! | [`tasks`] | the tasks that come with the engine |
//! | [`optim`] | AdamW, Lion, Muon, SGD: one fused pass over all parameters |
//! | [`schedule`] | learning rate as a pure function of the step |
//! | [`checkpoint`] | saving and resuming, bit for bit |
//! | [`metrics`] | one JSON line per update |
//! | [`report`] | an HTML page with curves, samples and settings |
//! | [`learn`] | fast algorithms of matrices by gradients, L-BFGS |
//! | [`guard`] | what stops a run: not-a-number, divergence, too little memory |
//!
//! Runs are deterministic: the same data, settings and instruction set give the same bits on any
//! number of threads, and a resumed run gives the bits of one that was never interrupted.

#![deny(missing_docs)]

pub mod checkpoint;
pub mod config;
mod error;
pub mod guard;
pub mod learn;
pub mod metrics;
pub mod optim;
pub mod progress;
pub mod quickstart;
pub mod report;
pub mod schedule;
pub mod task;
pub mod tasks;
pub mod trainer;

pub use config::{Divergence, Every, TrainConfig};
pub use error::{Error, Result};
pub use progress::{Ending, Observer, Plan, Progress, Summary};
pub use task::{Identity, Loss, MemoryTerm, Moment, Sample, Task, Validation};
pub use trainer::{Start, Trainer};

#[cfg(test)]
mod toy;
