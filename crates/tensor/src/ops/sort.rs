//! Sorting and the largest elements.
//!
//! Orders are found on keys: 64-bit unsigned numbers that compare as the elements do, with NaN above
//! everything (as in PyTorch) and -0 equal to 0. Equal elements keep their order, also descending.
//! Only indices are computed here; values are gathered with them, which is where gradients come from.

use crate::{Backward, DType, Element, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply};
use danaus_runtime::threads::{self, SharedMut};

/// Elements worth a task.
const GRAIN: usize = 1 << 12;

/// Indices of the first `count` elements in order, along the last dimension of a contiguous tensor.
struct Order {
    count: usize,
    descending: bool,
}

impl Op for Order {
    fn name(&self) -> &'static str {
        "argsort"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = super::required("argsort", inputs, 0)?;
        if x.dtype().is_complex() {
            return Err(Error::dtype("argsort", "x", x.dtype(), "a dtype with an order"));
        }
        let mut dims = x.dims().to_vec();
        let Some(size) = dims.last_mut() else {
            return Err(Error::shape("argsort", "x", x.shape(), "at least one dimension"));
        };
        if u32::try_from(*size).is_err() {
            return Err(Error::shape("argsort", "x", x.shape(), "rows below 2^32 elements"));
        }
        *size = self.count;
        Ok(vec![Meta::new(dims, DType::I64)])
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = super::required("argsort", inputs, 0)?.detach().contiguous()?;
        let size = x.dims().last().copied().unwrap_or(0);
        let out = outputs[0].as_slice_mut::<i64>()?;
        match x.dtype() {
            DType::I64 => self.rows(x.as_slice::<i64>()?, size, out, |v| (v as u64) ^ (1 << 63)),
            DType::F32 => self.rows(x.as_slice::<f32>()?, size, out, |v| float_key(f64::from(v))),
            _ => {
                let x = x.to_dtype(DType::F64)?;
                self.rows(x.as_slice::<f64>()?, size, out, float_key);
            }
        }
        Ok(())
    }

    fn backward(&self, _: &Backward) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![None])
    }
}

/// A number that orders as the float does.
fn float_key(value: f64) -> u64 {
    if value.is_nan() {
        return u64::MAX;
    }
    // Adding 0 makes -0 and 0 the same.
    let bits = (value + 0.0).to_bits();
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

impl Order {
    fn rows<T: Element>(
        &self,
        x: &[T],
        size: usize,
        out: &mut [i64],
        key: impl Fn(T) -> u64 + Sync + Send,
    ) {
        let (count, flip) = (self.count, if self.descending { u64::MAX } else { 0 });
        if size == 0 || count == 0 {
            return;
        }
        let rows = x.len() / size;
        let shared = SharedMut::new(out);
        let (tasks, per_task) = threads::split(rows, GRAIN.div_ceil(size));
        threads::for_each(tasks, |task| {
            let mut keys: Vec<(u64, u32)> = Vec::with_capacity(size);
            for row in task * per_task..((task + 1) * per_task).min(rows) {
                let values = &x[row * size..(row + 1) * size];
                keys.clear();
                // The index in the key makes an unstable sort stable.
                keys.extend((0u32..).zip(values).map(|(index, &v)| (key(v) ^ flip, index)));
                if count < size {
                    keys.select_nth_unstable(count - 1);
                }
                keys[..count].sort_unstable();
                // SAFETY: rows of the output are written once.
                let to = unsafe { shared.slice(row * count, count) };
                to.iter_mut().zip(&keys).for_each(|(to, (_, index))| *to = i64::from(*index));
            }
        });
    }
}

impl Tensor {
    /// Indices (i64) that sort along a dimension. Equal elements keep their order; NaN counts as
    /// largest.
    ///
    /// # Errors
    /// When the dimension is out of range or the dtype is complex.
    pub fn argsort(&self, dim: isize, descending: bool) -> Result<Tensor> {
        let index = self.layout().dim("argsort", dim)?;
        self.order(index, self.dims()[index], descending)
    }

    fn order(&self, dim: usize, count: usize, descending: bool) -> Result<Tensor> {
        let last = self.detach().transpose(dim as isize, -1)?;
        let order = super::single(apply(Order { count, descending }, &[Some(&last)])?)?;
        order.transpose(dim as isize, -1)
    }

    /// Elements sorted along a dimension, with the indices (i64) they come from.
    ///
    /// # Errors
    /// When the dimension is out of range or the dtype is complex.
    pub fn sort(&self, dim: isize, descending: bool) -> Result<(Tensor, Tensor)> {
        let index = self.argsort(dim, descending)?;
        Ok((self.gather(dim, &index)?, index))
    }

    /// The `count` largest elements along a dimension (or smallest), best first, with their indices
    /// (i64).
    ///
    /// # Errors
    /// When there are fewer than `count` elements, or as for [`Self::sort`].
    pub fn topk(&self, dim: isize, count: usize, largest: bool) -> Result<(Tensor, Tensor)> {
        let at = self.layout().dim("topk", dim)?;
        let size = self.dims()[at];
        if count > size {
            return Err(Error::argument("topk", "k", count, format!("0..={size}")));
        }
        let index = self.order(at, count, largest)?;
        Ok((self.gather(dim, &index)?, index))
    }
}
