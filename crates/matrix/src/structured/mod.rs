//! Matrices that mix channels: a weight whose format the model does not see.

pub mod algebra;
pub mod construct;
mod dense;
mod expression;
pub mod factor;
mod low_rank;
pub mod named;
mod quantized;
mod stacked;

pub use dense::Dense;
pub use expression::Expression;
pub use low_rank::LowRank;
pub use quantized::Quantized;
pub use stacked::Stacked;

use danaus_kernel::ops::linear::Extras;
use danaus_kernel::ops::quantized::BlockType;
use danaus_tensor::{Error, Param, ParamBuilder, Result, Tensor};
use serde::{Deserialize, Serialize};

/// A `rows x cols` matrix W used as the weight of a linear layer.
///
/// Computation follows the dtype of `x`; parameters are cast to it on the tape, or used as they are
/// stored where a kernel takes them so.
pub trait StructuredMatrix: Send + Sync {
    /// Output features.
    fn rows(&self) -> usize;

    /// Input features.
    fn cols(&self) -> usize;

    /// `f(x W^T + b) + residual`: `[.., cols]` to `[.., rows]`.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    fn apply(&self, x: &Tensor, extras: Extras) -> Result<Tensor>;

    /// `x W`: `[.., rows]` to `[.., cols]`.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit.
    fn apply_transpose(&self, x: &Tensor) -> Result<Tensor>;

    /// `x W_R^T` for the rows R of W named by `rows` (i32 or i64): `[.., cols]` to `[.., rows.len]`.
    ///
    /// # Errors
    /// When shapes do not fit or a row is out of range.
    fn apply_rows(&self, x: &Tensor, rows: &Tensor) -> Result<Tensor>;

    /// Rows of W, as an embedding table gives them: ids `[..]` to `[.., cols]`.
    ///
    /// # Errors
    /// When an id is out of range.
    fn gather_rows(&self, ids: &Tensor) -> Result<Tensor>;

    /// W itself, `[rows, cols]`: the oracle.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn to_dense(&self) -> Result<Tensor>;

    /// Part `index` of `count` along the rows (outputs), as values without history.
    ///
    /// # Errors
    /// When the rows do not divide by `count`, or `index` is not below it.
    fn shard_rows(&self, index: usize, count: usize) -> Result<Box<dyn StructuredMatrix>>;

    /// The parameters behind it.
    fn parameters(&self) -> Vec<Param>;

    /// Arithmetic operations of [`Self::apply`] for so many rows of `x`.
    fn flops(&self, tokens: usize) -> u64;

    /// Bytes of the parameters.
    fn bytes(&self) -> u64 {
        self.parameters().iter().map(|param| param.tensor().bytes() as u64).sum()
    }
}

/// How a weight is stored, as a config says it: `dense`, `lowrank(8)`, `monarch(4)`, `butterfly`,
/// `kaleidoscope`, `ldr(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Format {
    /// All elements.
    #[default]
    Dense,
    /// A product of two factors of this rank.
    LowRank(usize),
    /// Two block-diagonal factors of this many blocks around a transpose.
    Monarch(usize),
    /// One product of butterfly factors.
    Butterfly,
    /// Two products of butterfly factors, with decreasing and increasing strides.
    Kaleidoscope,
    /// Low displacement rank with subdiagonal operators, of this rank.
    Ldr(usize),
}

impl Format {
    /// What a config may say.
    pub const VALID: &str =
        "dense, lowrank(RANK), monarch(BLOCKS), butterfly, kaleidoscope, ldr(RANK)";

    /// Makes (or loads) a matrix under `name`: `name.weight`; `name.u` and `name.v`; `name.w1` and
    /// `name.w2`; `name.twiddle`; or `name.subd_a`, `name.subd_b`, `name.g` and `name.h`. Where the
    /// source has `name.q8_0` or another block type instead, it is loaded as [`Quantized`].
    ///
    /// New elements are uniform within `1 / sqrt(cols)` times `gain`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn build(
        self,
        params: &ParamBuilder,
        [rows, cols]: [usize; 2],
        gain: f64,
    ) -> Result<Box<dyn StructuredMatrix>> {
        if let Some(kind) = stored_blocks(params)? {
            return Ok(Box::new(Quantized::build(params, [rows, cols], kind)?));
        }
        Ok(match self {
            Format::Dense => Box::new(Dense::build(params, [rows, cols], gain)?),
            Format::LowRank(rank) => Box::new(LowRank::build(params, [rows, cols], rank, gain)?),
            Format::Monarch(blocks) => {
                Box::new(Expression::monarch(params, [rows, cols], blocks, gain)?)
            }
            Format::Butterfly => Box::new(Expression::butterfly(params, [rows, cols], 1, gain)?),
            Format::Kaleidoscope => Box::new(Expression::butterfly(params, [rows, cols], 2, gain)?),
            Format::Ldr(rank) => Box::new(Expression::ldr(params, [rows, cols], rank, gain)?),
        })
    }

    /// As [`Self::build`] under `params.pp(name)`. A source that does not have the matrix there but its
    /// `parts`, rows one above the other under names of their own (`q`, `k`, `v`), gives a [`Stacked`]
    /// of these, each in the format it is stored in. New models get one matrix.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn build_stacked(
        self,
        params: &ParamBuilder,
        name: &str,
        parts: &[(&str, usize)],
        cols: usize,
        gain: f64,
    ) -> Result<Box<dyn StructuredMatrix>> {
        let whole = params.pp(name);
        if whole.is_new() || self.is_stored(&whole)? || !self.any_is_stored(params, parts)? {
            let rows = parts.iter().map(|part| part.1).sum();
            return self.build(&whole, [rows, cols], gain);
        }
        let build =
            |&(part, rows): &(&str, usize)| self.build(&params.pp(part), [rows, cols], gain);
        let parts = parts.iter().map(build).collect::<Result<_>>()?;
        Ok(Box::new(Stacked::new(parts)?))
    }

    /// Whether the source has a matrix here.
    fn is_stored(self, params: &ParamBuilder) -> Result<bool> {
        let name = match self {
            Format::Dense => "weight",
            Format::LowRank(_) => "u",
            Format::Monarch(_) => "w1",
            Format::Butterfly | Format::Kaleidoscope => "twiddle",
            Format::Ldr(_) => "g",
        };
        Ok(params.contains(name)? || stored_blocks(params)?.is_some())
    }

    fn any_is_stored(self, params: &ParamBuilder, parts: &[(&str, usize)]) -> Result<bool> {
        for (part, _) in parts {
            if self.is_stored(&params.pp(part))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Number of elements of a `rows x cols` matrix in this format.
    pub fn elem_count(self, rows: usize, cols: usize) -> usize {
        match self {
            Format::Dense => rows * cols,
            Format::LowRank(rank) => rank * (rows + cols),
            Format::Monarch(blocks) => expression::monarch_count(blocks, [rows, cols]),
            Format::Butterfly => expression::butterfly_count(1, [rows, cols]),
            Format::Kaleidoscope => expression::butterfly_count(2, [rows, cols]),
            Format::Ldr(rank) => expression::ldr_count(rank, [rows, cols]),
        }
    }
}

impl TryFrom<String> for Format {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let number = |name: &str| -> Option<usize> {
            let inner = text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')')?;
            inner.trim().parse().ok().filter(|&number| number > 0)
        };
        let found = match text.as_str() {
            "dense" => Some(Format::Dense),
            "butterfly" => Some(Format::Butterfly),
            "kaleidoscope" => Some(Format::Kaleidoscope),
            _ => number("lowrank")
                .map(Format::LowRank)
                .or_else(|| number("monarch").map(Format::Monarch))
                .or_else(|| number("ldr").map(Format::Ldr)),
        };
        found.ok_or_else(|| Error::argument("config", "weights", &text, Format::VALID))
    }
}

impl From<Format> for String {
    fn from(format: Format) -> String {
        match format {
            Format::Dense => "dense".to_string(),
            Format::LowRank(rank) => format!("lowrank({rank})"),
            Format::Monarch(blocks) => format!("monarch({blocks})"),
            Format::Butterfly => "butterfly".to_string(),
            Format::Kaleidoscope => "kaleidoscope".to_string(),
            Format::Ldr(rank) => format!("ldr({rank})"),
        }
    }
}

/// The type of the blocks that the source has here.
fn stored_blocks(params: &ParamBuilder) -> Result<Option<BlockType>> {
    if params.is_new() {
        return Ok(None);
    }
    for kind in BlockType::ALL {
        if params.contains(kind.name())? {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

/// The rows that shard `index` of `count` holds.
fn shard_range(rows: usize, index: usize, count: usize) -> Result<std::ops::Range<usize>> {
    if count == 0 || !rows.is_multiple_of(count) {
        let valid = format!("a divisor of the {rows} rows");
        return Err(Error::argument("shard_rows", "count", count, valid));
    }
    if index >= count {
        return Err(Error::argument("shard_rows", "index", index, format!("0..{count}")));
    }
    let part = rows / count;
    Ok(index * part..(index + 1) * part)
}

#[cfg(test)]
mod tests;
