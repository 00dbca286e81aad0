//! Concatenation.

use crate::{
    Backward, Element, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply, match_dtype,
};

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

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let parts: Vec<Tensor> =
            inputs.iter().flatten().map(|tensor| tensor.contiguous()).collect::<Result<_>>()?;
        let dtype = outputs[0].dtype();
        match_dtype!(dtype, T => copy_parts::<T>(&parts, self.dim, &mut outputs[0]))
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

fn copy_parts<T: Element>(parts: &[Tensor], dim: usize, out: &mut Tensor) -> Result<()> {
    let outer: usize = out.dims()[..dim].iter().product();
    let inner: usize = out.dims()[dim + 1..].iter().product();
    let row = out.dims()[dim] * inner;
    let target = out.as_slice_mut::<T>()?;
    let mut start = 0;
    for part in parts {
        let width = part.dims()[dim] * inner;
        let source = part.as_slice::<T>()?;
        for index in 0..outer {
            let from = &source[index * width..(index + 1) * width];
            target[index * row + start..][..width].copy_from_slice(from);
        }
        start += width;
    }
    Ok(())
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
