//! From tensors to the slices and rows that kernels take, with the checks that recurrent operators
//! share.

use super::cpu::rows::{Rows, Source, Target};
use super::runs::{self, Run};
use danaus_tensor::{DType, Error, Inputs, Result, Tensor};

/// The type that states and per-head parameters have beside arrays of `dtype`.
pub(crate) fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Refuses arrays that the kernels do not compute on.
pub(crate) fn check_array(op: &'static str, arg: &str, tensor: &Tensor) -> Result<()> {
    if !matches!(tensor.dtype(), DType::F64 | DType::F32 | DType::BF16) {
        return Err(Error::dtype(op, arg, tensor.dtype(), "f64, f32 or bf16"));
    }
    Ok(())
}

/// Refuses another dtype than the expected one.
pub(crate) fn check_dtype(
    op: &'static str,
    arg: &str,
    tensor: &Tensor,
    expected: DType,
) -> Result<()> {
    if tensor.dtype() == expected {
        Ok(())
    } else {
        Err(Error::dtype(op, arg, tensor.dtype(), expected.name()))
    }
}

/// Refuses another shape than the expected one, which `meaning` spells out.
pub(crate) fn check_shape(
    op: &'static str,
    arg: &str,
    tensor: &Tensor,
    expected: &[usize],
    meaning: &str,
) -> Result<()> {
    if tensor.dims() == expected {
        return Ok(());
    }
    Err(Error::shape(op, arg, tensor.shape(), format!("{meaning} = {expected:?}")))
}

/// An input that must be there.
pub(crate) fn required<'a>(
    op: &'static str,
    inputs: Inputs<'a>,
    names: &[&str],
    index: usize,
) -> Result<&'a Tensor> {
    let tensor = inputs.get(index).copied().flatten();
    tensor.ok_or_else(|| Error::argument(op, names[index], "missing", "a tensor"))
}

/// A tensor whose rows (all but the inner dimensions) lie at a constant distance.
pub(crate) struct Held {
    tensor: Tensor,
    rows: usize,
    width: usize,
    stride: usize,
}

impl Held {
    /// Takes the tensor as it is where its inner `inner` dimensions are contiguous and its outer ones
    /// are evenly spaced; copies it otherwise.
    pub(crate) fn new(tensor: &Tensor, inner: usize) -> Result<Self> {
        let tensor = tensor.detach();
        let outer = tensor.rank().saturating_sub(inner);
        let rows = tensor.dims()[..outer].iter().product();
        let width: usize = tensor.dims()[outer..].iter().product();
        if let Some(stride) = row_stride(&tensor, outer) {
            return Ok(Self { tensor, rows, width, stride });
        }
        Ok(Self { tensor: tensor.contiguous()?, rows, width, stride: width })
    }

    /// The tensor that holds the rows.
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Number of rows.
    pub(crate) fn count(&self) -> usize {
        self.rows
    }

    /// Device address of the first row and the distance between rows, for kernels on a GPU.
    pub(crate) fn on_device(&self) -> Result<(u64, usize)> {
        Ok((self.tensor.device_address()?, self.stride))
    }

    /// The elements, for kernels on f32 and bf16.
    pub(crate) fn rows(&self) -> Result<Rows<'_>> {
        let len = if self.rows == 0 || self.width == 0 {
            0
        } else {
            (self.rows - 1) * self.stride + self.width
        };
        // SAFETY: `len` reaches from the first to the last element of the view.
        let data = unsafe {
            if self.tensor.dtype() == DType::BF16 {
                let view = self.tensor.view::<half::bf16>()?;
                Source::Bf16(std::slice::from_raw_parts(view.ptr, len))
            } else {
                let view = self.tensor.view::<f32>()?;
                Source::F32(std::slice::from_raw_parts(view.ptr, len))
            }
        };
        Ok(Rows { data, stride: self.stride })
    }
}

/// Distance between rows, if it is constant and the inner dimensions are contiguous.
fn row_stride(tensor: &Tensor, outer: usize) -> Option<usize> {
    let (dims, strides) = (tensor.dims(), tensor.strides());
    let mut step = 1isize;
    for (dim, stride) in dims.iter().zip(strides).skip(outer).rev() {
        if *dim != 1 && *stride != step {
            return None;
        }
        step *= *dim as isize;
    }
    let width = step;
    let mut outer_dims = dims[..outer].iter().zip(strides).rev().filter(|(dim, _)| **dim != 1);
    let Some((first_dim, stride)) = outer_dims.next() else { return usize::try_from(width).ok() };
    let mut step = *stride * *first_dim as isize;
    for (dim, outer_stride) in outer_dims {
        if *outer_stride != step {
            return None;
        }
        step *= *dim as isize;
    }
    // Rows that overlap (broadcasting) are no rows to the kernels.
    (*stride >= width).then_some(*stride as usize)
}

/// All elements in row-major order, contiguous and off the tape.
pub(crate) fn plain(tensor: &Tensor) -> Result<Tensor> {
    tensor.detach().contiguous()
}

/// [`plain`] for an optional input.
pub(crate) fn plain_optional(tensor: Option<&Tensor>) -> Result<Option<Tensor>> {
    tensor.map(plain).transpose()
}

/// The elements of an optional tensor that [`plain_optional`] made.
pub(crate) fn slice<T: danaus_tensor::Element>(tensor: &Option<Tensor>) -> Result<Option<&[T]>> {
    tensor.as_ref().map(Tensor::as_slice).transpose()
}

/// The elements of a contiguous f32 or bf16 tensor.
pub(crate) fn source(tensor: &Tensor) -> Result<Source<'_>> {
    match tensor.dtype() {
        DType::BF16 => Ok(Source::Bf16(tensor.as_slice()?)),
        _ => Ok(Source::F32(tensor.as_slice()?)),
    }
}

/// A fresh f32 or bf16 tensor to write to.
pub(crate) fn target(tensor: &mut Tensor) -> Result<Target> {
    match tensor.dtype() {
        DType::BF16 => Ok(Target::bf16(tensor.as_slice_mut()?)),
        _ => Ok(Target::f32(tensor.as_slice_mut()?)),
    }
}

/// A fresh tensor shaped like another one.
pub(crate) fn empty_like(tensor: &Tensor) -> Result<Tensor> {
    Tensor::empty(tensor.shape(), tensor.dtype(), &tensor.device())
}

/// A tensor of the values, with dtype and shape of another one.
pub(crate) fn like<T: danaus_tensor::Element>(values: Vec<T>, tensor: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, tensor.shape(), &tensor.device())?.to_dtype(tensor.dtype())
}

/// The runs of a batch and the number of its states.
pub(crate) struct Packing {
    pub(crate) runs: Vec<Run>,
    pub(crate) states: usize,
}

impl Packing {
    /// Checks `seq_idx` `[batch, seqlen]` and `cu_seqlens` `[sequences + 1]` and cuts the rows.
    pub(crate) fn new(
        op: &'static str,
        (batch, seqlen): (usize, usize),
        seq_idx: Option<&Tensor>,
        cu_seqlens: Option<&Tensor>,
    ) -> Result<Self> {
        let seq_idx = seq_idx.map(|tensor| integers(op, "seq_idx", tensor)).transpose()?;
        if let Some((_, tensor)) = &seq_idx {
            check_shape(op, "seq_idx", tensor, &[batch, seqlen], "[batch, seqlen]")?;
        }
        let seq_idx = seq_idx.map(|(values, _)| values);
        let Some(cu_seqlens) = cu_seqlens else {
            let runs = match &seq_idx {
                Some(seq_idx) => runs::from_seq_idx(seq_idx, batch, seqlen),
                None => runs::from_batch(batch, seqlen),
            };
            return Ok(Self { runs, states: batch });
        };
        let (bounds, tensor) = integers(op, "cu_seqlens", cu_seqlens)?;
        if tensor.rank() != 1 || bounds.is_empty() {
            let expected = "[sequences + 1]";
            return Err(Error::shape(op, "cu_seqlens", tensor.shape(), expected));
        }
        if batch != 1 {
            let valid = "a batch of 1 beside cu_seqlens: pack the sequences one after the other";
            return Err(Error::argument(op, "batch", batch, valid));
        }
        let ordered = bounds.windows(2).all(|pair| pair[0] <= pair[1]);
        let (first, last) = (bounds[0], bounds[bounds.len() - 1]);
        if first != 0 || last != seqlen as i64 || !ordered {
            let given = format!("{bounds:?}");
            let valid = format!("non-decreasing from 0 to seqlen = {seqlen}");
            return Err(Error::argument(op, "cu_seqlens", given, valid));
        }
        let runs = runs::from_cu_seqlens(&bounds, seq_idx.as_deref());
        Ok(Self { runs, states: bounds.len() - 1 })
    }
}

fn integers(op: &'static str, arg: &str, tensor: &Tensor) -> Result<(Vec<i64>, Tensor)> {
    if !matches!(tensor.dtype(), DType::I32 | DType::I64) {
        return Err(Error::dtype(op, arg, tensor.dtype(), "i32 or i64"));
    }
    let tensor = tensor.detach().to_dtype(DType::I64)?;
    Ok((tensor.to_vec::<i64>()?, tensor))
}
