//! Descriptors of the bulk copy engine (TMA, from compute capability 9.0 on).
//!
//! A map says how a tensor of up to five dimensions lies in global memory and which box of it one
//! instruction moves to or from shared memory. It is passed to the kernel by value, as a
//! `const __grid_constant__` parameter of 128 bytes aligned to 64. Every rule of the hardware is
//! checked first, because the driver only says "invalid value".

use super::launch::Argument;
use super::{Error, Result};
use cudarc::driver::sys;

/// Element types that a map knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapType {
    /// One byte, also for fp8.
    U8,
    /// 32-bit integer.
    I32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
}

impl MapType {
    /// Bytes of an element.
    pub const fn size(self) -> u64 {
        match self {
            Self::U8 => 1,
            Self::Bf16 | Self::F16 => 2,
            Self::I32 | Self::F32 => 4,
        }
    }

    fn raw(self) -> sys::CUtensorMapDataType {
        use sys::CUtensorMapDataType as T;
        match self {
            Self::U8 => T::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            Self::I32 => T::CU_TENSOR_MAP_DATA_TYPE_INT32,
            Self::Bf16 => T::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Self::F16 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            Self::F32 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        }
    }
}

/// How 16-byte pieces of a row are exchanged in shared memory, so that columns hit different banks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// As in global memory.
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes: what wgmma reads fastest.
    B128,
}

impl Swizzle {
    /// Bytes of the pattern; the innermost side of a box may not be longer.
    pub const fn span(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::B32 => Some(32),
            Self::B64 => Some(64),
            Self::B128 => Some(128),
        }
    }

    fn raw(self) -> sys::CUtensorMapSwizzle {
        use sys::CUtensorMapSwizzle as S;
        match self {
            Self::None => S::CU_TENSOR_MAP_SWIZZLE_NONE,
            Self::B32 => S::CU_TENSOR_MAP_SWIZZLE_32B,
            Self::B64 => S::CU_TENSOR_MAP_SWIZZLE_64B,
            Self::B128 => S::CU_TENSOR_MAP_SWIZZLE_128B,
        }
    }
}

/// What a map describes. Lists go from the innermost dimension outwards.
#[derive(Clone, Copy, Debug)]
pub struct TensorMapSpec<'a> {
    /// Device address of the first element, a multiple of 16.
    pub address: u64,
    /// Element type.
    pub dtype: MapType,
    /// Elements in each dimension; the innermost ones are neighbours in memory.
    pub dims: &'a [u64],
    /// Bytes between neighbours of dimension 1, 2, ..: one fewer than `dims`, multiples of 16.
    pub strides: &'a [u64],
    /// Elements of a box in each dimension, at most 256. Parts of a box that lie outside of the tensor
    /// are read as zero and not written.
    pub box_dims: &'a [u32],
    /// Exchange of pieces in shared memory.
    pub swizzle: Swizzle,
}

/// A checked map, passed to kernels by value.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TensorMap(sys::CUtensorMap);

// SAFETY: the map is its 128 bytes, on both sides.
unsafe impl Argument for TensorMap {}

impl TensorMapSpec<'_> {
    /// Refuses what the hardware does not do, by name.
    ///
    /// # Errors
    /// [`Error::Argument`] with the rule.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: &str, given: String, valid: &str| {
            Err(Error::argument("tensor map", what, given, valid))
        };
        let rank = self.dims.len();
        if !(1..=5).contains(&rank) {
            return refuse("dims", format!("{:?}", self.dims), "1 to 5 dimensions");
        }
        if self.strides.len() + 1 != rank || self.box_dims.len() != rank {
            let given = format!("{} and {}", self.strides.len(), self.box_dims.len());
            return refuse("strides and box", given, "one fewer and as many as dims");
        }
        if self.address == 0 || !self.address.is_multiple_of(16) {
            let given = format!("{:#x}", self.address);
            return refuse("address", given, "a device address divisible by 16");
        }
        if self.dims.iter().any(|&dim| dim == 0 || dim > 1 << 32) {
            return refuse("dims", format!("{:?}", self.dims), "1 to 2^32 each");
        }
        if self.strides.iter().any(|&stride| !stride.is_multiple_of(16) || stride >= 1 << 40) {
            let given = format!("{:?}", self.strides);
            return refuse("strides", given, "multiples of 16 bytes below 2^40");
        }
        if self.box_dims.iter().any(|&side| !(1..=256).contains(&side)) {
            return refuse("box", format!("{:?}", self.box_dims), "1 to 256 in each dimension");
        }
        let row = u64::from(self.box_dims[0]) * self.dtype.size();
        if !row.is_multiple_of(16) {
            return refuse("box", format!("{row} bytes inside"), "a multiple of 16 bytes inside");
        }
        if let Some(span) = self.swizzle.span().filter(|&span| row > span) {
            let valid = format!("at most {span} bytes inside with this swizzle");
            return refuse("box", format!("{row} bytes inside"), &valid);
        }
        Ok(())
    }

    /// Makes the map. The memory it describes must live as long as kernels use it.
    ///
    /// # Errors
    /// As [`Self::check`], and when the driver refuses it.
    pub fn encode(&self) -> Result<TensorMap> {
        self.check()?;
        let steps = [1u32; 5];
        let mut map = std::mem::MaybeUninit::<TensorMap>::uninit();
        // SAFETY: the lists have the lengths that the rank asks for; the driver writes the map, which
        // is aligned to 64 bytes, and does not read the tensor.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr().cast(),
                self.dtype.raw(),
                self.dims.len() as u32,
                self.address as *mut std::ffi::c_void,
                self.dims.as_ptr(),
                self.strides.as_ptr(),
                self.box_dims.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                self.swizzle.raw(),
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
            .map_err(|error| Error::driver("cuTensorMapEncodeTiled", error))?;
            Ok(map.assume_init())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: TensorMapSpec = TensorMapSpec {
        address: 0x1000,
        dtype: MapType::Bf16,
        dims: &[4096, 1024],
        strides: &[8192],
        box_dims: &[64, 128],
        swizzle: Swizzle::B128,
    };

    #[test]
    fn every_rule_is_named() {
        assert!(GOOD.check().is_ok());
        let bad = [
            (TensorMapSpec { address: 0x1008, ..GOOD }, "address"),
            (TensorMapSpec { dims: &[], strides: &[], box_dims: &[], ..GOOD }, "dims"),
            (TensorMapSpec { dims: &[4096, 0], ..GOOD }, "dims"),
            (TensorMapSpec { strides: &[], ..GOOD }, "strides and box"),
            (TensorMapSpec { strides: &[8200], ..GOOD }, "strides"),
            (TensorMapSpec { box_dims: &[64, 257], ..GOOD }, "box"),
            (TensorMapSpec { box_dims: &[65, 8], ..GOOD }, "box"),
            (TensorMapSpec { box_dims: &[128, 8], ..GOOD }, "box"),
        ];
        for (spec, what) in bad {
            let message = spec.check().unwrap_err().to_string();
            assert!(message.starts_with(&format!("tensor map: {what} is")), "{message}");
        }
    }

    #[test]
    fn the_map_has_the_size_and_alignment_that_kernels_expect() {
        assert_eq!(size_of::<TensorMap>(), 128);
        assert!(align_of::<TensorMap>() >= 64);
    }
}
