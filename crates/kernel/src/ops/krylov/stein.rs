//! The dense solution of Stein's equation for subdiagonal operators.

use super::check_finite;
use crate::hook::{self, check_dtype, check_float, check_shape, dense_as, required};
use crate::ops::toeplitz::fft::{Real, working};
use crate::ops::toeplitz::store;
use danaus_tensor::{
    Backward, DType, Device, Error, Inputs, Level, Meta, Op, Result, Saves, Tensor, apply,
};

/// M with `M - A M B^T = D`: D `[rows, cols]`, subdiagonals a `[rows - 1]` and b `[cols - 1]`.
///
/// # Errors
/// When shapes or dtypes do not fit, or the result overflows.
pub fn stein(d: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    hook::first(apply(Stein, &[Some(d), Some(a), Some(b)])?)
}

/// Inputs: D, a, b.
struct Stein;

const NAME: &str = "stein";

fn forward<T: Real>([d, a, b]: [&Tensor; 3], m: &mut Tensor) -> Result<()> {
    let cols = d.dims()[1];
    let (a, b, m) = (a.as_slice::<T>()?, b.as_slice::<T>()?, m.as_slice_mut::<T>()?);
    m.copy_from_slice(d.as_slice()?);
    for (row, &a) in a.iter().enumerate() {
        let (before, after) = m.split_at_mut((row + 1) * cols);
        let (before, after) = (&before[row * cols..], &mut after[1..cols]);
        for ((to, &from), &b) in after.iter_mut().zip(before).zip(b) {
            *to = *to + a * b * from;
        }
    }
    check_finite(NAME, m)
}

/// Gradients of D, a and b.
fn backward<T: Real>([a, b, m, dm]: [&Tensor; 4]) -> Result<[Vec<T>; 3]> {
    let cols = m.dims()[1];
    let (a, b, m) = (a.as_slice::<T>()?, b.as_slice::<T>()?, m.as_slice::<T>()?);
    let mut e = dm.as_slice::<T>()?.to_vec();
    let (mut da, mut db) = (vec![T::zero(); a.len()], vec![T::zero(); b.len()]);
    for row in (0..a.len()).rev() {
        let (before, after) = e.split_at_mut((row + 1) * cols);
        let (before, after) = (&mut before[row * cols..], &after[1..cols]);
        let m = &m[row * cols..][..cols];
        for col in 0..b.len() {
            before[col] = before[col] + a[row] * b[col] * after[col];
            da[row] = da[row] + after[col] * b[col] * m[col];
            db[col] = db[col] + after[col] * a[row] * m[col];
        }
    }
    Ok([e, da, db])
}

impl Op for Stein {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let d = required(NAME, inputs, 0, "D")?;
        check_float(NAME, "D", d)?;
        let &[rows, cols] = d.dims() else {
            return Err(Error::shape(NAME, "D", d.shape(), "[rows, cols]"));
        };
        if rows == 0 || cols == 0 {
            return Err(Error::shape(NAME, "D", d.shape(), "at least one row and column"));
        }
        for (index, name, len) in [(1, "a", rows - 1), (2, "b", cols - 1)] {
            let values = required(NAME, inputs, index, name)?;
            check_dtype(NAME, (name, values), ("D", d))?;
            check_shape(NAME, name, values, &[len])?;
        }
        Ok(vec![Meta::new(d.shape(), d.dtype())])
    }

    fn level(&self) -> Level {
        Level::Invariant
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0, 1, 2]).and_outputs(&[0])
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let wide = working(outputs[0].dtype());
        let get = |index, name| dense_as(required(NAME, inputs, index, name)?, wide);
        let (d, a, b) = (get(0, "D")?, get(1, "a")?, get(2, "b")?);
        let mut m = Tensor::empty(outputs[0].shape(), wide, &Device::Cpu)?;
        match wide {
            DType::F64 => forward::<f64>([&d, &a, &b], &mut m)?,
            _ => forward::<f32>([&d, &a, &b], &mut m)?,
        }
        store(&m, &mut outputs[0])
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(dm) = &ctx.grads[0] else { return Ok(vec![None; 3]) };
        let (dtype, wide) = (dm.dtype(), working(dm.dtype()));
        let (a, b) = (dense_as(ctx.input(1)?, wide)?, dense_as(ctx.input(2)?, wide)?);
        let (m, dm) = (dense_as(ctx.output(0)?, wide)?, dense_as(dm, wide)?);
        fn tensors<T: Real>(all: [Vec<T>; 3], like: [&Tensor; 3]) -> Result<Vec<Tensor>> {
            let tensor = |(values, like): (Vec<T>, &Tensor)| {
                Tensor::from_vec(values, like.shape(), &Device::Cpu)
            };
            all.into_iter().zip(like).map(tensor).collect()
        }
        let all = match wide {
            DType::F64 => tensors(backward::<f64>([&a, &b, &m, &dm])?, [&m, &a, &b])?,
            _ => tensors(backward::<f32>([&a, &b, &m, &dm])?, [&m, &a, &b])?,
        };
        all.into_iter().map(|grad| grad.to_dtype(dtype).map(Some)).collect()
    }
}
