//! Moving elements on a GPU: bits of one size, through the strided kernel of formulas.

use super::super::elementwise::cuda::{Operand, pointwise};
use super::super::expr::Statements;
use crate::cuda::bits_type;
use crate::{Element, Error, Result, Tensor};

/// Copies `x`, of any layout, to the fresh tensor `out` of the same shape and dtype.
pub(crate) fn contiguous_into(x: &Tensor, out: &mut Tensor) -> Result<()> {
    let (kind, shape, gpu) = (bits_type(x.dtype()), x.shape().clone(), x.gpu()?.clone());
    let inputs = [Operand::input(x, &shape, kind)?];
    let outputs = [Operand::output(out, kind)?];
    pointwise("contiguous", &gpu, kind, &Statements::copy(), &shape, &outputs, &inputs)
}

/// Copies `part` into the positions from `first` on along `dim` of the fresh tensor `out`.
pub(crate) fn place(part: &Tensor, out: &mut Tensor, dim: usize, first: usize) -> Result<()> {
    let (kind, shape, gpu) = (bits_type(part.dtype()), part.shape().clone(), part.gpu()?.clone());
    let inputs = [Operand::input(part, &shape, kind)?];
    let outputs = [Operand::part(out, kind, dim, first)?];
    pointwise("cat", &gpu, kind, &Statements::copy(), &shape, &outputs, &inputs)
}

/// The bits of an element, for types of up to 8 bytes.
fn bits<T: Element>(op: &'static str, value: T) -> Result<u64> {
    let size = size_of::<T>();
    if size > 8 {
        return Err(Error::not_on_cuda(op, T::DTYPE));
    }
    let mut bytes = [0u8; 8];
    // SAFETY: an element is plain data of `size` bytes, at most 8.
    unsafe {
        std::ptr::copy_nonoverlapping((&raw const value).cast(), bytes.as_mut_ptr(), size);
    }
    Ok(u64::from_le_bytes(bytes))
}

/// Sets the positions `range` along `dim` of the fresh tensor `out` to `value`.
pub(crate) fn fill<T: Element>(
    out: &mut Tensor,
    dim: usize,
    range: std::ops::Range<usize>,
    value: T,
) -> Result<()> {
    let (kind, gpu) = (bits_type(T::DTYPE), out.gpu()?.clone());
    let mut dims = out.dims().to_vec();
    dims[dim] = range.len();
    let outputs = [Operand::part(out, kind, dim, range.start)?];
    let statements = Statements::constant(bits("pad", value)?);
    pointwise("pad", &gpu, kind, &statements, &dims, &outputs, &[])
}

/// Sets all elements of a fresh tensor.
pub(crate) fn fill_all<T: Element>(out: &mut Tensor, value: T) -> Result<()> {
    let (kind, shape, gpu) = (bits_type(T::DTYPE), out.shape().clone(), out.gpu()?.clone());
    let outputs = [Operand::output(out, kind)?];
    let statements = Statements::constant(bits("full", value)?);
    pointwise("full", &gpu, kind, &statements, &shape, &outputs, &[])
}
