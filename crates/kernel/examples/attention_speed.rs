//! Times the CPU attention kernels on slices:
//! `attention_speed BATCH HEADS LENGTH HEAD_DIM causal|full f32|bf16 REPEATS`.
//!
//! Prints the median milliseconds and GFLOP/s of the forward pass (the causal count is halved).

use danaus_kernel::ops::attention::forward::forward;
use danaus_kernel::ops::attention::pack::Element;
use danaus_kernel::ops::attention::problem::{Inputs, Operand, Outputs, Problem};
use danaus_runtime::threads::SharedMut;
use half::bf16;
use std::time::Instant;

fn values<T: Element>(n: usize, seed: u64) -> Vec<T> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| T::round((next() + next() + next()) * 2.0)).collect()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn measure<T: Element>(sizes: [usize; 4], causal: bool, repeats: usize) {
    let [batch, heads, length, dim] = sizes;
    let count = batch * length * heads * dim;
    let (q, k, v) = (values::<T>(count, 1), values::<T>(count, 2), values::<T>(count, 3));
    let mut out = vec![T::default(); count];
    let mut lse = vec![0f32; batch * heads * length];
    let mut problem = Problem::dense(batch, [length; 2], [heads; 2], [dim; 2]);
    problem.window.right = causal.then_some(0);
    let operand = |data| Operand::contiguous(data, length, heads, dim);
    let mut run = || {
        let start = Instant::now();
        let inputs = Inputs { q: operand(&q), k: operand(&k), v: operand(&v) };
        let outputs = Outputs {
            out: SharedMut::new(&mut out),
            out_batch_stride: length * heads * dim,
            lse: SharedMut::new(&mut lse),
        };
        // SAFETY: all buffers have the problem's shape.
        unsafe { forward(&problem, inputs, outputs) };
        start.elapsed().as_secs_f64()
    };
    run();
    let seconds = median((0..repeats).map(|_| run()).collect());
    let flops = 4.0 * (batch * heads * length * length * dim) as f64 / (1.0 + f64::from(causal));
    println!("forward {:.2} ms, {:.0} GFLOP/s", seconds * 1e3, flops / seconds / 1e9);
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| {
        arguments.get(i).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let sizes = [number(0, 2), number(1, 8), number(2, 4096), number(3, 64)];
    let causal = arguments.get(4).is_none_or(|text| text == "causal");
    let repeats = number(6, 5);
    match arguments.get(5).map(String::as_str) {
        Some("bf16") => measure::<bf16>(sizes, causal, repeats),
        _ => measure::<f32>(sizes, causal, repeats),
    }
}
