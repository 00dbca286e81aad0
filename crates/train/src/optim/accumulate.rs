//! Gradients of one update: summed over micro-batches in a fixed order, and their global norm.

use super::fused::PIECE;
use super::rules::{Real, SquareSum};
use crate::Result;
use danaus_kernel::ops::optimizer::square_sum as square_sum_on_gpu;
use danaus_runtime::{simd, threads};
use danaus_tensor::{DType, Gradients, ParamSet, Tensor};
use std::sync::Mutex;

/// One gradient per parameter, in the order of the set; `None` where the loss does not depend on it.
#[derive(Default)]
pub struct GradientSet(pub(super) Vec<Option<Tensor>>);

impl GradientSet {
    /// The gradients of one backward pass.
    ///
    /// # Errors
    /// When there is no memory for a copy of a gradient that is not contiguous.
    pub fn new(params: &ParamSet, gradients: Gradients) -> Result<Self> {
        let mut set = Self(params.iter().map(|_| None).collect());
        set.add(params, gradients)?;
        Ok(set)
    }

    /// Adds the gradients of another backward pass.
    ///
    /// # Errors
    /// When there is no memory for the sum.
    pub fn add(&mut self, params: &ParamSet, mut gradients: Gradients) -> Result<()> {
        self.0.resize_with(params.len(), || None);
        for (param, sum) in params.iter().zip(&mut self.0) {
            let Some(gradient) = param.take_grad(&mut gradients) else { continue };
            let gradient = gradient.to_dtype(param.tensor().dtype())?.contiguous()?;
            *sum = Some(match sum.take() {
                Some(before) => before.add(&gradient)?,
                None => gradient,
            });
        }
        Ok(())
    }

    /// The gradient of parameter number `index`.
    pub fn get(&self, index: usize) -> Option<&Tensor> {
        self.0.get(index)?.as_ref()
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Euclidean norm of all gradients together, summed in f64 in a fixed order: the same bits on any
/// number of threads. Not finite if and only if an element is not (for f32 gradients).
///
/// # Errors
/// Gradients of another dtype than f32 or f64.
pub fn global_norm(gradients: &GradientSet) -> Result<f64> {
    if gradients.0.iter().flatten().any(|gradient| gradient.device().is_cuda()) {
        let all: Vec<&Tensor> = gradients.0.iter().flatten().collect();
        return Ok(match square_sum_on_gpu(&all)? {
            Some(total) => total.to_scalar()?.sqrt(),
            None => 0.0,
        });
    }
    let mut total = 0.0;
    for gradient in gradients.0.iter().flatten() {
        total += match gradient.dtype() {
            DType::F64 => square_sum(gradient.as_slice::<f64>()?),
            _ => square_sum(gradient.as_slice::<f32>()?),
        };
    }
    Ok(total.sqrt())
}

fn square_sum<R: Real>(elements: &[R]) -> f64 {
    let pieces: Vec<&[R]> = elements.chunks(PIECE).collect();
    let sums: Vec<Mutex<f64>> = pieces.iter().map(|_| Mutex::new(0.0)).collect();
    threads::for_each(pieces.len(), |index| {
        let sum = simd::dispatch(SquareSum(pieces[index]));
        *sums[index].lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = sum;
    });
    sums.into_iter().map(|sum| sum.into_inner().unwrap_or_else(|p| p.into_inner())).sum()
}
