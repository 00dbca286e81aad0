//! Views: the same storage under another layout. Nothing is copied unless strides force it.

use crate::tape::record_view;
use crate::{Error, Result, Shape, Tensor};

impl Tensor {
    /// The same elements in row-major order under another shape.
    ///
    /// One dimension may be given as `usize::MAX` and is inferred. Copies only when the strides of a
    /// view force it.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = self.infer_dim(shape.into())?;
        if shape.checked_elem_count() != Some(self.elem_count()) {
            let expected = format!("{} elements as in {}", self.elem_count(), self.shape());
            return Err(Error::shape("reshape", "shape", shape, expected));
        }
        match self.layout().reshape(&shape) {
            Some(layout) => {
                let before = self.shape().clone();
                Ok(record_view("reshape", self, layout, move |grad| grad.reshape(&before)))
            }
            None => self.contiguous()?.reshape(shape),
        }
    }

    fn infer_dim(&self, shape: Shape) -> Result<Shape> {
        let Some(unknown) = shape.iter().position(|&dim| dim == usize::MAX) else {
            return Ok(shape);
        };
        let known: usize = shape.iter().filter(|&&dim| dim != usize::MAX).product();
        let mut dims = shape.to_vec();
        if known == 0 || !self.elem_count().is_multiple_of(known) {
            let expected = format!("a divisor of {} elements", self.elem_count());
            return Err(Error::shape("reshape", "shape", shape, expected));
        }
        dims[unknown] = self.elem_count() / known;
        Ok(dims.into())
    }

    /// Dimensions in another order: output dimension `i` is input dimension `order[i]`.
    ///
    /// # Errors
    /// When `order` is not a permutation of the dimensions.
    pub fn permute(&self, order: &[usize]) -> Result<Self> {
        let mut inverse = vec![usize::MAX; self.rank()];
        let valid = order.len() == self.rank()
            && order.iter().enumerate().all(|(to, &from)| {
                from < inverse.len() && std::mem::replace(&mut inverse[from], to) == usize::MAX
            });
        if !valid {
            let valid = format!("a permutation of 0..{}", self.rank());
            return Err(Error::argument("permute", "order", format!("{order:?}"), valid));
        }
        let layout = self.layout().permute(order);
        Ok(record_view("permute", self, layout, move |grad| grad.permute(&inverse)))
    }

    /// Two dimensions exchanged; negative ones count from the end.
    ///
    /// # Errors
    /// When a dimension is out of range.
    pub fn transpose(&self, a: isize, b: isize) -> Result<Self> {
        let (a, b) = (self.layout().dim("transpose", a)?, self.layout().dim("transpose", b)?);
        let mut order: Vec<usize> = (0..self.rank()).collect();
        order.swap(a, b);
        self.permute(&order)
    }

    /// Elements `start..start + len` along a dimension.
    ///
    /// # Errors
    /// When the range is outside.
    pub fn narrow(&self, dim: isize, start: usize, len: usize) -> Result<Self> {
        let dim = self.layout().dim("narrow", dim)?;
        let size = self.dims()[dim];
        if start.checked_add(len).is_none_or(|end| end > size) {
            let given = format!("{start}..{}", start.saturating_add(len));
            return Err(Error::argument("narrow", "range", given, format!("inside 0..{size}")));
        }
        let layout = self.layout().narrow(dim, start, len, 1);
        Ok(record_view("narrow", self, layout, move |grad| {
            grad.pad(dim as isize, start, size - start - len, 0.0)
        }))
    }

    /// One position along a dimension, which disappears.
    ///
    /// # Errors
    /// When the position is outside.
    pub fn select(&self, dim: isize, index: usize) -> Result<Self> {
        self.narrow(dim, index, 1)?.squeeze(dim)
    }

    /// Removes a dimension of size 1.
    ///
    /// # Errors
    /// When its size is another one.
    pub fn squeeze(&self, dim: isize) -> Result<Self> {
        let index = self.layout().dim("squeeze", dim)?;
        let mut dims = self.dims().to_vec();
        if dims.remove(index) != 1 {
            let expected = format!("size 1 in dimension {index}");
            return Err(Error::shape("squeeze", "tensor", self.shape(), expected));
        }
        self.reshape(dims)
    }

    /// Inserts a dimension of size 1 before `dim` (negative: counted from the end of the result).
    ///
    /// # Errors
    /// When the position is outside.
    pub fn unsqueeze(&self, dim: isize) -> Result<Self> {
        let rank = self.rank() as isize;
        let index = if dim < 0 { dim + rank + 1 } else { dim };
        if !(0..=rank).contains(&index) {
            let valid = format!("-{}..={rank}", rank + 1);
            return Err(Error::argument("unsqueeze", "dim", dim, valid));
        }
        let mut dims = self.dims().to_vec();
        dims.insert(index as usize, 1);
        self.reshape(dims)
    }

    /// Dimensions `first..=last` merged to one.
    ///
    /// # Errors
    /// When a dimension is out of range or they are in the wrong order.
    pub fn flatten(&self, first: isize, last: isize) -> Result<Self> {
        let (a, b) = (self.layout().dim("flatten", first)?, self.layout().dim("flatten", last)?);
        if a > b {
            let given = format!("{first}..={last}");
            return Err(Error::argument("flatten", "dims", given, "first <= last"));
        }
        let mut dims = self.dims()[..a].to_vec();
        dims.push(self.dims()[a..=b].iter().product());
        dims.extend(&self.dims()[b + 1..]);
        self.reshape(dims)
    }

    /// Stretches dimensions of size 1 (and adds leading ones) without copying.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn broadcast_to(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if &shape == self.shape() {
            return Ok(self.clone());
        }
        let Some(layout) = self.layout().broadcast_to(&shape) else {
            let expected = format!("a shape that stretches to {shape}");
            return Err(Error::shape("broadcast_to", "tensor", self.shape(), expected));
        };
        let before = self.shape().clone();
        Ok(record_view("broadcast_to", self, layout, move |grad| grad.sum_to(&before)))
    }

    /// The order along a dimension reversed.
    ///
    /// # Errors
    /// When the dimension is out of range.
    pub fn flip(&self, dim: isize) -> Result<Self> {
        let index = self.layout().dim("flip", dim)?;
        let layout = self.layout().flip(index);
        Ok(record_view("flip", self, layout, move |grad| grad.flip(index as isize)))
    }
}
