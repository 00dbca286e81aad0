//! Attention whose products take eight-bit floats (e4m3): forward only.
//!
//! q, k and v are cut into tiles of rows, `q = sq Q`, `k = sk K`, `v = sv V` with codes in e4m3 and one
//! scale a tile (its largest magnitude lands on 448), or one a head. Scores are products of codes, and
//! probabilities are rounded to e4m3 relative to the running maximum r of a row, tiles of keys going up:
//!
//! ```text
//! x = log2(e) softmax_scale sq sk Q K^T            p = 2^(x - r + 8)
//! o <- o 2^(r_old - r) + sv e4m3(p) V              l <- l 2^(r_old - r) + rowsum p
//! out = o / l                                      lse = ln 2 (r - 8 + log2 l)
//! ```
//!
//! The shift by 8 lets p span (0, 256] of the 448 that e4m3 holds. Before quantising, q and k may be
//! rotated, `x -> x D H / sqrt(head_dim)` with signs D and the Hadamard matrix H: scores stay what they
//! are and outliers spread over the row, which is where most of the accuracy comes from (incoherent
//! processing).
//!
//! | file | holds |
//! | --- | --- |
//! | `hadamard.rs` | the rotation |
//! | `reference.rs` | the quantised computation in f64: the processor's path and the oracle |
//! | `error.rs` | errors of the schemes against exact attention, on outlier data |
//! | `../cuda/fp8.rs`, `../fp8_*.cuh` | Hopper kernels |
//!
//! Inputs and outputs keep their dtype. Packed sequences, lengths, biases, sinks, masks by tensors and
//! dropout are refused, and so are gradients: train in 16 bits.
//!
//! Paper: FlashAttention-3 (NeurIPS 2024), section 3.3.

pub mod error;
mod hadamard;
mod reference;

pub use hadamard::{rotate, signs};

use super::options::{AttentionOptions, Attributes};
use super::prepare::{check_attributes, sizes};
use super::{cuda, op::sum_dtype};
use danaus_tensor::{Backward, DType, Device, Error, Inputs, Meta, Op, Result, Tensor, apply};

const OP: &str = "attention";

/// Where a scale holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fp8Scales {
    /// For a tile of rows.
    #[default]
    Tile,
    /// For a whole head of a sequence.
    Head,
}

/// Attention in eight bits.
#[derive(Clone, Default)]
pub struct Fp8 {
    /// Where a scale holds.
    pub scales: Fp8Scales,
    /// Signs (head_dim) of the rotation, any non-zero numbers; `None` is no rotation. The head dimension
    /// is then a power of two. See [`signs`].
    pub signs: Option<Tensor>,
    /// Rows of a tile of queries and of keys; `None` is what the GPU kernels have.
    pub tile: Option<[usize; 2]>,
}

/// Queries of a tile with a scale, and keys, in the GPU kernels.
pub(super) fn kernel_tile(head_dim: usize) -> [usize; 2] {
    [64, super::config::fp8_keys(head_dim)]
}

/// The plain part of [`Fp8`], on the tape.
pub(super) struct Fp8Op {
    pub attributes: Attributes,
    pub scales: Fp8Scales,
    pub tile: [usize; 2],
}

/// Positions of the operator's inputs.
pub(super) const SIGNS: usize = 3;

/// Attention with [`AttentionOptions::fp8`].
pub(super) fn attention(
    [q, k, v]: [&Tensor; 3],
    fp8: &Fp8,
    options: &AttentionOptions,
) -> Result<(Tensor, Tensor)> {
    let with = [
        ("alibi_slopes", options.alibi_slopes.is_some()),
        ("sinks", options.sinks.is_some()),
        ("block_mask", options.block_mask.is_some()),
        ("keep", options.keep.is_some()),
        ("q_lens", options.q_lens.is_some()),
        ("k_lens", options.k_lens.is_some()),
        ("p_drop", options.p_drop > 0.0),
    ];
    if let Some((name, _)) = with.iter().find(|(_, given)| *given) {
        return Err(Error::unsupported(OP, format!("fp8 with {name}"), "leave one of them out"));
    }
    let head_dim = q.dims().last().copied().unwrap_or(0);
    let tile = fp8.tile.unwrap_or_else(|| kernel_tile(head_dim));
    if tile.contains(&0) {
        return Err(Error::argument(OP, "fp8_tile", format!("{tile:?}"), "two numbers above 0"));
    }
    let op = Fp8Op { attributes: options.attributes(), scales: fp8.scales, tile };
    let signs = fp8.signs.as_ref().map(|signs| signs.to_device(&q.device())).transpose()?;
    let outputs = apply(op, &[Some(q), Some(k), Some(v), signs.as_ref()])?;
    let [out, lse] = <[Tensor; 2]>::try_from(outputs)
        .map_err(|_| Error::internal("attention has two outputs"))?;
    Ok((out, lse))
}

impl Op for Fp8Op {
    fn name(&self) -> &'static str {
        OP
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let [q, k, v] = operands(inputs)?;
        let sizes = sizes(OP, [q, k, v], false)?;
        check_attributes(OP, &self.attributes)?;
        if sizes.head_dim != sizes.value_dim || !sizes.head_dim.is_multiple_of(16) {
            let given = format!("head dims {} of q and {} of v", sizes.head_dim, sizes.value_dim);
            return Err(Error::argument(OP, "fp8", given, "one multiple of 16"));
        }
        if let Some(signs) = inputs[SIGNS] {
            if signs.dims() != [sizes.head_dim] {
                let expected = format!("[{}]", sizes.head_dim);
                return Err(Error::shape(OP, "fp8_signs", signs.shape(), expected));
            }
            if !signs.dtype().is_float() {
                let valid = "a floating-point dtype";
                return Err(Error::dtype(OP, "fp8_signs", signs.dtype(), valid));
            }
            if !sizes.head_dim.is_power_of_two() {
                let valid = "a head dim that is a power of two, or no rotation";
                return Err(Error::argument(OP, "fp8_signs", sizes.head_dim, valid));
            }
        }
        let out = vec![sizes.batch, sizes.q_rows, sizes.heads, sizes.value_dim];
        let lse = vec![sizes.batch, sizes.heads, sizes.q_rows];
        Ok(vec![Meta::new(out, q.dtype()), Meta::new(lse, sum_dtype(q.dtype()))])
    }

    fn on_cuda(&self) -> bool {
        true
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let [q, k, v] = operands(inputs)?;
        if q.device().is_cuda() {
            return cuda::fp8::forward(self, [q, k, v], inputs[SIGNS], outputs);
        }
        let wide = |x: &Tensor| x.detach().to_dtype(DType::F64)?.contiguous();
        let signs = inputs[SIGNS].map(|signs| wide(signs)?.to_vec::<f64>()).transpose()?;
        let (out, lse) =
            reference::forward(self, [wide(q)?, wide(k)?, wide(v)?], signs.as_deref())?;
        let narrow = |values: Vec<f64>, like: &Tensor| {
            Tensor::from_vec(values, like.shape(), &Device::Cpu)?.to_dtype(like.dtype())
        };
        let [to_out, to_lse] = outputs else {
            return Err(Error::internal("attention has two outputs"));
        };
        *to_out = narrow(out, to_out)?;
        *to_lse = narrow(lse, to_lse)?;
        Ok(())
    }

    fn backward(&self, _: &Backward) -> Result<Vec<Option<Tensor>>> {
        let remedy = "leave fp8 out where gradients are wanted";
        Err(Error::unsupported(OP, "the gradient of fp8 attention", remedy))
    }
}

fn operands<'a>(inputs: Inputs<'a>) -> Result<[&'a Tensor; 3]> {
    let given = |position: usize| {
        inputs[position].ok_or_else(|| Error::internal("attention runs after its checks"))
    };
    Ok([given(0)?, given(1)?, given(2)?])
}
