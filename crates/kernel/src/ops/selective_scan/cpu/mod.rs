//! The scan on the processor, for f32 and bf16 arrays with f32 arithmetic.
//!
//! * [`plan`]: which channels and sequences a task takes;
//! * [`forward`], [`backward`]: the passes over tiles of tokens, built from `step` (step sizes), `sweep`
//!   (the recurrence), `reverse` (its gradient) and `sums` (over channels and tasks).
//!
//! Vectors run over channels: a lane holds one channel, its `d_state` numbers lie one vector apart, and
//! neither the read-out nor any other sum crosses lanes. Running over `d_state` instead needs a sum
//! across lanes for every channel and token and wastes lanes unless `d_state` is a multiple of the
//! vector; running over channels is bound by the exponentials. Decay rates are multiplied by log2 e once
//! a call, so that an exponential is a power of two.
//!
//! Tasks are blocks of channels times spans of sequences, a function of the shape alone. All offsets are
//! `usize`.

pub mod backward;
pub mod forward;
pub mod plan;
mod reverse;
mod step;
mod sums;
mod sweep;

pub use sums::MapGradient;

use super::Shape;
use crate::ops::ssd::cpu::rows::{Block, Rows, Target, pack, unpack};
use crate::ops::ssd::cpu::tile::padded;
use crate::ops::ssd::runs::Run;
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd;
use danaus_runtime::threads::SharedMut;
use plan::{BLOCK, Piece};

/// B or C.
#[derive(Clone, Copy)]
pub enum Map<'a> {
    /// Rows of `groups * d_state`.
    Token(Rows<'a>),
    /// `[channels, d_state]`.
    Constant(&'a [f32]),
}

/// Inputs of the passes.
pub struct Scan<'a> {
    /// Sizes.
    pub shape: Shape,
    /// The sequences.
    pub runs: &'a [Run],
    /// Rows of `channels`.
    pub u: Rows<'a>,
    /// Rows of `channels`, before bias and softplus.
    pub delta: Rows<'a>,
    /// Whether softplus is applied to `delta + delta_bias`.
    pub delta_softplus: bool,
    /// `[channels]`.
    pub delta_bias: Option<&'a [f32]>,
    /// `[channels, d_state]`.
    pub a: &'a [f32],
    /// What is written to the state.
    pub b: Map<'a>,
    /// What is read from it.
    pub c: Map<'a>,
    /// `[channels]`.
    pub d: Option<&'a [f32]>,
    /// Rows of `channels`.
    pub z: Option<Rows<'a>>,
    /// `[states, channels, d_state]`.
    pub initial_states: Option<&'a [f32]>,
}

/// A NaN was found in `delta`; the results mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NanInDelta;

/// `[channels, d_state]` numbers of a piece's channels as blocks `[d_state, BLOCK]`, times `factor`;
/// lanes without a channel are 0.
fn to_blocks(from: &[f32], piece: &Piece, n: usize, factor: f32, to: &mut [f32]) {
    for (index, block) in to.chunks_exact_mut(n * BLOCK).take(piece.blocks()).enumerate() {
        let first = index * BLOCK;
        let count = BLOCK.min(piece.channels - first);
        let rows = &from[(piece.first + first) * n..(piece.first + first + count) * n];
        for (k, lanes) in block.chunks_exact_mut(BLOCK).enumerate() {
            if count < BLOCK {
                lanes.fill(0.0);
            }
            for (lane, row) in lanes.iter_mut().zip(rows.chunks_exact(n)) {
                *lane = row[k] * factor;
            }
        }
    }
}

/// The reverse of [`to_blocks`], `to` being the piece's rows alone.
fn from_blocks(from: &[f32], piece: &Piece, n: usize, to: &mut [f32]) {
    for (index, rows) in to.chunks_mut(n * BLOCK).enumerate() {
        let block = &from[index * n * BLOCK..(index + 1) * n * BLOCK];
        for (lane, row) in rows.chunks_exact_mut(n).enumerate() {
            for (k, value) in row.iter_mut().enumerate() {
                *value = block[k * BLOCK + lane];
            }
        }
    }
    debug_assert_eq!(to.len(), piece.channels * n);
}

/// Numbers of a piece's channels, one a channel, padded with 0.
fn per_channel(from: Option<&[f32]>, piece: &Piece) -> Scratch<f32> {
    let mut to = Scratch::new(piece.width());
    if let Some(from) = from {
        to[..piece.channels].copy_from_slice(&from[piece.first..piece.first + piece.channels]);
    }
    to
}

/// B or C as a task reads it.
struct TaskMap<'a> {
    /// The source, where there is one value a token.
    rows: Option<Rows<'a>>,
    /// First column of the group.
    column: usize,
    n: usize,
    /// A tile of tokens, rows `padded(n)` long; or blocks of constants.
    values: Scratch<f32>,
}

impl<'a> TaskMap<'a> {
    fn new(map: Map<'a>, piece: &Piece, n: usize, tile: usize) -> Self {
        let column = piece.group * n;
        match map {
            Map::Token(rows) => {
                let values = Scratch::new(tile * padded(n));
                Self { rows: Some(rows), column, n, values }
            }
            Map::Constant(from) => {
                let mut values = Scratch::new(piece.blocks() * n * BLOCK);
                to_blocks(from, piece, n, 1.0, &mut values);
                Self { rows: None, column, n, values }
            }
        }
    }

    /// Reads the rows of a tile.
    fn load(&mut self, token: usize, rows: usize) {
        if let Some(from) = self.rows {
            pack(from, (token, self.column), (rows, self.n), &mut self.values);
        }
    }

    /// What block `index` reads.
    fn of_block(&self, index: usize) -> sweep::Values<'_> {
        if self.rows.is_some() {
            let row = padded(self.n);
            sweep::Values { data: &self.values, row, per_channel: false }
        } else {
            let len = self.n * BLOCK;
            let data = &self.values[index * len..(index + 1) * len];
            sweep::Values { data, row: 0, per_channel: true }
        }
    }
}

/// Tiles of a task, `tokens x width`.
struct Tiles {
    u: Scratch<f32>,
    /// `delta + delta_bias`.
    raw: Scratch<f32>,
    /// Step sizes.
    delta: Scratch<f32>,
    z: Scratch<f32>,
    y: Scratch<f32>,
}

impl Tiles {
    fn new(tokens: usize, piece: &Piece, gated: bool) -> Self {
        let new = || Scratch::new(tokens * piece.width());
        let z = if gated { new() } else { Scratch::new(0) };
        Self { u: new(), raw: new(), delta: new(), z, y: new() }
    }

    /// Reads a tile of `u` and `delta`; whether `delta` is free of NaN.
    fn load(
        &mut self,
        scan: &Scan,
        piece: &Piece,
        bias: &[f32],
        token: usize,
        rows: usize,
    ) -> bool {
        pack(scan.u, (token, piece.first), (rows, piece.channels), &mut self.u);
        pack(scan.delta, (token, piece.first), (rows, piece.channels), &mut self.raw);
        let len = rows * piece.width();
        simd::dispatch(step::Steps {
            raw: &mut self.raw[..len],
            delta: &mut self.delta[..len],
            bias,
            softplus: scan.delta_softplus,
        })
    }
}

/// The entering state of a run for a piece.
fn enter(scan: &Scan, run: &Run, piece: &Piece, state: &mut [f32]) {
    let (n, len) = (scan.shape.d_state, scan.shape.state_len());
    match (scan.initial_states, run.initial) {
        (Some(states), Some(index)) => {
            to_blocks(&states[index * len..(index + 1) * len], piece, n, 1.0, state);
        }
        _ => state.fill(0.0),
    }
}

/// Writes a piece's part of state `index`.
///
/// # Safety
/// The state lies in `states` and no other task touches its part.
unsafe fn leave(scan: &Scan, index: usize, piece: &Piece, state: &[f32], states: SharedMut<f32>) {
    let n = scan.shape.d_state;
    let start = (index * scan.shape.channels + piece.first) * n;
    // SAFETY: promised by the caller.
    let part = unsafe { states.slice(start, piece.channels * n) };
    from_blocks(state, piece, n, part);
}

/// Everything a task needs to know about its channels.
struct Parameters {
    /// Decay rates times log2 e, in blocks.
    a: Scratch<f32>,
    bias: Scratch<f32>,
    d: Scratch<f32>,
}

impl Parameters {
    fn new(scan: &Scan, piece: &Piece) -> Self {
        let mut a = Scratch::new(piece.blocks() * scan.shape.d_state * BLOCK);
        to_blocks(scan.a, piece, scan.shape.d_state, std::f32::consts::LOG2_E, &mut a);
        Self { a, bias: per_channel(scan.delta_bias, piece), d: per_channel(scan.d, piece) }
    }
}

/// Writes a tile to contiguous rows of `channels`.
///
/// # Safety
/// No other task touches these rows and channels.
unsafe fn write(
    scan: &Scan,
    piece: &Piece,
    (token, rows): (usize, usize),
    tile: &[f32],
    to: Target,
) {
    let stride = scan.shape.channels;
    let offset = token * stride + piece.first;
    // SAFETY: promised by the caller; the rows exist.
    unsafe { unpack(tile, to, Block { offset, rows, columns: piece.channels, stride }) };
}
