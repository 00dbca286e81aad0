//! The rotation that spreads outliers: signs, then the Hadamard matrix in Sylvester's order.

use danaus_tensor::rng::Rng;
use danaus_tensor::{Device, Result, Tensor};

/// Stream of the generator that signs come from.
const STREAM: u64 = 0xf8;

/// Signs of a rotation, +1 or -1 (head_dim) in f32: the same for the same seed on every device.
///
/// # Errors
/// When there is no memory.
pub fn signs(seed: u64, head_dim: usize) -> Result<Tensor> {
    let rng = Rng::new(seed, STREAM);
    let sign = |i: usize| if rng.uniform_at(i as u64) < 0.5 { -1.0f32 } else { 1.0 };
    Tensor::from_vec((0..head_dim).map(sign).collect(), [head_dim], &Device::Cpu)
}

/// `x -> x H / sqrt(n)` in place after multiplication by the signs; n is a power of two.
///
/// H has n log2 n additions: stage s adds and subtracts the entries whose indices differ in bit s.
pub fn rotate(x: &mut [f64], signs: &[f64]) {
    let norm = 1.0 / (x.len() as f64).sqrt();
    x.iter_mut().zip(signs).for_each(|(x, sign)| *x *= sign * norm);
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use danaus_tensor::DType;
    use danaus_testkit::golden;

    #[test]
    fn rotation_is_that_of_the_golden_cases() {
        let case = golden("03-flashattention-3", "hadamard");
        for n in [2, 4, 8, 16, 64, 128, 256] {
            let values = |name: &str| case.get(name).to_vec::<f64>().unwrap();
            let (x, signs) = (values(&format!("x_{n}")), values(&format!("sign_{n}")));
            let expected = values(&format!("incoherent_{n}"));
            for (x, expected) in x.chunks_exact(n).zip(expected.chunks_exact(n)) {
                let mut x = x.to_vec();
                rotate(&mut x, &signs);
                let near = x.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
                assert!(near, "{n}: {x:?} against {expected:?}");
            }
        }
    }

    #[test]
    fn rotation_keeps_products_and_signs_are_balanced() {
        let signs = signs(7, 256).unwrap().to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
        assert!(signs.iter().all(|sign| sign.abs() == 1.0));
        assert!(signs.iter().sum::<f64>().abs() < 64.0);
        let a: Vec<f64> = (0..256).map(|i| f64::from(i % 7) - 3.0).collect();
        let b: Vec<f64> = (0..256).map(|i| f64::from(i % 5) - 2.0).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (mut c, mut d) = (a.clone(), b.clone());
        rotate(&mut c, &signs);
        rotate(&mut d, &signs);
        assert!((dot(&a, &b) - dot(&c, &d)).abs() < 1e-9);
    }
}
