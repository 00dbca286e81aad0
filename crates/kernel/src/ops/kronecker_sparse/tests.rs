//! Oracles, identities, gradients, bits and refusals.

use super::*;
use danaus_runtime::simd::{Isa, with_isa};
use danaus_runtime::threads::with_threads;
use danaus_tensor::{Device, backward_with};
use danaus_testkit::{assert_close, golden, gradcheck, max_relative_error, randn};

/// The factor as a dense matrix, from the definition of its pattern.
fn dense_factor(pattern: Pattern, values: &Tensor) -> Tensor {
    let Pattern { a, b, c, d } = pattern;
    let values = values.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
    let (rows, cols) = (pattern.rows(), pattern.cols());
    let mut dense = vec![0.0; rows * cols];
    for (i, j) in (0..a).flat_map(|i| (0..d).map(move |j| (i, j))) {
        for (p, q) in (0..b).flat_map(|p| (0..c).map(move |q| (p, q))) {
            let (row, col) = ((i * b + p) * d + j, (i * c + q) * d + j);
            dense[row * cols + col] = values[((i * d + j) * b + p) * c + q];
        }
    }
    Tensor::from_vec(dense, [rows, cols], &Device::Cpu).unwrap()
}

fn values(seed: u64, pattern: Pattern, dtype: DType) -> Tensor {
    let fan = (pattern.c as f64).sqrt();
    let shape = [pattern.blocks(), pattern.b, pattern.c];
    randn(seed, &shape, DType::F64).affine(1.0 / fan, 0.0).unwrap().to_dtype(dtype).unwrap()
}

/// Products that take every path: merged and single butterflies in both directions, odd blocks,
/// grouped products with d = 1 at either end and none, and a change between the paths.
fn products() -> Vec<Vec<Pattern>> {
    let butterfly = |n: usize, strides: &[usize]| {
        strides.iter().map(|&stride| Pattern::butterfly(n, stride)).collect::<Vec<_>>()
    };
    vec![
        butterfly(64, &[1, 2, 4, 8, 16, 32]),
        butterfly(64, &[32, 16, 8, 4, 2, 1]),
        butterfly(32, &[16, 1, 2, 8, 4, 2, 1]),
        butterfly(2, &[1]),
        vec![Pattern::new(2, 3, 5, 4), Pattern::new(3, 4, 4, 2), Pattern::new(1, 1, 24, 1)],
        vec![Pattern::new(4, 8, 9, 1), Pattern::new(1, 10, 8, 4)],
        vec![Pattern::new(1, 12, 12, 3), Pattern::new(3, 9, 12, 1)],
        vec![Pattern::new(2, 8, 8, 3), Pattern::new(3, 16, 16, 1), Pattern::new(2, 10, 12, 2)],
        vec![Pattern::new(8, 2, 2, 1), Pattern::new(1, 16, 16, 1), Pattern::new(1, 2, 2, 8)],
    ]
}

fn steps(patterns: &[Pattern]) -> Vec<Step> {
    patterns.iter().enumerate().map(|(source, &pattern)| Step::new(pattern, source)).collect()
}

#[test]
fn products_match_dense_factors_in_every_dtype() {
    // f32: a few roundings of sums with unit variance; bf16: one rounding (2^-9) a factor and
    // result.
    for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-5), (DType::BF16, 2e-2)] {
        for (case, patterns) in products().iter().enumerate() {
            for rows in [1, 5, 33, 70] {
                let x = randn(7, &[rows, patterns[0].cols()], DType::F64).to_dtype(dtype).unwrap();
                let mut y = x.to_dtype(DType::F64).unwrap();
                let mut sources = Vec::new();
                for (seed, &pattern) in patterns.iter().enumerate() {
                    let source = values(seed as u64, pattern, dtype);
                    let dense = dense_factor(pattern, &source);
                    y = y.matmul(&dense.transpose(0, 1).unwrap()).unwrap();
                    sources.push(source);
                }
                let sources: Vec<&Tensor> = sources.iter().collect();
                let found = packed(&x, &steps(patterns), &sources).unwrap();
                assert_close(&format!("case {case}, {dtype}, {rows} rows"), &found, &y, tolerance);
            }
        }
    }
}

#[test]
fn transposed_products_are_adjoint() {
    for (case, patterns) in products().iter().enumerate() {
        for dtype in [DType::F64, DType::F32] {
            let sources: Vec<Tensor> = patterns
                .iter()
                .enumerate()
                .map(|(seed, &pattern)| values(seed as u64, pattern, dtype))
                .collect();
            let sources: Vec<&Tensor> = sources.iter().collect();
            let forward = steps(patterns);
            let back: Vec<Step> = forward.iter().rev().map(|step| step.flipped()).collect();
            let x = randn(8, &[3, forward[0].cols()], DType::F64).to_dtype(dtype).unwrap();
            let y = randn(9, &[3, back[0].cols()], DType::F64).to_dtype(dtype).unwrap();
            let right = packed(&x, &forward, &sources).unwrap().mul(&y).unwrap().sum_all().unwrap();
            let left = packed(&y, &back, &sources).unwrap().mul(&x).unwrap().sum_all().unwrap();
            let (left, right) = (left.to_scalar().unwrap(), right.to_scalar().unwrap());
            let tolerance = if dtype == DType::F64 { 1e-11 } else { 2e-4 };
            assert!((left - right).abs() <= tolerance * left.abs().max(1.0), "case {case} {dtype}");
        }
    }
}

#[test]
fn gradients_match_differences() {
    for patterns in products() {
        if patterns[0].cols() > 40 {
            continue;
        }
        let mut inputs = vec![randn(1, &[2, patterns[0].cols()], DType::F64)];
        for (seed, &pattern) in patterns.iter().enumerate() {
            inputs.push(values(seed as u64 + 2, pattern, DType::F64));
        }
        let product = |t: &[Tensor]| {
            let sources: Vec<&Tensor> = t[1..].iter().collect();
            Ok(vec![packed(&t[0], &steps(&patterns), &sources)?])
        };
        gradcheck(product, &inputs, 1e-6);
    }
}

#[test]
fn gradients_of_the_fast_paths_match_f64() {
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 3e-2)] {
        for (case, patterns) in products().iter().enumerate() {
            let run = |dtype: DType, masters: DType| {
                let x = randn(7, &[70, patterns[0].cols()], DType::F64);
                // What bf16 cannot hold is no error of the kernel.
                let x = x.to_dtype(DType::BF16).unwrap().to_dtype(dtype).unwrap().tracked();
                let sources: Vec<Tensor> = patterns
                    .iter()
                    .enumerate()
                    .map(|(seed, &pattern)| {
                        let values = values(seed as u64, pattern, DType::BF16);
                        values.to_dtype(masters).unwrap().tracked()
                    })
                    .collect();
                let borrowed: Vec<&Tensor> = sources.iter().collect();
                let y = packed(&x, &steps(patterns), &borrowed).unwrap();
                let dy = randn(11, y.dims(), DType::BF16).to_dtype(dtype).unwrap();
                let grads = backward_with(&[(&y, &dy)]).unwrap();
                let all = std::iter::once(&x).chain(&sources);
                all.map(|leaf| grads.get(leaf).unwrap().clone()).collect::<Vec<_>>()
            };
            let exact = run(DType::F64, DType::F64);
            let masters = if dtype == DType::BF16 { DType::F32 } else { dtype };
            for (position, (found, exact)) in run(dtype, masters).iter().zip(&exact).enumerate() {
                let error = max_relative_error(found, exact);
                assert!(error <= tolerance, "case {case}, input {position}, {dtype}: {error:e}");
            }
        }
    }
}

#[test]
fn complex_products_are_four_real_ones_and_have_conjugate_gradients() {
    let patterns = [Pattern::new(2, 3, 2, 2), Pattern::new(1, 8, 12, 1)];
    let complex = |seed: u64, shape: &[usize]| {
        let part = |seed| randn(seed, shape, DType::F64);
        Tensor::complex(&part(seed), &part(seed + 50)).unwrap()
    };
    let x = complex(1, &[3, 8]).tracked();
    let shape = |pattern: Pattern| [pattern.blocks(), pattern.b, pattern.c];
    let w: Vec<Tensor> =
        (0..2).map(|i| complex(2 + i, &shape(patterns[i as usize])).tracked()).collect();
    let y = packed(&x, &steps(&patterns), &[&w[0], &w[1]]).unwrap();
    let dense = |part: &dyn Fn(&Tensor) -> Tensor, i: usize| {
        dense_factor(patterns[i], &part(&w[i].detach()))
    };
    let full = |i: usize| {
        let (re, im) = (|t: &Tensor| t.real().unwrap(), |t: &Tensor| t.imag().unwrap());
        Tensor::complex(&dense(&re, i), &dense(&im, i)).unwrap()
    };
    let matrix = full(1).matmul(&full(0)).unwrap();
    let expected = x.detach().matmul(&matrix.transpose(0, 1).unwrap()).unwrap();
    let close = |what: &str, found: &Tensor, expected: &Tensor| {
        assert_close(what, &found.real().unwrap(), &expected.real().unwrap(), 1e-13);
        assert_close(what, &found.imag().unwrap(), &expected.imag().unwrap(), 1e-13);
    };
    close("y", &y.detach(), &expected);
    let dy = complex(9, &[3, 8]);
    let grads = backward_with(&[(&y, &dy)]).unwrap();
    close("dx", grads.get(&x).unwrap(), &dy.matmul(&matrix.conj().unwrap()).unwrap());
}

#[test]
fn the_layouts_of_the_field_match_their_golden_files() {
    let file = golden("18-butterfly", "multiply");
    for case in 0..7 {
        let get = |name: &str| {
            let name = format!("c{case}.{name}");
            match file.find(&name) {
                Some(tensor) => tensor.clone(),
                None => {
                    let part = |end: &str| file.get(&format!("{name}.{end}")).clone();
                    Tensor::complex(&part("re"), &part("im")).unwrap()
                }
            }
        };
        let cfg = get("cfg").to_vec::<i64>().unwrap();
        let (x, twiddle) = (get("x").tracked(), get("twiddle").tracked());
        let y = butterfly(&x, &twiddle, cfg[0] == 1, cfg[1] as usize).unwrap();
        let grads = backward_with(&[(&y, &get("gy"))]).unwrap();
        let pairs = [
            (y.detach(), "y"),
            (grads.get(&x).unwrap().clone(), "dx"),
            (grads.get(&twiddle).unwrap().clone(), "dtwiddle"),
        ];
        for (found, name) in pairs {
            let expected = get(name);
            let parts = |t: &Tensor| match t.dtype().is_complex() {
                true => vec![t.real().unwrap(), t.imag().unwrap()],
                false => vec![t.clone()],
            };
            for (found, expected) in parts(&found).iter().zip(parts(&expected)) {
                assert_close(&format!("c{case}.{name}"), found, &expected, 1e-12);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads_or_on_the_rest_of_the_batch() {
    for patterns in products() {
        let sources: Vec<Tensor> = patterns
            .iter()
            .enumerate()
            .map(|(seed, &pattern)| values(seed as u64, pattern, DType::F32).tracked())
            .collect();
        let sources: Vec<&Tensor> = sources.iter().collect();
        let x = randn(5, &[200, patterns[0].cols()], DType::F32).tracked();
        let run = || {
            let y = packed(&x, &steps(&patterns), &sources).unwrap();
            let grads = backward_with(&[(&y, &y.detach())]).unwrap();
            let mut bits = y.to_vec::<f32>().unwrap();
            for leaf in std::iter::once(&&x).chain(&sources) {
                bits.extend(grads.get(leaf).unwrap().to_vec::<f32>().unwrap());
            }
            bits.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let one = with_threads(1, run);
        assert_eq!(one, with_threads(3, run));
        let y = packed(&x, &steps(&patterns), &sources).unwrap();
        let some = packed(&x.narrow(0, 60, 7).unwrap(), &steps(&patterns), &sources).unwrap();
        assert_eq!(
            y.narrow(0, 60, 7).unwrap().to_vec::<f32>().unwrap(),
            some.to_vec::<f32>().unwrap()
        );
    }
}

#[test]
fn every_instruction_set_agrees() {
    for (case, patterns) in products().iter().enumerate() {
        let sources: Vec<Tensor> = patterns
            .iter()
            .enumerate()
            .map(|(seed, &pattern)| values(seed as u64, pattern, DType::F32))
            .collect();
        let sources: Vec<&Tensor> = sources.iter().collect();
        let x = randn(5, &[37, patterns[0].cols()], DType::F32);
        let run = || packed(&x, &steps(patterns), &sources).unwrap();
        let expected = run();
        for isa in Isa::ALL {
            if let Some(found) = with_isa(isa, run) {
                assert_close(&format!("case {case}, {}", isa.name()), &found, &expected, 1e-5);
            }
        }
    }
}

#[test]
fn merged_factors_have_the_bits_of_single_ones() {
    let strides = [1usize, 2, 4, 8, 16, 32];
    let sources: Vec<Tensor> = (0..6)
        .map(|i| values(i, Pattern::butterfly(64, strides[i as usize]), DType::F32))
        .collect();
    let x = randn(5, &[40, 64], DType::F32);
    let patterns = strides.map(|stride| Pattern::butterfly(64, stride));
    let borrowed: Vec<&Tensor> = sources.iter().collect();
    let merged = packed(&x, &steps(&patterns), &borrowed).unwrap();
    let mut single = x;
    for (pattern, values) in patterns.iter().zip(&sources) {
        let factor = Factor { pattern: *pattern, values, transposed: false };
        single = kronecker_sparse(&single, &[factor]).unwrap();
    }
    assert_eq!(merged.to_vec::<f32>().unwrap(), single.to_vec::<f32>().unwrap());
}

#[test]
fn bad_arguments_are_refused_by_name() {
    let x = randn(1, &[2, 8], DType::F32);
    let w = values(1, Pattern::new(4, 2, 2, 1), DType::F32);
    let refuse = |x: &Tensor, patterns: &[Pattern], w: &Tensor, part: &str| {
        let sources = vec![w; patterns.len()];
        let message = packed(x, &steps(patterns), &sources).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refuse(&x, &[Pattern::new(2, 2, 2, 1)], &w, "one with 8 columns");
    refuse(&x, &[Pattern::new(4, 2, 2, 1), Pattern::new(3, 2, 2, 1)], &w, "pattern 1");
    refuse(&x, &[Pattern::new(0, 2, 2, 1)], &w, "at least 1");
    refuse(&x, &[Pattern::new(1, 8, 8, 1)], &w, "at least 64 elements");
    refuse(&x.to_dtype(DType::F64).unwrap(), &[Pattern::new(4, 2, 2, 1)], &w, "f64 as x");
    let three = |shape: &[usize]| randn(1, shape, DType::F32);
    let monarch_error = monarch(&x, &three(&[2, 2, 4]), &three(&[3, 2, 1])).unwrap_err();
    assert!(monarch_error.to_string().contains("l r = 4"), "{monarch_error}");
    let twiddle = three(&[1, 1, 3, 3, 2, 2]);
    let shape_error = butterfly(&three(&[2, 1, 8]), &twiddle, true, 8).unwrap_err();
    assert!(shape_error.to_string().contains("2^(log_n - 1)"), "{shape_error}");
    let twiddle = three(&[1, 1, 3, 4, 2, 2]);
    let size_error = butterfly(&three(&[2, 1, 8]), &twiddle, true, 9).unwrap_err();
    assert!(size_error.to_string().contains("1..=8"), "{size_error}");
}
