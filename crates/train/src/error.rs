//! The error type of this crate.

use std::path::{Path, PathBuf};

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] danaus_tensor::Error),
    /// The data failed.
    #[error(transparent)]
    Text(#[from] danaus_text::Error),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] danaus_model::Error),
    /// A setting is out of its range.
    #[error("{field} is {given}, valid is {valid}")]
    Config {
        /// Name of the setting.
        field: String,
        /// Value given.
        given: String,
        /// What would be valid.
        valid: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's content is not what it should be.
    #[error("{path}: {detail}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A checkpoint of another version.
    #[error(
        "{path}: training checkpoint of version {found}; this build ({build}) reads version {supported}"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Version found.
        found: u64,
        /// Version that can be read.
        supported: u64,
        /// This build.
        build: &'static str,
    },
    /// The run cannot continue from this checkpoint.
    #[error("{path}: {what} is {found} in the checkpoint and {expected} in this run")]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        what: String,
        /// In the checkpoint.
        found: String,
        /// In the run.
        expected: String,
    },
    /// A loss or gradient is not a number.
    #[error("step {step}: the {what} is {value}; {}", last_good(.last))]
    NotFinite {
        /// Which quantity.
        what: &'static str,
        /// Its value.
        value: f64,
        /// Step at which it appeared.
        step: u64,
        /// The last good checkpoint.
        last: Option<PathBuf>,
    },
    /// The loss rose and stayed high.
    #[error(
        "step {step}: training diverged: the loss {loss:.4} stayed above {factor} times its best \
         {best:.4} for {patience} steps; {}", last_good(.last)
    )]
    Diverged {
        /// Step at which training stopped.
        step: u64,
        /// Loss of this step.
        loss: f64,
        /// The lowest smoothed loss so far.
        best: f64,
        /// How many times the best is too much.
        factor: f64,
        /// For how many steps it stayed there.
        patience: u64,
        /// The last good checkpoint.
        last: Option<PathBuf>,
    },
    /// Something of a run could not be written, so training stopped.
    #[error("step {step}: cannot write {what}: {source}; {}", last_good(.last))]
    Save {
        /// Step that was to be saved.
        step: u64,
        /// The checkpoint, or the metrics.
        what: &'static str,
        /// Why it failed.
        source: Box<Error>,
        /// The last good checkpoint.
        last: Option<PathBuf>,
    },
    /// Memory would not suffice.
    #[error("training needs {needed} of memory ({sum}), {available} are available; {remedy}")]
    Memory {
        /// Bytes needed, in words.
        needed: String,
        /// The terms of the sum.
        sum: String,
        /// Bytes available, in words.
        available: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A mistake of ours.
    #[error("internal error: {0}; please report it")]
    Internal(String),
}

fn last_good(last: &Option<PathBuf>) -> String {
    match last {
        Some(path) => format!("the last good checkpoint is {}", path.display()),
        None => "no checkpoint had been written".to_string(),
    }
}

impl Error {
    /// A setting out of range.
    pub fn config(
        field: impl Into<String>,
        given: impl ToString,
        valid: impl Into<String>,
    ) -> Self {
        Self::Config { field: field.into(), given: given.to_string(), valid: valid.into() }
    }

    /// For `map_err` on file operations.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_path_buf(), source }
    }

    /// Malformed content of a file.
    pub fn format(path: impl Into<PathBuf>, detail: impl Into<String>) -> Self {
        Self::Format { path: path.into(), detail: detail.into() }
    }

    /// Whether the caller's input is at fault (exit code 2 of the binary), not the machine or we.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Tensor(error) => error.is_bad_input(),
            Self::Model(error) => error.is_bad_input(),
            Self::Io { source, .. } => danaus_tensor::error::names_a_wrong_path(source),
            Self::Config { .. }
            | Self::Text(_)
            | Self::Format { .. }
            | Self::Version { .. }
            | Self::Mismatch { .. } => true,
            _ => false,
        }
    }
}
