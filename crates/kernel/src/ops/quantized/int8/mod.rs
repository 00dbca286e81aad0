//! Products over integers: x rounded to eight bits on the fly.
//!
//! The numeric mode [`Activations::Int8`]. Every 32 elements of a row of x share a scale (`rounded.rs`);
//! products of their codes with those of W are summed exactly in 32 bits, and one multiplication a
//! group brings both scales in. Arithmetic is four times as dense as in f32 and weights are never
//! widened, at the price of rounding x:
//!
//! `|y - exact| <= sum over groups of max|x| / 254 * sum of |w|`, beside the f32 rounding of sums.
//!
//! A row of y has the same bits in any batch, on any number of threads, and on every instruction set:
//! integer sums are exact, and the order of the others is fixed (`tile.rs`).
//!
//! # Method
//! A lane is a row of W (`lanes.rs`). One row of x: codes go from blocks through registers into
//! `vpdpbusd`. More: sixteen rows of W are decoded once to a panel in the first-level cache, and tiles
//! of eight rows of x run over it.

pub(super) mod formats;
mod lanes;
mod rounded;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

use super::BlockType;
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{Isa, has_int8_dot, isa};
use danaus_tensor::{Error, Result};
use formats::{Codes, with_codes};
use lanes::Lanes;
use rounded::{Rounded, Starts};

/// In which numbers a quantised product is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// x as it is, times the decoded weights.
    #[default]
    F32,
    /// x rounded to eight bits in groups of 32, times the codes of the weights.
    Int8,
}

/// Types that [`Activations::Int8`] takes.
pub const INTEGER: [BlockType; 8] = [
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q5_1,
    BlockType::Q8_0,
    BlockType::Q4K,
    BlockType::Q5K,
    BlockType::Q6K,
];

impl Activations {
    /// What an operator's attribute may say.
    pub const VALID: &str = "f32 or int8";

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Activations::F32 => "f32",
            Activations::Int8 => "int8",
        }
    }

    /// The mode of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn from_name(name: &str) -> Result<Self> {
        let named = |mode: &Self| mode.name() == name;
        [Activations::F32, Activations::Int8]
            .into_iter()
            .find(named)
            .ok_or_else(|| Error::argument("quantized_linear", "activations", name, Self::VALID))
    }

    /// This mode where the type has it, else f32: what a model of several types does.
    #[must_use]
    pub fn of_type(self, kind: BlockType) -> Self {
        if INTEGER.contains(&kind) { self } else { Activations::F32 }
    }

    /// Refuses types that the mode does not take.
    pub(super) fn check(self, kind: BlockType) -> Result<()> {
        if self.of_type(kind) == self {
            return Ok(());
        }
        let valid = INTEGER.map(BlockType::name).join(", ");
        Err(Error::argument("quantized_linear", "block_type", kind, format!("{valid} with int8")))
    }
}

/// Rows of W that a task has a multiple of.
pub(super) const TILE_ROWS: usize = 16;

/// Rounds the rows of x for products with a type.
pub(super) fn round(kind: BlockType, x: &[f32], cols: usize) -> Rounded {
    let starts = with_codes!(
        kind,
        F => Starts { offset: F::OFFSET, scales: F::SCALES },
        else unreachable!("{kind} was refused")
    );
    Rounded::new(x, cols, starts)
}

/// Products of some rows of W with all rows of x, `[count, stride]` with `stride` the number of rows
/// rounded up to [`TILE_ROWS`].
pub(super) fn multiply(kind: BlockType, blocks: &[u8], rows: usize, x: &Rounded, sums: &mut [f32]) {
    let stride = rows.next_multiple_of(TILE_ROWS);
    let whole = rows / TILE_ROWS * TILE_ROWS;
    let row_bytes = blocks.len() / rows.max(1);
    let (complete, rest) = blocks.split_at(whole * row_bytes);
    run(kind, tile::Rows { blocks: complete, rows: whole, x, sums, stride });
    if whole < rows {
        // Rows that do not exist are zero, and their sums are not read.
        let mut padded = Scratch::<u8>::new(TILE_ROWS * row_bytes);
        padded[..rest.len()].copy_from_slice(rest);
        let sums = &mut sums[whole..];
        run(kind, tile::Rows { blocks: &padded, rows: TILE_ROWS, x, sums, stride });
    }
}

fn run(kind: BlockType, task: tile::Rows) {
    with_codes!(kind, F => dispatch::<F>(task), else unreachable!("{kind} was refused"));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,bmi1,bmi2")]
fn run_vnni<F: Codes>(task: tile::Rows) {
    // SAFETY: the instructions are enabled here.
    unsafe { tile::multiply::<_, F>(x86::Vnni::new(), task) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
fn run_avx2<F: Codes>(task: tile::Rows) {
    // SAFETY: the instructions are enabled here.
    unsafe { tile::multiply::<_, F>(x86::Avx2::new(), task) }
}

fn dispatch<F: Codes>(task: tile::Rows) {
    match isa() {
        // SAFETY: the processor was found to have the instructions.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if has_int8_dot() => unsafe { run_vnni::<F>(task) },
        // SAFETY: as above; AVX-512 includes AVX2.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => unsafe { run_avx2::<F>(task) },
        // SAFETY: nothing special is needed.
        _ => unsafe { tile::multiply::<_, F>(lanes::Portable, task) },
    }
}

const _: () = assert!(TILE_ROWS.is_multiple_of(<lanes::Portable as Lanes>::ROWS), "whole vectors");
