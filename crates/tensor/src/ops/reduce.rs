//! Reductions along dimensions: sums, products, extremes, truth values, and where the extreme is.
//!
//! A tensor is seen as `outer x count x inner`, and `count` is folded. Floats are folded in f64 (the
//! loop waits for memory, and no digits are lost), integers in i64, complex sums in their own type.
//! Long folds are cut into parts by the shape alone and joined in a fixed order, so that results have
//! the same bits on any number of threads; lanes are fixed too, so that they do not depend on the
//! instruction set. NaN wins every maximum and minimum, as in every other library of the field.

pub(crate) mod cuda;
mod fold;
mod methods;

use super::cast::Number;
use super::expr::Expr;
use super::fused::apply_expr;
use crate::{
    Backward, DType, Element, Error, Inputs, Meta, Op, Result, Saves, Shape, Tensor, apply,
};
use fold::{Extent, Fold, fold};
use half::bf16;
use num_complex::Complex;

/// What a reduction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sum,
    Product,
    Max,
    Min,
    Any,
    All,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Sum => "sum",
            Kind::Product => "prod",
            Kind::Max => "max",
            Kind::Min => "min",
            Kind::Any => "any",
            Kind::All => "all",
        }
    }
}

/// Folds the neighbouring dimensions `first..=last`, which stay with size 1.
struct Reduce {
    kind: Kind,
    first: usize,
    last: usize,
    shape: Shape,
}

impl Reduce {
    fn extent(&self) -> Extent {
        let product = |dims: &[usize]| dims.iter().product();
        Extent {
            outer: product(&self.shape[..self.first]),
            count: product(&self.shape[self.first..=self.last]),
            inner: product(&self.shape[self.last + 1..]),
        }
    }
}

impl Op for Reduce {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = super::required(self.name(), inputs, 0)?;
        let allowed = match self.kind {
            Kind::Sum if x.dtype() != DType::Bool => None,
            Kind::Sum => Some("a number (cast with to_dtype)"),
            Kind::Any | Kind::All if x.dtype() == DType::Bool => None,
            Kind::Any | Kind::All => Some("bool"),
            _ if x.dtype().is_float() || x.dtype().is_int() => None,
            _ => Some("a float or integer dtype"),
        };
        if let Some(allowed) = allowed {
            return Err(Error::dtype(self.name(), "x", x.dtype(), allowed));
        }
        if matches!(self.kind, Kind::Max | Kind::Min) && self.extent().count == 0 {
            let expected = "at least one element along the dimension";
            return Err(Error::shape(self.name(), "x", x.shape(), expected));
        }
        let mut dims = self.shape.to_vec();
        dims[self.first..=self.last].fill(1);
        Ok(vec![Meta::new(dims, x.dtype())])
    }

    fn saves(&self) -> Saves {
        match self.kind {
            Kind::Product => Saves::inputs(&[0]).and_outputs(&[0]),
            Kind::Max | Kind::Min => Saves::inputs(&[0]),
            _ => Saves::none(),
        }
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = super::required(self.name(), inputs, 0)?.contiguous()?;
        let (extent, out) = (self.extent(), &mut outputs[0]);
        if out.device().is_cuda() {
            return cuda::fold(self.kind, extent, &x, out, false);
        }
        match x.dtype() {
            DType::C64 => sum_complex::<f32>(&x, extent, out),
            DType::C128 => sum_complex::<f64>(&x, extent, out),
            DType::F64 => self.run_as::<f64, f64>(&x, out),
            DType::F32 => self.run_as::<f32, f64>(&x, out),
            DType::BF16 => self.run_as::<bf16, f64>(&x, out),
            DType::I64 => self.run_as::<i64, i64>(&x, out),
            // Rarer types in a type that holds them exactly, so that there are few loops to build.
            dtype => {
                let wide = if dtype.is_float() { DType::F32 } else { DType::I64 };
                let mut folded = [Tensor::empty(out.shape(), wide, &x.device())?];
                self.run(&[Some(&x.detach().to_dtype(wide)?)], &mut folded)?;
                super::copy::contiguous_into(&folded[0].to_dtype(dtype)?, out)
            }
        }
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = &ctx.grads[0] else { return Ok(vec![None]) };
        let dx = match self.kind {
            Kind::Sum => grad.broadcast_to(&self.shape)?,
            Kind::Product => self.product_gradient(ctx, grad)?,
            Kind::Max | Kind::Min => {
                let Extent { outer, count, inner } = self.extent();
                let x = ctx.input(0)?.reshape([outer, count, inner])?;
                let index = if self.kind == Kind::Max { x.argmax(1)? } else { x.argmin(1)? }
                    .unsqueeze(1)?;
                let zeros = Tensor::zeros(x.shape(), grad.dtype(), &grad.device())?;
                let grad = grad.reshape([outer, 1, inner])?;
                zeros.scatter_add(1, &index, &grad)?.reshape(&self.shape)?
            }
            Kind::Any | Kind::All => return Ok(vec![None]),
        };
        Ok(vec![Some(dx)])
    }
}

impl Reduce {
    fn run_as<T: Widen<V>, V: Value>(&self, x: &Tensor, out: &mut Tensor) -> Result<()> {
        let (extent, x, out) = (self.extent(), x.as_slice::<T>()?, out.as_slice_mut::<T>()?);
        let (widen, narrow) = (T::widen, T::narrow);
        match self.kind {
            Kind::Sum => fold(extent, x, out, widen, narrow, Sum),
            Kind::Product => fold(extent, x, out, widen, narrow, Product),
            Kind::Max => fold(extent, x, out, widen, narrow, Max(V::LOWEST)),
            Kind::Min => fold(extent, x, out, widen, narrow, Min(V::HIGHEST)),
            Kind::Any => fold(extent, x, out, widen, narrow, Max(V::ZERO)),
            Kind::All => fold(extent, x, out, widen, narrow, Min(V::ONE)),
        }
        Ok(())
    }

    /// The product of all others, without dividing by zero: with one zero only its own place gets a
    /// gradient, with more none does.
    fn product_gradient(&self, ctx: &Backward, grad: &Tensor) -> Result<Tensor> {
        let (x, y) = (ctx.input(0)?, ctx.output(0)?);
        let run = |kind, x: &Tensor| {
            let (first, last, shape) = (self.first, self.last, self.shape.clone());
            super::single(apply(Reduce { kind, first, last, shape }, &[Some(x)])?)
        };
        let formula =
            |text, inputs: &[&Tensor]| apply_expr("prod", &Expr::parse(text)?, inputs, None);
        let zeros = run(Kind::Sum, &formula("x0 == 0", &[x])?)?;
        let others = run(Kind::Product, &formula("where(x0 == 0, 1, x0)", &[x])?)?;
        let whole = "where(x3 == 0, x0 * x2 / x1, where(and(x3 == 1, x1 == 0), x0 * x4, 0))";
        formula(whole, &[grad, x, y, &zeros, &others])
    }
}

fn sum_complex<R>(x: &Tensor, extent: Extent, out: &mut Tensor) -> Result<()>
where
    Complex<R>: Element + std::ops::Add<Output = Complex<R>>,
{
    let (x, out) = (x.as_slice::<Complex<R>>()?, out.as_slice_mut::<Complex<R>>()?);
    fold(extent, x, out, |v| v, |v| v, Sum);
    Ok(())
}

/// Types that are folded in another one.
trait Widen<V>: Element {
    fn widen(self) -> V;
    fn narrow(value: V) -> Self;
}

macro_rules! widen_floats {
    ($($type:ty)*) => { $(
        impl Widen<f64> for $type {
            #[inline(always)]
            fn widen(self) -> f64 {
                self.to_f64()
            }
            #[inline(always)]
            fn narrow(value: f64) -> Self {
                Self::from_f64(value)
            }
        }
    )* };
}

widen_floats!(f64 f32 bf16);

impl Widen<i64> for i64 {
    #[inline(always)]
    fn widen(self) -> i64 {
        self
    }
    #[inline(always)]
    fn narrow(value: i64) -> Self {
        value
    }
}

/// Types that folds run in.
trait Value:
    Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + 'static
    + std::ops::Add<Output = Self>
    + std::ops::Mul<Output = Self>
{
    const ZERO: Self;
    const ONE: Self;
    const LOWEST: Self;
    const HIGHEST: Self;
}

impl Value for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const LOWEST: f64 = f64::NEG_INFINITY;
    const HIGHEST: f64 = f64::INFINITY;
}

impl Value for i64 {
    const ZERO: i64 = 0;
    const ONE: i64 = 1;
    const LOWEST: i64 = i64::MIN;
    const HIGHEST: i64 = i64::MAX;
}

#[derive(Clone, Copy)]
struct Sum;

impl<V: Copy + Default + Send + Sync + std::ops::Add<Output = V>> Fold<V> for Sum {
    type State = V;
    #[inline(always)]
    fn start(&self) -> V {
        V::default()
    }
    #[inline(always)]
    fn step(&self, state: V, value: V, _: usize) -> V {
        state + value
    }
    #[inline(always)]
    fn join(&self, a: V, b: V) -> V {
        a + b
    }
}

#[derive(Clone, Copy)]
struct Product;

impl<V: Value> Fold<V> for Product {
    type State = V;
    #[inline(always)]
    fn start(&self) -> V {
        V::ONE
    }
    #[inline(always)]
    fn step(&self, state: V, value: V, _: usize) -> V {
        state * value
    }
    #[inline(always)]
    fn join(&self, a: V, b: V) -> V {
        a * b
    }
}

/// The largest value, at least the one given.
#[derive(Clone, Copy)]
struct Max<V>(V);

/// The smallest value, at most the one given.
#[derive(Clone, Copy)]
struct Min<V>(V);

macro_rules! extremes {
    ($($name:ident $better:tt;)*) => { $(
        impl<V: Value> Fold<V> for $name<V> {
            type State = V;
            #[inline(always)]
            fn start(&self) -> V {
                self.0
            }
            #[inline(always)]
            #[allow(clippy::eq_op)]
            fn step(&self, state: V, value: V, _: usize) -> V {
                // A value that differs from itself is NaN; it stays.
                if value $better state || value != value { value } else { state }
            }
            #[inline(always)]
            fn join(&self, a: V, b: V) -> V {
                self.step(a, b, 0)
            }
        }
    )* };
}

extremes! {
    Max >;
    Min <;
}

/// Index of the largest (or smallest) value along `first..=last`; the first of equal ones, or the
/// first NaN.
struct ArgExtreme {
    reduce: Reduce,
}

impl Op for ArgExtreme {
    fn name(&self) -> &'static str {
        if self.reduce.kind == Kind::Max { "argmax" } else { "argmin" }
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let mut metas = self.reduce.infer(inputs)?;
        metas[0].dtype = DType::I64;
        Ok(metas)
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = super::required(self.name(), inputs, 0)?.contiguous()?;
        let (extent, max) = (self.reduce.extent(), self.reduce.kind == Kind::Max);
        if x.device().is_cuda() {
            return cuda::fold(self.reduce.kind, extent, &x, &mut outputs[0], true);
        }
        let out = outputs[0].as_slice_mut::<i64>()?;
        let position = |(_, index): (f64, usize)| index as i64;
        match x.dtype() {
            DType::I64 => {
                let position = |(_, index): (i64, usize)| index as i64;
                fold(extent, x.as_slice::<i64>()?, out, |v| v, position, Place { max });
            }
            DType::F64 => {
                fold(extent, x.as_slice::<f64>()?, out, |v| v, position, Place { max });
            }
            DType::F32 => {
                fold(extent, x.as_slice::<f32>()?, out, f64::from, position, Place { max });
            }
            _ => {
                let x = x.detach().to_dtype(DType::F64)?;
                fold(extent, x.as_slice::<f64>()?, out, |v| v, position, Place { max });
            }
        }
        Ok(())
    }

    fn backward(&self, _: &Backward) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![None])
    }
}

#[derive(Clone, Copy)]
struct Place {
    max: bool,
}

impl<V: Value> Fold<V> for Place {
    /// The value and where it is; `usize::MAX` before the first.
    type State = (V, usize);
    #[inline(always)]
    fn start(&self) -> (V, usize) {
        (V::ZERO, usize::MAX)
    }
    #[inline(always)]
    fn step(&self, state: (V, usize), value: V, index: usize) -> (V, usize) {
        self.join(state, (value, index))
    }
    #[inline(always)]
    #[allow(clippy::eq_op)]
    fn join(&self, a: (V, usize), b: (V, usize)) -> (V, usize) {
        if a.1 == usize::MAX || b.1 == usize::MAX {
            return if a.1 == usize::MAX { b } else { a };
        }
        let (nan_a, nan_b) = (a.0 != a.0, b.0 != b.0);
        let better = if self.max { b.0 > a.0 } else { b.0 < a.0 };
        let equal = a.0 == b.0 || (nan_a && nan_b);
        let second = (!nan_a && (nan_b || better)) || (equal && b.1 < a.1);
        if second { b } else { a }
    }
}
