//! Muon: momentum, orthogonalised, for matrices (Jordan et al., 2024; scaled as in Liu et al.,
//! "Muon is scalable for LLM training", arXiv 2502.16982).
//!
//! ```text
//! m = momentum m + (1 - momentum) g
//! u = (1 - momentum) g + momentum m  if nesterov  else  m
//! X = u / |u|_F;  repeated:  A = X X^T,  X = a X + (b A + c A^2) X      (a, b, c) = (3.4445, -4.775, 2.0315)
//! p = p (1 - lr wd) - 0.2 sqrt(max(rows, cols)) lr X
//! ```
//!
//! The iteration (Newton-Schulz with a quintic) drives all singular values of `u` towards 1, roughly
//! into 0.7 to 1.2, which is enough. A wide matrix is used as it is, a tall one transposed, so that
//! `A` is the smaller product. The factor makes the root mean square of an update that of AdamW.

use super::OptimizerConfig;
use crate::{Error, Result};
use danaus_tensor::{Param, Tensor, no_grad};

/// Coefficients of the quintic.
const QUINTIC: [f64; 3] = [3.4445, -4.775, 2.0315];
/// Root mean square of an AdamW update, as measured by the second paper.
const ADAMW_RMS: f64 = 0.2;
/// Keeps the norm of a zero gradient from being divided by.
const EPS: f64 = 1e-7;

/// The nearest matrix with singular values near 1, by `iterations` of the quintic.
///
/// # Errors
/// When `matrix` is not two-dimensional.
pub fn orthogonalize(matrix: &Tensor, iterations: u32) -> Result<Tensor> {
    let &[rows, cols] = matrix.dims() else {
        return Err(Error::Internal(format!("orthogonalize of a tensor {}", matrix.shape())));
    };
    let tall = rows > cols;
    let squares = matrix.mul(matrix)?.sum_all()?;
    let wide = if tall { matrix.transpose(0, 1)? } else { matrix.clone() };
    let mut x = match matrix.device().is_cuda() {
        // The norm stays where it is: reading it would wait for the device once a matrix.
        true => wide.div(&squares.sqrt()?.affine(1.0, EPS)?)?.contiguous()?,
        false => wide.affine(1.0 / (squares.to_scalar()?.sqrt() + EPS), 0.0)?.contiguous()?,
    };
    let [a, b, c] = QUINTIC;
    for _ in 0..iterations {
        let gram = x.matmul(&x.transpose(0, 1)?)?;
        let polynomial = gram.affine(b, 0.0)?.add(&gram.matmul(&gram)?.affine(c, 0.0)?)?;
        x = x.affine(a, 0.0)?.add(&polynomial.matmul(&x)?)?;
    }
    Ok(if tall { x.transpose(0, 1)?.contiguous()? } else { x })
}

/// The numbers of one step.
pub(super) struct Context {
    pub grad_scale: f64,
    pub lr_factor: f64,
}

/// Updates one matrix.
pub(super) fn step(
    config: &OptimizerConfig,
    param: &Param,
    gradient: &Tensor,
    slots: &mut [Tensor],
    context: &Context,
) -> Result<()> {
    let (OptimizerConfig::Muon(muon), [momentum]) = (config, slots) else {
        return Err(Error::Internal(format!("{} is no parameter of Muon", param.name())));
    };
    no_grad(|| {
        let gradient = gradient.affine((1.0 - muon.momentum) * context.grad_scale, 0.0)?;
        *momentum = momentum.affine(muon.momentum, 0.0)?.add(&gradient)?;
        let update = match muon.nesterov {
            true => momentum.affine(muon.momentum, 0.0)?.add(&gradient)?,
            false => momentum.clone(),
        };
        let direction = orthogonalize(&update, muon.iterations)?;
        let lr = muon.lr * context.lr_factor;
        let value = param.tensor().detach();
        let longest = value.dims().iter().copied().max().unwrap_or(1) as f64;
        let shrink = if param.decays() { 1.0 - lr * muon.weight_decay } else { 1.0 };
        let change = direction.affine(-lr * ADAMW_RMS * longest.sqrt(), 0.0)?;
        Ok(param.set(&value.affine(shrink, 0.0)?.add(&change)?)?)
    })
}
