//! Training steps of the benchmark's small models: 4 layers, width 256, batch 8 x 256 tokens.

use super::{Case, Work};
use crate::Result;
use danaus_matrix::SeqBatch;
use danaus_model::decoder::Compute;
use danaus_model::{Config, Decoder, presets};
use danaus_train::optim::{GradientSet, Optimizer, OptimizerConfig};

const BATCH: usize = 8;
const LENGTH: usize = 256;
const TOKENS: usize = BATCH * LENGTH;
/// Forward and twice as much backward, per token: projections and MLP of four layers, and the head.
const TRANSFORMER_FLOPS: f64 =
    6.0 * TOKENS as f64 * (4 * (256 * (768 + 256 + 2048)) + 256 * 512 + 4 * 256 * LENGTH) as f64;
const MAMBA2_FLOPS: f64 = 6.0
    * TOKENS as f64
    * (4 * (256 * (1160 + 512 + 2048) + 512 * (32 + 2 * 64) + 32 * 64) + 256 * 512) as f64;

fn step(config: &Config, update: bool) -> Result<Work> {
    let decoder = Decoder::init(config, 0, Compute::default())?;
    let batch = SeqBatch::equal(BATCH, LENGTH)?;
    let rng = danaus_tensor::rng::Rng::new(1, 0);
    let ids: Vec<u32> = (0..TOKENS as u64).map(|i| rng.words(i)[0] % 512).collect();
    let targets: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let mut optimizer = Optimizer::new(OptimizerConfig::default(), decoder.params())?;
    Ok(Box::new(move || {
        let gradients = decoder.loss(&ids, &targets, &batch)?.backward()?;
        if update {
            let gradients = GradientSet::new(decoder.params(), gradients)?;
            optimizer.step(&gradients, 1.0, 1.0)?;
        }
        Ok(())
    }))
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "transformer_step",
            what: "4 layers, d 256, 4 heads, B 8, L 256: forward, backward, AdamW, f32",
            flops: TRANSFORMER_FLOPS,
            bytes: 0.0,
            make: || step(&presets::transformer(), true),
        },
        Case {
            name: "mamba2_step",
            what: "the same with Mamba-2 mixers, n 64: forward, backward, f32",
            flops: MAMBA2_FLOPS,
            bytes: 0.0,
            make: || step(&presets::mamba2(), false),
        },
    ]
}
