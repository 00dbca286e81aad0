//! Which element types multiply, and the kernels that do it on this processor.

use danaus_runtime::simd::{Isa, has_bf16_dot, isa};
use half::bf16;

use super::engine::{Kernels, Micro};
use super::epilogue::Output;
use super::pack::PackFn;
use super::portable;
#[cfg(target_arch = "x86_64")]
use super::x86;

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
    fn new(micro: Micro<Acc>, pack_a: PackFn, pack_b: PackFn) -> Self {
        Self { micro, depth_per_unit: 1, pack_a, pack_b, direct_a: true, direct_b: true }
    }

    /// The kernels with A and B exchanged.
    pub fn transposed(self) -> Self {
        Self {
            pack_a: self.pack_b,
            pack_b: self.pack_a,
            direct_a: self.direct_b,
            direct_b: self.direct_a,
            ..self
        }
    }
}

/// f32 register tiles and the routines that pack f32 and bf16 for them.
fn single_precision() -> (Micro<f32>, PackFn, PackFn) {
    match isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => (x86::F32_AVX512, x86::pack_f32, x86::pack_widened),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => (x86::F32_AVX2, x86::pack_f32, x86::pack_widened),
        _ => (portable::F32, portable::pack_f32, portable::pack_widened),
    }
}

impl Times<f32> for f32 {
    type Acc = f32;
    fn kernels() -> Kernels<f32> {
        let (micro, pack, _) = single_precision();
        Kernels::new(micro, pack, pack)
    }
}

impl Times<bf16> for f32 {
    type Acc = f32;
    fn kernels() -> Kernels<f32> {
        let (micro, pack, pack_widened) = single_precision();
        Kernels { direct_b: false, ..Kernels::new(micro, pack, pack_widened) }
    }
}

impl Times<bf16> for bf16 {
    type Acc = f32;
    fn kernels() -> Kernels<f32> {
        #[cfg(target_arch = "x86_64")]
        if has_bf16_dot() {
            let kernels = Kernels::new(x86::BF16_AVX512, x86::pack_paired, x86::pack_paired);
            return Kernels { depth_per_unit: 2, direct_a: false, direct_b: false, ..kernels };
        }
        let (micro, _, pack) = single_precision();
        Kernels { direct_a: false, direct_b: false, ..Kernels::new(micro, pack, pack) }
    }
}

impl Times<f64> for f64 {
    type Acc = f64;
    fn kernels() -> Kernels<f64> {
        match isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Kernels::new(x86::F64_AVX512, x86::pack_f64, x86::pack_f64),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Kernels::new(x86::F64_AVX2, x86::pack_f64, x86::pack_f64),
            _ => Kernels::new(portable::F64, portable::pack_f64, portable::pack_f64),
        }
    }
}
