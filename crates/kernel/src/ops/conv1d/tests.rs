//! Golden cases, identities, gradients and refusals.

use super::*;
use danaus_runtime::simd::{self, Isa};
use danaus_tensor::backward_with;
use danaus_testkit::{assert_close, golden, gradcheck, randn};

const SYSTEM: &str = "12-mamba2-ssd";

/// Tolerance for results of the golden file, relative to the largest value.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F64 { 1e-12 } else { 2e-6 }
}

fn inputs<'a>(x: &'a Tensor, weight: &'a Tensor) -> ConvInputs<'a> {
    ConvInputs { x, weight, bias: None, initial_states: None, seq_idx: None, cu_seqlens: None }
}

#[test]
fn golden_forward_and_gradients() {
    let file = golden(SYSTEM, "causal_conv1d");
    for dtype in [DType::F64, DType::F32] {
        let leaf = |name| file.get_as(name, dtype).tracked();
        let (x, weight, bias) = (leaf("x"), leaf("weight"), leaf("bias"));
        let initial = leaf("initial_states");
        let mut arrays = inputs(&x, &weight);
        let (plain, _) =
            causal_conv1d(&ConvInputs { bias: Some(&bias), ..arrays }, &Default::default())
                .unwrap();
        assert_close("no activation", &plain, file.get("y_noinit_noact"), tolerance(dtype));
        arrays.bias = Some(&bias);
        arrays.initial_states = Some(&initial);
        let options = ConvOptions { silu: true, channel_last: false };
        let (y, states) = causal_conv1d(&arrays, &options).unwrap();
        assert_close("y", &y, file.get("y"), tolerance(dtype));
        assert_close("final_states", &states, file.get("final_states"), tolerance(dtype));
        let pairs = [(&y, file.get("R")), (&states, file.get("Rf"))];
        let grads = backward_with(&pairs).unwrap();
        for (name, leaf) in
            [("x", &x), ("weight", &weight), ("bias", &bias), ("initial_states", &initial)]
        {
            let expected = file.get(&format!("grad.{name}"));
            assert_close(name, grads.get(leaf).unwrap(), expected, tolerance(dtype));
        }
    }
}

#[test]
fn golden_packed() {
    let file = golden(SYSTEM, "causal_conv1d");
    let (x, weight) = (file.get("x").narrow(0, 0, 1).unwrap(), file.get("weight"));
    let arrays = ConvInputs {
        bias: Some(file.get("bias")),
        seq_idx: Some(file.get("seqidx")),
        ..inputs(&x, weight)
    };
    let options = ConvOptions { silu: true, channel_last: false };
    let (y, _) = causal_conv1d(&arrays, &options).unwrap();
    assert_close("y_packed", &y, file.get("y_packed"), 1e-12);
    let (x, bounds) = (file.get("varlen.x"), file.get("varlen.cu_seqlens"));
    let states = causal_conv1d_varlen_states(x, bounds, 4).unwrap();
    assert_close("varlen.states", &states, file.get("varlen.states"), 0.0);
}

#[test]
fn golden_update() {
    let file = golden(SYSTEM, "causal_conv1d");
    let update = |seqlens: Option<&Tensor>| {
        let (x, state) = (file.get("upd.x"), file.get("upd.conv_state0"));
        let (weight, bias) = (file.get("weight"), Some(file.get("bias")));
        causal_conv1d_update(x, state, weight, bias, seqlens, true).unwrap()
    };
    let (y, state) = update(None);
    assert_close("upd.y", &y, file.get("upd.y"), 1e-12);
    assert_close("upd.conv_state1", &state, file.get("upd.conv_state1"), 0.0);
    let (y, state) = update(Some(file.get("upd_circ.cache_seqlens")));
    assert_close("upd_circ.y", &y, file.get("upd_circ.y"), 1e-12);
    assert_close("upd_circ.conv_state1", &state, file.get("upd_circ.conv_state1"), 0.0);
}

/// Every width and instruction set against the f64 form, on sequences shorter than the filter too.
#[test]
fn vector_kernels_match_the_reference() {
    let bounds = Tensor::from_vec(vec![0i64, 1, 1, 3, 90, 170], [6], &Device::Cpu).unwrap();
    for width in 1..=8 {
        let run = |dtype: DType| -> Vec<Tensor> {
            let leaf = |seed, shape: &[usize]| {
                let exact = randn(seed, shape, DType::F64).to_dtype(DType::BF16).unwrap();
                exact.to_dtype(dtype).unwrap().tracked()
            };
            let (x, weight) = (leaf(1, &[1, 170, 37]), leaf(2, &[37, width]));
            let (bias, initial) = (leaf(3, &[37]), leaf(4, &[5, 37, width - 1]));
            let arrays = ConvInputs {
                bias: Some(&bias),
                initial_states: Some(&initial),
                cu_seqlens: Some(&bounds),
                ..inputs(&x, &weight)
            };
            let options = ConvOptions { silu: true, channel_last: true };
            let (y, states) = causal_conv1d(&arrays, &options).unwrap();
            let (dy, ds) = (randn(5, y.dims(), y.dtype()), randn(6, states.dims(), states.dtype()));
            let grads = backward_with(&[(&y, &dy), (&states, &ds)]).unwrap();
            let leaves = [&x, &weight, &bias, &initial];
            let grads = leaves.iter().map(|leaf| grads.get(leaf).unwrap().clone());
            [y.detach(), states.detach()].into_iter().chain(grads).collect()
        };
        let expected = run(DType::F64);
        for isa in Isa::ALL {
            let Some(found) = simd::with_isa(isa, || run(DType::F32)) else { continue };
            for (found, expected) in found.iter().zip(&expected) {
                assert_close(&format!("{isa:?}, width {width}"), found, expected, 3e-6);
            }
        }
        // bf16 rounds the results once: half a unit in the eighth bit, and the cotangent alike.
        for (found, expected) in run(DType::BF16).iter().zip(&expected) {
            assert_close(&format!("bf16, width {width}"), found, expected, 1e-2);
        }
    }
}

#[test]
fn gradients_in_f64() {
    let shapes: [&[usize]; 4] = [&[2, 3, 5], &[3, 4], &[3], &[2, 3, 3]];
    let tensors: Vec<Tensor> =
        shapes.iter().enumerate().map(|(i, shape)| randn(i as u64, shape, DType::F64)).collect();
    gradcheck(
        |t| {
            let arrays = ConvInputs {
                bias: Some(&t[2]),
                initial_states: Some(&t[3]),
                ..inputs(&t[0], &t[1])
            };
            let (y, states) =
                causal_conv1d(&arrays, &ConvOptions { silu: true, ..Default::default() })?;
            Ok(vec![y, states])
        },
        &tensors,
        1e-6,
    );
}

#[test]
fn wrong_arguments_are_named() {
    let (x, weight) = (randn(1, &[1, 4, 6], DType::F32), randn(2, &[4, 9], DType::F32));
    let message =
        |arrays: &ConvInputs| causal_conv1d(arrays, &Default::default()).unwrap_err().to_string();
    assert_eq!(
        message(&inputs(&x, &weight)),
        "causal_conv1d: width (of weight) is 9, valid is 1 to 8"
    );
    let weight = randn(2, &[4, 3], DType::F32);
    let bounds = Tensor::from_vec(vec![0i64, 5], [2], &Device::Cpu).unwrap();
    let arrays = ConvInputs { cu_seqlens: Some(&bounds), ..inputs(&x, &weight) };
    assert_eq!(
        message(&arrays),
        "causal_conv1d: cu_seqlens is [0, 5], valid is non-decreasing from 0 to seqlen = 6"
    );
}
