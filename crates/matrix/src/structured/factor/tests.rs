//! Recovery of known members, golden projections, orthogonality and refusals.

use super::*;
use crate::structured::algebra::Map;
use crate::structured::construct::{self, Decimation, Norm, Scaling};
use crate::structured::{Format, LdrClass, PixelflySizes, named};
use danaus_tensor::{DType, Device};
use danaus_testkit::{assert_close, golden, max_relative_error, randn};

fn complex(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::complex(&randn(seed, shape, DType::F64), &randn(seed + 90, shape, DType::F64)).unwrap()
}

fn norm(matrix: &Tensor) -> f64 {
    Entries::of("test", matrix).unwrap().norm()
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    norm(&a.sub(b).unwrap())
}

#[test]
fn members_of_both_classes_are_recovered() {
    for increasing in [true, false] {
        for n in [2, 4, 16, 64] {
            let log_n = usize::ilog2(n) as usize;
            let twiddle = randn(3, &[1, 1, log_n, n / 2, 2, 2], DType::F64);
            let chain = crate::structured::algebra::Chain::butterfly(&twiddle, increasing).unwrap();
            let dense = Map::Chain(chain).to_dense().unwrap();
            let peeled = peel(&dense, increasing).unwrap();
            assert!(peeled.discarded < 1e-13, "{}", peeled.discarded);
            let found = peeled.map().unwrap().to_dense().unwrap();
            assert!(distance(&found, &dense) < 1e-12 * norm(&dense), "n {n}");
        }
    }
}

#[test]
fn a_matrix_outside_of_the_class_is_reported_as_such() {
    let dense = randn(5, &[16, 16], DType::F64);
    let peeled = peel(&dense, true).unwrap();
    assert!(peeled.discarded > 0.1, "{}", peeled.discarded);
    assert!(recognise(&dense).unwrap().is_none());
}

#[test]
fn fast_transforms_are_recognised_from_their_dense_matrices() {
    let n = 64;
    let column = randn(8, &[n], DType::F64);
    let row = randn(9, &[n], DType::F64);
    let targets = [
        ("dft", construct::fft(n, Decimation::Time, Scaling::None).unwrap(), "B P"),
        ("idft", construct::ifft(n, Decimation::Time, Scaling::Unitary).unwrap(), "B P"),
        ("hadamard", construct::hadamard(n, true).unwrap(), "B"),
        ("dct2", construct::dct2(n, Norm::None).unwrap(), "Re(B P)"),
        ("dct2 ortho", construct::dct2(n, Norm::Ortho).unwrap(), "Re(B P)"),
        ("dct3", construct::dct3(n, Norm::None).unwrap(), "(Re(B P))^T"),
        ("dct4", construct::dct4(n, Norm::None).unwrap(), "Re(B P)"),
        ("dst2", construct::dst2(n, Norm::Ortho).unwrap(), "Re(B P)"),
        ("dst4", construct::dst4(n, Norm::None).unwrap(), "Re(B P)"),
        ("circulant", construct::circulant(&column).unwrap(), "circulant"),
        ("toeplitz", construct::toeplitz(&column, &row).unwrap(), "toeplitz"),
    ];
    for (name, map, class) in targets {
        let found = recognise(&map.to_dense().unwrap()).unwrap();
        let found = found.unwrap_or_else(|| panic!("{name} is not recognised"));
        assert_eq!(found.class, class, "{name}");
        assert!(found.residual < 1e-13 && found.max_error < 1e-12, "{name}: {}", found.residual);
    }
}

#[test]
fn targets_from_formulas_are_recognised() {
    for name in TARGETS {
        let found = recognise(&target(name, 32, 3).unwrap()).unwrap();
        match name {
            "random" => assert!(found.is_none()),
            _ => {
                let found = found.unwrap_or_else(|| panic!("{name} is not recognised"));
                assert!(found.residual < 1e-13, "{name}: {:e}", found.residual);
            }
        }
    }
    assert!(target("fft", 8, 0).err().unwrap().to_string().contains("dft, idft"));
}

#[test]
fn the_targets_of_the_recovery_experiment_are_recognised() {
    let file = golden("18-butterfly", "targets");
    for name in ["dct", "dst", "hadamard", "hartley", "convolution", "dft"] {
        let target = match file.find(name) {
            Some(target) => target.clone(),
            None => {
                let part = |end: &str| file.get(&format!("{name}.{end}")).clone();
                Tensor::complex(&part("re"), &part("im")).unwrap()
            }
        };
        let found = recognise(&target).unwrap().unwrap_or_else(|| panic!("{name}"));
        assert!(found.residual < 1e-13, "{name}: {:e}", found.residual);
    }
    assert!(recognise(file.get("legendre")).unwrap().is_none(), "legendre is no butterfly");
}

#[test]
fn golden_projections() {
    let file = golden("20-monarch", "project");
    let check = |case: &str, sizes: MonarchSizes| {
        let found = project_monarch(file.get(&format!("{case}.A")), sizes).unwrap();
        let dense = found.map().unwrap().to_dense().unwrap();
        assert_close(case, &dense, file.get(&format!("{case}.P")), 1e-10);
        let error = file.get(&format!("{case}.err")).to_scalar().unwrap();
        assert!((found.error - error).abs() < 1e-10 * error.max(1.0), "{case}: {}", found.error);
    };
    for case in ["s0", "s1", "s2"] {
        let w1 = file.get(&format!("{case}.w1")).dims().to_vec();
        check(case, MonarchSizes { k: w1[0], l: w1[1], rank: 1 });
    }
    for case in ["e0", "e1", "r0", "r1"] {
        let cfg = file.get(&format!("{case}.cfg")).to_vec::<i64>().unwrap();
        let rank = cfg.get(4).copied().unwrap_or(1) as usize;
        check(case, MonarchSizes { k: cfg[2] as usize, l: cfg[3] as usize, rank });
    }
}

#[test]
fn projection_is_idempotent_orthogonal_and_monotone() {
    for (matrix, k, l) in [
        (randn(1, &[24, 30], DType::F64), 3, 4),
        (complex(2, &[16, 16]), 4, 4),
        // Sizes that blocks do not divide.
        (randn(3, &[10, 13], DType::F64), 4, 3),
    ] {
        let mut last = f64::INFINITY;
        for rank in 1..=3 {
            let found = project_monarch(&matrix, MonarchSizes { k, l, rank }).unwrap();
            let dense = found.map().unwrap().to_dense().unwrap();
            let (p, whole) = (norm(&dense), norm(&matrix));
            assert!((found.error.powi(2) + p * p - whole * whole).abs() < 1e-10 * whole * whole);
            assert!((found.error - distance(&matrix, &dense)).abs() < 1e-10 * whole);
            let again = project_monarch(&dense, MonarchSizes { k, l, rank }).unwrap();
            assert!(again.relative_error() < 1e-12, "{}", again.relative_error());
            assert!(found.error <= last + 1e-12);
            last = found.error;
        }
    }
}

#[test]
fn layers_with_few_blocks_are_recovered() {
    // The layer's own sizes: 4 blocks of 16 x 16 in both factors, so slices of rank 4.
    let (w1, w2) = (randn(1, &[4, 16, 16], DType::F64), randn(2, &[4, 16, 16], DType::F64));
    let dense = named::monarch(&w1, &w2).unwrap().to_dense().unwrap();
    let found = project_monarch_layer(&dense, 4).unwrap();
    assert_eq!(found.w1.dims(), [4, 16, 16]);
    assert!(found.relative_error() < 1e-13, "{}", found.relative_error());
}

/// Blocks that divide neither side: slices of different ranks, and still orthogonal and idempotent.
#[test]
fn layers_of_any_size_have_a_nearest_one() {
    for (rows, cols, blocks) in [(10, 10, 4), (13, 30, 3), (31, 17, 5), (6, 9, 6), (8, 8, 1)] {
        let matrix = randn(rows as u64, &[rows, cols], DType::F64);
        let found = project_monarch_layer(&matrix, blocks).unwrap();
        let count = found.w1.elem_count() + found.w2.elem_count();
        assert_eq!(count, Format::Monarch(blocks).elem_count(rows, cols));
        let dense = found.map().unwrap().to_dense().unwrap();
        let (p, whole) = (norm(&dense), norm(&matrix));
        assert!((found.error.powi(2) + p * p - whole * whole).abs() < 1e-10 * whole * whole);
        assert!((found.error - distance(&matrix, &dense)).abs() < 1e-10 * whole);
        let again = project_monarch_layer(&dense, blocks).unwrap();
        assert!(again.relative_error() < 1e-12, "{}", again.relative_error());
    }
}

#[test]
fn formats_are_projected_to_weights() {
    let matrix = randn(4, &[13, 20], DType::F64);
    let names = ["dense", "lowrank(3)", "lowrank(13)", "monarch(3)", "butterfly", "ldr(2)"];
    // Pixelfly needs sides that its pattern divides; its own test follows.
    let formats: Vec<Format> =
        names.iter().map(|name| Format::try_from(name.to_string()).unwrap()).collect();
    let all = errors(&matrix, &formats).unwrap();
    for (format, error) in formats.iter().zip(all) {
        let found = project(&matrix, *format).unwrap();
        assert!((found.relative_error - error).abs() < 1e-12, "{format:?}");
        let weight = found.matrix().unwrap();
        assert_eq!((weight.rows(), weight.cols()), (13, 20));
        // The fast product, and the oracle of the definitions.
        let dense = weight.to_dense().unwrap();
        assert_close("product", &found.to_dense().unwrap(), &dense, 1e-12);
        let measured = distance(&matrix, &dense) / norm(&matrix);
        assert!((measured - error).abs() < 1e-12, "{format:?}: {measured} {error}");
        assert!(error <= 1.0, "{format:?}: {error}");
    }
    let refused = project(&matrix, Format::Kaleidoscope).err().unwrap().to_string();
    assert!(refused.contains("kaleidoscope") && refused.contains("closed form"), "{refused}");
}

#[test]
fn members_of_a_class_are_found() {
    // A Toeplitz matrix has displacement rank 2 for the shift.
    let toeplitz = target("toeplitz", 33, 3).unwrap();
    let found = project(&toeplitz, Format::Ldr(LdrClass::Subdiagonal, 2)).unwrap();
    assert!(found.relative_error < 1e-13, "{}", found.relative_error);
    assert!(project(&toeplitz, Format::LowRank(2)).unwrap().relative_error > 0.3);
    // Two butterflies side by side: more outputs than inputs.
    let twiddle = randn(5, &[2, 1, 4, 8, 2, 2], DType::F64);
    let dense = named::butterfly(&twiddle, true, 32, 16).unwrap().to_dense().unwrap();
    let found = project(&dense, Format::Butterfly).unwrap();
    assert!(found.relative_error < 1e-12, "{}", found.relative_error);
}

/// A matrix of the class is approached, a rank alone of as many numbers is not near it; and the blocks
/// of a matrix without structure are exact.
#[test]
fn sparse_plus_low_rank_is_near() {
    let sizes = |rank| PixelflySizes { block: 4, size: 8, factors: 2, rank };
    let member = {
        let params = danaus_tensor::ParamBuilder::init(2, DType::F64, Device::Cpu);
        let weight = Format::Pixelfly(sizes(2)).build(&params, [64, 32], 1.0).unwrap();
        weight.to_dense().unwrap().detach()
    };
    let found = project(&member, Format::Pixelfly(sizes(2))).unwrap();
    assert!(found.relative_error < 0.1, "{}", found.relative_error);
    assert!(project(&member, Format::LowRank(10)).unwrap().relative_error > 0.3);
    let matrix = randn(7, &[64, 32], DType::F64);
    let mut last = 1.0;
    for rank in [1, 4, 12, 32] {
        let found = project(&matrix, Format::Pixelfly(sizes(rank))).unwrap();
        assert!(found.relative_error < last, "{rank}: {} {last}", found.relative_error);
        last = found.relative_error;
        let dense = found.to_dense().unwrap().to_vec::<f64>().unwrap();
        let values = matrix.to_vec::<f64>().unwrap();
        for (row, col) in sizes(rank).layout([64, 32]).unwrap().places() {
            let at = row * 4 * 32 + col * 4;
            assert!((dense[at] - values[at]).abs() < 1e-12);
        }
    }
    assert!(last < 1e-12, "{last}");
    // The recipe keeps its share.
    for share in [0.5, 0.25, 0.125] {
        let sizes = PixelflySizes::within([512, 2048], share).unwrap();
        let count = Format::Pixelfly(sizes).elem_count(512, 2048) as f64 / (512.0 * 2048.0);
        assert!(count <= share && count > 0.6 * share, "{sizes:?}: {count}");
    }
}

#[test]
fn low_rank_projection_is_exact_for_its_rank() {
    let dense = randn(1, &[9, 3], DType::F64).matmul(&randn(2, &[3, 12], DType::F64)).unwrap();
    let LowRankFactors { u, v, error, .. } = project_low_rank(&dense, 3).unwrap();
    assert!(error < 1e-12 && max_relative_error(&u.matmul(&v).unwrap(), &dense) < 1e-13);
    let LowRankFactors { u, v, error, .. } = project_low_rank(&dense, 2).unwrap();
    assert!((distance(&u.matmul(&v).unwrap(), &dense) - error).abs() < 1e-12 && error > 0.1);
}

#[test]
fn bad_matrices_are_refused_by_name() {
    let message = |error: Option<Error>| error.unwrap().to_string();
    assert!(message(peel(&randn(1, &[6, 6], DType::F64), true).err()).contains("power of two"));
    assert!(message(recognise(&randn(1, &[4, 8], DType::F64)).err()).contains("4 x 8"));
    let nan = Tensor::from_vec(vec![1.0, f64::NAN, 0.0, 1.0], [2, 2], &Device::Cpu).unwrap();
    assert!(message(recognise(&nan).err()).contains("at (0, 1)"));
    let matrix = randn(1, &[8, 8], DType::F64);
    let sizes = MonarchSizes { k: 2, l: 4, rank: 3 };
    assert!(message(project_monarch(&matrix, sizes).err()).contains("1..=2 for slices of 2 x 4"));
    assert!(message(project_low_rank(&matrix, 9).err()).contains("1..=8"));
}
