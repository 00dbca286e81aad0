//! Element types.

use crate::fp8::{F8E4M3, F8E5M2};
use half::{bf16, f16};
use num_complex::Complex;
use std::fmt;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// 64-bit float: references and gradient checks.
    F64,
    /// 32-bit float.
    F32,
    /// 16-bit float with the range of f32.
    BF16,
    /// IEEE half precision.
    F16,
    /// 8-bit float, 4 exponent bits, no infinities (storage and casts).
    F8E4M3,
    /// 8-bit float, 5 exponent bits (storage and casts).
    F8E5M2,
    /// 64-bit integer.
    I64,
    /// 32-bit integer.
    I32,
    /// 8-bit integer.
    I8,
    /// Unsigned 32-bit integer.
    U32,
    /// Byte.
    U8,
    /// Truth value, one byte that is 0 or 1.
    Bool,
    /// Complex number of two f32.
    C64,
    /// Complex number of two f64.
    C128,
}

impl DType {
    /// Every type, in the order of the enum.
    pub const ALL: [DType; 14] = [
        DType::F64,
        DType::F32,
        DType::BF16,
        DType::F16,
        DType::F8E4M3,
        DType::F8E5M2,
        DType::I64,
        DType::I32,
        DType::I8,
        DType::U32,
        DType::U8,
        DType::Bool,
        DType::C64,
        DType::C128,
    ];

    /// Bytes an element takes.
    pub const fn size(self) -> usize {
        match self {
            DType::C128 => 16,
            DType::F64 | DType::I64 | DType::C64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::F8E4M3 | DType::F8E5M2 | DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// Lower-case name, as used on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::F8E4M3 => "e4m3",
            DType::F8E5M2 => "e5m2",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::I8 => "i8",
            DType::U32 => "u32",
            DType::U8 => "u8",
            DType::Bool => "bool",
            DType::C64 => "c64",
            DType::C128 => "c128",
        }
    }

    /// Whether it is a real floating-point type.
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            DType::F64 | DType::F32 | DType::BF16 | DType::F16 | DType::F8E4M3 | DType::F8E5M2
        )
    }

    /// Whether it is a complex type.
    pub const fn is_complex(self) -> bool {
        matches!(self, DType::C64 | DType::C128)
    }

    /// Whether it is an integer type (bool is not).
    pub const fn is_int(self) -> bool {
        matches!(self, DType::I64 | DType::I32 | DType::I8 | DType::U32 | DType::U8)
    }

    /// Whether gradients can flow through it.
    pub const fn is_differentiable(self) -> bool {
        self.is_float() || self.is_complex()
    }

    /// The type that sums of it are kept in: f32 for the narrow floats, itself otherwise.
    pub const fn accumulator(self) -> DType {
        match self {
            DType::BF16 | DType::F16 | DType::F8E4M3 | DType::F8E5M2 => DType::F32,
            other => other,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = |dtype: &DType| dtype.name() == text;
        DType::ALL.into_iter().find(named).ok_or_else(|| {
            let names: Vec<_> = DType::ALL.iter().map(|dtype| dtype.name()).collect();
            crate::Error::argument("dtype", "--dtype", text, names.join(", "))
        })
    }
}

/// A Rust type that stores one element of a [`DType`].
///
/// Every bit pattern that the crate's constructors produce is valid; `bool` tensors hold 0 or 1.
pub trait Element: Copy + Default + Send + Sync + PartialEq + fmt::Debug + 'static {
    /// The matching dtype.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),* $(,)?) => { $(
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )* };
}

elements! {
    f64 => F64, f32 => F32, bf16 => BF16, f16 => F16, F8E4M3 => F8E4M3, F8E5M2 => F8E5M2,
    i64 => I64, i32 => I32, i8 => I8, u32 => U32, u8 => U8, bool => Bool,
    Complex<f32> => C64, Complex<f64> => C128,
}

/// Runs a block with `$T` bound to the Rust type of a dtype, for all dtypes.
#[macro_export]
macro_rules! match_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::BF16 => {
                type $T = ::half::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $T = ::half::f16;
                $body
            }
            $crate::DType::F8E4M3 => {
                type $T = $crate::fp8::F8E4M3;
                $body
            }
            $crate::DType::F8E5M2 => {
                type $T = $crate::fp8::F8E5M2;
                $body
            }
            $crate::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::DType::I8 => {
                type $T = i8;
                $body
            }
            $crate::DType::U32 => {
                type $T = u32;
                $body
            }
            $crate::DType::U8 => {
                type $T = u8;
                $body
            }
            $crate::DType::Bool => {
                type $T = bool;
                $body
            }
            $crate::DType::C64 => {
                type $T = ::num_complex::Complex<f32>;
                $body
            }
            $crate::DType::C128 => {
                type $T = ::num_complex::Complex<f64>;
                $body
            }
        }
    };
}
