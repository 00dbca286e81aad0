//! Eight lanes in plain Rust: any processor, and the reference for the intrinsics.

use super::Simd;

const N: usize = 8;

/// The portable instruction set.
#[derive(Clone, Copy)]
pub struct Portable;

#[inline(always)]
fn zip(a: [f32; N], b: [f32; N], f: impl Fn(f32, f32) -> f32) -> [f32; N] {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

#[inline(always)]
fn map_i(a: [i32; N], f: impl Fn(i32) -> i32) -> [i32; N] {
    std::array::from_fn(|lane| f(a[lane]))
}

impl Simd for Portable {
    const LANES: usize = N;
    type F = [f32; N];
    type I = [i32; N];
    type M = [bool; N];
    type Table = [f32; 16];

    #[inline(always)]
    fn zero(self) -> [f32; N] {
        [0.0; N]
    }
    #[inline(always)]
    fn splat(self, value: f32) -> [f32; N] {
        [value; N]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> [f32; N] {
        // SAFETY: promised by the caller; an array has the element's alignment.
        unsafe { *from.cast() }
    }
    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, count: usize) -> [f32; N] {
        // SAFETY: only indices below `count` are read.
        std::array::from_fn(|lane| if lane < count { unsafe { *from.add(lane) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: [f32; N]) {
        // SAFETY: promised by the caller.
        unsafe { *to.cast() = value }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, value: [f32; N], count: usize) {
        for lane in 0..count.min(N) {
            // SAFETY: only indices below `count` are written.
            unsafe { *to.add(lane) = value[lane] }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> [f32; N] {
        // SAFETY: promised by the caller.
        std::array::from_fn(|lane| f32::from_bits(u32::from(unsafe { *from.add(lane) }) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, value: [f32; N]) {
        for lane in 0..N {
            // SAFETY: promised by the caller.
            unsafe { *to.add(lane) = half::bf16::from_f32(value[lane]).to_bits() }
        }
    }

    #[inline(always)]
    fn add(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        // A true fused operation is a library call where the processor has none, fifty times slower
        // than two roundings; the portable path promises the tolerance, not the bits, of the others.
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }
    #[inline(always)]
    fn max(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn sqrt(self, a: [f32; N]) -> [f32; N] {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn abs(self, a: [f32; N]) -> [f32; N] {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn round(self, a: [f32; N]) -> [f32; N] {
        a.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn lt(self, a: [f32; N], b: [f32; N]) -> [bool; N] {
        std::array::from_fn(|lane| a[lane] < b[lane])
    }
    #[inline(always)]
    fn first(self, count: usize) -> [bool; N] {
        std::array::from_fn(|lane| lane < count)
    }
    #[inline(always)]
    fn select(self, mask: [bool; N], yes: [f32; N], no: [f32; N]) -> [f32; N] {
        std::array::from_fn(|lane| if mask[lane] { yes[lane] } else { no[lane] })
    }

    #[inline(always)]
    fn splat_i(self, value: i32) -> [i32; N] {
        [value; N]
    }
    #[inline(always)]
    fn add_i(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        std::array::from_fn(|lane| a[lane].wrapping_add(b[lane]))
    }
    #[inline(always)]
    fn and_i(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        std::array::from_fn(|lane| a[lane] & b[lane])
    }
    #[inline(always)]
    fn shl_i<const K: u32>(self, a: [i32; N]) -> [i32; N] {
        map_i(a, |a| a << K)
    }
    #[inline(always)]
    fn shr_i<const K: u32>(self, a: [i32; N]) -> [i32; N] {
        map_i(a, |a| ((a as u32) >> K) as i32)
    }
    #[inline(always)]
    fn to_i(self, a: [f32; N]) -> [i32; N] {
        a.map(|a| a as i32)
    }
    #[inline(always)]
    fn from_i(self, a: [i32; N]) -> [f32; N] {
        a.map(|a| a as f32)
    }
    #[inline(always)]
    fn bits(self, a: [f32; N]) -> [i32; N] {
        a.map(|a| a.to_bits() as i32)
    }
    #[inline(always)]
    fn from_bits(self, a: [i32; N]) -> [f32; N] {
        a.map(|a| f32::from_bits(a as u32))
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> [i32; N] {
        // SAFETY: promised by the caller.
        std::array::from_fn(|lane| i32::from(unsafe { *from.add(lane) }))
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> [i32; N] {
        // SAFETY: promised by the caller.
        std::array::from_fn(|lane| i32::from(unsafe { *from.add(lane) } as i8))
    }
    #[inline(always)]
    fn widen_u8(self, bytes: u128) -> [i32; N] {
        std::array::from_fn(|lane| (bytes >> (8 * lane)) as i32 & 255)
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
    #[inline(always)]
    fn prefetch_far(self, _: *const u8) {}
    #[inline(always)]
    fn positive_i(self, a: [i32; N]) -> [bool; N] {
        a.map(|a| a > 0)
    }
    #[inline(always)]
    fn widen_half(self, bits: u16) -> f32 {
        half::f16::from_bits(bits).to_f32()
    }
    #[inline(always)]
    fn splat_half(self, bits: u16) -> [f32; N] {
        [self.widen_half(bits); N]
    }
    #[inline(always)]
    fn table(self, values: &[f32; 16]) -> [f32; 16] {
        *values
    }
    #[inline(always)]
    fn scale_table(self, table: [f32; 16], factor: [f32; N]) -> [f32; 16] {
        table.map(|value| value * factor[0])
    }
    #[inline(always)]
    fn shift_table(self, table: [f32; 16], addend: [f32; N]) -> [f32; 16] {
        table.map(|value| value + addend[0])
    }
    #[inline(always)]
    fn lookup(self, table: [f32; 16], index: [i32; N]) -> [f32; N] {
        index.map(|index| table[(index & 15) as usize])
    }
    #[inline(always)]
    fn reduce_add(self, a: [f32; N]) -> f32 {
        let half: [f32; 4] = std::array::from_fn(|lane| a[lane] + a[lane + 4]);
        (half[0] + half[2]) + (half[1] + half[3])
    }
    #[inline(always)]
    fn reduce_max(self, a: [f32; N]) -> f32 {
        a.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
}
