//! Merging attention over parts of the keys: the log-sum-exp combine.
//!
//! From partial results `(o_s, L_s)`, each normalised over its own keys: `L = ln sum_s e^(L_s)` and
//! `o = sum_s e^(L_s - L) o_s`. A part without keys has `L_s = -inf` and weighs exactly nothing. The
//! order of the parts is the order of the sum. Results carry no gradient.

use danaus_tensor::{DType, Element, Error, Result, Tensor};
use num_traits::Float;

const OP: &str = "attention_combine";

/// Combines `out_partial` (parts, batch, q_len, heads, value_dim) with `lse_partial` (parts, batch,
/// heads, q_len), both f32 or f64; returns `(out, lse)`.
///
/// # Errors
/// When shapes or dtypes do not fit.
pub fn attention_combine(out_partial: &Tensor, lse_partial: &Tensor) -> Result<(Tensor, Tensor)> {
    let dims = out_partial.dims();
    let &[parts, batch, q_len, heads, _] = dims else {
        let expected = "[parts, batch, q_len, heads, value_dim]";
        return Err(Error::shape(OP, "out_partial", out_partial.shape(), expected));
    };
    let expected = [parts, batch, heads, q_len];
    if lse_partial.dims() != expected {
        return Err(Error::shape(OP, "lse_partial", lse_partial.shape(), format!("{expected:?}")));
    }
    if parts == 0 {
        return Err(Error::shape(OP, "out_partial", out_partial.shape(), "at least one part"));
    }
    for (name, tensor) in [("out_partial", out_partial), ("lse_partial", lse_partial)] {
        if tensor.dtype() != out_partial.dtype() || !wide(tensor.dtype()) {
            return Err(Error::dtype(OP, name, tensor.dtype(), "f32 or f64, both the same"));
        }
    }
    match out_partial.dtype() {
        DType::F64 => combine::<f64>(out_partial, lse_partial),
        _ => combine::<f32>(out_partial, lse_partial),
    }
}

fn combine<A: Element + Float>(out: &Tensor, lse: &Tensor) -> Result<(Tensor, Tensor)> {
    let (dims, device) = (out.dims(), out.device());
    let [parts, batch, q_len, heads, value_dim] = [dims[0], dims[1], dims[2], dims[3], dims[4]];
    let sizes = [batch, q_len, heads, value_dim];
    let (out, lse) = combine_parts(parts, sizes, out.to_vec::<A>()?, lse.to_vec::<A>()?);
    let out = Tensor::from_vec(out, sizes, &device)?;
    Ok((out, Tensor::from_vec(lse, [batch, heads, q_len], &device)?))
}

/// The combine on numbers; one part is passed through.
pub(super) fn combine_parts<A: Float>(
    parts: usize,
    [batch, q_len, heads, value_dim]: [usize; 4],
    out: Vec<A>,
    lse: Vec<A>,
) -> (Vec<A>, Vec<A>) {
    if parts == 1 {
        return (out, lse);
    }
    let rows = batch * heads * q_len;
    let mut merged = vec![A::zero(); rows * value_dim];
    let mut total = vec![A::neg_infinity(); rows];
    for (row, total) in total.iter_mut().enumerate() {
        let (b, h, i) = (row / (heads * q_len), row / q_len % heads, row % q_len);
        let part_lse = |part: usize| lse[part * rows + row];
        let top = (0..parts).map(part_lse).fold(A::neg_infinity(), A::max);
        if top == A::neg_infinity() {
            continue;
        }
        let sum = (0..parts).fold(A::zero(), |sum, part| sum + (part_lse(part) - top).exp());
        *total = top + sum.ln();
        let at = ((b * q_len + i) * heads + h) * value_dim;
        for part in 0..parts {
            let weight = (part_lse(part) - *total).exp();
            // An empty part may hold anything.
            if weight == A::zero() {
                continue;
            }
            let from = &out[part * rows * value_dim + at..][..value_dim];
            let to = &mut merged[at..at + value_dim];
            to.iter_mut().zip(from).for_each(|(to, &x)| *to = *to + weight * x);
        }
    }
    (merged, total)
}

fn wide(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64)
}
