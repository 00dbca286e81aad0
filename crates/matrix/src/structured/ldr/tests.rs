//! Golden cases of all classes, agreement of the routes, what happens at the edge of the range.

use super::*;
use danaus_tensor::{Device, backward_with};
use danaus_testkit::{Golden, assert_close, golden, max_relative_error, randn};

/// The sheet's tolerance: transforms cancel, and small products of subdiagonals divide.
const TOLERANCE: f64 = 1e-10;

/// Parts of a case as leaves: the operators by their names in the file, then G, H, x.
fn leaves(file: &Golden, case: &str, operators: &[&str]) -> Vec<Tensor> {
    let parts = operators.iter().chain(&["G", "H", "x"]);
    parts.map(|part| file.get(&format!("{case}.{part}")).clone().tracked()).collect()
}

fn map_of(class: LdrClass, leaves: &[Tensor]) -> Map {
    let (operators, rest) = leaves.split_at(leaves.len() - 3);
    let operators: Vec<&Tensor> = operators.iter().collect();
    ldr(class, &operators, &rest[0], &rest[1]).unwrap()
}

/// Product and gradients against the file, for the cotangent `gy`.
fn check(
    (file, case): (&Golden, &str),
    class: LdrClass,
    operators: &[&str],
    (y, gy, grads): (&str, &Tensor, &[&str]),
) {
    let leaves = leaves(file, case, operators);
    let map = map_of(class, &leaves);
    let get = |part: &str| file.get(&format!("{case}.{part}"));
    let label = |part: &str| format!("{case} {} {part}", class.name());
    let found = map.apply(&leaves[leaves.len() - 1]).unwrap();
    assert_close(&label("y"), &found.detach(), get(y), TOLERANCE);
    let gradients = backward_with(&[(&found, gy)]).unwrap();
    for (leaf, part) in leaves.iter().zip(grads).filter(|(_, part)| !part.is_empty()) {
        assert_close(&label(part), gradients.get(leaf).unwrap(), get(part), TOLERANCE);
    }
}

#[test]
fn golden_subdiagonal() {
    let file = golden("21-ldr", "subdiag");
    for case in ["s0", "s1", "s2"] {
        let (class, names) = (LdrClass::Subdiagonal, ["subdA", "subdB"]);
        let gy = file.get(&format!("{case}.gy"));
        check((&file, case), class, &names, ("y", gy, &["dsubdA", "dsubdB", "dG", "dH", "dx"]));
        let map = map_of(class, &leaves(&file, case, &names));
        let m = file.get(&format!("{case}.M"));
        assert_close(case, &map.to_dense().unwrap().detach(), m, TOLERANCE);
    }
}

#[test]
fn golden_tridiagonal_and_corners() {
    let file = golden("21-ldr", "general");
    let names = ["subdA", "diagA", "supdA", "subdB", "diagB", "supdB"];
    let grads = names.map(|name| format!("d_{name}"));
    let grads: Vec<&str> = grads.iter().map(String::as_str).collect();
    for (case, class) in [
        ("t0", LdrClass::Tridiagonal),
        ("t0", LdrClass::TridiagonalCorner),
        ("t1", LdrClass::TridiagonalCorner),
    ] {
        let corner = class == LdrClass::TridiagonalCorner;
        let mut operators = names.to_vec();
        let mut expected = grads.clone();
        if corner {
            operators.push("corners");
            // Their corners were no parameters; ours are, and the difference test holds them.
            expected.push("");
        }
        expected.extend(["d_G", "d_H", "d_x"]);
        let gy = file.get(&format!("{case}.gy"));
        check((&file, case), class, &operators, ("y", gy, &expected));
        let map = map_of(class, &leaves(&file, case, &operators));
        let m = file.get(&format!("{case}.M"));
        assert_close(case, &map.to_dense().unwrap().detach(), m, TOLERANCE);
    }
    let operators = ["subdA", "subdB", "corner"];
    let leaves = leaves(&file, "sdc0", &operators);
    let y = map_of(LdrClass::SubdiagonalCorner, &leaves).apply(&leaves[5]).unwrap();
    assert_close("sdc0", &y.detach(), file.get("sdc0.y"), TOLERANCE);
}

#[test]
fn golden_fixed_operators() {
    let file = golden("21-ldr", "fixed");
    for case in ["q0", "q1"] {
        let y = file.get(&format!("{case}.cyc.y"));
        let ones = Tensor::full(1.0f64, y.shape(), &Device::Cpu).unwrap();
        let cyclic = ["cyc.dG", "cyc.dH", "cyc.dx"];
        check((&file, case), LdrClass::Toeplitz, &[], ("cyc.y", &ones, &cyclic));
        check((&file, case), LdrClass::Hankel, &[], ("hankel.y", &ones, &["", "", ""]));
        let nodes = ["", "", "", ""];
        check((&file, case), LdrClass::Vandermonde, &["vand.diag"], ("vand.y", &ones, &nodes));
        let get = |part: &str| file.get(&format!("{case}.{part}")).clone();
        let plain = Map::ToeplitzLike { g: get("G"), h: get("H") };
        assert_close(case, &plain.apply(&get("x")).unwrap(), &get("z0.y"), TOLERANCE);
    }
}

/// `M - A M B^T = G^T H` has the solution that the class is.
#[test]
fn golden_steins_equation() {
    let file = golden("21-ldr", "recover");
    let dense = |name: &str| file.get(name).to_vec::<f64>().unwrap();
    let n = file.get("stein.A").dims()[0];
    let sub = |matrix: Vec<f64>| -> Tensor {
        let values = (0..n - 1).map(|i| matrix[(i + 1) * n + i]).collect();
        Tensor::from_vec(values, [n - 1], &Device::Cpu).unwrap()
    };
    let (a, b) = (sub(dense("stein.A")), sub(dense("stein.B")));
    let m = file.get("stein.M");
    // The displacement of their M gives M back.
    let values = m.to_vec::<f64>().unwrap();
    let (av, bv) = (a.to_vec::<f64>().unwrap(), b.to_vec::<f64>().unwrap());
    let mut d = values.clone();
    for at in n..n * n {
        if at % n > 0 {
            d[at] -= av[at / n - 1] * bv[at % n - 1] * values[at - n - 1];
        }
    }
    let d = Tensor::from_vec(d, [n, n], &Device::Cpu).unwrap();
    assert_close("stein", &stein(&d, &a, &b).unwrap(), m, TOLERANCE);
    let rank = crate::structured::factor::project_low_rank(&d, 2).unwrap();
    assert!(rank.relative_error() < 1e-12, "{}", rank.relative_error());
}

/// Both routes for operators near 1, as the sheet asks: subdiagonals in [0.7, 1.3].
#[test]
fn routes_agree() {
    for n in [64, 200] {
        let near = |seed: u64| {
            let noise = danaus_tensor::rng::Rng::new(seed, 0).uniform(0.97, 1.03, [n - 1]).unwrap();
            noise.to_dtype(DType::F64).unwrap()
        };
        let (a, b) = (near(1), near(2));
        let (g, h) = (randn(3, &[2, n], DType::F64), randn(4, &[2, n], DType::F64));
        let x = randn(5, &[3, n], DType::F64);
        let fast = ldr(LdrClass::Subdiagonal, &[&a, &b], &g, &h).unwrap();
        assert!(!matches!(fast, Map::Dense(_)), "transforms where they keep digits");
        let dense = stein(&g.transpose(0, 1).unwrap().matmul(&h).unwrap(), &a, &b).unwrap();
        let expected = x.matmul(&dense.transpose(0, 1).unwrap()).unwrap();
        assert_close("stein", &fast.apply(&x).unwrap(), &expected, 1e-9);
        // The same operators as tridiagonal ones.
        let (points, pairs) = ([n], [n - 1]);
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F64, &Device::Cpu).unwrap();
        let (diag, sup) = (zeros(&points), zeros(&pairs));
        let wide = [&a, &diag, &sup, &b, &diag, &sup];
        let krylov = ldr(LdrClass::Tridiagonal, &wide, &g, &h).unwrap();
        assert_close("krylov", &krylov.apply(&x).unwrap(), &expected, 1e-9);
    }
}

/// A regression: running products with a zero in them made NaN of the whole matrix, and long ranges
/// cost all digits.
#[test]
fn zero_and_wide_subdiagonals_are_solved_for() {
    let n = 48;
    let (g, h) = (randn(3, &[2, n], DType::F64), randn(4, &[2, n], DType::F64));
    let x = randn(5, &[3, n], DType::F64);
    let ones = Tensor::full(1.0f64, [n - 1], &Device::Cpu).unwrap();
    let with = |at: usize, value: f64| -> Tensor {
        let mut values = vec![1.0; n - 1];
        values[at] = value;
        Tensor::from_vec(values, [n - 1], &Device::Cpu).unwrap()
    };
    let halves = ones.affine(0.3, 0.0).unwrap();
    for (name, a) in [("zero", with(20, 0.0)), ("tiny", with(5, 1e-30)), ("wide", halves)] {
        // The definition: Krylov matrices by n - 1 products each.
        let zeros = |len: usize| Tensor::zeros([len], DType::F64, &Device::Cpu).unwrap();
        let (diag, sup) = (zeros(n), zeros(n - 1));
        let wide = [&a, &diag, &sup, &ones, &diag, &sup];
        let oracle = ldr(LdrClass::Tridiagonal, &wide, &g, &h).unwrap().apply(&x).unwrap();
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
            let cast = |t: &Tensor| t.to_dtype(dtype).unwrap().tracked();
            let (a, b, g, h) = (cast(&a), cast(&ones), cast(&g), cast(&h));
            let map = ldr(LdrClass::Subdiagonal, &[&a, &b], &g, &h).unwrap();
            let y = map.apply(&cast(&x)).unwrap();
            assert!(max_relative_error(&y.detach(), &oracle) < tolerance, "{name} {dtype}");
            // Gradients exist too.
            let grads = backward_with(&[(&y, &y.detach())]).unwrap();
            for leaf in [&a, &b, &g, &h] {
                let values = grads.get(leaf).unwrap().to_dtype(DType::F64).unwrap();
                assert!(values.to_vec::<f64>().unwrap().iter().all(|v| v.is_finite()), "{name}");
            }
        }
    }
}

#[test]
fn bad_arguments_are_refused_by_name() {
    let (g, h) = (randn(1, &[2, 8], DType::F64), randn(2, &[2, 8], DType::F64));
    let message = |result: Result<Map>| result.err().unwrap().to_string();
    let a = randn(3, &[7], DType::F64);
    let short = randn(3, &[6], DType::F64);
    let all = [&a, &short];
    assert!(message(ldr(LdrClass::Subdiagonal, &all, &g, &h)).contains("subd_b"));
    let missing = message(ldr(LdrClass::Tridiagonal, &[&a, &a], &g, &h));
    assert!(missing.contains("subd_a, diag_a, supd_a"), "{missing}");
    let other = randn(2, &[3, 8], DType::F64);
    assert!(message(ldr(LdrClass::Toeplitz, &[], &g, &other)).contains("G and H"));
    let one = randn(2, &[1, 1], DType::F64);
    assert!(message(ldr(LdrClass::Toeplitz, &[], &one, &one)).contains("n at least 2"));
    let large = a.affine(1e60, 0.0).unwrap();
    assert!(message(ldr(LdrClass::Subdiagonal, &[&large, &large], &g, &h)).contains("overflow"));
    let message = LdrClass::from_name("bidiagonal").unwrap_err().to_string();
    assert!(message.contains("tridiagonal-corner"), "{message}");
}
