//! Quantised blocks, used as they are stored.

use super::{StructuredMatrix, shard_range};
use danaus_kernel::ops::linear::{Extras, linear};
use danaus_kernel::ops::quantized::{
    Activations, BlockType, dequantize, quantize, quantized_linear_transpose, quantized_linear_with,
};
use danaus_tensor::{DType, Init, Param, ParamBuilder, Result, Tensor};

/// W as one parameter named by its block type (`q8_0`, `q4_k`, ...), u8 `[rows, row_bytes]`.
///
/// A constant: gradients flow to x alone. With an f32 or bf16 x the blocks are decoded in registers;
/// an f64 x multiplies the decoded matrix. Where the builder asks for it
/// ([`ParamBuilder::with_round_inputs`]) and the type has that mode, an f32 or bf16 x is rounded to eight
/// bits and integers are multiplied ([`Activations::Int8`]).
#[derive(Clone)]
pub struct Quantized {
    blocks: Param,
    kind: BlockType,
    cols: usize,
    activations: Activations,
}

impl Quantized {
    /// Loads the parameter; a new one is all zero bytes, which is the zero matrix in most types.
    ///
    /// # Errors
    /// When `cols` is not a multiple of the block, or the tensor is missing or has another shape.
    pub fn build(params: &ParamBuilder, [rows, cols]: [usize; 2], kind: BlockType) -> Result<Self> {
        let shape = [rows, kind.row_bytes(cols)?];
        let blocks = params.param_as_stored(kind.name(), shape, Init::Constant(0.0))?;
        let dtype = blocks.tensor().dtype();
        if dtype != DType::U8 {
            return Err(danaus_tensor::Error::dtype("load", blocks.name(), dtype, "u8"));
        }
        let asked = if params.round_inputs() { Activations::Int8 } else { Activations::F32 };
        Ok(Self { blocks, kind, cols, activations: asked.of_type(kind) })
    }

    /// Quantises a matrix `[rows, cols]`; `name` is that of the matrix, without the type.
    ///
    /// # Errors
    /// When the type has no encoder, the columns do not fit, or an element is not finite.
    pub fn from_dense(name: &str, weight: &Tensor, kind: BlockType) -> Result<Self> {
        let blocks = quantize(&weight.detach(), kind)?;
        let blocks = Param::from_tensor(&format!("{name}.{kind}"), true, &blocks)?;
        let cols = weight.dims().last().copied().unwrap_or_default();
        Ok(Self { blocks, kind, cols, activations: Activations::F32 })
    }

    /// The block type.
    pub fn block_type(&self) -> BlockType {
        self.kind
    }

    /// Rows `ids` as blocks.
    fn chosen(&self, ids: &Tensor) -> Result<Tensor> {
        let flat = ids.reshape([ids.elem_count()])?;
        self.blocks.tensor().index_select(0, &flat)
    }

    /// The product for any dtype of `x` with some rows of blocks.
    fn product(&self, x: &Tensor, blocks: &Tensor, extras: Extras) -> Result<Tensor> {
        if x.dtype() == DType::F64 {
            let weight = dequantize(blocks, self.kind, self.cols)?.to_dtype(DType::F64)?;
            return linear(x, &weight, extras);
        }
        quantized_linear_with(x, blocks, self.kind, self.cols, self.activations, extras)
    }
}

impl StructuredMatrix for Quantized {
    fn rows(&self) -> usize {
        self.blocks.tensor().dims()[0]
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn apply(&self, x: &Tensor, extras: Extras) -> Result<Tensor> {
        self.product(x, &self.blocks.tensor(), extras)
    }

    fn apply_transpose(&self, x: &Tensor) -> Result<Tensor> {
        if x.dtype() == DType::F64 {
            let transposed = self.to_dense()?.to_dtype(DType::F64)?.transpose(0, 1)?;
            return linear(x, &transposed, Extras::default());
        }
        quantized_linear_transpose(x, &self.blocks.tensor(), self.kind, self.cols)
    }

    fn apply_rows(&self, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        self.product(x, &self.chosen(rows)?, Extras::default())
    }

    fn gather_rows(&self, ids: &Tensor) -> Result<Tensor> {
        let mut dims = ids.dims().to_vec();
        dims.push(self.cols);
        dequantize(&self.chosen(ids)?, self.kind, self.cols)?.reshape(dims)
    }

    fn to_dense(&self) -> Result<Tensor> {
        dequantize(&self.blocks.tensor(), self.kind, self.cols)
    }

    fn shard_rows(&self, index: usize, count: usize) -> Result<Box<dyn StructuredMatrix>> {
        let range = shard_range(self.rows(), index, count)?;
        let part = self.blocks.tensor().narrow(0, range.start, range.len())?;
        let blocks = Param::from_tensor(self.blocks.name(), self.blocks.decays(), &part)?;
        Ok(Box::new(Self { blocks, ..*self }))
    }

    fn parameters(&self) -> Vec<Param> {
        vec![self.blocks.clone()]
    }

    fn flops(&self, tokens: usize) -> u64 {
        2 * (tokens * self.rows() * self.cols()) as u64
    }
}
