//! Functions of one tensor, element by element.
//!
//! Each is a formula of one input (see [`super::expr`]), with the derivative that the formula has.

use super::expr::{Binary, Expr, Unary};
use super::fused::apply_expr;
use crate::{DType, Error, Result, Tensor};

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident $function:ident;)*) => {
        impl Tensor { $(
            $(#[$doc])*
            ///
            /// # Errors
            /// When the dtype is not f64, f32, bf16 or f16.
            pub fn $name(&self) -> Result<Tensor> {
                self.unary(Unary::$function)
            }
        )* }
    };
}

methods! {
    /// `-x`.
    neg Neg;
    /// `|x|`.
    abs Abs;
    /// -1, 0 or 1.
    sign Sign;
    /// `1 / x`.
    reciprocal Reciprocal;
    /// `x^2`.
    square Square;
    /// The largest integer that is not above.
    floor Floor;
    /// The nearest integer, ties to even.
    round Round;
    /// `e^x`.
    exp Exp;
    /// Natural logarithm.
    ln Ln;
    /// Square root.
    sqrt Sqrt;
    /// `1 / sqrt(x)`.
    rsqrt Rsqrt;
    /// Sine.
    sin Sin;
    /// Cosine.
    cos Cos;
    /// Hyperbolic tangent.
    tanh Tanh;
    /// `1 / (1 + e^-x)`.
    sigmoid Sigmoid;
    /// `max(x, 0)`.
    relu Relu;
    /// `ln(1 + e^x)`.
    softplus Softplus;
    /// The error function.
    erf Erf;
}

impl Tensor {
    fn unary(&self, function: Unary) -> Result<Tensor> {
        self.formula(function.name(), &Expr::input(0).unary(function))
    }

    /// A formula of this tensor alone.
    fn formula(&self, name: &'static str, expr: &Expr) -> Result<Tensor> {
        if self.dtype() == DType::Bool {
            return Err(Error::dtype(name, "x", self.dtype(), "f64, f32, bf16 or f16"));
        }
        apply_expr(name, expr, &[self], None)
    }

    /// `x^exponent` with a constant exponent.
    ///
    /// # Errors
    /// When the dtype is not f64, f32, bf16 or f16.
    pub fn pow_scalar(&self, exponent: f64) -> Result<Tensor> {
        self.formula("pow", &Expr::input(0).binary(Binary::Pow, exponent))
    }

    /// `x` limited to `low..=high`; NaN stays.
    ///
    /// # Errors
    /// When `low` is above `high` or NaN, or the dtype is not f64, f32, bf16 or f16.
    pub fn clamp(&self, low: f64, high: f64) -> Result<Tensor> {
        if low > high || low.is_nan() || high.is_nan() {
            let given = format!("{low}..={high}");
            return Err(Error::argument("clamp", "range", given, "low <= high"));
        }
        let x = Expr::input(0).binary(Binary::Max, low).binary(Binary::Min, high);
        self.formula("clamp", &x)
    }
}
