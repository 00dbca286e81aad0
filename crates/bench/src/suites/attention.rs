//! Attention forward: batch 2, 8 heads, 4096 tokens, head dimension 64, causal.

use super::{Case, Work, randn};
use crate::Result;
use danaus_kernel::ops::attention::{AttentionOptions, attention};
use danaus_tensor::{DType, no_grad};

const BATCH: usize = 2;
const HEADS: usize = 8;
const LENGTH: usize = 4096;
const HEAD_DIM: usize = 64;
/// Two products over the lower triangle.
const FLOPS: f64 = 2.0 * (2 * BATCH * HEADS * HEAD_DIM) as f64 * (LENGTH * (LENGTH + 1) / 2) as f64;
const ELEMENTS: usize = BATCH * HEADS * LENGTH * HEAD_DIM;

fn forward(dtype: DType) -> Result<Work> {
    let shape = [BATCH, LENGTH, HEADS, HEAD_DIM];
    let [q, k, v] = [randn(1, &shape, dtype)?, randn(2, &shape, dtype)?, randn(3, &shape, dtype)?];
    let options = AttentionOptions::causal();
    Ok(Box::new(move || no_grad(|| Ok(attention(&q, &k, &v, &options).map(drop)?))))
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "attention_f32",
            what: "B 2, H 8, L 4096, d 64, causal, f32",
            flops: FLOPS,
            bytes: (4 * 4 * ELEMENTS) as f64,
            make: || forward(DType::F32),
        },
        Case {
            name: "attention_bf16",
            what: "the same in bf16 (the roofline is that of f32)",
            flops: FLOPS,
            bytes: (4 * 2 * ELEMENTS) as f64,
            make: || forward(DType::BF16),
        },
    ]
}
