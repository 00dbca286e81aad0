//! Dense oracles, gradients, bits and refusals.

use super::*;
use danaus_runtime::threads::with_threads;
use danaus_testkit::{assert_close, gradcheck, randn};

fn toeplitz_matrix(col: &Tensor, row: &Tensor) -> Tensor {
    let (col, row) = (col.to_vec::<f64>().unwrap(), row.to_vec::<f64>().unwrap());
    let entry = |i: usize, j: usize| if i >= j { col[i - j] } else { row[j - i] };
    let all = (0..col.len()).flat_map(|i| (0..row.len()).map(move |j| (i, j)));
    let all: Vec<f64> = all.map(|(i, j)| entry(i, j)).collect();
    Tensor::from_vec(all, [col.len(), row.len()], &Device::Cpu).unwrap()
}

/// L(v), from its definition.
fn lower(v: &Tensor) -> Tensor {
    toeplitz_matrix(v, &Tensor::zeros(v.shape(), DType::F64, &Device::Cpu).unwrap())
}

#[test]
fn products_match_the_dense_matrix() {
    for (rows, cols) in [(1, 1), (7, 5), (5, 7), (16, 16), (100, 33)] {
        let (col, row) = (randn(1, &[rows], DType::F64), randn(2, &[cols], DType::F64));
        let x = randn(3, &[4, cols], DType::F64);
        let dense = toeplitz_matrix(&col, &row);
        let expected = x.matmul(&dense.transpose(0, 1).unwrap()).unwrap();
        // bf16 rounds inputs (2^-9 each) and sums of `cols` terms.
        for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-5), (DType::BF16, 3e-2)] {
            let cast = |t: &Tensor| t.to_dtype(dtype).unwrap();
            let y = toeplitz(&cast(&x), &cast(&col), &cast(&row)).unwrap();
            assert_close(&format!("{rows} x {cols} {dtype}"), &y, &expected, tolerance);
        }
    }
}

#[test]
fn sums_of_triangular_products_match_the_dense_matrices() {
    for (rank, n) in [(1, 1), (2, 7), (3, 16), (2, 50)] {
        let (g, h) = (randn(1, &[rank, n], DType::F64), randn(2, &[rank, n], DType::F64));
        let x = randn(3, &[3, n], DType::F64);
        let mut expected = Tensor::zeros([3, n], DType::F64, &Device::Cpu).unwrap();
        for i in 0..rank {
            let (g, h) = (lower(&g.select(0, i).unwrap()), lower(&h.select(0, i).unwrap()));
            let term = x.matmul(&h).unwrap().matmul(&g.transpose(0, 1).unwrap()).unwrap();
            expected = expected.add(&term).unwrap();
        }
        for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-5), (DType::BF16, 3e-2)] {
            let cast = |t: &Tensor| t.to_dtype(dtype).unwrap();
            let y = toeplitz_like(&cast(&x), &cast(&g), &cast(&h)).unwrap();
            assert_close(&format!("rank {rank}, n {n}, {dtype}"), &y, &expected, tolerance);
        }
    }
}

#[test]
fn gradients_match_differences() {
    let inputs =
        [randn(1, &[2, 5], DType::F64), randn(2, &[7], DType::F64), randn(3, &[5], DType::F64)];
    gradcheck(|t| Ok(vec![toeplitz(&t[0], &t[1], &t[2])?]), &inputs, 1e-6);
    let inputs = [1, 2, 3].map(|seed| randn(seed, &[2, 6], DType::F64));
    gradcheck(|t| Ok(vec![toeplitz_like(&t[0], &t[1], &t[2])?]), &inputs, 1e-6);
}

#[test]
fn bits_do_not_depend_on_threads() {
    let inputs = [1, 2, 3].map(|seed| randn(seed, &[37, 24], DType::F32).tracked());
    let run = || {
        let y = toeplitz_like(&inputs[0], &inputs[1], &inputs[2]).unwrap();
        let grads = danaus_tensor::backward_with(&[(&y, &y.detach())]).unwrap();
        let all = inputs.iter().map(|leaf| grads.get(leaf).unwrap().to_vec::<f32>().unwrap());
        all.flatten().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(with_threads(1, run), with_threads(3, run));
}

#[test]
fn bad_arguments_are_refused_by_name() {
    let vector = |n: usize| randn(1, &[n], DType::F32);
    let error = toeplitz(&vector(4), &vector(3), &vector(5)).unwrap_err().to_string();
    assert!(error.contains("row"), "{error}");
    let error = toeplitz_like(&vector(4), &vector(4), &vector(4)).unwrap_err().to_string();
    assert!(error.contains("[rank, 4]"), "{error}");
    let double = randn(1, &[5], DType::F64);
    let error = toeplitz(&vector(5), &double, &vector(5)).unwrap_err().to_string();
    assert!(error.contains("col"), "{error}");
}
