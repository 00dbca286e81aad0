//! Which element types multiply, and the kernels that do it on this processor.

use danaus_runtime::simd::{Isa, has_bf16_dot, isa};
use half::{bf16, f16};

use super::engine::{Kernels, Micro, Side};
use super::epilogue::Output;
use super::pack::PackFn;
use super::portable;
#[cfg(target_arch = "x86_64")]
use super::{skinny, x86};

/// Element types of A that multiply elements `B`.
pub trait Times<B>: Copy + Send + Sync + 'static {
    /// Type of the sums.
    type Acc: Copy + Send + Sync + 'static;
    /// The kernels for the instruction set in force.
    #[doc(hidden)]
    fn kernels() -> Kernels<Self::Acc>;
}

/// Element types of which A, B and C may all be.
pub trait GemmElement: Times<Self, Acc = <Self as Output>::Acc> + Output {}
impl<T: Times<T, Acc = <T as Output>::Acc> + Output> GemmElement for T {}

impl<Acc> Kernels<Acc> {
    /// The kernels with A and B exchanged.
    pub fn transposed(self) -> Self {
        Self { a: self.b, b: self.a, ..self }
    }
}

impl Side {
    /// An operand that is always packed.
    fn packed(pack: PackFn) -> Self {
        Self {
            pack,
            direct: false,
            #[cfg(target_arch = "x86_64")]
            skinny: &[],
        }
    }

    /// An operand whose elements are units.
    fn direct(pack: PackFn) -> Self {
        Self { direct: true, ..Self::packed(pack) }
    }
}

/// f32 register tiles, narrow and wide, and how f32 and bf16 operands reach them.
fn single_precision() -> ((Micro<f32>, Micro<f32>), Side, Side) {
    match isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => (
            (x86::F32_AVX512, x86::F32_AVX512_WIDE),
            Side { skinny: skinny::F32, ..Side::direct(x86::pack_f32) },
            Side { skinny: skinny::WIDENED, ..Side::packed(x86::pack_widened) },
        ),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (
            (x86::F32_AVX2, x86::F32_AVX2_WIDE),
            Side::direct(x86::pack_f32),
            Side::packed(x86::pack_widened),
        ),
        _ => (
            (portable::F32, portable::F32),
            Side::direct(portable::pack_f32),
            Side::packed(portable::pack_widened),
        ),
    }
}

impl Times<f32> for f32 {
    type Acc = f32;
    fn kernels() -> Kernels<f32> {
        let ((micro, wide), side, _) = single_precision();
        Kernels { micro, wide, depth_per_unit: 1, a: side, b: side }
    }
}

impl Times<bf16> for f32 {
    type Acc = f32;
    fn kernels() -> Kernels<f32> {
        let ((micro, wide), single, half) = single_precision();
        Kernels { micro, wide, depth_per_unit: 1, a: single, b: half }
    }
}

impl Times<f16> for f32 {
    type Acc = f32;
    fn kernels() -> Kernels<f32> {
        let ((micro, wide), single, _) = single_precision();
        let half = match isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Side { skinny: skinny::HALF, ..Side::packed(x86::pack_widened_half) },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Side::packed(x86::pack_widened_half),
            _ => Side::packed(portable::pack_widened_half),
        };
        Kernels { micro, wide, depth_per_unit: 1, a: single, b: half }
    }
}

impl Times<bf16> for bf16 {
    type Acc = f32;
    fn kernels() -> Kernels<f32> {
        #[cfg(target_arch = "x86_64")]
        if has_bf16_dot() {
            let side = Side { skinny: skinny::PAIRED, ..Side::packed(x86::pack_paired) };
            let micro = x86::BF16_AVX512;
            return Kernels { micro, wide: micro, depth_per_unit: 2, a: side, b: side };
        }
        let ((micro, wide), _, side) = single_precision();
        Kernels { micro, wide, depth_per_unit: 1, a: side, b: side }
    }
}

impl Times<f64> for f64 {
    type Acc = f64;
    fn kernels() -> Kernels<f64> {
        let (micro, wide, pack): (_, _, PackFn) = match isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => (x86::F64_AVX512, x86::F64_AVX512_WIDE, x86::pack_f64),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => (x86::F64_AVX2, x86::F64_AVX2_WIDE, x86::pack_f64),
            _ => (portable::F64, portable::F64, portable::pack_f64),
        };
        let side = Side::direct(pack);
        Kernels { micro, wide, depth_per_unit: 1, a: side, b: side }
    }
}
