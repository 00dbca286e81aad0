//! Refusals name the argument, what was given and what is valid.

use super::super::{ScanInputs, ScanStepInputs, selective_scan, selective_state_update};
use super::support::{LAST, Problem, Setup};
use danaus_tensor::{DType, Device, Tensor};

fn message(inputs: ScanInputs) -> String {
    selective_scan(&inputs, &LAST).expect_err("must be refused").to_string()
}

#[test]
fn wrong_shapes_are_named() {
    let problem = Problem::new(&Setup::new(6, 2, 4, &[5, 3]));
    let good = problem.scan();
    let short = good.delta.narrow(1, 0, 7).unwrap();
    let expected = "selective_scan: delta has shape [1, 7, 6], expected the shape of u = [1, 8, 6]";
    assert_eq!(message(ScanInputs { delta: &short, ..good }), expected);
    let flat = good.u.squeeze(0).unwrap();
    assert!(message(ScanInputs { u: &flat, ..good }).contains("[batch, seqlen, channels]"));
    let rates = good.a.narrow(0, 0, 5).unwrap();
    let found = message(ScanInputs { a: &rates, ..good });
    assert!(found.contains("A has shape [5, 4], expected [channels, d_state] = [6, 4]"), "{found}");
    let cut = good.b.narrow(3, 0, 3).unwrap();
    let found = message(ScanInputs { b: &cut, ..good });
    assert!(found.contains("[batch, seqlen, groups, d_state] = [1, 8, 2, 4]"), "{found}");
    let four = Tensor::cat(&[good.b, good.b], 2).unwrap();
    assert!(message(ScanInputs { b: &four, ..good }).contains("divide the 6 channels"));
    let one = good.c.narrow(2, 0, 1).unwrap();
    let three = Tensor::cat(&[good.c, &one], 2).unwrap();
    assert!(message(ScanInputs { c: &three, ..good }).contains("alike in B and C"));
    let skip = good.d.unwrap().narrow(0, 0, 2).unwrap();
    assert!(message(ScanInputs { d: Some(&skip), ..good }).contains("D has shape [2]"));
    let one_state = good.initial_states.unwrap().narrow(0, 0, 1).unwrap();
    let found = message(ScanInputs { initial_states: Some(&one_state), ..good });
    assert!(found.contains("initial_states has shape [1, 6, 4]"), "{found}");
}

#[test]
fn wrong_values_are_named() {
    let problem = Problem::new(&Setup::new(6, 2, 4, &[5, 3]));
    let good = problem.scan();
    let positive = good.a.neg().unwrap();
    assert!(
        message(ScanInputs { a: &positive, ..good }).starts_with("selective_scan: A is positive")
    );
    let bounds = |values: &[i32]| Tensor::from_slice(values, [values.len()], &Device::Cpu).unwrap();
    for bad in [&[1, 5, 8][..], &[0, 5, 7], &[0, 6, 5, 8]] {
        let found = message(ScanInputs { cu_seqlens: Some(&bounds(bad)), ..good });
        assert!(found.contains("non-decreasing from 0 to seqlen = 8"), "{found}");
    }
    let floats = Tensor::zeros([1, 8], DType::F32, &Device::Cpu).unwrap();
    let found = message(ScanInputs { seq_idx: Some(&floats), ..good });
    assert_eq!(found, "selective_scan: seq_idx has dtype f32, expected i32 or i64");
    let whole = Tensor::zeros([1, 8, 6], DType::I64, &Device::Cpu).unwrap();
    assert!(message(ScanInputs { u: &whole, ..good }).contains("f64, f32 or bf16"));
}

/// A NaN in delta is refused by every dtype's path, wherever it stands; one in u stays in its channel.
#[test]
fn nan_is_refused_in_delta_and_kept_in_u() {
    let problem = Problem::new(&Setup::new(20, 1, 4, &[40, 3]));
    let with_nan = |tensor: &Tensor, at: usize| {
        let mut values = tensor.to_vec::<f64>().unwrap();
        values[at] = f64::NAN;
        Some(Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap())
    };
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        for at in [0, 40 * 20 + 19] {
            let mut bad = problem.clone();
            bad.inputs[1] = with_nan(problem.at(1), at);
            let found = message(bad.tracked(dtype).scan());
            assert_eq!(found, "selective_scan: delta is NaN somewhere, valid is numbers");
        }
        let mut bad = problem.clone();
        bad.inputs[0] = with_nan(problem.at(0), 39 * 20 + 7);
        let (y, _) = selective_scan(&bad.tracked(dtype).scan(), &LAST).unwrap();
        let values = y.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
        let broken: Vec<usize> = (0..values.len()).filter(|&at| values[at].is_nan()).collect();
        assert_eq!(broken, [39 * 20 + 7], "{dtype}");
    }
}

#[test]
fn a_step_without_fitting_state_is_refused() {
    let problem = Problem::new(&Setup::new(6, 1, 4, &[1]));
    let x = problem.at(0).squeeze(1).unwrap();
    let b = problem.at(3).squeeze(1).unwrap();
    let state = Tensor::zeros([2, 6, 4], DType::F64, &Device::Cpu).unwrap();
    let (d, z, dt_bias) = (None, None, None);
    let a = problem.at(2);
    let step = ScanStepInputs { state: &state, x: &x, dt: &x, a, b: &b, c: &b, d, z, dt_bias };
    let found = selective_state_update(&step, true).unwrap_err().to_string();
    assert!(found.contains("initial_states has shape [2, 6, 4]"), "{found}");
}
