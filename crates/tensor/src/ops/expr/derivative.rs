//! Symbolic differentiation.
//!
//! Forward rules over the shared tree: each node is differentiated once, so that the derivative is a
//! graph of a size proportional to the formula's. Zeros and ones are removed on the way. At kinks the
//! right derivative or zero is taken: `relu'(0) = 0`, `abs'(0) = 0`, equal operands of `max` and `min`
//! give it all to the first.

use super::{Binary, Expr, Node, Unary};
use std::collections::HashMap;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

impl Expr {
    /// The derivative with respect to input number `position`.
    pub fn derivative(&self, position: usize) -> Expr {
        Differentiator { position, done: HashMap::new() }.of(self)
    }
}

struct Differentiator {
    position: usize,
    done: HashMap<*const Node, Expr>,
}

fn number(value: f64) -> Expr {
    Expr::constant(value)
}

fn is(expr: &Expr, value: f64) -> bool {
    expr.as_constant() == Some(value)
}

/// `a * b` without factors 0 and 1.
pub(crate) fn product(a: Expr, b: Expr) -> Expr {
    if is(&a, 0.0) || is(&b, 0.0) {
        number(0.0)
    } else if is(&a, 1.0) {
        b
    } else if is(&b, 1.0) {
        a
    } else if is(&a, -1.0) {
        negative(b)
    } else if is(&b, -1.0) {
        negative(a)
    } else {
        a * b
    }
}

fn sum(a: Expr, b: Expr) -> Expr {
    if is(&a, 0.0) {
        b
    } else if is(&b, 0.0) {
        a
    } else {
        a + b
    }
}

fn negative(a: Expr) -> Expr {
    match a.as_constant() {
        Some(value) => number(-value),
        None => -a,
    }
}

fn choice(condition: &Expr, yes: Expr, no: Expr) -> Expr {
    if yes == no { yes } else { condition.choose(yes, no) }
}

impl Differentiator {
    fn of(&mut self, expr: &Expr) -> Expr {
        if let Some(known) = self.done.get(&expr.key()) {
            return known.clone();
        }
        let result = match expr.node() {
            Node::Input(position) => number(f64::from(u8::from(*position == self.position))),
            Node::Constant(_) => number(0.0),
            Node::Unary(function, a) => {
                let da = self.of(a);
                if is(&da, 0.0) { da } else { product(slope(*function, a, expr), da) }
            }
            Node::Binary(function, a, b) => self.binary(*function, a, b, expr),
            Node::Where(condition, yes, no) => {
                let (yes, no) = (self.of(yes), self.of(no));
                choice(condition, yes, no)
            }
        };
        self.done.insert(expr.key(), result.clone());
        result
    }

    fn binary(&mut self, function: Binary, a: &Expr, b: &Expr, whole: &Expr) -> Expr {
        if function.is_truth() {
            return number(0.0);
        }
        let (da, db) = (self.of(a), self.of(b));
        if is(&da, 0.0) && is(&db, 0.0) {
            return number(0.0);
        }
        match function {
            Binary::Add => sum(da, db),
            Binary::Sub => sum(da, negative(db)),
            Binary::Mul => sum(product(da, b.clone()), product(a.clone(), db)),
            Binary::Div => {
                // d(a/b) = (da - (a/b) db) / b
                let rest = negative(product(whole.clone(), db));
                sum(da, rest) / b
            }
            Binary::Pow => power(a, b, whole, da, db),
            Binary::Max => choice(&a.binary(Binary::Ge, b), da, db),
            Binary::Min => choice(&a.binary(Binary::Le, b), da, db),
            _ => {
                // atan2: (b da - a db) / (a^2 + b^2)
                let top = sum(product(b.clone(), da), negative(product(a.clone(), db)));
                top / (a.unary(Unary::Square) + b.unary(Unary::Square))
            }
        }
    }
}

/// `d(a^b) = b a^(b-1) da + a^b ln(a) db`; the second part counts for positive `a` only.
fn power(a: &Expr, b: &Expr, whole: &Expr, da: Expr, db: Expr) -> Expr {
    let base = match b.as_constant() {
        Some(exponent) => product(number(exponent), a.binary(Binary::Pow, exponent - 1.0)),
        None => {
            let slope = b * a.binary(Binary::Pow, b - 1.0);
            b.binary(Binary::Eq, 0.0).choose(0.0, slope)
        }
    };
    let exponent = if is(&db, 0.0) {
        db
    } else {
        let slope = whole * a.unary(Unary::Ln);
        product(a.binary(Binary::Gt, 0.0).choose(slope, 0.0), db)
    };
    sum(product(base, da), exponent)
}

/// The derivative of `function(a)`; `y` is the value itself.
fn slope(function: Unary, a: &Expr, y: &Expr) -> Expr {
    match function {
        Unary::Neg => number(-1.0),
        Unary::Abs => a.unary(Unary::Sign),
        Unary::Sign | Unary::Floor | Unary::Round | Unary::Not => number(0.0),
        Unary::Reciprocal => -y.unary(Unary::Square),
        Unary::Square => number(2.0) * a,
        Unary::Exp => y.clone(),
        Unary::Ln => a.unary(Unary::Reciprocal),
        Unary::Sqrt => number(0.5) / y,
        Unary::Rsqrt => number(-0.5) * y / a,
        Unary::Sin => a.unary(Unary::Cos),
        Unary::Cos => -a.unary(Unary::Sin),
        Unary::Tanh => number(1.0) - y.unary(Unary::Square),
        Unary::Sigmoid => y * (number(1.0) - y),
        Unary::Silu => {
            let gate = a.unary(Unary::Sigmoid);
            &gate * (number(1.0) + a * (number(1.0) - &gate))
        }
        Unary::Gelu => {
            let distribution = number(0.5) * (number(1.0) + (a * FRAC_1_SQRT_2).unary(Unary::Erf));
            let density = (number(-0.5) * a.unary(Unary::Square)).unary(Unary::Exp);
            distribution + a * density / (2.0 * PI).sqrt()
        }
        Unary::GeluTanh => {
            let (scale, cubic) = ((2.0 / PI).sqrt(), 0.044_715);
            let squared = a.unary(Unary::Square);
            let inner = number(scale) * a * (number(1.0) + number(cubic) * &squared);
            let t = inner.unary(Unary::Tanh);
            let slope = number(scale) * (number(1.0) + number(3.0 * cubic) * squared);
            let bend = a * (number(1.0) - t.unary(Unary::Square)) * slope;
            number(0.5) * (number(1.0) + t + bend)
        }
        Unary::Relu => a.binary(Binary::Gt, 0.0),
        Unary::Softplus => a.unary(Unary::Sigmoid),
        Unary::Erf => number(FRAC_2_SQRT_PI) * (-a.unary(Unary::Square)).unary(Unary::Exp),
    }
}
