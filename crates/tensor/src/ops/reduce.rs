//! Sums along dimensions.

use super::cast::Number;
use crate::{
    Backward, DType, Element, Error, Inputs, Meta, Op, Result, Saves, Shape, Tensor, apply,
};
use danaus_runtime::threads::{self, SharedMut};
use num_complex::Complex;

/// Sums over `outer x [reduced] x inner`, keeping outer and inner.
struct Sum {
    dim: usize,
}

impl Op for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = super::required(self.name(), inputs, 0)?;
        if matches!(x.dtype(), DType::Bool) {
            let allowed = "a number (cast with to_dtype)";
            return Err(Error::dtype(self.name(), "x", x.dtype(), allowed));
        }
        let mut dims = x.dims().to_vec();
        dims[self.dim] = 1;
        Ok(vec![Meta::new(dims, x.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0])
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = super::required(self.name(), inputs, 0)?.contiguous()?;
        let out = &mut outputs[0];
        match x.dtype() {
            DType::I64 => sum_dim::<i64, i64>(&x, self.dim, out, |v| v, |s| s),
            DType::C64 => sum_dim::<Complex<f32>, _>(&x, self.dim, out, |v| v, |s| s),
            DType::C128 => sum_dim::<Complex<f64>, _>(&x, self.dim, out, |v| v, |s| s),
            // f64 sums cost nothing here (the loop waits for memory) and lose no digits.
            dtype => crate::match_dtype!(dtype, T => {
                sum_dim::<T, f64>(&x, self.dim, out, |v| v.to_f64(), T::from_f64)
            }),
        }
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let shape = ctx.input(0)?.shape();
        Ok(vec![ctx.grads[0].as_ref().map(|grad| grad.broadcast_to(shape)).transpose()?])
    }
}

fn sum_dim<T: Element, A: Copy + Default + std::ops::Add<Output = A>>(
    x: &Tensor,
    dim: usize,
    out: &mut Tensor,
    widen: impl Fn(T) -> A + Sync + Send,
    narrow: impl Fn(A) -> T + Sync + Send,
) -> Result<()> {
    let inner: usize = x.dims()[dim + 1..].iter().product();
    let count = x.dims()[dim];
    let source = x.as_slice::<T>()?;
    let target = out.as_slice_mut::<T>()?;
    let len = target.len();
    let (tasks, per_task) = threads::split(len, (1usize << 14).div_ceil(count.max(1)));
    let shared = SharedMut::new(target);
    threads::for_each(tasks, |task| {
        let start = task * per_task;
        // SAFETY: tasks cover disjoint ranges of the slice.
        let part = unsafe { shared.slice(start, per_task.min(len.saturating_sub(start))) };
        for (offset, value) in part.iter_mut().enumerate() {
            let (outer, column) = ((start + offset) / inner, (start + offset) % inner);
            let mut lanes = [A::default(); 8];
            for row in 0..count {
                let element = widen(source[(outer * count + row) * inner + column]);
                lanes[row % 8] = lanes[row % 8] + element;
            }
            let [a, b, c, d, e, f, g, h] = lanes;
            *value = narrow(((a + e) + (c + g)) + ((b + f) + (d + h)));
        }
    });
    Ok(())
}

impl Tensor {
    /// Sum along a dimension, which is kept with size 1.
    ///
    /// # Errors
    /// When the dimension is out of range or the dtype is bool.
    pub fn sum_keepdim(&self, dim: isize) -> Result<Tensor> {
        let dim = self.layout().dim("sum", dim)?;
        super::single(apply(Sum { dim }, &[Some(self)])?)
    }

    /// Sum along a dimension, which disappears.
    ///
    /// # Errors
    /// When the dimension is out of range or the dtype is bool.
    pub fn sum(&self, dim: isize) -> Result<Tensor> {
        self.sum_keepdim(dim)?.squeeze(dim)
    }

    /// Sum of all elements, a scalar.
    ///
    /// # Errors
    /// When the dtype is bool.
    pub fn sum_all(&self) -> Result<Tensor> {
        // Two steps keep every core busy on large tensors; their sizes depend on the shape alone.
        let count = self.elem_count();
        let rows = (1..=64usize).rev().find(|rows| count.is_multiple_of(*rows)).unwrap_or(1);
        self.reshape([rows, count / rows])?.sum(1)?.sum(0)
    }

    /// Sum over the dimensions that broadcasting `shape` to this tensor's shape would stretch.
    ///
    /// # Errors
    /// When `shape` does not broadcast to this tensor's shape.
    pub fn sum_to(&self, shape: &Shape) -> Result<Tensor> {
        if self.shape() == shape {
            return Ok(self.clone());
        }
        let mut result = self.clone();
        while result.rank() > shape.len() {
            result = result.sum(0)?;
        }
        for dim in 0..shape.len() {
            if shape[dim] == 1 && result.dims()[dim] != 1 {
                result = result.sum_keepdim(dim as isize)?;
            }
        }
        if result.shape() == shape {
            Ok(result)
        } else {
            let expected = format!("a shape that {shape} broadcasts to");
            Err(Error::shape("sum_to", "tensor", self.shape(), expected))
        }
    }
}
