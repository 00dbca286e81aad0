//! What can go wrong on the way to a GPU and on it.

use cudarc::driver::DriverError;

/// Result with this module's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A GPU that cannot be used, or work on it that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A library of the vendor is not on this machine.
    #[error("{library} was not found; {remedy}")]
    NoLibrary {
        /// The library.
        library: &'static str,
        /// Where to get it.
        remedy: &'static str,
    },
    /// There is no such device.
    #[error("GPU {index} was asked for, this machine has {count}; --device cpu always works")]
    NoDevice {
        /// Index asked for.
        index: usize,
        /// Devices there are.
        count: usize,
    },
    /// The driver is too old.
    #[error(
        "the NVIDIA driver speaks CUDA {found}, at least {needed} is needed; install a newer driver"
    )]
    OldDriver {
        /// CUDA version of the driver, such as `12.2`.
        found: String,
        /// The oldest that works.
        needed: String,
    },
    /// The device's memory is used up.
    #[error("out of GPU memory: {asked} bytes asked for, {free} of {total} are free")]
    OutOfMemory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes free on the device, besides what our pool keeps.
        free: u64,
        /// Bytes of the device.
        total: u64,
    },
    /// A kernel's source was refused by the compiler.
    #[error("{source_name} does not compile for {arch}:\n{log}")]
    Compile {
        /// Name of the source.
        source_name: String,
        /// Chip it was compiled for.
        arch: String,
        /// What the compiler said.
        log: String,
    },
    /// A launch that the chip or the kernel does not allow; found before it was tried.
    #[error("kernel {kernel}: {what} is {given}, valid is {valid}")]
    Launch {
        /// Entry point.
        kernel: String,
        /// Which part of the launch.
        what: String,
        /// Value given.
        given: String,
        /// What would be valid.
        valid: String,
    },
    /// An argument of a call that is not a launch.
    #[error("{call}: {what} is {given}, valid is {valid}")]
    Argument {
        /// The call.
        call: &'static str,
        /// Which argument.
        what: String,
        /// Value given.
        given: String,
        /// What would be valid.
        valid: String,
    },
    /// The driver or the device reported a failure.
    #[error("{call} failed: {code}{}", after(.last_kernel))]
    Driver {
        /// What was called.
        call: &'static str,
        /// Code and text of the driver.
        code: String,
        /// The kernel launched last, which is the likely cause of an asynchronous error.
        last_kernel: Option<String>,
    },
    /// The matrix library reported a failure.
    #[error("cuBLASLt: {call} failed with {code}")]
    Blas {
        /// What was called.
        call: &'static str,
        /// Its status.
        code: String,
    },
}

impl Error {
    /// Whether the caller asked for something that this machine does not have or that makes no sense,
    /// as opposed to a failure on the way.
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            Self::NoLibrary { .. }
                | Self::NoDevice { .. }
                | Self::OldDriver { .. }
                | Self::Argument { .. }
        )
    }

    pub(crate) fn argument(
        call: &'static str,
        what: impl Into<String>,
        given: impl ToString,
        valid: impl Into<String>,
    ) -> Self {
        Self::Argument { call, what: what.into(), given: given.to_string(), valid: valid.into() }
    }

    /// A failure of a library that only has codes.
    pub(crate) fn driver_text(call: &'static str, code: impl std::fmt::Display) -> Self {
        Self::Driver { call, code: code.to_string(), last_kernel: None }
    }

    pub(crate) fn driver(call: &'static str, error: DriverError) -> Self {
        let text = error.error_string().ok().and_then(|text| text.to_str().ok());
        let code = match text {
            Some(text) => format!("{:?} ({text})", error.0),
            None => format!("{:?}", error.0),
        };
        Self::Driver { call, code, last_kernel: None }
    }
}

fn after(kernel: &Option<String>) -> String {
    kernel.as_ref().map_or_else(String::new, |name| format!(" (kernel launched last: {name})"))
}
