//! Products with a matrix of which only some blocks exist.
//!
//! `y = x W^T + residual`, with x `[.., in]` and W of `rows x cols` blocks of `b x b`. Blocks that exist
//! ([`Layout`]) are stored in row-major order, `[count, b, b]`; in and out need not be whole blocks: x is
//! padded with zeros, y is cut. Flops are `2 b^2 count` a row. Backward: `dx = dy W` has the transposed
//! layout, `dW_ij = dy_i^T x_j` exists on the blocks alone, `dresidual = dy`.
//!
//! The layout of Pixelated Butterfly is [`FlatButterfly`] (Dao et al., ICLR 2022): the first-order sum of
//! a product of residual butterfly factors, whose support is the union of theirs. Their layer adds a
//! product of low rank; with `residual` it takes no further pass over y ([`pixelfly`]).
//!
//! # Precision
//! f64 is computed by the reference; f32 and bf16 in f32 (`cpu.rs`), bf16 rounded once. A row's bits
//! depend on that row alone (the *invariant* level). Blocks narrower than a vector are padded to one, so
//! that small blocks cost as much as blocks of 16.

mod cpu;
mod layout;
pub mod reference;
mod spec;

#[cfg(test)]
mod tests;

pub use layout::{FlatButterfly, Layout};
pub use spec::{Gate, Pixelfly, SPECS, pixelfly};

use crate::hook::{self, check_dtype, check_float, check_shape, dense_as, required};
use crate::ops::toeplitz::store;
use danaus_tensor::{
    Backward, DType, Device, Error, Inputs, Level, Meta, Op, Result, Saves, Tensor, apply,
};
use std::sync::Arc;

/// Name on the tape and in messages.
const NAME: &str = "block_sparse";

/// `x W^T + residual` for blocks `[count, b, b]` of a layout and `out` results a row.
///
/// # Errors
/// When shapes do not fit the layout, or dtypes are not f64, f32 or bf16 (all the same).
pub fn block_sparse(
    x: &Tensor,
    blocks: &Tensor,
    layout: &Arc<Layout>,
    out: usize,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let op = BlockSparse { layout: layout.clone(), out };
    hook::first(apply(op, &[Some(x), Some(blocks), residual])?)
}

/// Inputs: x, blocks, residual.
struct BlockSparse {
    layout: Arc<Layout>,
    out: usize,
}

/// Refuses features that are not those of so many blocks, the last of which may be cut.
fn check_side(arg: &str, features: usize, count: usize, block: usize) -> Result<()> {
    if features > 0 && features.div_ceil(block) == count {
        return Ok(());
    }
    let valid = format!(
        "{}..={} for {count} blocks of {block}",
        (count * block + 1).saturating_sub(block),
        count * block
    );
    Err(Error::argument(NAME, arg, features, valid))
}

impl BlockSparse {
    /// Features of a row of x and of y.
    fn sides(&self, x: &Tensor) -> Result<[usize; 2]> {
        Ok([hook::last_dim(NAME, "x", x)?, self.out])
    }

    fn working(dtype: DType) -> DType {
        if dtype == DType::F64 { DType::F64 } else { DType::F32 }
    }
}

impl Op for BlockSparse {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let (x, blocks) = (required(NAME, inputs, 0, "x")?, required(NAME, inputs, 1, "blocks")?);
        check_float(NAME, "x", x)?;
        check_dtype(NAME, ("blocks", blocks), ("x", x))?;
        let (layout, block) = (&self.layout, self.layout.block());
        check_shape(NAME, "blocks", blocks, &[layout.len(), block, block])?;
        let [inp, out] = self.sides(x)?;
        check_side("in", inp, layout.cols(), block)?;
        check_side("out", out, layout.rows(), block)?;
        let mut dims = x.dims().to_vec();
        dims[x.rank() - 1] = out;
        if let Some(residual) = hook::given(inputs, 2) {
            check_dtype(NAME, ("residual", residual), ("x", x))?;
            check_shape(NAME, "residual", residual, &dims)?;
        }
        Ok(vec![Meta::new(dims, x.dtype())])
    }

    fn level(&self) -> Level {
        Level::Invariant
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[0, 1])
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let dtype = Self::working(outputs[0].dtype());
        let get = |index, name| dense_as(required(NAME, inputs, index, name)?, dtype);
        let (x, blocks) = (get(0, "x")?, get(1, "blocks")?);
        let mut y = match hook::given(inputs, 2) {
            Some(residual) => residual.detach().to_dtype(dtype)?.copy()?,
            None => Tensor::zeros(outputs[0].shape(), dtype, &Device::Cpu)?,
        };
        let (layout, sides) = (&*self.layout, self.sides(&x)?);
        match dtype {
            DType::F64 => reference::forward::<f64>(
                layout,
                blocks.as_slice()?,
                sides,
                x.as_slice()?,
                y.as_slice_mut()?,
            ),
            _ => {
                cpu::forward(layout, blocks.as_slice()?, sides, x.as_slice()?, y.as_slice_mut()?);
            }
        }
        store(&y, &mut outputs[0])
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(dy) = &ctx.grads[0] else { return Ok(vec![None; 3]) };
        let (own, dtype) = (dy.dtype(), Self::working(dy.dtype()));
        let (x, blocks) = (dense_as(ctx.input(0)?, dtype)?, dense_as(ctx.input(1)?, dtype)?);
        let wide = dense_as(dy, dtype)?;
        let mut dx = Tensor::zeros(x.shape(), dtype, &Device::Cpu)?;
        let (layout, sides) = (&*self.layout, self.sides(&x)?);
        let dblocks = match dtype {
            DType::F64 => {
                let mut sums = vec![0.0f64; blocks.elem_count()];
                let (rows, to) =
                    ((x.as_slice()?, wide.as_slice()?), (dx.as_slice_mut()?, &mut sums[..]));
                reference::backward(layout, blocks.as_slice()?, sides, rows, to);
                Tensor::from_vec(sums, blocks.shape(), &Device::Cpu)?
            }
            _ => {
                let rows = (x.as_slice()?, wide.as_slice()?);
                let to = dx.as_slice_mut()?;
                let sums = cpu::backward(layout, blocks.as_slice()?, sides, rows, to);
                Tensor::from_vec(sums, blocks.shape(), &Device::Cpu)?
            }
        };
        let residual = ctx.needs[2].then(|| dy.clone());
        Ok(vec![Some(dx.to_dtype(own)?), Some(dblocks.to_dtype(own)?), residual])
    }
}
