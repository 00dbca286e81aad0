//! The layer against plain loops in f64, on every instruction set, and its gradients.

use super::*;
use danaus_runtime::simd::{Isa, with_isa};
use danaus_tensor::{Device, backward_with};
use danaus_testkit::{assert_close, gradcheck, max_relative_error, randn};

const KINDS: [Option<Activation>; 5] = [
    None,
    Some(Activation::Gelu),
    Some(Activation::GeluTanh),
    Some(Activation::Silu),
    Some(Activation::Relu),
];

fn wide(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).and_then(|tensor| tensor.to_vec()).unwrap()
}

#[test]
fn values_equal_plain_loops() -> Result<()> {
    let (rows, features, out) = (9, 33, 21);
    for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-6), (DType::BF16, 1.0 / 256.0)]
    {
        let x = randn(1, &[3, 3, features], dtype);
        let weight = randn(2, &[out, features], dtype).affine(0.2, 0.0)?;
        let (bias, residual) = (randn(3, &[out], DType::F32), randn(4, &[3, 3, out], dtype));
        for activation in KINDS {
            let exact = reference::forward(
                (&wide(&x), &wide(&weight)),
                features,
                Some(&wide(&bias)),
                activation,
                Some(&wide(&residual)),
            );
            assert_eq!(exact.len(), rows * out);
            let exact = Tensor::from_vec(exact, [3, 3, out], &Device::Cpu)?;
            for isa in Isa::ALL {
                let extras = Extras { bias: Some(&bias), activation, residual: Some(&residual) };
                // Sums of 33 products of ones: a few f32 roundings; bf16 rounds y to 8 bits.
                if let Some(y) = with_isa(isa, || linear(&x, &weight, extras)) {
                    assert_close(
                        &format!("{isa:?} {dtype} {activation:?}"),
                        &y?,
                        &exact,
                        tolerance,
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn gradients_through_the_tape() {
    let inputs = [
        randn(1, &[2, 3, 4], DType::F64),
        randn(2, &[5, 4], DType::F64),
        randn(3, &[5], DType::F64),
        randn(4, &[2, 3, 5], DType::F64),
    ];
    for activation in KINDS {
        gradcheck(
            |t| {
                let extras = Extras { bias: Some(&t[2]), activation, residual: Some(&t[3]) };
                Ok(vec![linear(&t[0], &t[1], extras)?])
            },
            &inputs,
            1e-6,
        );
        let extras = Extras { activation, ..Extras::default() };
        gradcheck(|t| Ok(vec![linear(&t[0], &t[1], extras)?]), &inputs[..2], 1e-6);
    }
}

/// f32 and bf16 gradients against f64, with more rows than one block of the column sums.
#[test]
fn low_precision_gradients() -> Result<()> {
    let shapes: [&[usize]; 3] = [&[900, 40], &[72, 40], &[72]];
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 1.0 / 64.0)] {
        for activation in [None, Some(Activation::Silu)] {
            let narrow = |i: usize| randn(i as u64, shapes[i], dtype).affine(0.3, 0.0);
            let leaves = [narrow(0)?, narrow(1)?, narrow(2)?].map(|t| t.tracked());
            let run = |t: &[Tensor]| {
                let extras = Extras { bias: Some(&t[2]), activation, residual: None };
                linear(&t[0], &t[1], extras)
            };
            let exact_leaves: Vec<Tensor> = leaves
                .iter()
                .map(|leaf| leaf.detach().to_dtype(DType::F64).map(|leaf| leaf.tracked()))
                .collect::<Result<_>>()?;
            let dy = randn(9, &[900, 72], dtype);
            let found = backward_with(&[(&run(&leaves)?, &dy)])?;
            let dy = dy.to_dtype(DType::F64)?;
            let expected = backward_with(&[(&run(&exact_leaves)?, &dy)])?;
            for (leaf, exact) in leaves.iter().zip(&exact_leaves) {
                let (found, expected) = (found.get(leaf).unwrap(), expected.get(exact).unwrap());
                let error = max_relative_error(found, expected);
                assert!(error < tolerance, "{dtype} {activation:?}: {error:e}");
            }
        }
    }
    Ok(())
}

#[test]
fn bad_arguments_are_named() {
    let (x, weight) = (randn(1, &[2, 3], DType::F32), randn(2, &[5, 4], DType::F32));
    let message = linear(&x, &weight, Extras::default()).map(|_| ()).unwrap_err().to_string();
    assert_eq!(message, "linear: weight has shape [5, 4], expected [out, 3]");
}
