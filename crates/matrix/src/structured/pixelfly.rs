//! Block-sparse plus low rank: the weight of Pixelated Butterfly.

use super::{StructuredMatrix, shard_range};
use danaus_kernel::ops::activation::activation;
use danaus_kernel::ops::block_sparse::{FlatButterfly, Layout, block_sparse};
use danaus_kernel::ops::linear::{Extras, linear};
use danaus_tensor::{Device, Error, Init, Param, ParamBuilder, Result, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Sizes of the weight, `pixelfly(BLOCK,SIZE,FACTORS,RANK)` in a config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelflySizes {
    /// Rows and columns of a block.
    pub block: usize,
    /// Rows and columns of the butterfly's pattern, a power of two.
    pub size: usize,
    /// Strides of the pattern: `(factors + 1) / size` of the blocks exist.
    pub factors: usize,
    /// Rank of the other part.
    pub rank: usize,
}

/// Patterns that [`PixelflySizes::within`] uses at most, and blocks it tries.
const MOST_SIZE: usize = 64;
const BLOCKS: [usize; 4] = [64, 32, 16, 8];

impl PixelflySizes {
    /// Which blocks of a `rows x cols` matrix exist.
    ///
    /// # Errors
    /// When the pattern does not fit; the number is named.
    pub fn layout(&self, [rows, cols]: [usize; 2]) -> Result<Layout> {
        let Self { block, size, factors, .. } = *self;
        FlatButterfly { size, factors, block, global: 0, shuffle: false }.layout(rows, cols)
    }

    /// Number of stored elements, those of cut blocks included; `None` where the pattern does not fit.
    pub fn elem_count(&self, shape: [usize; 2]) -> Option<usize> {
        let blocks = self.layout(shape).ok()?.len();
        Some(blocks * self.block * self.block + self.rank * (shape[0] + shape[1]) + 1)
    }

    /// The paper's recipe for a share of the dense parameters: a quarter of them for the low rank, and
    /// with the rest as many strides as fit, on the largest blocks of which the pattern has eight and
    /// of which a stride fits.
    pub fn within(shape: [usize; 2], share: f64) -> Option<Self> {
        let [rows, cols] = shape;
        let size_for = |block: usize| {
            let blocks = shape.map(|side| side.div_ceil(block));
            // The power of two that divides both sides in blocks.
            let common = (blocks[0] | blocks[1]).trailing_zeros().min(MOST_SIZE.trailing_zeros());
            (block, 1usize << common)
        };
        let budget = share * (rows * cols) as f64;
        let rank = (budget / 4.0 / (rows + cols) as f64) as usize;
        let rank = if rank > 8 { rank / 8 * 8 } else { rank };
        // Gamma is a number too.
        let rest = budget - (rank * (rows + cols) + 1) as f64;
        BLOCKS.into_iter().map(size_for).filter(|(_, size)| *size >= 8).find_map(|(block, size)| {
            let strides = (rest / (rows * cols) as f64 * size as f64) as usize;
            let factors = strides.saturating_sub(1).min(size.trailing_zeros() as usize);
            (factors > 0 && rank > 0).then_some(Self { block, size, factors, rank })
        })
    }
}

/// `W = gamma B + (1 - gamma) U V`: B exists on the blocks of a flat butterfly, `blocks`
/// `[count, b, b]`; `u` `[rows, rank]`, `v` `[rank, cols]`, `gamma` `[1]`; or some rows of it.
#[derive(Clone)]
pub struct Pixelfly {
    shape: [usize; 2],
    layout: Arc<Layout>,
    blocks: Param,
    u: Param,
    v: Param,
    gamma: Param,
    part: Range<usize>,
}

impl Pixelfly {
    /// Makes (or loads) the parameters. New products have the variance of a dense matrix whose elements
    /// are uniform within `gain / sqrt(cols)`, half of it from either part; gamma starts at 1/2.
    ///
    /// # Errors
    /// When the sizes do not fit the shape, a tensor is missing or has another shape.
    pub fn build(
        params: &ParamBuilder,
        shape: [usize; 2],
        sizes: PixelflySizes,
        gain: f64,
    ) -> Result<Self> {
        let [rows, cols] = shape;
        let PixelflySizes { block, rank, .. } = sizes;
        if rank > rows.min(cols) {
            let valid = format!("a rank of 1..={} for {rows} x {cols}", rows.min(cols));
            return Err(Error::argument("pixelfly", "weights", rank, valid));
        }
        let layout = Arc::new(sizes.layout(shape)?);
        // Both parts are halved by gamma, so each has twice the variance of a dense matrix.
        let gain = gain * 2f64.sqrt();
        let inputs = (layout.len() * block) as f64 / layout.rows() as f64;
        let uniform = |bound: f64| Init::Uniform(-bound, bound);
        let count = layout.len();
        let blocks =
            params.param("blocks", [count, block, block], uniform(gain / inputs.sqrt()))?;
        let u = params.param("u", [rows, rank], uniform((3.0 / rank as f64).sqrt()))?;
        let v = params.param("v", [rank, cols], uniform(gain / (cols as f64).sqrt()))?;
        let gamma = params.param_no_decay("gamma", [1], Init::Constant(0.5))?;
        Ok(Self { shape, layout, blocks, u, v, gamma, part: 0..rows })
    }

    fn is_whole(&self) -> bool {
        self.part == (0..self.shape[0])
    }

    /// Blocks and V in a dtype, with gamma in them.
    fn joined(&self, dtype: danaus_tensor::DType) -> Result<(Tensor, Tensor)> {
        let gamma = self.gamma.tensor();
        let blocks = self.blocks.tensor().mul(&gamma)?.to_dtype(dtype)?;
        let v = self.v.tensor().mul(&gamma.affine(-1.0, 1.0)?)?.to_dtype(dtype)?;
        Ok((blocks, v))
    }

    /// The blocks as a whole matrix.
    fn placed(&self, blocks: &Tensor) -> Result<Tensor> {
        let [rows, cols] = self.shape;
        let block = self.layout.block();
        let zero = blocks.elem_count() as i64;
        let mut ids = vec![zero; rows * cols];
        for (index, (row, col)) in self.layout.places().enumerate() {
            for at in 0..block * block {
                let (i, j) = (row * block + at / block, col * block + at % block);
                if i < rows && j < cols {
                    ids[i * cols + j] = (index * block * block + at) as i64;
                }
            }
        }
        let flat = blocks.reshape([blocks.elem_count()])?.pad(-1, 0, 1, 0.0)?;
        let ids = Tensor::from_vec(ids, [rows * cols], &Device::Cpu)?;
        flat.index_select(0, &ids)?.reshape([rows, cols])
    }
}

impl StructuredMatrix for Pixelfly {
    fn rows(&self) -> usize {
        self.part.len()
    }

    fn cols(&self) -> usize {
        self.shape[1]
    }

    fn apply(&self, x: &Tensor, extras: Extras) -> Result<Tensor> {
        let dtype = x.dtype();
        let (blocks, v) = self.joined(dtype)?;
        let (u, h) = (self.u.tensor_as(dtype)?, linear(x, &v, Extras::default())?);
        // The low rank's product takes bias and residual along, the blocks are added to it.
        let whole = self.is_whole();
        let bias = extras.bias.filter(|_| whole);
        let residual = extras.residual.filter(|_| whole && extras.activation.is_none());
        let low = linear(&h, &u, Extras { bias, residual, activation: None })?;
        let mut y = block_sparse(x, &blocks, &self.layout, self.shape[0], Some(&low))?;
        if !whole {
            y = y.narrow(-1, self.part.start, self.part.len())?;
            if let Some(bias) = extras.bias {
                y = y.add(&bias.to_dtype(dtype)?)?;
            }
        }
        if let Some(kind) = extras.activation {
            y = activation(kind, &y)?;
        }
        match extras.residual.filter(|_| residual.is_none()) {
            Some(residual) => y.add(residual),
            None => Ok(y),
        }
    }

    fn apply_transpose(&self, x: &Tensor) -> Result<Tensor> {
        if x.dims().last() != Some(&self.rows()) {
            let expected = format!("[.., {}]", self.rows());
            return Err(Error::shape("Pixelfly", "x", x.shape(), expected));
        }
        let after = self.shape[0] - self.part.end;
        let x = match self.is_whole() {
            true => x.clone(),
            false => x.pad(-1, self.part.start, after, 0.0)?,
        };
        let (blocks, v) = self.joined(x.dtype())?;
        let u = self.u.tensor_as(x.dtype())?.transpose(0, 1)?;
        let low =
            linear(&linear(&x, &u, Extras::default())?, &v.transpose(0, 1)?, Extras::default())?;
        let (layout, order) = self.layout.transposed();
        let order: Vec<i64> = order.into_iter().map(|index| index as i64).collect();
        let order = Tensor::from_slice(&order, [order.len()], &Device::Cpu)?;
        let blocks = blocks.index_select(0, &order)?.transpose(1, 2)?;
        block_sparse(&x, &blocks, &Arc::new(layout), self.shape[1], Some(&low))
    }

    fn apply_rows(&self, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        self.apply(x, Extras::default())?.index_select(-1, rows)
    }

    fn gather_rows(&self, ids: &Tensor) -> Result<Tensor> {
        let dtype = self.u.tensor().dtype();
        self.apply_transpose(&ids.one_hot(self.rows(), dtype)?)
    }

    fn to_dense(&self) -> Result<Tensor> {
        let (blocks, v) = self.joined(self.u.tensor().dtype())?;
        let dense = self.placed(&blocks)?.add(&self.u.tensor().matmul(&v)?)?;
        dense.narrow(0, self.part.start, self.part.len())?.contiguous()
    }

    fn shard_rows(&self, index: usize, count: usize) -> Result<Box<dyn StructuredMatrix>> {
        // Shards keep all parameters, since a cut may go through blocks; only their results are fewer.
        let range = shard_range(self.rows(), index, count)?;
        let start = self.part.start + range.start;
        let copy = |param: &Param| {
            Param::from_tensor(param.name(), param.decays(), &param.tensor().detach())
        };
        Ok(Box::new(Self {
            shape: self.shape,
            layout: self.layout.clone(),
            blocks: copy(&self.blocks)?,
            u: copy(&self.u)?,
            v: copy(&self.v)?,
            gamma: copy(&self.gamma)?,
            part: start..start + range.len(),
        }))
    }

    fn parameters(&self) -> Vec<Param> {
        [&self.blocks, &self.u, &self.v, &self.gamma].map(Param::clone).to_vec()
    }

    fn flops(&self, tokens: usize) -> u64 {
        let block = self.layout.block();
        let low_rank = self.u.tensor().dims()[1] * (self.shape[0] + self.shape[1]);
        2 * (tokens * (self.layout.len() * block * block + low_rank)) as u64
    }
}
