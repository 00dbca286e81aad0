//! From a tree to a short list of instructions.
//!
//! Equal subexpressions are computed once, operations on constants are carried out here, and
//! registers (blocks of scratch) are reused as soon as their last reader is done. Several formulas
//! over the same inputs compile to one program, so that gradients share what they have in common.

use super::evaluate::{binary_scalar, unary_scalar};
use super::{Binary, Expr, Node, Unary};
use std::collections::HashMap;

/// Where an instruction reads from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Source {
    Input(usize),
    Constant(f64),
    Register(usize),
    Output(usize),
}

/// Where an instruction writes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    Register(usize),
    Output(usize),
}

/// What an instruction computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Action {
    Copy(Source),
    Unary(Unary, Source),
    Binary(Binary, Source, Source),
    Where(Source, Source, Source),
}

impl Action {
    fn sources(&self) -> [Option<Source>; 3] {
        match *self {
            Action::Copy(a) | Action::Unary(_, a) => [Some(a), None, None],
            Action::Binary(_, a, b) => [Some(a), Some(b), None],
            Action::Where(a, b, c) => [Some(a), Some(b), Some(c)],
        }
    }

    fn map(self, change: impl Fn(Source) -> Source) -> Self {
        match self {
            Action::Copy(a) => Action::Copy(change(a)),
            Action::Unary(function, a) => Action::Unary(function, change(a)),
            Action::Binary(function, a, b) => Action::Binary(function, change(a), change(b)),
            Action::Where(a, b, c) => Action::Where(change(a), change(b), change(c)),
        }
    }
}

/// Formulas ready to run on blocks of elements.
#[derive(Clone, Debug)]
pub struct Program {
    pub(super) instructions: Vec<(Target, Action)>,
    pub(super) registers: usize,
    inputs_used: u64,
}

impl Program {
    /// Compiles formulas; output `i` of the program is the value of `outputs[i]`.
    pub fn new(outputs: &[Expr]) -> Self {
        let mut builder = Builder::default();
        let results: Vec<Source> = outputs.iter().map(|expr| builder.source(expr)).collect();
        let inputs_used = outputs.iter().fold(0, |used, expr| used | expr.inputs_used());
        let (instructions, registers) = allocate(builder.values, &results);
        Self { instructions, registers, inputs_used }
    }

    /// Scratch blocks that a run needs.
    pub fn registers(&self) -> usize {
        self.registers
    }

    /// Whether input `position` is read.
    pub fn reads(&self, position: usize) -> bool {
        self.inputs_used >> position.min(63) & 1 == 1
    }
}

/// Collects actions in evaluation order. Until registers are assigned, `Source::Register(i)` stands
/// for the value of action `i`.
#[derive(Default)]
struct Builder {
    values: Vec<Action>,
    by_node: HashMap<*const Node, Source>,
}

impl Builder {
    fn source(&mut self, expr: &Expr) -> Source {
        if let Some(known) = self.by_node.get(&expr.key()) {
            return *known;
        }
        let source = match expr.node() {
            Node::Input(position) => Source::Input(*position),
            Node::Constant(value) => Source::Constant(*value),
            Node::Unary(function, a) => {
                let a = self.source(a);
                match a {
                    Source::Constant(a) => Source::Constant(unary_scalar(*function, a)),
                    a => self.value(Action::Unary(*function, a)),
                }
            }
            Node::Binary(function, a, b) => {
                let (a, b) = (self.source(a), self.source(b));
                self.binary(*function, a, b)
            }
            Node::Where(condition, yes, no) => match self.source(condition) {
                Source::Constant(0.0) => self.source(no),
                Source::Constant(_) => self.source(yes),
                condition => {
                    let (yes, no) = (self.source(yes), self.source(no));
                    self.value(Action::Where(condition, yes, no))
                }
            },
        };
        self.by_node.insert(expr.key(), source);
        source
    }

    fn binary(&mut self, function: Binary, a: Source, b: Source) -> Source {
        match (function, a, b) {
            (_, Source::Constant(a), Source::Constant(b)) => {
                Source::Constant(binary_scalar(function, a, b))
            }
            // Powers that have a cheap and exact form.
            (Binary::Pow, a, Source::Constant(1.0)) => a,
            (Binary::Pow, a, Source::Constant(2.0)) => self.value(Action::Unary(Unary::Square, a)),
            (Binary::Pow, a, Source::Constant(3.0)) => {
                let square = self.value(Action::Unary(Unary::Square, a));
                self.value(Action::Binary(Binary::Mul, square, a))
            }
            (Binary::Pow, a, Source::Constant(-1.0)) => {
                self.value(Action::Unary(Unary::Reciprocal, a))
            }
            (Binary::Pow, a, Source::Constant(0.5)) => self.value(Action::Unary(Unary::Sqrt, a)),
            _ => self.value(Action::Binary(function, a, b)),
        }
    }

    fn value(&mut self, action: Action) -> Source {
        // Formulas are short: looking through them costs less than a table of them.
        let known = self.values.iter().position(|value| *value == action);
        let index = known.unwrap_or_else(|| {
            self.values.push(action);
            self.values.len() - 1
        });
        Source::Register(index)
    }
}

/// Assigns registers and outputs to values.
fn allocate(mut values: Vec<Action>, results: &[Source]) -> (Vec<(Target, Action)>, usize) {
    let mut targets: Vec<Option<Target>> = vec![None; values.len()];
    for (output, result) in results.iter().enumerate() {
        match result {
            Source::Register(value) if targets[*value].is_none() => {
                targets[*value] = Some(Target::Output(output));
            }
            // An input, a constant, or a value that another output holds already.
            source => {
                values.push(Action::Copy(*source));
                targets.push(Some(Target::Output(output)));
            }
        }
    }
    let mut last_use = vec![0; targets.len()];
    for (position, action) in values.iter().enumerate() {
        for source in action.sources().into_iter().flatten() {
            if let Source::Register(value) = source {
                last_use[value] = position;
            }
        }
    }
    let (mut free, mut count) = (Vec::new(), 0);
    let mut instructions = Vec::with_capacity(values.len());
    for (position, action) in values.into_iter().enumerate() {
        // The target is chosen before operands are released: it never is one of them.
        let target = targets[position].unwrap_or_else(|| {
            Target::Register(free.pop().unwrap_or_else(|| {
                count += 1;
                count - 1
            }))
        });
        targets[position] = Some(target);
        let place = |source| match source {
            Source::Register(value) => match targets[value] {
                Some(Target::Register(register)) => Source::Register(register),
                Some(Target::Output(output)) => Source::Output(output),
                None => source,
            },
            other => other,
        };
        instructions.push((target, action.map(place)));
        let mut released: Vec<usize> = Vec::new();
        for source in action.sources().into_iter().flatten() {
            if let Source::Register(value) = source
                && last_use[value] == position
                && let Some(Target::Register(register)) = targets[value]
                && !released.contains(&register)
            {
                released.push(register);
            }
        }
        free.extend(released);
    }
    (instructions, count)
}
