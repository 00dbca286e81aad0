//! Both norms against the f64 reference, which is checked by difference quotients.

use super::cpu::{self, Forward};
use super::cpu_backward::{self, Backward};
use super::*;
use danaus_runtime::simd::{Isa, Lane, with_isa};
use danaus_runtime::threads;
use danaus_tensor::{DType, backward_with};
use danaus_testkit::{assert_close, gradcheck, randn};
use half::bf16;

fn values(len: usize, seed: usize) -> Vec<f64> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1001.5 - 1.0).collect()
}

fn narrow<T: Lane>(x: &[f64]) -> Vec<T> {
    x.iter().map(|&x| T::round(x as f32)).collect()
}

fn wide<T: Lane>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| f64::from(x.widen())).collect()
}

fn shape(kind: Kind, cols: usize) -> Norm {
    Norm { kind, eps: 1e-5, cols }
}

/// Directional derivatives of the reference for every input.
#[test]
fn reference_gradients() {
    let (rows, cols) = (3, 11);
    for kind in [Kind::Layer, Kind::Rms] {
        let norm = shape(kind, cols);
        let (h, dy) = (values(rows * cols, 1), values(rows * cols, 2));
        let (weight, bias) = (values(cols, 3), values(cols, 4));
        let loss = |h: &[f64], weight: &[f64], bias: &[f64]| -> f64 {
            let mut y = vec![0.0; h.len()];
            reference::forward(&norm, h, Some(weight), Some(bias), &mut y);
            y.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        let mut dh = vec![0.0; h.len()];
        let (mut dweight, mut dbias) = (vec![0.0; cols], vec![0.0; cols]);
        let sums = (&mut dweight[..], &mut dbias[..]);
        reference::backward(&norm, (&h, &dy), Some(&weight), &mut dh, sums);
        let step = 1e-6;
        let quotient = |input: usize, at: usize| {
            let at_step = |step: f64| {
                let mut inputs = [h.clone(), weight.clone(), bias.clone()];
                inputs[input][at] += step;
                loss(&inputs[0], &inputs[1], &inputs[2])
            };
            (at_step(step) - at_step(-step)) / (2.0 * step)
        };
        for (input, grad) in [dh, dweight, dbias].iter().enumerate() {
            for (at, grad) in grad.iter().enumerate() {
                let numeric = quotient(input, at);
                assert!((grad - numeric).abs() < 1e-7, "{kind:?} {input} {at}: {grad} {numeric}");
            }
        }
    }
}

/// One shape in one storage type: fused forward and backward against the f64 reference.
fn compare<T: Lane>(kind: Kind, rows: usize, cols: usize, tolerance: f64) {
    let norm = shape(kind, cols);
    let n = rows * cols;
    let (x, residual): (Vec<T>, Vec<T>) = (narrow(&values(n, 1)), narrow(&values(n, 5)));
    let (dy, dsum): (Vec<T>, Vec<T>) = (narrow(&values(n, 2)), narrow(&values(n, 6)));
    let (weight, bias): (Vec<f32>, Vec<f32>) = (narrow(&values(cols, 3)), narrow(&values(cols, 4)));
    for isa in Isa::ALL {
        let (mut y, mut sum, mut dh) = (x.clone(), x.clone(), x.clone());
        let (mut dweight, mut dbias) = (vec![9f32; cols], vec![9f32; cols]);
        let ran = with_isa(isa, || {
            let args = Forward {
                norm,
                x: &x,
                residual: Some(&residual),
                weight: Some(&weight),
                bias: Some(&bias),
            };
            cpu::forward(&args, &mut y, Some(&mut sum));
            let args =
                Backward { norm, h: &sum, dy: &dy, dsum: Some(&dsum), weight: Some(&weight) };
            cpu_backward::backward(&args, &mut dh, (&mut dweight, &mut dbias));
        });
        if ran.is_none() {
            continue;
        }
        for i in 0..n {
            assert_eq!(sum[i].widen(), T::round(x[i].widen() + residual[i].widen()).widen());
        }
        let (h, weight, bias) = (wide(&sum), wide(&weight), wide(&bias));
        let mut exact = vec![0.0; n];
        reference::forward(&norm, &h, Some(&weight), Some(&bias), &mut exact);
        let mut exact_dh = vec![0.0; n];
        let (mut exact_dw, mut exact_db) = (vec![0.0; cols], vec![0.0; cols]);
        let sums = (&mut exact_dw[..], &mut exact_db[..]);
        reference::backward(&norm, (&h, &wide(&dy)), Some(&weight), &mut exact_dh, sums);
        exact_dh.iter_mut().zip(wide(&dsum)).for_each(|(dh, more)| *dh += more);
        let close = |what: &str, got: &[f64], exact: &[f64], tolerance: f64| {
            for (got, exact) in got.iter().zip(exact) {
                let error = (got - exact).abs();
                assert!(
                    error <= tolerance * (1.0 + exact.abs()),
                    "{isa:?} {kind:?} {rows}x{cols} {what}: {got} instead of {exact}"
                );
            }
        };
        close("y", &wide(&y), &exact, tolerance);
        close("dh", &wide(&dh), &exact_dh, tolerance);
        // Column sums stay f32 whatever the storage; their error grows with the rows.
        close("dweight", &wide(&dweight), &exact_dw, 4e-6 * rows as f64);
        close("dbias", &wide(&dbias), &exact_db, 4e-6 * rows as f64);
    }
}

#[test]
fn kernels_equal_the_reference() {
    for kind in [Kind::Layer, Kind::Rms] {
        for (rows, cols) in [(1, 2), (3, 5), (7, 16), (130, 67), (5, 768), (2, 4099)] {
            // A dozen f32 roundings of values up to a few units (1 / deviation reaches 30 for two
            // columns); bf16 rounds the result to 8 bits.
            compare::<f32>(kind, rows, cols, if cols == 2 { 1e-4 } else { 4e-6 });
            compare::<bf16>(kind, rows, cols, 1.0 / 256.0);
        }
    }
}

/// A mean of 1000 deviations must not spoil the variance.
#[test]
fn large_mean() {
    let cols = 512;
    let x: Vec<f32> = values(cols, 1).iter().map(|x| (1000.0 + x) as f32).collect();
    let norm = shape(Kind::Layer, cols);
    let mut exact = vec![0.0; cols];
    reference::forward(&norm, &wide(&x), None, None, &mut exact);
    for isa in Isa::ALL {
        let mut y = vec![0f32; cols];
        let args = Forward { norm, x: &x, residual: None, weight: None, bias: None };
        if with_isa(isa, || cpu::forward(&args, &mut y, None)).is_none() {
            continue;
        }
        for (got, exact) in y.iter().zip(&exact) {
            // The mean is rounded to 6e-5 / 2, a ten-thousandth of the deviation.
            assert!((f64::from(*got) - exact).abs() < 2e-4, "{isa:?}: {got} {exact}");
        }
    }
}

/// A NaN in a weight reaches its column only; a NaN in x reaches its row only.
#[test]
fn nan_stays_where_it_belongs() {
    let (rows, cols) = (3, 20);
    let mut x: Vec<f32> = narrow(&values(rows * cols, 1));
    x[cols + 3] = f32::NAN;
    let mut weight = vec![1f32; cols];
    weight[18] = f32::NAN;
    for kind in [Kind::Layer, Kind::Rms] {
        for isa in Isa::ALL {
            let mut y = vec![0f32; rows * cols];
            let args = Forward {
                norm: shape(kind, cols),
                x: &x,
                residual: None,
                weight: Some(&weight),
                bias: None,
            };
            if with_isa(isa, || cpu::forward(&args, &mut y, None)).is_none() {
                continue;
            }
            for (i, y) in y.iter().enumerate() {
                assert_eq!(y.is_nan(), i / cols == 1 || i % cols == 18, "{isa:?} {kind:?} {i}");
            }
        }
    }
}

#[test]
fn same_bits_on_any_number_of_threads() {
    let (rows, cols) = (700, 96);
    let (h, dy): (Vec<f32>, Vec<f32>) =
        (narrow(&values(rows * cols, 1)), narrow(&values(rows * cols, 2)));
    let run = |n| {
        let (mut dh, mut dw, mut db) = (h.clone(), vec![0f32; cols], vec![0f32; cols]);
        let args =
            Backward { norm: shape(Kind::Layer, cols), h: &h, dy: &dy, dsum: None, weight: None };
        threads::with_threads(n, || {
            cpu_backward::backward(&args, &mut dh, (&mut dw, &mut db));
        });
        (dh, dw, db)
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn gradients_through_the_tape() {
    let (x, residual) = (randn(1, &[2, 3, 6], DType::F64), randn(2, &[2, 3, 6], DType::F64));
    let (weight, bias) = (randn(3, &[6], DType::F64), randn(4, &[6], DType::F64));
    for kind in [Kind::Layer, Kind::Rms] {
        gradcheck(
            |t| {
                let affine = Affine { weight: Some(&t[2]), bias: Some(&t[3]) };
                let (y, sum) = add_norm(kind, (&t[0], &t[1]), affine, 1e-3)?;
                Ok(vec![y, sum])
            },
            &[x.clone(), residual.clone(), weight.clone(), bias.clone()],
            1e-6,
        );
        gradcheck(
            |t| {
                let affine = Affine { weight: Some(&t[1]), bias: None };
                Ok(vec![norm(kind, &t[0], affine, 1e-3)?])
            },
            &[x.clone(), weight.clone()],
            1e-6,
        );
    }
}

/// bf16 rows with f32 parameters: gradients come back in the dtype of each input.
#[test]
fn mixed_precision() -> Result<()> {
    let x = randn(1, &[5, 40], DType::BF16).tracked();
    let weight = randn(2, &[40], DType::F32).tracked();
    let affine = Affine { weight: Some(&weight), bias: None };
    let y = rms_norm(&x, affine, 1e-5)?;
    let wide = |t: &Tensor| t.detach().to_dtype(DType::F64);
    let (x64, weight64) = (wide(&x)?.tracked(), wide(&weight)?.tracked());
    let affine = Affine { weight: Some(&weight64), bias: None };
    let exact = rms_norm(&x64, affine, 1e-5)?;
    assert_close("y", &y, &exact, 1.0 / 256.0);
    let dy = randn(3, &[5, 40], DType::BF16);
    let (found, expected) =
        (backward_with(&[(&y, &dy)])?, backward_with(&[(&exact, &wide(&dy)?)])?);
    for (leaf, exact) in [(&x, &x64), (&weight, &weight64)] {
        let (found, expected) = (found.get(leaf).unwrap(), expected.get(exact).unwrap());
        assert_eq!(found.dtype(), leaf.dtype());
        assert_close("gradient", found, expected, 1.0 / 256.0);
    }
    Ok(())
}

#[test]
fn bad_arguments_are_named() {
    let x = randn(1, &[2, 3], DType::F32);
    let message = |result: Result<Tensor>| result.map(|_| ()).unwrap_err().to_string();
    let affine = Affine { weight: Some(&x), bias: None };
    assert_eq!(
        message(rms_norm(&x, affine, 1e-5)),
        "rms_norm: weight has shape [2, 3], expected [3]"
    );
    assert_eq!(
        message(layer_norm(&x, Affine::default(), -1.0)),
        "layer_norm: eps is -1, valid is 0 or more"
    );
    let other = randn(1, &[3, 2], DType::F32);
    let added = add_rms_norm(&x, &other, Affine::default(), 1e-5).map(|pair| pair.0);
    assert_eq!(message(added), "rms_norm: residual has shape [3, 2], expected [2, 3]");
}
