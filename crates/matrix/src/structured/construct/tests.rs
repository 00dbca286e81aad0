//! Golden transforms, layers and permutations; identities; refusals.

use super::*;
use crate::structured::algebra::{Chain, Map};
use crate::structured::named;
use danaus_tensor::{DType, Device, Tensor, backward_with};
use danaus_testkit::{Golden, assert_close, golden, randn};

/// A tensor of a golden file, complex ones from their pair.
fn get(file: &Golden, name: &str) -> Tensor {
    match file.find(name) {
        Some(tensor) => tensor.clone(),
        None => {
            let part = |end: &str| file.get(&format!("{name}.{end}")).clone();
            Tensor::complex(&part("re"), &part("im")).unwrap()
        }
    }
}

fn close(what: &str, found: &Tensor, expected: &Tensor) {
    let parts = |t: &Tensor| match t.dtype().is_complex() {
        true => vec![t.real().unwrap(), t.imag().unwrap()],
        false => vec![t.detach()],
    };
    let (found, expected) = (parts(found), parts(expected));
    assert_eq!(found.len(), expected.len(), "{what}: real or complex");
    for (found, expected) in found.iter().zip(&expected) {
        let found = found.reshape(expected.shape()).unwrap();
        assert_close(what, &found, expected, 1e-12);
    }
}

fn perm(file: &Golden, name: &str) -> Vec<usize> {
    let ids = file.get(name).to_vec::<i64>().unwrap();
    ids.into_iter().map(|i| i as usize).collect()
}

fn single(twiddle: &Tensor, increasing: bool) -> Map {
    Map::Chain(Chain::butterfly(twiddle, increasing).unwrap())
}

const SYSTEM: &str = "18-butterfly";

#[test]
fn golden_fourier_transforms_and_their_twiddles() {
    let file = golden(SYSTEM, "transforms");
    assert_eq!(bit_reversal(16).unwrap(), perm(&file, "bitrev"));
    for (norm, scaling) in [("none", Scaling::None), ("ortho", Scaling::Unitary)] {
        for (letters, decimation) in [("dit", Decimation::Time), ("dif", Decimation::Frequency)] {
            let pairs = [
                ("fft", fft(16, decimation, scaling), fft_twiddle(16, decimation, scaling)),
                ("ifft", ifft(16, decimation, scaling), ifft_twiddle(16, decimation, scaling)),
            ];
            for (name, map, twiddle) in pairs {
                let (map, what) = (map.unwrap(), format!("{name}.{norm}"));
                close(
                    &what,
                    &map.apply(&get(&file, "xc")).unwrap(),
                    &get(&file, &format!("{what}.y")),
                );
                let expected = get(&file, &format!("{what}.{letters}.twiddle"));
                close(&what, &twiddle.unwrap().complex_tensor().unwrap(), &expected);
            }
        }
    }
}

#[test]
fn golden_real_transforms() {
    let file = golden(SYSTEM, "transforms");
    let x = get(&file, "xr");
    for (norm, kind) in [("none", Norm::None), ("ortho", Norm::Ortho)] {
        let all = [
            ("dct2", dct2(16, kind)),
            ("dct3", dct3(16, kind)),
            ("dct4", dct4(16, kind)),
            ("dst2", dst2(16, kind)),
            ("dst4", dst4(16, kind)),
        ];
        for (name, map) in all {
            let what = format!("{name}.{norm}.y");
            close(&what, &map.unwrap().apply(&x).unwrap(), &get(&file, &what));
        }
    }
    close("hadamard", &hadamard(16, false).unwrap().apply(&x).unwrap(), &get(&file, "hadamard.y"));
    close("haar", &haar(16).unwrap().apply(&x).unwrap(), &get(&file, "haar.y"));
}

#[test]
fn golden_folded_diagonals() {
    let file = golden(SYSTEM, "transforms");
    let d: Vec<_> = get(&file, "fold_diag.d").to_vec::<f64>().unwrap();
    let d: Vec<num_complex::Complex<f64>> = d.into_iter().map(Into::into).collect();
    let twiddle = fft_twiddle(16, Decimation::Time, Scaling::None).unwrap();
    let first = twiddle.clone().after_diagonal(&d).complex_tensor().unwrap();
    close("first", &first, &get(&file, "fold_diag_first.twiddle"));
    let last = twiddle.before_diagonal(&d).complex_tensor().unwrap();
    close("last", &last, &get(&file, "fold_diag_last.twiddle"));
}

#[test]
fn golden_circulant_and_toeplitz_matrices() {
    let file = golden(SYSTEM, "toeplitz");
    for case in ["circ0", "circ1", "circ2"] {
        let name = |part: &str| format!("{case}.{part}");
        let (column, x) = (get(&file, &name("col")), get(&file, &name("x")));
        let by_butterflies = circulant(&column).unwrap();
        close(case, &by_butterflies.apply(&x).unwrap(), &get(&file, &name("y")));
        let turned = by_butterflies.transpose().unwrap();
        close(case, &turned.apply(&x).unwrap(), &get(&file, &name("yT")));
        let direct = named::circulant(&column).unwrap();
        close(case, &direct.apply(&x).unwrap(), &get(&file, &name("y")));
    }
    let parts = circulant_parts(&get(&file, "circ0.col")).unwrap();
    close("b1", &parts.first, &get(&file, "circ0.b1"));
    close("diag", &parts.diagonal, &get(&file, "circ0.diag"));
    close("b2", &parts.second, &get(&file, "circ0.b2"));
    for case in ["toep0", "toep1"] {
        let name = |part: &str| get(&file, &format!("{case}.{part}"));
        let (col, row) = (name("col"), name("row"));
        let maps = [toeplitz(&col, &row).unwrap(), named::toeplitz(&col, &row).unwrap()];
        for map in maps {
            close(case, &map.apply(&name("x")).unwrap(), &name("y"));
        }
    }
    // Channels of a circular convolution are circulant matrices of the centred kernel.
    let (w, x, y) = (get(&file, "conv0.w"), get(&file, "conv0.x"), get(&file, "conv0.y"));
    for out in 0..3 {
        let channel = |inp: usize| {
            let taps = w.select(0, out).unwrap().select(0, inp).unwrap().to_vec::<f64>().unwrap();
            let mut column = vec![0.0; 16];
            for (tap, value) in taps.iter().enumerate() {
                column[(16 + 2 - tap) % 16] += value;
            }
            let column = Tensor::from_vec(column, [16], &Device::Cpu).unwrap();
            circulant(&column).unwrap().apply(&x.select(1, inp).unwrap()).unwrap()
        };
        let sum = channel(0).add(&channel(1)).unwrap();
        close("conv0", &sum, &y.select(1, out).unwrap());
    }
}

#[test]
fn golden_layers() {
    let file = golden(SYSTEM, "layer");
    for (case, increasing) in [("real", true), ("cplx", false)] {
        let name = |part: &str| get(&file, &format!("{case}.{part}"));
        let map = named::butterfly(&name("twiddle"), increasing, 27, 13).unwrap();
        let y = map.apply(&name("x")).unwrap().add(&name("bias")).unwrap();
        close(case, &y, &name("y"));
    }
    let map = single(&get(&file, "tr.twiddle"), true);
    let x = get(&file, "tr.x");
    close("tr.y_T", &map.transpose().unwrap().apply(&x).unwrap(), &get(&file, "tr.y_T"));
    close("tr.y_H", &map.adjoint().unwrap().apply(&x).unwrap(), &get(&file, "tr.y_H"));
    let shared = get(&file, "tr.twiddle").narrow(2, 0, 3).unwrap().narrow(3, 0, 4).unwrap();
    let y = single(&shared, true).apply(&get(&file, "tr.x_sub")).unwrap();
    close("tr.y_sub", &y, &get(&file, "tr.y_sub"));
    let inner_outer = kronecker_twiddle(&get(&file, "kron.t1"), &get(&file, "kron.t2")).unwrap();
    close("kron.twiddle", &inner_outer, &get(&file, "kron.twiddle"));
    let x = get(&file, "kron.x").reshape([2, 32]).unwrap();
    let y = single(&inner_outer, true).apply(&x).unwrap();
    close("kron.y", &y, &get(&file, "kron.y"));
    let algebra =
        single(&get(&file, "kron.t2"), true).kronecker(&single(&get(&file, "kron.t1"), true));
    close("kronecker", &algebra.apply(&x).unwrap(), &get(&file, "kron.y"));
    let flipped = stride_flip(&get(&file, "flip.twiddle")).unwrap();
    close("flip", &flipped, &get(&file, "flip.twiddle_dec"));
    let reversal = Map::permutation(&bit_reversal(16).unwrap()).unwrap();
    let both = Map::product([reversal.clone(), single(&flipped, false), reversal]).unwrap();
    close("flip.y", &both.apply(&get(&file, "flip.x")).unwrap(), &get(&file, "flip.y"));
}

#[test]
fn golden_permutations_of_identities_and_swaps() {
    let file = golden("19-kaleidoscope", "perm");
    for case in ["p0", "p1", "p2", "p3"] {
        let order = perm(&file, &format!("{case}.perm"));
        for increasing in [false, true] {
            let twiddle = permutation_twiddle(&order, increasing).unwrap();
            check_swaps(&twiddle);
            let map = named::butterfly(&twiddle, increasing, order.len(), order.len()).unwrap();
            let y = map.apply(file.get(&format!("{case}.x"))).unwrap();
            close(case, &y, file.get(&format!("{case}.y")));
        }
    }
}

fn check_swaps(twiddle: &Tensor) {
    for block in twiddle.to_vec::<f64>().unwrap().chunks_exact(4) {
        assert!(block == [1.0, 0.0, 0.0, 1.0] || block == [0.0, 1.0, 1.0, 0.0], "{block:?}");
    }
}

#[test]
fn any_permutation_is_a_kaleidoscope_matrix_and_its_inverse_the_transpose() {
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for round in 0..400 {
        let n = if round % 50 == 0 { 4096 } else { 2 + random(200) };
        let mut order: Vec<usize> = (0..n).collect();
        (1..n).rev().for_each(|i| order.swap(i, random(i + 1)));
        let twiddle = permutation_twiddle(&order, round % 2 == 1).unwrap();
        let map = named::butterfly(&twiddle, round % 2 == 1, n, n).unwrap();
        let x = Tensor::arange(n, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
        let x = x.reshape([1, n]).unwrap();
        let y = map.apply(&x).unwrap();
        let found: Vec<usize> = y.to_vec::<f64>().unwrap().iter().map(|&v| v as usize).collect();
        assert_eq!(found, order, "n {n}");
        let back = map.transpose().unwrap().apply(&y).unwrap();
        assert_eq!(back.to_vec::<f64>().unwrap(), x.to_vec::<f64>().unwrap());
    }
    assert!(permutation_twiddle(&[0, 2, 2], false).is_err());
    assert!(permutation_twiddle(&[0, 3], false).is_err());
}

#[test]
fn golden_named_kaleidoscope_matrices() {
    let file = golden("19-kaleidoscope", "named");
    let x = get(&file, "hd3.x");
    let map = named::hadamard_diagonal(&get(&file, "hd3.diags")).unwrap();
    close("hd3", &map.apply(&x).unwrap(), &get(&file, "hd3.y"));
    let single_butterfly = single(&get(&file, "hd3.twiddle"), true);
    close("hd3 as one", &single_butterfly.apply(&x).unwrap(), &get(&file, "hd3.y"));
    let [d1, d2, d3] = ["d1", "d2", "d3"].map(|d| get(&file, &format!("fastfood.{d}")));
    let map = named::fastfood(&d1, &d2, &d3, &perm(&file, "fastfood.perm")).unwrap();
    close("fastfood", &map.apply(&x).unwrap(), &get(&file, "fastfood.y"));
    let circ = single(&get(&file, "circ.twiddle"), false).real();
    close("circ", &circ.apply(&x).unwrap(), &get(&file, "circ.y"));
    let ours = circulant(&get(&file, "circ.col")).unwrap();
    close("circ", &ours.apply(&x).unwrap(), &get(&file, "circ.y"));
    let z = get(&file, "fft2.x").reshape([2, 64]).unwrap();
    let one = Map::permutation(&perm(&file, "fft2.perm")).unwrap();
    let one = one.then(&single(&get(&file, "fft2.twiddle"), true)).unwrap();
    close("fft2", &one.apply(&z).unwrap(), &get(&file, "fft2.y"));
    let dft = fft(8, Decimation::Time, Scaling::None).unwrap();
    close("fft2", &dft.kronecker(&dft).apply(&z).unwrap(), &get(&file, "fft2.y"));
}

#[test]
fn golden_rotations_and_their_gradients() {
    let file = golden("19-kaleidoscope", "ortho");
    let blocks = |theta: &Tensor| {
        let (c, s) = (theta.cos().unwrap(), theta.sin().unwrap());
        Tensor::stack(&[&c, &s.affine(-1.0, 0.0).unwrap(), &s, &c], -1).unwrap()
    };
    let theta = get(&file, "bbt.theta").tracked();
    let twiddle = blocks(&theta).reshape([1, 2, 4, 8, 2, 2]).unwrap();
    let x = get(&file, "bbt.x").reshape([2, 16]).unwrap();
    let y = single(&twiddle, false).apply(&x).unwrap();
    close("bbt.y", &y, &get(&file, "bbt.y"));
    let gy = get(&file, "bbt.gy").reshape([2, 16]).unwrap();
    let grads = backward_with(&[(&y, &gy)]).unwrap();
    close("bbt.dtheta", grads.get(&theta).unwrap(), &get(&file, "bbt.dtheta"));
    // Rows by stride: the decreasing product applies them from the last.
    let (one, two) = (get(&file, "odo.theta1").tracked(), get(&file, "odo.theta2").tracked());
    let d = get(&file, "odo.d").tracked();
    let first = blocks(&one).flip(1).unwrap().reshape([1, 1, 4, 8, 2, 2]).unwrap();
    let second = blocks(&two).reshape([1, 1, 4, 8, 2, 2]).unwrap();
    let map =
        Map::product([single(&first, false), Map::diagonal(&d).unwrap(), single(&second, true)]);
    let y = map.unwrap().apply(&x).unwrap();
    close("odo.y", &y, &get(&file, "odo.y"));
    let grads = backward_with(&[(&y, &gy)]).unwrap();
    for (leaf, name) in [(&one, "odo.dtheta1"), (&two, "odo.dtheta2"), (&d, "odo.dd")] {
        close(name, grads.get(leaf).unwrap(), &get(&file, name));
    }
}

#[test]
fn golden_monarch_transforms_and_layers() {
    let file = golden("20-monarch", "fft");
    for case in ["f0", "f1", "f2"] {
        let name = |part: &str| get(&file, &format!("{case}.{part}"));
        let order = Map::permutation(&perm(&file, &format!("{case}.perm"))).unwrap();
        let theirs = order.then(&named::monarch(&name("w1"), &name("w2")).unwrap()).unwrap();
        close(case, &theirs.apply(&name("x")).unwrap(), &name("y"));
        let ours = monarch_dft(name("x").dims()[1]).unwrap();
        close(case, &ours.apply(&name("x")).unwrap(), &name("y"));
    }
    assert!(monarch_dft(13).err().unwrap().to_string().contains("composite"));
    let file = golden("20-monarch", "layer");
    for case in ["l0", "l1", "l2"] {
        let name = |part: &str| get(&file, &format!("{case}.{part}"));
        let (x, y) = (name("x"), name("y"));
        let (rows, cols) = (y.dims()[1], x.dims()[1]);
        let map = named::monarch_layer(&name("w1"), &name("w2"), rows, cols).unwrap();
        close(case, &map.apply(&x).unwrap().add(&name("bias")).unwrap(), &y);
    }
    let map = named::block_diagonal(&get(&file, "bd.w")).unwrap();
    close("bd", &map.apply(&get(&file, "bd.x")).unwrap(), &get(&file, "bd.y"));
    let file = golden("20-monarch", "expressive");
    let [l1, r, l2] = ["L1", "R", "L2"].map(|f| get(&file, &format!("mmstar.{f}")));
    let spread = |blocks: &Tensor| {
        let pattern = danaus_kernel::ops::kronecker_sparse::Pattern::new(1, 5, 5, 5);
        Map::Chain(Chain::new(&[(pattern, blocks.clone())]).unwrap())
    };
    let map = Map::product([spread(&l2), named::block_diagonal(&r).unwrap(), spread(&l1)]).unwrap();
    close("mmstar", &map.to_dense().unwrap(), &get(&file, "mmstar.dense"));
    let conv = named::circulant(&get(&file, "conv.k")).unwrap();
    close("conv", &conv.apply(&get(&file, "conv.x")).unwrap(), &get(&file, "conv.y"));
}

#[test]
fn inverse_transforms_undo_transforms_and_unitary_ones_keep_norms() {
    let n = 32;
    let x =
        Tensor::complex(&randn(1, &[3, n], DType::F64), &randn(2, &[3, n], DType::F64)).unwrap();
    for scaling in [Scaling::None, Scaling::Unitary] {
        let there = fft(n, Decimation::Time, scaling).unwrap();
        let back = ifft(n, Decimation::Frequency, scaling).unwrap();
        close("ifft fft", &there.then(&back).unwrap().apply(&x).unwrap(), &x);
    }
    let unitary = fft(n, Decimation::Frequency, Scaling::Unitary).unwrap();
    let energy = |t: &Tensor| {
        t.modulus().unwrap().to_vec::<f64>().unwrap().iter().map(|v| v * v).sum::<f64>()
    };
    let y = unitary.apply(&x).unwrap();
    assert!((energy(&y) - energy(&x)).abs() < 1e-12 * energy(&x));
    for bad in [0, 1, 12] {
        assert!(dct2(bad, Norm::None).is_err() && haar(bad).is_err());
    }
}
