//! Rows of W in lanes with AVX2 and AVX-512.
//!
//! `vpdpbusd` multiplies four pairs of bytes a lane and adds them. AVX2 has no such sum: `vpmaddubsw`
//! adds pairs in 16 bits, which suffices for codes up to 127; larger ones are widened to 16 bits first.

use super::lanes::Lanes;
use std::arch::x86_64::*;

/// Sixteen rows, with AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy)]
pub(super) struct Vnni(());

/// Eight rows, with AVX2 and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Vnni {
    /// The proof that the instructions exist.
    ///
    /// # Safety
    /// They do.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

impl Avx2 {
    /// The proof that the instructions exist.
    ///
    /// # Safety
    /// They do.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

#[inline(always)]
unsafe fn word_at(from: *const u8) -> i32 {
    // SAFETY: promised by the caller: four bytes.
    unsafe { from.cast::<i32>().read_unaligned() }
}

#[inline(always)]
unsafe fn half_at(from: *const u8) -> i16 {
    // SAFETY: promised by the caller: two bytes.
    unsafe { from.cast::<i16>().read_unaligned() }
}

// SAFETY of every block below: a value of the type exists only where the processor has the
// instructions; memory operations pass on their caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Vnni {
    const ROWS: usize = 16;
    type I = __m512i;
    type F = __m512;

    #[inline(always)]
    unsafe fn quad(self, from: *const u8, stride: usize) -> [__m512i; 4] {
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 4];
            for i in 0..4 {
                let row = from.add(i * stride);
                let [a, b, c, d] =
                    [row, row.add(4 * stride), row.add(8 * stride), row.add(12 * stride)]
                        .map(|row| _mm_loadu_si128(row.cast()));
                let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
                let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(c), d);
                rows[i] = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            }
            let [a, b, c, d] = rows;
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }
    #[inline(always)]
    unsafe fn word(self, from: *const u8, stride: usize) -> __m512i {
        unsafe {
            let mut words = [0i32; 16];
            for row in 0..16 {
                words[row] = word_at(from.add(row * stride));
            }
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = words;
            _mm512_setr_epi32(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)
        }
    }
    #[inline(always)]
    unsafe fn half(self, from: *const u8, stride: usize) -> __m512i {
        unsafe {
            let mut halves = [0i16; 16];
            for row in 0..16 {
                halves[row] = half_at(from.add(row * stride));
            }
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = halves;
            let narrow = _mm256_setr_epi16(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p);
            _mm512_cvtepu16_epi32(narrow)
        }
    }
    #[inline(always)]
    fn widen_half(self, a: __m512i) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)) }
    }
    #[inline(always)]
    fn splat_i(self, value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    fn mul_i(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mullo_epi32(a, b) }
    }
    #[inline(always)]
    fn shl(self, a: __m512i, count: u32) -> __m512i {
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(count as i32)) }
    }
    #[inline(always)]
    fn shr(self, a: __m512i, count: u32) -> __m512i {
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(count as i32)) }
    }
    #[inline(always)]
    fn sar(self, a: __m512i, count: u32) -> __m512i {
        unsafe { _mm512_sra_epi32(a, _mm_cvtsi32_si128(count as i32)) }
    }
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(self, sum: __m512i, w: __m512i, x: *const u8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(word_at(x))) }
    }
    #[inline(always)]
    fn to_f(self, a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: __m512) {
        unsafe { _mm512_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn load_i(self, from: *const u32) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store_i(self, to: *mut u32, value: __m512i) {
        unsafe { _mm512_storeu_si512(to.cast(), value) }
    }
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx2 {
    const ROWS: usize = 8;
    type I = __m256i;
    type F = __m256;

    #[inline(always)]
    unsafe fn quad(self, from: *const u8, stride: usize) -> [__m256i; 4] {
        unsafe {
            let mut rows = [_mm256_setzero_si256(); 4];
            for i in 0..4 {
                let row = from.add(i * stride);
                let low = _mm_loadu_si128(row.cast());
                let high = _mm_loadu_si128(row.add(4 * stride).cast());
                rows[i] = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
            }
            let [a, b, c, d] = rows;
            let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
            [
                _mm256_unpacklo_epi64(ab, cd),
                _mm256_unpackhi_epi64(ab, cd),
                _mm256_unpacklo_epi64(ab_high, cd_high),
                _mm256_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }
    #[inline(always)]
    unsafe fn word(self, from: *const u8, stride: usize) -> __m256i {
        unsafe {
            let mut words = [0i32; 8];
            for row in 0..8 {
                words[row] = word_at(from.add(row * stride));
            }
            let [a, b, c, d, e, f, g, h] = words;
            _mm256_setr_epi32(a, b, c, d, e, f, g, h)
        }
    }
    #[inline(always)]
    unsafe fn half(self, from: *const u8, stride: usize) -> __m256i {
        unsafe {
            let mut halves = [0i16; 8];
            for row in 0..8 {
                halves[row] = half_at(from.add(row * stride));
            }
            let [a, b, c, d, e, f, g, h] = halves;
            _mm256_cvtepu16_epi32(_mm_setr_epi16(a, b, c, d, e, f, g, h))
        }
    }
    #[inline(always)]
    fn widen_half(self, a: __m256i) -> __m256 {
        unsafe {
            let low = _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
            let packed = _mm256_packus_epi32(low, low);
            let ordered = _mm256_permute4x64_epi64::<0b1000>(packed);
            _mm256_cvtph_ps(_mm256_castsi256_si128(ordered))
        }
    }
    #[inline(always)]
    fn splat_i(self, value: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(value) }
    }
    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_xor_si256(a, b) }
    }
    #[inline(always)]
    fn mul_i(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_mullo_epi32(a, b) }
    }
    #[inline(always)]
    fn shl(self, a: __m256i, count: u32) -> __m256i {
        unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(count as i32)) }
    }
    #[inline(always)]
    fn shr(self, a: __m256i, count: u32) -> __m256i {
        unsafe { _mm256_srl_epi32(a, _mm_cvtsi32_si128(count as i32)) }
    }
    #[inline(always)]
    fn sar(self, a: __m256i, count: u32) -> __m256i {
        unsafe { _mm256_sra_epi32(a, _mm_cvtsi32_si128(count as i32)) }
    }
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(self, sum: __m256i, w: __m256i, x: *const u8) -> __m256i {
        unsafe {
            let x = _mm256_set1_epi32(word_at(x));
            if !WIDE {
                let pairs = _mm256_maddubs_epi16(w, x);
                return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
            let (even, odd) =
                (_mm256_and_si256(w, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(w));
            let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
            let x_odd = _mm256_srai_epi16::<8>(x);
            let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, x_even));
            _mm256_add_epi32(sum, _mm256_madd_epi16(odd, x_odd))
        }
    }
    #[inline(always)]
    fn to_f(self, a: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: __m256) {
        unsafe { _mm256_storeu_ps(to, value) }
    }
    #[inline(always)]
    unsafe fn load_i(self, from: *const u32) -> __m256i {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store_i(self, to: *mut u32, value: __m256i) {
        unsafe { _mm256_storeu_si256(to.cast(), value) }
    }
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}
