//! A small language for elementwise chains.
//!
//! An [`Expr`] is a formula over numbered inputs, for example `where(x0 > 0, x0 * x1, 0.5 * exp(x0))`.
//! It knows nothing of tensors: [`crate::Tensor::fused`] applies one to tensors, and score modifiers
//! of attention evaluate one on tiles. It is built with operators and methods or parsed from text
//! ([`Expr::parse`]), printed back with `Display`, differentiated symbolically
//! ([`Expr::derivative`], so that gradients are fused expressions too) and compiled to a
//! [`Program`], a short list of instructions over blocks that stay in the first-level cache.
//!
//! Truth values are numbers: comparisons give 1 or 0, and anything but 0 is true. A comparison with
//! NaN is false (`!=` is true); every other function of NaN is NaN, also `max` and `min`.
//!
//! | file | holds |
//! | --- | --- |
//! | `mod.rs` | the tree and its builder |
//! | `text.rs` | parser and printer |
//! | `derivative.rs` | symbolic differentiation |
//! | `program.rs` | common subexpressions, constant folding, registers |
//! | `cuda.rs` | a program as the body of a GPU kernel |
//! | `evaluate.rs`, `vector.rs` | running a program on blocks, in f64 and on f32 vectors |

mod cuda;
mod derivative;
mod evaluate;
mod program;
mod text;
mod vector;

pub(crate) use cuda::Statements;
pub(crate) use derivative::product;
pub use evaluate::{Operand, Real, Registers};
pub use program::Program;

use std::sync::Arc;

/// Functions of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// `-a`.
    Neg,
    /// `|a|`.
    Abs,
    /// -1, 0 or 1.
    Sign,
    /// `1 / a`.
    Reciprocal,
    /// `a^2`.
    Square,
    /// Largest integer that is not above.
    Floor,
    /// Nearest integer, ties to even.
    Round,
    /// `e^a`.
    Exp,
    /// Natural logarithm.
    Ln,
    /// Square root.
    Sqrt,
    /// `1 / sqrt(a)`.
    Rsqrt,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + e^-a)`.
    Sigmoid,
    /// `a sigmoid(a)`.
    Silu,
    /// `a (1 + erf(a / sqrt 2)) / 2`.
    Gelu,
    /// GELU with the tanh approximation.
    GeluTanh,
    /// `max(a, 0)`.
    Relu,
    /// `ln(1 + e^a)`.
    Softplus,
    /// The error function.
    Erf,
    /// 1 where `a` is 0, else 0.
    Not,
}

/// Functions of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// Sum.
    Add,
    /// Difference.
    Sub,
    /// Product.
    Mul,
    /// Quotient.
    Div,
    /// `a^b`.
    Pow,
    /// The larger one.
    Max,
    /// The smaller one.
    Min,
    /// Angle of the point (b, a), in -pi..=pi.
    Atan2,
    /// `a < b`.
    Lt,
    /// `a <= b`.
    Le,
    /// `a > b`.
    Gt,
    /// `a >= b`.
    Ge,
    /// `a == b`.
    Eq,
    /// `a != b`.
    Ne,
    /// Both are not 0.
    And,
    /// At least one is not 0.
    Or,
}

/// A formula. Cloning shares its nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr(Arc<Node>);

/// One node of a formula.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// Input by position.
    Input(usize),
    /// A number.
    Constant(f64),
    /// Function of one value.
    Unary(Unary, Expr),
    /// Function of two values.
    Binary(Binary, Expr, Expr),
    /// The second where the first is not 0, else the third.
    Where(Expr, Expr, Expr),
}

impl Unary {
    /// Every function with its name in text.
    pub const NAMES: [(Unary, &'static str); 22] = [
        (Unary::Neg, "neg"),
        (Unary::Abs, "abs"),
        (Unary::Sign, "sign"),
        (Unary::Reciprocal, "reciprocal"),
        (Unary::Square, "square"),
        (Unary::Floor, "floor"),
        (Unary::Round, "round"),
        (Unary::Exp, "exp"),
        (Unary::Ln, "ln"),
        (Unary::Sqrt, "sqrt"),
        (Unary::Rsqrt, "rsqrt"),
        (Unary::Sin, "sin"),
        (Unary::Cos, "cos"),
        (Unary::Tanh, "tanh"),
        (Unary::Sigmoid, "sigmoid"),
        (Unary::Silu, "silu"),
        (Unary::Gelu, "gelu"),
        (Unary::GeluTanh, "gelu_tanh"),
        (Unary::Relu, "relu"),
        (Unary::Softplus, "softplus"),
        (Unary::Erf, "erf"),
        (Unary::Not, "not"),
    ];

    /// Name in text and on the tape.
    pub fn name(self) -> &'static str {
        let entry = Self::NAMES.iter().find(|(function, _)| *function == self);
        entry.map_or("unary", |(_, name)| name)
    }
}

impl Binary {
    /// Every function with its name; those with an operator are printed with that instead.
    pub const NAMES: [(Binary, &'static str); 16] = [
        (Binary::Add, "add"),
        (Binary::Sub, "sub"),
        (Binary::Mul, "mul"),
        (Binary::Div, "div"),
        (Binary::Pow, "pow"),
        (Binary::Max, "max"),
        (Binary::Min, "min"),
        (Binary::Atan2, "atan2"),
        (Binary::Lt, "lt"),
        (Binary::Le, "le"),
        (Binary::Gt, "gt"),
        (Binary::Ge, "ge"),
        (Binary::Eq, "eq"),
        (Binary::Ne, "ne"),
        (Binary::And, "and"),
        (Binary::Or, "or"),
    ];

    /// Name in text and on the tape.
    pub fn name(self) -> &'static str {
        let entry = Self::NAMES.iter().find(|(function, _)| *function == self);
        entry.map_or("binary", |(_, name)| name)
    }

    /// Whether the result is 1 or 0.
    pub fn is_truth(self) -> bool {
        use Binary::*;
        matches!(self, Lt | Le | Gt | Ge | Eq | Ne | And | Or)
    }
}

impl Expr {
    /// Input number `position`.
    pub fn input(position: usize) -> Self {
        Self(Arc::new(Node::Input(position)))
    }

    /// A number.
    pub fn constant(value: f64) -> Self {
        Self(Arc::new(Node::Constant(value)))
    }

    /// The outermost node.
    pub fn node(&self) -> &Node {
        &self.0
    }

    /// Applies a function of one value.
    pub fn unary(&self, function: Unary) -> Self {
        Self(Arc::new(Node::Unary(function, self.clone())))
    }

    /// Applies a function of two values.
    pub fn binary(&self, function: Binary, other: impl Into<Expr>) -> Self {
        Self(Arc::new(Node::Binary(function, self.clone(), other.into())))
    }

    /// `yes` where this is not 0, else `no`.
    pub fn choose(&self, yes: impl Into<Expr>, no: impl Into<Expr>) -> Self {
        Self(Arc::new(Node::Where(self.clone(), yes.into(), no.into())))
    }

    /// The value if this is a number.
    pub fn as_constant(&self) -> Option<f64> {
        match self.node() {
            Node::Constant(value) => Some(*value),
            _ => None,
        }
    }

    /// The position if this is an input.
    pub fn as_input(&self) -> Option<usize> {
        match self.node() {
            Node::Input(position) => Some(*position),
            _ => None,
        }
    }

    /// Which inputs occur, as a bit set; positions above 63 count as 63.
    pub fn inputs_used(&self) -> u64 {
        let mut seen = std::collections::HashSet::new();
        let mut used = 0;
        let mut pending = vec![self];
        while let Some(expr) = pending.pop() {
            if !seen.insert(Arc::as_ptr(&expr.0)) {
                continue;
            }
            match expr.node() {
                Node::Input(position) => used |= 1 << (*position).min(63),
                Node::Constant(_) => {}
                Node::Unary(_, a) => pending.push(a),
                Node::Binary(_, a, b) => pending.extend([a, b]),
                Node::Where(a, b, c) => pending.extend([a, b, c]),
            }
        }
        used
    }

    /// Identity of the node, for tables of visited nodes.
    fn key(&self) -> *const Node {
        Arc::as_ptr(&self.0)
    }
}

impl From<f64> for Expr {
    fn from(value: f64) -> Self {
        Self::constant(value)
    }
}

impl From<&Expr> for Expr {
    fn from(expr: &Expr) -> Self {
        expr.clone()
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident $function:ident;)*) => { $(
        impl<E: Into<Expr>> std::ops::$trait<E> for Expr {
            type Output = Expr;
            fn $method(self, other: E) -> Expr {
                self.binary(Binary::$function, other)
            }
        }
        impl<E: Into<Expr>> std::ops::$trait<E> for &Expr {
            type Output = Expr;
            fn $method(self, other: E) -> Expr {
                self.binary(Binary::$function, other)
            }
        }
    )* };
}

operators! {
    Add add Add;
    Sub sub Sub;
    Mul mul Mul;
    Div div Div;
}

impl std::ops::Neg for Expr {
    type Output = Expr;
    fn neg(self) -> Expr {
        self.unary(Unary::Neg)
    }
}

#[cfg(test)]
mod tests;
