//! Run-time SIMD dispatch: kernels are written once against [`Simd`] and compiled three times.
//!
//! A kernel is a struct that implements [`Kernel`]; [`dispatch`] runs it with the widest instruction
//! set the processor has. Everything below `run` must be `#[inline(always)]`, so that it is compiled
//! with the right target features. Dispatch once per task, not once per row.
//!
//! ```
//! use danaus_runtime::simd::{Kernel, Simd, dispatch};
//!
//! struct Sum<'a>(&'a [f32]);
//! impl Kernel for Sum<'_> {
//!     type Out = f32;
//!     #[inline(always)]
//!     fn run<S: Simd>(self, s: S) -> f32 {
//!         let mut total = s.zero();
//!         let mut chunks = self.0.chunks_exact(S::LANES);
//!         for chunk in &mut chunks {
//!             // SAFETY: the chunk holds one vector.
//!             total = s.add(total, unsafe { s.load(chunk.as_ptr()) });
//!         }
//!         s.reduce_add(total) + chunks.remainder().iter().sum::<f32>()
//!     }
//! }
//! assert_eq!(dispatch(Sum(&[1.0; 40])), 40.0);
//! ```

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lane;
pub mod math;
mod portable;

use std::cell::Cell;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::{Avx512, transpose_units};
pub use lane::Lane;
pub use portable::Portable;

/// Vectors of `f32` (and `i32` of the same width) of one instruction set.
///
/// All values are passed by value and all methods are inlined; `self` is a zero-sized proof that the
/// instructions exist.
pub trait Simd: Copy + Send + Sync + 'static {
    /// `f32` lanes of a vector.
    const LANES: usize;
    /// Vector of `f32`.
    type F: Copy;
    /// Vector of `i32`.
    type I: Copy;
    /// One truth value a lane.
    type M: Copy;
    /// Sixteen `f32` to look lanes up in.
    type Table: Copy;

    /// All lanes 0.
    fn zero(self) -> Self::F;
    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::F;
    /// Reads one vector; no alignment needed.
    ///
    /// # Safety
    /// `LANES` elements are readable at `from`.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// Reads the first `count < LANES` elements; the other lanes are 0.
    ///
    /// # Safety
    /// `count` elements are readable at `from`.
    unsafe fn load_partial(self, from: *const f32, count: usize) -> Self::F;
    /// Writes one vector.
    ///
    /// # Safety
    /// `LANES` elements are writable at `to`.
    unsafe fn store(self, to: *mut f32, value: Self::F);
    /// Writes the first `count < LANES` lanes.
    ///
    /// # Safety
    /// `count` elements are writable at `to`.
    unsafe fn store_partial(self, to: *mut f32, value: Self::F, count: usize);
    /// Reads one vector of bf16 bit patterns and widens it.
    ///
    /// # Safety
    /// `LANES` elements are readable at `from`.
    unsafe fn load_bf16(self, from: *const u16) -> Self::F;
    /// Rounds to bf16 (nearest even, NaN stays NaN) and writes one vector of bit patterns.
    ///
    /// # Safety
    /// `LANES` elements are writable at `to`.
    unsafe fn store_bf16(self, to: *mut u16, value: Self::F);

    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of both; `b` when one is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of both; `b` when one is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Square root.
    fn sqrt(self, a: Self::F) -> Self::F;
    /// Absolute value.
    fn abs(self, a: Self::F) -> Self::F;
    /// Nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;

    /// `a < b` lane by lane; false with NaN.
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    /// The mask of lanes with index below `count`.
    fn first(self, count: usize) -> Self::M;
    /// `yes` where the mask is set, else `no`.
    fn select(self, mask: Self::M, yes: Self::F, no: Self::F) -> Self::F;

    /// All integer lanes `value`.
    fn splat_i(self, value: i32) -> Self::I;
    /// Integer sum, wrapping.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise and.
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Shift left by a constant.
    fn shl_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// Logical shift right by a constant.
    fn shr_i<const N: u32>(self, a: Self::I) -> Self::I;
    /// Converts an integer-valued float in range.
    fn to_i(self, a: Self::F) -> Self::I;
    /// Converts to float.
    #[allow(clippy::wrong_self_convention)]
    fn from_i(self, a: Self::I) -> Self::F;
    /// The lanes' bits as integers.
    fn bits(self, a: Self::F) -> Self::I;
    /// The integers' bits as floats.
    #[allow(clippy::wrong_self_convention)]
    fn from_bits(self, a: Self::I) -> Self::F;

    /// Reads one byte a lane, without sign.
    ///
    /// # Safety
    /// `LANES` bytes are readable at `from`.
    unsafe fn load_u8(self, from: *const u8) -> Self::I;
    /// Reads one byte a lane, with sign.
    ///
    /// # Safety
    /// `LANES` bytes are readable at `from`.
    unsafe fn load_i8(self, from: *const u8) -> Self::I;
    /// The first `LANES` bytes of a number, lowest first, one a lane.
    fn widen_u8(self, bytes: u128) -> Self::I;
    /// Asks for a cache line in the first level; the address need not be valid.
    fn prefetch(self, address: *const u8);
    /// Asks for a cache line in the second level; the address need not be valid.
    fn prefetch_far(self, address: *const u8);
    /// `a > 0` lane by lane.
    fn positive_i(self, a: Self::I) -> Self::M;
    /// The value of an f16 bit pattern.
    fn widen_half(self, bits: u16) -> f32;
    /// The value of an f16 bit pattern in all lanes.
    fn splat_half(self, bits: u16) -> Self::F;
    /// A table of these values.
    fn table(self, values: &[f32; 16]) -> Self::Table;
    /// Every value times `factor` (the same in all lanes).
    fn scale_table(self, table: Self::Table, factor: Self::F) -> Self::Table;
    /// Every value plus `addend` (the same in all lanes).
    fn shift_table(self, table: Self::Table, addend: Self::F) -> Self::Table;
    /// The value at the low four bits of each lane's index; the other bits do not matter.
    fn lookup(self, table: Self::Table, index: Self::I) -> Self::F;

    /// Sum of all lanes in a fixed (pairwise) order.
    fn reduce_add(self, a: Self::F) -> f32;
    /// Largest lane.
    fn reduce_max(self, a: Self::F) -> f32;
}

/// A computation written against [`Simd`].
pub trait Kernel {
    /// Result of the computation.
    type Out;
    /// The computation. Mark it `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// Instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust on eight lanes, for any processor.
    Portable,
    /// AVX2 with FMA and F16C, eight lanes.
    Avx2,
    /// AVX-512 F/BW/DQ/VL, sixteen lanes.
    Avx512,
}

impl Isa {
    /// All sets, widest last.
    pub const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// Whether this processor has it.
    pub fn available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && Isa::Avx2.available()
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The name used by `DANAUS_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }
}

/// Whether the processor multiplies bf16 pairs (`vdpbf16ps`).
pub fn has_bf16_dot() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        isa() == Isa::Avx512 && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether the processor multiplies bytes and adds them in fours (`vpdpbusd`).
pub fn has_int8_dot() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        isa() == Isa::Avx512 && is_x86_feature_detected!("avx512vnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

thread_local! {
    static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// The instruction set in force: `DANAUS_ISA` if set and available, else the widest one.
pub fn isa() -> Isa {
    static DETECTED: OnceLock<Isa> = OnceLock::new();
    FORCED.get().unwrap_or_else(|| {
        *DETECTED.get_or_init(|| {
            let wanted = std::env::var("DANAUS_ISA").ok();
            let named = |isa: &Isa| wanted.as_deref().is_none_or(|name| name == isa.name());
            let mut candidates = Isa::ALL.into_iter().rev().filter(|isa| isa.available());
            candidates.find(named).unwrap_or(Isa::Portable)
        })
    })
}

/// Runs `work` with an instruction set forced, on this thread alone; for tests.
///
/// Returns `None` without running `work` where the processor lacks the set.
pub fn with_isa<R: Send>(isa: Isa, work: impl FnOnce() -> R + Send) -> Option<R> {
    isa.available().then(|| {
        let body = || {
            let before = FORCED.replace(Some(isa));
            let result = work();
            FORCED.set(before);
            result
        };
        // One thread, so that no task lands on a thread that does not know the choice.
        crate::threads::with_threads(1, body)
    })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,popcnt")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx512::new_unchecked())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx2::new_unchecked())
}

/// Runs a kernel with the instruction set in force.
#[inline]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Out {
    match isa() {
        // SAFETY: `isa` only names sets that the processor has.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { run_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { run_avx2(kernel) },
        _ => kernel.run(Portable),
    }
}

#[cfg(test)]
mod tests;
