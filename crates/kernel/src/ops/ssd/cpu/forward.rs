//! Forward pass: one task walks the chunks of a segment for a block of heads of one group.
//!
//! ```text
//! per chunk:           CB = C B^T
//! per chunk and head:  P = E o CB o scale,  Y = exp(alpha) (C H) + P X + D X (silu(z)),
//!                      H <- exp(alpha_last) H + B^T (leaving scale X)
//! ```
//! `H` is `[d_state, padded(head_dim)]` here, so that both products run along contiguous rows. The
//! tiles of one head stay in the second-level cache; x, B, C are read once and y is written once.

use super::super::config::{Plan, Segment, segments};
use super::decay::{Decays, MaskForward, ScaleRows};
use super::epilogue::Epilogue;
use super::rows::{Block, Target, pack, transpose, unpack};
use super::states::{Direction, Passed, pass};
use super::tile::{Fused, Inner, Product, padded};
use super::{Core, GroupTiles};
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd;
use danaus_runtime::threads::{self, SharedMut};

/// Computes `y` `[tokens, heads, head_dim]` and, where asked for, the final states.
pub fn forward(core: &Core, plan: &Plan, y: Target, final_state: Option<&mut [f32]>) {
    let segments = segments(core.runs, plan);
    let entering = pass(core, plan, &segments, Direction::Forward);
    let final_state = final_state.map(SharedMut::new);
    let blocks = plan.head_blocks(&core.shape);
    threads::for_each(segments.len() * core.shape.groups * blocks, |task| {
        let (segment, rest) =
            (task / (core.shape.groups * blocks), task % (core.shape.groups * blocks));
        let per_group = core.shape.heads_per_group();
        let (group, first) = (rest / blocks, rest % blocks * plan.head_block);
        let last = per_group.min(first + plan.head_block);
        let heads = group * per_group + first..group * per_group + last;
        let task = Task { core, tile: plan.tile, index: segment, group, heads, y, final_state };
        task.run(&segments[segment], entering.as_ref());
    });
}

struct Task<'a> {
    core: &'a Core<'a>,
    tile: usize,
    /// Of the segment.
    index: usize,
    group: usize,
    heads: std::ops::Range<usize>,
    y: Target,
    final_state: Option<SharedMut<f32>>,
}

/// Tiles of one head.
struct HeadTiles {
    decays: Decays,
    x: Scratch<f32>,
    weighted: Scratch<f32>,
    mask: Scratch<f32>,
    z: Scratch<f32>,
    y: Scratch<f32>,
}

impl HeadTiles {
    fn new(core: &Core, tile: usize) -> Self {
        let narrow = tile * padded(core.shape.head_dim);
        Self {
            decays: Decays::new(tile),
            x: Scratch::new(narrow),
            weighted: Scratch::new(narrow),
            mask: Scratch::new(tile * padded(tile)),
            z: Scratch::new(if core.z.is_some() { narrow } else { 0 }),
            y: Scratch::new(narrow),
        }
    }
}

impl Task<'_> {
    fn run(&self, segment: &Segment, entering: Option<&Passed>) {
        let (core, tile) = (self.core, self.tile);
        let len = core.shape.d_state * padded(core.shape.head_dim);
        let mut states = Scratch::<f32>::new(self.heads.len() * len);
        let mut has_state = false;
        for (slot, head) in self.heads.clone().enumerate() {
            let given = match entering {
                Some(passed) => Some(passed.state(core, self.index, head)),
                None => core.initial(segment.run, head),
            };
            if let Some(given) = given {
                has_state = true;
                load_transposed(core, given, &mut states[slot * len..(slot + 1) * len]);
            }
        }
        let leaves = segment.last && core.runs[segment.run].last.is_some();
        let leaves = leaves && self.final_state.is_some();
        let mut group = GroupTiles::new(core, tile);
        let mut tiles = HeadTiles::new(core, tile);
        for offset in (0..segment.len).step_by(tile) {
            let chunk = (segment.start + offset, tile.min(segment.len - offset));
            group.load(core, self.group, chunk);
            let state_needed = offset + tile < segment.len || leaves;
            for (slot, head) in self.heads.clone().enumerate() {
                let state = &mut states[slot * len..(slot + 1) * len];
                self.output(&group, &mut tiles, head, chunk, has_state.then_some(&*state));
                if state_needed {
                    advance(core, &group, &mut tiles, chunk.1, state);
                }
            }
            has_state = true;
        }
        if leaves {
            self.store_final(segment, &states);
        }
    }

    /// Loads one head's chunk and writes its rows of `y`.
    fn output(
        &self,
        group: &GroupTiles,
        tiles: &mut HeadTiles,
        head: usize,
        (start, rows): (usize, usize),
        state: Option<&[f32]>,
    ) {
        let core = self.core;
        let (p, heads) = (core.shape.head_dim, core.shape.heads);
        let (narrow, wide) = (padded(p), padded(core.shape.d_state));
        tiles.decays.load(core.vectors(), (start, rows), (head, heads));
        pack(core.x, (start, head * p), (rows, p), &mut tiles.x);
        let (decays, out) = (&tiles.decays, &mut *tiles.mask);
        simd::dispatch(MaskForward { decays, rows, cb: &group.cb, out });
        let inside = Product {
            left: tiles.mask.as_ptr(),
            left_row: padded(self.tile),
            left_column: 1,
            right: tiles.x.as_ptr(),
            right_row: narrow,
            inner: Inner::UpToRow(rows),
        };
        let mut fused = Fused::new(rows, narrow, &mut tiles.y, narrow).second(inside);
        if let Some(state) = state {
            let from_state = Product {
                left: group.c.as_ptr(),
                left_row: wide,
                left_column: 1,
                right: state.as_ptr(),
                right_row: narrow,
                inner: Inner::Full(core.shape.d_state),
            };
            fused = fused.first(from_state, &tiles.decays.entering);
        }
        // SAFETY: all tiles hold `rows` padded rows, the state `d_state` of them.
        unsafe { fused.run() };
        if let Some(z) = core.z {
            pack(z, (start, head * p), (rows, p), &mut tiles.z);
        }
        let d = core.d.map(|d| &d[head * p..(head + 1) * p]);
        let z = core.z.map(|_| &*tiles.z);
        if d.is_some() || z.is_some() {
            simd::dispatch(Epilogue { y: &mut tiles.y, x: &tiles.x, d, z, rows, columns: p });
        }
        let offset = (start * heads + head) * p;
        // SAFETY: these rows of `y` belong to this task.
        unsafe {
            unpack(&tiles.y, self.y, Block { offset, rows, columns: p, stride: heads * p });
        }
    }

    fn store_final(&self, segment: &Segment, states: &[f32]) {
        let (Some(target), Some(index)) = (self.final_state, self.core.runs[segment.run].last)
        else {
            return;
        };
        let (p, n) = (self.core.shape.head_dim, self.core.shape.d_state);
        let width = padded(p);
        for (slot, head) in self.heads.clone().enumerate() {
            // SAFETY: the final state of this run and head belongs to this task.
            let to = unsafe { target.slice((index * self.core.shape.heads + head) * p * n, p * n) };
            let from = &states[slot * n * width..(slot + 1) * n * width];
            for row in 0..p {
                for column in 0..n {
                    to[row * n + column] = from[column * width + row];
                }
            }
        }
    }
}

/// `H <- exp(alpha_last) H + B^T (leaving scale X)`, with the tiles that [`Task::output`] loaded.
fn advance(core: &Core, group: &GroupTiles, tiles: &mut HeadTiles, rows: usize, state: &mut [f32]) {
    let width = padded(core.shape.head_dim);
    let factor = &*tiles.decays.weight;
    simd::dispatch(ScaleRows { from: &tiles.x, factor, rows, width, out: &mut tiles.weighted });
    let product = Product {
        left: group.b.as_ptr(),
        left_row: 1,
        left_column: padded(core.shape.d_state),
        right: tiles.weighted.as_ptr(),
        right_row: width,
        inner: Inner::Full(rows),
    };
    let fused = Fused::new(core.shape.d_state, width, state, width);
    // SAFETY: the tiles hold `rows` padded rows, the state `d_state` of them.
    unsafe { fused.scaled(tiles.decays.total).second(product).run() };
}

/// A public `[p, n]` state as `[n, padded(p)]`.
fn load_transposed(core: &Core, from: &[f32], to: &mut [f32]) {
    let (p, n) = (core.shape.head_dim, core.shape.d_state);
    let mut rows = Scratch::<f32>::new(p * padded(n));
    pack(super::rows::Rows::f32(from, n), (0, 0), (p, n), &mut rows);
    transpose(&rows, (p, n), to);
}
