//! The tiled forward pass against the reference over random shapes and options.

use super::support::*;
use crate::ops::attention::dropout::Dropout;
use crate::ops::attention::mask::BlockMask;
use crate::ops::attention::pack::Element;
use crate::ops::attention::problem::{Problem, Slopes};
use crate::ops::attention::tile_range::Window;
use danaus_runtime::simd::{Isa, with_isa};
use half::bf16;

/// A random problem; `mask` is storage for its block mask.
pub fn random_problem<'a>(random: &mut Random, mask: &'a mut Vec<u8>) -> (Problem<'a>, Rows) {
    let lens = [1, 2, 3, 17, 63, 64, 65, 127, 129, 200];
    let (q_len, k_len) = (random.pick(&lens), random.pick(&lens));
    let (kv_heads, group) = (random.pick(&[1, 2]), random.pick(&[1, 1, 2, 7]));
    let head_dim = random.pick(&[1, 7, 8, 16, 40, 64, 80]);
    let value_dim = random.pick(&[head_dim, head_dim, 5, 33]);
    let batch = random.pick(&[1, 2]);
    let heads = kv_heads * group;
    let dims = [head_dim, value_dim];
    let mut problem = Problem::dense(batch, [q_len, k_len], [heads, kv_heads], dims);
    let bounds = [None, None, Some(0), Some(5), Some(70)];
    problem.window = Window { left: random.pick(&bounds), right: random.pick(&bounds) };
    if random.below(4) == 0 {
        problem.softcap = Some(2.0);
    }
    if random.below(4) == 0 {
        let values = (0..batch * heads).map(|_| random.uniform()).collect();
        problem.alibi = Some(Slopes { values, per_batch: true });
    }
    if random.below(4) == 0 {
        problem.sinks = Some(random.vector(heads));
    }
    if random.below(4) == 0 {
        problem.dropout = Some(Dropout::seeded(0.25, 99, 1));
    }
    if random.below(4) == 0 {
        let block_size = random.pick(&[16, 24, 64]);
        let (rows, columns) = (q_len.div_ceil(block_size), k_len.div_ceil(block_size));
        *mask = (0..heads * rows * columns).map(|_| random.below(2) as u8).collect();
        let head_stride = rows * columns;
        problem.block_mask =
            Some(BlockMask { mask, batch_stride: 0, head_stride, columns, block_size });
    }
    (problem, Rows { batch, q: q_len, k: k_len })
}

fn check<T: Element>(seed: u64, tolerance: f64) {
    let random = &mut Random(seed);
    let mut mask = Vec::new();
    let (problem, rows) = random_problem(random, &mut mask);
    let data = data::<T>(random, &problem, rows);
    let (expected, expected_lse) = run_reference(&problem, &data);
    let (out, lse) = run_kernel::<T>(&problem, &data);
    let worst = distance(&out, &expected);
    let worst_lse = distance(&lse, &expected_lse);
    assert!(worst < tolerance, "seed {seed}: out differs by {worst}");
    assert!(worst_lse < 2e-5, "seed {seed}: lse differs by {worst_lse}");
}

/// f32 on N(0, 1) inputs: rounding of about 1e-7 per operation, amplified by sums of up to 200 terms.
#[test]
fn f32_matches_the_f64_reference() {
    (0..300).for_each(|seed| check::<f32>(seed, 2e-5));
}

#[test]
fn every_instruction_set_matches_the_reference() {
    for isa in Isa::ALL {
        with_isa(isa, || (1000..1040).for_each(|seed| check::<f32>(seed, 2e-5)));
    }
}

/// bf16 keeps 8 bits: the output's rounding alone is 2^-6 at values of 4 to 8, which dropout reaches.
#[test]
fn bf16_matches_the_f64_reference() {
    (2000..2300).for_each(|seed| check::<bf16>(seed, 3e-2));
    with_isa(Isa::Avx2, || (2000..2020).for_each(|seed| check::<bf16>(seed, 3e-2)));
}
