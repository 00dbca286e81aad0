//! Casts between element types, and copies to row-major order.

use super::elementwise::evaluate;
use super::expr::{Expr, Program, Statements};
use crate::{
    Backward, DType, Element, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply, match_dtype,
};
use danaus_runtime::threads::{self, SharedMut};
use half::{bf16, f16};
use num_complex::Complex;

/// Conversion through the widest type of the kind: integers by i64, floats by f64.
pub(crate) trait Number: Element {
    /// As f64 (the real part of a complex number).
    fn to_f64(self) -> f64;
    /// Rounded to nearest even; integers truncate towards zero and saturate.
    fn from_f64(value: f64) -> Self;
}

macro_rules! numbers {
    ($($type:ty: $to:expr, $from:expr;)*) => { $(
        impl Number for $type {
            #[inline(always)]
            fn to_f64(self) -> f64 {
                let to: fn($type) -> f64 = $to;
                to(self)
            }
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                let from: fn(f64) -> $type = $from;
                from(value)
            }
        }
    )* };
}

numbers! {
    f64: |x| x, |x| x;
    f32: f64::from, |x| x as f32;
    bf16: |x| f64::from(f32::from_bits(u32::from(x.to_bits()) << 16)), bf16::from_f64;
    f16: f16::to_f64, f16::from_f64;
    crate::fp8::F8E4M3: |x| f64::from(x.to_f32()), |x| crate::fp8::F8E4M3::from_f32(x as f32);
    crate::fp8::F8E5M2: |x| f64::from(x.to_f32()), |x| crate::fp8::F8E5M2::from_f32(x as f32);
    i64: |x| x as f64, |x| x as i64;
    i32: f64::from, |x| x as i32;
    i8: f64::from, |x| x as i8;
    u32: f64::from, |x| x as u32;
    u8: f64::from, |x| x as u8;
    bool: |x| if x { 1.0 } else { 0.0 }, |x| x != 0.0;
    Complex<f32>: |x| f64::from(x.re), |x| Complex::new(x as f32, 0.0);
    Complex<f64>: |x| x.re, |x| Complex::new(x, 0.0);
}

struct Cast(DType);

impl Op for Cast {
    fn name(&self) -> &'static str {
        "to_dtype"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = crate::ops::required(self.name(), inputs, 0)?;
        if x.dtype().is_complex() && !self.0.is_complex() {
            let what = format!("{} to {}", x.dtype(), self.0);
            return Err(Error::unsupported("to_dtype", what, "take real() or imag() first"));
        }
        Ok(vec![Meta::new(x.shape(), self.0)])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        convert(crate::ops::required(self.name(), inputs, 0)?, &mut outputs[0])
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let target = ctx.input(0)?.dtype();
        Ok(vec![ctx.grads[0].as_ref().map(|grad| grad.to_dtype(target)).transpose()?])
    }
}

/// Writes `x` in the output's dtype.
fn convert(x: &Tensor, out: &mut Tensor) -> Result<()> {
    if x.device().is_cuda() {
        // Integers by i64, which holds them exactly; everything else as a formula.
        let ints = x.dtype().is_int() && out.dtype().is_int();
        let wide = if ints { "i64" } else { super::elementwise::cuda::computing_type(&[x], out) };
        return super::elementwise::cuda::map("to_dtype", wide, &Statements::copy(), &[x], out);
    }
    match (x.dtype(), out.dtype()) {
        // Floats, and anything real to floats: blocks of vectors, from any strides.
        (from, DType::F64 | DType::F32 | DType::BF16 | DType::F16) if !from.is_complex() => {
            let copy = Program::new(&[Expr::input(0)]);
            return evaluate(&copy, &[Some(x)], std::slice::from_mut(out));
        }
        // Both fit i64 exactly; f64 would lose the low bits of large identifiers.
        (from, to) if from.is_int() && to.is_int() => {
            narrow_int(&widen_int(&x.contiguous()?)?, out)?;
        }
        (DType::C64, DType::C128) => {
            let widen = |z: Complex<f32>| Complex::new(f64::from(z.re), f64::from(z.im));
            let x = x.contiguous()?;
            map(x.as_slice::<Complex<f32>>()?, out.as_slice_mut::<Complex<f64>>()?, widen);
        }
        (DType::C128, DType::C64) => {
            let narrow = |z: Complex<f64>| Complex::new(z.re as f32, z.im as f32);
            let x = x.contiguous()?;
            map(x.as_slice::<Complex<f64>>()?, out.as_slice_mut::<Complex<f32>>()?, narrow);
        }
        // Everything else by way of f64: one conversion a type and not one a pair.
        (_, to) => {
            let x = x.detach().to_dtype(DType::F64)?.contiguous()?;
            match_dtype!(to, B => map(x.as_slice::<f64>()?, out.as_slice_mut::<B>()?, B::from_f64));
        }
    }
    Ok(())
}

fn widen_int(x: &Tensor) -> Result<Vec<i64>> {
    Ok(match x.dtype() {
        DType::I64 => x.to_vec::<i64>()?,
        DType::U32 => x.as_slice::<u32>()?.iter().map(|&value| i64::from(value)).collect(),
        DType::I32 => x.as_slice::<i32>()?.iter().map(|&value| i64::from(value)).collect(),
        DType::I8 => x.as_slice::<i8>()?.iter().map(|&value| i64::from(value)).collect(),
        _ => x.as_slice::<u8>()?.iter().map(|&value| i64::from(value)).collect(),
    })
}

fn narrow_int(wide: &[i64], out: &mut Tensor) -> Result<()> {
    match out.dtype() {
        DType::I64 => map(wide, out.as_slice_mut::<i64>()?, |value| value),
        DType::U32 => map(wide, out.as_slice_mut::<u32>()?, |value| value as u32),
        DType::I32 => map(wide, out.as_slice_mut::<i32>()?, |value| value as i32),
        DType::I8 => map(wide, out.as_slice_mut::<i8>()?, |value| value as i8),
        _ => map(wide, out.as_slice_mut::<u8>()?, |value| value as u8),
    }
    Ok(())
}

/// Applies a function to every element, in parallel.
pub(crate) fn map<A: Element, B: Element>(x: &[A], y: &mut [B], f: impl Fn(A) -> B + Sync + Send) {
    let len = y.len().min(x.len());
    let (tasks, per_task) = threads::split(len, 1 << 14);
    let shared = SharedMut::new(y);
    threads::for_each(tasks, |task| {
        let start = task * per_task;
        let count = per_task.min(len.saturating_sub(start));
        // SAFETY: tasks cover disjoint ranges of the slice.
        let part = unsafe { shared.slice(start, count) };
        for (target, &value) in part.iter_mut().zip(&x[start..]) {
            *target = f(value);
        }
    });
}

struct Contiguous;

impl Op for Contiguous {
    fn name(&self) -> &'static str {
        "contiguous"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = crate::ops::required(self.name(), inputs, 0)?;
        Ok(vec![Meta::new(x.shape(), x.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = crate::ops::required(self.name(), inputs, 0)?;
        super::copy::contiguous_into(x, &mut outputs[0])
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![ctx.grads[0].clone()])
    }
}

impl Tensor {
    /// The same values in another element type (round to nearest even; integers saturate).
    ///
    /// # Errors
    /// From complex to real, or when there is no memory for it.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        if dtype == self.dtype() {
            return Ok(self.clone());
        }
        crate::ops::single(apply(Cast(dtype), &[Some(self)])?)
    }

    /// The same values in row-major order; no copy if they lie so already.
    ///
    /// # Errors
    /// When there is no memory for the copy.
    pub fn contiguous(&self) -> Result<Self> {
        if self.is_contiguous() { Ok(self.clone()) } else { self.copy() }
    }

    /// A fresh copy in row-major order that shares nothing.
    ///
    /// # Errors
    /// When there is no memory for the copy.
    pub fn copy(&self) -> Result<Self> {
        crate::ops::single(apply(Contiguous, &[Some(self)])?)
    }
}
