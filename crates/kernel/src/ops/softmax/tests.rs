//! Both forms against the f64 reference, on every instruction set and with extreme logits.

use super::*;
use danaus_runtime::simd::{Isa, with_isa};
use danaus_runtime::threads;
use danaus_tensor::{DType, Device};
use danaus_testkit::{gradcheck, randn};
use half::bf16;

fn inputs(len: usize, scale: f64) -> Vec<f64> {
    (0..len).map(|i| scale * (((i * 7919) % 1009) as f64 / 504.5 - 1.0)).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn f32_equals_f64() {
    for (rows, cols) in [(1, 1), (3, 7), (5, 16), (17, 65), (2, 1000), (40, 512)] {
        let x: Vec<f32> = inputs(rows * cols, 9.0).iter().map(|&x| x as f32).collect();
        let dy: Vec<f32> = inputs(rows * cols, 1.0).iter().rev().map(|&x| x as f32).collect();
        for form in [Form::Softmax, Form::LogSoftmax] {
            let mut exact = vec![0.0; x.len()];
            reference::forward(form, cols, &wide(&x), &mut exact);
            let mut exact_dx = vec![0.0; x.len()];
            reference::backward(form, cols, (&exact, &wide(&dy)), &mut exact_dx);
            for isa in Isa::ALL {
                let (mut y, mut dx) = (vec![0f32; x.len()], vec![0f32; x.len()]);
                let ran = with_isa(isa, || {
                    cpu::forward(form, cols, &x, &mut y);
                    cpu::backward(form, cols, (&y, &dy), &mut dx);
                });
                if ran.is_none() {
                    continue;
                }
                // A few roundings relatively; differences of the logits and sums up to 20 absolutely.
                for (got, exact) in y.iter().zip(&exact).chain(dx.iter().zip(&exact_dx)) {
                    let error = (f64::from(*got) - exact).abs();
                    assert!(error < 3e-6 * exact.abs() + 1e-6, "{isa:?} {form:?}: {got} {exact}");
                }
            }
        }
    }
}

#[test]
fn bf16_rounds_once() {
    let (rows, cols) = (9, 75);
    let x: Vec<bf16> = inputs(rows * cols, 6.0).iter().map(|&x| bf16::from_f64(x)).collect();
    let x64: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
    let mut exact = vec![0.0; x.len()];
    reference::forward(Form::Softmax, cols, &x64, &mut exact);
    for isa in Isa::ALL {
        let mut y = vec![bf16::ZERO; x.len()];
        if with_isa(isa, || cpu::forward(Form::Softmax, cols, &x, &mut y)).is_none() {
            continue;
        }
        for (got, exact) in y.iter().zip(&exact) {
            // Half a unit of the 8-bit significand, and the f32 error before it.
            assert!((got.to_f64() - exact).abs() <= exact / 255.0, "{isa:?}: {got} {exact}");
        }
    }
}

#[test]
fn extreme_logits() {
    let infinity = f32::INFINITY;
    for isa in Isa::ALL {
        let x = [1e4, -1e4, -infinity, 0.0, -infinity, -infinity, f32::NAN, 1.0, infinity, 1.0];
        let mut y = [9f32; 10];
        if with_isa(isa, || cpu::forward(Form::Softmax, 2, &x, &mut y)).is_none() {
            continue;
        }
        assert_eq!(y[..4], [1.0, 0.0, 0.0, 1.0], "{isa:?}");
        assert!(y[4..].iter().all(|y| y.is_nan()), "{isa:?} {y:?}");
        let mut log = [9f32; 4];
        with_isa(isa, || cpu::forward(Form::LogSoftmax, 2, &x[..4], &mut log));
        assert_eq!(log, [0.0, -2e4, -infinity, 0.0], "{isa:?}");
    }
}

#[test]
fn same_bits_on_any_number_of_threads() {
    let (rows, cols) = (300, 129);
    let x: Vec<f32> = inputs(rows * cols, 5.0).iter().map(|&x| x as f32).collect();
    let run = |n| {
        let mut y = vec![0f32; x.len()];
        threads::with_threads(n, || cpu::forward(Form::Softmax, cols, &x, &mut y));
        y
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn gradients_through_the_tape() -> Result<()> {
    let x = randn(1, &[2, 3, 5], DType::F64);
    gradcheck(|t| Ok(vec![softmax(&t[0])?]), std::slice::from_ref(&x), 1e-7);
    gradcheck(|t| Ok(vec![log_softmax(&t[0])?]), std::slice::from_ref(&x), 1e-7);
    let empty = Tensor::zeros([3, 0], DType::F64, &Device::Cpu)?;
    assert_eq!(softmax(&empty)?.dims(), [3, 0]);
    Ok(())
}
