//! Times of the pointwise operators on 16 M elements, into warm buffers: medians in milliseconds.
//!
//! Run with `cargo bench -p danaus-kernel --bench pointwise`; arguments select by substring.

use danaus_kernel::ops::activation::{self, Activation};
use danaus_kernel::ops::norm::{self, Kind, Norm};
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
}
