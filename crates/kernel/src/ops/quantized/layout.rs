//! The block types: names, file numbers, sizes.

use danaus_tensor::{Error, Result};

/// How a run of 32 or 256 weights is stored in bytes: the types of GGUF files.
///
/// The number is the bits of a weight; `K` types have 256 weights and scales of their own within.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum BlockType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

impl BlockType {
    /// Every type, in the order of the enum.
    pub const ALL: [BlockType; 13] = [
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q8_0,
        BlockType::Q2K,
        BlockType::Q3K,
        BlockType::Q4K,
        BlockType::Q5K,
        BlockType::Q6K,
        BlockType::Iq4Nl,
        BlockType::Iq4Xs,
        BlockType::Mxfp4,
    ];

    /// Lower-case name, as in parameter names (`qkv.q8_0`) and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            BlockType::Q4_0 => "q4_0",
            BlockType::Q4_1 => "q4_1",
            BlockType::Q5_0 => "q5_0",
            BlockType::Q5_1 => "q5_1",
            BlockType::Q8_0 => "q8_0",
            BlockType::Q2K => "q2_k",
            BlockType::Q3K => "q3_k",
            BlockType::Q4K => "q4_k",
            BlockType::Q5K => "q5_k",
            BlockType::Q6K => "q6_k",
            BlockType::Iq4Nl => "iq4_nl",
            BlockType::Iq4Xs => "iq4_xs",
            BlockType::Mxfp4 => "mxfp4",
        }
    }

    /// The type of that name, in lower or upper case.
    ///
    /// # Errors
    /// When there is none; the message lists the valid names.
    pub fn from_name(name: &str) -> Result<Self> {
        let named = |kind: &BlockType| kind.name().eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(named).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::argument("quantized", "block_type", name, names)
        })
    }

    /// The number of the type in a GGUF file.
    pub const fn ggml_id(self) -> u32 {
        match self {
            BlockType::Q4_0 => 2,
            BlockType::Q4_1 => 3,
            BlockType::Q5_0 => 6,
            BlockType::Q5_1 => 7,
            BlockType::Q8_0 => 8,
            BlockType::Q2K => 10,
            BlockType::Q3K => 11,
            BlockType::Q4K => 12,
            BlockType::Q5K => 13,
            BlockType::Q6K => 14,
            BlockType::Iq4Nl => 20,
            BlockType::Iq4Xs => 23,
            BlockType::Mxfp4 => 39,
        }
    }

    /// The type of that number in a GGUF file.
    ///
    /// # Errors
    /// When there is none; the message lists the valid numbers.
    pub fn from_ggml(id: u32) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.ggml_id() == id).ok_or_else(|| {
            let valid = Self::ALL.map(|kind| format!("{} ({})", kind.ggml_id(), kind.name()));
            Error::argument("quantized", "ggml type", id, valid.join(", "))
        })
    }

    /// Weights in a block.
    pub const fn block_len(self) -> usize {
        match self {
            BlockType::Q4_0
            | BlockType::Q4_1
            | BlockType::Q5_0
            | BlockType::Q5_1
            | BlockType::Q8_0
            | BlockType::Iq4Nl
            | BlockType::Mxfp4 => 32,
            _ => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            BlockType::Q4_0 | BlockType::Iq4Nl => 18,
            BlockType::Q4_1 => 20,
            BlockType::Q5_0 => 22,
            BlockType::Q5_1 => 24,
            BlockType::Q8_0 => 34,
            BlockType::Mxfp4 => 17,
            BlockType::Q2K => 84,
            BlockType::Q3K => 110,
            BlockType::Q4K => 144,
            BlockType::Q5K => 176,
            BlockType::Q6K => 210,
            BlockType::Iq4Xs => 136,
        }
    }

    /// Bytes of a row of `cols` weights.
    ///
    /// # Errors
    /// When `cols` is not a multiple of the block.
    pub fn row_bytes(self, cols: usize) -> Result<usize> {
        if cols.is_multiple_of(self.block_len()) {
            return Ok(cols / self.block_len() * self.block_bytes());
        }
        let valid = format!("a multiple of {}, the block of {}", self.block_len(), self.name());
        Err(Error::argument("quantized", "cols", cols, valid))
    }
}

impl std::fmt::Display for BlockType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
