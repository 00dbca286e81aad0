//! Toeplitz products by transforms, and the sums of products of triangular ones that matrices of
//! low displacement rank are made of.
//!
//! * `toeplitz`: `y = T x` with `T[i, j] = col[i - j]` for `i >= j` and `row[j - i]` above the
//!   diagonal (`row[0]` is not used). T is the corner of a circulant matrix of size N >= rows +
//!   cols - 1, whose product is a product of spectra.
//! * `toeplitz_like`: `y = sum over i of L(G_i) L(H_i)^T x`, where `L(v)` is the lower triangular
//!   Toeplitz matrix of first column v: the sum of Krylov matrices `K(Z, G_i) K(Z, H_i)^T` of the
//!   shift Z (Thomas, Gu, Dao, Rudra, Re, NeurIPS 2018). x is transformed once, and r times between
//!   the two factors: 2 r + 2 transforms of length 2 n a row.
//!
//! Backward stays in the spectra: gradients of x are products with conjugate ones, gradients of the
//! parameters are sums over rows in the spectrum and one inverse transform at the end. Rows are
//! independent of each other, sums over them are taken in fixed blocks and added in order.
//!
//! Transforms are `realfft`'s, in f64 for f64 and in f32 for f32 and bf16. Cancellation makes the
//! error of an element `eps log2(N)` of the largest, not of its own size.

pub mod fft;
mod like;

#[cfg(test)]
mod tests;

pub use like::toeplitz_like;

use crate::hook::{self, check_float, check_shape, dense_as, listed, required};
use danaus_runtime::threads::{self, SharedMut};
use danaus_tensor::registry::{Arg, OpSpec};
use danaus_tensor::{
    Backward, DType, Device, Error, Inputs, Level, Meta, Op, Result, Saves, Tensor, apply,
};
use fft::{Plan, Real, add_conj_times, conj_times, fast_len, times, working};
use num_complex::Complex;

/// Tasks of a backward pass at most: each has its own sums of spectra.
const BACKWARD_TASKS: usize = 8;

/// `T x` along the last dimension: `[.., cols]` to `[.., rows]`, for `col` `[rows]` and `row`
/// `[cols]`.
///
/// # Errors
/// When shapes do not fit or dtypes are not f64, f32 or bf16 (all the same).
pub fn toeplitz(x: &Tensor, col: &Tensor, row: &Tensor) -> Result<Tensor> {
    hook::first(apply(Toeplitz, &[Some(x), Some(col), Some(row)])?)
}

/// Inputs: x, col, row.
struct Toeplitz;

/// The circulant column of length `len` that has T in its corner.
fn circulant<T: Real>(col: &[T], row: &[T], len: usize) -> Vec<T> {
    let mut all = vec![T::zero(); len];
    all[..col.len()].copy_from_slice(col);
    for (k, &value) in row.iter().enumerate().skip(1) {
        all[len - k] = value;
    }
    all
}

/// Calls `each(room, row)` for all rows, in parallel, with buffers of a task.
pub(crate) fn for_rows<R>(
    rows: usize,
    room: impl Fn() -> R + Sync,
    each: impl Fn(&mut R, usize) + Sync,
) {
    let (tasks, per_task) = threads::split(rows, 1);
    threads::for_each(tasks, |task| {
        let mut room = room();
        (task * per_task..((task + 1) * per_task).min(rows)).for_each(|row| each(&mut room, row));
    });
}

/// Sums `add(sums, room, row)` over all rows in fixed blocks of rows.
pub(crate) fn sum_rows<T: Real, R>(
    rows: usize,
    len: usize,
    room: impl Fn() -> R + Sync,
    add: impl Fn(&mut [Complex<T>], &mut R, usize) + Sync,
) -> Vec<Complex<T>> {
    let (tasks, per_task) = threads::split(rows, rows.div_ceil(BACKWARD_TASKS));
    let mut parts = vec![Complex::<T>::default(); tasks * len];
    let shared = SharedMut::new(&mut parts);
    threads::for_each(tasks, |task| {
        // SAFETY: every task has its own block.
        let sums = unsafe { shared.slice(task * len, len) };
        let mut room = room();
        for row in task * per_task..((task + 1) * per_task).min(rows) {
            add(sums, &mut room, row);
        }
    });
    let mut total = vec![Complex::default(); len];
    for part in parts.chunks_exact(len.max(1)) {
        total.iter_mut().zip(part).for_each(|(sum, &part)| *sum = *sum + part);
    }
    total
}

fn forward<T: Real>(x: &[T], col: &[T], row: &[T], y: &mut [T]) {
    let (rows, cols) = (col.len(), row.len());
    let plan = T::plan(plan_len(rows, cols));
    let spectrum =
        plan.scaled_spectrum(&circulant(col, row, plan_len(rows, cols)), &mut plan.room());
    product(&plan, (x, cols), &spectrum, times, (y, rows));
}

fn plan_len(rows: usize, cols: usize) -> usize {
    fast_len(rows + cols - 1)
}

/// Multiplies rows of `x` by a spectrum.
fn product<T: Real>(
    plan: &Plan<T>,
    (x, cols): (&[T], usize),
    spectrum: &[Complex<T>],
    multiply: impl Fn(&mut [Complex<T>], &[Complex<T>], &[Complex<T>]) + Sync,
    (y, rows): (&mut [T], usize),
) {
    let y = SharedMut::new(y);
    for_rows(
        x.len() / cols,
        || (plan.room(), plan.zeros(), plan.zeros()),
        |(room, bins, out), index| {
            plan.spectrum(&x[index * cols..][..cols], room, bins);
            multiply(out, spectrum, bins);
            // SAFETY: every row belongs to one task.
            plan.signal(out, room, unsafe { y.slice(index * rows, rows) });
        },
    );
}

/// dx, and the gradients of col and row.
fn backward<T: Real>(
    x: &[T],
    dy: &[T],
    (col, row): (&[T], &[T]),
    dx: &mut [T],
) -> (Vec<T>, Vec<T>) {
    let (rows, cols) = (col.len(), row.len());
    let plan = T::plan(plan_len(rows, cols));
    let spectrum =
        plan.scaled_spectrum(&circulant(col, row, plan_len(rows, cols)), &mut plan.room());
    product(&plan, (dy, rows), &spectrum, conj_times, (dx, cols));
    let mut sums = sum_rows(
        x.len() / cols,
        plan.bins(),
        || (plan.room(), plan.zeros(), plan.zeros()),
        |sums, (room, a, b), index| {
            plan.spectrum(&x[index * cols..][..cols], room, a);
            plan.spectrum(&dy[index * rows..][..rows], room, b);
            add_conj_times(sums, a, b);
        },
    );
    let mut room = plan.room();
    let factor = T::one() / T::from(plan_len(rows, cols)).unwrap_or_else(T::one);
    let all: Vec<T> = plan.whole_signal(&mut sums, &mut room).iter().map(|&v| v * factor).collect();
    let above = |k: usize| if k == 0 { T::zero() } else { all[all.len() - k] };
    (all[..rows].to_vec(), (0..cols).map(above).collect())
}

impl Op for Toeplitz {
    fn name(&self) -> &'static str {
        "toeplitz"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let op = self.name();
        let x = required(op, inputs, 0, "x")?;
        let (col, row) = (required(op, inputs, 1, "col")?, required(op, inputs, 2, "row")?);
        check_float(op, "x", x)?;
        hook::check_dtype(op, ("col", col), ("x", x))?;
        hook::check_dtype(op, ("row", row), ("x", x))?;
        let cols = hook::last_dim(op, "x", x)?;
        if col.rank() != 1 || col.elem_count() == 0 {
            return Err(Error::shape(op, "col", col.shape(), "[rows] with at least one row"));
        }
        if cols == 0 {
            return Err(Error::shape(op, "x", x.shape(), "a last dimension of at least 1"));
        }
        check_shape(op, "row", row, &[cols])?;
        let mut dims = x.dims().to_vec();
        dims[x.rank() - 1] = col.elem_count();
        Ok(vec![Meta::new(dims, x.dtype())])
    }

    fn level(&self) -> Level {
        Level::Invariant
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0, 1, 2])
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let wide = working(outputs[0].dtype());
        let get = |index, name| dense_as(required(self.name(), inputs, index, name)?, wide);
        let (x, col, row) = (get(0, "x")?, get(1, "col")?, get(2, "row")?);
        let mut y = Tensor::empty(outputs[0].shape(), wide, &Device::Cpu)?;
        match wide {
            DType::F64 => {
                forward::<f64>(x.as_slice()?, col.as_slice()?, row.as_slice()?, y.as_slice_mut()?)
            }
            _ => forward::<f32>(x.as_slice()?, col.as_slice()?, row.as_slice()?, y.as_slice_mut()?),
        }
        store(&y, &mut outputs[0])
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(dy) = &ctx.grads[0] else { return Ok(vec![None; 3]) };
        let wide = working(dy.dtype());
        let get = |index| dense_as(ctx.input(index)?, wide);
        let (x, col, row, dy) = (get(0)?, get(1)?, get(2)?, dense_as(dy, wide)?);
        let mut dx = hook::empty_like(&x)?;
        let pair = match wide {
            DType::F64 => gradient::<f64>(&x, &dy, (&col, &row), &mut dx)?,
            _ => gradient::<f32>(&x, &dy, (&col, &row), &mut dx)?,
        };
        let dtype = ctx.input(0)?.dtype();
        let all = [dx, pair.0, pair.1].map(|grad| grad.to_dtype(dtype));
        all.into_iter().map(|grad| grad.map(Some)).collect()
    }
}

fn gradient<T: Real>(
    x: &Tensor,
    dy: &Tensor,
    (col, row): (&Tensor, &Tensor),
    dx: &mut Tensor,
) -> Result<(Tensor, Tensor)> {
    let vectors = (col.as_slice::<T>()?, row.as_slice::<T>()?);
    let (dcol, drow) = backward(x.as_slice()?, dy.as_slice()?, vectors, dx.as_slice_mut()?);
    let tensor =
        |values: Vec<T>, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu);
    Ok((tensor(dcol, col)?, tensor(drow, row)?))
}

/// Copies a result computed in the working dtype into the output of an operator.
pub(crate) fn store(from: &Tensor, to: &mut Tensor) -> Result<()> {
    let narrow = from.to_dtype(to.dtype())?;
    danaus_tensor::match_dtype!(to.dtype(), T => {
        to.as_slice_mut::<T>()?.copy_from_slice(narrow.as_slice::<T>()?);
    });
    Ok(())
}

/// The operators of this folder for the operator runner.
pub const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "toeplitz",
        summary: "T x for the Toeplitz matrix of a first column and a first row",
        inputs: &[
            Arg::float("x", "... cols"),
            Arg::float("col", "rows"),
            Arg::float("row", "cols"),
        ],
        attributes: &[],
        outputs: &["y"],
        call: |args| listed(toeplitz(args.input("x")?, args.input("col")?, args.input("row")?)?),
    },
    OpSpec {
        name: "toeplitz_like",
        summary: "sum over i of L(G_i) L(H_i)^T x for lower triangular Toeplitz matrices L",
        inputs: &[Arg::float("x", "... n"), Arg::float("G", "rank n"), Arg::float("H", "rank n")],
        attributes: &[],
        outputs: &["y"],
        call: |args| listed(toeplitz_like(args.input("x")?, args.input("G")?, args.input("H")?)?),
    },
];
