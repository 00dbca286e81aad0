//! Reductions as methods of tensors.

use super::super::expr::Expr;
use super::super::fused::apply_expr;
use super::{ArgExtreme, Kind, Reduce};
use crate::{Error, Result, Shape, Tensor, apply};

impl Tensor {
    /// Folds dimensions, which stay with size 1. Neighbours are folded together.
    fn reduce(&self, kind: Kind, dims: &[isize]) -> Result<Tensor> {
        let mut dims: Vec<usize> =
            dims.iter().map(|&dim| self.layout().dim(kind.name(), dim)).collect::<Result<_>>()?;
        dims.sort_unstable();
        if let Some(pair) = dims.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::argument(kind.name(), "dims", pair[0], "each dimension once"));
        }
        let mut result = self.clone();
        while let Some(last) = dims.pop() {
            let mut first = last;
            while first > 0 && dims.last() == Some(&(first - 1)) {
                first -= 1;
                dims.pop();
            }
            let op = Reduce { kind, first, last, shape: result.shape().clone() };
            result = super::super::single(apply(op, &[Some(&result)])?)?;
        }
        Ok(result)
    }

    fn reduce_one(&self, kind: Kind, dim: isize) -> Result<Tensor> {
        self.reduce(kind, &[dim])?.squeeze(dim)
    }

    fn reduce_all(&self, kind: Kind) -> Result<Tensor> {
        self.reshape([self.elem_count()])?.reduce_one(kind, 0)
    }

    /// Sum along a dimension, which is kept with size 1.
    ///
    /// # Errors
    /// When the dimension is out of range or the dtype is bool.
    pub fn sum_keepdim(&self, dim: isize) -> Result<Tensor> {
        self.reduce(Kind::Sum, &[dim])
    }

    /// Sum along several dimensions, which are kept with size 1.
    ///
    /// # Errors
    /// When a dimension is out of range or named twice, or the dtype is bool.
    pub fn sum_dims(&self, dims: &[isize]) -> Result<Tensor> {
        self.reduce(Kind::Sum, dims)
    }

    /// Sum along a dimension, which disappears.
    ///
    /// # Errors
    /// When the dimension is out of range or the dtype is bool.
    pub fn sum(&self, dim: isize) -> Result<Tensor> {
        self.reduce_one(Kind::Sum, dim)
    }

    /// Sum of all elements, a scalar.
    ///
    /// # Errors
    /// When the dtype is bool.
    pub fn sum_all(&self) -> Result<Tensor> {
        self.reduce_all(Kind::Sum)
    }

    /// Mean along a dimension, which disappears; NaN of no elements.
    ///
    /// # Errors
    /// When the dimension is out of range or the dtype is not a float or complex.
    pub fn mean(&self, dim: isize) -> Result<Tensor> {
        self.mean_keepdim(dim)?.squeeze(dim)
    }

    /// Mean along a dimension, which is kept with size 1.
    ///
    /// # Errors
    /// When the dimension is out of range or the dtype is not a float or complex.
    pub fn mean_keepdim(&self, dim: isize) -> Result<Tensor> {
        let size = self.dims()[self.layout().dim("mean", dim)?];
        self.sum_keepdim(dim)?.affine(1.0 / size as f64, 0.0)
    }

    /// Mean of all elements, a scalar.
    ///
    /// # Errors
    /// When the dtype is not a float or complex.
    pub fn mean_all(&self) -> Result<Tensor> {
        self.sum_all()?.affine(1.0 / self.elem_count() as f64, 0.0)
    }

    /// Variance along a dimension, which disappears: the sum of squared distances from the mean over
    /// `size - correction` (1 for the unbiased estimate, 0 for the plain mean).
    ///
    /// # Errors
    /// When the dimension is out of range or the dtype is not a float.
    pub fn var(&self, dim: isize, correction: usize) -> Result<Tensor> {
        let size = self.dims()[self.layout().dim("var", dim)?];
        let squares = apply_expr(
            "var",
            &Expr::parse("square(x0 - x1)")?,
            &[self, &self.mean_keepdim(dim)?],
            None,
        )?;
        let count = size as f64 - correction as f64;
        squares.sum(dim)?.affine(1.0 / count.max(0.0), 0.0)
    }

    /// Product along a dimension, which disappears.
    ///
    /// # Errors
    /// When the dimension is out of range or the dtype is bool or complex.
    pub fn prod(&self, dim: isize) -> Result<Tensor> {
        self.reduce_one(Kind::Product, dim)
    }

    /// Largest element along a dimension, which disappears; the gradient goes to the first of equals.
    ///
    /// # Errors
    /// When the dimension is out of range or empty, or the dtype is bool or complex.
    pub fn max(&self, dim: isize) -> Result<Tensor> {
        self.reduce_one(Kind::Max, dim)
    }

    /// Largest element along a dimension, which is kept with size 1.
    ///
    /// # Errors
    /// As [`Self::max`].
    pub fn max_keepdim(&self, dim: isize) -> Result<Tensor> {
        self.reduce(Kind::Max, &[dim])
    }

    /// Largest of all elements, a scalar.
    ///
    /// # Errors
    /// When there is none, or the dtype is bool or complex.
    pub fn max_all(&self) -> Result<Tensor> {
        self.reduce_all(Kind::Max)
    }

    /// Smallest element along a dimension, which disappears; the gradient goes to the first of equals.
    ///
    /// # Errors
    /// As [`Self::max`].
    pub fn min(&self, dim: isize) -> Result<Tensor> {
        self.reduce_one(Kind::Min, dim)
    }

    /// Smallest of all elements, a scalar.
    ///
    /// # Errors
    /// When there is none, or the dtype is bool or complex.
    pub fn min_all(&self) -> Result<Tensor> {
        self.reduce_all(Kind::Min)
    }

    /// Whether any element of a bool tensor is true along a dimension, which disappears.
    ///
    /// # Errors
    /// When the dimension is out of range or the dtype is not bool.
    pub fn any(&self, dim: isize) -> Result<Tensor> {
        self.reduce_one(Kind::Any, dim)
    }

    /// Whether all elements of a bool tensor are true along a dimension, which disappears.
    ///
    /// # Errors
    /// When the dimension is out of range or the dtype is not bool.
    pub fn all(&self, dim: isize) -> Result<Tensor> {
        self.reduce_one(Kind::All, dim)
    }

    fn arg_extreme(&self, kind: Kind, dim: isize) -> Result<Tensor> {
        let name = if kind == Kind::Max { "argmax" } else { "argmin" };
        let at = self.layout().dim(name, dim)?;
        let reduce = Reduce { kind, first: at, last: at, shape: self.shape().clone() };
        super::super::single(apply(ArgExtreme { reduce }, &[Some(self)])?)?.squeeze(dim)
    }

    /// Index (i64) of the largest element along a dimension, which disappears: the first of equals,
    /// or the first NaN.
    ///
    /// # Errors
    /// As [`Self::max`].
    pub fn argmax(&self, dim: isize) -> Result<Tensor> {
        self.arg_extreme(Kind::Max, dim)
    }

    /// Index (i64) of the smallest element along a dimension, which disappears: the first of equals,
    /// or the first NaN.
    ///
    /// # Errors
    /// As [`Self::max`].
    pub fn argmin(&self, dim: isize) -> Result<Tensor> {
        self.arg_extreme(Kind::Min, dim)
    }

    /// `ln sum e^x` along a dimension, which disappears, without overflow.
    ///
    /// # Errors
    /// As [`Self::max`], and when the dtype is an integer.
    pub fn logsumexp(&self, dim: isize) -> Result<Tensor> {
        let formula =
            |text, inputs: &[&Tensor]| apply_expr("logsumexp", &Expr::parse(text)?, inputs, None);
        // An infinite largest element is left in: inf - inf would be NaN.
        let largest = self.detach().max_keepdim(dim)?;
        let largest = formula("where(abs(x0) < inf, x0, 0)", &[&largest])?;
        let total = formula("exp(x0 - x1)", &[self, &largest])?.sum_keepdim(dim)?;
        formula("ln(x0) + x1", &[&total, &largest])?.squeeze(dim)
    }

    /// Sum over the dimensions that broadcasting `shape` to this tensor's shape would stretch.
    ///
    /// # Errors
    /// When `shape` does not broadcast to this tensor's shape.
    pub fn sum_to(&self, shape: &Shape) -> Result<Tensor> {
        if self.shape() == shape {
            return Ok(self.clone());
        }
        let missing = self.rank().checked_sub(shape.len());
        let fits = missing.is_some_and(|missing| {
            let pairs = shape.iter().zip(&self.dims()[missing..]);
            pairs.into_iter().all(|(&small, &large)| small == large || small == 1)
        });
        let Some(missing) = missing.filter(|_| fits) else {
            let expected = format!("a shape that {shape} broadcasts to");
            return Err(Error::shape("sum_to", "tensor", self.shape(), expected));
        };
        let stretched =
            |dim: &usize| *dim < missing || (shape[*dim - missing] == 1 && self.dims()[*dim] != 1);
        let dims: Vec<isize> = (0..self.rank()).filter(stretched).map(|dim| dim as isize).collect();
        self.reduce(Kind::Sum, &dims)?.reshape(shape)
    }
}
