//! What can be wrong with a GGUF file.

use super::types::TensorType;
use super::value::ValueType;

/// One reason to refuse a file. Every case has its own variant, so that callers and tests can tell
/// them apart; the text names the field, what was found and what is valid.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Another format.
    #[error("not a GGUF file: it does not begin with GGUF")]
    NotGguf,
    /// Written for a machine with the other byte order.
    #[error("a big-endian GGUF file; convert it to little-endian")]
    BigEndian,
    /// Another version of the format.
    #[error("GGUF version {0}; only version 3 is read: convert the file again with a current tool")]
    Version(u32),
    /// The file ends inside of its header.
    #[error("the file ends early: {what} at byte {at} needs {needed} bytes, {left} are left")]
    Truncated {
        /// What was to be read.
        what: &'static str,
        /// Where in the file.
        at: usize,
        /// Its size.
        needed: u64,
        /// What there is.
        left: u64,
    },
    /// More of something than any real file has.
    #[error("the file has {count} {what}, at most {limit} are read")]
    Count {
        /// What there are too many of.
        what: &'static str,
        /// How many.
        count: u64,
        /// How many are allowed.
        limit: u64,
    },
    /// A name or text that is no text.
    #[error("{what} at byte {at} is not UTF-8")]
    NotUtf8 {
        /// Key, tensor name or value.
        what: &'static str,
        /// Where in the file.
        at: usize,
    },
    /// A key or tensor without a name.
    #[error("{what} at byte {at} has {len} bytes, valid is 1 to {limit}")]
    NameLength {
        /// Key or tensor name.
        what: &'static str,
        /// Where in the file.
        at: usize,
        /// Its length.
        len: u64,
        /// The longest valid one.
        limit: u64,
    },
    /// A metadata value of no known type.
    #[error("key {key} has value type {found}, valid is 0 to 12")]
    ValueType {
        /// The key.
        key: String,
        /// The number in the file.
        found: u32,
    },
    /// Arrays in arrays in arrays.
    #[error("key {key} nests arrays more than {limit} deep")]
    Depth {
        /// The key.
        key: String,
        /// How deep is allowed.
        limit: usize,
    },
    /// A truth value that is neither 0 nor 1.
    #[error("key {key} has the truth value {found}, valid is 0 or 1")]
    Truth {
        /// The key.
        key: String,
        /// The byte in the file.
        found: u8,
    },
    /// A key is used twice.
    #[error("key {0} stands in the file twice")]
    DuplicateKey(String),
    /// A key is not there.
    #[error("key {0} is missing")]
    MissingKey(String),
    /// A key has another type than it should.
    #[error("key {key} is {found}, expected {expected}")]
    KeyType {
        /// The key.
        key: String,
        /// Its type.
        found: ValueType,
        /// What was asked for.
        expected: &'static str,
    },
    /// No power of two, or out of range.
    #[error("general.alignment is {0}, valid is a power of two from 8 to 65536")]
    Alignment(u64),
    /// A tensor name is used twice (also: two tensors whose names here would be the same).
    #[error("tensor {0} stands in the file twice")]
    DuplicateTensor(String),
    /// A scalar, or more dimensions than the format has.
    #[error("tensor {name} has {rank} dimensions, valid is 1 to 4")]
    Rank {
        /// The tensor.
        name: String,
        /// How many.
        rank: u32,
    },
    /// A size of zero, or a product that overflows.
    #[error("tensor {name} has the sizes {sizes:?}, which no file can hold")]
    Sizes {
        /// The tensor.
        name: String,
        /// As in the file, fastest first.
        sizes: Vec<u64>,
    },
    /// A type of no known number.
    #[error("tensor {name} has ggml type {found}; known are {known}", known = TensorType::known())]
    TensorType {
        /// The tensor.
        name: String,
        /// The number in the file.
        found: u32,
    },
    /// Rows that are not whole blocks.
    #[error("tensor {name} of type {kind} has rows of {cols}, which is no multiple of {block}")]
    Block {
        /// The tensor.
        name: String,
        /// Its type.
        kind: &'static str,
        /// Elements of a row.
        cols: u64,
        /// Elements of a block.
        block: u64,
    },
    /// A start that is not aligned.
    #[error("tensor {name} starts at {offset}, which is no multiple of the alignment {alignment}")]
    Misaligned {
        /// The tensor.
        name: String,
        /// Its offset.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// Data beyond the end of the file.
    #[error("tensor {name} needs bytes {offset} to {end} of the data, the file has {available}")]
    OutOfRange {
        /// The tensor.
        name: String,
        /// Where its data begins.
        offset: u64,
        /// Where its data ends.
        end: u64,
        /// Bytes of data in the file.
        available: u64,
    },
    /// Two tensors share bytes.
    #[error("the data of tensors {0} and {1} overlaps")]
    Overlap(String, String),
}
