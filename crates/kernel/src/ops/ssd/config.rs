//! Shape to tiling: pure functions, so that results depend on the shape alone and never on the number
//! of threads.

use super::runs::Run;

/// Chunk length of the CPU kernel. At 64 the work inside a chunk and the work on the state balance for
/// `d_state` 64 to 128, and every tile of a head fits the second-level cache.
pub const TILE: usize = 64;
/// Chunks whose entering states backward keeps at a time; longer runs restart from a checkpoint.
pub const BACKWARD_WINDOW: usize = 32;
/// Fewer tasks than this leave cores idle, so a problem with few sequences and heads is cut along time.
const MIN_TASKS: usize = 8;
const MAX_TASKS: usize = 64;
/// Work that is worth a task of its own, in multiply-adds.
const TASK_WORK: usize = 128 << 20;
/// Chunks below which a piece of a sequence is not cut further.
const MIN_SEGMENT: usize = 8;

/// Sizes of one problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of the packed arrays: batch times seqlen.
    pub tokens: usize,
    /// `h`.
    pub heads: usize,
    /// `g`; divides `heads`. Head `i` reads group `i / (heads / groups)` of B and C.
    pub groups: usize,
    /// `p`.
    pub head_dim: usize,
    /// `n`.
    pub d_state: usize,
}

impl Shape {
    /// Heads that share one B and C.
    pub fn heads_per_group(&self) -> usize {
        self.heads / self.groups.max(1)
    }

    /// Elements of one sequence's state.
    pub fn state_len(&self) -> usize {
        self.heads * self.head_dim * self.d_state
    }

    /// Multiply-adds of the forward pass.
    fn work(&self) -> usize {
        let per_head = TILE / 2 * self.head_dim + 2 * self.head_dim * self.d_state;
        self.tokens * self.heads * per_head
    }
}

/// How a problem is cut into tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Rows of a chunk.
    pub tile: usize,
    /// Heads of one group that a task walks together, sharing the product of C and B.
    pub head_block: usize,
    /// Chunks of a run that a task walks in order; a longer run is cut and its pieces are joined by
    /// passing states.
    pub segment: usize,
}

impl Plan {
    /// The plan of the forward pass. `chunk_size` bounds the tile from above.
    pub fn forward(shape: &Shape, runs: &[Run], chunk_size: Option<usize>) -> Self {
        let tile = chunk_size.unwrap_or(TILE).clamp(1, TILE);
        let wanted = (shape.work() / TASK_WORK).clamp(MIN_TASKS, MAX_TASKS);
        let (head_block, tasks) = head_block(shape, runs.len(), wanted);
        let longest = runs.iter().map(|run| run.len.div_ceil(tile)).max().unwrap_or(0);
        let segment = if tasks >= wanted.min(MIN_TASKS) {
            longest.max(1)
        } else {
            longest.div_ceil(MIN_TASKS.div_ceil(tasks)).max(MIN_SEGMENT)
        };
        Self { tile, head_block, segment }
    }

    /// The plan of the backward pass: as forward, with pieces of at most [`BACKWARD_WINDOW`] chunks.
    pub fn backward(shape: &Shape, runs: &[Run], chunk_size: Option<usize>) -> Self {
        let mut plan = Self::forward(shape, runs, chunk_size);
        plan.segment = plan.segment.min(BACKWARD_WINDOW);
        plan
    }

    /// Number of head blocks in a group.
    pub fn head_blocks(&self, shape: &Shape) -> usize {
        shape.heads_per_group().div_ceil(self.head_block)
    }
}

/// The largest block of heads that still gives `wanted` tasks, and the tasks it gives.
fn head_block(shape: &Shape, runs: usize, wanted: usize) -> (usize, usize) {
    let per_group = shape.heads_per_group().max(1);
    let outer = (runs * shape.groups).max(1);
    let blocks = wanted.div_ceil(outer).clamp(1, per_group);
    let block = per_group.div_ceil(blocks);
    (block, outer * per_group.div_ceil(block))
}

/// A piece of a run that one task walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Which run it belongs to.
    pub run: usize,
    /// First row.
    pub start: usize,
    /// Rows.
    pub len: usize,
    /// Whether the run starts here.
    pub first: bool,
    /// Whether the run ends here.
    pub last: bool,
}

/// Cuts runs into segments of `chunks * tile` rows, in order. A run without rows keeps one segment.
pub fn segments(runs: &[Run], plan: &Plan) -> Vec<Segment> {
    let rows = plan.segment.saturating_mul(plan.tile);
    let mut list = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let mut done = 0;
        loop {
            let len = rows.min(run.len - done);
            let (first, last) = (done == 0, done + len == run.len);
            list.push(Segment { run: index, start: run.start + done, len, first, last });
            done += len;
            if last {
                break;
            }
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::ssd::runs;

    fn shape(tokens: usize, heads: usize) -> Shape {
        Shape { tokens, heads, groups: 1, head_dim: 64, d_state: 128 }
    }

    #[test]
    fn many_tasks_need_no_cut_along_time() {
        let plan = Plan::forward(&shape(2048, 24), &runs::from_batch(1, 2048), None);
        assert_eq!(plan, Plan { tile: 64, head_block: 3, segment: 32 });
        let plan = Plan::forward(&shape(2048, 8), &runs::from_batch(8, 256), Some(256));
        assert_eq!(plan, Plan { tile: 64, head_block: 8, segment: 4 });
    }

    #[test]
    fn a_long_sequence_with_few_heads_is_cut() {
        let runs = runs::from_batch(1, 64 * 1000 + 3);
        let plan = Plan::forward(&shape(64 * 1000 + 3, 1), &runs, None);
        assert_eq!(plan, Plan { tile: 64, head_block: 1, segment: 126 });
        let list = segments(&runs, &plan);
        assert_eq!(list.len(), 8);
        assert_eq!(list.iter().map(|segment| segment.len).sum::<usize>(), 64_003);
        assert!(list[0].first && list[7].last && !list[3].first);
    }
}
