//! How a weight is stored, as configs and command lines say it.

use super::{Dense, Expression, LdrClass, LowRank, Pixelfly, PixelflySizes};
use super::{Quantized, Stacked, StructuredMatrix, expression};
use danaus_kernel::ops::quantized::BlockType;
use danaus_tensor::{Error, ParamBuilder, Result};
use serde::{Deserialize, Serialize};

/// How a weight is stored, as a config says it: `dense`, `lowrank(8)`, `monarch(4)`, `butterfly`,
/// `kaleidoscope`, `ldr(2)`, `pixelfly(32,16,2,32)`.
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
    /// Low displacement rank: the class of the operators, and the rank.
    Ldr(LdrClass, usize),
    /// Blocks of a flat butterfly plus low rank.
    Pixelfly(PixelflySizes),
}

impl Format {
    /// What a config may say.
    pub const VALID: &str = "dense, lowrank(RANK), monarch(BLOCKS), butterfly, kaleidoscope, \
        ldr(RANK) (ldr-sdc, ldr-td, ldr-tdc, ldr-toeplitz, ldr-hankel, ldr-vandermonde), \
        pixelfly(BLOCK,SIZE,FACTORS,RANK)";

    /// Makes (or loads) a matrix under `name`: `name.weight`; `name.u` and `name.v`; `name.w1` and
    /// `name.w2`; `name.twiddle`; `name.subd_a`, `name.subd_b`, `name.g` and `name.h`; or `name.blocks`, `name.u`,
    /// `name.v` and `name.gamma`. Where the
    /// source has `name.q8_0` or another block type instead, it is loaded as [`Quantized`].
    ///
    /// Where the builder says how the matrix of this name is stored
    /// ([`ParamBuilder::with_formats`]), that counts.
    ///
    /// New elements are uniform within `1 / sqrt(cols)` times `gain`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn build(
        self,
        params: &ParamBuilder,
        shape: [usize; 2],
        gain: f64,
    ) -> Result<Box<dyn StructuredMatrix>> {
        let format = self.here(params)?;
        params.note_matrix(shape, format);
        format.build_table(params, shape, gain)
    }

    /// As [`Self::build`] in this format whatever the builder says of the name, and without taking
    /// the matrix down as one whose format can be chosen: for tables of embeddings.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn build_table(
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
            Format::Ldr(class, rank) => {
                Box::new(Expression::ldr(params, [rows, cols], (class, rank), gain)?)
            }
            Format::Pixelfly(sizes) => {
                Box::new(Pixelfly::build(params, [rows, cols], sizes, gain)?)
            }
        })
    }

    /// As [`Self::build`] under `params.pp(name)`. A source that does not have the matrix there but its
    /// `parts`, rows one above the other under names of their own (`q`, `k`, `v`), gives a [`Stacked`]
    /// of these, each in the format it is stored in. New models get one matrix, unless the builder
    /// says how a part is stored.
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
        let apart = match whole.is_new() {
            true => parts.iter().any(|(part, _)| params.pp(part).format_here().is_some()),
            false => !self.is_stored(&whole)? && self.any_is_stored(params, parts)?,
        };
        if !apart {
            let rows = parts.iter().map(|part| part.1).sum();
            return self.build(&whole, [rows, cols], gain);
        }
        let build =
            |&(part, rows): &(&str, usize)| self.build(&params.pp(part), [rows, cols], gain);
        let parts = parts.iter().map(build).collect::<Result<_>>()?;
        Ok(Box::new(Stacked::new(parts)?))
    }

    /// The format of the matrix of the builder's prefix: this one, unless the builder says another.
    fn here(self, params: &ParamBuilder) -> Result<Self> {
        params.format_here().map_or(Ok(self), |text| Self::try_from(text.to_string()))
    }

    /// Whether the source has a matrix here.
    fn is_stored(self, params: &ParamBuilder) -> Result<bool> {
        let name = match self.here(params)? {
            Format::Dense => "weight",
            Format::LowRank(_) => "u",
            Format::Monarch(_) => "w1",
            Format::Butterfly | Format::Kaleidoscope => "twiddle",
            Format::Ldr(..) => "g",
            Format::Pixelfly(_) => "blocks",
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

    /// The largest number in its name, 0 where there is none: for bounds on configs.
    pub fn largest(self) -> usize {
        match self {
            Format::Dense | Format::Butterfly | Format::Kaleidoscope => 0,
            Format::LowRank(size) | Format::Monarch(size) | Format::Ldr(_, size) => size,
            Format::Pixelfly(PixelflySizes { block, size, factors, rank }) => {
                block.max(size).max(factors).max(rank)
            }
        }
    }

    /// Number of elements of a `rows x cols` matrix in this format.
    pub fn elem_count(self, rows: usize, cols: usize) -> usize {
        match self {
            Format::Dense => rows * cols,
            Format::LowRank(rank) => rank * (rows + cols),
            Format::Monarch(blocks) => expression::monarch_count(blocks, [rows, cols]),
            Format::Butterfly => expression::butterfly_count(1, [rows, cols]),
            Format::Kaleidoscope => expression::butterfly_count(2, [rows, cols]),
            Format::Ldr(class, rank) => expression::ldr_count(class, rank, [rows, cols]),
            // A pattern that does not fit is refused when the matrix is built.
            Format::Pixelfly(sizes) => sizes.elem_count([rows, cols]).unwrap_or(rows * cols),
        }
    }
}

impl TryFrom<String> for Format {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let numbers = |name: &str| -> Option<Vec<usize>> {
            let inner = text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')')?;
            let number = |part: &str| part.trim().parse().ok().filter(|&number| number > 0);
            inner.split(',').map(number).collect()
        };
        let number = |name: &str| match numbers(name)?[..] {
            [number] => Some(number),
            _ => None,
        };
        let pixelfly = || match numbers("pixelfly")?[..] {
            [block, size, factors, rank] => Some(PixelflySizes { block, size, factors, rank }),
            _ => None,
        };
        let ldr = || {
            let of = |class: LdrClass| Some(Format::Ldr(class, number(class.format())?));
            LdrClass::ALL.into_iter().find_map(of)
        };
        let found = match text.as_str() {
            "dense" => Some(Format::Dense),
            "butterfly" => Some(Format::Butterfly),
            "kaleidoscope" => Some(Format::Kaleidoscope),
            _ => number("lowrank")
                .map(Format::LowRank)
                .or_else(|| number("monarch").map(Format::Monarch))
                .or_else(ldr)
                .or_else(|| pixelfly().map(Format::Pixelfly)),
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
            Format::Ldr(class, rank) => format!("{}({rank})", class.format()),
            Format::Pixelfly(PixelflySizes { block, size, factors, rank }) => {
                format!("pixelfly({block},{size},{factors},{rank})")
            }
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
