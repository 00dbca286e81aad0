//! Definitions, identities, gradients, refusals.

use super::*;
use danaus_testkit::{assert_close, gradcheck, randn};

/// A as a dense matrix.
fn operator(n: usize, [sub, diag, sup, corners]: [&Tensor; 4]) -> Tensor {
    let get = |t: &Tensor| t.to_vec::<f64>().unwrap();
    let (sub, diag, sup, corners) = (get(sub), get(diag), get(sup), get(corners));
    let mut all = vec![0.0; n * n];
    for i in 0..n {
        all[i * n + i] += diag[i];
        if i + 1 < n {
            all[(i + 1) * n + i] += sub[i];
            all[i * n + i + 1] += sup[i];
        }
    }
    all[n - 1] += corners[0];
    all[(n - 1) * n] += corners[1];
    Tensor::from_vec(all, [n, n], &Device::Cpu).unwrap()
}

fn leaves(n: usize, rank: usize) -> [Tensor; 5] {
    [
        randn(1, &[rank, n], DType::F64),
        randn(2, &[n - 1], DType::F64).affine(0.5, 0.0).unwrap(),
        randn(3, &[n], DType::F64).affine(0.5, 0.0).unwrap(),
        randn(4, &[n - 1], DType::F64).affine(0.5, 0.0).unwrap(),
        randn(5, &[2], DType::F64),
    ]
}

#[test]
fn powers_follow_the_definition() {
    for (n, rank) in [(2, 1), (7, 3), (16, 2)] {
        let [v, sub, diag, sup, corners] = leaves(n, rank);
        let a = operator(n, [&sub, &diag, &sup, &corners]).transpose(0, 1).unwrap();
        let cast = |t: &Tensor, dtype: DType| t.to_dtype(dtype).unwrap();
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-4)] {
            let parts = [&v, &sub, &diag, &sup, &corners].map(|t| cast(t, dtype));
            let bands = Bands {
                sub: Some(&parts[1]),
                diag: Some(&parts[2]),
                sup: Some(&parts[3]),
                corners: Some(&parts[4]),
            };
            let k = krylov(&parts[0], bands).unwrap();
            let mut now = v.clone();
            for step in 0..n {
                let found = k.select(1, step).unwrap();
                assert_close(&format!("n {n} step {step} {dtype}"), &found, &now, tolerance);
                now = now.matmul(&a).unwrap();
            }
        }
    }
}

#[test]
fn stein_solves_its_equation() {
    for (rows, cols) in [(1, 1), (5, 8), (9, 4)] {
        let d = randn(1, &[rows, cols], DType::F64);
        let (a, b) = (randn(2, &[rows - 1], DType::F64), randn(3, &[cols - 1], DType::F64));
        let m = stein(&d, &a, &b).unwrap().to_vec::<f64>().unwrap();
        let (d, a, b) = (d.to_vec::<f64>().unwrap(), a.to_vec::<f64>(), b.to_vec::<f64>());
        let (a, b) = (a.unwrap(), b.unwrap());
        for at in 0..rows * cols {
            let (i, j) = (at / cols, at % cols);
            let shifted = match i > 0 && j > 0 {
                true => a[i - 1] * b[j - 1] * m[at - cols - 1],
                false => 0.0,
            };
            assert!((m[at] - shifted - d[at]).abs() < 1e-12);
        }
    }
}

#[test]
fn gradients_match_differences() {
    let all = |t: &[Tensor]| {
        let bands =
            Bands { sub: Some(&t[1]), diag: Some(&t[2]), sup: Some(&t[3]), corners: Some(&t[4]) };
        Ok(vec![krylov(&t[0], bands)?])
    };
    gradcheck(all, &leaves(5, 2), 1e-6);
    let one =
        |t: &[Tensor]| Ok(vec![krylov(&t[0], Bands { sub: Some(&t[1]), ..Bands::default() })?]);
    gradcheck(one, &leaves(5, 2)[..2], 1e-6);
    let inputs =
        [randn(1, &[5, 4], DType::F64), randn(2, &[4], DType::F64), randn(3, &[3], DType::F64)];
    gradcheck(|t| Ok(vec![stein(&t[0], &t[1], &t[2])?]), &inputs, 1e-6);
}

#[test]
fn overflow_and_wrong_shapes_are_refused_by_name() {
    let v = randn(1, &[1, 64], DType::F32);
    let large = Tensor::full(100.0f32, [63], &Device::Cpu).unwrap();
    let bands = Bands { sub: Some(&large), ..Bands::default() };
    let message = krylov(&v, bands).unwrap_err().to_string();
    assert!(message.contains("overflow"), "{message}");
    let bands = Bands { diag: Some(&large), ..Bands::default() };
    assert!(krylov(&v, bands).unwrap_err().to_string().contains("diag"));
    let d = randn(1, &[64, 64], DType::F32);
    assert!(stein(&d, &large, &large).unwrap_err().to_string().contains("overflow"));
    assert!(stein(&d, &v, &large).unwrap_err().to_string().contains("a"));
}
