//! Whether weights are finite, at the speed of memory.
//!
//! An element is NaN or infinite exactly if its exponent is all ones, so integers are compared and
//! nothing is converted. Every byte is read once, by all threads; that also brings a mapped file into
//! memory. Quantised blocks are bytes, which have no such values.

use danaus_runtime::threads::for_each;
use danaus_tensor::{DType, Tensor};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a task.
const GRAIN: usize = 1 << 20;

/// Whether a tensor holds no NaN and no infinity. Other than floating-point tensors are finite.
///
/// # Errors
/// When its bytes cannot be had.
pub(crate) fn is_finite(tensor: &Tensor) -> danaus_tensor::Result<bool> {
    let test: fn(&[u8]) -> bool = match tensor.dtype() {
        DType::F64 => |bytes| all(bytes, u64::from_le_bytes, 0x7ff0_0000_0000_0000),
        DType::F32 => |bytes| all(bytes, u32::from_le_bytes, 0x7f80_0000),
        DType::BF16 => |bytes| all(bytes, u16::from_le_bytes, 0x7f80),
        DType::F16 => |bytes| all(bytes, u16::from_le_bytes, 0x7c00),
        DType::F8E5M2 => |bytes| all(bytes, u8::from_le_bytes, 0x7c),
        DType::F8E4M3 => |bytes| all(bytes, u8::from_le_bytes, 0x7f),
        _ => return Ok(true),
    };
    let tensor = tensor.contiguous()?;
    let bytes = tensor.as_bytes()?;
    let finite = AtomicBool::new(true);
    for_each(bytes.len().div_ceil(GRAIN), |task| {
        let part = &bytes[task * GRAIN..bytes.len().min((task + 1) * GRAIN)];
        if !test(part) {
            finite.store(false, Ordering::Relaxed);
        }
    });
    Ok(finite.into_inner())
}

/// Whether no element has all bits of the mask. The loop has no exit, so that it becomes vector code.
fn all<const N: usize, T>(bytes: &[u8], word: fn([u8; N]) -> T, mask: T) -> bool
where
    T: Copy + PartialEq + std::ops::BitAnd<Output = T>,
{
    let (words, _) = bytes.as_chunks::<N>();
    words.iter().fold(true, |finite, &bytes| finite & (word(bytes) & mask != mask))
}

#[cfg(test)]
mod tests {
    use super::*;
    use danaus_tensor::Device;

    #[test]
    fn one_bad_element_anywhere_is_found() {
        let values: Vec<f32> = (0..300_001).map(|i| (i as f32 - 9.0) * 1e33).collect();
        for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16, DType::F8E5M2] {
            let scale = if matches!(dtype, DType::F16 | DType::F8E5M2) { 1e-36 } else { 1.0 };
            let scaled: Vec<f32> = values.iter().map(|value| value * scale).collect();
            let make = |values: &[f32]| {
                let tensor = Tensor::from_slice(values, [values.len()], &Device::Cpu).unwrap();
                tensor.to_dtype(dtype).unwrap()
            };
            assert!(is_finite(&make(&scaled)).unwrap(), "{dtype}");
            for place in [0, 7, 262_144, 300_000] {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut spoiled = scaled.clone();
                    spoiled[place] = bad;
                    assert!(!is_finite(&make(&spoiled)).unwrap(), "{dtype} {place} {bad}");
                }
            }
        }
    }
}
