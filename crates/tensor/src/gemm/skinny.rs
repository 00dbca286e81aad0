//! One to eight rows times a matrix whose columns are contiguous along k (weights stored as
//! `[out, in]`), with AVX-512.
//!
//! Such a product reads the matrix once, so packing it would cost more than the arithmetic. Sixteen
//! columns by sixteen units of k are loaded, transposed in registers and multiplied at once. The sums
//! run over k one by one as in the register tiles, not in lanes along k as a dot product would, so
//! the bits are those of the general path. It takes 64 shuffles for 1 KiB of matrix: with one a
//! cycle, 16 bytes a cycle, more than memory delivers. bf16 beside f32 is transposed in pairs and
//! widened afterwards; f16 is widened first, at half the bytes a shuffle.
//!
//! With more than four rows the transposition goes by four units: sixteen columns come to four registers
//! by loads of 16 bytes, and eight shuffles make four units of them, few enough that the next ones start
//! while the last are being multiplied; 64 shuffles before 256 multiplications are more than the
//! processor looks ahead. It takes four times the loads, so that fewer rows, which wait for memory and
//! not for multiplications, keep whole lines.

use std::arch::x86_64::*;

use super::pack::{Packer, Pair, Same, Widen, WidenHalf};
use danaus_runtime::simd::transpose_units;

/// Arguments: `rows` of A packed (unit `d` of row `i` at `a + d * a_step + i * 4`), columns of B in
/// place, and where the sums go.
pub struct Skinny {
    /// Steps along k, in units.
    pub depth: usize,
    /// Packed A.
    pub a: *const u8,
    /// Bytes from one step of A to the next.
    pub a_step: isize,
    /// First element of the first column.
    pub b: *const u8,
    /// Bytes from one column to the next.
    pub column_bytes: isize,
    /// Number of columns.
    pub columns: usize,
    /// Row-major sums.
    pub c: *mut f32,
    /// Elements between rows of sums.
    pub c_stride: isize,
    /// Whether to add to what is there.
    pub accumulate: bool,
}

/// One compiled routine for a number of rows.
pub type SkinnyFn = unsafe fn(&Skinny);

/// Vectors of sixteen 32-bit lanes of B.
trait Units: Packer {
    /// Units of k in a lane: one, or two bf16 that are widened after the transposition, which so moves
    /// twice as many elements.
    const IN_LANE: usize;
    /// The first `count` of `16 IN_LANE` units; the others are zero.
    unsafe fn load(from: *const u8, count: usize) -> __m512;
    /// Four whole lanes.
    #[inline(always)]
    unsafe fn quarter(from: *const u8) -> __m128 {
        // SAFETY: promised by the caller: sixteen bytes.
        unsafe { _mm_loadu_ps(from.cast()) }
    }
    /// Unit `index` of every lane.
    unsafe fn part(lanes: __m512, index: usize) -> __m512;
    /// `sum + a * b` for a unit of A in all lanes.
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512;
}

fn first(count: usize) -> __mmask16 {
    if count >= 16 { u16::MAX } else { (1 << count) - 1 }
}

fn first_of_32(count: usize) -> __mmask32 {
    if count >= 32 { u32::MAX } else { (1 << count) - 1 }
}

// SAFETY of every block: pointers are valid for `count` units and the processor has AVX-512 (and its
// bf16 part for `Pair`), as the callers of the routines below promise.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Units for Same<f32> {
    const IN_LANE: usize = 1;
    #[inline(always)]
    unsafe fn load(from: *const u8, count: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(first(count), from.cast()) }
    }
    #[inline(always)]
    unsafe fn part(lanes: __m512, _: usize) -> __m512 {
        lanes
    }
    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Units for Widen {
    const IN_LANE: usize = 2;
    #[inline(always)]
    unsafe fn load(from: *const u8, count: usize) -> __m512 {
        unsafe {
            let pairs = _mm512_maskz_loadu_epi16(first_of_32(count), from.cast());
            _mm512_castsi512_ps(pairs)
        }
    }
    #[inline(always)]
    unsafe fn part(lanes: __m512, index: usize) -> __m512 {
        unsafe {
            let bits = _mm512_castps_si512(lanes);
            _mm512_castsi512_ps(match index {
                0 => _mm512_slli_epi32::<16>(bits),
                _ => _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32)),
            })
        }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Units for WidenHalf {
    const IN_LANE: usize = 1;
    #[inline(always)]
    unsafe fn load(from: *const u8, count: usize) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), from.cast())) }
    }
    #[inline(always)]
    unsafe fn quarter(from: *const u8) -> __m128 {
        unsafe { _mm_cvtph_ps(_mm_loadl_epi64(from.cast())) }
    }
    #[inline(always)]
    unsafe fn part(lanes: __m512, _: usize) -> __m512 {
        lanes
    }
    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Units for Pair {
    const IN_LANE: usize = 1;
    #[inline(always)]
    unsafe fn load(from: *const u8, count: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(first(count), from.cast()) }
    }
    #[inline(always)]
    unsafe fn part(lanes: __m512, _: usize) -> __m512 {
        lanes
    }
    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        unsafe {
            let pairs = |x| std::mem::transmute::<__m512, __m512bh>(x);
            _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
        }
    }
}

/// Rows up to which sixteen units are transposed at once, by whole lines.
const LINES_UP_TO: usize = 4;

/// Bytes that a column is fetched ahead: the stream of each column is short for the hardware.
const AHEAD: usize = 512;

/// Columns that are multiplied together.
pub const COLUMNS: usize = 16;

/// Sixteen columns (or the last few).
///
/// # Safety
/// As [`skinny`]; `start` is a column.
#[inline(always)]
unsafe fn sixteen<U: Units, const ROWS: usize>(request: &Skinny, start: usize) {
    let columns = (request.columns - start).min(COLUMNS);
    let per_block = 16 * U::IN_LANE;
    let unit_bytes = size_of::<U::Source>() * U::DEPTH;
    // SAFETY: promised by the caller; only existing columns and units are read and written.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); ROWS];
        let mut a = request.a;
        let mut b = request.b.offset(start as isize * request.column_bytes);
        let whole = if columns == COLUMNS { request.depth / per_block } else { 0 };
        for _ in 0..whole {
            let block = Block { a, a_step: request.a_step, b, column_bytes: request.column_bytes };
            if ROWS > LINES_UP_TO {
                block.multiply_whole::<U, ROWS>(&mut sums);
            } else {
                // Constant limits: the loads of the next block start before the sums of this one end.
                block.multiply::<U, ROWS>((COLUMNS, per_block), &mut sums);
            }
            a = a.offset(per_block as isize * request.a_step);
            b = b.add(per_block * unit_bytes);
        }
        let mut unit = whole * per_block;
        while unit < request.depth {
            let units = (request.depth - unit).min(per_block);
            let block = Block { a, a_step: request.a_step, b, column_bytes: request.column_bytes };
            block.multiply::<U, ROWS>((columns, units), &mut sums);
            a = a.offset(units as isize * request.a_step);
            b = b.add(units * unit_bytes);
            unit += units;
        }
        let mask = first(columns);
        for i in 0..ROWS {
            let to = request.c.offset(i as isize * request.c_stride).add(start);
            if request.accumulate {
                sums[i] = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), sums[i]);
            }
            _mm512_mask_storeu_ps(to, mask, sums[i]);
        }
    }
}

/// Sixteen columns by sixteen lanes of units.
struct Block {
    a: *const u8,
    a_step: isize,
    b: *const u8,
    column_bytes: isize,
}

impl Block {
    /// Adds the products of a block that is all there to the sums.
    ///
    /// # Safety
    /// As [`skinny`].
    #[inline(always)]
    unsafe fn multiply_whole<U: Units, const ROWS: usize>(self, sums: &mut [__m512; ROWS]) {
        let lane_bytes = size_of::<U::Source>() * U::DEPTH * U::IN_LANE;
        let mut a = self.a;
        for quarter in 0..4 {
            // SAFETY: promised by the caller.
            unsafe {
                let mut rows = [_mm512_setzero_ps(); 4];
                for i in 0..4 {
                    let column = self.b.offset(i as isize * self.column_bytes);
                    let from = column.add(4 * quarter * lane_bytes);
                    let apart = 4 * self.column_bytes;
                    let first = _mm512_castps128_ps512(U::quarter(from));
                    let two = _mm512_insertf32x4::<1>(first, U::quarter(from.offset(apart)));
                    let three = _mm512_insertf32x4::<2>(two, U::quarter(from.offset(2 * apart)));
                    rows[i] = _mm512_insertf32x4::<3>(three, U::quarter(from.offset(3 * apart)));
                    // Four columns a quarter; the same place of the next sixteen columns.
                    let column =
                        self.b.wrapping_offset((4 * quarter + i) as isize * self.column_bytes);
                    _mm_prefetch::<_MM_HINT_T0>(column.wrapping_add(AHEAD).cast());
                    let next = column.wrapping_offset(COLUMNS as isize * self.column_bytes);
                    _mm_prefetch::<_MM_HINT_T1>(next.cast());
                }
                let [ab, ab_high, cd, cd_high] = [
                    _mm512_unpacklo_ps(rows[0], rows[1]),
                    _mm512_unpackhi_ps(rows[0], rows[1]),
                    _mm512_unpacklo_ps(rows[2], rows[3]),
                    _mm512_unpackhi_ps(rows[2], rows[3]),
                ];
                let lanes = [
                    _mm512_shuffle_ps::<0x44>(ab, cd),
                    _mm512_shuffle_ps::<0xee>(ab, cd),
                    _mm512_shuffle_ps::<0x44>(ab_high, cd_high),
                    _mm512_shuffle_ps::<0xee>(ab_high, cd_high),
                ];
                for d in 0..4 {
                    for part in 0..U::IN_LANE {
                        let unit = U::part(lanes[d], part);
                        for i in 0..ROWS {
                            let value = _mm512_set1_ps(a.cast::<f32>().add(i).read_unaligned());
                            sums[i] = U::multiply_add(value, unit, sums[i]);
                        }
                        a = a.offset(self.a_step);
                    }
                }
            }
        }
    }

    /// Adds the products to the sums.
    ///
    /// # Safety
    /// As [`skinny`]; so many columns and units exist.
    #[inline(always)]
    unsafe fn multiply<U: Units, const ROWS: usize>(
        self,
        (columns, units): (usize, usize),
        sums: &mut [__m512; ROWS],
    ) {
        // SAFETY: promised by the caller.
        unsafe {
            let mut block = [_mm512_setzero_ps(); COLUMNS];
            for i in 0..COLUMNS {
                if i < columns {
                    let from = self.b.offset(i as isize * self.column_bytes);
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD).cast());
                    // The same place of the next sixteen columns.
                    let next = from.wrapping_offset(COLUMNS as isize * self.column_bytes);
                    _mm_prefetch::<_MM_HINT_T1>(next.cast());
                    block[i] = U::load(from, units);
                }
            }
            let block = transpose_units(block);
            let mut a = self.a;
            for d in 0..16 {
                for part in 0..U::IN_LANE {
                    if d * U::IN_LANE + part < units {
                        let unit = U::part(block[d], part);
                        for i in 0..ROWS {
                            let value = _mm512_set1_ps(a.cast::<f32>().add(i).read_unaligned());
                            sums[i] = U::multiply_add(value, unit, sums[i]);
                        }
                        a = a.offset(self.a_step);
                    }
                }
            }
        }
    }
}

/// All columns.
///
/// # Safety
/// `request` describes valid memory; the processor has the instructions of `U`.
#[inline(always)]
unsafe fn skinny<U: Units, const ROWS: usize>(request: &Skinny) {
    for start in (0..request.columns).step_by(COLUMNS) {
        // SAFETY: promised by the caller.
        unsafe { sixteen::<U, ROWS>(request, start) };
    }
}

macro_rules! skinny_table {
    ($table:ident, $function:ident, $units:ty, $features:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn $function<const ROWS: usize>(request: &Skinny) {
            // SAFETY: promised by the caller; the features are enabled here.
            unsafe { skinny::<$units, ROWS>(request) }
        }

        /// Routines by number of rows minus one.
        pub const $table: &[SkinnyFn] = &[
            $function::<1>,
            $function::<2>,
            $function::<3>,
            $function::<4>,
            $function::<5>,
            $function::<6>,
            $function::<7>,
            $function::<8>,
        ];
    };
}

skinny_table!(F32, skinny_f32, Same<f32>, "avx512f,avx512bw,avx512vl,avx2,fma");
skinny_table!(WIDENED, skinny_widened, Widen, "avx512f,avx512bw,avx512vl,avx2,fma");
skinny_table!(HALF, skinny_half, WidenHalf, "avx512f,avx512bw,avx512vl,avx2,fma");
skinny_table!(PAIRED, skinny_paired, Pair, "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma");
