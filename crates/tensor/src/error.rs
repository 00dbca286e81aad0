//! The error type of this crate, shared by the operator rooms above it.
//!
//! Bad input, an unsupported combination, lack of resources and our own mistakes are different
//! variants, so that a caller (and the exit code of the binary) can tell them apart.

use crate::{DType, Device, Shape};
use std::path::PathBuf;

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with tensors and operators.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument's shape does not fit.
    #[error("{op}: {arg} has shape {found}, expected {expected}")]
    Shape {
        /// Operator.
        op: &'static str,
        /// Argument.
        arg: String,
        /// Shape given.
        found: Shape,
        /// What would be valid.
        expected: String,
    },
    /// An argument's element type is not accepted.
    #[error("{op}: {arg} has dtype {found}, expected {allowed}")]
    DType {
        /// Operator.
        op: &'static str,
        /// Argument.
        arg: String,
        /// Element type given.
        found: DType,
        /// What would be valid.
        allowed: String,
    },
    /// An argument lives on another device than the first one.
    #[error(
        "{op}: {arg} is on {found}, the other arguments are on {expected}; move it with to_device"
    )]
    DeviceMismatch {
        /// Operator.
        op: &'static str,
        /// Argument.
        arg: String,
        /// Where it is.
        found: Device,
        /// Where the others are.
        expected: Device,
    },
    /// The combination is offered on the processor, and has no GPU kernel.
    #[error(
        "{op}: {what} on a GPU is not supported; move the tensors with to_device(&Device::Cpu), or \
         run with --device cpu"
    )]
    NotOnCuda {
        /// Operator.
        op: &'static str,
        /// The combination.
        what: String,
    },
    /// The elements lie on a GPU where only the processor can read them.
    #[error("{op}: the tensor is on {device}; copy it with to_device(&Device::Cpu) first")]
    NotOnHost {
        /// Operator.
        op: &'static str,
        /// Where the tensor is.
        device: Device,
    },
    /// A GPU cannot be used, or work on it failed.
    #[error(transparent)]
    Cuda(#[from] danaus_runtime::cuda::Error),
    /// A value is out of its range.
    #[error("{op}: {arg} is {given}, valid is {valid}")]
    Argument {
        /// Operator.
        op: &'static str,
        /// Argument or attribute.
        arg: String,
        /// Value given.
        given: String,
        /// What would be valid.
        valid: String,
    },
    /// The combination is meaningful but not offered.
    #[error("{op}: {what} is not supported; {remedy}")]
    Unsupported {
        /// Operator.
        op: &'static str,
        /// The combination.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// Memory is missing.
    #[error("out of memory: {what} needs {needed} bytes, {available} are available")]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Bytes asked for.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's content is not what its format demands.
    #[error("{path}: {detail}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, where.
        detail: String,
    },
    /// A mistake of ours.
    #[error("internal error: {0}; please report it")]
    Internal(String),
}

impl Error {
    /// A shape error; `expected` may be a formula such as `[tokens, heads, head_dim]`.
    pub fn shape(
        op: &'static str,
        arg: impl Into<String>,
        found: impl Into<Shape>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Shape { op, arg: arg.into(), found: found.into(), expected: expected.into() }
    }

    /// A dtype error; `allowed` lists the valid ones.
    pub fn dtype(
        op: &'static str,
        arg: impl Into<String>,
        found: DType,
        allowed: impl Into<String>,
    ) -> Self {
        Self::DType { op, arg: arg.into(), found, allowed: allowed.into() }
    }

    /// A value error.
    pub fn argument(
        op: &'static str,
        arg: impl Into<String>,
        given: impl ToString,
        valid: impl Into<String>,
    ) -> Self {
        Self::Argument { op, arg: arg.into(), given: given.to_string(), valid: valid.into() }
    }

    /// An unsupported combination with its remedy.
    pub fn unsupported(
        op: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Unsupported { op, what: what.into(), remedy: remedy.into() }
    }

    /// An operator, or a combination of its arguments, without a GPU kernel.
    pub fn not_on_cuda(op: &'static str, what: impl std::fmt::Display) -> Self {
        Self::NotOnCuda { op, what: what.to_string() }
    }

    /// Whether the same call works on the processor: no kernel, or host access to a GPU tensor.
    pub fn is_not_on_cuda(&self) -> bool {
        matches!(self, Self::NotOnCuda { .. } | Self::NotOnHost { .. })
    }

    /// Lack of memory.
    pub fn out_of_memory(what: impl Into<String>, needed: u64) -> Self {
        let available = danaus_runtime::memory::available_bytes().unwrap_or(0);
        Self::OutOfMemory { what: what.into(), needed, available }
    }

    /// A file error with its path.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// A format error with its path.
    pub fn format(path: impl Into<PathBuf>, detail: impl Into<String>) -> Self {
        Self::Format { path: path.into(), detail: detail.into() }
    }

    /// A mistake of ours.
    pub fn internal(what: impl Into<String>) -> Self {
        Self::Internal(what.into())
    }

    /// Whether the caller's input is at fault (exit code 2 of the binary), not the machine or we.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Cuda(error) => error.is_bad_input(),
            Self::Io { source, .. } => names_a_wrong_path(source),
            other => !matches!(other, Self::OutOfMemory { .. } | Self::Internal(_)),
        }
    }
}

/// Whether the path that was given is at fault, and not the machine.
pub fn names_a_wrong_path(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | PermissionDenied | NotADirectory | IsADirectory)
}
