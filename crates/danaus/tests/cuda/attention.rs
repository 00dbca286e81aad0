//! Attention: the Hopper kernels against the processor's. Lengths are chosen around the tiles (64, 80,
//! 128, 192), where ranges and masks change.
//!
//! The processor computes in f32 from the same bf16 inputs. The kernels round probabilities and score
//! gradients to bf16 before their products, and results once more: each is a relative error of 2^-9 at
//! most, about half of it on average, so that the norm of the difference stays below 2^-7 of the
//! result's.

use crate::{gpu, randn, values};
use danaus::kernel::ops::attention::{AttentionOptions, attention, attention_varlen};
use danaus::tensor::{DType, Device, Result, Tensor, backward_with};

const TOLERANCE: f64 = 1.0 / 128.0;

pub(crate) fn assert_near(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (mut off, mut size) = (0.0, 0.0);
    for (a, b) in values(found).into_iter().zip(values(expected)) {
        if b.is_infinite() {
            assert_eq!(a, b, "{what}");
            continue;
        }
        off += (a - b) * (a - b);
        size += b * b;
    }
    let (off, size): (f64, f64) = (off, size);
    // A NaN fails too.
    assert!(off.sqrt() <= TOLERANCE * size.sqrt(), "{what}: {} of {}", off.sqrt(), size.sqrt());
}

/// Results and gradients of `work` on bf16 inputs on the GPU against f32 ones on the processor.
fn check(what: &str, inputs: &[Tensor], work: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>) {
    let device = gpu().unwrap();
    let run = |device: &Device, dtype: DType| -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let leaf = |input: &Tensor| match input.dtype().is_float() {
            true => Ok(input.to_dtype(dtype)?.to_device(device)?.tracked()),
            false => input.to_device(device),
        };
        let leaves: Vec<Tensor> = inputs.iter().map(leaf).collect::<Result<_>>()?;
        let outputs = work(&leaves)?;
        let mut pairs = Vec::new();
        for (seed, output) in (100..).zip(&outputs).filter(|(_, output)| output.is_tracked()) {
            let grad = randn(seed, output.dims(), DType::BF16).to_dtype(output.dtype())?;
            pairs.push((output, grad.to_device(device)?));
        }
        let borrowed: Vec<(&Tensor, &Tensor)> = pairs.iter().map(|(a, b)| (*a, b)).collect();
        let mut grads = Vec::new();
        if !borrowed.is_empty() {
            let found = backward_with(&borrowed)?;
            grads.extend(leaves.iter().filter_map(|leaf| found.get(leaf).cloned()));
        }
        Ok((outputs, grads))
    };
    let (expected, expected_grads) = run(&Device::Cpu, DType::F32).unwrap();
    let (found, found_grads) = run(&device, DType::BF16).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(found_grads.len(), expected_grads.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_near(&format!("{what}, output {index}"), found, expected);
    }
    for (index, (found, expected)) in found_grads.iter().zip(&expected_grads).enumerate() {
        assert_near(&format!("{what}, gradient {index}"), found, expected);
    }
}

/// Whether the first GPU has the kernels.
fn served() -> bool {
    let Some(device) = gpu() else { return false };
    let chip = device.gpu().unwrap().arch().number();
    if chip != 90 {
        eprintln!("not run: attention needs sm_90a, this is {chip}");
    }
    chip == 90
}

fn windows() -> Vec<AttentionOptions> {
    let window = |window_left, window_right| AttentionOptions {
        window_left,
        window_right,
        ..AttentionOptions::default()
    };
    vec![
        AttentionOptions::default(),
        AttentionOptions::causal(),
        AttentionOptions { window_left: Some(100), ..AttentionOptions::causal() },
        window(Some(64), Some(30)),
        window(None, Some(3)),
        AttentionOptions { softcap: Some(5.0), ..AttentionOptions::causal() },
        AttentionOptions { softmax_scale: Some(0.3), ..AttentionOptions::default() },
    ]
}

fn both(t: &[Tensor], options: &AttentionOptions) -> Result<Vec<Tensor>> {
    let (out, lse) = attention(&t[0], &t[1], &t[2], options)?;
    Ok(vec![out, lse])
}

#[test]
fn dense_attention_of_every_window() {
    if !served() {
        return;
    }
    let lens = [(1, 77), (130, 391), (391, 130), (256, 256), (200, 192)];
    for head_dim in [64, 128, 256] {
        for (q_len, k_len) in lens {
            for options in windows() {
                let what = format!("d {head_dim}, {q_len} x {k_len}, {:?}", options.softcap);
                let mut inputs = vec![randn(1, &[2, q_len, 4, head_dim], DType::BF16)];
                for seed in [2, 3] {
                    inputs.push(randn(seed, &[2, k_len, 2, head_dim], DType::BF16));
                }
                check(&what, &inputs, |t| both(t, &options));
            }
        }
    }
}

#[test]
fn packed_sequences_with_empty_ones_and_slack() {
    if !served() {
        return;
    }
    let bounds = |list: [i32; 7]| Tensor::from_vec(list.to_vec(), [7], &Device::Cpu).unwrap();
    let (q_bounds, k_bounds) =
        (bounds([0, 128, 129, 129, 206, 270, 500]), bounds([0, 128, 129, 134, 434, 434, 511]));
    for head_dim in [64, 128] {
        for options in [AttentionOptions::default(), AttentionOptions::causal()] {
            let inputs = [
                randn(1, &[509, 4, head_dim], DType::BF16),
                randn(2, &[600, 2, head_dim], DType::BF16),
                randn(3, &[600, 2, head_dim], DType::BF16),
                q_bounds.clone(),
                k_bounds.clone(),
            ];
            check(&format!("packed, d {head_dim}"), &inputs, |t| {
                let (out, lse) = attention_varlen([&t[0], &t[1], &t[2]], &t[3], &t[4], &options)?;
                Ok(vec![out, lse])
            });
        }
    }
}

#[test]
fn strided_operands_are_read_in_place_or_copied() {
    if !served() {
        return;
    }
    // q, k and v as views of one tensor, and with heads before rows.
    let fused = [randn(1, &[2, 150, 3, 4, 64], DType::BF16)];
    check("fused", &fused, |t| {
        let part = |index| t[0].select(2, index);
        both(&[part(0)?, part(1)?, part(2)?], &AttentionOptions::causal())
    });
    let heads_first = [1, 2, 3].map(|seed| randn(seed, &[2, 4, 150, 64], DType::BF16));
    check("heads first", &heads_first, |t| {
        let rows: Vec<Tensor> = t.iter().map(|x| x.transpose(1, 2)).collect::<Result<_>>()?;
        both(&rows, &AttentionOptions::default())
    });
}

#[test]
fn gradients_have_the_same_bits_on_every_run() {
    if !served() {
        return;
    }
    let device = gpu().unwrap();
    let run = || -> Result<Vec<f32>> {
        let leaf = |seed: u64| -> Result<Tensor> {
            Ok(randn(seed, &[1, 1500, 4, 128], DType::BF16).to_device(&device)?.tracked())
        };
        let (q, k, v) = (leaf(1)?, leaf(2)?, leaf(3)?);
        let (out, _) = attention(&q, &k, &v, &AttentionOptions::causal())?;
        let grads = out.sum_all()?.backward()?;
        let dq = grads.get(&q).unwrap().to_dtype(DType::F32)?;
        dq.to_vec()
    };
    let first = run().unwrap();
    for _ in 0..5 {
        assert_eq!(run().unwrap(), first);
    }
}
