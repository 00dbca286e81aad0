//! Comparison of tensors.

use danaus_tensor::{DType, Tensor};

fn values(tensor: &Tensor) -> Vec<f64> {
    let plain = tensor.detach().to_dtype(DType::F64).expect("a real dtype");
    plain.to_vec::<f64>().expect("f64 after the cast")
}

/// Largest `|found - expected| / (max |expected| + 1e-300)`; infinite when one is NaN and the other not.
///
/// The scale is the largest value of the expected tensor: entries near zero are sums of larger terms
/// and carry their rounding errors.
pub fn max_relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    let (found, expected) = (values(found), values(expected));
    let finite = expected.iter().filter(|value| value.is_finite());
    let scale = finite.fold(0.0f64, |scale, value| scale.max(value.abs())) + 1e-300;
    let error = |(&a, &b): (&f64, &f64)| {
        if a == b || (a.is_nan() && b.is_nan()) {
            0.0
        } else if (a - b).is_finite() {
            (a - b).abs() / scale
        } else {
            f64::INFINITY
        }
    };
    found.iter().zip(&expected).map(error).fold(0.0, f64::max)
}

/// Fails with the place of the largest difference unless shapes agree and
/// `|found - expected| <= tolerance * max(1, max |expected|)` everywhere.
#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.shape(), expected.shape(), "{what}: shapes differ");
    let (a, b) = (values(found), values(expected));
    let finite = b.iter().filter(|value| value.is_finite());
    let bound = tolerance * finite.fold(1.0f64, |scale, value| scale.max(value.abs()));
    let difference = |index: usize| {
        if a[index] == b[index] || (a[index].is_nan() && b[index].is_nan()) {
            0.0
        } else {
            let difference = (a[index] - b[index]).abs();
            if difference.is_nan() { f64::INFINITY } else { difference }
        }
    };
    let worst = (0..a.len()).max_by(|&i, &j| difference(i).total_cmp(&difference(j)));
    if let Some(index) = worst {
        assert!(
            difference(index) <= bound,
            "{what}: element {index} of {} is {}, expected {} (difference {:e}, allowed {bound:e})",
            found.shape(),
            a[index],
            b[index],
            difference(index)
        );
    }
}
