//! Linear layers whose weights are quantised blocks, used as they are stored.
//!
//! A weight matrix W of `[rows, cols]` is a u8 tensor `[rows, row_bytes]`: every row is `cols /
//! block_len` blocks of a [`BlockType`], 32 or 256 weights with their scales. The layouts are those of
//! GGUF files.
//!
//! * [`dequantize`]: blocks to f32 `[rows, cols]`, bit exact.
//! * [`quantize`]: f32 to blocks (q8_0, q4_0, q4_k).
//! * [`quantized_linear`]: `y = f(x W^T + b) + residual`, `x` `[.., cols]` f32 or bf16, y like x.
//! * [`quantized_linear_transpose`]: `y = x W`, `x` `[.., rows]`.
//!
//! The arithmetic is f32 on the decoded weights: x is not quantised, so the result is that of the
//! dequantised model up to the order of sums. [`quantized_linear_with`] chooses: with
//! [`Activations::Int8`] x is rounded to eight bits and the sums are those of integers (`int8`), which
//! is several times as fast where arithmetic is the limit. W is a constant; x has a gradient, `dx = dp W`
//! with dp the gradient before the activation, which is the other product, in f32 in either mode.
//!
//! # Bits
//! An element of `x W^T` is the sum over k in lanes (one vector of partial sums, k in rising order,
//! the lanes added in a fixed tree). Every path uses this order, so that a row of y has the same bits
//! alone and in any batch, on any number of threads (the *invariant* level). See `cpu.rs`. With int8
//! bits do not depend on the instruction set either.

mod cpu;
mod decode;
mod encode;
mod int8;
mod layout;
pub mod reference;
mod tile;

#[cfg(test)]
mod tests;

pub use encode::{ENCODED, encode_block};
pub use int8::{Activations, INTEGER};
pub use layout::BlockType;

use crate::hook::{self, check_dtype, check_float, check_shape, dense, dense_as, listed, required};
use crate::ops::activation::Activation;
use crate::ops::linear::{self, Extras};
use danaus_tensor::registry::{Arg, Args, Attr, Kind, OpSpec};
use danaus_tensor::{
    Backward, DType, Error, Inputs, Level, Meta, Op, Result, Saves, Tensor, apply, is_recording,
};

/// The weights in f32, `[rows, cols]`.
///
/// # Errors
/// When `blocks` is not u8 `[rows, row_bytes]`, or `cols` not a multiple of the block.
pub fn dequantize(blocks: &Tensor, kind: BlockType, cols: usize) -> Result<Tensor> {
    hook::first(apply(Dequantize { kind, cols }, &[Some(blocks)])?)
}

/// The blocks of a matrix `[rows, cols]` (any float dtype): u8 `[rows, row_bytes]`.
///
/// # Errors
/// When the type has no encoder, `cols` is not a multiple of the block, or an element is not finite
/// or beyond the format's range.
pub fn quantize(x: &Tensor, kind: BlockType) -> Result<Tensor> {
    hook::first(apply(Quantize { kind }, &[Some(x)])?)
}

/// `f(x W^T + b) + residual` for the matrix W of `blocks`: `[.., cols]` to `[.., rows]`.
///
/// # Errors
/// When shapes do not fit, x is neither f32 nor bf16, or the residual has another dtype than x.
pub fn quantized_linear(
    x: &Tensor,
    blocks: &Tensor,
    kind: BlockType,
    cols: usize,
    extras: Extras,
) -> Result<Tensor> {
    quantized_linear_with(x, blocks, kind, cols, Activations::F32, extras)
}

/// As [`quantized_linear`] in a numeric mode.
///
/// # Errors
/// As there, and when the mode does not take the type of the blocks.
pub fn quantized_linear_with(
    x: &Tensor,
    blocks: &Tensor,
    kind: BlockType,
    cols: usize,
    activations: Activations,
    extras: Extras,
) -> Result<Tensor> {
    let Extras { bias, activation, residual } = extras;
    let inputs = [Some(x), Some(blocks), bias, residual];
    let tracked = inputs.iter().flatten().any(|input| input.is_tracked());
    let keep = activation.is_some() && tracked && is_recording();
    hook::first(apply(QuantizedLinear { kind, cols, activations, activation, keep }, &inputs)?)
}

/// `x W` for the matrix W of `blocks`: `[.., rows]` to `[.., cols]`.
///
/// # Errors
/// When shapes do not fit, or x is neither f32 nor bf16.
pub fn quantized_linear_transpose(
    x: &Tensor,
    blocks: &Tensor,
    kind: BlockType,
    cols: usize,
) -> Result<Tensor> {
    hook::first(apply(Transpose { kind, cols }, &[Some(x), Some(blocks)])?)
}

/// The number of rows of valid blocks.
fn check_blocks(op: &'static str, blocks: &Tensor, kind: BlockType, cols: usize) -> Result<usize> {
    let row_bytes = kind.row_bytes(cols)?;
    if blocks.dtype() != DType::U8 {
        return Err(Error::dtype(op, "blocks", blocks.dtype(), "u8"));
    }
    if blocks.rank() != 2 || blocks.dims()[1] != row_bytes {
        let expected = format!("[rows, {row_bytes}], {cols} columns of {kind}");
        return Err(Error::shape(op, "blocks", blocks.shape(), expected));
    }
    Ok(blocks.dims()[0])
}

/// Refuses an `x` that is neither f32 nor bf16, or whose last dimension is not `size`.
fn check_x(op: &'static str, x: &Tensor, size: usize) -> Result<()> {
    if !matches!(x.dtype(), DType::F32 | DType::BF16) {
        return Err(Error::dtype(op, "x", x.dtype(), "f32 or bf16 (cast with to_dtype)"));
    }
    if hook::last_dim(op, "x", x)? != size {
        return Err(Error::shape(op, "x", x.shape(), format!("[.., {size}]")));
    }
    Ok(())
}

/// The dimensions of `x` with another last one.
fn with_last(x: &Tensor, last: usize) -> Vec<usize> {
    let mut dims = x.dims().to_vec();
    if let Some(dim) = dims.last_mut() {
        *dim = last;
    }
    dims
}

struct Dequantize {
    kind: BlockType,
    cols: usize,
}

impl Op for Dequantize {
    fn name(&self) -> &'static str {
        "dequantize"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let blocks = required(self.name(), inputs, 0, "blocks")?;
        let rows = check_blocks(self.name(), blocks, self.kind, self.cols)?;
        Ok(vec![Meta::new([rows, self.cols], DType::F32)])
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn level(&self) -> Level {
        Level::Invariant
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let blocks = dense(required(self.name(), inputs, 0, "blocks")?)?;
        cpu::decode(self.kind, self.cols, blocks.as_slice()?, outputs[0].as_slice_mut()?);
        Ok(())
    }

    fn backward(&self, _: &Backward) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![None])
    }
}

struct Quantize {
    kind: BlockType,
}

impl Op for Quantize {
    fn name(&self) -> &'static str {
        "quantize"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let x = required(self.name(), inputs, 0, "x")?;
        encode::check(self.kind)?;
        if !x.dtype().is_float() {
            return Err(Error::dtype(self.name(), "x", x.dtype(), "a floating-point type"));
        }
        let &[rows, cols] = x.dims() else {
            return Err(Error::shape(self.name(), "x", x.shape(), "[rows, cols]"));
        };
        Ok(vec![Meta::new([rows, self.kind.row_bytes(cols)?], DType::U8)])
    }

    fn saves(&self) -> Saves {
        Saves::none()
    }

    fn level(&self) -> Level {
        Level::Invariant
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = dense_as(required(self.name(), inputs, 0, "x")?, DType::F32)?;
        let cols = x.dims()[1];
        let failed = cpu::encode(self.kind, cols, x.as_slice()?, outputs[0].as_slice_mut()?);
        failed.map_or(Ok(()), |row| {
            let given = format!("not finite, or beyond the scales of {}, in row {row}", self.kind);
            Err(Error::argument(self.name(), "x", given, "finite values in range"))
        })
    }

    fn backward(&self, _: &Backward) -> Result<Vec<Option<Tensor>>> {
        // Blocks are not differentiable, so nothing ever asks.
        Ok(vec![None])
    }
}

/// Inputs: x, blocks, bias, residual. Outputs: y, and the value before the activation if kept.
struct QuantizedLinear {
    kind: BlockType,
    cols: usize,
    activations: Activations,
    activation: Option<Activation>,
    keep: bool,
}

impl Op for QuantizedLinear {
    fn name(&self) -> &'static str {
        "quantized_linear"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let op = self.name();
        let (x, blocks) = (required(op, inputs, 0, "x")?, required(op, inputs, 1, "blocks")?);
        self.activations.check(self.kind)?;
        let rows = check_blocks(op, blocks, self.kind, self.cols)?;
        check_x(op, x, self.cols)?;
        if let Some(bias) = hook::given(inputs, 2) {
            check_float(op, "bias", bias)?;
            check_shape(op, "bias", bias, &[rows])?;
        }
        let dims = with_last(x, rows);
        if let Some(residual) = hook::given(inputs, 3) {
            check_dtype(op, ("residual", residual), ("x", x))?;
            check_shape(op, "residual", residual, &dims)?;
        }
        Ok(vec![Meta::new(dims, x.dtype()); if self.keep { 2 } else { 1 }])
    }

    fn saves(&self) -> Saves {
        // x, for its dtype and shape alone, lives as long as the caller's layer does.
        let inputs = Saves::inputs(&[0, 1, 2]);
        if self.keep { inputs.and_outputs(&[1]) } else { inputs }
    }

    fn level(&self) -> Level {
        Level::Invariant
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = dense_as(required(self.name(), inputs, 0, "x")?, DType::F32)?;
        let blocks = dense(required(self.name(), inputs, 1, "blocks")?)?;
        let bias = hook::optional_as(hook::given(inputs, 2), DType::F32)?;
        let residual = hook::given(inputs, 3).map(dense).transpose()?;
        let (y, before) = outputs.split_at_mut(1);
        let product = cpu::Product {
            kind: self.kind,
            x: x.as_slice()?,
            cols: self.cols,
            activations: self.activations,
            blocks: blocks.as_slice()?,
            bias: bias.as_ref(),
            activation: self.activation,
            residual: residual.as_ref(),
        };
        match y[0].dtype() {
            DType::F32 => product.run::<f32>(&mut y[0], before.first_mut()),
            _ => product.run::<half::bf16>(&mut y[0], before.first_mut()),
        }
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(dy) = &ctx.grads[0] else { return Ok(vec![None; 4]) };
        let dy = dense(dy)?;
        let curve = match self.activation {
            Some(activation) => Some((activation, dense(ctx.output(1)?)?)),
            None => None,
        };
        let (dp, dbias) = linear::before_activation(&dy, curve, ctx.needs[2])?;
        let dx = match ctx.needs[0] {
            true => Some(quantized_linear_transpose(&dp, ctx.input(1)?, self.kind, self.cols)?),
            false => None,
        };
        let dbias = match (&ctx.inputs[2], dbias) {
            (Some(bias), Some(sums)) => Some(dense_as(&sums, bias.dtype())?),
            _ => None,
        };
        Ok(vec![dx, None, dbias, ctx.needs[3].then_some(dy)])
    }
}

/// Inputs: x, blocks.
struct Transpose {
    kind: BlockType,
    cols: usize,
}

impl Op for Transpose {
    fn name(&self) -> &'static str {
        "quantized_linear_transpose"
    }

    fn infer(&self, inputs: Inputs) -> Result<Vec<Meta>> {
        let op = self.name();
        let (x, blocks) = (required(op, inputs, 0, "x")?, required(op, inputs, 1, "blocks")?);
        let rows = check_blocks(op, blocks, self.kind, self.cols)?;
        check_x(op, x, rows)?;
        Ok(vec![Meta::new(with_last(x, self.cols), x.dtype())])
    }

    fn saves(&self) -> Saves {
        Saves::inputs(&[1])
    }

    fn level(&self) -> Level {
        Level::Invariant
    }

    fn run(&self, inputs: Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = dense_as(required(self.name(), inputs, 0, "x")?, DType::F32)?;
        let blocks = dense(required(self.name(), inputs, 1, "blocks")?)?;
        let y = &mut outputs[0];
        if y.dtype() == DType::F32 {
            cpu::transpose(
                self.kind,
                self.cols,
                x.as_slice()?,
                blocks.as_slice()?,
                y.as_slice_mut()?,
            );
            return Ok(());
        }
        // Sums over panels of rows stay in f32 until the last one.
        let mut sums = Tensor::empty(y.shape(), DType::F32, &y.device())?;
        cpu::transpose(
            self.kind,
            self.cols,
            x.as_slice()?,
            blocks.as_slice()?,
            sums.as_slice_mut()?,
        );
        *y = sums.to_dtype(y.dtype())?;
        Ok(())
    }

    fn backward(&self, ctx: &Backward) -> Result<Vec<Option<Tensor>>> {
        let Some(dy) = &ctx.grads[0] else { return Ok(vec![None; 2]) };
        let blocks = ctx.input(1)?;
        let dx = quantized_linear(dy, blocks, self.kind, self.cols, Extras::default())?;
        Ok(vec![Some(dx), None])
    }
}

const BLOCKS: Arg =
    Arg { name: "blocks", shape: "rows row_bytes", dtypes: &[DType::U8], optional: false };
const KIND: Attr = Attr::new("block_type", Kind::Text, "q8_0", "name of the block type");
const ACTIVATIONS: Attr = Attr::new(
    "activations",
    Kind::Text,
    "f32",
    "f32, or int8: x rounded to eight bits in groups of 32",
);
const COLS: Attr = Attr::new("cols", Kind::Int, "", "columns of the matrix");

fn block_type(args: &Args) -> Result<BlockType> {
    BlockType::from_name(args.text("block_type").unwrap_or("q8_0"))
}

/// The attribute, or what the width of the blocks says.
fn columns(op: &'static str, args: &Args, kind: BlockType) -> Result<usize> {
    if let Some(cols) = args.int("cols")? {
        let valid = "a whole number from 0";
        return usize::try_from(cols).map_err(|_| Error::argument(op, "cols", cols, valid));
    }
    let blocks = args.input("blocks")?;
    let row_bytes = hook::last_dim(op, "blocks", blocks)?;
    Ok(row_bytes / kind.block_bytes() * kind.block_len())
}

/// The operators of this folder for the operator runner.
pub const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "quantized_linear",
        summary: "f(x W^T + bias) + residual for W stored as quantised blocks",
        inputs: &[
            Arg {
                name: "x",
                shape: "... cols",
                dtypes: &[DType::F32, DType::BF16],
                optional: false,
            },
            BLOCKS,
            Arg::float("bias", "rows").optional(),
            Arg::float("residual", "... rows").optional(),
        ],
        attributes: &[KIND, COLS, ACTIVATIONS, linear::ACTIVATION],
        outputs: &["y"],
        call: |args| {
            let kind = block_type(args)?;
            let cols = columns("quantized_linear", args, kind)?;
            let activations = Activations::from_name(args.text("activations").unwrap_or("f32"))?;
            let activation = linear::activation("quantized_linear", args)?;
            let (bias, residual) = (args.optional("bias"), args.optional("residual"));
            let extras = Extras { bias, activation, residual };
            let (x, blocks) = (args.input("x")?, args.input("blocks")?);
            listed(quantized_linear_with(x, blocks, kind, cols, activations, extras)?)
        },
    },
    OpSpec {
        name: "dequantize",
        summary: "quantised blocks to f32",
        inputs: &[BLOCKS],
        attributes: &[KIND, COLS],
        outputs: &["y"],
        call: |args| {
            let kind = block_type(args)?;
            let cols = columns("dequantize", args, kind)?;
            listed(dequantize(args.input("blocks")?, kind, cols)?)
        },
    },
    OpSpec {
        name: "quantize",
        summary: "f32 to quantised blocks",
        inputs: &[Arg::float("x", "rows cols")],
        attributes: &[Attr::new("block_type", Kind::Text, "q8_0", "q8_0, q4_0 or q4_k")],
        outputs: &["blocks"],
        call: |args| listed(quantize(args.input("x")?, block_type(args)?)?),
    },
];
