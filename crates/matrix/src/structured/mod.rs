//! Matrices that mix channels: a weight whose format the model does not see.

pub mod algebra;
pub mod construct;
mod dense;
mod expression;
pub mod factor;
mod format;
pub mod ldr;
mod low_rank;
pub mod named;
mod pixelfly;
mod quantized;
mod spec;
mod stacked;

pub use dense::Dense;
pub use expression::Expression;
pub use format::Format;
pub use ldr::LdrClass;
pub use low_rank::LowRank;
pub use pixelfly::{Pixelfly, PixelflySizes};
pub use quantized::Quantized;
pub use spec::SPECS;
pub use stacked::Stacked;

use danaus_kernel::ops::linear::Extras;
use danaus_tensor::{Error, Param, Result, Tensor};

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
