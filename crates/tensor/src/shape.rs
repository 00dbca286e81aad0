//! The extent of a tensor along each dimension.

use std::fmt;

/// Dimensions, outermost first. A scalar has none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// The dimensions as a slice.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// Number of elements.
    pub fn elem_count(&self) -> usize {
        self.0.iter().product()
    }

    /// Number of elements, or `None` when it does not fit the address space.
    pub fn checked_elem_count(&self) -> Option<usize> {
        self.0.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim))
    }

    /// Strides, in elements, of a row-major tensor of this shape.
    pub fn contiguous_strides(&self) -> Vec<isize> {
        let mut strides = vec![0; self.0.len()];
        let mut step = 1isize;
        for (stride, &dim) in strides.iter_mut().zip(&self.0).rev() {
            *stride = step;
            step *= dim.max(1) as isize;
        }
        strides
    }

    /// The shape that both operands of an elementwise operation are stretched to, if there is one.
    pub fn broadcast(&self, other: &Shape) -> Option<Shape> {
        let rank = self.0.len().max(other.0.len());
        let dim = |shape: &Shape, index: usize| {
            let missing = rank - shape.0.len();
            if index < missing { 1 } else { shape.0[index - missing] }
        };
        (0..rank)
            .map(|index| match (dim(self, index), dim(other, index)) {
                (a, b) if a == b => Some(a),
                (1, b) => Some(b),
                (a, 1) => Some(a),
                _ => None,
            })
            .collect::<Option<Vec<usize>>>()
            .map(Shape)
    }
}

impl std::ops::Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl From<Vec<usize>> for Shape {
    fn from(dims: Vec<usize>) -> Self {
        Self(dims)
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Self(dims.to_vec())
    }
}

impl From<&Shape> for Shape {
    fn from(shape: &Shape) -> Self {
        shape.clone()
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self(dims.to_vec())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.0.iter().map(usize::to_string).collect();
        write!(f, "[{}]", dims.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_the_usual_rule() {
        let shape = |dims: &[usize]| Shape::from(dims);
        assert_eq!(shape(&[3, 1]).broadcast(&shape(&[2])), Some(shape(&[3, 2])));
        assert_eq!(shape(&[]).broadcast(&shape(&[2, 5])), Some(shape(&[2, 5])));
        assert_eq!(shape(&[0]).broadcast(&shape(&[1])), Some(shape(&[0])));
        assert_eq!(shape(&[3]).broadcast(&shape(&[2])), None);
    }
}
