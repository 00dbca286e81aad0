//! The operators of the kernel room.

use crate::{FLOATS, check, randn};
use danaus::kernel::ops::activation::{self, Activation};
use danaus::kernel::ops::conv1d::{ConvInputs, ConvOptions, causal_conv1d};
use danaus::kernel::ops::cross_entropy::{Options, Reduction, cross_entropy};
use danaus::kernel::ops::dropout::{Dropout, dropout};
use danaus::kernel::ops::embedding::embedding;
use danaus::kernel::ops::linear::{Extras, linear};
use danaus::kernel::ops::norm::{Affine, Kind, add_norm, norm};
use danaus::kernel::ops::rms_norm_gated::{RmsNormGatedOptions, rms_norm_gated};
use danaus::kernel::ops::rotary::{Positions, rotary, tables};
use danaus::kernel::ops::softmax::{log_softmax, softmax};
use danaus::tensor::{DType, Device, Tensor};

#[test]
fn softmax_of_every_row_length() {
    for dtype in FLOATS {
        for cols in [1, 5, 32, 100, 513, 4096, 5000, 20_000] {
            let x = [randn(1, &[9, cols], dtype).affine(3.0, 0.0).unwrap()];
            check(&format!("softmax {cols}"), &x, |t| Ok(vec![softmax(&t[0])?]));
            check(&format!("log_softmax {cols}"), &x, |t| Ok(vec![log_softmax(&t[0])?]));
        }
    }
}

#[test]
fn softmax_of_masked_and_empty_rows() {
    let low = f32::NEG_INFINITY;
    let rows = vec![1.0, low, 2.0, low, low, low, 1.0, f32::NAN, 0.0];
    let x = [Tensor::from_vec(rows, [3, 3], &Device::Cpu).unwrap()];
    check("masked softmax", &x, |t| Ok(vec![softmax(&t[0].detach())?]));
}

#[test]
fn norms_with_and_without_their_parts() {
    for dtype in FLOATS {
        for (rows, cols) in [(1, 1), (7, 5), (33, 64), (700, 300), (9, 1000), (5, 8192)] {
            let inputs = [
                randn(1, &[rows, cols], dtype).affine(1.0, 3.0).unwrap(),
                randn(2, &[cols], dtype),
                randn(3, &[cols], dtype),
                randn(4, &[rows, cols], dtype),
            ];
            for kind in [Kind::Layer, Kind::Rms] {
                let what = format!("{kind:?} {dtype} {rows} {cols}");
                // A layer norm of one column is 0 / sqrt(eps): its gradients are rounding only.
                if kind == Kind::Layer && cols == 1 {
                    continue;
                }
                check(&format!("plain {what}"), &inputs[..1], |t| {
                    Ok(vec![norm(kind, &t[0], Affine::default(), 1e-5)?])
                });
                check(&format!("whole {what}"), &inputs, |t| {
                    let affine = Affine { weight: Some(&t[1]), bias: Some(&t[2]) };
                    let (y, sum) = add_norm(kind, (&t[0], &t[3]), affine, 1e-5)?;
                    Ok(vec![y, sum])
                });
            }
        }
    }
}

#[test]
fn embeddings_with_repeats_and_padding() {
    let ids: Vec<i64> = (0..96).map(|i| [3, 0, 11, 3, i % 13][i as usize % 5]).collect();
    let ids = Tensor::from_vec(ids, [8, 12], &Device::Cpu).unwrap();
    for dtype in FLOATS {
        let inputs = [randn(1, &[13, 40], dtype), ids.clone()];
        for padding in [None, Some(3)] {
            check("embedding", &inputs, |t| Ok(vec![embedding(&t[0], &t[1], padding)?]));
        }
    }
}

#[test]
fn activations_and_gated_units() {
    for dtype in FLOATS {
        let inputs = [randn(1, &[19, 48], dtype), randn(2, &[19, 48], dtype)];
        for kind in Activation::ALL {
            check(kind.name(), &inputs[..1], |t| Ok(vec![activation::activation(kind, &t[0])?]));
            check("gated", &inputs, |t| Ok(vec![activation::gated(kind, &t[0], &t[1])?]));
            check("packed", &inputs[..1], |t| Ok(vec![activation::gated_packed(kind, &t[0])?]));
        }
    }
}

#[test]
fn linear_layers_with_and_without_their_parts() {
    for dtype in FLOATS {
        let inputs = [
            randn(1, &[3, 7, 24], dtype),
            randn(2, &[40, 24], dtype),
            randn(3, &[40], dtype),
            randn(4, &[3, 7, 40], dtype),
        ];
        check("product", &inputs[..2], |t| Ok(vec![linear(&t[0], &t[1], Extras::default())?]));
        let kinds = [None, Some(Activation::Gelu), Some(Activation::Silu), Some(Activation::Relu)];
        for activation in kinds {
            check(&format!("{dtype} {activation:?}"), &inputs, |t| {
                let (bias, residual) = (Some(&t[2]), Some(&t[3]));
                Ok(vec![linear(&t[0], &t[1], Extras { bias, activation, residual })?])
            });
        }
    }
}

/// Few rows have a kernel of their own: all numbers of them and one more, features that fill warps and not.
#[test]
fn linear_layers_of_a_few_rows() {
    for dtype in [DType::F32, DType::BF16] {
        for features in [8, 72, 1032, 2560] {
            for rows in 1..=5 {
                let inputs = [
                    randn(1, &[rows, features], dtype),
                    randn(2, &[46, features], dtype).affine(0.05, 0.0).unwrap(),
                    randn(3, &[46], dtype),
                    randn(4, &[rows, 46], dtype),
                ];
                for activation in [None, Some(Activation::Silu)] {
                    for with in [false, true] {
                        let what = format!("{dtype}, {rows} x {features}, {activation:?}, {with}");
                        check(&what, &inputs, |t| {
                            let extra = |at: usize| with.then(|| &t[at]);
                            let (bias, residual) = (extra(2), extra(3));
                            Ok(vec![linear(&t[0], &t[1], Extras { bias, activation, residual })?])
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn rotations_by_every_kind_of_position() {
    let (cos, sin) = tables(64, 16, 10_000.0).unwrap();
    let at: Vec<i64> = (0..2 * 9).map(|i| (i * 5) % 64).collect();
    let at = Tensor::from_vec(at, [2, 9], &Device::Cpu).unwrap();
    let ends = Tensor::from_vec(vec![0i64, 4, 4, 11], [4], &Device::Cpu).unwrap();
    for dtype in FLOATS {
        for interleaved in [false, true] {
            let x = randn(1, &[2, 9, 3, 20], dtype);
            let packed = randn(2, &[11, 3, 20], dtype);
            let (cos, sin) = (cos.clone(), sin.clone());
            check("offset", std::slice::from_ref(&x), |t| {
                let on = t[0].device();
                let (cos, sin) = (cos.to_device(&on)?, sin.to_device(&on)?);
                Ok(vec![rotary(&t[0], (&cos, &sin), Positions::From(7), interleaved)?])
            });
            check("positions", &[x, at.clone()], |t| {
                let on = t[0].device();
                let (cos, sin) = (cos.to_device(&on)?, sin.to_device(&on)?);
                Ok(vec![rotary(&t[0], (&cos, &sin), Positions::At(&t[1]), interleaved)?])
            });
            check("packed", &[packed, ends.clone()], |t| {
                let on = t[0].device();
                let (cos, sin) = (cos.to_device(&on)?, sin.to_device(&on)?);
                Ok(vec![rotary(&t[0], (&cos, &sin), Positions::Packed(&t[1]), interleaved)?])
            });
        }
    }
}

#[test]
fn losses_with_every_option() {
    let targets: Vec<i64> =
        (0..30).map(|i| if i % 7 == 3 { -100 } else { i * 37 % 1000 }).collect();
    let targets = Tensor::from_vec(targets, [5, 6], &Device::Cpu).unwrap();
    for dtype in FLOATS {
        let inputs = [randn(1, &[5, 6, 1000], dtype), targets.clone()];
        for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
            let plain = Options { reduction, ..Options::default() };
            let all = Options { label_smoothing: 0.1, z_loss: 1e-3, ..plain };
            for options in [plain, all] {
                check(&format!("{dtype} {options:?}"), &inputs, |t| {
                    let (loss, lse) = cross_entropy(&t[0], &t[1], options)?;
                    Ok(vec![loss, lse])
                });
            }
        }
    }
}

#[test]
fn dropout_has_the_processors_mask() {
    for dtype in FLOATS {
        let x = [randn(1, &[1003], dtype)];
        let options = Dropout { p: 0.3, seed: 11, stream: 5 };
        check("dropout", &x, |t| Ok(vec![dropout(&t[0], options)?]));
    }
    let x = [randn(1, &[64], DType::F32)];
    check("all dropped", &x, |t| Ok(vec![dropout(&t[0], Dropout { p: 1.0, seed: 1, stream: 0 })?]));
}

#[test]
fn gated_norms_in_groups() {
    for dtype in FLOATS {
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        for (rows, d, group_size) in [(5, 48, None), (70, 512, Some(128)), (9, 4096, None)] {
            let inputs =
                [randn(1, &[rows, d], dtype), randn(2, &[d], wide), randn(3, &[rows, d], dtype)];
            for norm_before_gate in [false, true] {
                let options = RmsNormGatedOptions { eps: 1e-5, group_size, norm_before_gate };
                check(&format!("{dtype} {rows} {d} {norm_before_gate}"), &inputs, |t| {
                    Ok(vec![rms_norm_gated(&t[0], Some(&t[2]), &t[1], &options)?])
                });
                check("without a gate", &inputs[..2], |t| {
                    Ok(vec![rms_norm_gated(&t[0], None, &t[1], &options)?])
                });
            }
        }
    }
}

#[test]
fn convolutions_of_batches_and_packed_sequences() {
    let ends = Tensor::from_vec(vec![0i64, 3, 3, 14, 40], [5], &Device::Cpu).unwrap();
    let marks: Vec<i64> = (0..2 * 20).map(|i| [0, 0, 1, 1, 1, 1, 1, 2, 3, 3][i / 2 % 10]).collect();
    let marks = Tensor::from_vec(marks, [2, 20], &Device::Cpu).unwrap();
    for dtype in FLOATS {
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        for width in [1, 2, 4] {
            let (weight, bias) = (randn(2, &[37, width], wide), randn(3, &[37], wide));
            let batch = randn(1, &[2, 20, 37], dtype);
            let states = randn(4, &[2, 37, width - 1], wide);
            let options = ConvOptions { silu: true, channel_last: true };
            let what = format!("{dtype} {width}");
            let all = [batch.clone(), weight.clone(), bias.clone(), states];
            check(&format!("batch {what}"), &all, |t| {
                let inputs = ConvInputs {
                    x: &t[0],
                    weight: &t[1],
                    bias: Some(&t[2]),
                    initial_states: Some(&t[3]),
                    seq_idx: None,
                    cu_seqlens: None,
                };
                let (y, last) = causal_conv1d(&inputs, &options)?;
                Ok(vec![y, last])
            });
            let none = ConvInputs {
                x: &batch,
                weight: &weight,
                bias: None,
                initial_states: None,
                seq_idx: None,
                cu_seqlens: None,
            };
            check(
                &format!("marked {what}"),
                &[batch.clone(), weight.clone(), marks.clone()],
                |t| {
                    let inputs =
                        ConvInputs { x: &t[0], weight: &t[1], seq_idx: Some(&t[2]), ..none };
                    let (y, last) =
                        causal_conv1d(&inputs, &ConvOptions { silu: false, ..options })?;
                    Ok(vec![y, last])
                },
            );
            let packed = randn(5, &[1, 40, 37], dtype);
            let states = randn(6, &[4, 37, width - 1], wide);
            let all = [packed, weight.clone(), bias.clone(), states, ends.clone()];
            check(&format!("packed {what}"), &all, |t| {
                let inputs = ConvInputs {
                    x: &t[0],
                    weight: &t[1],
                    bias: Some(&t[2]),
                    initial_states: Some(&t[3]),
                    cu_seqlens: Some(&t[4]),
                    seq_idx: None,
                };
                let (y, last) = causal_conv1d(&inputs, &options)?;
                Ok(vec![y, last])
            });
        }
    }
}
