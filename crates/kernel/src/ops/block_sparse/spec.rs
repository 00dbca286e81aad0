//! The layer of Pixelated Butterfly, and the operators of this folder for the operator runner.

use super::{FlatButterfly, Layout, block_sparse};
use crate::hook::listed;
use crate::ops::linear::{Extras, linear};
use danaus_tensor::registry::{Arg, Args, Attr, Kind, OpSpec};
use danaus_tensor::{DType, Device, Error, Result, Tensor};
use std::sync::Arc;

/// How the sparse and the low-rank part are joined.
#[derive(Clone, Copy)]
pub enum Gate<'a> {
    /// `sparse + low`.
    Sum,
    /// `(sparse + low) / 2`.
    Average,
    /// `gamma sparse + (1 - gamma) low` with one number, `[1]`.
    Scalar(&'a Tensor),
    /// `(1 - g) sparse + g low` with `g = sigmoid(w x + b)` of each row: w `[1, in]`, b `[1]`.
    Token(&'a Tensor, &'a Tensor),
}

/// Parameters of the layer.
pub struct Pixelfly<'a> {
    /// Which blocks exist.
    pub layout: Arc<Layout>,
    /// The blocks, `[count, b, b]`.
    pub blocks: &'a Tensor,
    /// `[rank, in]` and `[out, rank]`.
    pub low_rank: [&'a Tensor; 2],
    /// How they are joined.
    pub gate: Gate<'a>,
    /// `[out]`.
    pub bias: Option<&'a Tensor>,
}

/// The join of `x W^T` for a block-sparse W and of `x (U V)^T`, plus the bias.
///
/// # Errors
/// When shapes or dtypes do not fit.
pub fn pixelfly(x: &Tensor, layer: &Pixelfly) -> Result<Tensor> {
    let [v, u] = layer.low_rank;
    if u.rank() != 2 {
        return Err(Error::shape("pixelfly", "lr2", u.shape(), "[out, rank]"));
    }
    let out = u.dims()[0];
    let low = linear(&linear(x, v, Extras::default())?, u, Extras::default())?;
    let sum =
        |blocks: &Tensor, low: &Tensor| block_sparse(x, blocks, &layer.layout, out, Some(low));
    let y = match layer.gate {
        Gate::Sum => sum(layer.blocks, &low)?,
        Gate::Average => sum(layer.blocks, &low)?.affine(0.5, 0.0)?,
        Gate::Scalar(gamma) => {
            sum(&layer.blocks.mul(gamma)?, &low.mul(&gamma.affine(-1.0, 1.0)?)?)?
        }
        Gate::Token(weight, bias) => {
            let gate = linear(x, weight, Extras { bias: Some(bias), ..Extras::default() })?;
            let sparse = block_sparse(x, layer.blocks, &layer.layout, out, None)?;
            sparse.add(&gate.sigmoid()?.mul(&low.sub(&sparse)?)?)?
        }
    };
    match layer.bias {
        Some(bias) => y.add(bias),
        None => Ok(y),
    }
}

fn layout(args: &Args) -> Result<Arc<Layout>> {
    let block = args.input("weight_blocks")?.dims().last().copied().unwrap_or_default();
    Ok(Arc::new(Layout::from_tensor(args.input("layout")?, block)?))
}

fn call_sparse(args: &Args) -> Result<Vec<Option<Tensor>>> {
    let (x, layout, bias) = (args.input("x")?, layout(args)?, args.optional("bias"));
    let whole = layout.rows() * layout.block();
    let out = match (args.int("out_features")?, bias) {
        (Some(out), _) => usize::try_from(out).unwrap_or_default(),
        (None, Some(bias)) => bias.elem_count(),
        (None, None) => whole,
    };
    let y = block_sparse(x, args.input("weight_blocks")?, &layout, out, None)?;
    listed(if let Some(bias) = bias { y.add(bias)? } else { y })
}

fn call_pixelfly(args: &Args) -> Result<Vec<Option<Tensor>>> {
    let gate = match args.text("gate").unwrap_or("token") {
        "sum" => Gate::Sum,
        "average" => Gate::Average,
        "scalar" => Gate::Scalar(args.needed("gamma", "gate scalar")?),
        "token" => {
            let by = "gate token";
            Gate::Token(args.needed("gate_w", by)?, args.needed("gate_b", by)?)
        }
        other => {
            return Err(Error::argument("pixelfly", "gate", other, "token, scalar, average, sum"));
        }
    };
    let layer = Pixelfly {
        layout: layout(args)?,
        blocks: args.input("weight_blocks")?,
        low_rank: [args.input("lr1")?, args.input("lr2")?],
        gate,
        bias: args.optional("bias"),
    };
    listed(pixelfly(args.input("x")?, &layer)?)
}

fn call_layout(args: &Args) -> Result<Vec<Option<Tensor>>> {
    let number = |name: &'static str, fallback: i64| {
        let given = args.int(name)?.unwrap_or(fallback);
        let valid = "a whole number from 0 on";
        usize::try_from(given).map_err(|_| Error::argument("flat_butterfly", name, given, valid))
    };
    let butterfly = FlatButterfly {
        size: number("size", 16)?,
        factors: number("factors", 2)?,
        block: number("block", 32)?,
        global: number("global", 0)?,
        shuffle: args.bool("shuffle")?,
    };
    let layout = butterfly.layout(number("out", 0)?, number("in", 0)?)?;
    let mut mask = vec![0u8; layout.rows() * layout.cols()];
    layout.places().for_each(|(row, col)| mask[row * layout.cols() + col] = 1);
    listed(Tensor::from_vec(mask, [layout.rows(), layout.cols()], &Device::Cpu)?)
}

const BLOCKS: Arg = Arg::float("weight_blocks", "count b b");
const LAYOUT: Arg = Arg {
    name: "layout",
    shape: "block_rows block_cols",
    dtypes: &[DType::U8, DType::Bool],
    optional: false,
};

/// The operators of this folder for the operator runner.
pub const SPECS: &[OpSpec] = &[
    OpSpec {
        name: "block_sparse",
        summary: "x W^T + bias for a matrix W of which some blocks exist",
        inputs: &[Arg::float("x", "... in"), BLOCKS, LAYOUT, Arg::float("bias", "out").optional()],
        attributes: &[Attr::new(
            "out_features",
            Kind::Int,
            "",
            "results a row; default the length of the bias, or whole blocks",
        )],
        outputs: &["y"],
        call: call_sparse,
    },
    OpSpec {
        name: "pixelfly",
        summary: "block-sparse and low-rank product, joined by a gate, plus bias",
        inputs: &[
            Arg::float("x", "... in"),
            BLOCKS,
            LAYOUT,
            Arg::float("lr1", "rank in"),
            Arg::float("lr2", "out rank"),
            Arg::float("gate_w", "1 in").optional(),
            Arg::float("gate_b", "1").optional(),
            Arg::float("gamma", "1").optional(),
            Arg::float("bias", "out").optional(),
        ],
        attributes: &[Attr::new("gate", Kind::Text, "token", "token, scalar, average, sum")],
        outputs: &["y"],
        call: call_pixelfly,
    },
    OpSpec {
        name: "flat_butterfly",
        summary: "which blocks of a matrix a flat block butterfly has",
        inputs: &[],
        attributes: &[
            Attr::new("out", Kind::Int, "", "rows of the matrix"),
            Attr::new("in", Kind::Int, "", "columns of the matrix"),
            Attr::new("size", Kind::Int, "16", "rows of the pattern, a power of two"),
            Attr::new("factors", Kind::Int, "2", "number of strides"),
            Attr::new("block", Kind::Int, "32", "rows of a block"),
            Attr::new("global", Kind::Int, "0", "first rows and columns that exist as a whole"),
            Attr::new("shuffle", Kind::Bool, "false", "whether columns are interleaved"),
        ],
        outputs: &["layout"],
        call: call_layout,
    },
];
