//! Running a program on blocks of elements.
//!
//! Everything here is inlined into the caller's [`danaus_runtime::simd::Kernel`], so that the plain
//! loops are compiled for its instruction set; functions that need more than that are in `vector.rs`.

use super::program::{Action, Program, Source, Target};
use super::{Binary, Unary, vector};
use danaus_runtime::simd::Simd;
use num_traits::Float;

/// A block of elements, or one value for all of them.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a, T> {
    /// One value an element.
    Block(&'a [T]),
    /// The same value everywhere.
    Scalar(T),
}

/// Scratch blocks of a program, kept from block to block.
pub struct Registers<T>(Vec<Box<[T]>>);

impl<T: Copy + Default> Registers<T> {
    /// Scratch for blocks of up to `block` elements.
    pub fn new(program: &Program, block: usize) -> Self {
        Self((0..program.registers).map(|_| vec![T::default(); block].into()).collect())
    }
}

/// Types that programs compute in: f32 (in vectors) and f64.
pub trait Real: Float + Default + Send + Sync + 'static {
    /// A constant, rounded.
    fn constant(value: f64) -> Self;
    /// `y = function(x)` for functions that are more than one instruction.
    fn transcendental<S: Simd>(s: S, function: Unary, x: &[Self], y: &mut [Self]);
    /// The same for one value.
    fn transcendental_scalar(function: Unary, x: Self) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn constant(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn transcendental<S: Simd>(s: S, function: Unary, x: &[f32], y: &mut [f32]) {
        vector::apply(s, function, x, y);
    }
    fn transcendental_scalar(function: Unary, x: f32) -> f32 {
        unary_scalar(function, f64::from(x)) as f32
    }
}

impl Real for f64 {
    #[inline(always)]
    fn constant(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn transcendental<S: Simd>(_: S, function: Unary, x: &[f64], y: &mut [f64]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = unary_scalar(function, x);
        }
    }
    fn transcendental_scalar(function: Unary, x: f64) -> f64 {
        unary_scalar(function, x)
    }
}

/// Any function of one value in f64.
pub(super) fn unary_scalar(function: Unary, x: f64) -> f64 {
    use std::f64::consts::{FRAC_1_SQRT_2, PI};
    match function {
        Unary::Exp => x.exp(),
        Unary::Ln => x.ln(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tanh => x.tanh(),
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Unary::Silu => x / (1.0 + (-x).exp()),
        Unary::Gelu => 0.5 * x * vector::erfc(-x * FRAC_1_SQRT_2),
        Unary::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        }
        Unary::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p() + if x.is_nan() { x } else { 0.0 },
        Unary::Erf => vector::erf(x),
        other => simple(other, x),
    }
}

/// Functions of one value that are an instruction or two.
#[inline(always)]
fn simple<T: Float>(function: Unary, x: T) -> T {
    let (zero, one) = (T::zero(), T::one());
    match function {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sign if x > zero => one,
        Unary::Sign if x < zero => -one,
        Unary::Sign => x * zero,
        Unary::Reciprocal => one / x,
        Unary::Square => x * x,
        Unary::Floor => x.floor(),
        // Exact below 2^52, where there are fractions at all.
        Unary::Round => {
            let (down, rest) = (x.floor(), x - x.floor());
            let half = one / (one + one);
            let odd = (down * half).floor() != down * half;
            if rest > half || (rest == half && odd) { down + one } else { down }
        }
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => one / x.sqrt(),
        Unary::Relu if x < zero => zero,
        Unary::Relu => x,
        Unary::Not if x == zero => one,
        Unary::Not => zero,
        _ => T::nan(),
    }
}

/// Any function of two values.
#[inline(always)]
pub(super) fn binary_scalar<T: Float>(function: Binary, a: T, b: T) -> T {
    let truth = |value: bool| if value { T::one() } else { T::zero() };
    match function {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Pow => a.powf(b),
        Binary::Max if a > b || a.is_nan() => a,
        Binary::Min if a < b || a.is_nan() => a,
        Binary::Max | Binary::Min => b,
        Binary::Atan2 => a.atan2(b),
        Binary::Lt => truth(a < b),
        Binary::Le => truth(a <= b),
        Binary::Gt => truth(a > b),
        Binary::Ge => truth(a >= b),
        Binary::Eq => truth(a == b),
        Binary::Ne => truth(a != b),
        Binary::And => truth((a != T::zero()) & (b != T::zero())),
        Binary::Or => truth((a != T::zero()) | (b != T::zero())),
    }
}

impl Program {
    /// Computes one block. Outputs are of equal length, at most the registers' block; input blocks
    /// have that length as well.
    #[inline(always)]
    pub fn run<T: Real, S: Simd>(
        &self,
        s: S,
        inputs: &[Operand<T>],
        registers: &mut Registers<T>,
        outputs: &mut [&mut [T]],
    ) {
        let len = outputs.first().map_or(0, |output| output.len());
        for (target, action) in &self.instructions {
            // Taking the target out lets the operands be borrowed; it is never one of them.
            match *target {
                Target::Register(index) => {
                    let mut taken = std::mem::take(&mut registers.0[index]);
                    let values = Values { inputs, registers: &registers.0, outputs, len };
                    step(s, *action, &values, &mut taken[..len]);
                    registers.0[index] = taken;
                }
                Target::Output(index) => {
                    let taken = std::mem::take(&mut outputs[index]);
                    let values = Values { inputs, registers: &registers.0, outputs, len };
                    step(s, *action, &values, taken);
                    outputs[index] = taken;
                }
            }
        }
    }
}

/// What operands refer to.
struct Values<'a, 'b, T> {
    inputs: &'a [Operand<'a, T>],
    registers: &'a [Box<[T]>],
    outputs: &'a [&'b mut [T]],
    len: usize,
}

impl<T: Real> Values<'_, '_, T> {
    #[inline(always)]
    fn get(&self, source: Source) -> Operand<'_, T> {
        match source {
            Source::Input(index) => self.inputs[index],
            Source::Constant(value) => Operand::Scalar(T::constant(value)),
            Source::Register(index) => Operand::Block(&self.registers[index][..self.len]),
            Source::Output(index) => Operand::Block(&*self.outputs[index]),
        }
    }
}

#[inline(always)]
fn step<T: Real, S: Simd>(s: S, action: Action, values: &Values<'_, '_, T>, out: &mut [T]) {
    match action {
        Action::Copy(a) => map(values.get(a), out, |a| a),
        Action::Unary(function, a) => unary(s, function, values.get(a), out),
        Action::Binary(function, a, b) => binary(function, values.get(a), values.get(b), out),
        Action::Where(condition, yes, no) => {
            choose(values.get(condition), values.get(yes), values.get(no), out);
        }
    }
}

#[inline(always)]
fn map<T: Real>(a: Operand<T>, out: &mut [T], f: impl Fn(T) -> T) {
    match a {
        Operand::Scalar(a) => out.fill(f(a)),
        Operand::Block(a) => {
            for (y, &a) in out.iter_mut().zip(a) {
                *y = f(a);
            }
        }
    }
}

#[inline(always)]
fn unary<T: Real, S: Simd>(s: S, function: Unary, a: Operand<T>, out: &mut [T]) {
    // One loop a function: a match inside the loop would keep it scalar.
    macro_rules! loops {
        ($($name:ident)*) => {
            match function {
                $(Unary::$name => map(a, out, |a| simple(Unary::$name, a)),)*
                _ => match a {
                    Operand::Scalar(a) => out.fill(T::transcendental_scalar(function, a)),
                    Operand::Block(a) => T::transcendental(s, function, a, out),
                },
            }
        };
    }
    loops!(Neg Abs Sign Reciprocal Square Floor Round Sqrt Rsqrt Relu Not);
}

#[inline(always)]
fn zip<T: Real>(a: Operand<T>, b: Operand<T>, out: &mut [T], f: impl Fn(T, T) -> T) {
    match (a, b) {
        (Operand::Block(a), Operand::Block(b)) => {
            for ((y, &a), &b) in out.iter_mut().zip(a).zip(b) {
                *y = f(a, b);
            }
        }
        (a, Operand::Scalar(b)) => map(a, out, |a| f(a, b)),
        (Operand::Scalar(a), b) => map(b, out, |b| f(a, b)),
    }
}

#[inline(always)]
fn binary<T: Real>(function: Binary, a: Operand<T>, b: Operand<T>, out: &mut [T]) {
    macro_rules! loops {
        ($($name:ident)*) => {
            match function {
                $(Binary::$name => zip(a, b, out, |a, b| binary_scalar(Binary::$name, a, b)),)*
            }
        };
    }
    loops!(Add Sub Mul Div Pow Max Min Atan2 Lt Le Gt Ge Eq Ne And Or);
}

#[inline(always)]
fn choose<T: Real>(condition: Operand<T>, yes: Operand<T>, no: Operand<T>, out: &mut [T]) {
    let condition = match condition {
        Operand::Block(condition) => condition,
        Operand::Scalar(value) => {
            return map(if value == T::zero() { no } else { yes }, out, |a| a);
        }
    };
    match (yes, no) {
        (Operand::Block(yes), Operand::Block(no)) => {
            for (((y, &c), &yes), &no) in out.iter_mut().zip(condition).zip(yes).zip(no) {
                *y = if c == T::zero() { no } else { yes };
            }
        }
        (Operand::Block(yes), Operand::Scalar(no)) => {
            for ((y, &c), &yes) in out.iter_mut().zip(condition).zip(yes) {
                *y = if c == T::zero() { no } else { yes };
            }
        }
        (Operand::Scalar(yes), no) => {
            // `no` is copied first so that one loop serves both forms of it.
            map(no, out, |a| a);
            for (y, &c) in out.iter_mut().zip(condition) {
                *y = if c == T::zero() { *y } else { yes };
            }
        }
    }
}
