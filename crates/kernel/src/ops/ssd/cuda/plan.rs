//! Which kernels serve a call, and how work is spread over the multiprocessors: functions of the shape
//! and the chip alone.

use crate::ops::ssd::config::Shape;
use crate::ops::ssd::runs::Run;

/// Tokens of a chunk of the Hopper kernels.
pub const CHUNK: usize = 64;
/// Most tokens of a chunk of the generic backward pass.
pub const GENERIC_CHUNK: usize = 32;
/// Runs this short are faster token by token.
const FEW_TOKENS: usize = 16;
/// Stages of the copy rings.
pub const STAGES: usize = 3;
/// What a launch that only finds out what segments add costs, in percent of the one that follows.
const FIRST_LAUNCH: usize = 45;
/// What a block costs before its first chunk, in chunks.
const START: usize = 10;
/// Chunks below which a segment is not cut further.
const MIN_SEGMENT: usize = 2;
/// What a block of the gradient kernel spends on B, C and their gradients, in heads.
const BLOCK_COST: usize = 2;

/// Whether the matrix kernels know the shape.
pub fn has_matrix_kernels(shape: &Shape) -> bool {
    shape.head_dim == 64 && matches!(shape.d_state, 64 | 128)
}

/// Whether every run is short.
pub fn is_short(runs: &[Run]) -> bool {
    runs.iter().all(|run| run.len <= FEW_TOKENS)
}

/// Blocks that a walk over whole runs has: pairs of heads of a group.
pub fn walks(shape: &Shape, runs: usize) -> usize {
    shape.heads_per_group().div_ceil(2) * shape.groups * runs
}

/// Into how many segments each run is cut, so that `walks` blocks fill `multiprocessors`.
pub fn segments(walks: usize, longest_chunks: usize, multiprocessors: usize) -> usize {
    let most = (longest_chunks / MIN_SEGMENT).clamp(1, 64);
    let cost = |segments: usize| {
        let rounds = (walks * segments).div_ceil(multiprocessors.max(1));
        let chunks = rounds * (longest_chunks.div_ceil(segments) + START);
        if segments == 1 { 100 * chunks } else { (100 + FIRST_LAUNCH) * chunks + 100 }
    };
    (1..=most).min_by_key(|&segments| cost(segments)).unwrap_or(1)
}

/// Among how many blocks the heads of a group are shared in the gradient kernel.
pub fn shares(shape: &Shape, chunks: usize, multiprocessors: usize) -> usize {
    let blocks = chunks * shape.groups;
    let heads = shape.heads_per_group();
    let cost = |shares: usize| {
        let rounds = (blocks * shares).div_ceil(multiprocessors.max(1));
        rounds * (heads.div_ceil(shares) + BLOCK_COST)
    };
    (1..=heads.clamp(1, 64)).min_by_key(|&shares| cost(shares)).unwrap_or(1)
}

/// Dynamic shared memory of the sweep kernel: `SweepStorage` of `sweep.cuh`.
pub fn sweep_bytes(d_state: usize, output: bool, images: bool) -> u32 {
    let (key, value) = (64 * d_state * 2, 64 * 64 * 2);
    let stage = key * if output { 2 } else { 1 } + 2 * value + 2 * 1024;
    let copies = if output { 1 } else { 2 * usize::from(images) };
    let out = if output { 2 * value } else { 0 };
    (STAGES * stage + 2 * copies * key + out + 16 * STAGES) as u32
}

/// Dynamic shared memory of the gradient kernel: `GradientStorage` of `gradient.cuh`.
pub fn gradient_bytes(d_state: usize) -> u32 {
    let (key, value) = (64 * d_state * 2, 64 * 64 * 2);
    let stage = 2 * value + 2 * key + 1024;
    let numbers = 4 * 256 + 256 + 256 + 16 + 256 + 4 * 256;
    (STAGES * stage + 2 * key + value + 64 * 64 * 4 + numbers + 8 * (2 * STAGES + 1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(heads: usize) -> Shape {
        Shape { tokens: 65_536, heads, groups: 1, head_dim: 64, d_state: 128 }
    }

    #[test]
    fn runs_are_cut_when_they_leave_multiprocessors_idle() {
        assert_eq!(segments(walks(&shape(80), 64), 16, 132), 1);
        assert_eq!(segments(walks(&shape(80), 1), 1024, 132), 3);
        assert_eq!(segments(walks(&shape(2), 1), 64, 132), 32);
        assert_eq!(segments(1, 1, 132), 1);
    }

    #[test]
    fn heads_are_shared_when_chunks_are_few() {
        assert_eq!(shares(&shape(80), 1024, 132), 1);
        let few = shares(&shape(80), 16, 132);
        assert!((6..=10).contains(&few), "{few}");
        assert_eq!(shares(&shape(1), 1, 132), 1);
    }

    #[test]
    fn shared_memory_fits_a_block() {
        for d_state in [64, 128] {
            for (output, images) in [(true, false), (false, true), (false, false)] {
                assert!(sweep_bytes(d_state, output, images) <= 232_448);
            }
            assert!(gradient_bytes(d_state) <= 232_448);
        }
    }
}
