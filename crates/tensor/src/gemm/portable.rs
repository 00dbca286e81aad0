//! Register tiles and packing in plain Rust, for any processor.
//!
//! Tiles of 4 x 8 (f32) and 4 x 4 (f64): what sixteen 128-bit registers hold, which every 64-bit
//! target of the compiler has.

use super::engine::{Engine, Micro, Tile, TileFn, multiply};
use super::pack::{self, Pack, Same, Widen, WidenHalf};

struct Plain<T>(T);

macro_rules! plain_engine {
    ($type:ty, $lanes:literal, $tile:ident, $micro:ident, $max_depth:literal) => {
        // SAFETY of every block: pointers are valid for one vector, as the trait demands.
        #[allow(clippy::undocumented_unsafe_blocks)]
        impl Engine for Plain<$type> {
            type Acc = $type;
            type Operand = [$type; $lanes];
            type Sum = [$type; $lanes];
            const LANES: usize = $lanes;
            const UNIT_BYTES: usize = size_of::<$type>();

            #[inline(always)]
            unsafe fn zero() -> Self::Sum {
                [0.0; $lanes]
            }
            #[inline(always)]
            unsafe fn load(from: *const u8) -> Self::Operand {
                unsafe { from.cast::<Self::Operand>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn splat(from: *const u8) -> Self::Operand {
                unsafe { [from.cast::<$type>().read_unaligned(); $lanes] }
            }
            #[inline(always)]
            unsafe fn multiply_add(
                a: Self::Operand,
                b: Self::Operand,
                mut sum: Self::Sum,
            ) -> Self::Sum {
                // Two roundings: a fused operation is a library call on processors without one.
                for lane in 0..$lanes {
                    sum[lane] += a[lane] * b[lane];
                }
                sum
            }
            #[inline(always)]
            unsafe fn add_to(to: *mut $type, sum: Self::Sum) {
                for lane in 0..$lanes {
                    unsafe { *to.add(lane) += sum[lane] };
                }
            }
            #[inline(always)]
            unsafe fn store(to: *mut $type, sum: Self::Sum) {
                unsafe { to.cast::<Self::Sum>().write_unaligned(sum) }
            }
        }

        unsafe fn $tile<const ROWS: usize>(tile: &Tile<$type>) {
            // SAFETY: promised by the caller.
            unsafe { multiply::<Plain<$type>, ROWS, 1>(tile) }
        }

        /// Register tiles of this element type.
        pub const $micro: Micro<$type> = {
            const TILES: &[TileFn<$type>] = &[$tile::<1>, $tile::<2>, $tile::<3>, $tile::<4>];
            Micro {
                cols: $lanes,
                tiles: TILES,
                unit_bytes: size_of::<$type>(),
                max_depth: $max_depth,
            }
        };
    };
}

plain_engine!(f32, 8, tile_f32, F32, 512);
plain_engine!(f64, 4, tile_f64, F64, 256);

/// Packs f32 as f32.
pub unsafe fn pack_f32(request: &Pack) {
    // SAFETY: promised by the caller.
    unsafe { pack::scalar::<Same<f32>>(request, 0) }
}

/// Packs f64 as f64.
pub unsafe fn pack_f64(request: &Pack) {
    // SAFETY: promised by the caller.
    unsafe { pack::scalar::<Same<f64>>(request, 0) }
}

/// Packs bf16 as f32.
pub unsafe fn pack_widened(request: &Pack) {
    // SAFETY: promised by the caller.
    unsafe { pack::scalar::<Widen>(request, 0) }
}

/// Packs f16 as f32.
pub unsafe fn pack_widened_half(request: &Pack) {
    // SAFETY: promised by the caller.
    unsafe { pack::scalar::<WidenHalf>(request, 0) }
}
