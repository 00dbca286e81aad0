//! Linear layers on a GPU: cuBLASLt with bias and residual in the product, or a kernel of our own for a few
//! rows (`few_rows.rs`); the activation in one pass behind it. The library's GELU is the tanh approximation, and it has neither SiLU nor the exact GELU.

use super::few_rows;
use crate::hook::{self, empty_like};
use crate::ops::activation::{self, Activation};
use danaus_runtime::cuda::blas::{Epilogue, MatMul, Matrix, Type, matmul};
use danaus_tensor::ops::evaluate_into;
use danaus_tensor::ops::expr::Expr;
use danaus_tensor::{DType, Error, Result, Tensor, no_grad};

/// Contiguous inputs of the forward product; the bias in the dtype of `x`.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub x: &'a Tensor,
    pub weight: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    pub activation: Option<Activation>,
    pub residual: Option<&'a Tensor>,
}

fn blas_type(dtype: DType) -> Result<Type> {
    match dtype {
        DType::F64 => Ok(Type::F64),
        DType::F32 => Ok(Type::F32),
        DType::BF16 => Ok(Type::Bf16),
        other => Err(Error::not_on_cuda("linear", other)),
    }
}

impl Product<'_> {
    /// `x weight^T + bias`, plus a residual.
    fn product(&self, to: &mut Tensor, residual: Option<&Tensor>) -> Result<()> {
        let (out, features) = (self.weight.dims()[0], self.weight.dims()[1]);
        let rows = to.elem_count() / out.max(1);
        if few_rows::serves(self.x, self.weight, rows)? {
            return few_rows::product(self.x, self.weight, [self.bias, residual], to);
        }
        let row_major = |address, columns: usize| Matrix {
            address,
            row_stride: columns as i64,
            col_stride: 1,
            batch_stride: 0,
        };
        let gpu = to.gpu()?.clone();
        let x = row_major(self.x.device_address()?, features);
        let weight = self.weight.device_address()?;
        let transposed =
            Matrix { address: weight, row_stride: 1, col_stride: features as i64, batch_stride: 0 };
        let bias = self.bias.map(Tensor::device_address).transpose()?;
        let c = row_major(to.device_address_mut()?, out);
        let problem = MatMul {
            beta: if residual.is_some() { 1.0 } else { 0.0 },
            added: residual.map(Tensor::device_address).transpose()?,
            epilogue: bias.map_or(Epilogue::None, Epilogue::Bias),
            tf32: danaus_tensor::cuda::tf32(),
            ..MatMul::new([rows, out, features], blas_type(to.dtype())?, x, transposed, c)
        };
        // SAFETY: the matrices are contiguous tensors of these sides; C is fresh.
        unsafe { matmul(&gpu, &problem) }.map_err(Into::into)
    }

    /// Writes `y`, and the value before the activation if it is wanted.
    pub(super) fn run(&self, y: &mut Tensor, before: Option<&mut Tensor>) -> Result<()> {
        if y.elem_count() == 0 {
            return Ok(());
        }
        if self.weight.dims()[1] == 0 {
            return Err(Error::not_on_cuda("linear", "a product over no features"));
        }
        if y.dtype() == DType::F64 && self.bias.is_some() {
            return self.run_f64(y, before);
        }
        let Some(kind) = self.activation else {
            return self.product(y, self.residual);
        };
        let mut own;
        let before = match before {
            Some(before) => before,
            None => {
                own = empty_like(y)?;
                &mut own
            }
        };
        self.product(before, None)?;
        let value = activation::cuda::formula(kind, &Expr::input(0));
        match self.residual {
            None => evaluate_into(&[value], &[before], std::slice::from_mut(y)),
            Some(residual) => {
                let sum = value + Expr::input(1);
                evaluate_into(&[sum], &[before, residual], std::slice::from_mut(y))
            }
        }
    }
}

impl Product<'_> {
    /// With a bias in f64, which the library's products do not add: a pass before the rest.
    fn run_f64(&self, y: &mut Tensor, before: Option<&mut Tensor>) -> Result<()> {
        let Some(bias) = self.bias else { return self.run(y, before) };
        let mut plain = empty_like(y)?;
        Product { bias: None, activation: None, residual: None, ..*self }.run(&mut plain, None)?;
        let sum = Expr::input(0) + Expr::input(1);
        let value = match self.activation {
            Some(kind) => activation::cuda::formula(kind, &sum),
            None => sum.clone(),
        };
        if let Some(before) = before {
            evaluate_into(&[sum], &[&plain, bias], std::slice::from_mut(before))?;
        }
        match self.residual {
            None => evaluate_into(&[value], &[&plain, bias], std::slice::from_mut(y)),
            Some(residual) => {
                let value = value + Expr::input(2);
                evaluate_into(&[value], &[&plain, bias, residual], std::slice::from_mut(y))
            }
        }
    }
}

/// The gradient before the activation and, if wanted, its column sums in the accumulator's dtype.
pub(super) fn before_activation(
    dy: &Tensor,
    curve: Option<(Activation, Tensor)>,
    sums_wanted: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let dp = match curve {
        None => dy.clone(),
        Some((kind, before)) => {
            let mut dp = empty_like(dy)?;
            activation::cuda::backward(kind, &before, dy, &mut dp)?;
            dp
        }
    };
    let cols = dp.dims().last().copied().unwrap_or(1);
    let sums = sums_wanted.then(|| {
        let rows = dp.elem_count() / cols.max(1);
        no_grad(|| hook::dense_as(&dp.reshape([rows, cols])?.sum(0)?, dy.dtype().accumulator()))
    });
    Ok((dp, sums.transpose()?))
}

/// `dp weight`, shaped like `x`.
pub(super) fn dx(dp: &Tensor, weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    let rows = dp.elem_count() / weight.dims()[0].max(1);
    no_grad(|| dp.reshape([rows, weight.dims()[0]])?.matmul(weight)?.reshape(x.shape()))
}

/// `dp^T x`, shaped like `weight`.
pub(super) fn dweight(dp: &Tensor, weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (out, features) = (weight.dims()[0], weight.dims()[1]);
    let rows = dp.elem_count() / out.max(1);
    no_grad(|| {
        let (dp, x) = (dp.reshape([rows, out])?, x.reshape([rows, features])?);
        dp.transpose(0, 1)?.matmul(&x)
    })
}
