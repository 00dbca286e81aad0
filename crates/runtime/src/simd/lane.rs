//! Element types that a kernel computes on in f32 vectors.

use super::Simd;
use half::{bf16, f16};

/// A storage type that is widened to f32 on load and rounded on store, so that one kernel serves f32,
/// bf16 and f16.
pub trait Lane: Copy + Default + Send + Sync + 'static {
    /// Reads one vector.
    ///
    /// # Safety
    /// `S::LANES` elements are readable at `from`.
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F;
    /// Reads the first `count < S::LANES` elements, the other lanes are 0.
    ///
    /// # Safety
    /// `count` elements are readable at `from`.
    unsafe fn load_partial<S: Simd>(s: S, from: *const Self, count: usize) -> S::F;
    /// Writes one vector.
    ///
    /// # Safety
    /// `S::LANES` elements are writable at `to`.
    unsafe fn store<S: Simd>(s: S, to: *mut Self, value: S::F);
    /// Writes the first `count < S::LANES` lanes.
    ///
    /// # Safety
    /// `count` elements are writable at `to`.
    unsafe fn store_partial<S: Simd>(s: S, to: *mut Self, value: S::F, count: usize);
    /// One element, widened.
    fn widen(self) -> f32;
    /// One element, rounded to nearest even.
    fn round(value: f32) -> Self;
}

impl Lane for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const f32) -> S::F {
        // SAFETY: promised by the caller.
        unsafe { s.load(from) }
    }
    #[inline(always)]
    unsafe fn load_partial<S: Simd>(s: S, from: *const f32, count: usize) -> S::F {
        // SAFETY: promised by the caller.
        unsafe { s.load_partial(from, count) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut f32, value: S::F) {
        // SAFETY: promised by the caller.
        unsafe { s.store(to, value) }
    }
    #[inline(always)]
    unsafe fn store_partial<S: Simd>(s: S, to: *mut f32, value: S::F, count: usize) {
        // SAFETY: promised by the caller.
        unsafe { s.store_partial(to, value, count) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn round(value: f32) -> f32 {
        value
    }
}

impl Lane for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const bf16) -> S::F {
        // SAFETY: promised by the caller; bf16 is a transparent u16.
        unsafe { s.load_bf16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_partial<S: Simd>(s: S, from: *const bf16, count: usize) -> S::F {
        let mut lanes = [0u16; 16];
        // SAFETY: `count` elements are readable and fit the largest vector.
        unsafe {
            std::ptr::copy_nonoverlapping(from.cast(), lanes.as_mut_ptr(), count);
            s.load_bf16(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut bf16, value: S::F) {
        // SAFETY: promised by the caller; bf16 is a transparent u16.
        unsafe { s.store_bf16(to.cast(), value) }
    }
    #[inline(always)]
    unsafe fn store_partial<S: Simd>(s: S, to: *mut bf16, value: S::F, count: usize) {
        let mut lanes = [0u16; 16];
        // SAFETY: the array holds the largest vector and `count` elements are writable.
        unsafe {
            s.store_bf16(lanes.as_mut_ptr(), value);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to.cast(), count);
        }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn round(value: f32) -> bf16 {
        bf16::from_f32(value)
    }
}

/// Most lanes of a vector.
const MOST: usize = 16;

/// Converted one by one: nothing that is fast on the processor computes in f16.
impl Lane for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const f16) -> S::F {
        // SAFETY: promised by the caller.
        unsafe { Self::load_partial(s, from, S::LANES) }
    }
    #[inline(always)]
    unsafe fn load_partial<S: Simd>(s: S, from: *const f16, count: usize) -> S::F {
        let mut lanes = [0.0; MOST];
        // SAFETY: `count` elements are readable and fit the largest vector.
        unsafe {
            let elements = std::slice::from_raw_parts(from, count);
            lanes.iter_mut().zip(elements).for_each(|(lane, x)| *lane = x.to_f32());
            s.load(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut f16, value: S::F) {
        // SAFETY: promised by the caller.
        unsafe { Self::store_partial(s, to, value, S::LANES) }
    }
    #[inline(always)]
    unsafe fn store_partial<S: Simd>(s: S, to: *mut f16, value: S::F, count: usize) {
        let mut lanes = [0.0; MOST];
        // SAFETY: the array holds the largest vector and `count` elements are writable; they may be
        // uninitialised, so they are written through the pointer.
        unsafe {
            s.store(lanes.as_mut_ptr(), value);
            for (i, lane) in lanes.iter().take(count).enumerate() {
                to.add(i).write(f16::from_f32(*lane));
            }
        }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn round(value: f32) -> f16 {
        f16::from_f32(value)
    }
}
