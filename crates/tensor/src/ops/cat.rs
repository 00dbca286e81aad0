//! Joining, padding, repeating and splitting along a dimension.

use super::cast::Number;
use super::copy::{fill, place};
use crate::tape::record_views;
use crate::{Backward, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply, match_dtype};

struct Cat {
    dim: usize,
    sizes: Vec<usize>,
}

impl Op for Cat {
    fn name(&self) -> &'static str {
        "cat"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let first = crate::ops::required("cat", inputs, 0)?;
        let mut dims = first.dims().to_vec();
        dims[self.dim] = self.sizes.iter().sum();
        for (position, tensor) in inputs.iter().flatten().enumerate() {
            let arg = || format!("tensor {position}");
            if tensor.dtype() != first.dtype() {
                return Err(Error::dtype("cat", arg(), tensor.dtype(), first.dtype().name()));
            }
            let fits = tensor.rank() == dims.len()
                && (0..dims.len()).all(|d| d == self.dim || tensor.dims()[d] == dims[d]);
            if !fits {
                let expected = format!("{} except in dimension {}", first.shape(), self.dim);
                return Err(Error::shape("cat", arg(), tensor.shape(), expected));
            }
        }
        Ok(vec![Meta::new(dims, first.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let mut first = 0;
        for part in inputs.iter().flatten() {
            place(part, &mut outputs[0], self.dim, first)?;
            first += part.dims()[self.dim];
        }
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = &ctx.grads[0] else { return Ok(vec![None; self.sizes.len()]) };
        let mut start = 0;
        let part = |(&size, &needed): (&usize, &bool)| {
            start += size;
            needed.then(|| grad.narrow(self.dim as isize, start - size, size)).transpose()
        };
        self.sizes.iter().zip(ctx.needs).map(part).collect()
    }
}

/// Constant positions before and after along one dimension.
struct Pad {
    dim: usize,
    before: usize,
    after: usize,
    value: f64,
}

impl Op for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = crate::ops::required("pad", inputs, 0)?;
        let mut dims = x.dims().to_vec();
        let padded =
            dims[self.dim].checked_add(self.before).and_then(|n| n.checked_add(self.after));
        dims[self.dim] = padded.ok_or_else(|| {
            let given = format!("{} and {}", self.before, self.after);
            Error::argument("pad", "before and after", given, "a size that fits memory")
        })?;
        Ok(vec![Meta::new(dims, x.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = crate::ops::required("pad", inputs, 0)?;
        let (size, out) = (x.dims()[self.dim], &mut outputs[0]);
        match_dtype!(x.dtype(), T => {
            let value = T::from_f64(self.value);
            fill(out, self.dim, 0..self.before, value)?;
            fill(out, self.dim, self.before + size..self.before + size + self.after, value)?;
        });
        place(x, out, self.dim, self.before)
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = &ctx.grads[0] else { return Ok(vec![None]) };
        let size = grad.dims()[self.dim] - self.before - self.after;
        Ok(vec![Some(grad.narrow(self.dim as isize, self.before, size)?)])
    }
}

impl Tensor {
    /// Tensors of equal shape, except along `dim`, joined along `dim`.
    ///
    /// # Errors
    /// When there is none, or shapes or dtypes differ.
    pub fn cat(tensors: &[&Tensor], dim: isize) -> Result<Tensor> {
        let Some(first) = tensors.first() else {
            return Err(Error::argument("cat", "tensors", "none", "at least one"));
        };
        let dim = first.layout().dim("cat", dim)?;
        let size = |tensor: &&Tensor| tensor.dims().get(dim).copied().unwrap_or(0);
        let sizes = tensors.iter().map(size).collect();
        let inputs: Vec<Option<&Tensor>> = tensors.iter().map(|tensor| Some(*tensor)).collect();
        crate::ops::single(apply(Cat { dim, sizes }, &inputs)?)
    }

    /// `before` and `after` positions of a constant added along a dimension.
    ///
    /// # Errors
    /// When the dimension is out of range or the result does not fit memory.
    pub fn pad(&self, dim: isize, before: usize, after: usize, value: f64) -> Result<Tensor> {
        let dim = self.layout().dim("pad", dim)?;
        crate::ops::single(apply(Pad { dim, before, after, value }, &[Some(self)])?)
    }

    /// The tensor `times` times in a row along a dimension.
    ///
    /// # Errors
    /// When the dimension is out of range or there is no memory for the result.
    pub fn repeat(&self, dim: isize, times: usize) -> Result<Tensor> {
        let index = self.layout().dim("repeat", dim)?;
        let mut dims = self.dims().to_vec();
        let size = dims[index];
        dims.insert(index, times);
        let stretched = self.unsqueeze(index as isize)?.broadcast_to(dims.clone())?;
        dims.remove(index);
        dims[index] = size
            .checked_mul(times)
            .ok_or_else(|| Error::argument("repeat", "times", times, "a size that fits memory"))?;
        stretched.reshape(dims)
    }

    /// Elements moved by `shift` positions along a dimension; those that leave come in again.
    ///
    /// # Errors
    /// When the dimension is out of range.
    pub fn roll(&self, dim: isize, shift: isize) -> Result<Tensor> {
        let index = self.layout().dim("roll", dim)?;
        let size = self.dims()[index];
        let shift = if size == 0 { 0 } else { shift.rem_euclid(size as isize) as usize };
        if shift == 0 {
            return Ok(self.clone());
        }
        let (head, tail) =
            (self.narrow(dim, size - shift, shift)?, self.narrow(dim, 0, size - shift)?);
        Tensor::cat(&[&head, &tail], dim)
    }

    /// Consecutive parts of the given sizes along a dimension.
    ///
    /// # Errors
    /// When the sizes do not add up to the dimension's.
    pub fn split(&self, dim: isize, sizes: &[usize]) -> Result<Vec<Tensor>> {
        let index = self.layout().dim("split", dim)?;
        let total = sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
        if total != Some(self.dims()[index]) {
            let valid = format!("sizes that add up to {}", self.dims()[index]);
            return Err(Error::argument("split", "sizes", format!("{sizes:?}"), valid));
        }
        let mut start = 0;
        let layout = |&size: &usize| {
            start += size;
            self.layout().narrow(index, start - size, size, 1)
        };
        let layouts = sizes.iter().map(layout).collect();
        let (shape, sizes) = (self.shape().clone(), sizes.to_vec());
        let (dtype, device) = (self.dtype(), self.device());
        Ok(record_views("split", self, layouts, move |grads| {
            let part = |(grad, &size): (&Option<Tensor>, &usize)| match grad {
                Some(grad) => Ok(grad.clone()),
                None => {
                    let mut dims = shape.to_vec();
                    dims[index] = size;
                    Tensor::zeros(dims, dtype, &device)
                }
            };
            let parts: Vec<Tensor> = grads.iter().zip(&sizes).map(part).collect::<Result<_>>()?;
            let borrowed: Vec<&Tensor> = parts.iter().collect();
            Tensor::cat(&borrowed, index as isize)
        }))
    }

    /// `count` consecutive parts of equal size along a dimension; the last one may be smaller.
    ///
    /// # Errors
    /// When the dimension is out of range or `count` is 0.
    pub fn chunk(&self, dim: isize, count: usize) -> Result<Vec<Tensor>> {
        let index = self.layout().dim("chunk", dim)?;
        if count == 0 {
            return Err(Error::argument("chunk", "count", count, "at least 1"));
        }
        let size = self.dims()[index];
        let each = size.div_ceil(count).max(1);
        let sizes: Vec<usize> =
            (0..size.div_ceil(each)).map(|part| each.min(size - part * each)).collect();
        self.split(dim, &sizes)
    }

    /// Tensors of equal shape stacked along a new dimension `dim`.
    ///
    /// # Errors
    /// When there is none, or shapes or dtypes differ.
    pub fn stack(tensors: &[&Tensor], dim: isize) -> Result<Tensor> {
        let widened: Vec<Tensor> =
            tensors.iter().map(|tensor| tensor.unsqueeze(dim)).collect::<Result<_>>()?;
        let borrowed: Vec<&Tensor> = widened.iter().collect();
        Tensor::cat(&borrowed, dim)
    }
}
