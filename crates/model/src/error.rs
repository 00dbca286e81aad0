//! The error type of this crate.

use std::path::PathBuf;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with models.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor or operator failed.
    #[error(transparent)]
    Tensor(#[from] danaus_tensor::Error),
    /// A tokenizer failed.
    #[error(transparent)]
    Text(#[from] danaus_text::Error),
    /// A config is malformed.
    #[error("{path}: {detail}")]
    Config {
        /// The file, or what stands for it.
        path: PathBuf,
        /// Field, value, what is valid.
        detail: String,
    },
    /// A checkpoint does not hold what its config asks for.
    #[error("{path}: {detail}")]
    Checkpoint {
        /// The folder.
        path: PathBuf,
        /// Which tensor, what is wrong.
        detail: String,
    },
    /// Memory would not suffice.
    #[error(
        "the model needs {needed} of memory ({sum}), {available} are available; use a smaller one"
    )]
    Memory {
        /// Bytes needed, in words.
        needed: String,
        /// The terms of the sum.
        sum: String,
        /// Bytes available, in words.
        available: String,
    },
    /// A GGUF file is refused.
    #[error("{path}: {fault}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: crate::formats::gguf::Fault,
    },
    /// A PyTorch file is refused.
    #[error("{path}: {fault}")]
    Torch {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: crate::formats::torch::Fault,
    },
    /// A field of another project's config has no place in ours.
    #[error("{field} is {given}, valid is {valid}")]
    Field {
        /// Which field, with its section.
        field: String,
        /// The value.
        given: String,
        /// What would be valid.
        valid: String,
    },
    /// A request cannot be honoured.
    #[error("{arg} is {given}, valid is {valid}")]
    Argument {
        /// Which parameter.
        arg: &'static str,
        /// The value.
        given: String,
        /// What would be valid.
        valid: String,
    },
}

/// What a GPU reports reaches models through tensors.
impl From<danaus_runtime::cuda::Error> for Error {
    fn from(error: danaus_runtime::cuda::Error) -> Self {
        Self::Tensor(error.into())
    }
}

impl Error {
    pub(crate) fn argument(
        arg: &'static str,
        given: impl ToString,
        valid: impl Into<String>,
    ) -> Self {
        Self::Argument { arg, given: given.to_string(), valid: valid.into() }
    }

    /// Whether the caller's input is at fault.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Tensor(error) => error.is_bad_input(),
            Self::Memory { .. } => false,
            _ => true,
        }
    }
}
