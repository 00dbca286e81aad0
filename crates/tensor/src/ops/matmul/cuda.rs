//! Matrix products on a GPU by cuBLASLt: a batch of equal strides is one call.
//!
//! A matrix whose elements are neighbours neither by row nor by column is copied first. f32 products
//! are f32: TF32 rounds operands to 10 bits and is taken only when `DANAUS_TF32=1` asks for it.

use super::{for_each_run, matrix};
use crate::cuda::tf32;
use crate::{DType, Error, Result, Tensor};
use danaus_runtime::cuda::blas::{MatMul, Matrix, Type, matmul};

/// The library's name of an element type.
pub(crate) fn blas_type(op: &'static str, dtype: DType) -> Result<Type> {
    match dtype {
        DType::F64 => Ok(Type::F64),
        DType::F32 => Ok(Type::F32),
        DType::BF16 => Ok(Type::Bf16),
        DType::F16 => Ok(Type::F16),
        other => Err(Error::not_on_cuda(op, other)),
    }
}

/// The tensor itself, or a row-major copy if the library cannot read its matrices as they lie.
fn readable(tensor: &Tensor) -> Result<Tensor> {
    let (rows, columns, row_stride, col_stride) = matrix(tensor);
    if at(0, row_stride, col_stride, 0).is_plain(rows, columns) {
        return Ok(tensor.detach());
    }
    tensor.detach().copy()
}

fn at(address: u64, row_stride: isize, col_stride: isize, batch_stride: isize) -> Matrix {
    Matrix {
        address,
        row_stride: row_stride as i64,
        col_stride: col_stride as i64,
        batch_stride: batch_stride as i64,
    }
}

/// `out = a b` over the last two dimensions; leading ones broadcast.
pub(super) fn product(a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()> {
    let kind = blas_type("matmul", out.dtype())?;
    let (a, b) = (readable(a)?, readable(b)?);
    let ((m, k, ars, acs), (_, n, brs, bcs)) = (matrix(&a), matrix(&b));
    if k == 0 {
        return crate::ops::zero_cuda(out);
    }
    let gpu = out.gpu()?.clone();
    let (pa, pb, pc) = (a.device_address()?, b.device_address()?, out.device_address_mut()?);
    let size = out.dtype().size() as isize;
    let shift = |start: u64, elements: isize| start.wrapping_add_signed((elements * size) as i64);
    let mut failed = None;
    for_each_run(&a, &b, out, |count, strides, first| {
        let a = at(shift(pa, first[0]), ars, acs, strides.a);
        let b = at(shift(pb, first[1]), brs, bcs, strides.b);
        let c = at(shift(pc, first[2]), n as isize, 1, strides.c);
        let problem =
            MatMul { batch: count, tf32: tf32(), ..MatMul::new([m, n, k], kind, a, b, c) };
        // SAFETY: the runs describe matrices inside the tensors; the output is fresh.
        if let Err(error) = unsafe { matmul(&gpu, &problem) } {
            failed.get_or_insert(error);
        }
    })?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}
