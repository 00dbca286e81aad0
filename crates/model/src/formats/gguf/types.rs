//! Element types of GGUF tensors: plain numbers and blocks of quantised ones.

use danaus_kernel::ops::quantized::BlockType;
use danaus_tensor::DType;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// Numbers of one of our element types.
    Plain(DType),
    /// Blocks of quantised weights.
    Block(BlockType),
}

/// Plain types by their number in a file.
const PLAIN: [(u32, DType); 7] = [
    (0, DType::F32),
    (1, DType::F16),
    (24, DType::I8),
    (26, DType::I32),
    (27, DType::I64),
    (28, DType::F64),
    (30, DType::BF16),
];

impl TensorType {
    /// The type of a number in a file.
    pub fn from_ggml(id: u32) -> Option<Self> {
        let plain = PLAIN.iter().find(|(number, _)| *number == id);
        let plain = plain.map(|(_, dtype)| Self::Plain(*dtype));
        plain.or_else(|| BlockType::from_ggml(id).ok().map(Self::Block))
    }

    /// Its number in a file; `None` for element types that the format does not have.
    pub fn ggml_id(self) -> Option<u32> {
        match self {
            Self::Plain(dtype) => {
                PLAIN.iter().find(|(_, plain)| *plain == dtype).map(|(number, _)| *number)
            }
            Self::Block(block) => Some(block.ggml_id()),
        }
    }

    /// The type of a lower-case name.
    pub fn from_name(name: &str) -> Option<Self> {
        let plain = PLAIN.iter().find(|(_, dtype)| dtype.name() == name);
        let block = || BlockType::ALL.into_iter().find(|block| block.name() == name);
        plain.map(|(_, dtype)| Self::Plain(*dtype)).or_else(|| block().map(Self::Block))
    }

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain(dtype) => dtype.name(),
            Self::Block(block) => block.name(),
        }
    }

    /// Elements and bytes of the unit that rows consist of.
    pub fn unit(self) -> (usize, usize) {
        match self {
            Self::Plain(dtype) => (1, dtype.size()),
            Self::Block(block) => (block.block_len(), block.block_bytes()),
        }
    }

    /// All types with their numbers, for messages.
    pub fn known() -> String {
        let plain = PLAIN.iter().map(|(id, dtype)| (*id, dtype.name()));
        let blocks = BlockType::ALL.iter().map(|block| (block.ggml_id(), block.name()));
        let mut all: Vec<_> = plain.chain(blocks).collect();
        all.sort_unstable();
        let all: Vec<String> = all.iter().map(|(id, name)| format!("{id} ({name})")).collect();
        all.join(", ")
    }
}
