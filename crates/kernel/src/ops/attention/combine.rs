//! Merging attention over parts of the keys: the log-sum-exp combine.
//!
//! From partial results `(o_s, L_s)`, each normalised over its own keys: `L = ln sum_s e^(L_s)` and
//! `o = sum_s e^(L_s - L) o_s`. A part without keys has `L_s = -inf` and weighs exactly nothing. The
//! order of the parts is the order of the sum; it is taken in f64. Results carry no gradient.

use danaus_tensor::{DType, Error, Result, Tensor};

const OP: &str = "attention_combine";

/// Combines `out_partial` (parts, batch, q_len, heads, value_dim) with `lse_partial` (parts, batch,
/// heads, q_len), both f32 or f64; returns `(out, lse)`.
///
/// # Errors
/// When shapes or dtypes do not fit.
pub fn attention_combine(out_partial: &Tensor, lse_partial: &Tensor) -> Result<(Tensor, Tensor)> {
    let dims = out_partial.dims();
    let &[parts, batch, q_len, heads, value_dim] = dims else {
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
    let out = out_partial.detach().to_dtype(DType::F64)?.to_vec::<f64>()?;
    let lse = lse_partial.detach().to_dtype(DType::F64)?.to_vec::<f64>()?;
    let mut merged = vec![0.0; batch * q_len * heads * value_dim];
    let mut total = vec![f64::NEG_INFINITY; batch * heads * q_len];
    for (row, total) in total.iter_mut().enumerate() {
        let (b, h, i) = (row / (heads * q_len), row / q_len % heads, row % q_len);
        let part_lse = |part: usize| lse[part * batch * heads * q_len + row];
        let top = (0..parts).map(part_lse).fold(f64::NEG_INFINITY, f64::max);
        if top == f64::NEG_INFINITY {
            continue;
        }
        *total = top + (0..parts).map(|part| (part_lse(part) - top).exp()).sum::<f64>().ln();
        let at = ((b * q_len + i) * heads + h) * value_dim;
        for part in 0..parts {
            let weight = (part_lse(part) - *total).exp();
            if weight == 0.0 {
                continue;
            }
            let from = &out[part * merged.len() + at..][..value_dim];
            merged[at..at + value_dim].iter_mut().zip(from).for_each(|(to, x)| *to += weight * x);
        }
    }
    let device = out_partial.device();
    let merged = Tensor::from_vec(merged, [batch, q_len, heads, value_dim], &device)?;
    let total = Tensor::from_vec(total, [batch, heads, q_len], &device)?;
    Ok((merged.to_dtype(out_partial.dtype())?, total.to_dtype(out_partial.dtype())?))
}

fn wide(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64)
}
