//! Element masks: which scores of one tile exist, and the biases that depend on positions.
//!
//! A panel is a fixed number of score rows, one per vector lane. Rows are (query, head of the group)
//! pairs of one key head, so that grouped queries fill the lanes and share every loaded key.

use super::problem::{Problem, Sequence};
use super::tile_range::Band;
use danaus_runtime::simd::{Simd, math};
use std::ops::Range;

/// Score rows of a panel: lanes of the tiles.
pub const PANEL: usize = 64;

/// Which blocks of the score matrix are kept, as (block rows, block columns) with optional leading
/// head and batch axes.
#[derive(Clone, Copy)]
pub struct BlockMask<'a> {
    /// 0 drops the block.
    pub mask: &'a [u8],
    /// Distance between the masks of two sequences; 0 when all share one.
    pub batch_stride: usize,
    /// Distance between the masks of two heads; 0 when all share one.
    pub head_stride: usize,
    /// Blocks along the keys.
    pub columns: usize,
    /// Rows and columns of a block.
    pub block_size: usize,
}

impl BlockMask<'_> {
    /// Whether query block `row` sees key block `column`.
    pub fn kept(&self, batch: usize, head: usize, row: usize, column: usize) -> bool {
        let start = batch * self.batch_stride + head * self.head_stride;
        self.mask[start + row * self.columns + column] != 0
    }
}

/// The rows of a panel.
#[derive(Clone, Copy)]
pub struct PanelRows {
    /// Index of the sequence in the batch.
    pub batch: usize,
    /// The sequence.
    pub sequence: Sequence,
    /// Key head that all rows share.
    pub kv_head: usize,
    /// Query heads per key head.
    pub group: usize,
    /// First packed row; packed row `r` is query `r / group` of head `r % group` of the group.
    pub first: usize,
    /// Rows in use, at most [`PANEL`].
    pub count: usize,
}

impl PanelRows {
    /// Query position of a lane (the last row's for lanes beyond the count).
    pub fn query(&self, lane: usize) -> usize {
        (self.first + lane.min(self.count - 1)) / self.group
    }

    /// Query head of a lane.
    pub fn head(&self, lane: usize) -> usize {
        self.kv_head * self.group + (self.first + lane.min(self.count - 1)) % self.group
    }

    /// All query positions of the panel.
    pub fn queries(&self) -> Range<usize> {
        self.query(0)..self.query(self.count - 1) + 1
    }
}

/// How much of a tile is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Nothing: the tile is skipped.
    Empty,
    /// Some elements: the tile needs the element mask.
    Partial,
    /// Everything.
    Full,
}

/// Positions, biases and mask of one panel against one tile of keys, one value per lane.
pub struct TileMask {
    /// Key under the diagonal, relative to the tile's first key.
    diagonal: [f32; PANEL],
    /// First and last visible key, relative to the tile's first key.
    lower: [f32; PANEL],
    upper: [f32; PANEL],
    slopes: [f32; PANEL],
    /// 0 or -inf by (key block of the tile, lane); empty without a block mask.
    blocks: Vec<f32>,
    first_key: usize,
    block_size: usize,
    masked: bool,
    scale: f32,
    softcap: f32,
    has_slopes: bool,
    /// Whether scores must pass through [`TileMask::score`] with scaling.
    transforms: bool,
}

impl TileMask {
    /// The parts that do not depend on the tile.
    pub fn new(problem: &Problem, rows: &PanelRows) -> Self {
        let slope = |lane| {
            let head = rows.head(lane);
            problem.alibi.as_ref().map_or(0.0, |s| s.get(rows.batch, head, problem.heads) as f32)
        };
        Self {
            diagonal: [0.0; PANEL],
            lower: [0.0; PANEL],
            upper: [0.0; PANEL],
            slopes: if problem.alibi.is_some() { std::array::from_fn(slope) } else { [0.0; PANEL] },
            blocks: Vec::new(),
            first_key: 0,
            block_size: problem.block_mask.map_or(1, |mask| mask.block_size),
            masked: false,
            scale: problem.softmax_scale as f32,
            softcap: problem.softcap.unwrap_or(0.0) as f32,
            has_slopes: problem.alibi.is_some(),
            transforms: problem.transforms_scores(),
        }
    }

    /// Moves to a tile of keys.
    pub fn prepare(&mut self, problem: &Problem, rows: &PanelRows, keys: Range<usize>) -> Coverage {
        let sequence = &rows.sequence;
        let band = Band::new(problem.window, sequence.q_len, sequence.k_len);
        let common = band.common_keys(rows.queries());
        let in_band = common.start <= keys.start && keys.end <= common.end;
        let blocks = self.prepare_blocks(problem, rows, keys.clone());
        if blocks == Coverage::Empty {
            return Coverage::Empty;
        }
        self.first_key = keys.start;
        self.masked = !in_band || blocks == Coverage::Partial;
        if self.masked || self.has_slopes {
            // Distances beyond any tile are clamped, so that f32 holds them exactly.
            let relative = |key: i64| (key - keys.start as i64).clamp(-(1 << 23), 1 << 23) as f32;
            let diagonal = sequence.k_len as i64 - sequence.q_len as i64;
            for lane in 0..PANEL {
                let query = rows.query(lane) as i64;
                self.diagonal[lane] = relative(query + diagonal);
                self.lower[lane] = relative(band.first_key(query));
                self.upper[lane] = relative(band.last_key(query));
            }
        }
        if self.masked { Coverage::Partial } else { Coverage::Full }
    }

    fn prepare_blocks(
        &mut self,
        problem: &Problem,
        rows: &PanelRows,
        keys: Range<usize>,
    ) -> Coverage {
        let Some(mask) = problem.block_mask else { return Coverage::Full };
        self.blocks.clear();
        let (mut any, mut all) = (false, true);
        for column in keys.start / mask.block_size..keys.end.div_ceil(mask.block_size) {
            for lane in 0..PANEL {
                let row = rows.query(lane) / mask.block_size;
                let kept = mask.kept(rows.batch, rows.head(lane), row, column);
                any |= kept;
                all &= kept;
                self.blocks.push(if kept { 0.0 } else { f32::NEG_INFINITY });
            }
        }
        match (any, all) {
            (false, _) => Coverage::Empty,
            (true, false) => Coverage::Partial,
            (true, true) => Coverage::Full,
        }
    }

    /// Whether raw dot products are not yet the scores (up to the plain scale).
    pub fn is_needed(&self) -> bool {
        self.masked || self.transforms
    }

    /// Factor from what [`TileMask::score`] returns to base-2 exponents.
    pub fn exponent_factor(&self) -> f32 {
        let scale = if self.transforms { 1.0 } else { self.scale };
        scale * std::f32::consts::LOG2_E
    }

    /// Scores of one vector of lanes against key `key` of the tile: scale, softcap, bias, mask.
    ///
    /// Also returns the derivative of the softcap. Without transforms the scale is left to
    /// [`TileMask::exponent_factor`].
    #[inline(always)]
    pub fn score<S: Simd>(&self, s: S, dot: S::F, key: usize, lane: usize) -> (S::F, S::F) {
        let one = s.splat(1.0);
        let (mut x, mut derivative) = (dot, one);
        if self.transforms {
            x = s.mul(x, s.splat(self.scale));
            if self.softcap > 0.0 {
                let t = math::tanh(s, s.mul(x, s.splat(1.0 / self.softcap)));
                x = s.mul(t, s.splat(self.softcap));
                derivative = s.fma(s.sub(s.zero(), t), t, one);
            }
            if self.has_slopes {
                let distance = s.sub(load(s, &self.diagonal, lane), s.splat(key as f32));
                let slope = s.sub(s.zero(), load(s, &self.slopes, lane));
                x = s.fma(slope, s.abs(distance), x);
            }
        }
        if self.masked {
            let hidden = s.splat(f32::NEG_INFINITY);
            let position = s.splat(key as f32);
            x = s.select(s.lt(position, load(s, &self.lower, lane)), hidden, x);
            x = s.select(s.lt(load(s, &self.upper, lane), position), hidden, x);
            if !self.blocks.is_empty() {
                let key = self.first_key + key;
                let column = key / self.block_size - self.first_key / self.block_size;
                let blocks = &self.blocks[column * PANEL..(column + 1) * PANEL];
                // Adding would turn an infinite score into NaN.
                let dropped = s.lt(load(s, blocks, lane), s.zero());
                x = s.select(dropped, hidden, x);
            }
        }
        (x, derivative)
    }
}

#[inline(always)]
fn load<S: Simd>(s: S, values: &[f32], lane: usize) -> S::F {
    let values = &values[lane..lane + S::LANES];
    // SAFETY: the slice holds one vector.
    unsafe { s.load(values.as_ptr()) }
}
