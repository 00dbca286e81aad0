//! The one error type of this crate.

use std::path::{Path, PathBuf};

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong between a file and a batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused to read or write a path.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted: `read`, `write`, `list`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A tokenizer file or a tokenizer operation failed.
    #[error("tokenizer: cannot {action}: {reason}")]
    Tokenizer {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// Fill-in-the-middle was asked of a tokenizer that lacks its sentinels.
    #[error(
        "fill-in-the-middle needs the tokens {missing:?}, which this tokenizer does not have; \
         use a tokenizer with <fim_prefix>, <fim_middle> and <fim_suffix>, or turn it off"
    )]
    MissingSentinels {
        /// The sentinels that were not found, in StarCoder's spelling.
        missing: Vec<&'static str>,
    },
    /// A companion file of a tokenizer is malformed.
    #[error("{}: {problem}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// Which entry, what it is, what is valid.
        problem: String,
    },
    /// A chat template refused the conversation; the message is the template's own.
    #[error("{0}")]
    Refused(String),
    /// A chat template is malformed, or does what templates may not.
    #[error("chat template{}: {problem}", line.map_or(String::new(), |line| format!(", line {line}")))]
    Template {
        /// Where, if it is known.
        line: Option<usize>,
        /// What is wrong.
        problem: String,
    },
    /// A chat message is malformed.
    #[error("message {index}: {problem}")]
    Message {
        /// Its place in the list, from 0.
        index: usize,
        /// What is wrong and what is valid.
        problem: String,
    },
    /// An argument outside of its valid range.
    #[error("argument `{name}` is {given}; valid: {valid}")]
    Argument {
        /// The argument.
        name: &'static str,
        /// What was given.
        given: String,
        /// What would be valid.
        valid: String,
    },
    /// A document is not UTF-8 and the policy is to refuse it.
    #[error(
        "{} is not UTF-8: invalid byte at offset {offset}; convert it, or choose the policy `skip` \
         or `bytes`",
        path.display()
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Position of the first invalid byte.
        offset: usize,
    },
    /// Nothing was left to train on.
    #[error("no documents in {}: {summary}", path.display())]
    EmptyCorpus {
        /// Where documents were looked for.
        path: PathBuf,
        /// How many files were seen and why they were dropped.
        summary: String,
    },
    /// A token shard is damaged, truncated or of another version.
    #[error("token shard {}: {problem}", path.display())]
    Shard {
        /// The shard file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A saved loader position does not belong to this data, tokenizer or configuration.
    #[error("cannot resume: {field} was {expected} when the position was saved and is {found} now")]
    Cursor {
        /// What differs.
        field: &'static str,
        /// The saved value.
        expected: String,
        /// The present value.
        found: String,
    },
    /// A background thread could not be started or ended early.
    #[error("loader thread: {0}")]
    Thread(String),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_path_buf(), source }
    }

    pub(crate) fn shard(path: &Path, problem: impl Into<String>) -> Self {
        Self::Shard { path: path.to_path_buf(), problem: problem.into() }
    }

    pub(crate) fn argument(
        name: &'static str,
        given: impl ToString,
        valid: impl Into<String>,
    ) -> Self {
        Self::Argument { name, given: given.to_string(), valid: valid.into() }
    }
}
