//! What must hold whatever the numbers are.

use super::super::{
    ScanInputs, ScanOptions, ScanStepInputs, selective_scan, selective_state_update,
};
use super::support::{Form, LAST, Problem, Setup};
use crate::ops::ssd::{SsdInputs, SsdOptions, ssd};
use danaus_tensor::{DType, Device, Tensor, backward_with};
use danaus_testkit::{assert_close, gradcheck, randn};

/// Rows `start..start + len` of the packed arrays, with a given state.
fn part(problem: &Problem, (start, len): (usize, usize), state: Tensor) -> Problem {
    let mut inputs = problem.inputs.clone();
    for index in [0, 1, 3, 4, 6] {
        let tensor = inputs[index].as_ref().filter(|tensor| tensor.rank() > 2).cloned();
        if let Some(tensor) = tensor {
            inputs[index] = Some(tensor.narrow(1, start, len).unwrap());
        }
    }
    inputs[8] = Some(state);
    let cu_seqlens = Tensor::from_vec(vec![0, len as i32], [2], &Device::Cpu).unwrap();
    Problem { inputs, cu_seqlens }
}

fn bits(tensor: &Tensor) -> Vec<f32> {
    tensor.to_vec::<f32>().unwrap()
}

/// Packed sequences have the bits that they have alone, whole, in pieces, or step by step.
#[test]
fn packed_alone_cut_and_stepped_give_the_same_bits() {
    let lengths = [45usize, 0, 1, 70];
    let problem = Problem::new(&Setup::new(70, 2, 6, &lengths)).tracked(DType::F32);
    let (y, last) = selective_scan(&problem.scan(), &LAST).unwrap();
    let mut start = 0;
    for (index, &length) in lengths.iter().enumerate() {
        let expected = bits(&y.narrow(1, start, length).unwrap());
        let expected_last = bits(&last.narrow(0, index, 1).unwrap());
        let first = problem.at(8).narrow(0, index, 1).unwrap();
        for cut in [1, 7, 32, 100] {
            let (mut state, mut found) = (first.clone(), Vec::new());
            for from in (0..length).step_by(cut) {
                let piece = part(&problem, (start + from, cut.min(length - from)), state);
                let (y, next) = selective_scan(&piece.scan(), &LAST).unwrap();
                found.extend(bits(&y));
                state = next;
            }
            assert!(found == expected, "sequence {index} cut every {cut}");
            assert!(bits(&state) == expected_last, "state {index} cut every {cut}");
        }
        start += length;
    }
}

#[test]
fn a_batch_of_steps_is_the_scan() {
    let problem = Problem::new(&Setup::new(24, 2, 4, &[6, 6, 6]));
    let (y, last) = selective_scan(&problem.scan(), &LAST).unwrap();
    let batched = |index: usize| {
        let dims = problem.at(index).dims();
        let shape = [&[3, 6], &dims[2..]].concat();
        problem.at(index).reshape(shape).unwrap()
    };
    let arrays = [0, 1, 3, 4, 6].map(batched);
    let expected = y.reshape([3, 6, 24]).unwrap();
    let mut state = problem.at(8).clone();
    for t in 0..6 {
        let [x, dt, b, c, z] = arrays.each_ref().map(|array| array.select(1, t).unwrap());
        let step = ScanStepInputs {
            state: &state,
            x: &x,
            dt: &dt,
            a: problem.at(2),
            b: &b,
            c: &c,
            d: Some(problem.at(5)),
            z: Some(&z),
            dt_bias: Some(problem.at(7)),
        };
        let (y, next) = selective_state_update(&step, true).unwrap();
        assert_close("y", &y, &expected.select(1, t).unwrap(), 1e-14);
        state = next;
    }
    assert_close("state", &state, &last, 1e-14);
    // The same in one call of several tokens.
    let [x, dt, b, c, z] = &arrays;
    let steps = ScanStepInputs {
        state: problem.at(8),
        x,
        dt,
        a: problem.at(2),
        b,
        c,
        d: Some(problem.at(5)),
        z: Some(z),
        dt_bias: Some(problem.at(7)),
    };
    let (y, _) = selective_state_update(&steps, true).unwrap();
    assert_close("y", &y, &expected, 1e-14);
}

/// Cut at any token with the state handed over: gradients are those of the whole.
#[test]
fn gradients_flow_through_the_handed_over_state() {
    let problem = Problem::new(&Setup::new(6, 1, 3, &[12]));
    let r = randn(20, &[1, 12, 6], DType::F64);
    let rl = randn(21, &[1, 6, 3], DType::F64);
    let whole = problem.tracked(DType::F64);
    let (y, last) = selective_scan(&whole.scan(), &LAST).unwrap();
    let expected = backward_with(&[(&y, &r), (&last, &rl)]).unwrap();
    for cut in [1, 5, 11] {
        let leaves = problem.tracked(DType::F64);
        let head = part(&leaves, (0, cut), leaves.at(8).clone());
        let (y0, state) = selective_scan(&head.scan(), &LAST).unwrap();
        let tail = part(&leaves, (cut, 12 - cut), state);
        let (y1, last) = selective_scan(&tail.scan(), &LAST).unwrap();
        let y = Tensor::cat(&[&y0, &y1], 1).unwrap();
        let found = backward_with(&[(&y, &r), (&last, &rl)]).unwrap();
        for index in 0..9 {
            let (found, expected) =
                (found.get(leaves.at(index)).unwrap(), expected.get(whole.at(index)).unwrap());
            assert_close(super::support::NAMES[index], found, expected, 1e-12);
        }
    }
}

/// `seq_idx` resets the state, alone and inside packed sequences.
#[test]
fn sequence_numbers_reset_the_state() {
    let mut problem = Problem::new(&Setup::new(5, 1, 4, &[9]));
    problem.inputs[8] = None;
    let seq_idx =
        Tensor::from_vec(vec![4i32, 4, 4, 7, 7, 1, 1, 1, 1], [1, 9], &Device::Cpu).unwrap();
    for cu_seqlens in [None, Some(&problem.cu_seqlens)] {
        let inputs = ScanInputs { cu_seqlens, seq_idx: Some(&seq_idx), ..problem.scan() };
        let (y, last) = selective_scan(&inputs, &LAST).unwrap();
        for (start, len) in [(0, 3), (3, 2), (5, 4)] {
            let zero = Tensor::zeros([1, 5, 4], DType::F64, &Device::Cpu).unwrap();
            let alone = part(&problem, (start, len), zero);
            let (expected, state) = selective_scan(&alone.scan(), &LAST).unwrap();
            assert_close("y", &y.narrow(1, start, len).unwrap(), &expected, 1e-14);
            if start == 5 {
                assert_close("last_state", &last, &state, 1e-14);
            }
        }
    }
}

/// With one rate and one step size per head it is the operator of Mamba-2.
#[test]
fn shared_rates_and_steps_give_ssd() {
    let (heads, head_dim, n, tokens) = (3, 4, 5, 20);
    let x = randn(30, &[2, tokens, heads, head_dim], DType::F64);
    let dt = randn(31, &[2, tokens, heads], DType::F64);
    let a = randn(32, &[heads], DType::F64).abs().unwrap().neg().unwrap();
    let (b, c) =
        (randn(33, &[2, tokens, 1, n], DType::F64), randn(34, &[2, tokens, 1, n], DType::F64));
    let z = randn(35, &[2, tokens, heads, head_dim], DType::F64);
    let ssd_inputs = SsdInputs { z: Some(&z), ..SsdInputs::new(&x, &dt, &a, &b, &c) };
    let options = SsdOptions { dt_softplus: true, ..SsdOptions::default() };
    let (expected, expected_state) = ssd(&ssd_inputs, &options).unwrap();
    let channels = heads * head_dim;
    let flat = |x: &Tensor| x.reshape([2, tokens, channels]).unwrap();
    let spread = dt.unsqueeze(3).unwrap().broadcast_to([2, tokens, heads, head_dim]).unwrap();
    let rates = a.reshape([heads, 1, 1]).unwrap().broadcast_to([heads, head_dim, n]).unwrap();
    let rates = rates.contiguous().unwrap().reshape([channels, n]).unwrap();
    let delta = flat(&spread.contiguous().unwrap());
    let (u, z) = (flat(&x), flat(&z));
    let inputs = ScanInputs { z: Some(&z), ..ScanInputs::new(&u, &delta, &rates, &b, &c) };
    let (y, state) = selective_scan(&inputs, &LAST).unwrap();
    assert_close("y", &y, &flat(&expected), 1e-12);
    let state = state.reshape(expected_state.dims().to_vec()).unwrap();
    assert_close("state", &state, &expected_state, 1e-12);
}

/// A token whose step size is 0 leaves the state as it is, to the bit.
#[test]
fn a_step_of_size_zero_does_nothing() {
    let mut problem = Problem::new(&Setup::new(20, 1, 16, &[3])).tracked(DType::F32);
    let zeros = Tensor::zeros([1, 3, 20], DType::F32, &Device::Cpu).unwrap();
    (problem.inputs[1], problem.inputs[7]) = (Some(zeros), None);
    let options = ScanOptions { delta_softplus: false, ..LAST };
    let (_, last) = selective_scan(&problem.scan(), &options).unwrap();
    assert_eq!(bits(&last), bits(problem.at(8)));
}

/// Negative step sizes (without softplus) grow the state; the kernel's exponential covers them.
#[test]
fn negative_steps_agree_with_the_recurrence() {
    let problem = Problem::new(&Setup::new(20, 1, 3, &[4]));
    let options = ScanOptions { delta_softplus: false, ..LAST };
    let run = |dtype| selective_scan(&problem.tracked(dtype).scan(), &options).unwrap();
    let ((y, last), (expected, expected_last)) = (run(DType::F32), run(DType::F64));
    assert_close("y", &y, &expected, 1e-5);
    assert_close("last_state", &last, &expected_last, 1e-5);
}

#[test]
fn gradients_match_differences() {
    for (forms, softplus) in [
        ([Form::Token, Form::Token], true),
        ([Form::Constant, Form::Token], true),
        ([Form::Token, Form::Constant], false),
    ] {
        let setup = Setup { forms, ..Setup::new(4, 2, 3, &[3, 2]) };
        let problem = Problem::new(&setup);
        let options = ScanOptions { delta_softplus: softplus, channel_last: true };
        let inputs: Vec<Tensor> = problem.inputs.iter().flatten().cloned().collect();
        gradcheck(
            |leaves| {
                let inputs = leaves.iter().cloned().map(Some).collect();
                let problem = Problem { inputs, cu_seqlens: problem.cu_seqlens.clone() };
                let (y, last) = selective_scan(&problem.scan(), &options)?;
                Ok(vec![y, last])
            },
            &inputs,
            1e-6,
        );
    }
}
