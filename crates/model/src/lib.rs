//! Models: one decoder driven by a config, its checkpoints, and generation.
//!
//! * [`config`]: `config.json` of our own; unknown fields are refused, sizes are known without
//!   building anything.
//! * [`decoder`]: the only architecture: embedding, blocks of norm + mixer + norm + MLP, norm, head.
//! * [`formats`]: files of other projects, GGUF and PyTorch.
//! * [`families`]: other projects' architectures as translations of configs and maps of names.
//! * [`checkpoint`]: models on disk: ours and theirs in, ours and theirs out.
//! * [`compress`]: structured weights for dense ones, within a budget; and back.
//! * [`convert`], [`inspect`]: from any container to any other; what lies at a path.
//! * [`generate`]: prompts and steps through states, sampling, streaming.
//! * [`presets`]: named configs.

pub mod block;
pub mod checkpoint;
pub mod compress;
pub mod config;
pub mod convert;
pub mod decoder;
mod error;
pub mod eval;
pub mod families;
pub mod formats;
pub mod generate;
pub mod inspect;
pub mod presets;
mod spec;

pub use checkpoint::{Description, Model, describe, export};
pub use config::Config;
pub use decoder::Decoder;
pub use error::{Error, Result};

use danaus_tensor::registry::OpSpec;

/// Operators of this room: whole models. Blocks are operators of the `matrix` room.
pub const SPECS: &[&[OpSpec]] = &[spec::SPECS];
