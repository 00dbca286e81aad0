//! Comparisons, truth values and selection.
//!
//! Comparisons give bool tensors; with NaN all are false but `ne`. Integers are compared exactly.

use super::expr::{Binary, Expr, Statements, Unary};
use super::fused::apply_expr;
use crate::{
    Backward, DType, Element, Error, Inputs, Meta, Op, Result, Saves, Tensor, apply, match_dtype,
};
use danaus_runtime::threads::{self, SharedMut};

macro_rules! comparisons {
    ($($(#[$doc:meta])* $name:ident $function:ident;)*) => {
        impl Tensor { $(
            $(#[$doc])*
            ///
            /// # Errors
            /// When shapes do not broadcast, dtypes differ or are complex.
            pub fn $name(&self, other: &Tensor) -> Result<Tensor> {
                self.compare(Binary::$function, other)
            }
        )* }
    };
}

comparisons! {
    /// Where `self == other`.
    eq Eq;
    /// Where `self != other`.
    ne Ne;
    /// Where `self < other`.
    lt Lt;
    /// Where `self <= other`.
    le Le;
    /// Where `self > other`.
    gt Gt;
    /// Where `self >= other`.
    ge Ge;
}

impl Tensor {
    fn compare(&self, function: Binary, other: &Tensor) -> Result<Tensor> {
        if self.dtype().is_int() && other.dtype() == self.dtype() {
            return super::single(apply(CompareInts(function), &[Some(self), Some(other)])?);
        }
        let formula = Expr::input(0).binary(function, Expr::input(1));
        apply_expr(function.name(), &formula, &[self, other], Some(DType::Bool))
    }

    fn truth(&self, name: &'static str, formula: &Expr, inputs: &[&Tensor]) -> Result<Tensor> {
        match inputs.iter().find(|tensor| tensor.dtype() != DType::Bool) {
            Some(tensor) => Err(Error::dtype(name, "operand", tensor.dtype(), "bool")),
            None => apply_expr(name, formula, inputs, Some(DType::Bool)),
        }
    }

    /// Where both bool tensors are true.
    ///
    /// # Errors
    /// When a dtype is not bool or shapes do not broadcast.
    pub fn logical_and(&self, other: &Tensor) -> Result<Tensor> {
        let formula = Expr::input(0).binary(Binary::And, Expr::input(1));
        self.truth("logical_and", &formula, &[self, other])
    }

    /// Where at least one of two bool tensors is true.
    ///
    /// # Errors
    /// When a dtype is not bool or shapes do not broadcast.
    pub fn logical_or(&self, other: &Tensor) -> Result<Tensor> {
        let formula = Expr::input(0).binary(Binary::Or, Expr::input(1));
        self.truth("logical_or", &formula, &[self, other])
    }

    /// Where a bool tensor is false.
    ///
    /// # Errors
    /// When the dtype is not bool.
    pub fn logical_not(&self) -> Result<Tensor> {
        self.truth("logical_not", &Expr::input(0).unary(Unary::Not), &[self])
    }

    /// Elements of `yes` where this bool tensor is true, else of `no`; all three broadcast.
    ///
    /// # Errors
    /// When this is not bool, the dtypes of `yes` and `no` differ, or shapes do not broadcast.
    pub fn where_cond(&self, yes: &Tensor, no: &Tensor) -> Result<Tensor> {
        if self.dtype() != DType::Bool {
            return Err(Error::dtype("where", "condition", self.dtype(), "bool"));
        }
        if yes.dtype().is_float() && yes.dtype().size() > 1 {
            let formula = Expr::input(0).choose(Expr::input(1), Expr::input(2));
            return apply_expr("where", &formula, &[self, yes, no], None);
        }
        super::single(apply(Select, &[Some(self), Some(yes), Some(no)])?)
    }

    /// This tensor with `value` where `mask` (bool, broadcast) is true.
    ///
    /// # Errors
    /// When `mask` is not bool, does not broadcast, or this is not a float tensor.
    pub fn masked_fill(&self, mask: &Tensor, value: f64) -> Result<Tensor> {
        if mask.dtype() != DType::Bool {
            return Err(Error::dtype("masked_fill", "mask", mask.dtype(), "bool"));
        }
        let formula = Expr::input(1).choose(value, Expr::input(0));
        apply_expr("masked_fill", &formula, &[self, mask], None)
    }
}

/// Exact comparison of integers.
struct CompareInts(Binary);

impl Op for CompareInts {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let a = super::required(self.name(), inputs, 0)?;
        let b = super::required(self.name(), inputs, 1)?;
        let shape = a.shape().broadcast(b.shape()).ok_or_else(|| {
            let expected = format!("a shape that broadcasts with {}", a.shape());
            Error::shape(self.name(), "second operand", b.shape(), expected)
        })?;
        Ok(vec![Meta::new(shape, DType::Bool)])
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        if outputs[0].device().is_cuda() {
            let a = super::required(self.name(), inputs, 0)?;
            let b = super::required(self.name(), inputs, 1)?;
            let text = format!("b0[j] = op_{}<C>(a0[j], a1[j]);\n", self.name());
            let statements = Statements { text, constants: Vec::new() };
            let out = &mut outputs[0];
            return super::elementwise::cuda::map(self.name(), "i64", &statements, &[a, b], out);
        }
        let shape = outputs[0].shape().clone();
        let wide = |position| -> Result<Tensor> {
            let tensor = super::required(self.name(), inputs, position)?;
            tensor.to_dtype(DType::I64)?.broadcast_to(&shape)?.contiguous()
        };
        let (a, b) = (wide(0)?, wide(1)?);
        let (a, b) = (a.as_slice::<i64>()?, b.as_slice::<i64>()?);
        let out = outputs[0].as_slice_mut::<bool>()?;
        match self.0 {
            Binary::Eq => zip(a, b, out, |a, b| a == b),
            Binary::Ne => zip(a, b, out, |a, b| a != b),
            Binary::Lt => zip(a, b, out, |a, b| a < b),
            Binary::Le => zip(a, b, out, |a, b| a <= b),
            Binary::Gt => zip(a, b, out, |a, b| a > b),
            _ => zip(a, b, out, |a, b| a >= b),
        }
        Ok(())
    }

    fn backward(&self, _: &Backward) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![None, None])
    }
}

fn zip(a: &[i64], b: &[i64], out: &mut [bool], f: impl Fn(i64, i64) -> bool + Sync) {
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

/// Selection for the types that formulas do not compute in: integers, bool, fp8 and complex.
struct Select;

impl Op for Select {
    fn name(&self) -> &'static str {
        "where"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let condition = super::required("where", inputs, 0)?;
        let (yes, no) =
            (super::required("where", inputs, 1)?, super::required("where", inputs, 2)?);
        if yes.dtype() != no.dtype() {
            return Err(Error::dtype("where", "no", no.dtype(), yes.dtype().name()));
        }
        let both = yes.shape().broadcast(no.shape());
        let shape = both.and_then(|both| both.broadcast(condition.shape())).ok_or_else(|| {
            let expected = format!("shapes that broadcast: {} and {}", yes.shape(), no.shape());
            Error::shape("where", "condition", condition.shape(), expected)
        })?;
        Ok(vec![Meta::new(shape, yes.dtype())])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        if outputs[0].device().is_cuda() {
            let tensor = |position| super::required("where", inputs, position);
            let choice = [tensor(0)?, tensor(1)?, tensor(2)?];
            let text = String::from("b0[j] = a0[j] != 0 ? a1[j] : a2[j];\n");
            let statements = Statements { text, constants: Vec::new() };
            let out = &mut outputs[0];
            return super::elementwise::cuda::map("where", "i64", &statements, &choice, out);
        }
        let shape = outputs[0].shape().clone();
        let stretch = |position| -> Result<Tensor> {
            super::required("where", inputs, position)?.broadcast_to(&shape)?.contiguous()
        };
        let (condition, yes, no) = (stretch(0)?, stretch(1)?, stretch(2)?);
        match_dtype!(yes.dtype(), T => select::<T>(&condition, &yes, &no, &mut outputs[0]))
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(grad) = &ctx.grads[0] else { return Ok(vec![None; 3]) };
        let condition = ctx.input(0)?;
        let zero = Tensor::zeros([], grad.dtype(), &grad.device())?;
        let yes = condition.where_cond(grad, &zero)?.sum_to(ctx.input(1)?.shape())?;
        let no = condition.where_cond(&zero, grad)?.sum_to(ctx.input(2)?.shape())?;
        Ok(vec![None, Some(yes), Some(no)])
    }
}

fn select<T: Element>(
    condition: &Tensor,
    yes: &Tensor,
    no: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let (condition, yes, no) =
        (condition.as_slice::<bool>()?, yes.as_slice::<T>()?, no.as_slice::<T>()?);
    let choices = condition.iter().zip(yes.iter().zip(no));
    for (value, (&condition, (&yes, &no))) in out.as_slice_mut::<T>()?.iter_mut().zip(choices) {
        *value = if condition { yes } else { no };
    }
    Ok(())
}
