//! Shape to tasks: pure functions, so that results depend on the shape alone and never on the number of
//! threads.

use super::super::Shape;
use crate::ops::ssd::cpu::tile::PAD;
use crate::ops::ssd::runs::Run;
use std::ops::Range;

/// Channels that are walked together, one register each of one or two vectors.
pub const BLOCK: usize = PAD;
/// Blocks of a task at most: 128 channels are eight cache lines of a row.
const MAX_BLOCKS: usize = 8;
/// Pieces of the channels that are wanted at least, so that one sequence keeps a few cores busy.
const MIN_PIECES: usize = 8;
/// Tokens of a forward tile: five tiles of 128 channels stay in the second-level cache.
const TILE: usize = 32;
/// Numbers of a block's states that the backward pass keeps per channel.
const KEPT: usize = 512;
/// Spans of the sequences at most; the backward pass keeps one gradient of A for each.
const MAX_SPANS: usize = 16;
/// Exponentials that are worth a task of their own.
const TASK_WORK: usize = 1 << 16;

/// Channels of one group that a task walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Their group.
    pub group: usize,
    /// Position among the pieces of its group.
    pub index: usize,
    /// First channel.
    pub first: usize,
    /// Number of channels.
    pub channels: usize,
}

impl Piece {
    /// Blocks of channels, the last one possibly with unused lanes.
    pub fn blocks(&self) -> usize {
        self.channels.div_ceil(BLOCK)
    }

    /// Columns of a tile.
    pub fn width(&self) -> usize {
        self.blocks() * BLOCK
    }
}

/// Cuts the channels. Depends on channels and groups only, so that the sums over channels in the
/// gradients of B and C do not depend on what else is in the batch.
pub fn pieces(shape: &Shape) -> Vec<Piece> {
    let per_group = shape.channels_per_group();
    let wanted = MIN_PIECES.div_ceil(shape.groups);
    let blocks = per_group.div_ceil(BLOCK).div_ceil(wanted).clamp(1, MAX_BLOCKS);
    let width = blocks * BLOCK;
    let mut list = Vec::new();
    for group in 0..shape.groups {
        for (index, start) in (0..per_group).step_by(width).enumerate() {
            let channels = width.min(per_group - start);
            list.push(Piece { group, index, first: group * per_group + start, channels });
        }
    }
    list
}

/// Pieces of every group.
pub fn pieces_per_group(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.index + 1).max().unwrap_or(0)
}

/// Cuts the list of sequences into spans of about equally many tokens.
pub fn spans(shape: &Shape, runs: &[Run]) -> Vec<Range<usize>> {
    let channels = shape.channels_per_group().min(MAX_BLOCKS * BLOCK);
    let least = TASK_WORK.div_ceil(channels * shape.d_state);
    let target = shape.tokens.div_ceil(MAX_SPANS).max(least);
    let (mut list, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (index, run) in runs.iter().enumerate() {
        tokens += run.len;
        if tokens >= target {
            list.push(start..index + 1);
            (start, tokens) = (index + 1, 0);
        }
    }
    if start < runs.len() {
        list.push(start..runs.len());
    }
    list
}

/// Tokens of a forward tile.
pub fn forward_tile() -> usize {
    TILE
}

/// Tokens of a backward tile: it keeps `d_state` states, decays and two gradients a token.
pub fn backward_tile(d_state: usize) -> usize {
    (KEPT / d_state).clamp(4, TILE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::ssd::runs;

    fn shape(tokens: usize, channels: usize, groups: usize) -> Shape {
        Shape { tokens, channels, groups, d_state: 16 }
    }

    #[test]
    fn pieces_cover_every_channel_once() {
        for (channels, groups, expected) in [(1536, 1, 12), (256, 1, 8), (3, 1, 1), (40, 2, 4)] {
            let list = pieces(&shape(1, channels, groups));
            assert_eq!(list.len(), expected, "{channels} channels, {groups} groups");
            let mut next = 0;
            for piece in &list {
                assert_eq!((piece.first, piece.group), (next, next / (channels / groups)));
                next += piece.channels;
            }
            assert_eq!(next, channels);
        }
    }

    #[test]
    fn spans_cover_every_sequence_once() {
        let one = spans(&shape(1024, 1536, 1), &runs::from_batch(1, 1024));
        assert_eq!((one.len(), one[0].clone()), (1, 0..1));
        let many = spans(&shape(64 * 1000, 1536, 1), &runs::from_batch(1000, 64));
        assert_eq!((many.len(), many[0].clone(), many[15].end), (16, 0..63, 1000));
        let steps = spans(&shape(64, 1536, 1), &runs::from_batch(64, 1));
        assert_eq!(steps, [0..32, 32..64]);
        assert!(spans(&shape(0, 3, 1), &[]).is_empty());
    }
}
