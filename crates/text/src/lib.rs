//! From files on disk to batches of token ids, and back to text. Knows nothing of tensors.
//!
//! * [`tokenizer`]: byte-level BPE (loading, training, encoding, streaming decoding, bytes per
//!   token).
//! * [`chat`]: conversations as text, by the template of a model.
//! * [`fim`]: fill-in-the-middle rearrangement of documents and prompts.
//! * [`corpus`]: gathering, filtering and splitting of source code and prose.
//! * [`pack`], [`shard`]: tokenised documents in memory and on disk.
//! * [`loader`]: endless, resumable, packed training batches.
//! * [`baseline`]: what gzip and a byte trigram model reach on the same text.
//!
//! Everything random is a pure function of a seed and a position ([`rng`]), so that a run can be
//! repeated and resumed bit for bit.

#![forbid(unsafe_code)]

pub mod baseline;
pub mod chat;
pub mod corpus;
pub mod digest;
mod error;
pub mod fim;
pub mod loader;
pub mod pack;
pub mod rng;
pub mod shard;
pub mod tokenizer;

pub use error::{Error, Result};
