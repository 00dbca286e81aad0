//! A training step: forward, loss, backward, clipping norm and AdamW of a Llama with 350 million
//! parameters on sequences of 4096 tokens, bf16 with f32 masters. Operations are those of the model
//! (forward and twice as many backward), causal scores counted as half.

use super::{Bench, Row};
use crate::Result;
use danaus_matrix::SeqBatch;
use danaus_matrix::mixer::AttentionConfig;
use danaus_model::config::{Config, MlpConfig};
use danaus_model::decoder::{Compute, Decoder};
use danaus_tensor::DType;
use danaus_train::optim::{GradientSet, Optimizer, OptimizerConfig, global_norm};
use std::time::Instant;

const LENGTH: usize = 4096;
const BATCH: usize = 4;
const VOCABULARY: usize = 32_000;
/// Steps, of which the first ones warm up and the median of the others counts.
const STEPS: usize = 13;
const WARM: usize = 3;

fn shape() -> Config {
    Config {
        max_positions: LENGTH,
        attention: Some(AttentionConfig {
            n_heads: 16,
            rope_theta: Some(10_000.0),
            ..AttentionConfig::default()
        }),
        mlp: MlpConfig::Gated { d_ff: 2816, activation: "silu".into(), bias: false },
        ..Config::bare(VOCABULARY, 1024, "A".repeat(24))
    }
}

impl Bench {
    pub(super) fn train(&self, report: &mut impl FnMut(&Row)) -> Result<()> {
        let compute = Compute { device: self.device, ..Compute::new(DType::BF16) };
        let decoder = Decoder::init(&shape(), 1, compute)?;
        let mut optimizer = Optimizer::new(OptimizerConfig::default(), decoder.params())?;
        let batch = SeqBatch::equal(BATCH, LENGTH)?;
        let tokens = BATCH * LENGTH;
        let ids: Vec<u32> = (0..tokens as u32).map(|at| at * 7919 % VOCABULARY as u32).collect();
        let targets: Vec<i64> = ids.iter().skip(1).map(|&id| id.into()).chain([-100]).collect();
        let mut times = Vec::new();
        for _ in 0..STEPS {
            let begun = Instant::now();
            // The tape goes with the loss: while it held the parameters, they could not change in place.
            let gradients = decoder.loss(&ids, &targets, &batch)?.backward()?;
            let gradients = GradientSet::new(decoder.params(), gradients)?;
            let norm = global_norm(&gradients)?;
            optimizer.step(&gradients, 1.0 / norm.max(1.0), 1.0)?;
            self.device.synchronize()?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        let mut times = times.split_off(WARM);
        times.sort_by(f64::total_cmp);
        let parameters = decoder.params().elem_count() as f64 / 1e6;
        report(&Row {
            what: format!(
                "training step, Llama {parameters:.0} M, {BATCH} x {LENGTH} tokens, bf16"
            ),
            median_ms: times[times.len() / 2],
            flops: 3.0 * decoder.flops(&batch) as f64,
            bytes: 0.0,
            of_ceiling: None,
        });
        Ok(())
    }
}
