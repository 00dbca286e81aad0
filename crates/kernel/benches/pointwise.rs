//! Times of the pointwise operators on 16 M elements, into warm buffers: medians in milliseconds.
//!
//! Run with `cargo bench -p danaus-kernel --bench pointwise`; arguments select by substring.

use danaus_kernel::ops::activation::{self, Activation};
use danaus_kernel::ops::cross_entropy::{self, CrossEntropy};
use danaus_kernel::ops::dropout::{self, Dropout};
use danaus_kernel::ops::embedding;
use danaus_kernel::ops::norm::{self, Kind, Norm};
use danaus_kernel::ops::rotary;
use danaus_kernel::ops::softmax::{self, Form};
use half::bf16;
use std::time::Instant;

const N: usize = 1 << 24;
const COLS: usize = 512;

fn values(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| 3.0 * next()).collect()
}

fn time(name: &str, bytes: usize, mut work: impl FnMut()) {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
        return;
    }
    work();
    let mut samples: Vec<f64> = (0..9)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    let median = samples[samples.len() / 2];
    println!("{name:32} {:8.2} ms {:7.1} GB/s", median * 1e3, bytes as f64 / median / 1e9);
}

fn main() {
    let x = values(N);
    let dy: Vec<f32> = x.iter().rev().copied().collect();
    let mut y = vec![0f32; N];
    let narrow: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
    let mut narrow_y = vec![bf16::ZERO; N];
    let weight = vec![1f32; COLS];
    let (mut dweight, mut dbias) = (vec![0f32; COLS], vec![0f32; COLS]);
    for kind in [Activation::Gelu, Activation::Silu] {
        let name = kind.name();
        time(&format!("{name} f32"), 8 * N, || activation::cpu::forward(kind, &x, &mut y));
        time(&format!("{name} f32 backward"), 12 * N, || {
            activation::cpu::backward(kind, &x, &dy, &mut y);
        });
        time(&format!("{name} bf16"), 4 * N, || {
            activation::cpu::forward(kind, &narrow, &mut narrow_y);
        });
    }
    for (name, kind) in [("layer_norm", Kind::Layer), ("rms_norm", Kind::Rms)] {
        let norm = Norm { kind, eps: 1e-5, cols: COLS };
        let args = norm::cpu::Forward {
            norm,
            x: &x,
            residual: None,
            weight: Some(&weight),
            bias: Some(&weight),
        };
        time(&format!("{name} f32"), 8 * N, || norm::cpu::forward(&args, &mut y, None));
        let args = norm::cpu_backward::Backward {
            norm,
            h: &x,
            dy: &dy,
            dsum: None,
            weight: Some(&weight),
        };
        time(&format!("{name} f32 backward"), 12 * N, || {
            norm::cpu_backward::backward(&args, &mut y, (&mut dweight, &mut dbias));
        });
        let args = norm::cpu::Forward {
            norm,
            x: &narrow,
            residual: None,
            weight: Some(&weight),
            bias: Some(&weight),
        };
        time(&format!("{name} bf16"), 4 * N, || norm::cpu::forward(&args, &mut narrow_y, None));
    }
    time("softmax f32", 8 * N, || softmax::cpu::forward(Form::Softmax, COLS, &x, &mut y));
    time("log_softmax f32", 8 * N, || softmax::cpu::forward(Form::LogSoftmax, COLS, &x, &mut y));
    time("softmax f32 backward", 12 * N, || {
        softmax::cpu::backward(Form::Softmax, COLS, (&x, &dy), &mut y);
    });
    time("dropout f32", 8 * N, || {
        dropout::cpu::apply(&Dropout { p: 0.1, seed: 1, stream: 2 }, &x, &mut y);
    });
    losses(&x, &mut y);
    tokens(&x, &mut y);
}

/// Cross-entropy of 512 tokens over 32768 classes.
fn losses(x: &[f32], y: &mut [f32]) {
    let vocab = 1 << 15;
    let tokens = N / vocab;
    let args = CrossEntropy { vocab, ignore_index: -100, label_smoothing: 0.0, z_loss: 0.0 };
    let targets: Vec<i64> = (0..tokens as i64).collect();
    let (mut loss, mut lse) = (vec![0f32; tokens], vec![0f32; tokens]);
    time("cross_entropy f32", 4 * N, || {
        cross_entropy::cpu::forward(&args, (x, &targets), (&mut loss, &mut lse));
    });
    let backward = cross_entropy::cpu::Backward {
        args,
        targets: &targets,
        lse: &lse,
        dloss: &loss,
        dlse: None,
    };
    time("cross_entropy f32 backward", 8 * N, || {
        cross_entropy::cpu::backward(&backward, x, y);
    });
}

/// Rotary of 16384 tokens with 8 heads of 128, and rows of 512 for an embedding of 32768.
fn tokens(x: &[f32], y: &mut [f32]) {
    let (heads, head_dim) = (8, 128);
    let tokens = N / (heads * head_dim);
    let (cos, sin) = rotary::tables(tokens, head_dim, 10_000.0).expect("tables");
    let positions: Vec<u32> = (0..tokens as u32).collect();
    for interleaved in [false, true] {
        let layout = rotary::Layout { heads, head_dim, rotary_dim: head_dim, interleaved };
        let rotation = rotary::cpu::Rotation {
            layout,
            cos: cos.as_slice().expect("f32"),
            sin: sin.as_slice().expect("f32"),
            positions: &positions,
            inverse: false,
        };
        let name = if interleaved { "rotary f32 interleaved" } else { "rotary f32" };
        time(name, 8 * N, || rotary::cpu::rotate(&rotation, x, y));
    }
    let vocab = N / COLS;
    let ids: Vec<u32> =
        (0..vocab as u32).map(|i| i.wrapping_mul(2_654_435) % vocab as u32).collect();
    time("embedding f32", 8 * N, || embedding::cpu::forward(COLS, x, &ids, y));
    time("embedding f32 backward", 8 * N, || embedding::cpu::backward(COLS, &ids, x, None, y));
}
