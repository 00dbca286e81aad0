//! The vectorised mask equals the reference's bit for bit; rates and edge cases.

use super::*;
use danaus_runtime::simd::{Isa, with_isa};
use danaus_tensor::DType;
use danaus_testkit::{gradcheck, randn};
use half::bf16;

#[test]
fn masks_are_equal_everywhere() {
    let x: Vec<f32> = (0..70_003).map(|i| 1.0 + i as f32).collect();
    let narrow: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
    for p in [0.0, 0.1, 0.5, 1.0] {
        let dropout = Dropout { p, seed: 42, stream: 7 << 33 };
        let mut exact = vec![0f32; x.len()];
        reference::apply(&dropout, &x, &mut exact);
        let kept = exact.iter().filter(|&&y| y != 0.0).count() as f64;
        let deviation = (x.len() as f64 * p * (1.0 - p)).sqrt();
        assert!((kept - x.len() as f64 * (1.0 - p)).abs() <= 4.0 * deviation, "p {p}: {kept}");
        for isa in Isa::ALL {
            let (mut y, mut y16) = (vec![9f32; x.len()], vec![bf16::ONE; x.len()]);
            let ran = with_isa(isa, || {
                cpu::apply(&dropout, &x, &mut y);
                cpu::apply(&dropout, &narrow, &mut y16);
            });
            if ran.is_some() {
                assert_eq!(y, exact, "{isa:?} p {p}");
                assert!(y16.iter().zip(&exact).all(|(a, &b)| (a.to_f32() != 0.0) == (b != 0.0)));
            }
        }
    }
}

#[test]
fn streams_and_seeds_differ() {
    let x = vec![1f32; 4096];
    let mask = |seed, stream| {
        let mut y = x.clone();
        cpu::apply(&Dropout { p: 0.5, seed, stream }, &x, &mut y);
        y
    };
    assert_eq!(mask(1, 2), mask(1, 2));
    for other in [mask(1, 3), mask(2, 2)] {
        let equal = mask(1, 2).iter().zip(&other).filter(|(a, b)| a == b).count();
        // Independent masks agree on half of the elements: 2048 with a deviation of 32.
        assert!((1888..2208).contains(&equal), "{equal}");
    }
}

#[test]
fn dropped_elements_are_zero_whatever_they_were() {
    let x = vec![f32::NAN; 1000];
    let mut y = vec![1f32; 1000];
    cpu::apply(&Dropout { p: 0.5, seed: 3, stream: 0 }, &x, &mut y);
    assert!(y.contains(&0.0) && y.iter().any(|y| y.is_nan()));
}

#[test]
fn gradients_use_the_same_mask() {
    let options = Dropout { p: 0.4, seed: 5, stream: 6 };
    gradcheck(|t| Ok(vec![dropout(&t[0], options)?]), &[randn(1, &[5, 7], DType::F64)], 1e-7);
    let refused = dropout(&randn(1, &[2], DType::F64), Dropout { p: 1.5, ..options });
    let message = refused.map(|_| ()).unwrap_err().to_string();
    assert_eq!(message, "dropout: p is 1.5, valid is 0 to 1");
}
