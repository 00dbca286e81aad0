//! Every leaf and composition against its dense meaning; counts; refusals.

use super::*;
use danaus_kernel::ops::kronecker_sparse::Pattern;
use danaus_testkit::{assert_close, gradcheck, randn};

fn complex(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::complex(&randn(seed, shape, DType::F64), &randn(seed + 90, shape, DType::F64)).unwrap()
}

fn chain(seed: u64, patterns: &[Pattern], imaginary: bool) -> Map {
    let factor = |(i, &pattern): (usize, &Pattern)| {
        let shape = [pattern.blocks(), pattern.b, pattern.c];
        let seed = seed + i as u64;
        (pattern, if imaginary { complex(seed, &shape) } else { randn(seed, &shape, DType::F64) })
    };
    let factors: Vec<_> = patterns.iter().enumerate().map(factor).collect();
    Map::Chain(Chain::new(&factors).unwrap())
}

/// Leaves and compositions, real and complex, rectangular where they can be.
fn maps() -> Vec<(&'static str, Map)> {
    let real = chain(1, &[Pattern::new(2, 3, 2, 2), Pattern::new(1, 2, 4, 3)], false);
    let imaginary = chain(5, &[Pattern::new(2, 2, 2, 2), Pattern::new(4, 2, 2, 1)], true);
    let toeplitz =
        Map::Toeplitz { col: randn(1, &[6], DType::F64), row: randn(2, &[8], DType::F64) };
    let odd = Map::Toeplitz { col: complex(1, &[8]), row: complex(2, &[8]) };
    let like =
        Map::ToeplitzLike { g: randn(3, &[2, 8], DType::F64), h: randn(4, &[2, 8], DType::F64) };
    let dense = Map::dense(&randn(9, &[6, 8], DType::F64)).unwrap();
    let diagonal = Map::diagonal(&complex(7, &[8])).unwrap();
    let perm = Map::permutation(&[3, 0, 7, 1, 2, 6, 5, 4]).unwrap();
    let small = Map::dense(&randn(10, &[2, 3], DType::F64)).unwrap();
    vec![
        ("pad", Map::Identity { rows: 11, cols: 8 }),
        ("cut", Map::Identity { rows: 5, cols: 8 }),
        ("repeated", Map::Repeated { times: 3, n: 8, transposed: false }),
        ("summed", Map::Repeated { times: 4, n: 2, transposed: true }),
        ("diagonal", diagonal.clone()),
        ("permutation", perm.clone()),
        ("chain", real.clone()),
        ("complex chain", imaginary.clone()),
        ("toeplitz", toeplitz.clone()),
        ("complex toeplitz", odd),
        ("toeplitz-like", like.clone()),
        ("dense", dense.clone()),
        (
            "product",
            perm.then(&imaginary).unwrap().then(&diagonal).unwrap().then(&toeplitz).unwrap(),
        ),
        ("joined", imaginary.then(&imaginary.transpose().unwrap()).unwrap()),
        ("sum", Map::sum([real, dense, toeplitz]).unwrap()),
        ("kronecker", small.kronecker(&imaginary)),
        ("scaled", imaginary.scaled(-0.5)),
        ("real", perm.then(&imaginary).unwrap().real()),
    ]
}

fn close(what: &str, found: &Tensor, expected: &Tensor) {
    let (found, expected) = meet(found, expected).unwrap();
    if !found.dtype().is_complex() {
        return assert_close(what, &found, &expected, 1e-12);
    }
    assert_close(what, &found.real().unwrap(), &expected.real().unwrap(), 1e-12);
    assert_close(what, &found.imag().unwrap(), &expected.imag().unwrap(), 1e-12);
}

#[test]
fn products_match_the_dense_meaning() {
    for (name, map) in maps() {
        let dense = map.to_dense().unwrap();
        assert_eq!(dense.dims(), [map.rows(), map.cols()], "{name}");
        assert_eq!(dense.dtype().is_complex(), map.is_complex(), "{name}");
        let x = randn(20, &[2, 3, map.cols()], DType::F64);
        let flat = x.reshape([6, map.cols()]).unwrap();
        let (flat, wide) = meet(&flat, &dense).unwrap();
        let expected = flat.matmul(&wide.transpose(0, 1).unwrap()).unwrap();
        let expected = expected.reshape([2, 3, map.rows()]).unwrap();
        close(name, &map.apply(&x).unwrap(), &expected);
        if !matches!(map, Map::Real(_)) {
            let z = complex(30, &[4, map.cols()]);
            let (z, wide) = meet(&z, &dense).unwrap();
            let expected = z.matmul(&wide.transpose(0, 1).unwrap()).unwrap();
            close(name, &map.apply(&z).unwrap(), &expected);
        }
    }
}

#[test]
fn transposes_conjugates_and_adjoints_are_those_of_the_matrix() {
    for (name, map) in maps() {
        let dense = map.to_dense().unwrap();
        let conj = |t: &Tensor| if t.dtype().is_complex() { t.conj().unwrap() } else { t.clone() };
        let turned = dense.transpose(0, 1).unwrap();
        let pairs = [
            ("transpose", map.transpose().unwrap(), turned.clone()),
            ("conj", map.conj().unwrap(), conj(&dense)),
            ("adjoint", map.adjoint().unwrap(), conj(&turned)),
        ];
        for (what, found, expected) in pairs {
            let what = format!("{what} of {name}");
            close(&what, &found.to_dense().unwrap(), &expected);
            // The product agrees too, and twice is where it began.
            let x = randn(21, &[2, found.cols()], DType::F64);
            let (wide_x, wide) = meet(&x, &expected).unwrap();
            let y = wide_x.matmul(&wide.transpose(0, 1).unwrap()).unwrap();
            close(&what, &found.apply(&x).unwrap(), &y);
        }
        let twice = map.adjoint().unwrap().adjoint().unwrap();
        close(name, &twice.to_dense().unwrap(), &dense);
    }
}

#[test]
fn gradients_reach_every_tensor() {
    let x = randn(1, &[2, 8], DType::F64);
    let inputs = [
        x,
        randn(2, &[4, 2, 2], DType::F64),
        randn(3, &[8], DType::F64),
        randn(4, &[2, 8], DType::F64),
        randn(5, &[2, 8], DType::F64),
        randn(6, &[3, 8], DType::F64),
    ];
    let product = |t: &[Tensor]| {
        let factor = Chain::new(&[(Pattern::new(4, 2, 2, 1), t[1].clone())])?;
        let like = Map::ToeplitzLike { g: t[3].clone(), h: t[4].clone() };
        let sum = Map::sum([Map::Chain(factor), like])?;
        let map = sum.then(&Map::diagonal(&t[2])?)?.then(&Map::dense(&t[5])?)?;
        Ok(vec![map.apply(&t[0])?])
    };
    gradcheck(product, &inputs, 1e-6);
}

#[test]
fn counts_are_exact() {
    let butterfly = chain(1, &[1, 2, 4].map(|s| Pattern::butterfly(8, s)), false);
    assert_eq!((butterfly.parameters(), butterfly.bytes()), (48, 384));
    assert_eq!((butterfly.flops(false), butterfly.flops(true)), (96, 384));
    let low_rank = Map::product([
        Map::dense(&randn(1, &[2, 8], DType::F32)).unwrap(),
        Map::dense(&randn(2, &[6, 2], DType::F32)).unwrap(),
    ])
    .unwrap();
    assert_eq!((low_rank.parameters(), low_rank.bytes(), low_rank.flops(false)), (28, 112, 56));
    let sum = Map::sum([butterfly.clone(), Map::identity(8)]).unwrap();
    assert_eq!(sum.flops(false), 96 + 8);
    let kronecker = butterfly.kronecker(&Map::dense(&randn(3, &[2, 3], DType::F64)).unwrap());
    // Eight products of the small matrix, then two of the butterfly.
    assert_eq!((kronecker.parameters(), kronecker.flops(false)), (54, 8 * 12 + 2 * 96));
}

#[test]
fn neighbouring_chains_become_one() {
    let map = chain(1, &[Pattern::butterfly(8, 1)], false);
    let both = map.then(&map.transpose().unwrap()).unwrap();
    assert!(matches!(&both, Map::Chain(chain) if chain.steps().len() == 2));
}

#[test]
fn bad_compositions_are_refused_by_name() {
    let message = |result: Result<Map>| result.err().unwrap().to_string();
    let (three, eight) = (Map::identity(3), Map::identity(8));
    assert!(message(three.then(&eight)).contains("3 as the rows before it"));
    assert!(message(Map::sum([three.clone(), eight])).contains("3 x 3 as the first term"));
    assert!(message(Map::permutation(&[0, 0, 1])).contains("occurs twice"));
    assert!(message(Map::permutation(&[0, 3, 1])).contains("out of range"));
    assert!(
        three.apply(&randn(1, &[2, 4], DType::F64)).err().unwrap().to_string().contains("[.., 3]")
    );
    let short = Chain::new(&[(Pattern::butterfly(8, 1), randn(1, &[15], DType::F64))]);
    assert!(short.err().unwrap().to_string().contains("16 elements"));
}
