//! Tensors on a GPU: moving them, their device addresses, and what all GPU kernels of this crate and
//! the ones above share.
//!
//! The GPU side of an operator is a leaf beside its CPU side: `copy.rs` has `copy/cuda.rs` with the
//! kernels in `copy/copy.cuh`. Operators without one answer [`Error::not_on_cuda`]; nothing is ever
//! copied to the processor behind the caller's back.

use crate::storage::Storage;
use crate::tape::record_moved;
use crate::{DType, Device, Element, Error, Result, Tensor};
use danaus_runtime::cuda::{DeviceBuffer, Gpu, Header};
use std::sync::{Arc, OnceLock};

/// Element types and conversions between them, for kernels.
pub const SCALAR: Header = Header { name: "scalar.cuh", text: include_str!("scalar.cuh") };

/// Sums, extremes and other folds over a warp or a block in a fixed order, for kernels.
pub const BLOCK: Header = Header { name: "block.cuh", text: include_str!("block.cuh") };

/// Philox4x32, the counter-based random generator, with the bits of `danaus_runtime::philox`.
pub const PHILOX: Header = Header { name: "philox.cuh", text: include_str!("philox.cuh") };

/// The name of an element type in `scalar.cuh`.
///
/// # Errors
/// When kernels do not know the type.
pub fn device_type(op: &'static str, dtype: DType) -> Result<&'static str> {
    Ok(match dtype {
        DType::F64 => "double",
        DType::F32 => "float",
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        DType::I64 => "i64",
        DType::I32 => "int",
        DType::I8 => "i8",
        DType::U32 => "u32",
        DType::U8 => "u8",
        DType::Bool => "boolean",
        DType::F8E4M3 | DType::F8E5M2 | DType::C64 | DType::C128 => {
            return Err(Error::not_on_cuda(op, dtype));
        }
    })
}

/// The name of an unsigned type with the size of an element, for kernels that only move bits.
pub(crate) fn bits_type(dtype: DType) -> &'static str {
    match dtype.size() {
        1 => "u8",
        2 => "u16",
        4 => "u32",
        8 => "u64",
        _ => "u128",
    }
}

/// Whether f32 products may use TF32, which rounds operands to 10 bits: only when `DANAUS_TF32=1`
/// asks for it.
pub fn tf32() -> bool {
    static ASKED: OnceLock<bool> = OnceLock::new();
    *ASKED.get_or_init(|| std::env::var_os("DANAUS_TF32").is_some_and(|value| value == "1"))
}

/// The elements as bytes.
fn bytes<T: Element>(elements: &[T]) -> &[u8] {
    // SAFETY: every element type is plain data without padding.
    unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
}

/// A copy of host elements on a GPU.
pub(crate) fn upload<T: Element>(elements: &[T], device: &Device) -> Result<Storage> {
    Ok(Storage::Cuda(DeviceBuffer::from_host(&device.gpu()?, bytes(elements))?))
}

impl Tensor {
    /// The same elements on another device, row-major; the tensor itself if it is there already.
    /// Gradients come back the same way.
    ///
    /// # Errors
    /// When the device cannot be used or has no memory for them.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        let here = self.device();
        if here == *device {
            return Ok(self.clone());
        }
        let source = self.detach().contiguous()?;
        let moved = match (here, device) {
            (Device::Cpu, _) => {
                let buffer = DeviceBuffer::from_host(&device.gpu()?, source.as_bytes()?)?;
                Tensor::from_raw_storage(Storage::Cuda(buffer), self.shape(), self.dtype())?
            }
            (_, Device::Cpu) => source.download()?,
            // Two GPUs: by way of the host, which every pair of them can do.
            _ => source.download()?.to_device(device)?,
        };
        Ok(record_moved("to_device", self, moved, move |grad| grad.to_device(&here)))
    }

    /// A contiguous GPU tensor's elements in host memory.
    fn download(&self) -> Result<Tensor> {
        let Storage::Cuda(buffer) = self.storage() else {
            return Err(Error::internal("download of a tensor that is not on a GPU"));
        };
        let mut host = Tensor::empty(self.shape(), self.dtype(), &Device::Cpu)?;
        let start = self.layout().offset() * self.dtype().size();
        crate::match_dtype!(self.dtype(), T => {
            let elements = host.as_slice_mut::<T>()?;
            // SAFETY: plain data; what arrives are elements of this type.
            let bytes = unsafe {
                std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), size_of_val(elements))
            };
            buffer.copy_to_host(start, bytes)?;
        });
        Ok(host)
    }

    /// Writes the elements of a GPU tensor that nobody shares anew, at the same address: for lists that
    /// recorded work reads.
    ///
    /// # Errors
    /// When the tensor is shared, a view, on the processor, or of another size or dtype.
    pub fn rewrite<T: Element>(&mut self, elements: &[T]) -> Result<()> {
        if self.dtype() != T::DTYPE || self.elem_count() != elements.len() {
            let expected = format!("{} elements of {}", elements.len(), T::DTYPE);
            return Err(Error::shape("rewrite", "tensor", self.shape(), expected));
        }
        match self.storage_mut() {
            Some(Storage::Cuda(buffer)) => Ok(buffer.copy_from_host(0, bytes(elements))?),
            _ => Err(Error::internal("rewrite of a tensor that is shared or not on a GPU")),
        }
    }

    /// Whether a graph is being captured and the tensor was there before, so that it may be read ahead of
    /// what is recorded in front.
    pub fn precedes_capture(&self) -> bool {
        matches!(self.storage(), Storage::Cuda(buffer) if buffer.precedes_capture())
    }

    /// The GPU that the tensor is on, for kernels.
    ///
    /// # Errors
    /// When it is on the processor.
    pub fn gpu(&self) -> Result<&Arc<Gpu>> {
        match self.storage() {
            Storage::Cuda(buffer) => Ok(buffer.gpu()),
            _ => Err(Error::internal("a GPU kernel got a tensor on the processor")),
        }
    }

    /// Device address of the first element, for kernels that read it.
    ///
    /// # Errors
    /// When it is on the processor.
    pub fn device_address(&self) -> Result<u64> {
        match self.storage() {
            Storage::Cuda(buffer) => {
                Ok(buffer.address() + (self.layout().offset() * self.dtype().size()) as u64)
            }
            _ => Err(Error::internal("a GPU kernel got a tensor on the processor")),
        }
    }

    /// Device address of a fresh tensor that nobody shares, for kernels that write it.
    ///
    /// # Errors
    /// When it is shared, a view, or on the processor.
    pub fn device_address_mut(&mut self) -> Result<u64> {
        match self.storage_mut() {
            Some(Storage::Cuda(buffer)) => Ok(buffer.address()),
            _ => Err(Error::internal(
                "device_address_mut on a tensor that is shared or not on a GPU",
            )),
        }
    }
}
