//! Elementary operators as seen by `op list` and `op run`.

use super::expr::Expr;
use crate::registry::{Arg, Args, Attr, Kind, OpSpec};
use crate::{DType, Device, Error, Result, Tensor};

const ANY: &[DType] = &DType::ALL;
const COMPLEX: &[DType] = &[DType::C64, DType::C128];
const NUMBERS: &[DType] = &[
    DType::F64,
    DType::F32,
    DType::BF16,
    DType::F16,
    DType::I64,
    DType::I32,
    DType::C64,
    DType::C128,
];
const DIM: Attr = Attr::new("dim", Kind::Int, "-1", "dimension; negative counts from the end");

const fn any(name: &'static str, shape: &'static str) -> Arg {
    Arg { name, shape, dtypes: ANY, optional: false }
}

/// A float, f16 included.
const fn float_input(name: &'static str) -> Arg {
    const FLOATS: &[DType] = &[DType::F64, DType::F32, DType::BF16, DType::F16];
    Arg { name, shape: "any", dtypes: FLOATS, optional: false }
}

const fn number(name: &'static str) -> Arg {
    Arg { name, shape: "any", dtypes: NUMBERS, optional: false }
}

const fn boolean(name: &'static str) -> Arg {
    Arg { name, shape: "any", dtypes: &[DType::Bool], optional: false }
}

const fn complex(name: &'static str) -> Arg {
    Arg { name, shape: "any", dtypes: COMPLEX, optional: false }
}

fn one(tensor: Result<Tensor>) -> Result<Vec<Option<Tensor>>> {
    Ok(vec![Some(tensor?)])
}

fn two(pair: Result<(Tensor, Tensor)>) -> Result<Vec<Option<Tensor>>> {
    pair.map(|(first, second)| vec![Some(first), Some(second)])
}

fn dim(args: &Args) -> Result<isize> {
    Ok(args.int("dim")?.unwrap_or(-1) as isize)
}

fn float(args: &Args, name: &str) -> Result<f64> {
    Ok(args.float(name)?.unwrap_or(0.0))
}

fn count(args: &Args, op: &'static str, name: &str) -> Result<usize> {
    let value = args.int(name)?.unwrap_or(0);
    let error = |_| Error::argument(op, name, value, "a whole number from 0 on");
    usize::try_from(value).map_err(error)
}

/// A specification with one output `y`.
macro_rules! spec {
    ($name:literal, $summary:literal, [$($input:expr),*], [$($attr:expr),*], $call:expr) => {
        OpSpec {
            name: $name,
            summary: $summary,
            inputs: &[$($input),*],
            attributes: &[$($attr),*],
            outputs: &["y"],
            call: |args| one({
                let call: fn(&Args) -> Result<Tensor> = $call;
                call(args)
            }),
        }
    };
}

/// Functions of one float tensor.
macro_rules! unary {
    ($name:literal, $summary:literal, $method:ident) => {
        spec!($name, $summary, [float_input("x")], [], |args| args.input("x")?.$method())
    };
}

/// Functions of two tensors that broadcast.
macro_rules! binary {
    ($name:literal, $summary:literal, $arg:ident, $method:ident) => {
        spec!($name, $summary, [$arg("a"), $arg("b")], [], |args| {
            args.input("a")?.$method(args.input("b")?)
        })
    };
}

/// Reductions of one dimension.
macro_rules! reduction {
    ($name:literal, $summary:literal, $arg:expr, $method:ident) => {
        spec!($name, $summary, [$arg], [DIM], |args| args.input("x")?.$method(dim(args)?))
    };
}

fn fused(args: &Args) -> Result<Tensor> {
    let Some(text) = args.text("expr") else {
        return Err(Error::argument("fused", "expr", "missing", "a formula of x0, x1, ..."));
    };
    let names = ["x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7"];
    let inputs: Vec<&Tensor> = names.iter().map_while(|name| args.optional(name)).collect();
    Tensor::fused(&Expr::parse(text)?, &inputs)
}

fn cat(args: &Args) -> Result<Tensor> {
    let names = ["a", "b", "c", "d"];
    let inputs: Vec<&Tensor> = names.iter().filter_map(|name| args.optional(name)).collect();
    Tensor::cat(&inputs, dim(args)?)
}

fn dtype(args: &Args) -> Result<DType> {
    args.text("dtype").unwrap_or("f32").parse()
}

const X: Arg = float_input("x");
const INDEX: Arg = Arg::int("index", "as x except along dim");
const LIST: Arg = Arg::int("index", "count");
const DTYPE: Attr = Attr::new("dtype", Kind::Text, "f32", "element type of the result");
const DESCENDING: Attr = Attr::new("descending", Kind::Bool, "false", "largest first");

/// Every elementary operator.
#[rustfmt::skip]
pub const SPECS: &[OpSpec] = &[
    spec!("fused", "a formula of up to 8 tensors, in one pass",
        [X_INPUTS[0], X_INPUTS[1], X_INPUTS[2], X_INPUTS[3], X_INPUTS[4], X_INPUTS[5], X_INPUTS[6],
         X_INPUTS[7]],
        [Attr::new("expr", Kind::Text, "", "such as where(x0 > 0, x0*x1, 0.5*exp(x0))")], fused),
    unary!("neg", "y = -x", neg),
    unary!("abs", "y = |x|", abs),
    unary!("sign", "y = -1, 0 or 1", sign),
    unary!("reciprocal", "y = 1 / x", reciprocal),
    unary!("square", "y = x^2", square),
    unary!("floor", "the largest integer not above x", floor),
    unary!("round", "the nearest integer, ties to even", round),
    unary!("exp", "y = e^x", exp),
    unary!("ln", "natural logarithm", ln),
    unary!("sqrt", "square root", sqrt),
    unary!("rsqrt", "y = 1 / sqrt(x)", rsqrt),
    unary!("sin", "sine", sin),
    unary!("cos", "cosine", cos),
    unary!("tanh", "hyperbolic tangent", tanh),
    unary!("sigmoid", "y = 1 / (1 + e^-x)", sigmoid),
    unary!("softplus", "y = ln(1 + e^x)", softplus),
    unary!("erf", "the error function", erf),
    spec!("pow_scalar", "y = x^exponent", [X],
        [Attr::new("exponent", Kind::Float, "2", "exponent")],
        |args| args.input("x")?.pow_scalar(float(args, "exponent")?)),
    spec!("clamp", "x limited to low..=high", [X],
        [Attr::new("low", Kind::Float, "-inf", "smallest value"),
         Attr::new("high", Kind::Float, "inf", "largest value")],
        |args| args.input("x")?.clamp(float(args, "low")?, float(args, "high")?)),
    spec!("affine", "y = factor x + shift", [X],
        [Attr::new("factor", Kind::Float, "1", "factor"),
         Attr::new("shift", Kind::Float, "0", "added afterwards")],
        |args| args.input("x")?.affine(float(args, "factor")?, float(args, "shift")?)),
    binary!("add", "y = a + b with broadcasting", number, add),
    binary!("sub", "y = a - b with broadcasting", number, sub),
    binary!("mul", "y = a b with broadcasting", number, mul),
    binary!("div", "y = a / b with broadcasting", number, div),
    binary!("pow", "y = a^b with broadcasting", number, pow),
    binary!("maximum", "the larger of a and b", number, maximum),
    binary!("minimum", "the smaller of a and b", number, minimum),
    binary!("atan2", "angle of the point (b, a)", number, atan2),
    binary!("eq", "a == b", number, eq),
    binary!("ne", "a != b", number, ne),
    binary!("lt", "a < b", number, lt),
    binary!("le", "a <= b", number, le),
    binary!("gt", "a > b", number, gt),
    binary!("ge", "a >= b", number, ge),
    binary!("logical_and", "a and b", boolean, logical_and),
    binary!("logical_or", "a or b", boolean, logical_or),
    spec!("logical_not", "not x", [boolean("x")], [], |args| args.input("x")?.logical_not()),
    spec!("where", "yes where the condition is true, else no",
        [boolean("condition"), any("yes", "any"), any("no", "any")], [],
        |args| args.input("condition")?.where_cond(args.input("yes")?, args.input("no")?)),
    spec!("masked_fill", "x, but value where the mask is true", [X, boolean("mask")],
        [Attr::new("value", Kind::Float, "0", "value to write")],
        |args| args.input("x")?.masked_fill(args.input("mask")?, float(args, "value")?)),
    spec!("matmul", "matrix product; leading dimensions broadcast",
        [Arg { shape: ".. m k", ..number("a") }, Arg { shape: ".. k n", ..number("b") }], [],
        |args| args.input("a")?.matmul(args.input("b")?)),
    reduction!("sum", "sum along a dimension", number("x"), sum),
    reduction!("mean", "mean along a dimension", X, mean),
    reduction!("prod", "product along a dimension", number("x"), prod),
    reduction!("max", "largest element along a dimension", number("x"), max),
    reduction!("min", "smallest element along a dimension", number("x"), min),
    reduction!("argmax", "index of the largest element", number("x"), argmax),
    reduction!("argmin", "index of the smallest element", number("x"), argmin),
    reduction!("any", "whether any element is true", boolean("x"), any),
    reduction!("all", "whether all elements are true", boolean("x"), all),
    reduction!("logsumexp", "ln sum e^x along a dimension", X, logsumexp),
    spec!("var", "variance along a dimension", [X],
        [DIM, Attr::new("correction", Kind::Int, "1", "subtracted from the number of elements")],
        |args| args.input("x")?.var(dim(args)?, count(args, "var", "correction")?)),
    spec!("cumsum", "running sum along a dimension", [number("x")],
        [DIM, Attr::new("reverse", Kind::Bool, "false", "start from the end")],
        |args| args.input("x")?.cumsum(dim(args)?, args.bool("reverse")?)),
    reduction!("cumprod", "running product along a dimension", number("x"), cumprod),
    spec!("gather", "elements picked along a dimension", [any("x", "any"), INDEX], [DIM],
        |args| args.input("x")?.gather(dim(args)?, args.input("index")?)),
    spec!("scatter", "src written at indices along a dimension",
        [any("x", "any"), INDEX, any("src", "as index")], [DIM],
        |args| args.input("x")?.scatter(dim(args)?, args.input("index")?, args.input("src")?)),
    spec!("scatter_add", "src added at indices along a dimension",
        [number("x"), INDEX, number("src")], [DIM],
        |args| args.input("x")?.scatter_add(dim(args)?, args.input("index")?, args.input("src")?)),
    spec!("index_select", "positions picked along a dimension", [any("x", "any"), LIST], [DIM],
        |args| args.input("x")?.index_select(dim(args)?, args.input("index")?)),
    spec!("index_add", "src added at a list of positions",
        [number("x"), LIST, number("src")], [DIM],
        |args| args.input("x")?.index_add(dim(args)?, args.input("index")?, args.input("src")?)),
    spec!("one_hot", "1 at the index, else 0", [Arg::int("index", "any")],
        [Attr::new("classes", Kind::Int, "2", "size of the new last dimension"), DTYPE],
        |args| args.input("index")?.one_hot(count(args, "one_hot", "classes")?, dtype(args)?)),
    OpSpec {
        name: "sort", summary: "sorted elements and where they come from", inputs: &[number("x")],
        attributes: &[DIM, DESCENDING], outputs: &["y", "index"],
        call: |args| two(args.input("x")?.sort(dim(args)?, args.bool("descending")?)),
    },
    OpSpec {
        name: "topk", summary: "the largest (or smallest) elements, best first",
        inputs: &[number("x")],
        attributes: &[DIM, Attr::new("k", Kind::Int, "1", "how many"),
            Attr::new("largest", Kind::Bool, "true", "largest, else smallest")],
        outputs: &["y", "index"],
        call: |args| {
            two(args.input("x")?.topk(dim(args)?, count(args, "topk", "k")?, args.bool("largest")?))
        },
    },
    spec!("argsort", "indices that sort", [number("x")], [DIM, DESCENDING],
        |args| args.input("x")?.argsort(dim(args)?, args.bool("descending")?)),
    spec!("cat", "tensors joined along a dimension",
        [any("a", "any"), any("b", "as a except along dim").optional(),
         any("c", "as a except along dim").optional(), any("d", "as a except along dim").optional()],
        [DIM], cat),
    spec!("pad", "a constant before and after along a dimension", [any("x", "any")],
        [DIM, Attr::new("before", Kind::Int, "0", "positions before"),
         Attr::new("after", Kind::Int, "0", "positions after"),
         Attr::new("value", Kind::Float, "0", "the constant")],
        |args| args.input("x")?.pad(dim(args)?, count(args, "pad", "before")?,
            count(args, "pad", "after")?, float(args, "value")?)),
    spec!("repeat", "the tensor several times along a dimension", [any("x", "any")],
        [DIM, Attr::new("times", Kind::Int, "2", "how often")],
        |args| args.input("x")?.repeat(dim(args)?, count(args, "repeat", "times")?)),
    spec!("roll", "elements moved along a dimension, cyclically", [any("x", "any")],
        [DIM, Attr::new("shift", Kind::Int, "1", "positions")],
        |args| args.input("x")?.roll(dim(args)?, args.int("shift")?.unwrap_or(1) as isize)),
    spec!("flip", "the order along a dimension reversed", [any("x", "any")], [DIM],
        |args| args.input("x")?.flip(dim(args)?)),
    spec!("narrow", "some positions along a dimension", [any("x", "any")],
        [DIM, Attr::new("start", Kind::Int, "0", "first position"),
         Attr::new("len", Kind::Int, "1", "how many")],
        |args| args.input("x")?.narrow(dim(args)?, count(args, "narrow", "start")?,
            count(args, "narrow", "len")?)),
    spec!("transpose", "the last two dimensions exchanged", [any("x", ".. m n")], [],
        |args| args.input("x")?.transpose(-2, -1)),
    spec!("tril", "zeros above a diagonal", [any("x", ".. m n")],
        [Attr::new("diagonal", Kind::Int, "0", "places right of the main diagonal")],
        |args| args.input("x")?.tril(args.int("diagonal")?.unwrap_or(0))),
    spec!("triu", "zeros below a diagonal", [any("x", ".. m n")],
        [Attr::new("diagonal", Kind::Int, "0", "places right of the main diagonal")],
        |args| args.input("x")?.triu(args.int("diagonal")?.unwrap_or(0))),
    spec!("to_dtype", "the same values in another element type", [any("x", "any")], [DTYPE],
        |args| args.input("x")?.to_dtype(dtype(args)?)),
    spec!("range", "start, start + step, ... below end", [],
        [Attr::new("start", Kind::Float, "0", "first value"),
         Attr::new("end", Kind::Float, "1", "bound"),
         Attr::new("step", Kind::Float, "1", "distance"), DTYPE],
        |args| Tensor::range(float(args, "start")?, float(args, "end")?, float(args, "step")?,
            dtype(args)?, &Device::Cpu)),
    spec!("linspace", "evenly spaced values, both ends included", [],
        [Attr::new("start", Kind::Float, "0", "first value"),
         Attr::new("end", Kind::Float, "1", "last value"),
         Attr::new("count", Kind::Int, "2", "how many"), DTYPE],
        |args| Tensor::linspace(float(args, "start")?, float(args, "end")?,
            count(args, "linspace", "count")?, dtype(args)?, &Device::Cpu)),
    spec!("eye", "the identity matrix", [],
        [Attr::new("size", Kind::Int, "1", "rows and columns"), DTYPE],
        |args| Tensor::eye(count(args, "eye", "size")?, dtype(args)?, &Device::Cpu)),
    spec!("real", "real part", [complex("z")], [], |args| args.input("z")?.real()),
    spec!("imag", "imaginary part", [complex("z")], [], |args| args.input("z")?.imag()),
    spec!("complex", "re + i im", [X_REAL[0], X_REAL[1]], [],
        |args| Tensor::complex(args.input("re")?, args.input("im")?)),
    spec!("conj", "complex conjugate", [complex("z")], [], |args| args.input("z")?.conj()),
    spec!("modulus", "|z|", [complex("z")], [], |args| args.input("z")?.modulus()),
    spec!("angle", "angle of z", [complex("z")], [], |args| args.input("z")?.angle()),
];

const X_REAL: [Arg; 2] = [
    Arg { dtypes: &[DType::F64, DType::F32], ..Arg::float("re", "any") },
    Arg { dtypes: &[DType::F64, DType::F32], ..Arg::float("im", "as re") },
];

const X_INPUTS: [Arg; 8] = [
    any("x0", "any"),
    any("x1", "any").optional(),
    any("x2", "any").optional(),
    any("x3", "any").optional(),
    any("x4", "any").optional(),
    any("x5", "any").optional(),
    any("x6", "any").optional(),
    any("x7", "any").optional(),
];
