//! Eight lanes with AVX2, FMA and F16C.

use super::Simd;
use std::arch::x86_64::*;

/// Proof that the processor has AVX2 and FMA.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// The proof itself; [`super::dispatch`] checks the processor first.
    #[inline(always)]
    pub(super) fn new_unchecked() -> Self {
        Self(())
    }
}

// SAFETY of every block below: a value of this type exists only inside `dispatch`, after the
// processor was found to have the instructions; memory operations pass on their caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    const LANES: usize = 8;
    type F = __m256;
    type I = __m256i;
    type M = __m256;
    type Table = [__m256; 2];

    #[inline(always)]
    fn zero(self) -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
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
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    fn splat_i(self, value: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(value) }
    }
    #[inline(always)]
    fn add_i(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn and_i(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn to_i(self, a: __m256) -> __m256i {
        unsafe { _mm256_cvtps_epi32(a) }
    }
    #[inline(always)]
    fn from_i(self, a: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn bits(self, a: __m256) -> __m256i {
        unsafe { _mm256_castps_si256(a) }
    }
    #[inline(always)]
    fn from_bits(self, a: __m256i) -> __m256 {
        unsafe { _mm256_castsi256_ps(a) }
    }
    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, count: usize) -> __m256 {
        unsafe { _mm256_maskload_ps(from, _mm256_castps_si256(self.first(count))) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, value: __m256, count: usize) {
        unsafe { _mm256_maskstore_ps(to, _mm256_castps_si256(self.first(count)), value) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> __m256 {
        unsafe {
            let narrow = _mm_loadu_si128(from.cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(narrow)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, value: __m256) {
        unsafe {
            // Nearest even: add 0x7fff plus the lowest kept bit. NaN would overflow: quieten it instead.
            let bits = _mm256_castps_si256(value);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let result = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
            let low = _mm256_castsi256_si128(result);
            let high = _mm256_extracti128_si256::<1>(result);
            _mm_storeu_si128(to.cast(), _mm_packus_epi32(low, high));
        }
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn lt(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn first(self, count: usize) -> __m256 {
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lane))
        }
    }
    #[inline(always)]
    fn select(self, mask: __m256, yes: __m256, no: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(no, yes, mask) }
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: __m256i) -> __m256i {
        unsafe { _mm256_sllv_epi32(a, _mm256_set1_epi32(N as i32)) }
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: __m256i) -> __m256i {
        unsafe { _mm256_srlv_epi32(a, _mm256_set1_epi32(N as i32)) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> __m256i {
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> __m256i {
        unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())) }
    }
    #[inline(always)]
    fn widen_u8(self, bytes: u128) -> __m256i {
        unsafe { _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes as i64)) }
    }
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(self, address: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }
    #[inline(always)]
    fn positive_i(self, a: __m256i) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_cmpgt_epi32(a, _mm256_setzero_si256())) }
    }
    #[inline(always)]
    fn widen_half(self, bits: u16) -> f32 {
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }
    #[inline(always)]
    fn splat_half(self, bits: u16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_set1_epi16(bits as i16)) }
    }
    #[inline(always)]
    fn table(self, values: &[f32; 16]) -> [__m256; 2] {
        unsafe { [_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values[8..].as_ptr())] }
    }
    #[inline(always)]
    fn scale_table(self, table: [__m256; 2], factor: __m256) -> [__m256; 2] {
        unsafe { [_mm256_mul_ps(table[0], factor), _mm256_mul_ps(table[1], factor)] }
    }
    #[inline(always)]
    fn shift_table(self, table: [__m256; 2], addend: __m256) -> [__m256; 2] {
        unsafe { [_mm256_add_ps(table[0], addend), _mm256_add_ps(table[1], addend)] }
    }
    #[inline(always)]
    fn lookup(self, table: [__m256; 2], index: __m256i) -> __m256 {
        unsafe {
            // The permutation reads three bits of the index; the fourth becomes the sign that blends.
            let low = _mm256_permutevar8x32_ps(table[0], index);
            let high = _mm256_permutevar8x32_ps(table[1], index);
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
        }
    }
    #[inline(always)]
    fn reduce_add(self, a: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, a: __m256) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}
