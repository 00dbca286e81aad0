//! W = U V with a small inner dimension.

use super::{StructuredMatrix, shard_range};
use danaus_kernel::ops::embedding::embedding;
use danaus_kernel::ops::linear::{Extras, linear};
use danaus_tensor::{Init, Param, ParamBuilder, Result, Tensor};

/// Parameters `u` `[rows, rank]` and `v` `[rank, cols]`; `rank (rows + cols)` elements instead of
/// `rows cols`.
#[derive(Clone)]
pub struct LowRank {
    u: Param,
    v: Param,
}

impl LowRank {
    /// Makes (or loads) both factors. New products have the variance of a dense matrix whose elements
    /// are uniform within `gain / sqrt(cols)`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn build(
        params: &ParamBuilder,
        [rows, cols]: [usize; 2],
        rank: usize,
        gain: f64,
    ) -> Result<Self> {
        // Var(UV) = rank Var(U) Var(V); V alone is a dense layer, U undoes the sum over the rank.
        let (bound_u, bound_v) = (3f64.sqrt() / (rank as f64).sqrt(), gain / (cols as f64).sqrt());
        Ok(Self {
            u: params.param("u", [rows, rank], Init::Uniform(-bound_u, bound_u))?,
            v: params.param("v", [rank, cols], Init::Uniform(-bound_v, bound_v))?,
        })
    }

    fn rank(&self) -> usize {
        self.u.tensor().dims()[1]
    }

    /// The narrow intermediate `x V^T`.
    fn inner(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.v.tensor_as(x.dtype())?, Extras::default())
    }
}

impl StructuredMatrix for LowRank {
    fn rows(&self) -> usize {
        self.u.tensor().dims()[0]
    }

    fn cols(&self) -> usize {
        self.v.tensor().dims()[1]
    }

    fn apply(&self, x: &Tensor, extras: Extras) -> Result<Tensor> {
        linear(&self.inner(x)?, &self.u.tensor_as(x.dtype())?, extras)
    }

    fn apply_transpose(&self, x: &Tensor) -> Result<Tensor> {
        let u = self.u.tensor_as(x.dtype())?.transpose(0, 1)?;
        let v = self.v.tensor_as(x.dtype())?.transpose(0, 1)?;
        linear(&linear(x, &u, Extras::default())?, &v, Extras::default())
    }

    fn apply_rows(&self, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        let chosen = embedding(&self.u.tensor_as(x.dtype())?, rows, None)?;
        linear(&self.inner(x)?, &chosen, Extras::default())
    }

    fn gather_rows(&self, ids: &Tensor) -> Result<Tensor> {
        let u = embedding(&self.u.tensor(), ids, None)?;
        linear(&u, &self.v.tensor().transpose(0, 1)?, Extras::default())
    }

    fn to_dense(&self) -> Result<Tensor> {
        linear(&self.u.tensor(), &self.v.tensor().transpose(0, 1)?, Extras::default())
    }

    fn shard_rows(&self, index: usize, count: usize) -> Result<Box<dyn StructuredMatrix>> {
        let range = shard_range(self.rows(), index, count)?;
        let part = self.u.tensor().detach().narrow(0, range.start, range.len())?;
        let u = Param::from_tensor(self.u.name(), self.u.decays(), &part)?;
        Ok(Box::new(Self { u, v: self.v.clone() }))
    }

    fn parameters(&self) -> Vec<Param> {
        vec![self.u.clone(), self.v.clone()]
    }

    fn flops(&self, tokens: usize) -> u64 {
        2 * (tokens * self.rank() * (self.rows() + self.cols())) as u64
    }
}
