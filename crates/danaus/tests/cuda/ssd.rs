//! State space duality, selective scan, convolution: the GPU's kernels against the processor's, on shapes around the chunks (32, 64)
//! and the warps' parts of the state.
//!
//! The recurrence and the generic backward pass differ from the processor by the order of f32 (f64) sums,
//! and are compared element by element. The matrix kernels round the decayed scores, scaled values, and
//! states to bf16 before products, and results once more: each is a relative error of 2^-9 at most, so that
//! the norm of the difference stays below 2^-6 of the result's; the gradients of dt, A and dt_bias add up
//! such products.

use crate::{FLOATS, check, gpu, randn, values};
use danaus::kernel::ops::conv1d::{ConvInputs, ConvOptions, causal_conv1d, causal_conv1d_update};
use danaus::kernel::ops::selective_scan::{ScanInputs, ScanOptions, selective_scan};
use danaus::kernel::ops::ssd::{
    SsdCoreInputs, SsdInputs, SsdOptions, SsdStepInputs, ssd, ssd_core, ssd_step,
};
use danaus::tensor::{DType, Device, Result, Tensor, backward_with};

const TOLERANCE: f64 = 1.0 / 64.0;

/// Sizes of a case.
#[derive(Clone, Copy)]
struct Case {
    batch: usize,
    len: usize,
    heads: usize,
    groups: usize,
    head_dim: usize,
    d_state: usize,
}

/// x, dt, A, B, C in the types that models use.
fn inputs(case: &Case, dtype: DType) -> Vec<Tensor> {
    let Case { batch, len, heads, groups, head_dim, d_state } = *case;
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let a = randn(3, &[heads], wide).exp().unwrap().affine(-1.0, 0.0).unwrap();
    let keys = [batch, len, groups, d_state];
    let scaled = |seed| randn(seed, &keys, dtype).affine(0.3, 0.0).unwrap();
    vec![
        randn(1, &[batch, len, heads, head_dim], dtype),
        randn(2, &[batch, len, heads], wide).affine(0.5, 0.0).unwrap(),
        a,
        scaled(4),
        scaled(5),
    ]
}

fn options() -> SsdOptions {
    SsdOptions { dt_softplus: true, dt_limit: Some((0.01, 1.5)), chunk_size: None }
}

fn outputs((y, last): (Tensor, Tensor)) -> Vec<Tensor> {
    vec![y, last]
}

/// D per channel, z, dt_bias and initial states (`states` of them) behind the others.
fn extras(case: &Case, dtype: DType, states: usize) -> Vec<Tensor> {
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let Case { batch, len, heads, head_dim, d_state, .. } = *case;
    vec![
        randn(6, &[heads, head_dim], wide),
        randn(7, &[batch, len, heads, head_dim], dtype),
        randn(8, &[heads], wide).affine(0.3, 0.0).unwrap(),
        randn(9, &[states, heads, head_dim, d_state], wide),
    ]
}

fn full<'a>(t: &'a [Tensor]) -> SsdInputs<'a> {
    SsdInputs {
        d: Some(&t[5]),
        z: Some(&t[6]),
        dt_bias: Some(&t[7]),
        initial_states: Some(&t[8]),
        ..SsdInputs::new(&t[0], &t[1], &t[2], &t[3], &t[4])
    }
}

#[test]
fn every_type_and_shape_by_the_recurrence_and_the_generic_gradient() {
    for dtype in [DType::F64, DType::F32] {
        for (heads, groups, head_dim, d_state) in
            [(4, 2, 8, 16), (2, 1, 5, 7), (3, 3, 64, 128), (2, 1, 17, 200)]
        {
            for len in [1, 31, 33, 70] {
                let case = Case { batch: 2, len, heads, groups, head_dim, d_state };
                let what = format!("ssd {dtype} {heads}/{groups} x {head_dim} x {d_state}, {len}");
                check(&what, &inputs(&case, dtype), |t| {
                    let inputs = SsdInputs::new(&t[0], &t[1], &t[2], &t[3], &t[4]);
                    ssd(&inputs, &options()).map(outputs)
                });
                let mut all = inputs(&case, dtype);
                all.extend(extras(&case, dtype, 2));
                check(&format!("{what}, all"), &all, |t| ssd(&full(t), &options()).map(outputs));
            }
        }
    }
}

#[test]
fn packed_sequences_with_resets_inside() {
    let bounds = Tensor::from_vec(vec![0i32, 3, 3, 40, 90], [5], &Device::Cpu).unwrap();
    let seq: Vec<i32> = (0..90).map(|t| (t > 20) as i32 + (t > 60) as i32).collect();
    let seq = Tensor::from_vec(seq, [1, 90], &Device::Cpu).unwrap();
    let case = Case { batch: 1, len: 90, heads: 4, groups: 2, head_dim: 8, d_state: 16 };
    for dtype in [DType::F64, DType::F32] {
        let mut all = inputs(&case, dtype);
        all.extend(extras(&case, dtype, 4));
        check(&format!("packed {dtype}"), &all, |t| {
            let inputs = SsdInputs { cu_seqlens: Some(&bounds), seq_idx: Some(&seq), ..full(t) };
            ssd(&inputs, &options()).map(outputs)
        });
    }
}

#[test]
fn the_core_takes_decays_and_scales() {
    let case = Case { batch: 2, len: 50, heads: 4, groups: 2, head_dim: 8, d_state: 16 };
    for dtype in [DType::F64, DType::F32] {
        let mut all = inputs(&case, dtype);
        all[2] = all[1].exp().unwrap().affine(-0.3, 0.0).unwrap();
        check(&format!("ssd_core {dtype}"), &all, |t| {
            let (x, scale, log_decay, b, c) = (&t[0], &t[1], &t[2], &t[3], &t[4]);
            let (initial_states, seq_idx, cu_seqlens) = (None, None, None);
            let inputs =
                SsdCoreInputs { x, log_decay, b, c, scale, initial_states, seq_idx, cu_seqlens };
            ssd_core(&inputs, None).map(outputs)
        });
    }
}

#[test]
fn steps_advance_states() {
    for dtype in FLOATS {
        for (d_state, seqlen) in [(128, None), (16, None), (64, Some(5)), (100, Some(2))] {
            let (heads, head_dim) = (4, 10);
            let case = Case { batch: 3, len: 1, heads, groups: 2, head_dim, d_state };
            let case = Case { len: seqlen.unwrap_or(1), ..case };
            let mut all = inputs(&case, dtype);
            all.extend(extras(&case, dtype, 3));
            if seqlen.is_none() {
                for index in [0, 1, 3, 4, 6] {
                    all[index] = all[index].squeeze(1).unwrap();
                }
            }
            check(&format!("ssd_step {dtype} {d_state} {seqlen:?}"), &all, |t| {
                let t: Vec<Tensor> = t.iter().map(Tensor::detach).collect();
                let (x, dt, a, b, c) = (&t[0], &t[1], &t[2], &t[3], &t[4]);
                let (d, z, dt_bias, state) = (Some(&t[5]), Some(&t[6]), Some(&t[7]), &t[8]);
                let inputs = SsdStepInputs { x, dt, a, b, c, d, z, dt_bias, state };
                ssd_step(&inputs, &options()).map(outputs)
            });
        }
    }
}

/// Norm of the difference over the norm of what is expected.
fn off(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let pairs = values(found).into_iter().zip(values(expected));
    let (off, size) =
        pairs.fold((0.0, 0.0), |(off, size), (a, b)| (off + (a - b) * (a - b), size + b * b));
    let ratio = (off / f64::max(size, 1e-30)).sqrt();
    if ratio.is_nan() { f64::INFINITY } else { ratio }
}

/// bf16 on the GPU against f32 on the processor from the same numbers, in norm.
fn check_matrix(what: &str, inputs: &[Tensor], work: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>) {
    let Some(device) = gpu() else { return };
    let run = |device: &Device, narrow: bool| -> Result<Vec<Tensor>> {
        let leaf = |input: &Tensor| {
            let input = if narrow { input.clone() } else { input.to_dtype(DType::F32)? };
            Ok(input.to_device(device)?.tracked())
        };
        let leaves: Vec<Tensor> = inputs.iter().map(leaf).collect::<Result<_>>()?;
        let mut results = work(&leaves)?;
        let mut pairs = Vec::new();
        for (seed, output) in (100..).zip(&results) {
            let grad = randn(seed, output.dims(), DType::BF16).to_dtype(output.dtype())?;
            pairs.push((output.clone(), grad.to_device(device)?));
        }
        let borrowed: Vec<(&Tensor, &Tensor)> = pairs.iter().map(|(a, b)| (a, b)).collect();
        let grads = backward_with(&borrowed)?;
        results.extend(leaves.iter().filter_map(|leaf| grads.get(leaf).cloned()));
        Ok(results)
    };
    let expected = run(&Device::Cpu, false).unwrap();
    let found = run(&device, true).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(found.len(), expected.len(), "{what}");
    let list: Vec<f64> = found.iter().zip(&expected).map(|(a, b)| off(a, b)).collect();
    eprintln!("{what}: {}", list.iter().map(|v| format!("{v:.1e}")).collect::<Vec<_>>().join(" "));
    assert!(list.iter().all(|&ratio| ratio <= TOLERANCE), "{what}: {list:?}");
}

#[test]
fn matrix_kernels_of_every_option() {
    for (heads, groups, d_state) in [(4, 1, 128), (6, 2, 64), (3, 3, 128), (5, 1, 64)] {
        for (batch, len) in [(2, 64), (1, 20), (2, 130), (1, 700)] {
            let case = Case { batch, len, heads, groups, head_dim: 64, d_state };
            let what = format!("ssd bf16 {heads}/{groups} n {d_state}, {batch} x {len}");
            check_matrix(&what, &inputs(&case, DType::BF16), |t| {
                let inputs = SsdInputs::new(&t[0], &t[1], &t[2], &t[3], &t[4]);
                ssd(&inputs, &options()).map(outputs)
            });
            let mut all = inputs(&case, DType::BF16);
            all.extend(extras(&case, DType::BF16, batch));
            check_matrix(&format!("{what}, all"), &all, |t| ssd(&full(t), &options()).map(outputs));
        }
    }
}

#[test]
fn matrix_kernels_on_packed_sequences() {
    let bounds = vec![0i32, 130, 130, 137, 420, 484];
    let bounds = Tensor::from_vec(bounds, [6], &Device::Cpu).unwrap();
    let seq: Vec<i32> = (0..484).map(|t| (t > 60) as i32 + (t > 300) as i32).collect();
    let seq = Tensor::from_vec(seq, [1, 484], &Device::Cpu).unwrap();
    for d_state in [64, 128] {
        let case = Case { batch: 1, len: 484, heads: 4, groups: 2, head_dim: 64, d_state };
        let mut all = inputs(&case, DType::BF16);
        all.extend(extras(&case, DType::BF16, 5));
        check_matrix(&format!("ssd bf16 packed n {d_state}"), &all, |t| {
            let inputs = SsdInputs { cu_seqlens: Some(&bounds), seq_idx: Some(&seq), ..full(t) };
            ssd(&inputs, &options()).map(outputs)
        });
    }
}

#[test]
fn strided_rows_are_read_in_place() {
    let (heads, d_state) = (4, 64);
    let case = Case { batch: 1, len: 200, heads, groups: 1, head_dim: 64, d_state };
    let mut all = inputs(&case, DType::BF16);
    let fused = randn(11, &[1, 200, heads * 64 + 2 * d_state], DType::BF16);
    all[0] = fused.affine(0.4, 0.0).unwrap();
    check_matrix("ssd bf16 strided", &all[..3], |t| {
        let part = |start, len| t[0].narrow(2, start, len);
        let x = part(0, heads * 64)?.reshape([1, 200, heads, 64])?;
        let keys = |index| part(heads * 64 + index * d_state, d_state)?.unsqueeze(2);
        ssd(&SsdInputs::new(&x, &t[1], &t[2], &keys(0)?, &keys(1)?), &options()).map(outputs)
    });
}

#[test]
fn results_and_gradients_have_the_same_bits_on_every_run() {
    let Some(device) = gpu() else { return };
    let case = Case { batch: 1, len: 1000, heads: 6, groups: 1, head_dim: 64, d_state: 128 };
    let run = || -> Result<Vec<f64>> {
        let leaf = |input: &Tensor| Ok(input.to_device(&device)?.tracked());
        let t: Vec<Tensor> = inputs(&case, DType::BF16).iter().map(leaf).collect::<Result<_>>()?;
        let (y, _) = ssd(&SsdInputs::new(&t[0], &t[1], &t[2], &t[3], &t[4]), &options())?;
        let grads = y.sum_all()?.backward()?;
        let mut bits = values(&y);
        for leaf in &t {
            bits.extend(values(grads.get(leaf).unwrap()));
        }
        Ok(bits)
    };
    let first = run().unwrap();
    for _ in 0..5 {
        assert!(run().unwrap() == first);
    }
}

/// More elements than 32 bits count, against the same stream cut into pieces whose states are handed over.
/// Takes 20 GB of the GPU's memory.
#[test]
#[ignore = "needs a GPU with 24 GB of free memory"]
fn more_elements_than_32_bits_count_equal_their_stream() {
    let Some(device) = gpu() else { return };
    let (heads, d_state, piece, pieces) = (80, 128, 16_384, 26);
    let case = Case { batch: 1, len: piece, heads, groups: 1, head_dim: 64, d_state };
    let t: Vec<Tensor> =
        inputs(&case, DType::BF16).iter().map(|t| t.to_device(&device).unwrap()).collect();
    danaus::tensor::no_grad(|| {
        let whole = |t: &Tensor| t.repeat(1, pieces).unwrap().contiguous().unwrap();
        let (x, dt, b, c) = (whole(&t[0]), whole(&t[1]), whole(&t[3]), whole(&t[4]));
        assert!(x.elem_count() > 1 << 31);
        let (y, last) = ssd(&SsdInputs::new(&x, &dt, &t[2], &b, &c), &options()).unwrap();
        let mut state: Option<Tensor> = None;
        for index in 0..pieces {
            let initial_states = state.as_ref();
            let inputs = SsdInputs::new(&t[0], &t[1], &t[2], &t[3], &t[4]);
            let (part, next) = ssd(&SsdInputs { initial_states, ..inputs }, &options()).unwrap();
            let found = y.narrow(1, index * piece, piece).unwrap().to_dtype(DType::F32).unwrap();
            let part = part.to_dtype(DType::F32).unwrap();
            let sum = |x: Tensor| x.mul(&x).unwrap().sum_all().unwrap().to_scalar().unwrap();
            let (off, size) = (sum(found.sub(&part).unwrap()), sum(part));
            // Two results in bf16, each rounded as the matrix kernels round.
            assert!(
                size > 0.0 && (off / size).sqrt() < 2.0 * TOLERANCE,
                "piece {index}: {off} of {size}"
            );
            state = Some(next);
        }
        assert!(off(&last, &state.unwrap()) < 2.0 * TOLERANCE);
    });
}

fn scan_inputs(dtype: DType, [batch, len, channels, groups, n]: [usize; 5]) -> Vec<Tensor> {
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let rows = [batch, len, channels];
    let small = |seed, shape: &[usize]| randn(seed, shape, dtype).affine(0.5, 0.0).unwrap();
    vec![
        randn(1, &rows, dtype),
        small(2, &rows),
        randn(3, &[channels, n], wide).exp().unwrap().affine(-1.0, 0.0).unwrap(),
        small(4, &[batch, len, groups, n]),
        small(5, &[batch, len, groups, n]),
        randn(6, &[channels], wide),
        randn(7, &rows, dtype),
        randn(8, &[channels], wide).affine(0.3, 0.0).unwrap(),
        randn(9, &[batch, channels, n], wide),
    ]
}

#[test]
fn selective_scan_of_every_form() {
    let options = ScanOptions { delta_softplus: true, channel_last: true };
    for dtype in FLOATS {
        for sizes in [[2, 37, 200, 1, 16], [1, 8, 6, 3, 4], [1, 19, 40, 2, 64], [2, 9, 5, 1, 100]] {
            let what = format!("scan {dtype} {sizes:?}");
            let all = scan_inputs(dtype, sizes);
            check(&what, &all[..5], |t| {
                let inputs = ScanInputs::new(&t[0], &t[1], &t[2], &t[3], &t[4]);
                selective_scan(&inputs, &options).map(outputs)
            });
            check(&format!("{what}, all"), &all, |t| {
                let inputs = ScanInputs {
                    d: Some(&t[5]),
                    z: Some(&t[6]),
                    delta_bias: Some(&t[7]),
                    initial_states: Some(&t[8]),
                    ..ScanInputs::new(&t[0], &t[1], &t[2], &t[3], &t[4])
                };
                selective_scan(&inputs, &options).map(outputs)
            });
        }
        let [channels, n] = [40, 16];
        let mut all = scan_inputs(dtype, [1, 60, channels, 2, n]);
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        all[3] = randn(10, &[channels, n], wide);
        let seq: Vec<i32> = (0..60).map(|t| (t > 20) as i32 + (t > 41) as i32).collect();
        let seq = Tensor::from_vec(seq, [1, 60], &Device::Cpu).unwrap();
        check(&format!("scan {dtype}, constant B, packed"), &all, |t| {
            let initial_states = Some(&t[8]);
            let inputs = ScanInputs::new(&t[0], &t[1], &t[2], &t[3], &t[4]);
            let inputs = ScanInputs { initial_states, seq_idx: Some(&seq), ..inputs };
            selective_scan(&inputs, &options).map(outputs)
        });
    }
}

#[test]
fn convolution_in_pieces_and_its_decoding_step() {
    for dtype in FLOATS {
        for (batch, len, channels, width) in [(2, 70, 64, 4), (1, 9, 256, 3), (3, 16, 24, 2)] {
            let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
            let seq: Vec<i32> = (0..batch * len).map(|t| (t % len > 5) as i32).collect();
            let seq = Tensor::from_vec(seq, [batch, len], &Device::Cpu).unwrap();
            let all = [
                randn(1, &[batch, len, channels], dtype),
                randn(2, &[channels, width], wide),
                randn(3, &[channels], wide),
                randn(4, &[batch, channels, width - 1], wide),
            ];
            for packed in [false, true] {
                check(&format!("conv {dtype} {batch} x {len} x {channels}"), &all, |t| {
                    let inputs = ConvInputs {
                        x: &t[0],
                        weight: &t[1],
                        bias: Some(&t[2]),
                        initial_states: Some(&t[3]),
                        seq_idx: packed.then_some(&seq),
                        cu_seqlens: None,
                    };
                    causal_conv1d(&inputs, &ConvOptions { silu: true, channel_last: true })
                        .map(outputs)
                });
            }
            let x = randn(5, &[batch, channels, 3], dtype);
            let state = randn(6, &[batch, channels, 5], wide);
            let at: Vec<i64> = (0..batch as i64).map(|row| 3 + 4 * row).collect();
            let at = Tensor::from_vec(at, [batch], &Device::Cpu).unwrap();
            let step = [x, state, all[1].clone(), all[2].clone(), at];
            for ring in [false, true] {
                check(&format!("conv update {dtype}, ring {ring}"), &step, |t| {
                    let t: Vec<Tensor> = t.iter().map(Tensor::detach).collect();
                    let at = ring.then_some(&t[4]);
                    causal_conv1d_update(&t[0], &t[1], &t[2], Some(&t[3]), at, true).map(outputs)
                });
            }
        }
    }
}
