//! A program as statements of a GPU kernel.
//!
//! Inputs are `a0, a1, ..`, outputs `b0, b1, ..`, both indexed by the lane `j`; `C` is the computing
//! type. Constants are arguments of the kernel and not part of its text, so that a formula with another
//! factor is the same kernel and is not compiled again.

use super::program::{Action, Program, Source, Target};
use std::fmt::Write as _;

/// Statements with the constants they refer to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Statements {
    /// C++ text, one statement a line.
    pub text: String,
    /// Bits of `K(0), K(1), ..`.
    pub constants: Vec<u64>,
}

impl Statements {
    /// `b0 = a0`.
    pub fn copy() -> Self {
        Self { text: "b0[j] = a0[j];\n".into(), constants: Vec::new() }
    }

    /// `b0 = K(0)` with these bits.
    pub fn constant(bits: u64) -> Self {
        Self { text: "b0[j] = K(0);\n".into(), constants: vec![bits] }
    }

    fn operand(&mut self, source: Source) -> String {
        match source {
            Source::Input(index) => format!("a{index}[j]"),
            Source::Register(index) => format!("r{index}"),
            Source::Output(index) => format!("b{index}[j]"),
            Source::Constant(value) => {
                let bits = value.to_bits();
                let known = self.constants.iter().position(|&constant| constant == bits);
                let index = known.unwrap_or_else(|| {
                    self.constants.push(bits);
                    self.constants.len() - 1
                });
                format!("K({index})")
            }
        }
    }

    fn value(&mut self, action: Action) -> String {
        match action {
            Action::Copy(a) => self.operand(a),
            Action::Unary(function, a) => format!("op_{}<C>({})", function.name(), self.operand(a)),
            Action::Binary(function, a, b) => {
                let (a, b) = (self.operand(a), self.operand(b));
                format!("op_{}<C>({a}, {b})", function.name())
            }
            Action::Where(condition, yes, no) => {
                let condition = self.operand(condition);
                let (yes, no) = (self.operand(yes), self.operand(no));
                format!("{condition} != (C)0 ? {yes} : {no}")
            }
        }
    }
}

impl Program {
    /// The program as statements.
    pub(crate) fn statements(&self) -> Statements {
        let mut all = Statements::default();
        for register in 0..self.registers {
            let _ = writeln!(all.text, "C r{register};");
        }
        for (target, action) in &self.instructions {
            let value = all.value(*action);
            let _ = match target {
                Target::Register(index) => writeln!(all.text, "r{index} = {value};"),
                Target::Output(index) => writeln!(all.text, "b{index}[j] = {value};"),
            };
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::Expr;
    use super::*;

    fn statements(text: &str) -> Statements {
        Program::new(&[Expr::parse(text).unwrap()]).statements()
    }

    #[test]
    fn another_constant_is_the_same_kernel() {
        let (a, b) = (statements("x0 * 0.5 + x1"), statements("x0 * 0.25 + x1"));
        assert_eq!(a.text, b.text);
        assert_eq!(a.constants, [0.5f64.to_bits()]);
        assert_ne!(a.constants, b.constants);
    }

    #[test]
    fn every_part_of_the_language_has_a_text() {
        let all = statements("where(x0 > 0, exp(x0), x1^x2 - max(x0, 2))");
        assert!(all.text.contains("op_gt<C>(a0[j], K(0))"), "{}", all.text);
        assert!(all.text.contains("op_exp<C>(a0[j])"), "{}", all.text);
        assert!(all.text.contains("!= (C)0 ?"), "{}", all.text);
        assert!(all.text.lines().last().unwrap().starts_with("b0[j] = "), "{}", all.text);
    }
}
