//! Containers of other projects: where tensors and metadata stand in their files.
//!
//! * [`gguf`]: one file with metadata, tokenizer and (mostly block-quantised) tensors.
//! * [`dequantized`]: block-quantised tensors of any source, read as f32.
//! * [`torch`]: `pytorch_model.bin`, read by a machine that runs no code.
//!
//! Everything here gives tensors under the files' own names; which of them is which of ours is the
//! business of the families. No reader trusts a file: counts and sizes are checked against the file's
//! length before anything is allocated.

pub mod dequantized;
pub mod gguf;
pub mod shards;
pub mod torch;
