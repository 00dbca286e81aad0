//! All elements.

use super::{StructuredMatrix, shard_range};
use danaus_kernel::ops::embedding::embedding;
use danaus_kernel::ops::linear::{Extras, accepts, linear};
use danaus_tensor::{Init, Param, ParamBuilder, Result, Tensor};

/// W stored as one parameter `weight`, `[rows, cols]`.
///
/// Loaded for inference ([`ParamBuilder::as_stored`]), it stays in the float type of the checkpoint:
/// bf16 and f16 weights beside an f32 x are widened in registers.
#[derive(Clone)]
pub struct Dense {
    weight: Param,
}

impl Dense {
    /// Makes (or loads) `weight`; new elements are uniform within `gain / sqrt(cols)`.
    ///
    /// # Errors
    /// When the tensor is missing or has another shape.
    pub fn build(params: &ParamBuilder, [rows, cols]: [usize; 2], gain: f64) -> Result<Self> {
        let bound = gain / (cols as f64).sqrt();
        Self::build_with(params, [rows, cols], Init::Uniform(-bound, bound))
    }

    /// Makes (or loads) `weight` with another initialisation.
    ///
    /// # Errors
    /// When the tensor is missing or has another shape.
    pub fn build_with(params: &ParamBuilder, shape: [usize; 2], init: Init) -> Result<Self> {
        Ok(Self { weight: params.param_as_stored("weight", shape, init)? })
    }

    /// The parameter.
    pub fn weight(&self) -> &Param {
        &self.weight
    }

    /// The weight in a dtype that multiplies `x`: its own where possible.
    fn weight_beside(&self, x: &Tensor) -> Result<Tensor> {
        let weight = self.weight.tensor();
        if accepts(x.dtype(), weight.dtype()) { Ok(weight) } else { weight.to_dtype(x.dtype()) }
    }
}

impl StructuredMatrix for Dense {
    fn rows(&self) -> usize {
        self.weight.tensor().dims()[0]
    }

    fn cols(&self) -> usize {
        self.weight.tensor().dims()[1]
    }

    fn apply(&self, x: &Tensor, extras: Extras) -> Result<Tensor> {
        linear(x, &self.weight_beside(x)?, extras)
    }

    fn apply_transpose(&self, x: &Tensor) -> Result<Tensor> {
        let transposed = self.weight_beside(x)?.transpose(0, 1)?;
        linear(x, &transposed, Extras::default())
    }

    fn apply_rows(&self, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        let chosen = embedding(&self.weight_beside(x)?, rows, None)?;
        linear(x, &chosen, Extras::default())
    }

    fn gather_rows(&self, ids: &Tensor) -> Result<Tensor> {
        embedding(&self.weight.tensor(), ids, None)
    }

    fn to_dense(&self) -> Result<Tensor> {
        Ok(self.weight.tensor())
    }

    fn shard_rows(&self, index: usize, count: usize) -> Result<Box<dyn StructuredMatrix>> {
        let range = shard_range(self.rows(), index, count)?;
        let part = self.weight.tensor().detach().narrow(0, range.start, range.len())?;
        let weight = Param::from_tensor(self.weight.name(), self.weight.decays(), &part)?;
        Ok(Box::new(Self { weight }))
    }

    fn parameters(&self) -> Vec<Param> {
        vec![self.weight.clone()]
    }

    fn flops(&self, tokens: usize) -> u64 {
        2 * (tokens * self.rows() * self.cols()) as u64
    }
}
