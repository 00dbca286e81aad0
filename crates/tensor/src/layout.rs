//! How a tensor's elements lie in its storage.

use crate::{Error, Result, Shape};

/// Shape, strides and start, all in elements. Strides may be zero (broadcast) or negative (flip).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    shape: Shape,
    strides: Vec<isize>,
    offset: usize,
}

impl Layout {
    /// Row-major from the start of the storage.
    pub fn contiguous(shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        Self { strides: shape.contiguous_strides(), shape, offset: 0 }
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Strides in elements.
    pub fn strides(&self) -> &[isize] {
        &self.strides
    }

    /// First element's position in the storage.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Whether the elements lie in row-major order without gaps (from any offset).
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1isize;
        for (&dim, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if dim == 0 {
                return true;
            }
            if dim != 1 && stride != step {
                return false;
            }
            step *= dim as isize;
        }
        true
    }

    /// Resolves a possibly negative dimension (-1 is the last).
    ///
    /// # Errors
    /// When it is out of range.
    pub fn dim(&self, op: &'static str, dim: isize) -> Result<usize> {
        let rank = self.shape.len() as isize;
        let index = if dim < 0 { dim + rank } else { dim };
        if (0..rank).contains(&index) {
            Ok(index as usize)
        } else {
            let valid = format!("-{rank}..{rank} for shape {}", self.shape);
            Err(Error::argument(op, "dim", dim, valid))
        }
    }

    /// The same elements with dimensions in another order.
    pub fn permute(&self, order: &[usize]) -> Self {
        Self {
            shape: order.iter().map(|&dim| self.shape[dim]).collect::<Vec<_>>().into(),
            strides: order.iter().map(|&dim| self.strides[dim]).collect(),
            offset: self.offset,
        }
    }

    /// Elements `start..start + len` along a dimension, every `step`-th of them.
    pub fn narrow(&self, dim: usize, start: usize, len: usize, step: usize) -> Self {
        let mut dims = self.shape.to_vec();
        dims[dim] = len.div_ceil(step);
        let mut strides = self.strides.clone();
        // An empty result keeps the start inside the storage.
        let shift = if len == 0 { 0 } else { start as isize * strides[dim] };
        strides[dim] *= step as isize;
        Self { shape: dims.into(), strides, offset: (self.offset as isize + shift) as usize }
    }

    /// The order along a dimension reversed.
    pub fn flip(&self, dim: usize) -> Self {
        let mut strides = self.strides.clone();
        let last = self.shape[dim].saturating_sub(1) as isize;
        let offset = (self.offset as isize + last * strides[dim]) as usize;
        strides[dim] = -strides[dim];
        Self { shape: self.shape.clone(), strides, offset }
    }

    /// Stretched to a larger shape with zero strides; `None` if the shapes do not fit.
    pub fn broadcast_to(&self, shape: &Shape) -> Option<Self> {
        let missing = shape.len().checked_sub(self.shape.len())?;
        let mut strides = vec![0; shape.len()];
        for index in missing..shape.len() {
            let dim = self.shape[index - missing];
            if dim == shape[index] {
                strides[index] = self.strides[index - missing];
            } else if dim != 1 {
                return None;
            }
        }
        Some(Self { shape: shape.clone(), strides, offset: self.offset })
    }

    /// The same elements under another shape without moving them, if strides allow it.
    pub fn reshape(&self, shape: &Shape) -> Option<Self> {
        if self.is_contiguous() {
            let strides = shape.contiguous_strides();
            return Some(Self { shape: shape.clone(), strides, offset: self.offset });
        }
        // Merge runs of dimensions that lie one inside the other, then split the runs again.
        let mut runs: Vec<(usize, isize)> = Vec::new();
        for (&dim, &stride) in self.shape.iter().zip(&self.strides) {
            match runs.last_mut() {
                _ if dim == 1 => {}
                Some((size, last)) if *last == dim as isize * stride => {
                    *size *= dim;
                    *last = stride;
                }
                _ => runs.push((dim, stride)),
            }
        }
        let mut strides = vec![0; shape.len()];
        let mut next = shape.len();
        for &(size, stride) in runs.iter().rev() {
            let (mut left, mut step) = (size, stride);
            while left > 1 {
                next = next.checked_sub(1)?;
                let dim = shape[next];
                if dim == 0 || left % dim != 0 {
                    return None;
                }
                strides[next] = step;
                step *= dim as isize;
                left /= dim;
            }
        }
        Some(Self { shape: shape.clone(), strides, offset: self.offset })
    }

    /// Splits one dimension's elements to a run of positions: calls `visit(start, count, stride)`
    /// for every innermost row, in row-major order. `start` is a storage position.
    pub fn for_each_row(&self, mut visit: impl FnMut(usize, usize, isize)) {
        if self.shape.elem_count() == 0 {
            return;
        }
        let Some((&inner, outer)) = self.shape.split_last() else {
            visit(self.offset, 1, 1);
            return;
        };
        let rows: usize = outer.iter().product();
        let mut index = vec![0usize; outer.len()];
        let mut position = self.offset as isize;
        for _ in 0..rows {
            visit(position as usize, inner, self.strides[outer.len()]);
            for dim in (0..outer.len()).rev() {
                index[dim] += 1;
                position += self.strides[dim];
                if index[dim] < outer[dim] {
                    break;
                }
                position -= self.strides[dim] * outer[dim] as isize;
                index[dim] = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(layout: &Layout) -> Vec<usize> {
        let mut all = Vec::new();
        layout.for_each_row(|start, count, stride| {
            all.extend((0..count).map(|i| (start as isize + i as isize * stride) as usize));
        });
        all
    }

    #[test]
    fn views_visit_the_right_elements() {
        let layout = Layout::contiguous([2, 3]);
        assert_eq!(positions(&layout.permute(&[1, 0])), [0, 3, 1, 4, 2, 5]);
        assert_eq!(positions(&layout.narrow(1, 1, 2, 1)), [1, 2, 4, 5]);
        assert_eq!(positions(&layout.flip(1)), [2, 1, 0, 5, 4, 3]);
        let row = Layout::contiguous([3]).broadcast_to(&[2, 3].into()).unwrap();
        assert_eq!(positions(&row), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn reshape_keeps_order_or_declines() {
        let base = Layout::contiguous([2, 3, 4]);
        let swapped = base.permute(&[1, 0, 2]);
        let split = swapped.reshape(&[3, 2, 2, 2].into()).unwrap();
        assert_eq!(positions(&split), positions(&swapped));
        assert!(swapped.reshape(&[6, 4].into()).is_none());
        let column = base.narrow(2, 1, 1, 1);
        assert_eq!(positions(&column.reshape(&[6].into()).unwrap()), positions(&column));
    }
}
