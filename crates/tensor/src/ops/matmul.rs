//! Matrix products.
//!
//! `y[.., i, j] = sum over k of a[.., i, k] b[.., k, j]`; the leading dimensions broadcast. Operands may
//! have any strides and are not copied; gradients are products with transposed views. f32 and f64 are
//! summed in their own type, bf16 and f16 in f32. Complex products are four real ones on the parts.

pub(crate) mod cuda;

use super::elementwise::coalesce;
use crate::gemm::{BatchStrides, GemmElement, Mat, MatMut, Options, Output, gemm_batched};
use crate::{
    Backward, DType, Element, Error, Inputs, Meta, Op, Result, Saves, Shape, Tensor, apply,
};
use half::bf16;
use num_complex::Complex;

struct MatMul;

/// Leading dimensions, rows and columns.
fn parts<'a>(arg: &str, tensor: &'a Tensor) -> Result<(&'a [usize], usize, usize)> {
    match tensor.dims() {
        [batch @ .., rows, columns] => Ok((batch, *rows, *columns)),
        _ => Err(Error::shape("matmul", arg, tensor.shape(), "at least two dimensions")),
    }
}

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let (a, b) = (super::required("matmul", inputs, 0)?, super::required("matmul", inputs, 1)?);
        let (batch_a, m, k) = parts("a", a)?;
        let (batch_b, depth, n) = parts("b", b)?;
        if depth != k {
            let expected = format!("[.., {k}, columns] to follow a {}", a.shape());
            return Err(Error::shape("matmul", "b", b.shape(), expected));
        }
        if a.dtype() != b.dtype() {
            return Err(Error::dtype("matmul", "b", b.dtype(), a.dtype().name()));
        }
        let known = [DType::F64, DType::F32, DType::BF16, DType::C64, DType::C128];
        if !known.contains(&a.dtype()) {
            let allowed = "f64, f32, bf16, f16, c64 or c128";
            return Err(Error::dtype("matmul", "a", a.dtype(), allowed));
        }
        let batch = Shape::from(batch_a).broadcast(&Shape::from(batch_b)).ok_or_else(|| {
            let expected = format!("leading dimensions that broadcast with {}", a.shape());
            Error::shape("matmul", "b", b.shape(), expected)
        })?;
        let mut dims = batch.to_vec();
        dims.extend([m, n]);
        Ok(vec![Meta::new(dims, a.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0, 1])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (a, b) = (super::required("matmul", inputs, 0)?, super::required("matmul", inputs, 1)?);
        let out = &mut outputs[0];
        if out.device().is_cuda() {
            return cuda::product(a, b, out);
        }
        match a.dtype() {
            DType::F64 => product::<f64>(a, b, out),
            DType::F32 => product::<f32>(a, b, out),
            DType::BF16 => product::<bf16>(a, b, out),
            DType::C64 => complex_product::<f32>(a, b, out),
            _ => complex_product::<f64>(a, b, out),
        }
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = &ctx.grads[0] else { return Ok(vec![None, None]) };
        let (a, b) = (ctx.input(0)?, ctx.input(1)?);
        let (mut da, mut db) = (None, None);
        if ctx.needs[0] {
            da = Some(grad.matmul(&b.transpose(-2, -1)?.conj()?)?.sum_to(a.shape())?);
        }
        if ctx.needs[1] {
            let shared = b.dims()[..b.rank() - 2].iter().all(|&dim| dim == 1);
            let product = if shared && a.dims()[..a.rank() - 2] == grad.dims()[..grad.rank() - 2] {
                // One b for the whole batch: the sum over the batch is part of the product.
                let (k, n) = (a.dims()[a.rank() - 1], grad.dims()[grad.rank() - 1]);
                let rows = a.elem_count() / k.max(1);
                let rows = if k == 0 { grad.elem_count() / n.max(1) } else { rows };
                a.reshape([rows, k])?.transpose(0, 1)?.conj()?.matmul(&grad.reshape([rows, n])?)?
            } else {
                a.transpose(-2, -1)?.conj()?.matmul(grad)?
            };
            db = Some(if product.elem_count() == b.elem_count() {
                product.reshape(b.shape())?
            } else {
                product.sum_to(b.shape())?
            });
        }
        Ok(vec![da, db])
    }
}

/// The products of a batch, as runs of equal strides: calls `run(count, strides, a, b, c)` with element
/// offsets of each run's first matrices.
fn for_each_run(
    a: &Tensor,
    b: &Tensor,
    out: &Tensor,
    mut run: impl FnMut(usize, BatchStrides, [isize; 3]),
) -> Result<()> {
    let [batch @ .., m, n] = out.dims() else { return Ok(()) };
    let k = a.dims()[a.rank() - 1];
    let stretch = |tensor: &Tensor, rows: usize, columns: usize| {
        let mut dims = batch.to_vec();
        dims.extend([rows, columns]);
        tensor.detach().broadcast_to(dims)
    };
    let (a, b) = (stretch(a, *m, k)?, stretch(b, k, *n)?);
    // Only the batch dimensions: the matrices are cut down to their first element.
    let first = |tensor: &Tensor| -> Result<Option<Tensor>> {
        if tensor.elem_count() == 0 {
            return Ok(None);
        }
        let rank = tensor.rank() as isize;
        Ok(Some(tensor.narrow(rank - 2, 0, 1)?.narrow(rank - 1, 0, 1)?))
    };
    let (dims, strides) = coalesce(&Shape::from(batch), &[first(&a)?, first(&b)?]);
    let (count, outer) = dims.split_last().map_or((1, &[][..]), |(count, outer)| (*count, outer));
    let last = |list: &[isize]| list.last().copied().unwrap_or(0);
    let size = (m * n) as isize;
    let inner = BatchStrides { a: last(&strides[0]), b: last(&strides[1]), c: size };
    for index in 0..outer.iter().product::<usize>() {
        let (mut rest, mut at) = (index, [0, 0, index as isize * count as isize * size]);
        for (axis, &dim) in outer.iter().enumerate().rev() {
            let step = (rest % dim) as isize;
            at[0] += step * strides[0][axis];
            at[1] += step * strides[1][axis];
            rest /= dim;
        }
        run(count, inner, at);
    }
    Ok(())
}

/// Strides of the last two dimensions and their sizes.
fn matrix(tensor: &Tensor) -> (usize, usize, isize, isize) {
    let (rank, dims, strides) = (tensor.rank(), tensor.dims(), tensor.strides());
    (dims[rank - 2], dims[rank - 1], strides[rank - 2], strides[rank - 1])
}

fn product<T: Element + GemmElement>(a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()> {
    let ((m, k, ars, acs), (_, n, brs, bcs)) = (matrix(a), matrix(b));
    let (pa, pb) = (a.view::<T>()?.ptr, b.view::<T>()?.ptr);
    let pc = out.as_slice_mut::<T>()?.as_mut_ptr();
    for_each_run(a, b, out, |count, strides, at| {
        // SAFETY: the runs describe matrices inside the tensors; the output is fresh and its matrices
        // are disjoint.
        unsafe {
            let c = MatMut::row_major(pc.offset(at[2]), m, n);
            let a =
                Mat { ptr: pa.offset(at[0]), rows: m, cols: k, row_stride: ars, col_stride: acs };
            let b =
                Mat { ptr: pb.offset(at[1]), rows: k, cols: n, row_stride: brs, col_stride: bcs };
            gemm_batched(count, strides, c, a, b, &Options::default());
        }
    })
}

/// Real and imaginary parts lie side by side, so each is a real matrix with doubled strides:
/// `re = re re - im im`, `im = re im + im re`.
fn complex_product<R>(a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()>
where
    R: Element + GemmElement + Output<Acc = R> + std::ops::Neg<Output = R> + num_traits::Float,
    Complex<R>: Element,
{
    let ((m, k, ars, acs), (_, n, brs, bcs)) = (matrix(a), matrix(b));
    let pa = a.view::<Complex<R>>()?.ptr.cast::<R>();
    let pb = b.view::<Complex<R>>()?.ptr.cast::<R>();
    let pc = out.as_slice_mut::<Complex<R>>()?.as_mut_ptr().cast::<R>();
    for_each_run(a, b, out, |count, strides, at| {
        let strides = BatchStrides { a: 2 * strides.a, b: 2 * strides.b, c: 2 * strides.c };
        let products = [(0, 0, 0), (1, 1, 0), (0, 1, 1), (1, 0, 1)];
        for (step, (part_a, part_b, part_c)) in products.into_iter().enumerate() {
            let alpha =
                if step == 1 { -<R as num_traits::One>::one() } else { num_traits::One::one() };
            let beta =
                if step % 2 == 0 { num_traits::Zero::zero() } else { num_traits::One::one() };
            let options = Options { alpha, beta, ..Options::default() };
            let (row_stride, col_stride) = (2 * n as isize, 2);
            // SAFETY: as in `product`; a complex number is its two parts in this order.
            unsafe {
                let ptr = pc.offset(2 * at[2] + part_c);
                let c = MatMut { ptr, rows: m, cols: n, row_stride, col_stride };
                let (row_stride, col_stride) = (2 * ars, 2 * acs);
                let ptr = pa.offset(2 * at[0] + part_a);
                let a = Mat { ptr, rows: m, cols: k, row_stride, col_stride };
                let (row_stride, col_stride) = (2 * brs, 2 * bcs);
                let ptr = pb.offset(2 * at[1] + part_b);
                let b = Mat { ptr, rows: k, cols: n, row_stride, col_stride };
                gemm_batched(count, strides, c, a, b, &options);
            }
        }
    })
}

impl Tensor {
    /// The matrix product over the last two dimensions; leading dimensions broadcast.
    ///
    /// # Errors
    /// When the inner sizes or dtypes differ, leading dimensions do not broadcast, or there are fewer
    /// than two dimensions.
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        if self.dtype() == DType::F16 && other.dtype() == DType::F16 {
            let wide = self.to_dtype(DType::F32)?.matmul(&other.to_dtype(DType::F32)?)?;
            return wide.to_dtype(DType::F16);
        }
        // One matrix for the whole batch: a single product with more rows, where no copy is needed.
        if other.rank() == 2
            && self.rank() > 2
            && let [batch @ .., m, k] = self.dims()
            && *k == other.dims()[0]
            && self.is_contiguous()
        {
            let rows = batch.iter().product::<usize>() * m;
            let mut dims = self.dims().to_vec();
            dims[self.rank() - 1] = other.dims()[1];
            return self.reshape([rows, *k])?.matmul(other)?.reshape(dims);
        }
        super::single(apply(MatMul, &[Some(self), Some(other)])?)
    }
}
