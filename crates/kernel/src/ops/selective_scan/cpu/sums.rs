//! Gradients of B and C: sums over channels and tasks, in a fixed order.

use super::plan::{BLOCK, Piece};
use super::reverse::Sums;
use super::{Map, Scan};
use crate::ops::ssd::cpu::rows::Target;
use crate::vector::sum_blocks;
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::Lane;
use danaus_runtime::threads::{self, SharedMut};
use half::bf16;

/// Where the gradient of B or C goes.
pub enum MapGradient<'a> {
    /// Contiguous rows of `groups * d_state`.
    Token(Target),
    /// `[channels, d_state]`.
    Constant(&'a mut [f32]),
}

/// One partial gradient of B or C for each task that adds to it: a span for constants, else a piece.
pub struct Parts {
    /// One part after the other.
    pub data: Scratch<f32>,
    /// Elements of the whole gradient.
    len: usize,
}

impl Parts {
    /// Zero parts for so many spans and pieces a group.
    pub fn new(map: &Map, scan: &Scan, spans: usize, pieces: usize) -> Self {
        let (count, len) = match map {
            Map::Constant(_) => (spans, scan.shape.state_len()),
            Map::Token(_) => (pieces, scan.shape.tokens * scan.shape.groups * scan.shape.d_state),
        };
        Self { data: Scratch::new(count * len), len }
    }

    /// Adds the parts in order.
    pub fn finish(&self, to: MapGradient) {
        match to {
            MapGradient::Constant(to) => sum_blocks(&self.data, self.len, to),
            MapGradient::Token(to) => {
                let (tasks, per_task) = threads::split(self.len, 1 << 14);
                threads::for_each(tasks, |task| {
                    let start = (task * per_task).min(self.len);
                    let end = (start + per_task).min(self.len);
                    let mut sum = Scratch::<f32>::new(end - start);
                    for part in self.data.chunks_exact(self.len.max(1)) {
                        sum.iter_mut().zip(&part[start..end]).for_each(|(sum, part)| *sum += part);
                    }
                    // SAFETY: every task has its own range.
                    unsafe {
                        match to {
                            Target::F32(to) => to.slice(start, end - start).copy_from_slice(&sum),
                            Target::Bf16(to) => {
                                let to = to.slice(start, end - start);
                                to.iter_mut().zip(&*sum).for_each(|(to, &v)| *to = bf16::round(v));
                            }
                        }
                    }
                });
            }
        }
    }
}

/// Sums of one map's gradient in a task.
pub struct MapSums {
    /// `[tokens, n, BLOCK]`, or blocks `[n, BLOCK]`.
    pub data: Scratch<f32>,
    /// Whether the map is constant.
    pub per_channel: bool,
}

impl MapSums {
    /// Zero sums.
    pub fn new(map: &Map, piece: &Piece, tile: usize, n: usize) -> Self {
        let per_channel = matches!(map, Map::Constant(_));
        let len = if per_channel { piece.blocks() } else { tile } * n * BLOCK;
        Self { data: Scratch::new(len), per_channel }
    }

    /// Forgets the last tile's tokens.
    pub fn start_tile(&mut self) {
        if !self.per_channel {
            self.data.fill(0.0);
        }
    }

    /// What block `index` adds to.
    pub fn of_block(&mut self, index: usize, n: usize) -> Sums<'_> {
        let len = n * BLOCK;
        if self.per_channel {
            Sums { data: &mut self.data[index * len..(index + 1) * len], row: 0 }
        } else {
            Sums { data: &mut self.data, row: len }
        }
    }

    /// Adds the lanes of a tile's sums and writes them to the piece's part.
    ///
    /// # Safety
    /// No other task writes to these rows and columns of the part.
    pub unsafe fn end_tile(
        &self,
        scan: &Scan,
        piece: &Piece,
        (token, rows): (usize, usize),
        to: SharedMut<f32>,
    ) {
        if self.per_channel {
            return;
        }
        let (n, groups) = (scan.shape.d_state, scan.shape.groups);
        for t in 0..rows {
            let row = piece.index * scan.shape.tokens + token + t;
            // SAFETY: promised by the caller.
            let to = unsafe { to.slice((row * groups + piece.group) * n, n) };
            let lanes = self.data[t * n * BLOCK..].chunks_exact(BLOCK);
            for (to, lanes) in to.iter_mut().zip(lanes) {
                *to = sum_lanes(lanes);
            }
        }
    }
}

/// Pairwise, so that the order is that of no instruction set.
fn sum_lanes(lanes: &[f32]) -> f32 {
    let mut sums = [0f32; BLOCK];
    sums.copy_from_slice(lanes);
    let mut width = BLOCK / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}
