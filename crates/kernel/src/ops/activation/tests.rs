//! Values and slopes against the f64 reference on every instruction set, gated and packed forms.

use super::*;
use danaus_runtime::simd::{Isa, with_isa};
use danaus_tensor::DType;
use danaus_testkit::{assert_close, gradcheck, randn};
use half::bf16;

fn grid() -> Vec<f32> {
    let mut x: Vec<f32> = (-4000..4003).map(|i| i as f32 * 0.0031).collect();
    x.extend([30.0, -30.0, 1e4, -1e4, 0.0, -0.0]);
    x
}

#[test]
fn error_function_of_the_reference() {
    // Abramowitz and Stegun, table 7.1, and erfc(4) = 1.541725790028e-8.
    for (x, exact) in [(0.5f64, 0.520_499_877_813_046_5), (2.0, 0.995_322_265_018_952_7)] {
        assert!((reference::erf(x) - exact).abs() < 1e-15);
        assert!((reference::erf(-x) + exact).abs() < 1e-15);
    }
    assert!((1.0 - reference::erf(4.0f64) - 1.541_725_790_028e-8).abs() < 1e-16);
}

/// The reference's slope is the derivative of its value.
#[test]
fn slopes_are_derivatives() {
    for activation in Activation::ALL {
        for i in -60..60 {
            let x = f64::from(i) * 0.1 + 0.03;
            let step = 1e-6;
            let value = |x: f64| reference::value_and_slope(activation, x).0;
            let numeric = (value(x + step) - value(x - step)) / (2.0 * step);
            let slope = reference::value_and_slope(activation, x).1;
            assert!((slope - numeric).abs() < 1e-8, "{activation:?} {x}: {slope} {numeric}");
        }
    }
}

#[test]
fn vectors_equal_the_reference() {
    let x = grid();
    let dy: Vec<f32> = (0..x.len()).map(|i| 0.5 + (i % 7) as f32).collect();
    for isa in Isa::ALL {
        for activation in Activation::ALL {
            let (mut y, mut dx) = (vec![0f32; x.len()], vec![0f32; x.len()]);
            let ran = with_isa(isa, || {
                cpu::forward(activation, &x, &mut y);
                cpu::backward(activation, &x, &dy, &mut dx);
            });
            if ran.is_none() {
                continue;
            }
            for i in 0..x.len() {
                let (value, slope) = reference::value_and_slope(activation, f64::from(x[i]));
                let slope = slope * f64::from(dy[i]);
                // Relative error of a few roundings; more where the exponent of a far (negligible) tail
                // was rounded; slopes cancel near their zeros.
                let (got, given) = (f64::from(y[i]), f64::from(dx[i]));
                assert!(
                    (got - value).abs() <= 4e-6 * value.abs() + 1e-12,
                    "{isa:?} {activation:?}({}) = {got}, not {value}",
                    x[i]
                );
                assert!(
                    (given - slope).abs() <= 2e-6 * slope.abs() + 2e-6,
                    "{isa:?} {activation:?}'({}) = {given}, not {slope}",
                    x[i]
                );
            }
        }
    }
}

#[test]
fn special_values() {
    let x = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -1e30];
    for isa in Isa::ALL {
        for activation in Activation::ALL {
            let mut y = [0f32; 4];
            if with_isa(isa, || cpu::forward(activation, &x, &mut y)).is_none() {
                continue;
            }
            assert!(y[0].is_nan(), "{isa:?} {activation:?}");
            assert_eq!(y[1..], [0.0, f32::INFINITY, 0.0], "{isa:?} {activation:?}");
        }
    }
}

/// Both gated forms, f64 against the definition and f32 and bf16 against f64, packed against split.
#[test]
fn gated_units() {
    let (rows, width) = (37, 45);
    let value = |i: usize, k: usize| ((i * 2_654_435 + k * 97) % 1000) as f64 / 125.0 - 4.0;
    let packed: Vec<f64> = (0..rows * 2 * width).map(|i| value(i, 1)).collect();
    let dy: Vec<f64> = (0..rows * width).map(|i| value(i, 2)).collect();
    let half = |offset: usize| -> Vec<f64> {
        (0..rows * width).map(|i| packed[i / width * 2 * width + offset + i % width]).collect()
    };
    let (gate, up) = (half(0), half(width));
    for activation in [Activation::Silu, Activation::Gelu] {
        let n = rows * width;
        let (mut y, mut dgate, mut dup) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        cpu::gated_forward(activation, &gate, &up, &mut y);
        cpu::gated_backward(activation, (&gate, &up, &dy), (&mut dgate, &mut dup));
        let (mut y2, mut dpacked) = (vec![0.0; n], vec![0.0; 2 * n]);
        cpu::packed_forward(activation, width, &packed, &mut y2);
        cpu::packed_backward(activation, width, (&packed, &dy), &mut dpacked);
        assert_eq!(y, y2);
        for i in 0..n {
            let (f, slope) = reference::value_and_slope(activation, gate[i]);
            assert_eq!(y[i], f * up[i]);
            assert_eq!(dup[i], f * dy[i]);
            assert_eq!(dgate[i], slope * up[i] * dy[i]);
            let at = i / width * 2 * width + i % width;
            assert_eq!([dpacked[at], dpacked[at + width]], [dgate[i], dup[i]]);
        }
        packed_low_precision(activation, width, (&packed, &dy), (&y, &dpacked));
    }
}

fn packed_low_precision(
    activation: Activation,
    width: usize,
    (packed, dy): (&[f64], &[f64]),
    (y, dpacked): (&[f64], &[f64]),
) {
    let narrow = |x: &[f64]| -> Vec<bf16> { x.iter().map(|&x| bf16::from_f64(x)).collect() };
    for isa in Isa::ALL {
        let (mut out, mut grad) = (narrow(y), narrow(dpacked));
        out.fill(bf16::ZERO);
        grad.fill(bf16::ZERO);
        let ran = with_isa(isa, || {
            cpu::packed_forward(activation, width, &narrow(packed), &mut out);
            cpu::packed_backward(activation, width, (&narrow(packed), &narrow(dy)), &mut grad);
        });
        if ran.is_none() {
            continue;
        }
        // Every input was rounded to 8 bits, at most 4 of them enter, slopes reach 1.1.
        for (got, exact) in out.iter().zip(y).chain(grad.iter().zip(dpacked)) {
            let error = (got.to_f64() - exact).abs();
            assert!(error < 0.02 * exact.abs() + 0.05, "{isa:?} {activation:?}: {got} {exact}");
        }
    }
}

#[test]
fn gradients_through_the_tape() {
    let (gate, up) = (randn(1, &[3, 8], DType::F64), randn(2, &[3, 8], DType::F64));
    for kind in [Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
        gradcheck(|t| Ok(vec![activation(kind, &t[0])?]), std::slice::from_ref(&gate), 1e-7);
        gradcheck(|t| Ok(vec![gated(kind, &t[0], &t[1])?]), &[gate.clone(), up.clone()], 1e-7);
        gradcheck(|t| Ok(vec![gated_packed(kind, &t[0])?]), std::slice::from_ref(&gate), 1e-7);
    }
}

/// A transposed input gives the transposed result; halves of a packed tensor are gate and up.
#[test]
fn views_and_packing() -> Result<()> {
    let x = randn(3, &[6, 10], DType::F32);
    let turned = silu(&x.transpose(0, 1)?)?.transpose(0, 1)?;
    assert_close("transposed", &turned, &silu(&x)?, 0.0);
    let split = swiglu(&x.narrow(1, 0, 5)?, &x.narrow(1, 5, 5)?)?;
    assert_close("packed", &gated_packed(Activation::Silu, &x)?, &split, 0.0);
    Ok(())
}

#[test]
fn bad_arguments_are_named() {
    let message = |result: Result<Tensor>| result.map(|_| ()).unwrap_err().to_string();
    let (x, y) = (randn(1, &[2, 3], DType::F32), randn(1, &[3, 2], DType::F32));
    assert_eq!(message(swiglu(&x, &y)), "swiglu: up has shape [3, 2], expected [2, 3]");
    let half = randn(1, &[2, 3], DType::F16);
    assert!(message(gelu(&half)).starts_with("gelu: x has dtype f16, expected f64, f32 or bf16"));
    assert!(message(gated_packed(Activation::Silu, &x)).contains("an even last dimension"));
}
