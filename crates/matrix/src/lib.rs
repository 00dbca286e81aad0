//! Matrices with structure: those that mix channels ([`structured`]) and those that mix time
//! ([`mixer`]).
//!
//! Both have a dense meaning, which is their oracle, and a fast product. A causal mixer also has a
//! state: [`state`] keeps the states of many sequences in slots that can be marked, rolled back,
//! snapshotted and restored, whatever the mixer. [`SeqBatch`] says which tokens of a packed batch
//! belong together. Models see only these four interfaces.

pub mod mixer;
mod seq_batch;
pub mod state;
pub mod structured;

pub use mixer::SequenceMixer;
pub use seq_batch::SeqBatch;
pub use state::{LayerState, StatePool};
pub use structured::StructuredMatrix;

use danaus_tensor::registry::OpSpec;

/// Operators of this room, one list per file.
pub const SPECS: &[&[OpSpec]] = &[mixer::SPECS, structured::SPECS];
