//! Where a tensor lives.

use crate::{Error, Result};
use danaus_runtime::cuda::Gpu;
use std::fmt;
use std::sync::Arc;

/// A place for storage and computation. A value, not a compile-time feature: one binary serves all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Device {
    /// The processor and its memory.
    #[default]
    Cpu,
    /// The NVIDIA GPU with this index.
    Cuda(usize),
}

impl Device {
    /// A GPU, opened.
    ///
    /// # Errors
    /// When there is no driver or no such device; the message says what is missing.
    pub fn cuda(index: usize) -> Result<Self> {
        Gpu::get(index)?;
        Ok(Self::Cuda(index))
    }

    /// Opens the device if it is one that needs it, so that a missing GPU is reported before any work.
    ///
    /// # Errors
    /// As [`Self::cuda`].
    pub fn open(self) -> Result<Self> {
        match self {
            Device::Cpu => Ok(self),
            Device::Cuda(index) => Self::cuda(index),
        }
    }

    /// Waits until all work on the device is done.
    ///
    /// # Errors
    /// Whatever went wrong on the device since the last wait.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(index) => Ok(Gpu::get(*index)?.synchronize()?),
        }
    }

    /// The handle of a GPU.
    ///
    /// # Errors
    /// On the processor, and as [`Self::cuda`].
    pub fn gpu(&self) -> Result<Arc<Gpu>> {
        match self {
            Device::Cpu => Err(Error::internal("the processor used as a GPU")),
            Device::Cuda(index) => Ok(Gpu::get(*index)?),
        }
    }

    /// Whether it is a GPU.
    pub const fn is_cuda(&self) -> bool {
        matches!(self, Device::Cuda(_))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = Error;

    /// `cpu`, `cuda` (the first GPU) or `cuda:N`. Nothing is opened.
    fn from_str(text: &str) -> Result<Self> {
        let index = match text {
            "cpu" => return Ok(Device::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|index| index.parse().ok()),
        };
        let valid = "cpu, cuda or cuda:N with the number of a GPU";
        index.map(Device::Cuda).ok_or_else(|| Error::argument("device", "--device", text, valid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_read_and_written() {
        for (text, device) in
            [("cpu", Device::Cpu), ("cuda:0", Device::Cuda(0)), ("cuda:3", Device::Cuda(3))]
        {
            assert_eq!(text.parse::<Device>().unwrap(), device);
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for bad in ["gpu", "cuda:", "cuda:-1", "cuda0", ""] {
            let message = bad.parse::<Device>().unwrap_err().to_string();
            assert!(message.contains("cuda:N"), "{message}");
        }
    }

    /// On a machine without a GPU the CPU must not notice, and the message must name the remedy.
    #[test]
    fn a_missing_gpu_is_said_only_when_asked_for() {
        assert!(Device::Cpu.open().is_ok());
        if let Err(error) = Device::cuda(99) {
            let message = error.to_string();
            assert!(message.contains("--device cpu"), "{message}");
            assert!(error.is_bad_input());
        }
    }
}
