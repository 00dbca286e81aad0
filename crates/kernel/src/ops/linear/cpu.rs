//! The products on the engine of `danaus_tensor::gemm`, and the pass between them backwards.

use crate::hook::{empty_like, match_float};
use crate::ops::activation::{self, Activation};
use crate::vector::{load, rows_of, split_rows, store, sum_blocks};
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{Kernel, Lane, Simd, dispatch};
use danaus_runtime::threads::{self, SharedMut};
use danaus_tensor::gemm::{self, Epilogue, Mat, MatMut, Output, Times};
use danaus_tensor::{DType, Element, Error, Result, Tensor};
use half::{bf16, f16};
use std::ops::Range;

/// The activation of the engine's epilogue.
pub(crate) fn epilogue_activation(activation: Option<Activation>) -> gemm::Activation {
    match activation {
        None => gemm::Activation::Identity,
        Some(Activation::Gelu) => gemm::Activation::GeluErf,
        Some(Activation::GeluTanh) => gemm::Activation::GeluTanh,
        Some(Activation::Silu) => gemm::Activation::Silu,
        Some(Activation::Relu) => gemm::Activation::Relu,
    }
}

/// A matrix as it lies: the transposed view of a weight is used in place.
fn strided<T: Element>(tensor: &Tensor) -> Result<Mat<T>> {
    let view = tensor.view::<T>()?;
    let (&[rows, cols], &[row_stride, col_stride]) = (view.shape, view.strides) else {
        return Err(Error::internal("linear: a weight that is no matrix"));
    };
    Ok(Mat { ptr: view.ptr, rows, cols, row_stride, col_stride })
}

/// Inputs of the forward product; all but the weight contiguous, the bias in the accumulator's dtype.
pub(super) struct Product<'a> {
    pub x: &'a Tensor,
    pub weight: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    pub activation: Option<Activation>,
    pub residual: Option<&'a Tensor>,
}

/// Runs a block with `$T` bound to the type of `x` and `$W` to that of `weight`, for every pair that
/// [`super::accepts`].
macro_rules! match_pair {
    ($op:expr, $x:expr, $weight:expr, ($T:ident, $W:ident) => $body:expr) => {
        match ($x, $weight) {
            (DType::F32, DType::BF16) => {
                type $T = f32;
                type $W = bf16;
                $body
            }
            (DType::F32, DType::F16) => {
                type $T = f32;
                type $W = f16;
                $body
            }
            (x, _) => crate::hook::match_real!($op, x, Both => {
                type $T = Both;
                type $W = Both;
                $body
            }),
        }
    };
}
pub(super) use match_pair;

/// A tensor as a matrix whose columns are its last dimension.
pub(crate) fn matrix<T: Element>(tensor: &Tensor, cols: usize) -> Result<Mat<T>> {
    let rows = tensor.elem_count() / cols.max(1);
    Ok(Mat::row_major(tensor.as_slice::<T>()?.as_ptr(), rows, cols))
}

/// A tensor to write as a matrix whose columns are its last dimension.
pub(crate) fn matrix_mut<T: Element>(tensor: &mut Tensor, cols: usize) -> Result<MatMut<T>> {
    let rows = tensor.elem_count() / cols.max(1);
    Ok(MatMut::row_major(tensor.as_slice_mut::<T>()?.as_mut_ptr(), rows, cols))
}

impl Product<'_> {
    /// Writes `y`, and the value before the activation if it is wanted.
    pub(super) fn run<T, W>(&self, y: &mut Tensor, before: Option<&mut Tensor>) -> Result<()>
    where
        T: Element + Times<W, Acc = <T as Output>::Acc> + Output,
        W: Element,
        <T as Output>::Acc: Element,
    {
        let (out, features) = (self.weight.dims()[0], self.weight.dims()[1]);
        if y.elem_count() == 0 {
            return Ok(());
        }
        let rows = y.elem_count() / out;
        let bias = self.bias.map(|bias| bias.as_slice::<<T as Output>::Acc>()).transpose()?;
        let epilogue = Epilogue {
            bias: bias.map(|bias| bias.as_ptr()),
            preactivation: before.map(|before| matrix_mut::<T>(before, out)).transpose()?,
            activation: epilogue_activation(self.activation),
            residual: self.residual.map(|residual| matrix::<T>(residual, out)).transpose()?,
        };
        let options = gemm::Options { epilogue, ..gemm::Options::default() };
        let x = Mat::row_major(self.x.as_slice::<T>()?.as_ptr(), rows, features);
        let weight = strided::<W>(self.weight)?;
        let y = matrix_mut::<T>(y, out)?;
        // SAFETY: `infer` checked the shapes; the outputs are fresh and overlap nothing.
        unsafe { gemm::gemm_with(y, x, weight.transposed(), &options) };
        Ok(())
    }
}

/// `dp W`, shaped like `x`.
pub(super) fn dx(dp: &Tensor, weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut dx = empty_like(x)?;
    let (out, features) = (weight.dims()[0], weight.dims()[1]);
    let rows = x.elem_count() / features.max(1);
    match_pair!("linear", x.dtype(), weight.dtype(), (T, W) => {
        let to = MatMut::row_major(dx.as_slice_mut::<T>()?.as_mut_ptr(), rows, features);
        let dp = Mat::row_major(dp.as_slice::<T>()?.as_ptr(), rows, out);
        let weight = strided::<W>(weight)?;
        // SAFETY: all matrices lie in tensors of their sizes; the result is fresh.
        unsafe { gemm::gemm_with(to, dp, weight, &gemm::Options::default()) };
    });
    Ok(dx)
}

/// `dp^T x`, shaped like `weight`. The sums are rounded once, to the dtype of `weight`.
pub(super) fn dweight(dp: &Tensor, weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut dweight = Tensor::empty(weight.shape(), x.dtype(), &x.device())?;
    let (out, features) = (weight.dims()[0], weight.dims()[1]);
    let rows = dp.elem_count() / out.max(1);
    crate::hook::match_real!("linear", x.dtype(), T => {
        let to = MatMut::row_major(dweight.as_slice_mut::<T>()?.as_mut_ptr(), out, features);
        let dp = Mat::row_major(dp.as_slice::<T>()?.as_ptr(), rows, out);
        let x = Mat::row_major(x.as_slice::<T>()?.as_ptr(), rows, features);
        // SAFETY: all matrices lie in tensors of their sizes; the result is fresh.
        unsafe { gemm::gemm_with(to, dp.transposed(), x, &gemm::Options::default()) };
    });
    dweight.to_dtype(weight.dtype())
}

/// The gradient before the activation and, if wanted, its column sums (accumulator dtype), in one
/// pass. `curve` is the activation with the value before it.
pub(crate) fn before_activation(
    dy: &Tensor,
    curve: Option<(Activation, Tensor)>,
    sums_wanted: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let cols = dy.dims().last().copied().unwrap_or(1);
    let mut dp = match &curve {
        Some(_) => empty_like(dy)?,
        None => dy.clone(),
    };
    let mut sums = Tensor::zeros([cols], dy.dtype().accumulator(), &dy.device())?;
    match_float!("linear", dy.dtype(), T => {
        let from = dy.as_slice::<T>()?;
        let sums = sums.as_slice_mut::<f32>()?;
        match curve {
            Some((kind, before)) => {
                let (before, dp) = (before.as_slice::<T>()?, dp.as_slice_mut::<T>()?);
                activation::cpu::with_curve!(kind, curve => {
                    slopes(curve, (before, from), dp, sums);
                });
            }
            None if sums_wanted => column_sums(from, sums),
            None => {}
        }
    }, f64 => {
        if let Some((kind, before)) = curve {
            let dp = dp.as_slice_mut::<f64>()?;
            activation::cpu::backward(kind, before.as_slice()?, dy.as_slice()?, dp);
        }
        let sums = sums.as_slice_mut::<f64>()?;
        for row in dp.as_slice::<f64>()?.chunks_exact(cols.max(1)) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
    });
    Ok((dp, sums_wanted.then_some(sums)))
}

/// Some rows: `dp = f'(p) dy` (or `dy` itself), and their sums column by column.
struct Rows<'a, T, C> {
    /// The function with p and the place of dp; `None` for sums of dy alone.
    curve: Option<(C, &'a [T], SharedMut<T>)>,
    dy: &'a [T],
    rows: Range<usize>,
    parts: &'a mut [f32],
}

impl<T: Lane, C: activation::cpu::Curve> Kernel for Rows<'_, T, C> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.parts.len();
        for row in self.rows {
            let mut start = 0;
            while start < cols {
                let count = (cols - start).min(S::LANES);
                let at = row * cols + start;
                // SAFETY: the starting functions checked the lengths; a row belongs to one task.
                unsafe {
                    let mut value = load(s, self.dy.as_ptr().add(at), count);
                    if let Some((_, before, dp)) = &self.curve {
                        let p = load(s, before.as_ptr().add(at), count);
                        value = s.mul(C::value_and_slope(s, p).1, value);
                        store(s, dp.ptr().add(at), value, count);
                    }
                    let sum = self.parts.as_mut_ptr().add(start);
                    store(s, sum, s.add(load(s, sum, count), value), count);
                }
                start += count;
            }
        }
    }
}

/// Writes dp and the column sums.
fn slopes<T: Lane, C: activation::cpu::Curve>(
    curve: C,
    (before, dy): (&[T], &[T]),
    dp: &mut [T],
    sums: &mut [f32],
) {
    assert!(before.len() == dy.len() && dp.len() == dy.len(), "equal lengths");
    let dp = SharedMut::new(dp);
    run_rows(Some((curve, before, dp)), dy, sums);
}

/// Writes the column sums of `dy`.
fn column_sums<T: Lane>(dy: &[T], sums: &mut [f32]) {
    run_rows::<T, activation::cpu::Relu>(None, dy, sums);
}

fn run_rows<T: Lane, C: activation::cpu::Curve>(
    curve: Option<(C, &[T], SharedMut<T>)>,
    dy: &[T],
    sums: &mut [f32],
) {
    let cols = sums.len();
    let rows = dy.len() / cols.max(1);
    let (tasks, per_task) = split_rows(rows, cols);
    let mut parts = Scratch::<f32>::new(tasks * cols);
    let shared = SharedMut::new(&mut parts);
    threads::for_each(tasks, |task| {
        // SAFETY: every task has its own block of the scratch memory.
        let parts = unsafe { shared.slice(task * cols, cols) };
        dispatch(Rows { curve, dy, rows: rows_of(task, per_task, rows), parts });
    });
    sum_blocks(&parts, cols, sums);
}
