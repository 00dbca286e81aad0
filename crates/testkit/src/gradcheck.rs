//! Gradients of the tape against central differences, in f64.

use crate::randn;
use danaus_tensor::{DType, Device, Result, Tensor, backward_with, no_grad};

/// Step of the central difference: its error (h^2) and the rounding error (eps / h) meet near 1e-10.
const STEP: f64 = 1e-5;

/// Checks the gradient of `sum over outputs <output, R>` for random cotangents R with respect to every
/// f64 input, element by element.
///
/// An element passes when `|tape - difference| <= tolerance * max(1, |difference|)`. Inputs of other
/// dtypes (indices) are passed through. Outputs that are not f64 are ignored. 1e-6 is a sound
/// tolerance for smooth functions of inputs near 1.
#[track_caller]
pub fn gradcheck(f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>, inputs: &[Tensor], tolerance: f64) {
    let leaves: Vec<Tensor> = inputs
        .iter()
        .map(|input| if input.dtype() == DType::F64 { input.tracked() } else { input.clone() })
        .collect();
    let outputs = run(&f, &leaves);
    let cotangents: Vec<Tensor> = outputs
        .iter()
        .enumerate()
        .map(|(i, output)| randn(77 + i as u64, output.dims(), DType::F64))
        .collect();
    let pairs: Vec<(&Tensor, &Tensor)> =
        outputs.iter().zip(&cotangents).filter(|(output, _)| output.is_tracked()).collect();
    assert!(!pairs.is_empty(), "no output depends on a tracked input");
    let gradients = backward_with(&pairs).unwrap_or_else(|error| panic!("backward: {error}"));
    for (position, leaf) in leaves.iter().enumerate().filter(|(_, leaf)| leaf.is_tracked()) {
        let found = match gradients.get(leaf) {
            Some(gradient) => {
                assert_eq!(gradient.shape(), leaf.shape(), "gradient of input {position}: shape");
                gradient.to_vec::<f64>().unwrap_or_else(|error| panic!("{error}"))
            }
            None => vec![0.0; leaf.elem_count()],
        };
        let values = leaf.to_vec::<f64>().unwrap_or_else(|error| panic!("{error}"));
        for index in 0..values.len() {
            let at = |shift: f64| {
                let mut moved = values.clone();
                moved[index] += shift;
                let moved = Tensor::from_vec(moved, leaf.shape(), &Device::Cpu);
                let mut inputs = inputs.to_vec();
                inputs[position] = moved.unwrap_or_else(|error| panic!("{error}"));
                no_grad(|| loss(&run(&f, &inputs), &cotangents))
            };
            let expected = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let error = (found[index] - expected).abs();
            assert!(
                error <= tolerance * expected.abs().max(1.0),
                "gradient of input {position}, element {index}: {} by the tape, {expected} by \
                 differences",
                found[index]
            );
        }
    }
}

fn run(f: &impl Fn(&[Tensor]) -> Result<Vec<Tensor>>, inputs: &[Tensor]) -> Vec<Tensor> {
    let outputs = f(inputs).unwrap_or_else(|error| panic!("forward: {error}"));
    outputs.into_iter().filter(|output| output.dtype() == DType::F64).collect()
}

fn loss(outputs: &[Tensor], cotangents: &[Tensor]) -> f64 {
    let dot = |(output, cotangent): (&Tensor, &Tensor)| -> f64 {
        let values = output.to_vec::<f64>().unwrap_or_else(|error| panic!("{error}"));
        let weights = cotangent.to_vec::<f64>().unwrap_or_else(|error| panic!("{error}"));
        // Rows without any key carry -inf; they have no gradient and no finite weight.
        values.iter().zip(&weights).filter(|(v, _)| v.is_finite()).map(|(v, w)| v * w).sum()
    };
    outputs.iter().zip(cotangents).map(dot).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_gradient_passes() {
        let (x, y) = (randn(1, &[3, 2], DType::F64), randn(2, &[2], DType::F64));
        gradcheck(|t| Ok(vec![t[0].mul(&t[1])?.mul(&t[0])?]), &[x, y], 1e-6);
    }

    #[test]
    #[should_panic(expected = "gradient of input 0")]
    fn a_wrong_gradient_fails() {
        let x = randn(1, &[3], DType::F64);
        // The detached factor hides half of the derivative of the square.
        gradcheck(|t| Ok(vec![t[0].mul(&t[0].detach())?]), &[x], 1e-6);
    }
}
