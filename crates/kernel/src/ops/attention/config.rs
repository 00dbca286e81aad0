//! From shapes to the tiles and schedules of the GPU kernels: pure functions, measured choices.
//!
//! Measured on an H100 (80 GB, driver 580, NVRTC 13.0), November 2026, bf16, 16k tokens a batch, hidden
//! 2048, medians of interleaved runs; TFLOP/s with causal counted as half. cuDNN 9.19 runs beside.
//!
//! Forward, d 128: 192 x 80 tiles (three consumer warpgroups) against 128 x 128: 709 : 692 full at 16k,
//! 652 : 622 at 4k, 624 : 600 at 2k, 539 : 571 at 1k; causal 693 : 644 at 16k, 650 : 615 at 8k, 588 : 589
//! at 4k, 507 : 546 at 2k. 128 x 160, 128 x 176, 128 x 64 and three stages were slower throughout; 192 x 96
//! has no registers left and is serialised. d 64: 192 x 128 with three stages (554 full, 541 causal at
//! 16k); narrower keys (96, 112) and 128 rows lose 5 to 20 %, but 128 x 128 gains 3 % causal at 1k. d 256:
//! 128 x 80 and 128 x 64 within 2 %. Turns between the warpgroups gain up to 15 % (d 64 causal), never
//! lose. Exponentials by polynomial on the multiply-add units (3 or 6 of 16) lost 4 to 15 %: the issue
//! slots are what is short, not the special-function unit.
//!
//! Backward: sections of heads (see `backward_order.cuh`) at d 128 causal 16k: one head 568, four 501,
//! eight 353; at 8k 507, 528, 420; the best is what fits the L2. Additions to dq in a fixed order cost
//! nothing measurable against additions in any order (565 : 550 full at 16k).

//!
//! Beyond head dim 128 (`backward_wide.cuh`), d 256 full / causal at 8k: 520 / 477 with the sums of a visit
//! issued before the scores of the next, so that its stage is free half a round earlier; 406 / 404 with the
//! scores first and both stages held to the end of the round: each load was waited for. cuDNN 342 / 358.
//! Sections of heads (1, 2, as many as fit the L2, 8): within 3 %, one head loses 5 % at 4k.
//!
//! FP8 forward (`fp8_forward.cuh`), TFLOP/s at 8k. d 128: 128 x 192 tiles 921, x 224 862-890, x 160 with
//! three stages 861, x 128 812, 192 x 96 849. d 256: 128 x 128 1223, x 96 1052. d 64: 192 x 160 639,
//! 192 x 128 632, 128 x 256 590. Awaiting the output when the maximum is known: d 256 1223 against 1096
//! after half the exponentials and 1092 after all, d 128 921, 837, 898. Without turns 898 and 1181.

use super::tile_range::Window;

/// What decides about tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Features of a query, key or value: 64, 128, 192 or 256.
    pub head_dim: usize,
    /// Queries of the longest sequence.
    pub q_len: usize,
    /// Keys of the longest sequence.
    pub k_len: usize,
    /// Query heads of a key head.
    pub group: usize,
    /// Visible keys.
    pub window: Window,
}

/// Tiles of the forward kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Queries of a thread block, 64 a consumer warpgroup.
    pub block_m: usize,
    /// Keys of a tile.
    pub block_n: usize,
    /// Depth of the rings of keys and values.
    pub stages: usize,
    /// Whether the output is staged over the queries, for want of room.
    pub out_over_query: bool,
    /// Heads whose tiles are interleaved.
    pub section: usize,
}

/// Tiles of the backward kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backward {
    /// Queries of a row block.
    pub block_m: usize,
    /// Keys of a thread block.
    pub block_n: usize,
    /// Key heads whose tiles are interleaved.
    pub section: usize,
}

/// Tiles of the FP8 forward kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fp8Forward {
    /// Queries of a thread block, 64 a consumer warpgroup.
    pub block_m: usize,
    /// Keys of a tile.
    pub block_n: usize,
    /// Depth of the rings of keys and values.
    pub stages: usize,
    /// Heads whose tiles are interleaved.
    pub section: usize,
}

/// Keys of a tile of the FP8 kernel; also the rows that share a scale.
pub fn fp8_keys(head_dim: usize) -> usize {
    match head_dim {
        0..=64 => 160,
        65..=128 => 192,
        _ => 128,
    }
}

/// Bytes of the operands of a section: about half an L2.
const SECTION_BYTES: usize = 32 << 20;

/// Stages of the backward kernel's rings.
const BACKWARD_STAGES: usize = 2;

/// Keys of a part of a cache are a multiple of this many.
pub const PART_GRAIN: usize = 64;
/// Blocks of the decoding kernel that a multiprocessor holds.
const DECODE_BLOCKS: usize = 3;
/// Most parts of a sequence.
const MAX_PARTS: usize = 256;
/// What starting and joining a part costs, in keys.
const PART_COST: usize = 48;

/// Into how many parts the keys of a cache are cut, where there are `base` blocks without cutting: as many
/// as make the waves of blocks shortest.
pub fn parts(base: usize, k_len: usize, multiprocessors: usize) -> usize {
    let slots = DECODE_BLOCKS * multiprocessors.max(1);
    let most = k_len.div_ceil(2 * PART_GRAIN).clamp(1, MAX_PARTS);
    let cost = |&parts: &usize| {
        let keys = k_len.div_ceil(parts).next_multiple_of(PART_GRAIN);
        (base * parts).div_ceil(slots) * (keys + if parts > 1 { PART_COST } else { 0 })
    };
    // The fewest within a twentieth of the best: joining is not free, and waves are not in step.
    let least = (1..=most).map(|parts| cost(&parts)).min().unwrap_or(0);
    (1..=most).find(|parts| 20 * cost(parts) <= 21 * least).unwrap_or(1)
}

impl Shape {
    /// Whether some queries see fewer keys than others.
    pub fn has_diagonal(&self) -> bool {
        self.window != Window::default()
    }

    /// Whether keys right of the diagonal are hidden.
    pub fn is_causal(&self) -> bool {
        self.window.right == Some(0)
    }

    /// Tiles of the forward kernel.
    pub fn forward(&self) -> Forward {
        let long = if self.has_diagonal() { self.q_len > 4096 } else { self.q_len >= 2048 };
        let (block_m, block_n, stages) = match self.head_dim {
            64 if self.is_causal() && self.q_len <= 1024 => (128, 128, 3),
            64 => (192, 128, 3),
            128 if long => (192, 80, 2),
            128 => (128, 128, 2),
            192 => (128, 112, 2),
            _ => (128, 80, 2),
        };
        let head_bytes = 2 * 2 * self.head_dim * self.k_len.max(1);
        let heads = (SECTION_BYTES / head_bytes).max(1);
        // A power of two divides the heads of most models evenly.
        let heads = 1 << heads.ilog2();
        let section = if self.has_diagonal() { heads * self.group } else { 1 };
        Forward { block_m, block_n, stages, out_over_query: self.head_dim > 128, section }
    }

    /// Tiles of the FP8 forward kernel; head dims 64, 128 and 256.
    pub fn fp8_forward(&self) -> Fp8Forward {
        let (block_m, stages) = if self.head_dim == 64 { (192, 4) } else { (128, 2) };
        let heads = (SECTION_BYTES / (2 * self.head_dim * self.k_len.max(1))).max(1);
        let section = if self.has_diagonal() { (1 << heads.ilog2()) * self.group } else { 1 };
        Fp8Forward { block_m, block_n: fp8_keys(self.head_dim), stages, section }
    }

    /// Heads whose tiles are interleaved in the kernels of `backward_wide.cuh`: key heads, query heads.
    pub fn wide_sections(&self) -> [usize; 2] {
        if !self.has_diagonal() {
            return [1, 1];
        }
        let heads = |len: usize| (SECTION_BYTES / (4 * self.head_dim * len.max(1))).max(1);
        [(heads(self.q_len) / self.group).max(1), heads(self.k_len) * self.group]
    }

    /// Dynamic shared memory of those kernels; `KeysPipeline` and `QueriesPipeline`.
    pub fn wide_shared_bytes(&self) -> [u32; 2] {
        let tile = 2 * 64 * self.head_dim;
        let scores = 2 * 2 * 64 * 64;
        let statistics = 2 * 2 * 4 * 64;
        let keys = 6 * tile + scores + statistics + 8 * 14 + 8;
        [keys as u32, (7 * tile + 8 * 7 + 8) as u32]
    }

    /// Tiles of the backward kernels: at head dims 64 and 128 of one, beyond of `backward_wide.cuh`.
    pub fn backward(&self) -> Backward {
        if self.head_dim > 128 {
            return Backward { block_m: 64, block_n: 64, section: self.wide_sections()[0] };
        }
        let block_m = if self.head_dim == 64 { 128 } else { 64 };
        // q and dout in 16 bits, the sums of dq in 32.
        let head_bytes = 8 * self.head_dim * self.q_len.max(1) * self.group;
        let heads = SECTION_BYTES / head_bytes;
        let section = if self.has_diagonal() { heads.clamp(1, 8) } else { heads.clamp(4, 16) };
        Backward { block_m, block_n: 128, section }
    }
}

impl Forward {
    /// Threads of a block: the producer's warpgroup and one for 64 queries.
    pub fn threads(&self) -> u32 {
        (128 + 2 * self.block_m) as u32
    }

    /// Dynamic shared memory of a block; `ForwardStorage` of `forward_pipeline.cuh`.
    pub fn shared_bytes(&self, head_dim: usize) -> u32 {
        let rows = 2 * head_dim * (self.block_m + 2 * self.stages * self.block_n);
        let out = if self.out_over_query { 0 } else { 2 * head_dim * self.block_m };
        let barriers = 2 * self.block_m / 64 + 4 * self.stages + 4;
        (rows + out + 8 * barriers + 16) as u32
    }
}

impl Fp8Forward {
    /// Threads of a block: the producer's warpgroup and one for 64 queries.
    pub fn threads(&self) -> u32 {
        (128 + 2 * self.block_m) as u32
    }

    /// Dynamic shared memory of a block; `Fp8Storage` of `fp8_pipeline.cuh`.
    pub fn shared_bytes(&self, head_dim: usize) -> u32 {
        let codes = head_dim * (self.block_m + 2 * self.stages * self.block_n);
        let out = 2 * head_dim * self.block_m;
        let barriers = 2 * self.block_m / 64 + 4 * self.stages + 4;
        (codes + out + 16 * self.stages + 8 * barriers + 16) as u32
    }
}

impl Backward {
    /// Dynamic shared memory of a block; `BackwardStorage` of `backward_pipeline.cuh`.
    pub fn shared_bytes(&self, head_dim: usize) -> u32 {
        let keys = 2 * 2 * head_dim * self.block_n;
        let rows = BACKWARD_STAGES * 2 * (2 * head_dim * self.block_m + 4 * self.block_m);
        let scores = BACKWARD_STAGES * 2 * self.block_m * self.block_n;
        let sums = BACKWARD_STAGES * 4 * self.block_m * head_dim;
        (keys + rows + scores + sums + 8 * (1 + 8 * BACKWARD_STAGES) + 8) as u32
    }

    /// Dynamic shared memory of the kernel that finishes dq.
    pub fn finish_bytes(&self, head_dim: usize) -> u32 {
        (2 * self.block_m * head_dim) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shared memory of a block on compute capability 9.0.
    const SHARED: u32 = 227 << 10;

    fn shapes() -> Vec<Shape> {
        let windows = [(None, None), (None, Some(0)), (Some(128), Some(0)), (Some(64), Some(64))];
        let mut all = Vec::new();
        for head_dim in [64, 128, 192, 256] {
            for len in [0, 1, 500, 1024, 2048, 4096, 4097, 65_536] {
                for group in [1, 8] {
                    for (left, right) in windows {
                        let window = Window { left, right };
                        all.push(Shape { head_dim, q_len: len, k_len: len, group, window });
                    }
                }
            }
        }
        all
    }

    #[test]
    fn every_configuration_fits_the_chip_and_the_kernels() {
        for shape in shapes() {
            let forward = shape.forward();
            assert!(forward.shared_bytes(shape.head_dim) <= SHARED, "{shape:?}: {forward:?}");
            assert!(forward.block_m.is_multiple_of(64) && forward.block_m <= 192);
            assert!(forward.block_n.is_multiple_of(16) && forward.block_n <= 256);
            assert!(forward.section.is_multiple_of(shape.group) || !shape.has_diagonal());
            if shape.head_dim != 192 {
                let fp8 = shape.fp8_forward();
                assert!(fp8.shared_bytes(shape.head_dim) <= SHARED, "{shape:?}: {fp8:?}");
                assert!(fp8.block_n.is_multiple_of(32) && fp8.block_m.is_multiple_of(64));
            }
            if shape.head_dim > 128 {
                assert!(
                    shape.wide_shared_bytes().iter().all(|&bytes| bytes <= SHARED),
                    "{shape:?}"
                );
                assert!(shape.wide_sections().iter().all(|&heads| heads >= 1));
                continue;
            }
            let backward = shape.backward();
            assert!(backward.shared_bytes(shape.head_dim) <= SHARED, "{shape:?}: {backward:?}");
            assert!(shape.head_dim == 128 || backward.block_m == 128);
            assert!(backward.section >= 1);
        }
    }

    /// The sums that the headers assert, for the tiles of today.
    #[test]
    fn shared_memory_is_that_of_the_headers() {
        let long = Shape {
            head_dim: 128,
            q_len: 16_384,
            k_len: 16_384,
            group: 1,
            window: Window::default(),
        };
        assert_eq!(long.forward().shared_bytes(128), 180_384);
        assert_eq!(long.backward().shared_bytes(128), 230_544);
        let short = Shape { q_len: 1024, k_len: 1024, ..long };
        assert_eq!(short.forward().shared_bytes(128), 196_752);
        assert_eq!(Shape { head_dim: 64, ..long }.backward().shared_bytes(64), 231_568);
        assert_eq!(Shape { head_dim: 256, ..long }.forward().shared_bytes(256), 229_520);
    }

    #[test]
    fn parts_fill_the_chip_and_no_more() {
        // One sequence with one key head: cut; thousands of them: whole.
        assert_eq!(parts(8, 64, 132), 1);
        assert!((40..=50).contains(&parts(8, 131_072, 132)));
        assert_eq!(parts(4096, 4096, 132), 1);
        for base in [1, 8, 100, 396, 500] {
            for k_len in [1, 100, 4096, 131_072] {
                let parts = parts(base, k_len, 132);
                assert!(
                    parts >= 1 && (parts == 1 || k_len / parts >= PART_GRAIN),
                    "{base} {k_len}"
                );
            }
        }
    }

    #[test]
    fn sections_fit_the_cache_and_keep_groups_whole() {
        let window = Window { left: None, right: Some(0) };
        let shape = Shape { head_dim: 128, q_len: 16_384, k_len: 16_384, group: 4, window };
        assert_eq!(shape.forward().section, 16);
        assert_eq!(shape.backward().section, 1);
        let full = Shape { window: Window::default(), ..shape };
        assert_eq!((full.forward().section, full.backward().section), (1, 4));
    }
}
