//! Arithmetic of two tensors with broadcasting, and with constants.
//!
//! Floats are formulas ([`super::fused`]): broadcast operands are read in place. Integers and complex
//! numbers take the plain path here, which stretches operands by copying.

use super::cast::map;
use super::expr::{self, Expr, Program, Statements};
use super::fused::apply_expr;
use crate::{Backward, DType, Element, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply};
use danaus_runtime::simd::Lane;
use danaus_runtime::threads::{self, SharedMut};
use half::bf16;
use num_complex::Complex;

/// Which arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Add,
    Sub,
    Mul,
    Div,
}

struct Binary(Kind);

impl Op for Binary {
    fn name(&self) -> &'static str {
        match self.0 {
            Kind::Add => "add",
            Kind::Sub => "sub",
            Kind::Mul => "mul",
            Kind::Div => "div",
        }
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let a = super::required(self.name(), inputs, 0)?;
        let b = super::required(self.name(), inputs, 1)?;
        if a.dtype() != b.dtype() {
            let allowed = format!("{} as the first operand (cast with to_dtype)", a.dtype());
            return Err(Error::dtype(self.name(), "second operand", b.dtype(), allowed));
        }
        let shape = a.shape().broadcast(b.shape()).ok_or_else(|| {
            let expected = format!("a shape that broadcasts with {}", a.shape());
            Error::shape(self.name(), "second operand", b.shape(), expected)
        })?;
        Ok(vec![Meta::new(shape, a.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0, 1])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        if outputs[0].device().is_cuda() {
            return self.run_cuda(inputs, &mut outputs[0]);
        }
        let shape = outputs[0].shape().clone();
        let a = super::required(self.name(), inputs, 0)?.broadcast_to(&shape)?.contiguous()?;
        let b = super::required(self.name(), inputs, 1)?.broadcast_to(&shape)?.contiguous()?;
        let out = &mut outputs[0];
        match a.dtype() {
            DType::I64 => self.run_as::<i64>(&a, &b, out),
            DType::I32 => self.run_as::<i32>(&a, &b, out),
            DType::C64 => self.run_as::<Complex<f32>>(&a, &b, out),
            DType::C128 => self.run_as::<Complex<f64>>(&a, &b, out),
            other => {
                let allowed = "f64, f32, bf16, f16, i64, i32, c64, c128";
                Err(Error::dtype(self.name(), "operands", other, allowed))
            }
        }
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let (a, b) = (ctx.input(0)?, ctx.input(1)?);
        let Some(grad) = &ctx.grads[0] else { return Ok(vec![None, None]) };
        let (da, db) = match self.0 {
            Kind::Add => (Some(grad.clone()), Some(grad.clone())),
            Kind::Sub => (Some(grad.clone()), Some(grad.affine(-1.0, 0.0)?)),
            Kind::Mul => (
                ctx.needs[0].then(|| grad.mul(&b.conj()?)).transpose()?,
                ctx.needs[1].then(|| grad.mul(&a.conj()?)).transpose()?,
            ),
            Kind::Div => {
                let da = grad.div(&b.conj()?)?;
                let db = da.mul(&a.div(b)?.conj()?)?.affine(-1.0, 0.0)?;
                (Some(da), Some(db))
            }
        };
        let fit = |grad: Option<Tensor>, like: &Tensor| {
            grad.map(|grad| grad.sum_to(like.shape())).transpose()
        };
        Ok(vec![fit(da, a)?, fit(db, b)?])
    }
}

/// Types with the four operations.
trait Arithmetic:
    Element
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
{
    /// Whether dividing by this value would trap.
    fn traps(self) -> bool {
        false
    }
}

impl Arithmetic for Complex<f32> {}
impl Arithmetic for Complex<f64> {}
impl Arithmetic for i64 {
    fn traps(self) -> bool {
        self == 0 || self == -1
    }
}
impl Arithmetic for i32 {
    fn traps(self) -> bool {
        self == 0 || self == -1
    }
}

impl Binary {
    /// Sums, differences and products of integers. Division has no GPU path: a divisor that would trap
    /// must be an error, and nobody waits for the device here.
    fn run_cuda(&self, inputs: Inputs, out: &mut Tensor) -> Result<()> {
        let a = super::required(self.name(), inputs, 0)?;
        let b = super::required(self.name(), inputs, 1)?;
        if self.0 == Kind::Div || !matches!(a.dtype(), DType::I64 | DType::I32) {
            return Err(Error::not_on_cuda(self.name(), a.dtype()));
        }
        let text = format!("b0[j] = op_{}<C>(a0[j], a1[j]);\n", self.name());
        let statements = Statements { text, constants: Vec::new() };
        super::elementwise::cuda::map(self.name(), "i64", &statements, &[a, b], out)
    }

    fn run_as<T: Arithmetic>(&self, a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()> {
        let (a, b, out) = (a.as_slice::<T>()?, b.as_slice::<T>()?, out.as_slice_mut::<T>()?);
        match self.0 {
            Kind::Add => zip(a, b, out, |a, b| a + b),
            Kind::Sub => zip(a, b, out, |a, b| a - b),
            Kind::Mul => zip(a, b, out, |a, b| a * b),
            Kind::Div if b.iter().any(|value| value.traps()) => {
                let valid = "no divisor 0 or -1 in integer division";
                return Err(Error::argument("div", "second operand", "0 or -1", valid));
            }
            Kind::Div => zip(a, b, out, |a, b| a / b),
        }
        Ok(())
    }
}

fn zip<T: Element>(a: &[T], b: &[T], out: &mut [T], f: impl Fn(T, T) -> T + Sync + Send) {
    let len = out.len();
    let (tasks, per_task) = threads::split(len, 1 << 14);
    let shared = SharedMut::new(out);
    threads::for_each(tasks, |task| {
        let start = task * per_task;
        // SAFETY: tasks cover disjoint ranges of the slice.
        let part = unsafe { shared.slice(start, per_task.min(len.saturating_sub(start))) };
        for ((value, &a), &b) in part.iter_mut().zip(&a[start..]).zip(&b[start..]) {
            *value = f(a, b);
        }
    });
}

struct Affine {
    factor: f64,
    shift: f64,
}

impl Op for Affine {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = super::required(self.name(), inputs, 0)?;
        if !x.dtype().is_differentiable() {
            let allowed = "a floating-point or complex dtype";
            return Err(Error::dtype(self.name(), "x", x.dtype(), allowed));
        }
        Ok(vec![Meta::new(x.shape(), x.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        if out.device().is_cuda() {
            let x = super::required(self.name(), inputs, 0)?;
            let line = Expr::input(0).binary(expr::Binary::Mul, self.factor);
            let line = Program::new(&[line.binary(expr::Binary::Add, self.shift)]);
            return super::elementwise::evaluate(&line, &[Some(x)], std::slice::from_mut(out));
        }
        let x = super::required(self.name(), inputs, 0)?.contiguous()?;
        let (factor, shift) = (self.factor, self.shift);
        match x.dtype() {
            DType::F32 => {
                let (factor, shift) = (factor as f32, shift as f32);
                map(x.as_slice::<f32>()?, out.as_slice_mut()?, move |v: f32| v * factor + shift);
            }
            DType::BF16 => {
                let (factor, shift) = (factor as f32, shift as f32);
                let f = move |v: bf16| bf16::round(v.widen() * factor + shift);
                map(x.as_slice::<bf16>()?, out.as_slice_mut()?, f);
            }
            DType::C64 => {
                let (factor, shift) = (factor as f32, shift as f32);
                let f = move |v: Complex<f32>| v * factor + shift;
                map(x.as_slice()?, out.as_slice_mut()?, f);
            }
            DType::C128 => {
                let f = move |v: Complex<f64>| v * factor + shift;
                map(x.as_slice()?, out.as_slice_mut()?, f);
            }
            DType::F64 => {
                map(x.as_slice::<f64>()?, out.as_slice_mut()?, move |v: f64| v * factor + shift);
            }
            dtype => {
                let wide = x.detach().to_dtype(DType::F32)?.affine(factor, shift)?;
                super::copy::contiguous_into(&wide.to_dtype(dtype)?, out)?;
            }
        }
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![ctx.grads[0].as_ref().map(|g| g.affine(self.factor, 0.0)).transpose()?])
    }
}

impl Tensor {
    fn binary(&self, kind: Kind, other: &Tensor) -> Result<Tensor> {
        if self.dtype().is_float() {
            let function = match kind {
                Kind::Add => expr::Binary::Add,
                Kind::Sub => expr::Binary::Sub,
                Kind::Mul => expr::Binary::Mul,
                Kind::Div => expr::Binary::Div,
            };
            return self.formula_with(function, other);
        }
        super::single(apply(Binary(kind), &[Some(self), Some(other)])?)
    }

    fn formula_with(&self, function: expr::Binary, other: &Tensor) -> Result<Tensor> {
        let formula = Expr::input(0).binary(function, Expr::input(1));
        apply_expr(function.name(), &formula, &[self, other], None)
    }

    /// The larger of both, NaN if one is; equal elements pass their gradient to `self`.
    ///
    /// # Errors
    /// When shapes do not broadcast or dtypes differ.
    pub fn maximum(&self, other: &Tensor) -> Result<Tensor> {
        if self.dtype().is_float() {
            return self.formula_with(expr::Binary::Max, other);
        }
        self.ge(other)?.where_cond(self, other)
    }

    /// The smaller of both, NaN if one is; equal elements pass their gradient to `self`.
    ///
    /// # Errors
    /// When shapes do not broadcast or dtypes differ.
    pub fn minimum(&self, other: &Tensor) -> Result<Tensor> {
        if self.dtype().is_float() {
            return self.formula_with(expr::Binary::Min, other);
        }
        self.le(other)?.where_cond(self, other)
    }

    /// `self ^ other` with broadcasting; gradients of the exponent count for positive bases.
    ///
    /// # Errors
    /// When shapes do not broadcast, dtypes differ or are not floats.
    pub fn pow(&self, other: &Tensor) -> Result<Tensor> {
        self.formula_with(expr::Binary::Pow, other)
    }

    /// Angle of the point (`x`, `self`), in -pi..=pi.
    ///
    /// # Errors
    /// When shapes do not broadcast, dtypes differ or are not floats.
    pub fn atan2(&self, x: &Tensor) -> Result<Tensor> {
        self.formula_with(expr::Binary::Atan2, x)
    }

    /// `self + other` with broadcasting.
    ///
    /// # Errors
    /// When shapes do not broadcast or dtypes differ.
    pub fn add(&self, other: &Tensor) -> Result<Tensor> {
        self.binary(Kind::Add, other)
    }

    /// `self - other` with broadcasting.
    ///
    /// # Errors
    /// When shapes do not broadcast or dtypes differ.
    pub fn sub(&self, other: &Tensor) -> Result<Tensor> {
        self.binary(Kind::Sub, other)
    }

    /// `self * other` with broadcasting.
    ///
    /// # Errors
    /// When shapes do not broadcast or dtypes differ.
    pub fn mul(&self, other: &Tensor) -> Result<Tensor> {
        self.binary(Kind::Mul, other)
    }

    /// `self / other` with broadcasting.
    ///
    /// # Errors
    /// When shapes do not broadcast or dtypes differ, or an integer divisor would trap.
    pub fn div(&self, other: &Tensor) -> Result<Tensor> {
        self.binary(Kind::Div, other)
    }

    /// `factor * self + shift` with constants.
    ///
    /// # Errors
    /// For integer dtypes.
    pub fn affine(&self, factor: f64, shift: f64) -> Result<Tensor> {
        super::single(apply(Affine { factor, shift }, &[Some(self)])?)
    }

    /// Complex conjugate; a real tensor is its own.
    ///
    /// # Errors
    /// When there is no memory for the copy.
    pub fn conj(&self) -> Result<Tensor> {
        if !self.dtype().is_complex() {
            return Ok(self.clone());
        }
        super::single(apply(Conj, &[Some(self)])?)
    }
}

struct Conj;

impl Op for Conj {
    fn name(&self) -> &'static str {
        "conj"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = super::required(self.name(), inputs, 0)?;
        Ok(vec![Meta::new(x.shape(), x.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = super::required(self.name(), inputs, 0)?.contiguous()?;
        match x.dtype() {
            DType::C64 => {
                map(x.as_slice()?, outputs[0].as_slice_mut()?, |z: Complex<f32>| z.conj());
            }
            _ => map(x.as_slice()?, outputs[0].as_slice_mut()?, |z: Complex<f64>| z.conj()),
        }
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![ctx.grads[0].as_ref().map(Tensor::conj).transpose()?])
    }
}
