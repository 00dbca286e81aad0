//! Running sums and products along a dimension.
//!
//! `y_i = x_0 + ... + x_i`, or from the other end. Running values are kept in f64 for floats and i64
//! for integers. The gradient of a running sum is one in the other direction; that of a running product
//! is `dx_i = (x_0 ... x_(i-1)) s_i` with `s_i = dy_i + x_(i+1) s_(i+1)`, which needs no division and so
//! is right around zeros.

use super::cast::Number;
use super::copy::contiguous_into;
use crate::{Backward, DType, Element, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply};
use danaus_runtime::threads::{self, SharedMut};

/// Elements worth a task.
const GRAIN: usize = 1 << 14;
/// Columns that run side by side.
const COLUMNS: usize = 64;

struct CumulativeSum {
    dim: usize,
    reverse: bool,
}

fn check(op: &'static str, inputs: Inputs) -> Result<Vec<Meta>> {
    let x = super::required(op, inputs, 0)?;
    if x.dtype().is_float() || x.dtype().is_int() {
        return Ok(vec![Meta::new(x.shape(), x.dtype())]);
    }
    Err(Error::dtype(op, "x", x.dtype(), "a float or integer dtype"))
}

impl Op for CumulativeSum {
    fn name(&self) -> &'static str {
        "cumsum"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        check("cumsum", inputs)
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = super::required("cumsum", inputs, 0)?.contiguous()?;
        let out = &mut outputs[0];
        match x.dtype() {
            DType::I64 => scan(&x, out, self.dim, self.reverse, 0i64, |sum, v: i64| {
                let sum = sum.wrapping_add(v);
                (sum, sum)
            }),
            DType::F64 => running_sum::<f64>(&x, out, self.dim, self.reverse),
            DType::F32 => running_sum::<f32>(&x, out, self.dim, self.reverse),
            dtype => {
                // Rarer types in a type that holds them.
                let wide = if dtype.is_float() { DType::F32 } else { DType::I64 };
                let sums = x.detach().to_dtype(wide)?.cumsum(self.dim as isize, self.reverse)?;
                contiguous_into(&sums.to_dtype(dtype)?, out)
            }
        }
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let pull = |grad: &Tensor| grad.cumsum(self.dim as isize, !self.reverse);
        Ok(vec![ctx.grads[0].as_ref().map(pull).transpose()?])
    }
}

fn running_sum<T: Number>(x: &Tensor, out: &mut Tensor, dim: usize, reverse: bool) -> Result<()> {
    scan(x, out, dim, reverse, 0.0, |sum, value: T| {
        let sum = sum + value.to_f64();
        (sum, T::from_f64(sum))
    })
}

/// Walks along `dim` with a state for every column; `step` gives the next state and the output.
fn scan<T: Element, V: Copy + Send + Sync>(
    x: &Tensor,
    out: &mut Tensor,
    dim: usize,
    reverse: bool,
    first: V,
    step: impl Fn(V, T) -> (V, T) + Sync + Send,
) -> Result<()> {
    let inner: usize = x.dims()[dim + 1..].iter().product();
    let count = x.dims()[dim];
    let bands = inner.div_ceil(COLUMNS);
    let units = x.dims()[..dim].iter().product::<usize>() * bands;
    let from = x.as_slice::<T>()?;
    let to = SharedMut::new(out.as_slice_mut::<T>()?);
    let unit_size = (count * inner.min(COLUMNS)).max(1);
    let (tasks, per_task) = threads::split(units, GRAIN.div_ceil(unit_size));
    threads::for_each(tasks, |task| {
        for unit in task * per_task..((task + 1) * per_task).min(units) {
            let (row, band) = (unit / bands, unit % bands * COLUMNS);
            let width = COLUMNS.min(inner - band);
            let mut states = [first; COLUMNS];
            for index in 0..count {
                let index = if reverse { count - 1 - index } else { index };
                let at = (row * count + index) * inner + band;
                // SAFETY: the columns of this row belong to this unit.
                let targets = unsafe { to.slice(at, width) };
                let values = targets.iter_mut().zip(&from[at..at + width]).zip(&mut states);
                for ((target, &value), state) in values {
                    (*state, *target) = step(*state, value);
                }
            }
        }
    });
    Ok(())
}

struct CumulativeProduct {
    dim: usize,
}

impl Op for CumulativeProduct {
    fn name(&self) -> &'static str {
        "cumprod"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        check("cumprod", inputs)
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0])
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = super::required("cumprod", inputs, 0)?.detach().to_dtype(DType::F64)?;
        let (x, out) = (x.contiguous()?, &mut outputs[0]);
        let mut products = Tensor::empty(x.shape(), DType::F64, &x.device())?;
        scan(&x, &mut products, self.dim, false, 1.0, |product, value: f64| {
            (product * value, product * value)
        })?;
        contiguous_into(&products.to_dtype(out.dtype())?, out)
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = &ctx.grads[0] else { return Ok(vec![None]) };
        let dtype = grad.dtype();
        let x = ctx.input(0)?.to_dtype(DType::F64)?.contiguous()?;
        let grad = grad.to_dtype(DType::F64)?.contiguous()?;
        let mut before = Tensor::empty(x.shape(), DType::F64, &x.device())?;
        scan(&x, &mut before, self.dim, false, 1.0, |product, value: f64| {
            (product * value, product)
        })?;
        let mut dx = Tensor::empty(x.shape(), DType::F64, &x.device())?;
        suffix(&x, &grad, &before, self.dim, &mut dx)?;
        Ok(vec![Some(dx.to_dtype(dtype)?)])
    }
}

/// `dx_i = before_i s_i` with `s_i = grad_i + x_(i+1) s_(i+1)`.
fn suffix(x: &Tensor, grad: &Tensor, before: &Tensor, dim: usize, dx: &mut Tensor) -> Result<()> {
    let inner: usize = x.dims()[dim + 1..].iter().product();
    let count = x.dims()[dim];
    let columns = x.elem_count() / count.max(1);
    let (x, grad, before) =
        (x.as_slice::<f64>()?, grad.as_slice::<f64>()?, before.as_slice::<f64>()?);
    let dx = dx.as_slice_mut::<f64>()?;
    for column in 0..columns {
        let (row, offset) = (column / inner, column % inner);
        let mut carried = 0.0;
        for index in (0..count).rev() {
            let at = (row * count + index) * inner + offset;
            let s = grad[at] + carried;
            dx[at] = before[at] * s;
            carried = x[at] * s;
        }
    }
    Ok(())
}

impl Tensor {
    /// Running sum along a dimension, from its start or (`reverse`) from its end.
    ///
    /// # Errors
    /// When the dimension is out of range or the dtype is bool or complex.
    pub fn cumsum(&self, dim: isize, reverse: bool) -> Result<Tensor> {
        let dim = self.layout().dim("cumsum", dim)?;
        super::single(apply(CumulativeSum { dim, reverse }, &[Some(self)])?)
    }

    /// Running product along a dimension.
    ///
    /// # Errors
    /// When the dimension is out of range or the dtype is bool or complex.
    pub fn cumprod(&self, dim: isize) -> Result<Tensor> {
        let dim = self.layout().dim("cumprod", dim)?;
        super::single(apply(CumulativeProduct { dim }, &[Some(self)])?)
    }
}
