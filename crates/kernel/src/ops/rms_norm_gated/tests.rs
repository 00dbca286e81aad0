//! Golden cases, the vector kernels against the reference, and gradients.

use super::*;
use danaus_runtime::simd::{self, Isa};
use danaus_tensor::backward_with;
use danaus_testkit::{assert_close, golden, gradcheck, randn};

#[test]
fn golden_forward_and_gradients() {
    let file = golden("12-mamba2-ssd", "rmsnorm_gated");
    for dtype in [DType::F64, DType::F32] {
        let tolerance = if dtype == DType::F64 { 1e-12 } else { 2e-6 };
        for (group, group_size) in [("gNone", None), ("g4", Some(4))] {
            for (order, norm_before_gate) in [("nbgFalse", false), ("nbgTrue", true)] {
                let leaf = |name| file.get_as(name, dtype).tracked();
                let (x, z, weight) = (leaf("x"), leaf("z"), leaf("weight"));
                let options = RmsNormGatedOptions { eps: 1e-5, group_size, norm_before_gate };
                let y = rms_norm_gated(&x, Some(&z), &weight, &options).unwrap();
                let name = |tail: &str| format!("{group}.{order}.{tail}");
                assert_close(&name("y"), &y, file.get(&name("y")), tolerance);
                let grads = backward_with(&[(&y, file.get("R"))]).unwrap();
                for (tail, leaf) in [("grad.x", &x), ("grad.z", &z), ("grad.weight", &weight)] {
                    let found = grads.get(leaf).unwrap();
                    assert_close(&name(tail), found, file.get(&name(tail)), tolerance);
                }
            }
        }
    }
}

#[test]
fn vector_kernels_match_the_reference() {
    for (group_size, norm_before_gate, gated) in [
        (None, false, true),
        (Some(25), true, true),
        (Some(75), false, false),
        (Some(25), false, true),
    ] {
        let run = |dtype: DType| -> Vec<Tensor> {
            let leaf = |seed, shape: &[usize]| {
                let exact = randn(seed, shape, DType::F64).to_dtype(DType::BF16).unwrap();
                exact.to_dtype(dtype).unwrap().tracked()
            };
            let (x, z, weight) = (leaf(1, &[67, 75]), leaf(2, &[67, 75]), leaf(3, &[75]));
            let options = RmsNormGatedOptions { eps: 1e-5, group_size, norm_before_gate };
            let y = rms_norm_gated(&x, gated.then_some(&z), &weight, &options).unwrap();
            let grads = backward_with(&[(&y, &randn(5, y.dims(), y.dtype()))]).unwrap();
            let grads = [&x, &z, &weight].into_iter().filter_map(|leaf| grads.get(leaf).cloned());
            std::iter::once(y.detach()).chain(grads).collect()
        };
        let expected = run(DType::F64);
        assert_eq!(expected.len(), if gated { 4 } else { 3 });
        for isa in Isa::ALL {
            let Some(found) = simd::with_isa(isa, || run(DType::F32)) else { continue };
            for (found, expected) in found.iter().zip(&expected) {
                assert_close(&format!("{isa:?}"), found, expected, 3e-6);
            }
        }
        // bf16 rounds results and cotangents once each.
        for (found, expected) in run(DType::BF16).iter().zip(&expected) {
            assert_close("bf16", found, expected, 1e-2);
        }
    }
}

#[test]
fn gradients_in_f64() {
    let tensors =
        [randn(1, &[3, 8], DType::F64), randn(2, &[3, 8], DType::F64), randn(3, &[8], DType::F64)];
    for norm_before_gate in [false, true] {
        let options = RmsNormGatedOptions { group_size: Some(4), norm_before_gate, eps: 1e-5 };
        let norm = |t: &[Tensor]| Ok(vec![rms_norm_gated(&t[0], Some(&t[1]), &t[2], &options)?]);
        gradcheck(norm, &tensors, 1e-6);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let (x, weight) = (randn(1, &[3, 8], DType::F32), randn(2, &[8], DType::F32));
    let options = RmsNormGatedOptions { group_size: Some(3), ..Default::default() };
    let error = rms_norm_gated(&x, None, &weight, &options).unwrap_err();
    let expected = "rms_norm_gated: group_size is 3, valid is a divisor of d = 8";
    assert_eq!(error.to_string(), expected);
}
