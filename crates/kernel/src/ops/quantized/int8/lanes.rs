//! Vectors whose lanes are rows of W: four codes of one row in every 32-bit lane.
//!
//! Blocks lie row after row; a product over integers wants the same four k of many rows side by side,
//! so that sums need no reduction and one scale vector serves 32 k. [`Lanes::quad`] turns sixteen bytes
//! of every row into four such vectors.

use half::f16;

/// Integer vectors of one instruction set.
///
/// # Safety of all methods that take pointers
/// As many bytes as named are readable at `from + row * stride` for every row.
#[allow(clippy::missing_safety_doc)]
pub(super) trait Lanes: Copy {
    /// Rows of W in a vector.
    const ROWS: usize;
    /// 32 bits a row.
    type I: Copy;
    /// One f32 a row.
    type F: Copy;

    /// Sixteen bytes of every row as four vectors of four bytes.
    unsafe fn quad(self, from: *const u8, stride: usize) -> [Self::I; 4];
    /// Four bytes of every row.
    unsafe fn word(self, from: *const u8, stride: usize) -> Self::I;
    /// Two bytes of every row.
    unsafe fn half(self, from: *const u8, stride: usize) -> Self::I;
    /// The value of the f16 in the low half of every lane.
    fn widen_half(self, a: Self::I) -> Self::F;

    /// All lanes `value`.
    fn splat_i(self, value: i32) -> Self::I;
    /// Bitwise and.
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise or.
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise exclusive or.
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    /// Low half of the product.
    fn mul_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Shift left.
    fn shl(self, a: Self::I, count: u32) -> Self::I;
    /// Logical shift right.
    fn shr(self, a: Self::I, count: u32) -> Self::I;
    /// Arithmetic shift right.
    fn sar(self, a: Self::I, count: u32) -> Self::I;

    /// Adds to every lane its four unsigned bytes of `w` times the four signed bytes at `x`, exactly.
    /// Bytes of `w` above 127 need `WIDE`; those of `x` are at least -127.
    unsafe fn dot<const WIDE: bool>(self, sum: Self::I, w: Self::I, x: *const u8) -> Self::I;

    /// Converts integers below 2^24 in magnitude.
    fn to_f(self, a: Self::I) -> Self::F;
    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::F;
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// Reads a vector.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// Writes a vector.
    unsafe fn store(self, to: *mut f32, value: Self::F);
    /// Reads a vector.
    unsafe fn load_i(self, from: *const u32) -> Self::I;
    /// Writes a vector.
    unsafe fn store_i(self, to: *mut u32, value: Self::I);
    /// Asks for a cache line; the address need not be valid.
    fn prefetch(self, address: *const u8);
}

/// Plain Rust on eight rows, for any processor.
#[derive(Clone, Copy)]
pub(super) struct Portable;

#[inline(always)]
fn map(a: [u32; 8], b: [u32; 8], of: impl Fn(u32, u32) -> u32) -> [u32; 8] {
    let mut out = [0; 8];
    for i in 0..8 {
        out[i] = of(a[i], b[i]);
    }
    out
}

// SAFETY of every block: the trait demands readable bytes; whole vectors are arrays.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Portable {
    const ROWS: usize = 8;
    type I = [u32; 8];
    type F = [f32; 8];

    #[inline(always)]
    unsafe fn quad(self, from: *const u8, stride: usize) -> [[u32; 8]; 4] {
        let mut out = [[0; 8]; 4];
        for row in 0..8 {
            for (word, out) in out.iter_mut().enumerate() {
                let at = unsafe { from.add(row * stride + 4 * word) };
                out[row] = u32::from_le(unsafe { at.cast::<u32>().read_unaligned() });
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn word(self, from: *const u8, stride: usize) -> [u32; 8] {
        let mut out = [0; 8];
        for (row, out) in out.iter_mut().enumerate() {
            *out = u32::from_le(unsafe { from.add(row * stride).cast::<u32>().read_unaligned() });
        }
        out
    }
    #[inline(always)]
    unsafe fn half(self, from: *const u8, stride: usize) -> [u32; 8] {
        let mut out = [0; 8];
        for (row, out) in out.iter_mut().enumerate() {
            let bits = unsafe { from.add(row * stride).cast::<u16>().read_unaligned() };
            *out = u32::from(u16::from_le(bits));
        }
        out
    }
    #[inline(always)]
    fn widen_half(self, a: [u32; 8]) -> [f32; 8] {
        a.map(|bits| f16::from_bits(bits as u16).to_f32())
    }
    #[inline(always)]
    fn splat_i(self, value: i32) -> [u32; 8] {
        [value as u32; 8]
    }
    #[inline(always)]
    fn and(self, a: [u32; 8], b: [u32; 8]) -> [u32; 8] {
        map(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or(self, a: [u32; 8], b: [u32; 8]) -> [u32; 8] {
        map(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn xor(self, a: [u32; 8], b: [u32; 8]) -> [u32; 8] {
        map(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn mul_i(self, a: [u32; 8], b: [u32; 8]) -> [u32; 8] {
        map(a, b, u32::wrapping_mul)
    }
    #[inline(always)]
    fn shl(self, a: [u32; 8], count: u32) -> [u32; 8] {
        a.map(|a| a << count)
    }
    #[inline(always)]
    fn shr(self, a: [u32; 8], count: u32) -> [u32; 8] {
        a.map(|a| a >> count)
    }
    #[inline(always)]
    fn sar(self, a: [u32; 8], count: u32) -> [u32; 8] {
        a.map(|a| (a as i32 >> count) as u32)
    }
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(self, sum: [u32; 8], w: [u32; 8], x: *const u8) -> [u32; 8] {
        let x = unsafe { x.cast::<[i8; 4]>().read() };
        map(sum, w, |sum, w| {
            let mut sum = sum as i32;
            for (w, x) in w.to_le_bytes().into_iter().zip(x) {
                sum += i32::from(w) * i32::from(x);
            }
            sum as u32
        })
    }
    #[inline(always)]
    fn to_f(self, a: [u32; 8]) -> [f32; 8] {
        a.map(|a| a as i32 as f32)
    }
    #[inline(always)]
    fn splat(self, value: f32) -> [f32; 8] {
        [value; 8]
    }
    #[inline(always)]
    fn add(self, mut a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    }
    #[inline(always)]
    fn mul(self, mut a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        a.iter_mut().zip(b).for_each(|(a, b)| *a *= b);
        a
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> [f32; 8] {
        unsafe { from.cast::<[f32; 8]>().read() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: [f32; 8]) {
        unsafe { to.cast::<[f32; 8]>().write(value) }
    }
    #[inline(always)]
    unsafe fn load_i(self, from: *const u32) -> [u32; 8] {
        unsafe { from.cast::<[u32; 8]>().read() }
    }
    #[inline(always)]
    unsafe fn store_i(self, to: *mut u32, value: [u32; 8]) {
        unsafe { to.cast::<[u32; 8]>().write(value) }
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
