//! Formulas as text.
//!
//! ```text
//! formula    = sum [("<" | "<=" | ">" | ">=" | "==" | "!=") sum]
//! sum        = product {("+" | "-") product}
//! product    = sign {("*" | "/") sign}
//! sign       = "-" sign | power
//! power      = atom ["^" sign]
//! atom       = number | "pi" | "inf" | "nan" | input | name "(" formula {"," formula} ")" | "(" formula ")"
//! ```

use super::{Binary, Expr, Node, Unary};
use crate::{Error, Result};
use std::fmt;

/// Longest formula: keeps every recursion over the tree shallow.
const MAX_NODES: usize = 1000;

impl Expr {
    /// Reads a formula whose inputs are `x0`, `x1`, ...
    ///
    /// # Errors
    /// Naming the position of the first mistake and what is valid there.
    pub fn parse(text: &str) -> Result<Expr> {
        Parser::new(text, None).finish()
    }

    /// Reads a formula whose inputs have the given names; input `i` is `names[i]`.
    ///
    /// # Errors
    /// Naming the position of the first mistake and what is valid there.
    pub fn parse_named(text: &str, names: &[&str]) -> Result<Expr> {
        Parser::new(text, Some(names)).finish()
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    names: Option<&'a [&'a str]>,
    nodes: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, names: Option<&'a [&'a str]>) -> Self {
        Self { text, at: 0, names, nodes: 0 }
    }

    fn finish(mut self) -> Result<Expr> {
        let expr = self.formula()?;
        self.skip_blanks();
        if self.at < self.text.len() {
            return Err(self.error("an operator or the end"));
        }
        Ok(expr)
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn error(&self, valid: impl Into<String>) -> Error {
        let found: String = self.rest().chars().take(12).collect();
        let found = if found.is_empty() { "the end".into() } else { format!("\"{found}\"") };
        let given = format!("{found} at character {} of \"{}\"", self.at, self.text);
        Error::argument("fused", "expr", given, valid)
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip_blanks();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        if self.take(token) { Ok(()) } else { Err(self.error(format!("\"{token}\""))) }
    }

    fn count(&mut self) -> Result<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            let given = format!("more than {MAX_NODES} operations");
            return Err(Error::argument("fused", "expr", given, "a shorter formula"));
        }
        Ok(())
    }

    fn formula(&mut self) -> Result<Expr> {
        let left = self.sum()?;
        for (token, function) in COMPARISONS {
            if self.take(token) {
                return Ok(left.binary(function, self.sum()?));
            }
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<Expr> {
        let mut left = self.product()?;
        loop {
            if self.take("+") {
                left = left + self.product()?;
            } else if self.take("-") {
                left = left - self.product()?;
            } else {
                return Ok(left);
            }
        }
    }

    fn product(&mut self) -> Result<Expr> {
        let mut left = self.sign()?;
        loop {
            if self.take("*") {
                left = left * self.sign()?;
            } else if self.take("/") {
                left = left / self.sign()?;
            } else {
                return Ok(left);
            }
        }
    }

    fn sign(&mut self) -> Result<Expr> {
        self.count()?;
        if !self.take("-") {
            return self.power();
        }
        let operand = self.sign()?;
        // A minus before a number belongs to the number.
        Ok(match operand.as_constant() {
            Some(value) if value.is_sign_positive() => Expr::constant(-value),
            _ => -operand,
        })
    }

    fn power(&mut self) -> Result<Expr> {
        let base = self.atom()?;
        if self.take("^") { Ok(base.binary(Binary::Pow, self.sign()?)) } else { Ok(base) }
    }

    fn atom(&mut self) -> Result<Expr> {
        self.skip_blanks();
        if self.take("(") {
            let inner = self.formula()?;
            self.expect(")")?;
            return Ok(inner);
        }
        match self.rest().chars().next() {
            Some(first) if first.is_ascii_digit() || first == '.' => self.number(),
            Some(first) if first.is_ascii_alphabetic() || first == '_' => self.name(),
            _ => Err(self.error("a number, an input, a function or \"(\"")),
        }
    }

    fn number(&mut self) -> Result<Expr> {
        let bytes = self.rest().as_bytes();
        let mut len = 0;
        while let Some(&byte) = bytes.get(len) {
            // A sign belongs to the number only right after its exponent's e.
            let after_e = len > 0 && matches!(bytes[len - 1], b'e' | b'E');
            let sign = matches!(byte, b'+' | b'-') && after_e;
            if !(byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E') || sign) {
                break;
            }
            len += 1;
        }
        let value = self.rest()[..len].parse().map_err(|_| self.error("a number"))?;
        self.at += len;
        Ok(Expr::constant(value))
    }

    fn name(&mut self) -> Result<Expr> {
        let start = self.at;
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let len = self.rest().find(|c| !is_part(c)).unwrap_or(self.rest().len());
        let name = &self.rest()[..len];
        self.at += len;
        if self.take("(") {
            let mut arguments = vec![self.formula()?];
            while self.take(",") {
                arguments.push(self.formula()?);
            }
            self.expect(")")?;
            return call(name, &arguments).ok_or_else(|| {
                self.at = start;
                self.error(functions())
            });
        }
        let constant = match name {
            "pi" => Some(std::f64::consts::PI),
            "inf" => Some(f64::INFINITY),
            "nan" => Some(f64::NAN),
            _ => None,
        };
        if let Some(value) = constant {
            return Ok(Expr::constant(value));
        }
        let position = match self.names {
            Some(names) => names.iter().position(|known| *known == name),
            None => name.strip_prefix('x').and_then(|digits| digits.parse().ok()),
        };
        position.map(Expr::input).ok_or_else(|| {
            self.at = start;
            let known = self.names.map_or("x0, x1, ...".to_string(), |names| names.join(", "));
            self.error(format!("an input ({known}) or {}", functions()))
        })
    }
}

/// Longer operators first, so that `<=` is not read as `<`.
const COMPARISONS: [(&str, Binary); 6] = [
    ("<=", Binary::Le),
    (">=", Binary::Ge),
    ("==", Binary::Eq),
    ("!=", Binary::Ne),
    ("<", Binary::Lt),
    (">", Binary::Gt),
];

fn call(name: &str, arguments: &[Expr]) -> Option<Expr> {
    match arguments {
        [a] => {
            let function = Unary::NAMES.iter().find(|(_, known)| *known == name)?.0;
            Some(a.unary(function))
        }
        [a, b] => {
            let function = Binary::NAMES.iter().find(|(_, known)| *known == name)?.0;
            Some(a.binary(function, b))
        }
        [a, b, c] if name == "where" => Some(a.choose(b, c)),
        _ => None,
    }
}

fn functions() -> String {
    let unary: Vec<&str> = Unary::NAMES.iter().map(|(_, name)| *name).collect();
    let binary: Vec<&str> = Binary::NAMES.iter().map(|(_, name)| *name).collect();
    let (unary, binary) = (unary.join(", "), binary.join(", "));
    format!("a function of one ({unary}), two ({binary}) or three (where) values")
}

/// How tightly a node binds: what stands inside another must bind at least as tightly.
fn precedence(expr: &Expr) -> u8 {
    use Binary::*;
    match expr.node() {
        Node::Binary(Lt | Le | Gt | Ge | Eq | Ne, ..) => 0,
        Node::Binary(Add | Sub, ..) => 1,
        Node::Binary(Mul | Div, ..) => 2,
        Node::Unary(Unary::Neg, _) => 3,
        Node::Constant(value) if value.is_sign_negative() && !value.is_nan() => 3,
        Node::Binary(Pow, ..) => 4,
        _ => 5,
    }
}

fn operator(function: Binary) -> Option<(&'static str, u8, u8)> {
    use Binary::*;
    // Text, least precedence of the left and of the right operand.
    Some(match function {
        Add => (" + ", 1, 2),
        Sub => (" - ", 1, 2),
        Mul => (" * ", 2, 3),
        Div => (" / ", 2, 3),
        Pow => ("^", 5, 3),
        Lt => (" < ", 1, 1),
        Le => (" <= ", 1, 1),
        Gt => (" > ", 1, 1),
        Ge => (" >= ", 1, 1),
        Eq => (" == ", 1, 1),
        Ne => (" != ", 1, 1),
        _ => return None,
    })
}

fn write_inside(f: &mut fmt::Formatter<'_>, expr: &Expr, least: u8) -> fmt::Result {
    if precedence(expr) < least { write!(f, "({expr})") } else { write!(f, "{expr}") }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node() {
            Node::Input(position) => write!(f, "x{position}"),
            Node::Constant(value) if value.is_nan() => f.write_str("nan"),
            Node::Constant(value) => write!(f, "{value}"),
            Node::Unary(Unary::Neg, a) => {
                f.write_str("-")?;
                write_inside(f, a, 3)
            }
            Node::Unary(function, a) => write!(f, "{}({a})", function.name()),
            Node::Binary(function, a, b) => match operator(*function) {
                Some((text, left, right)) => {
                    write_inside(f, a, left)?;
                    f.write_str(text)?;
                    write_inside(f, b, right)
                }
                None => write!(f, "{}({a}, {b})", function.name()),
            },
            Node::Where(condition, yes, no) => write!(f, "where({condition}, {yes}, {no})"),
        }
    }
}
