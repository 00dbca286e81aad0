//! Times attention on the CPU:
//! `attention_speed BATCH HEADS LENGTH HEAD_DIM causal|full f32|bf16 REPEATS`.
//!
//! Prints median milliseconds and GFLOP/s of forward and backward (causal halves the count).

use danaus_kernel::ops::attention::{AttentionOptions, attention};
use danaus_tensor::rng::Rng;
use danaus_tensor::{DType, Result, Tensor, backward_with};
use std::time::Instant;

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| {
        arguments.get(i).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let [batch, heads, length, dim] = [number(0, 2), number(1, 8), number(2, 4096), number(3, 64)];
    let causal = arguments.get(4).is_none_or(|text| text == "causal");
    let bf16 = arguments.get(5).is_some_and(|text| text == "bf16");
    let dtype = if bf16 { DType::BF16 } else { DType::F32 };
    let random = |seed: u64| -> Result<Tensor> {
        Rng::new(seed, 0).normal(0.0, 1.0, [batch, length, heads, dim])?.to_dtype(dtype)
    };
    let [q, k, v, grad] = [random(1)?, random(2)?, random(3)?, random(4)?];
    let [q, k, v] = [q.tracked(), k.tracked(), v.tracked()];
    let options = AttentionOptions { causal, ..AttentionOptions::default() };
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for _ in 0..=number(6, 5) {
        let start = Instant::now();
        let (out, _) = attention(&q, &k, &v, &options)?;
        forward.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        backward_with(&[(&out, &grad)])?;
        backward.push(start.elapsed().as_secs_f64());
    }
    let flops = 4.0 * (batch * heads * length * length * dim) as f64 / (1.0 + f64::from(causal));
    for (name, times, flops) in [("forward", forward, flops), ("backward", backward, 2.5 * flops)] {
        let seconds = median(times[1..].to_vec());
        println!("{name} {:.2} ms, {:.0} GFLOP/s", seconds * 1e3, flops / seconds / 1e9);
    }
    Ok(())
}
