//! Sixteen lanes with AVX-512.

use super::Simd;
use std::arch::x86_64::*;

/// Proof that the processor has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// The proof itself; [`super::dispatch`] checks the processor first.
    #[inline(always)]
    pub(super) fn new_unchecked() -> Self {
        Self(())
    }
}

// SAFETY of every block below: a value of this type exists only inside `dispatch`, after the
// processor was found to have the instructions; memory operations pass on their caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    const LANES: usize = 16;
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;
    type Table = __m512;

    #[inline(always)]
    fn zero(self) -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
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
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn splat_i(self, value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn and_i(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn to_i(self, a: __m512) -> __m512i {
        unsafe { _mm512_cvtps_epi32(a) }
    }
    #[inline(always)]
    fn from_i(self, a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn bits(self, a: __m512) -> __m512i {
        unsafe { _mm512_castps_si512(a) }
    }
    #[inline(always)]
    fn from_bits(self, a: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(a) }
    }
    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, count: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(self.first(count), from) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, value: __m512, count: usize) {
        unsafe { _mm512_mask_storeu_ps(to, self.first(count), value) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> __m512 {
        unsafe {
            let narrow = _mm256_loadu_si256(from.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, value: __m512) {
        unsafe {
            // Nearest even: add 0x7fff plus the lowest kept bit. NaN would overflow: quieten it instead.
            let bits = _mm512_castps_si512(value);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let result = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(result));
        }
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(a) }
    }
    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn first(self, count: usize) -> __mmask16 {
        if count >= 16 { u16::MAX } else { (1u16 << count) - 1 }
    }
    #[inline(always)]
    fn select(self, mask: __mmask16, yes: __m512, no: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(mask, no, yes) }
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi32::<N>(a) }
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi32::<N>(a) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> __m512i {
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> __m512i {
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    fn widen_u8(self, bytes: u128) -> __m512i {
        unsafe {
            let both = _mm_set_epi64x((bytes >> 64) as i64, bytes as i64);
            _mm512_cvtepu8_epi32(both)
        }
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
    fn positive_i(self, a: __m512i) -> __mmask16 {
        unsafe { _mm512_cmpgt_epi32_mask(a, _mm512_setzero_si512()) }
    }
    #[inline(always)]
    fn widen_half(self, bits: u16) -> f32 {
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }
    #[inline(always)]
    fn splat_half(self, bits: u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(bits as i16)) }
    }
    #[inline(always)]
    fn table(self, values: &[f32; 16]) -> __m512 {
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }
    #[inline(always)]
    fn scale_table(self, table: __m512, factor: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(table, factor) }
    }
    #[inline(always)]
    fn shift_table(self, table: __m512, addend: __m512) -> __m512 {
        unsafe { _mm512_add_ps(table, addend) }
    }
    #[inline(always)]
    fn lookup(self, table: __m512, index: __m512i) -> __m512 {
        unsafe { _mm512_permutexvar_ps(index, table) }
    }
    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }
}

/// Transposes sixteen vectors of sixteen 32-bit units.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
pub unsafe fn transpose_units(rows: [__m512; 16]) -> [__m512; 16] {
    // SAFETY: register operations only.
    unsafe {
        let (mut pairs, mut quads, mut halves, mut columns) = (rows, rows, rows, rows);
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
        }
        // quads[4 g + j]: units j, j + 4, j + 8, j + 12 of rows 4 g .. 4 g + 4, four lanes each.
        for g in 0..4 {
            let p = 4 * g;
            quads[p] = _mm512_shuffle_ps::<0x44>(pairs[p], pairs[p + 2]);
            quads[p + 1] = _mm512_shuffle_ps::<0xee>(pairs[p], pairs[p + 2]);
            quads[p + 2] = _mm512_shuffle_ps::<0x44>(pairs[p + 1], pairs[p + 3]);
            quads[p + 3] = _mm512_shuffle_ps::<0xee>(pairs[p + 1], pairs[p + 3]);
        }
        for j in 0..4 {
            halves[j] = _mm512_shuffle_f32x4::<0x88>(quads[j], quads[4 + j]);
            halves[4 + j] = _mm512_shuffle_f32x4::<0xdd>(quads[j], quads[4 + j]);
            halves[8 + j] = _mm512_shuffle_f32x4::<0x88>(quads[8 + j], quads[12 + j]);
            halves[12 + j] = _mm512_shuffle_f32x4::<0xdd>(quads[8 + j], quads[12 + j]);
        }
        for j in 0..4 {
            columns[j] = _mm512_shuffle_f32x4::<0x88>(halves[j], halves[8 + j]);
            columns[8 + j] = _mm512_shuffle_f32x4::<0xdd>(halves[j], halves[8 + j]);
            columns[4 + j] = _mm512_shuffle_f32x4::<0x88>(halves[4 + j], halves[12 + j]);
            columns[12 + j] = _mm512_shuffle_f32x4::<0xdd>(halves[4 + j], halves[12 + j]);
        }
        columns
    }
}
