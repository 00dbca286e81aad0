//! GGUF version 3: one file with metadata, tokenizer and tensors.
//!
//! ```text
//! "GGUF"  u32 version  u64 tensors  u64 keys
//! keys:    text key, u32 type, value            text = u64 length, UTF-8
//! tensors: text name, u32 rank, u64 sizes (fastest first), u32 type, u64 offset
//! padding to general.alignment (32), then the data, every tensor aligned
//! ```
//!
//! [`GgufFile`] maps and checks a file and gives its metadata; [`GgufSource`] gives its tensors under
//! the file's names, as views of the map; [`write()`] streams a new file. What the names and values mean
//! for a model is the business of the families.

mod fault;
mod reader;
mod source;
pub mod tokenizer;
mod types;
mod value;
mod writer;

pub use fault::Fault;
pub use reader::{ALIGNMENT, GgufFile, TensorInfo};
pub use source::{GgufSource, source_name};
pub use types::TensorType;
pub use value::{Array, Value, ValueType};
pub use writer::{MetaValue, TensorPlan, write};

#[cfg(test)]
mod tests;
