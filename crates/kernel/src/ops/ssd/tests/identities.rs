//! What must hold between calls, and the tape's gradients in f64.

use super::super::{SsdCoreInputs, SsdInputs, SsdOptions, SsdStepInputs, ssd, ssd_core, ssd_step};
use danaus_tensor::{DType, Device, Level, Result, Tensor, backward_with, with_level};
use danaus_testkit::{assert_close, gradcheck, max_relative_error, randn};

const SOFTPLUS: SsdOptions = SsdOptions { dt_softplus: true, dt_limit: None, chunk_size: None };
/// f32 results of the same numbers summed in another order.
const ORDER: f64 = 3e-6;

/// x, dt, A, B, C, D, z, dt_bias, initial_states.
fn problem(batch: usize, seqlen: usize, dtype: DType) -> Vec<Tensor> {
    let (heads, groups, p, n) = (4, 2, 8, 16);
    let shapes: [&[usize]; 9] = [
        &[batch, seqlen, heads, p],
        &[batch, seqlen, heads],
        &[heads],
        &[batch, seqlen, groups, n],
        &[batch, seqlen, groups, n],
        &[heads],
        &[batch, seqlen, heads, p],
        &[heads],
        &[batch, heads, p, n],
    ];
    let tensor = |(index, shape): (usize, &&[usize])| {
        let values = randn(index as u64, shape, DType::F64).to_dtype(DType::F32).unwrap();
        let values = values.to_dtype(DType::F64).unwrap();
        let values = if index == 2 {
            let squares = values.mul(&values).unwrap();
            squares.affine(-0.5, -0.1).unwrap()
        } else {
            values
        };
        values.to_dtype(dtype).unwrap()
    };
    shapes.iter().enumerate().map(tensor).collect()
}

fn inputs(t: &[Tensor]) -> SsdInputs<'_> {
    SsdInputs {
        d: Some(&t[5]),
        z: Some(&t[6]),
        dt_bias: Some(&t[7]),
        initial_states: Some(&t[8]),
        ..SsdInputs::new(&t[0], &t[1], &t[2], &t[3], &t[4])
    }
}

fn integers(values: &[i64]) -> Tensor {
    Tensor::from_slice(values, [values.len()], &Device::Cpu).unwrap()
}

/// Rows `start..start + len` of everything that has a time dimension.
fn piece(t: &[Tensor], start: usize, len: usize) -> Vec<Tensor> {
    let cut = |(index, tensor): (usize, &Tensor)| match index {
        0 | 1 | 3 | 4 | 6 => tensor.narrow(1, start, len).unwrap(),
        _ => tensor.clone(),
    };
    t.iter().enumerate().map(cut).collect()
}

#[test]
fn split_with_hand_over_equals_whole() {
    for dtype in [DType::F64, DType::F32] {
        let tolerance = if dtype == DType::F64 { 1e-12 } else { ORDER };
        let t: Vec<Tensor> = problem(2, 150, dtype).iter().map(Tensor::tracked).collect();
        let (y, last) = ssd(&inputs(&t), &SOFTPLUS).unwrap();
        let (first, second) = (piece(&t, 0, 67), piece(&t, 67, 83));
        let (y1, state) = ssd(&inputs(&first), &SOFTPLUS).unwrap();
        let handed = SsdInputs { initial_states: Some(&state), ..inputs(&second) };
        let (y2, end) = ssd(&handed, &SOFTPLUS).unwrap();
        let joined = Tensor::cat(&[&y1, &y2], 1).unwrap();
        assert_close("y", &joined, &y, tolerance);
        assert_close("final_state", &end, &last, tolerance);
        let (dy, ds) = (randn(20, y.dims(), dtype), randn(21, last.dims(), dtype));
        let whole = backward_with(&[(&y, &dy), (&last, &ds)]).unwrap();
        let split = backward_with(&[(&joined, &dy), (&end, &ds)]).unwrap();
        for leaf in &t {
            let (a, b) = (split.get(leaf).unwrap(), whole.get(leaf).unwrap());
            assert_close("gradient", a, b, 4.0 * tolerance);
        }
    }
}

#[test]
fn packed_equals_separate_to_the_bit() {
    let t = problem(1, 200, DType::F32);
    let initial = randn(30, &[4, 4, 8, 16], DType::F32);
    let bounds = [0i64, 1, 1, 90, 200];
    let cu_seqlens = integers(&bounds);
    let packed =
        SsdInputs { cu_seqlens: Some(&cu_seqlens), initial_states: Some(&initial), ..inputs(&t) };
    let (y, states) = ssd(&packed, &SOFTPLUS).unwrap();
    for (index, pair) in bounds.windows(2).enumerate() {
        let (start, len) = (pair[0] as usize, (pair[1] - pair[0]) as usize);
        let own = initial.narrow(0, index, 1).unwrap();
        let alone = piece(&t, start, len);
        let alone = SsdInputs { initial_states: Some(&own), ..inputs(&alone) };
        let (y_alone, state) = ssd(&alone, &SOFTPLUS).unwrap();
        assert_close("y", &y.narrow(1, start, len).unwrap(), &y_alone, 0.0);
        assert_close("final_state", &states.narrow(0, index, 1).unwrap(), &state, 0.0);
    }
}

#[test]
fn steps_equal_the_scan() {
    let t = problem(2, 9, DType::F32);
    let (y, last) = ssd(&inputs(&t), &SOFTPLUS).unwrap();
    let mut state = t[8].clone();
    // One token, then a few at once.
    for (start, len) in [(0, 1), (1, 3), (4, 5)] {
        let p = piece(&t, start, len);
        let step = SsdStepInputs {
            x: &p[0],
            dt: &p[1],
            a: &p[2],
            b: &p[3],
            c: &p[4],
            d: Some(&p[5]),
            z: Some(&p[6]),
            dt_bias: Some(&p[7]),
            state: &state,
        };
        let (out, next) = ssd_step(&step, &SOFTPLUS).unwrap();
        assert_close("y", &out, &y.narrow(1, start, len).unwrap(), ORDER);
        state = next;
    }
    assert_close("state", &state, &last, ORDER);
}

#[test]
fn a_token_with_step_size_zero_does_nothing() {
    let mut t = problem(1, 70, DType::F32);
    let zero = Tensor::zeros([1, 1, 4], DType::F32, &Device::Cpu).unwrap();
    let positive = t[1].mul(&t[1]).unwrap();
    let parts = [&positive.narrow(1, 0, 30).unwrap(), &zero, &positive.narrow(1, 31, 39).unwrap()];
    t[1] = Tensor::cat(&parts, 1).unwrap();
    let without = |t: &[Tensor]| -> (Tensor, Tensor) {
        let arrays = SsdInputs { dt_bias: None, ..inputs(t) };
        ssd(&arrays, &SsdOptions::default()).unwrap()
    };
    let (y, last) = without(&t);
    let (before, after) = (piece(&t, 0, 30), piece(&t, 31, 39));
    let joined: Vec<Tensor> = (0..t.len())
        .map(|i| match i {
            0 | 1 | 3 | 4 | 6 => Tensor::cat(&[&before[i], &after[i]], 1).unwrap(),
            _ => t[i].clone(),
        })
        .collect();
    let (y_short, last_short) = without(&joined);
    assert_close("y", &y.narrow(1, 31, 39).unwrap(), &y_short.narrow(1, 30, 39).unwrap(), ORDER);
    assert_close("final_state", &last, &last_short, ORDER);
}

#[test]
fn groups_repeat_over_heads() {
    let t = problem(2, 70, DType::F32);
    let repeat = |tensor: &Tensor| {
        let parts: Vec<Tensor> = [0, 0, 1, 1].map(|g| tensor.narrow(2, g, 1).unwrap()).to_vec();
        Tensor::cat(&parts.iter().collect::<Vec<_>>(), 2).unwrap()
    };
    let (b, c) = (repeat(&t[3]), repeat(&t[4]));
    let (y, last) = ssd(&inputs(&t), &SOFTPLUS).unwrap();
    let repeated = SsdInputs { b: &b, c: &c, ..inputs(&t) };
    let (y_repeated, last_repeated) = ssd(&repeated, &SOFTPLUS).unwrap();
    assert_close("y", &y_repeated, &y, 0.0);
    assert_close("final_state", &last_repeated, &last, 0.0);
}

/// With log-decay 0 and scale 1 the operator is causal linear attention.
#[test]
fn without_decay_it_is_linear_attention() {
    let (x, b, c) = (
        randn(1, &[1, 5, 1, 3], DType::F64),
        randn(2, &[1, 5, 1, 2], DType::F64),
        randn(3, &[1, 5, 1, 2], DType::F64),
    );
    let zeros = Tensor::zeros([1, 5, 1], DType::F64, &Device::Cpu).unwrap();
    let ones = zeros.affine(1.0, 1.0).unwrap();
    let arrays = SsdCoreInputs {
        x: &x,
        log_decay: &zeros,
        b: &b,
        c: &c,
        scale: &ones,
        initial_states: None,
        seq_idx: None,
        cu_seqlens: None,
    };
    let (y, _) = ssd_core(&arrays, None).unwrap();
    let (x, b, c) =
        (x.to_vec::<f64>().unwrap(), b.to_vec::<f64>().unwrap(), c.to_vec::<f64>().unwrap());
    let mut expected = vec![0.0; 15];
    for i in 0..5 {
        for j in 0..=i {
            let score = c[2 * i] * b[2 * j] + c[2 * i + 1] * b[2 * j + 1];
            (0..3).for_each(|p| expected[3 * i + p] += score * x[3 * j + p]);
        }
    }
    let expected = Tensor::from_vec(expected, [1, 5, 1, 3], &Device::Cpu).unwrap();
    assert_close("y", &y, &expected, 1e-13);
}

/// bf16 arrays: at most 1.5 times the error of rounding every array once and computing exactly.
#[test]
fn bf16_loses_what_rounding_loses() {
    let exact = problem(2, 200, DType::F64);
    let rounded: Vec<Tensor> = exact
        .iter()
        .enumerate()
        .map(|(index, tensor)| match index {
            0 | 3 | 4 | 6 => tensor.to_dtype(DType::BF16).unwrap(),
            _ => tensor.to_dtype(DType::F32).unwrap(),
        })
        .collect();
    let widened: Vec<Tensor> = rounded.iter().map(|t| t.to_dtype(DType::F64).unwrap()).collect();
    let (expected, _) = ssd(&inputs(&exact), &SOFTPLUS).unwrap();
    let (naive, _) = ssd(&inputs(&widened), &SOFTPLUS).unwrap();
    let naive = naive.to_dtype(DType::BF16).unwrap();
    let (found, _) = ssd(&inputs(&rounded), &SOFTPLUS).unwrap();
    assert_eq!(found.dtype(), DType::BF16);
    let (ours, theirs) =
        (max_relative_error(&found, &expected), max_relative_error(&naive, &expected));
    assert!(ours <= 1.5 * theirs, "{ours:e} against {theirs:e}");
}

/// Cut into pieces of 1, 3, 7 and 16 tokens, with resets inside, and step by step: the same bits.
#[test]
fn invariant_bits_do_not_depend_on_cuts() {
    with_level(Level::Invariant, || {
        let t = problem(2, 50, DType::F32);
        let seq_idx: Vec<i64> = (0..100).map(|row| (row % 50) / 20).collect();
        let seq_idx = integers(&seq_idx).reshape([2, 50]).unwrap();
        let whole = SsdInputs { seq_idx: Some(&seq_idx), ..inputs(&t) };
        let (y, last) = ssd(&whole, &SOFTPLUS).unwrap();
        for size in [1, 3, 7, 16] {
            let (mut parts, mut state) = (Vec::new(), t[8].clone());
            for (start, len) in cuts(&[0, 20, 40, 50], size) {
                if start == 20 || start == 40 {
                    state = state.affine(0.0, 0.0).unwrap();
                }
                let part = piece(&t, start, len);
                let handed = SsdInputs { initial_states: Some(&state), ..inputs(&part) };
                let (y, end) = ssd(&handed, &SOFTPLUS).unwrap();
                (state, _) = (end, parts.push(y));
            }
            let parts: Vec<&Tensor> = parts.iter().collect();
            assert_close("y", &Tensor::cat(&parts, 1).unwrap(), &y, 0.0);
            assert_close("final_state", &state, &last, 0.0);
        }
        let (whole, last) = ssd(&inputs(&t), &SOFTPLUS).unwrap();
        let [x, dt, a, b, c, d, z, dt_bias, state] = &t[..] else { unreachable!("nine tensors") };
        let (d, z, dt_bias) = (Some(d), Some(z), Some(dt_bias));
        let step = SsdStepInputs { x, dt, a, b, c, d, z, dt_bias, state };
        let (y, end) = ssd_step(&step, &SOFTPLUS).unwrap();
        assert_close("stepped y", &y, &whole, 0.0);
        assert_close("stepped state", &end, &last, 0.0);
    });
}

/// Of many sequences each has the bits that it has alone.
#[test]
fn large_batches_have_the_bits_of_small_ones() {
    with_level(Level::Invariant, || {
        let t = problem(2100, 1, DType::F32);
        let (y, last) = ssd(&inputs(&t), &SOFTPLUS).unwrap();
        for at in [0, 1, 1057, 2099] {
            let row = |tensor: &Tensor| tensor.narrow(0, at, 1).unwrap();
            let own = |(index, tensor)| match index {
                2 | 5 | 7 => Tensor::clone(tensor),
                _ => row(tensor).contiguous().unwrap(),
            };
            let own: Vec<Tensor> = t.iter().enumerate().map(own).collect();
            let (own_y, own_last) = ssd(&inputs(&own), &SOFTPLUS).unwrap();
            assert_close("y", &own_y, &row(&y), 0.0);
            assert_close("final_state", &own_last, &row(&last), 0.0);
        }
    });
}

/// Pieces of at most `size` rows between bounds.
fn cuts(bounds: &[usize], size: usize) -> Vec<(usize, usize)> {
    let between = |pair: &[usize]| {
        let end = pair[1];
        (pair[0]..end).step_by(size).map(move |start| (start, size.min(end - start)))
    };
    bounds.windows(2).flat_map(between).collect()
}

/// Views with gaps between rows (slices of a wider projection) need no copy and give the same bits.
#[test]
fn slices_of_a_projection() {
    let t = problem(2, 70, DType::F32);
    let flat = |tensor: &Tensor| tensor.flatten(2, 3).unwrap();
    let wide = Tensor::cat(&[&flat(&t[0]), &flat(&t[3]), &flat(&t[4])], 2).unwrap();
    let part = |start, len, dims: [usize; 2]| {
        let view = wide.narrow(2, start, len).unwrap();
        view.reshape(vec![2, 70, dims[0], dims[1]]).unwrap()
    };
    let (x, b, c) = (part(0, 32, [4, 8]), part(32, 32, [2, 16]), part(64, 32, [2, 16]));
    let (y, _) = ssd(&inputs(&t), &SOFTPLUS).unwrap();
    let (sliced, _) = ssd(&SsdInputs { x: &x, b: &b, c: &c, ..inputs(&t) }, &SOFTPLUS).unwrap();
    assert_close("y", &sliced, &y, 0.0);
}

#[test]
fn gradients_in_f64() {
    let (heads, p, n) = (2, 2, 3);
    let shapes: [&[usize]; 9] = [
        &[1, 5, heads, p],
        &[1, 5, heads],
        &[heads],
        &[1, 5, 1, n],
        &[1, 5, 1, n],
        &[heads, p],
        &[1, 5, heads, p],
        &[heads],
        &[2, heads, p, n],
    ];
    let mut t: Vec<Tensor> = shapes
        .iter()
        .enumerate()
        .map(|(i, shape)| randn(40 + i as u64, shape, DType::F64))
        .collect();
    t[2] = Tensor::from_vec(vec![-0.7, -1.3], [2], &Device::Cpu).unwrap();
    let (bounds, seq_idx) =
        (integers(&[0, 3, 5]), integers(&[0, 1, 1, 2, 2]).unsqueeze(0).unwrap());
    let run = |t: &[Tensor]| -> Result<Vec<Tensor>> {
        let packed = SsdInputs { cu_seqlens: Some(&bounds), seq_idx: Some(&seq_idx), ..inputs(t) };
        let (y, last) = ssd(&packed, &SOFTPLUS)?;
        Ok(vec![y, last])
    };
    gradcheck(run, &t, 1e-6);
}
