//! The language against plain f64 computation.

use super::*;
use danaus_runtime::simd::{Isa, Kernel, Simd, dispatch, with_isa};

struct Run<'a, T>(&'a Program, &'a [Operand<'a, T>], &'a mut [T]);

impl<T: Real> Kernel for Run<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Run(program, inputs, output) = self;
        let mut registers = Registers::new(program, output.len());
        program.run(s, inputs, &mut registers, &mut [output]);
    }
}

fn value(text: &str, inputs: &[f64]) -> f64 {
    let program = Program::new(&[Expr::parse(text).unwrap()]);
    let operands: Vec<Operand<f64>> =
        inputs.iter().map(|x| Operand::Block(std::slice::from_ref(x))).collect();
    let mut output = [0.0];
    dispatch(Run(&program, &operands, &mut output));
    output[0]
}

#[test]
fn text_means_what_it_says() {
    let (x, y) = (0.75, -1.5);
    let cases: [(&str, f64); 12] = [
        ("x0 + 2 * x1", x + 2.0 * y),
        ("-x0^2", -(x * x)),
        ("(-x0)^2 - 1e-1", x * x - 0.1),
        ("2^-x0^2", 2f64.powf(-(x * x))),
        ("x0 - x1 - 1", x - y - 1.0),
        ("x0 / x1 / 2", x / y / 2.0),
        ("where(x0 > 0, x0*x1, 0.5*exp(x0))", x * y),
        ("where(and(x0 >= 1, x1 < 0), 1, 2)", 2.0),
        ("max(x0, min(x1, 3)) + abs(x1) * pi", x + 1.5 * std::f64::consts::PI),
        ("not(x0 != x0) + (x1 <= -1.5)", 2.0),
        ("where(x0 == nan, 1, -inf)", f64::NEG_INFINITY),
        ("atan2(x0, x1) + pow(x0, 3) + 1.5e+2", x.atan2(y) + x * x * x + 150.0),
    ];
    for (text, expected) in cases {
        assert_eq!(value(text, &[x, y]), expected, "{text}");
        let expr = Expr::parse(text).unwrap();
        let printed = expr.to_string();
        let again = Expr::parse(&printed).unwrap();
        assert!(again == expr || printed.contains("nan"), "{text} became {printed}");
    }
    let named = Expr::parse_named("score - slope * (q - k)", &["score", "slope", "q", "k"]);
    assert_eq!(named.unwrap().to_string(), "x0 - x1 * (x2 - x3)");
}

#[test]
fn mistakes_are_located() {
    let message = |text: &str| Expr::parse(text).unwrap_err().to_string();
    assert!(message("x0 +").contains("the end at character 4"), "{}", message("x0 +"));
    assert!(message("exq(x0)").contains("\"exq(x0)\" at character 0"), "{}", message("exq(x0)"));
    assert!(message("(x0").contains("valid is \")\""));
    assert!(message("x0 x1").contains("valid is an operator or the end"));
    assert!(message("score").contains("an input (x0, x1, ...)"));
    assert!(message("1.2.3").contains("a number"));
    let long = vec!["x0"; 2000].join("+");
    assert!(message(&long).contains("more than 1000 operations"));
    let deep = format!("{}x0{}", "(".repeat(1_000), ")".repeat(1_000));
    assert!(Expr::parse(&deep).is_err());
    assert!(Expr::parse(&"-".repeat(100_000)).is_err());
}

#[test]
fn every_function_agrees_with_f64_on_every_instruction_set() {
    let specials = [0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, 3e9];
    let mut xs: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 0.02137).collect();
    xs.extend(specials);
    let wide: Vec<f32> = (0..4000).map(|i| (i as f32 - 2000.0) * 4.0957).collect();
    for (function, name) in Unary::NAMES {
        // Sine and cosine over the whole range that is reduced in vectors.
        let periodic = matches!(function, Unary::Sin | Unary::Cos);
        let xs = if periodic { [&xs[..], &wide].concat() } else { xs.clone() };
        let program = Program::new(&[Expr::input(0).unary(function)]);
        for isa in Isa::ALL {
            let mut ys = vec![0f32; xs.len()];
            let run = || dispatch(Run(&program, &[Operand::Block(&xs)], &mut ys));
            if with_isa(isa, run).is_none() {
                continue;
            }
            for (&x, &y) in xs.iter().zip(&ys) {
                let exact = evaluate::unary_scalar(function, f64::from(x));
                // 2 units in the last place, or the absolute bound of erf and the reduction of sin.
                let tolerance = 4e-7 * exact.abs() + 6e-7 * f64::from(x).abs().clamp(1e-38, 1.0);
                let fine = if exact.is_nan() {
                    y.is_nan()
                } else {
                    f64::from(y) == f64::from(exact as f32)
                        || (f64::from(y) - exact).abs() <= tolerance
                };
                assert!(fine, "{name}({x}) = {y} on {isa:?}, not {exact}");
            }
        }
    }
}

#[test]
fn derivatives_agree_with_differences() {
    let formulas = [
        "x0 * x1 / (x0 + 3)",
        "x0^x1 + x1^2 + x0^2.5",
        "exp(-x0) * sin(x1) + cos(x0 * x1)",
        "ln(x0) - sqrt(x0) + rsqrt(x0 + 1) + reciprocal(x0)",
        "tanh(x0) * sigmoid(x1) + silu(x0) - softplus(x1)",
        "gelu(x0 - 1) + gelu_tanh(x0 - 1) + erf(x1)",
        "where(x0 > x1, x0^3, x1 * 2) + max(x0, x1) * min(x0, x1)",
        "relu(x0 - 0.5) + abs(x1) * square(x0) - atan2(x0, x1)",
        "floor(x0) * x1 + sign(x1) * x0 + round(x1) * x0",
        "-(x0 - x1) * (x0 < x1)",
    ];
    for text in formulas {
        let expr = Expr::parse(text).unwrap();
        for (x, y) in [(0.7, 1.3), (1.9, -0.8 + 1.2), (0.31, 0.29)] {
            for position in 0..2 {
                let derivative = expr.derivative(position).to_string();
                let step = 1e-5;
                let at = |shift: f64| {
                    let mut inputs = [x, y];
                    inputs[position] += shift;
                    value(text, &inputs)
                };
                let difference = (8.0 * (at(step) - at(-step))
                    - (at(2.0 * step) - at(-2.0 * step)))
                    / (12.0 * step);
                let symbolic = value(&derivative, &[x, y]);
                let error = (symbolic - difference).abs();
                assert!(
                    error < 1e-8 * (1.0 + difference.abs()),
                    "d({text})/dx{position} at {x}, {y}: {symbolic}, {difference}"
                );
            }
        }
    }
}

#[test]
fn programs_share_subexpressions_and_reuse_registers() {
    let sum = Expr::parse("exp(x0) + exp(x0) * sigmoid(x1)").unwrap();
    let program = Program::new(&[sum.clone(), sum]);
    let exps = program
        .instructions
        .iter()
        .filter(|(_, action)| matches!(action, program::Action::Unary(Unary::Exp, _)));
    assert_eq!(exps.count(), 1);
    let chain = Expr::parse("exp(tanh(sin(cos(exp(tanh(sin(cos(x0))))))))").unwrap();
    assert!(Program::new(&[chain]).registers() <= 2);
    let folded = Program::new(&[Expr::parse("x0 * (2 * 3 - 1)").unwrap()]);
    assert_eq!(folded.instructions.len(), 1);
}
