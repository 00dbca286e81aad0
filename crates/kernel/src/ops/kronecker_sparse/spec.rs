//! The operators of this folder for the operator runner: the general product, and the two layouts
//! that checkpoints of the field use.

use super::{NAME, Pattern, Step, packed};
use crate::hook::listed;
use danaus_tensor::registry::{Arg, Args, Attr, Kind, OpSpec};
use danaus_tensor::{DType, Error, Result, Tensor};

const NUMBERS: &[DType] = &[DType::F64, DType::F32, DType::BF16, DType::C64, DType::C128];

const fn number(name: &'static str, shape: &'static str) -> Arg {
    Arg { name, shape, dtypes: NUMBERS, optional: false }
}

/// Monarch product, `y = L P R x`: w1 `[k, q, p]` holds the blocks of R, w2 `[l, s, r]` those of L
/// with `l r = k q`; x `[.., k p]` to y `[.., s l]`.
///
/// # Errors
/// When shapes do not fit.
pub fn monarch(x: &Tensor, w1: &Tensor, w2: &Tensor) -> Result<Tensor> {
    let (&[k, q, p], &[l, s, r]) = (w1.dims(), w2.dims()) else {
        let expected = "w1 [k, q, p] and w2 [l, s, r]";
        let wrong = if w1.rank() == 3 { w2 } else { w1 };
        return Err(Error::shape("monarch", "weights", wrong.shape(), expected));
    };
    if l * r != k * q {
        let expected = format!("[l, s, r] with l r = {} = k q of w1", k * q);
        return Err(Error::shape("monarch", "w2", w2.shape(), expected));
    }
    let steps = [Step::new(Pattern::new(k, q, p, 1), 0), Step::new(Pattern::new(1, s, r, l), 1)];
    packed(x, &steps, &[w1, w2])
}

/// The factors of a twiddle `[nblocks, log_n, n / 2, 2, 2]` of n points in the order they are
/// applied, for the layout `[nblocks, log_n, stacks, n / 2, 2, 2]` of the values.
///
/// Block b has increasing strides where `increasing` XOR (b odd).
pub fn butterfly_steps(
    [stacks, nblocks, log_n]: [usize; 3],
    increasing: bool,
    source: usize,
) -> Vec<Step> {
    let n = 1usize << log_n;
    let mut steps = Vec::new();
    for block in 0..nblocks {
        for index in 0..log_n {
            let up = increasing ^ (block % 2 == 1);
            let stride = 1 << if up { index } else { log_n - 1 - index };
            let pattern = Pattern::butterfly(n, stride).repeated(stacks);
            let offset = (block * log_n + index) * pattern.parameters();
            steps.push(Step { offset, ..Step::new(pattern, source) });
        }
    }
    steps
}

/// `[nstacks, nblocks, log_n]` of a twiddle `[nstacks, nblocks, log_n, n / 2, 2, 2]`.
///
/// # Errors
/// When the shape is another one.
pub fn twiddle_shape(twiddle: &Tensor) -> Result<[usize; 3]> {
    match *twiddle.dims() {
        [stacks, nblocks, log_n, pairs, 2, 2]
            if stacks > 0
                && nblocks > 0
                && (1..48).contains(&log_n)
                && pairs == 1 << (log_n - 1) =>
        {
            Ok([stacks, nblocks, log_n])
        }
        _ => {
            let expected = "[nstacks, nblocks, log_n, 2^(log_n - 1), 2, 2]";
            Err(Error::shape("butterfly", "twiddle", twiddle.shape(), expected))
        }
    }
}

/// Butterfly product: x `[.., nstacks, in]` to y `[.., nstacks, out]`, with x cut or padded with
/// zeros to n points and the first `out` results kept. Complex twiddles multiply a complex x.
///
/// # Errors
/// When shapes or dtypes do not fit, or `out` is not in 1..=n.
pub fn butterfly(x: &Tensor, twiddle: &Tensor, increasing: bool, out: usize) -> Result<Tensor> {
    let [stacks, nblocks, log_n] = twiddle_shape(twiddle)?;
    let n = 1usize << log_n;
    let &[ref batch @ .., found, features] = x.dims() else {
        return Err(Error::shape("butterfly", "x", x.shape(), "[.., nstacks, in]"));
    };
    if found != stacks {
        let expected = format!("[.., {stacks}, in] for nstacks = {stacks}");
        return Err(Error::shape("butterfly", "x", x.shape(), expected));
    }
    if !(1..=n).contains(&out) {
        return Err(Error::argument("butterfly", "out_size", out, format!("1..={n}")));
    }
    let x = match features < n {
        true => x.pad(-1, 0, n - features, 0.0)?,
        false => x.narrow(-1, 0, n)?,
    };
    let mut dims = batch.to_vec();
    dims.push(stacks * n);
    // Stacks side by side are one matrix with blocks along the diagonal.
    let values = match stacks {
        1 => twiddle.clone(),
        _ => twiddle.permute(&[1, 2, 0, 3, 4, 5])?,
    };
    let steps = butterfly_steps([stacks, nblocks, log_n], increasing, 0);
    let y = packed(&x.reshape(dims.clone())?, &steps, &[&values])?;
    dims.pop();
    dims.extend([stacks, n]);
    y.reshape(dims)?.narrow(-1, 0, out)
}

/// Patterns of an attribute, four numbers each.
fn patterns(args: &Args) -> Result<Vec<Pattern>> {
    let numbers = args.ints("patterns")?.unwrap_or_default();
    let valid = "four positive numbers a,b,c,d a factor, in the order they are applied";
    let given = || args.text("patterns").unwrap_or_default().to_string();
    let bad = || Error::argument(NAME, "patterns", given(), valid);
    if numbers.is_empty() || !numbers.len().is_multiple_of(4) {
        return Err(bad());
    }
    let number = |n: &i64| usize::try_from(*n).map_err(|_| bad());
    let numbers: Vec<usize> = numbers.iter().map(number).collect::<Result<_>>()?;
    let pattern = |n: &[usize]| Pattern::new(n[0], n[1], n[2], n[3]).check(NAME);
    numbers.chunks_exact(4).map(pattern).collect()
}

fn call(args: &Args) -> Result<Vec<Option<Tensor>>> {
    let patterns = patterns(args)?;
    let factors = args.group("factor.");
    let find = |index: usize| {
        let name = index.to_string();
        let valid = format!("factor.0 to factor.{}, one a pattern", patterns.len() - 1);
        factors.get(&name).ok_or_else(|| Error::argument(NAME, "factor", &name, valid))
    };
    let sources: Vec<&Tensor> = (0..patterns.len()).map(find).collect::<Result<_>>()?;
    let mut steps: Vec<Step> =
        patterns.iter().enumerate().map(|(source, &pattern)| Step::new(pattern, source)).collect();
    if args.bool("transposed")? {
        steps.reverse();
        steps = steps.into_iter().map(Step::flipped).collect();
    }
    listed(packed(args.input("x")?, &steps, &sources)?)
}

/// The operators of this folder for the operator runner.
pub const SPECS: &[OpSpec] = &[
    OpSpec {
        name: NAME,
        summary: "x (W_last .. W_0)^T for Kronecker-sparse factors W_i with values [a d, b, c]",
        inputs: &[number("x", "... cols"), number("factor.*", "a*d b c")],
        attributes: &[
            Attr::new("patterns", Kind::Ints, "", "a,b,c,d of factor.0, of factor.1, ..."),
            Attr::new("transposed", Kind::Bool, "false", "multiply by the transposed product"),
        ],
        outputs: &["y"],
        call,
    },
    OpSpec {
        name: "monarch",
        summary: "blocks w1, transpose, blocks w2: [.., k p] to [.., s l]",
        inputs: &[number("x", "... k*p"), number("w1", "k q p"), number("w2", "l s r")],
        attributes: &[],
        outputs: &["y"],
        call: |args| listed(monarch(args.input("x")?, args.input("w1")?, args.input("w2")?)?),
    },
    OpSpec {
        name: "butterfly",
        summary: "butterfly factors of strides 1, 2, .., n/2 (or the reverse), blocks alternating",
        inputs: &[
            number("x", "... nstacks in"),
            number("twiddle", "nstacks nblocks log_n n/2 2 2"),
        ],
        attributes: &[
            Attr::new(
                "increasing_stride",
                Kind::Int,
                "1",
                "1: the first block starts at stride 1; 0: at n/2",
            ),
            Attr::new("out_size", Kind::Int, "", "results kept of the n; all by default"),
        ],
        outputs: &["y"],
        call: |args| {
            let twiddle = args.input("twiddle")?;
            let [_, _, log_n] = twiddle_shape(twiddle)?;
            let increasing = match args.int("increasing_stride")? {
                Some(0) => false,
                Some(1) | None => true,
                Some(other) => {
                    return Err(Error::argument("butterfly", "increasing_stride", other, "0 or 1"));
                }
            };
            let out = args.int("out_size")?.unwrap_or(1 << log_n);
            let out = usize::try_from(out)
                .map_err(|_| Error::argument("butterfly", "out_size", out, "1 or more"))?;
            listed(butterfly(args.input("x")?, twiddle, increasing, out)?)
        },
    },
];
