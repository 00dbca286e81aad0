//! What may be chosen for a weight: a format, or a family whose number is chosen too.

use crate::{Error, Result};
use danaus_matrix::structured::{Format, LdrClass, PixelflySizes};
use std::fmt;
use std::str::FromStr;

/// Shares of the dense parameters that ranks are tried for.
const SHARES: [f64; 9] = [0.75, 0.625, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625, 0.03125];

/// Numbers of Monarch blocks that are tried, up to the root of the smaller side: with more, slices of
/// rank one would have to go.
const BLOCKS: [usize; 11] = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];

/// Formats to choose from for every weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidates {
    /// This one.
    Only(Format),
    /// `lowrank`: any rank.
    LowRank,
    /// `monarch`: any number of blocks.
    Monarch,
    /// `pixelfly`: blocks, strides and rank by the paper's recipe for several shares.
    Pixelfly,
}

impl Candidates {
    /// What a command line may say.
    pub const VALID: &str = "lowrank(RANK), monarch(BLOCKS), butterfly, ldr(RANK), \
        pixelfly(BLOCK,SIZE,FACTORS,RANK), or lowrank, monarch and pixelfly without numbers, which are then \
        chosen for every weight";

    /// The formats that fit a weight of this shape.
    pub fn formats(self, shape: [usize; 2]) -> Vec<Format> {
        let [rows, cols] = shape;
        let smaller = rows.min(cols);
        match self {
            Self::Only(format) if fits(format, shape) => vec![format],
            Self::Only(_) => Vec::new(),
            Self::LowRank => {
                let rank =
                    |share: &f64| (share * (rows * cols) as f64 / (rows + cols) as f64) as usize;
                let mut ranks: Vec<usize> = SHARES.iter().map(rank).collect();
                ranks.dedup();
                ranks.retain(|rank| (1..=smaller).contains(rank));
                ranks.into_iter().map(Format::LowRank).collect()
            }
            Self::Monarch => {
                let few = |blocks: &usize| blocks * blocks <= smaller;
                BLOCKS.into_iter().filter(few).map(Format::Monarch).collect()
            }
            Self::Pixelfly => {
                let within = |share: &f64| PixelflySizes::within(shape, *share);
                SHARES.iter().filter_map(within).map(Format::Pixelfly).collect()
            }
        }
    }
}

/// Whether the format has a projection for this shape.
fn fits(format: Format, [rows, cols]: [usize; 2]) -> bool {
    match format {
        Format::LowRank(size) | Format::Monarch(size) => size <= rows.min(cols),
        Format::Ldr(_, rank) => rank <= rows.max(cols),
        Format::Pixelfly(sizes) => {
            sizes.rank <= rows.min(cols) && sizes.layout([rows, cols]).is_ok()
        }
        Format::Dense | Format::Butterfly | Format::Kaleidoscope => true,
    }
}

impl FromStr for Candidates {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "lowrank" => return Ok(Self::LowRank),
            "monarch" => return Ok(Self::Monarch),
            "pixelfly" => return Ok(Self::Pixelfly),
            _ => {}
        }
        match Format::try_from(text.to_string()) {
            Ok(Format::Dense | Format::Kaleidoscope) | Err(_) => {
                Err(Error::argument("format", text, Self::VALID))
            }
            Ok(Format::Ldr(class, _)) if class != LdrClass::Subdiagonal => {
                Err(Error::argument("format", text, Self::VALID))
            }
            Ok(format) => Ok(Self::Only(format)),
        }
    }
}

impl fmt::Display for Candidates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only(format) => f.write_str(&String::from(*format)),
            Self::LowRank => f.write_str("lowrank"),
            Self::Monarch => f.write_str("monarch"),
            Self::Pixelfly => f.write_str("pixelfly"),
        }
    }
}
