//! SSD forward: one sequence of 2048 tokens, 24 heads of 64, state 128, one group.

use super::{Case, Work, randn};
use crate::Result;
use danaus_kernel::ops::ssd::{SsdCoreInputs, ssd_core};
use danaus_tensor::{DType, no_grad};

const LENGTH: usize = 2048;
const HEADS: usize = 24;
const HEAD_DIM: usize = 64;
const D_STATE: usize = 128;
/// Tokens of a chunk in the count of operations.
const CHUNK: usize = 64;
/// Per token and head: the lower triangle against values and scores, and the state twice.
const FLOPS: f64 =
    (LENGTH * (CHUNK * D_STATE + HEADS * (CHUNK * HEAD_DIM + 4 * HEAD_DIM * D_STATE))) as f64;
const BYTES: f64 = (4 * LENGTH * (2 * HEADS * HEAD_DIM + 2 * D_STATE + 2 * HEADS)) as f64;

fn forward(dtype: DType) -> Result<Work> {
    let x = randn(1, &[1, LENGTH, HEADS, HEAD_DIM], dtype)?;
    let (b, c) =
        (randn(2, &[1, LENGTH, 1, D_STATE], dtype)?, randn(3, &[1, LENGTH, 1, D_STATE], dtype)?);
    let rates = danaus_tensor::rng::Rng::new(4, 0).uniform(-1.0, 0.0, [1, LENGTH, HEADS])?;
    let log_decay = rates.to_dtype(DType::F32)?;
    let scale = log_decay.affine(-1.0, 0.0)?;
    Ok(Box::new(move || {
        let (initial_states, seq_idx, cu_seqlens) = (None, None, None);
        let (x, log_decay, b, c, scale) = (&x, &log_decay, &b, &c, &scale);
        let inputs =
            SsdCoreInputs { x, log_decay, b, c, scale, initial_states, seq_idx, cu_seqlens };
        no_grad(|| Ok(ssd_core(&inputs, None).map(drop)?))
    }))
}

pub(super) fn cases() -> Vec<Case> {
    vec![Case {
        name: "ssd_forward",
        what: "L 2048, 24 heads x 64, n 128, g 1, f32",
        flops: FLOPS,
        bytes: BYTES,
        make: || forward(DType::F32),
    }]
}
