//! The memory behind tensors.

use crate::{Device, Error, Result};
use danaus_runtime::cuda::DeviceBuffer;
use danaus_runtime::{fs::Mapped, pool::Buffer};
use std::sync::Arc;

/// Memory on one device. An enum and not a trait object: every operator matches on the device once,
/// at its own leaf, and a new device is a new variant.
#[derive(Debug)]
pub enum Storage {
    /// Writable memory of the processor's pool.
    Cpu(CpuBuffer),
    /// A part of a read-only memory-mapped file.
    Mapped(MappedBytes),
    /// Memory of a GPU.
    Cuda(DeviceBuffer),
}

/// Pool memory.
pub struct CpuBuffer(pub(crate) Buffer);

/// `len` bytes of a mapped file from `start`, aligned for the element type it is used with.
pub struct MappedBytes {
    file: Arc<Mapped>,
    start: usize,
    len: usize,
}

impl std::fmt::Debug for CpuBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CpuBuffer({} bytes)", self.0.len())
    }
}

impl std::fmt::Debug for MappedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MappedBytes({} bytes)", self.len)
    }
}

impl Storage {
    /// Uninitialised memory; the caller writes every byte before anyone reads.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with what was asked for.
    pub fn uninit(bytes: usize, device: &Device) -> Result<Self> {
        if device.is_cuda() {
            return Ok(Self::Cuda(DeviceBuffer::uninit(&device.gpu()?, bytes)?));
        }
        let buffer = Buffer::uninit(bytes);
        buffer.map(|b| Self::Cpu(CpuBuffer(b))).ok_or_else(|| memory_error(bytes))
    }

    /// Memory filled with zero bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with what was asked for.
    pub fn zeroed(bytes: usize, device: &Device) -> Result<Self> {
        if device.is_cuda() {
            return Ok(Self::Cuda(DeviceBuffer::zeroed(&device.gpu()?, bytes)?));
        }
        let buffer = Buffer::zeroed(bytes);
        buffer.map(|b| Self::Cpu(CpuBuffer(b))).ok_or_else(|| memory_error(bytes))
    }

    /// Memory of the processor that `fill` writes, from zero bytes; for readers of files.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with what was asked for.
    pub fn filled(bytes: usize, fill: impl FnOnce(&mut [u8])) -> Result<Self> {
        let buffer = Buffer::zeroed(bytes).ok_or_else(|| memory_error(bytes))?;
        // SAFETY: the buffer is owned, `bytes` long and initialised.
        fill(unsafe { std::slice::from_raw_parts_mut(buffer.as_ptr(), bytes) });
        Ok(Self::Cpu(CpuBuffer(buffer)))
    }

    /// A view of a mapped file; `None` if the range is outside or the start not aligned to `align`.
    pub fn mapped(file: Arc<Mapped>, start: usize, len: usize, align: usize) -> Option<Self> {
        let bytes = file.get(start..start.checked_add(len)?)?;
        let aligned = (bytes.as_ptr() as usize).is_multiple_of(align);
        aligned.then_some(Self::Mapped(MappedBytes { file, start, len }))
    }

    /// Where the memory is.
    pub fn device(&self) -> Device {
        match self {
            Self::Cpu(_) | Self::Mapped(_) => Device::Cpu,
            Self::Cuda(buffer) => Device::Cuda(buffer.gpu().index()),
        }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Cpu(buffer) => buffer.0.len(),
            Self::Mapped(bytes) => bytes.len,
            Self::Cuda(buffer) => buffer.len(),
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Start of readable memory; `None` on a GPU.
    pub(crate) fn read_ptr(&self) -> Option<*const u8> {
        match self {
            Self::Cpu(buffer) => Some(buffer.0.as_ptr()),
            Self::Mapped(bytes) => Some(bytes.file[bytes.start..].as_ptr()),
            Self::Cuda(_) => None,
        }
    }

    /// Start of writable memory; `None` for a mapped file and on a GPU.
    pub(crate) fn write_ptr(&mut self) -> Option<*mut u8> {
        match self {
            Self::Cpu(buffer) => Some(buffer.0.as_ptr()),
            Self::Mapped(_) | Self::Cuda(_) => None,
        }
    }
}

fn memory_error(bytes: usize) -> Error {
    Error::out_of_memory("a tensor", bytes as u64)
}
