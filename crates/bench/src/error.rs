//! The error type of this crate.

use std::path::PathBuf;

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while measuring or checking.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operator failed.
    #[error(transparent)]
    Tensor(#[from] danaus_tensor::Error),
    /// A model failed.
    #[error(transparent)]
    Model(#[from] danaus_model::Error),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] danaus_train::Error),
    /// No such benchmark.
    #[error("bench: there is no suite {given}, valid is {valid}")]
    UnknownSuite {
        /// What was asked for.
        given: String,
        /// All suites.
        valid: String,
    },
    /// A peer cannot be started or answers nonsense.
    #[error("peer {script}: {detail}")]
    Peer {
        /// The script.
        script: PathBuf,
        /// What went wrong and what to do.
        detail: String,
    },
    /// A list of golden cases is malformed.
    #[error("{path}: {detail}")]
    Cases {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

impl Error {
    /// Whether the caller's input is at fault.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Tensor(error) => error.is_bad_input(),
            Self::Model(error) => error.is_bad_input(),
            Self::Train(error) => error.is_bad_input(),
            _ => true,
        }
    }
}
