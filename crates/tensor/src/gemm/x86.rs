//! Register tiles and packing with AVX2 and AVX-512.
//!
//! AVX-512 has 32 registers: 14 rows x 2 vectors of sums, 2 vectors of B and one broadcast of A make
//! 31. AVX2 has 16: 6 x 2 + 2 + 1 make 15. A `vdpbf16ps` adds two products of a bf16 pair to each f32
//! sum (products exact, denormals flushed), so the pair takes the place of an f32 everywhere.

use std::arch::x86_64::*;

use super::engine::{Engine, Micro, Tile, TileFn, multiply};
use super::pack::{self, Pack, Packer, Pair, Same, Widen, WidenHalf};

struct F32Avx512;
struct F64Avx512;
struct Bf16Avx512;
struct F32Avx2;
struct F64Avx2;

macro_rules! engine {
    ($name:ident, $acc:ty, $operand:ty, $sum:ty, $lanes:literal, $unit:literal,
     zero: $zero:expr, load: |$load:ident| $load_body:expr, splat: |$splat:ident| $splat_body:expr,
     fma: |$a:ident, $b:ident, $c:ident| $fma_body:expr,
     add: |$x:ident, $y:ident| $add_body:expr,
     read: |$from:ident| $read_body:expr, store: |$to:ident, $value:ident| $store_body:expr) => {
        // SAFETY of every block: the trait demands valid pointers and the instruction set.
        #[allow(clippy::undocumented_unsafe_blocks)]
        impl Engine for $name {
            type Acc = $acc;
            type Operand = $operand;
            type Sum = $sum;
            const LANES: usize = $lanes;
            const UNIT_BYTES: usize = $unit;

            #[inline(always)]
            fn prefetch(address: *const u8) {
                // SAFETY: a prefetch never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
            }
            #[inline(always)]
            unsafe fn zero() -> $sum {
                unsafe { $zero }
            }
            #[inline(always)]
            unsafe fn load($load: *const u8) -> $operand {
                unsafe { $load_body }
            }
            #[inline(always)]
            unsafe fn splat($splat: *const u8) -> $operand {
                unsafe { $splat_body }
            }
            #[inline(always)]
            unsafe fn multiply_add($a: $operand, $b: $operand, $c: $sum) -> $sum {
                unsafe { $fma_body }
            }
            #[inline(always)]
            unsafe fn add_to($to: *mut $acc, $y: $sum) {
                unsafe {
                    let $from = $to;
                    let $x = $read_body;
                    let $value = $add_body;
                    $store_body
                }
            }
            #[inline(always)]
            unsafe fn store($to: *mut $acc, $value: $sum) {
                unsafe { $store_body }
            }
        }
    };
}

engine!(F32Avx512, f32, __m512, __m512, 16, 4,
    zero: _mm512_setzero_ps(),
    load: |from| _mm512_loadu_ps(from.cast()),
    splat: |from| _mm512_set1_ps(from.cast::<f32>().read_unaligned()),
    fma: |a, b, sum| _mm512_fmadd_ps(a, b, sum),
    add: |x, y| _mm512_add_ps(x, y),
    read: |from| _mm512_loadu_ps(from),
    store: |to, value| _mm512_storeu_ps(to, value));

engine!(F64Avx512, f64, __m512d, __m512d, 8, 8,
    zero: _mm512_setzero_pd(),
    load: |from| _mm512_loadu_pd(from.cast()),
    splat: |from| _mm512_set1_pd(from.cast::<f64>().read_unaligned()),
    fma: |a, b, sum| _mm512_fmadd_pd(a, b, sum),
    add: |x, y| _mm512_add_pd(x, y),
    read: |from| _mm512_loadu_pd(from),
    store: |to, value| _mm512_storeu_pd(to, value));

engine!(Bf16Avx512, f32, __m512i, __m512, 16, 4,
    zero: _mm512_setzero_ps(),
    load: |from| _mm512_loadu_si512(from.cast()),
    splat: |from| _mm512_set1_epi32(from.cast::<i32>().read_unaligned()),
    fma: |a, b, sum| _mm512_dpbf16_ps(
        sum,
        std::mem::transmute::<__m512i, __m512bh>(a),
        std::mem::transmute::<__m512i, __m512bh>(b),
    ),
    add: |x, y| _mm512_add_ps(x, y),
    read: |from| _mm512_loadu_ps(from),
    store: |to, value| _mm512_storeu_ps(to, value));

engine!(F32Avx2, f32, __m256, __m256, 8, 4,
    zero: _mm256_setzero_ps(),
    load: |from| _mm256_loadu_ps(from.cast()),
    splat: |from| _mm256_set1_ps(from.cast::<f32>().read_unaligned()),
    fma: |a, b, sum| _mm256_fmadd_ps(a, b, sum),
    add: |x, y| _mm256_add_ps(x, y),
    read: |from| _mm256_loadu_ps(from),
    store: |to, value| _mm256_storeu_ps(to, value));

engine!(F64Avx2, f64, __m256d, __m256d, 4, 8,
    zero: _mm256_setzero_pd(),
    load: |from| _mm256_loadu_pd(from.cast()),
    splat: |from| _mm256_set1_pd(from.cast::<f64>().read_unaligned()),
    fma: |a, b, sum| _mm256_fmadd_pd(a, b, sum),
    add: |x, y| _mm256_add_pd(x, y),
    read: |from| _mm256_loadu_pd(from),
    store: |to, value| _mm256_storeu_pd(to, value));

/// A table of tiles of every height for one engine, compiled with the engine's features.
macro_rules! micro {
    ($micro:ident, $tile:ident, $engine:ty, $acc:ty, $features:literal, cols: $cols:literal,
     vectors: $vectors:literal, max_depth: $max_depth:literal,
     heights: $($height:literal)*) => {
        #[target_feature(enable = $features)]
        unsafe fn $tile<const ROWS: usize>(tile: &Tile<$acc>) {
            // SAFETY: promised by the caller; the features are enabled here.
            unsafe { multiply::<$engine, ROWS, $vectors>(tile) }
        }

        /// Register tiles of this element type and instruction set.
        pub const $micro: Micro<$acc> = {
            const TILES: &[TileFn<$acc>] = &[$($tile::<$height>),*];
            Micro {
                cols: $cols,
                tiles: TILES,
                unit_bytes: <$engine as Engine>::UNIT_BYTES,
                max_depth: $max_depth,
            }
        };
    };
}

micro!(F32_AVX512, tile_f32_avx512, F32Avx512, f32, "avx512f,avx512vl,avx2,fma", cols: 32,
    vectors: 2, max_depth: 512, heights: 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
micro!(F64_AVX512, tile_f64_avx512, F64Avx512, f64, "avx512f,avx512vl,avx2,fma", cols: 16,
    vectors: 2, max_depth: 256, heights: 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
micro!(BF16_AVX512, tile_bf16_avx512, Bf16Avx512, f32, "avx512f,avx512bf16,avx512vl,avx2,fma",
    cols: 32, vectors: 2, max_depth: 512, heights: 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
micro!(F32_AVX2, tile_f32_avx2, F32Avx2, f32, "avx2,fma", cols: 16, vectors: 2, max_depth: 512,
    heights: 1 2 3 4 5 6);
micro!(F64_AVX2, tile_f64_avx2, F64Avx2, f64, "avx2,fma", cols: 8, vectors: 2, max_depth: 256,
    heights: 1 2 3 4 5 6);
micro!(F32_AVX512_WIDE, wide_f32_avx512, F32Avx512, f32, "avx512f,avx512vl,avx2,fma", cols: 128,
    vectors: 8, max_depth: 512, heights: 1 2);
micro!(F64_AVX512_WIDE, wide_f64_avx512, F64Avx512, f64, "avx512f,avx512vl,avx2,fma", cols: 64,
    vectors: 8, max_depth: 256, heights: 1 2);
micro!(F32_AVX2_WIDE, wide_f32_avx2, F32Avx2, f32, "avx2,fma", cols: 64, vectors: 8,
    max_depth: 512, heights: 1);
micro!(F64_AVX2_WIDE, wide_f64_avx2, F64Avx2, f64, "avx2,fma", cols: 32, vectors: 8,
    max_depth: 256, heights: 1);

/// A packer whose units are 32 bits and lie one after another when k is contiguous.
trait Packer32: Packer {
    /// Eight units of one lane.
    ///
    /// # Safety
    /// The elements of eight units are readable at `from`; the processor has AVX2.
    unsafe fn eight(from: *const Self::Source) -> __m256;
}

impl Packer32 for Same<f32> {
    #[inline(always)]
    unsafe fn eight(from: *const f32) -> __m256 {
        // SAFETY: promised by the caller.
        unsafe { _mm256_loadu_ps(from) }
    }
}

impl Packer32 for Pair {
    #[inline(always)]
    unsafe fn eight(from: *const half::bf16) -> __m256 {
        // SAFETY: promised by the caller; sixteen bf16 are eight pairs.
        unsafe { _mm256_loadu_ps(from.cast()) }
    }
}

impl Packer32 for Widen {
    #[inline(always)]
    unsafe fn eight(from: *const half::bf16) -> __m256 {
        // SAFETY: promised by the caller.
        unsafe {
            let narrow = _mm_loadu_si128(from.cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(narrow)))
        }
    }
}

impl Packer32 for WidenHalf {
    #[inline(always)]
    unsafe fn eight(from: *const half::f16) -> __m256 {
        // SAFETY: promised by the caller.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
}

/// Transposes eight vectors of eight 32-bit units.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn transpose(rows: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: register operations only.
    unsafe {
        let mut pairs = rows;
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
        }
        let mut quads = rows;
        for half in 0..2 {
            let (p, q) = (4 * half, 4 * half + 2);
            quads[p] = _mm256_shuffle_ps::<0x44>(pairs[p], pairs[q]);
            quads[p + 1] = _mm256_shuffle_ps::<0xee>(pairs[p], pairs[q]);
            quads[p + 2] = _mm256_shuffle_ps::<0x44>(pairs[p + 1], pairs[q + 1]);
            quads[p + 3] = _mm256_shuffle_ps::<0xee>(pairs[p + 1], pairs[q + 1]);
        }
        let mut columns = rows;
        for i in 0..4 {
            columns[i] = _mm256_permute2f128_ps::<0x20>(quads[i], quads[i + 4]);
            columns[i + 4] = _mm256_permute2f128_ps::<0x31>(quads[i], quads[i + 4]);
        }
        columns
    }
}

/// Packs a strip whose k is contiguous in blocks of eight lanes by eight units; returns units done.
///
/// # Safety
/// As [`pack::scalar`]; moreover `depth_stride == 1`, `width` is a multiple of 8, and the processor
/// has AVX2.
#[inline(always)]
unsafe fn transposed<P: Packer32>(request: &Pack) -> usize {
    let source = request.source.cast::<P::Source>();
    let panel = request.panel.cast::<f32>();
    let blocks = request.depth / P::DEPTH / 8;
    for lane in (0..request.width).step_by(8) {
        let present = request.lanes.saturating_sub(lane).min(8);
        for block in 0..blocks {
            // SAFETY: lanes below `lanes` and whole blocks of k exist; the panel holds them.
            unsafe {
                let mut rows = [_mm256_setzero_ps(); 8];
                for i in 0..present {
                    let start = source.offset((lane + i) as isize * request.lane_stride);
                    rows[i] = P::eight(start.add(block * 8 * P::DEPTH));
                }
                let columns = transpose(rows);
                for i in 0..8 {
                    let to = panel.add((block * 8 + i) * request.width + lane);
                    _mm256_storeu_ps(to, columns[i]);
                }
            }
        }
    }
    blocks * 8
}

/// Chooses by strides; see the three routines.
///
/// # Safety
/// As [`pack::scalar`]; the processor has AVX2.
#[inline(always)]
unsafe fn pack32<P: Packer32>(request: &Pack) {
    // SAFETY: promised by the caller; the strides are checked here.
    unsafe {
        let full = request.lanes == request.width;
        let done = if request.lane_stride == 1 && full && request.width == 32 {
            pack::neighbours::<P, 32>(request)
        } else if request.lane_stride == 1 && full && request.width == 16 {
            pack::neighbours::<P, 16>(request)
        } else if request.lane_stride == 1 && full && request.width == 8 {
            pack::neighbours::<P, 8>(request)
        } else if request.depth_stride == 1 && request.width.is_multiple_of(8) {
            transposed::<P>(request)
        } else {
            0
        };
        pack::scalar::<P>(request, done);
    }
}

/// Packs f32 as f32.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn pack_f32(request: &Pack) {
    // SAFETY: promised by the caller.
    unsafe { pack32::<Same<f32>>(request) }
}

/// Packs bf16 as f32.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn pack_widened(request: &Pack) {
    // SAFETY: promised by the caller.
    unsafe { pack32::<Widen>(request) }
}

/// Packs f16 as f32.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn pack_widened_half(request: &Pack) {
    // SAFETY: promised by the caller.
    unsafe { pack32::<WidenHalf>(request) }
}

/// Packs bf16 as pairs along k.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn pack_paired(request: &Pack) {
    // SAFETY: promised by the caller.
    unsafe { pack32::<Pair>(request) }
}

/// Packs f64 as f64.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn pack_f64(request: &Pack) {
    // SAFETY: promised by the caller.
    unsafe {
        let full = request.lane_stride == 1 && request.lanes == request.width;
        let done = match request.width {
            16 if full => pack::neighbours::<Same<f64>, 16>(request),
            8 if full => pack::neighbours::<Same<f64>, 8>(request),
            _ => 0,
        };
        pack::scalar::<Same<f64>>(request, done);
    }
}
