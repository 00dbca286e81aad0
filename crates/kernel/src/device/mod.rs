//! The device library: CUDA C++ headers that kernels of several operators include.
//!
//! Small files by scope and storage. They include no host or toolkit header, so that NVRTC compiles them
//! alone, and each says what its caller must order.
//!
//! | header | holds |
//! | --- | --- |
//! | `types.cuh` | fixed-width names, the 16-bit element types, warps and lanes |
//! | `math.cuh` | exponentials and their kin with their error, sums over a quad of lanes |
//! | `barrier.cuh` | mbarriers, rings of stages, named barriers, proxy fences, register shares |
//! | `tma.cuh` | the bulk copy engine: tiles by tensor map, flat runs, additions |
//! | `shared_tile.cuh` | tiles in shared memory with the 128-byte swizzle |
//! | `fp8.cuh` | e4m3 operands: conversion, layout, products; `wgmma_fp8_table.cuh` is their operand lists |
//! | `wgmma.cuh` | warpgroup matrix products; `wgmma_table.cuh` is their operand lists |

use danaus_runtime::cuda::Header;

macro_rules! header {
    ($name:literal) => {
        Header { name: concat!("device/", $name), text: include_str!($name) }
    };
}

/// `device/types.cuh`.
pub const TYPES: Header = header!("types.cuh");
/// `device/math.cuh`.
pub const MATH: Header = header!("math.cuh");
/// `device/barrier.cuh`.
pub const BARRIER: Header = header!("barrier.cuh");
/// `device/tma.cuh`.
pub const TMA: Header = header!("tma.cuh");
/// `device/shared_tile.cuh`.
pub const SHARED_TILE: Header = header!("shared_tile.cuh");
/// `device/wgmma.cuh`.
pub const WGMMA: Header = header!("wgmma.cuh");
/// `device/wgmma_table.cuh`.
pub const WGMMA_TABLE: Header = header!("wgmma_table.cuh");
/// `device/fp8.cuh`.
pub const FP8: Header = header!("fp8.cuh");
/// `device/wgmma_fp8_table.cuh`.
pub const WGMMA_FP8_TABLE: Header = header!("wgmma_fp8_table.cuh");
