//! Backward pass: one task walks the chunks of a segment in reverse for a block of heads of one group.
//!
//! With `G` the cotangent of `y`, `H` the state entering a chunk, `dH` the gradient of the leaving one
//! and `E` the decay mask, per chunk and head:
//!
//! ```text
//! W = E o CB,  M = E o (G X^T) o scale
//! du = leaving (B dH^T) + W^T G             dx = scale du + D G,  dscale_j = x_j . du_j
//! dC += exp(alpha) (G H) + M B              dB += leaving scale (X dH) + M^T C
//! dlog_decay_k = sum over i >= k > j of M_ij CB_ij
//!              + sum over i >= k of exp(alpha_i) (G_i H) . C_i
//!              + sum over j < k of leaving_j scale_j (X_j dH) . B_j  +  exp(alpha_last) <H, dH>
//! dH <- exp(alpha_last) dH + (exp(alpha) G)^T C
//! ```
//!
//! All four parts of the decay's gradient are plain sums. The well-known shortcut through `y . dy` and
//! `u . du` subtracts two large sums and loses the gradient in single precision.
//! Entering states are recomputed for one segment at a time; dB and dC of several head blocks are
//! added in a fixed order.

use super::super::config::{Plan, Segment, segments};
use super::chunk::{Dot, Finish, decay_gradient};
use super::decay::{Decays, MaskBackward, ScaleRows};
use super::rows::{Block, Rows, Target, pack, transpose, unpack};
use super::states::{Direction, Passed, Sweep, load_state, outer, pass, store_state};
use super::tile::{Fused, Inner, Product, padded};
use super::{Core, GroupTiles, reduce};
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd;
use danaus_runtime::threads::{self, SharedMut};

/// Cotangents.
#[derive(Clone, Copy)]
pub struct Cotangents<'a> {
    /// Of `y`, before the gate: rows of `heads * head_dim`.
    pub y: Rows<'a>,
    /// Of the final states.
    pub final_state: Option<&'a [f32]>,
}

/// Where the gradients go; contiguous, shaped like the inputs.
pub struct Gradients<'a> {
    /// Of `x`.
    pub x: Target,
    /// Of `B`.
    pub b: Target,
    /// Of `C`.
    pub c: Target,
    /// Of the log-decays.
    pub log_decay: &'a mut [f32],
    /// Of the scales.
    pub scale: &'a mut [f32],
    /// Of the skip factors, `[heads, head_dim]`.
    pub d: Option<&'a mut [f32]>,
    /// Of the initial states.
    pub initial_states: Option<&'a mut [f32]>,
}

/// Computes all gradients.
pub fn backward(core: &Core, plan: &Plan, cotangents: &Cotangents, gradients: Gradients) {
    let segments = segments(core.runs, plan);
    let shape = &core.shape;
    let entering = pass(core, plan, &segments, Direction::Forward);
    let direction = Direction::Backward(cotangents.y, cotangents.final_state);
    let leaving = pass(core, plan, &segments, direction);
    let blocks = plan.head_blocks(shape);
    let wide_len = shape.tokens * shape.groups * shape.d_state;
    // One head block writes dB and dC itself; several leave partial sums.
    let mut partial = Scratch::<f32>::new(if blocks > 1 { 2 * blocks * wide_len } else { 0 });
    let narrow_len = shape.heads * shape.head_dim;
    let mut dd_partial = Scratch::<f32>::new(segments.len() * narrow_len);
    let shared = Shared {
        partial: SharedMut::new(&mut partial),
        dd: SharedMut::new(&mut dd_partial),
        log_decay: SharedMut::new(gradients.log_decay),
        scale: SharedMut::new(gradients.scale),
        initial_states: gradients.initial_states.map(SharedMut::new),
        x: gradients.x,
        b: gradients.b,
        c: gradients.c,
    };
    let per_segment = shape.groups * blocks;
    threads::for_each(segments.len() * per_segment, |task| {
        let (index, rest) = (task / per_segment, task % per_segment);
        let (group, block) = (rest / blocks, rest % blocks);
        let per_group = shape.heads_per_group();
        let first = block * plan.head_block;
        let last = per_group.min(first + plan.head_block);
        let heads = group * per_group + first..group * per_group + last;
        let segment = segments[index];
        let (tile, shared) = (plan.tile, &shared);
        let task = Task { core, tile, index, segment, group, block, blocks, heads, shared };
        task.run(cotangents, entering.as_ref(), leaving.as_ref());
    });
    if blocks > 1 {
        let (db, dc) = partial.split_at(blocks * wide_len);
        reduce(db, blocks, shared.b);
        reduce(dc, blocks, shared.c);
    }
    if let Some(d) = gradients.d {
        reduce(&dd_partial, segments.len(), Target::f32(d));
    }
}

/// Outputs that tasks write to, each its own part.
struct Shared {
    partial: SharedMut<f32>,
    dd: SharedMut<f32>,
    log_decay: SharedMut<f32>,
    scale: SharedMut<f32>,
    initial_states: Option<SharedMut<f32>>,
    x: Target,
    b: Target,
    c: Target,
}

struct Task<'a> {
    core: &'a Core<'a>,
    tile: usize,
    /// Of the segment.
    index: usize,
    segment: Segment,
    group: usize,
    block: usize,
    blocks: usize,
    heads: std::ops::Range<usize>,
    shared: &'a Shared,
}

/// Tiles of one head and the accumulators of the group.
struct Tiles {
    decays: Decays,
    x: Scratch<f32>,
    x_transposed: Scratch<f32>,
    g: Scratch<f32>,
    g_scaled: Scratch<f32>,
    m: Scratch<f32>,
    w: Scratch<f32>,
    du: Scratch<f32>,
    dstate_transposed: Scratch<f32>,
    db: Scratch<f32>,
    dc: Scratch<f32>,
    columns: Scratch<f32>,
    inside: Scratch<f32>,
    from_entering: Scratch<f32>,
    to_leaving: Scratch<f32>,
}

impl Tiles {
    fn new(core: &Core, tile: usize) -> Self {
        let (p, n) = (core.shape.head_dim, core.shape.d_state);
        let scratch = |len: usize| Scratch::<f32>::new(len);
        let (narrow, wide, square) = (tile * padded(p), tile * padded(n), tile * padded(tile));
        let vector = padded(tile);
        Self {
            decays: Decays::new(tile),
            x: scratch(narrow),
            x_transposed: scratch(p * padded(tile)),
            g: scratch(narrow),
            g_scaled: scratch(narrow),
            m: scratch(square),
            w: scratch(square),
            du: scratch(narrow),
            dstate_transposed: scratch(n * padded(p)),
            db: scratch(wide),
            dc: scratch(wide),
            columns: scratch(vector),
            inside: scratch(vector),
            from_entering: scratch(vector),
            to_leaving: scratch(vector),
        }
    }
}

impl Task<'_> {
    fn run(&self, cotangents: &Cotangents, entering: Option<&Passed>, leaving: Option<&Passed>) {
        let core = self.core;
        let state_len = core.shape.head_dim * padded(core.shape.d_state);
        let (states, given) = self.recompute_states(entering);
        let mut dstates = Scratch::<f32>::new(self.heads.len() * state_len);
        let mut has_dstate = false;
        for (slot, head) in self.heads.clone().enumerate() {
            let from = match leaving {
                Some(passed) => Some(passed.state(core, self.index, head)),
                None => core.dfinal(cotangents.final_state, self.segment.run, head),
            };
            has_dstate |= from.is_some();
            load_state(core, from, &mut dstates[slot * state_len..(slot + 1) * state_len]);
        }
        let wants_initial = self.segment.first
            && self.shared.initial_states.is_some()
            && core.runs[self.segment.run].initial.is_some();
        let mut group = GroupTiles::new(core, self.tile);
        let mut tiles = Tiles::new(core, self.tile);
        for chunk in (0..self.segment.len.div_ceil(self.tile)).rev() {
            let offset = chunk * self.tile;
            let rows = (self.segment.start + offset, self.tile.min(self.segment.len - offset));
            group.load(core, self.group, rows);
            tiles.db.fill(0.0);
            tiles.dc.fill(0.0);
            for (slot, head) in self.heads.clone().enumerate() {
                let at = (chunk * self.heads.len() + slot) * state_len;
                let state = (given || chunk > 0).then(|| &states[at..at + state_len]);
                let dstate = &mut dstates[slot * state_len..(slot + 1) * state_len];
                self.load_head(&group, &mut tiles, cotangents, head, rows);
                self.wide_gradients(
                    &group,
                    &mut tiles,
                    rows.1,
                    state,
                    has_dstate.then_some(&*dstate),
                );
                let both = has_dstate.then_some(state).flatten();
                let across = both.map_or(0.0, |state| simd::dispatch(Dot(state, dstate)));
                self.finish(&mut tiles, head, rows, across);
                if chunk > 0 || wants_initial {
                    let (factor, width) = (&*tiles.decays.entering, padded(core.shape.head_dim));
                    let (from, rows, out) = (&*tiles.g, rows.1, &mut *tiles.g_scaled);
                    simd::dispatch(ScaleRows { from, factor, rows, width, out });
                    outer(core, rows, (&tiles.g_scaled, &group.c), tiles.decays.total, dstate);
                }
            }
            has_dstate = true;
            self.store_wide(&tiles, rows);
        }
        if wants_initial {
            self.store_initial(&dstates);
        }
    }

    /// States entering every chunk of the segment, `[chunks, heads, p, padded(n)]`, and whether the
    /// first of them may differ from zero.
    fn recompute_states(&self, entering: Option<&Passed>) -> (Scratch<f32>, bool) {
        let core = self.core;
        let state_len = core.shape.head_dim * padded(core.shape.d_state);
        let chunks = self.segment.len.div_ceil(self.tile);
        let stride = self.heads.len() * state_len;
        let mut states = Scratch::<f32>::new(chunks.max(1) * stride);
        let mut sweep = Sweep::new(core, self.tile);
        let mut given = false;
        for (slot, head) in self.heads.clone().enumerate() {
            let from = match entering {
                Some(passed) => Some(passed.state(core, self.index, head)),
                None => core.initial(self.segment.run, head),
            };
            given |= from.is_some();
            load_state(core, from, &mut states[slot * state_len..(slot + 1) * state_len]);
            for chunk in 1..chunks {
                let at = chunk * stride + slot * state_len;
                let (before, after) = states.split_at_mut(at);
                let state = &mut after[..state_len];
                state.copy_from_slice(&before[at - stride..at - stride + state_len]);
                let start = self.segment.start + (chunk - 1) * self.tile;
                sweep.forward(core, head, (start, self.tile), state);
            }
        }
        (states, given)
    }

    /// Loads one head's chunk and computes the masked tiles `M` and `W`.
    fn load_head(
        &self,
        group: &GroupTiles,
        tiles: &mut Tiles,
        cotangents: &Cotangents,
        head: usize,
        (start, rows): (usize, usize),
    ) {
        let core = self.core;
        let p = core.shape.head_dim;
        tiles.decays.load(core.vectors(), (start, rows), (head, core.shape.heads));
        pack(core.x, (start, head * p), (rows, p), &mut tiles.x);
        pack(cotangents.y, (start, head * p), (rows, p), &mut tiles.g);
        transpose(&tiles.x, (rows, p), &mut tiles.x_transposed);
        // The transposed tile has rows `padded(rows)` long, the square tiles `padded(tile)`.
        let product = Product {
            left: tiles.g.as_ptr(),
            left_row: padded(p),
            left_column: 1,
            right: tiles.x_transposed.as_ptr(),
            right_row: padded(rows),
            inner: Inner::Full(p),
        };
        let square = padded(self.tile);
        let fused = Fused::new(rows, padded(rows), &mut tiles.m, square).second(product).lower();
        // SAFETY: the tiles hold `rows` and `p` padded rows, the result `rows`.
        unsafe { fused.run() };
        simd::dispatch(MaskBackward {
            decays: &tiles.decays,
            rows,
            cb: &group.cb,
            gx: &mut tiles.m,
            w: &mut tiles.w,
            columns: &mut tiles.columns,
            inside: &mut tiles.inside,
        });
    }

    /// The products: `du`, and the head's share of dB and dC.
    fn wide_gradients(
        &self,
        group: &GroupTiles,
        tiles: &mut Tiles,
        rows: usize,
        state: Option<&[f32]>,
        dstate: Option<&[f32]>,
    ) {
        let (p, n) = (self.core.shape.head_dim, self.core.shape.d_state);
        let (narrow, wide, square) = (padded(p), padded(n), padded(self.tile));
        let masked = |tile: &[f32],
                      (left_row, left_column): (usize, usize),
                      right: &[f32],
                      right_row: usize| {
            let inner = if left_row == 1 { Inner::FromRow(rows) } else { Inner::UpToRow(rows) };
            let (left, right) = (tile.as_ptr(), right.as_ptr());
            Product { left, left_row, left_column, right, right_row, inner }
        };
        let full = |tile: &[f32], left_row: usize, right: &[f32], right_row: usize, len: usize| {
            let (left, right) = (tile.as_ptr(), right.as_ptr());
            let inner = Inner::Full(len);
            Product { left, left_row, left_column: 1, right, right_row, inner }
        };
        let mut du = Fused::new(rows, narrow, &mut tiles.du, narrow).second(masked(
            &tiles.w,
            (1, square),
            &tiles.g,
            narrow,
        ));
        let mut dc = Fused::new(rows, wide, &mut tiles.dc, wide)
            .second(masked(&tiles.m, (square, 1), &group.b, wide))
            .scaled(1.0);
        let mut db = Fused::new(rows, wide, &mut tiles.db, wide)
            .second(masked(&tiles.m, (1, square), &group.c, wide))
            .scaled(1.0);
        tiles.from_entering.fill(0.0);
        tiles.to_leaving.fill(0.0);
        if let Some(state) = state {
            dc = dc.first(full(&tiles.g, narrow, state, wide, p), &tiles.decays.entering).dots(
                &group.c,
                wide,
                &mut tiles.from_entering,
            );
        }
        if let Some(dstate) = dstate {
            transpose(dstate, (p, n), &mut tiles.dstate_transposed);
            let right = &tiles.dstate_transposed;
            du = du.first(full(&group.b, wide, right, narrow, n), &tiles.decays.leaving);
            db = db.first(full(&tiles.x, narrow, dstate, wide, p), &tiles.decays.weight).dots(
                &group.b,
                wide,
                &mut tiles.to_leaving,
            );
        }
        // SAFETY: the tiles hold `rows` padded rows, the states `p` or `n` of them; results are
        // distinct from operands.
        unsafe {
            du.run();
            dc.run();
            db.run();
        }
    }

    /// `dx`, `dscale`, `dlog_decay` and the head's part of `dD`.
    fn finish(&self, tiles: &mut Tiles, head: usize, (start, rows): (usize, usize), across: f32) {
        let (p, heads) = (self.core.shape.head_dim, self.core.shape.heads);
        // SAFETY: this segment and head's slot.
        let dd = unsafe { self.shared.dd.slice((self.index * heads + head) * p, p) };
        simd::dispatch(Finish {
            du: &mut tiles.du,
            x: &tiles.x,
            g: &tiles.g,
            scale: &tiles.decays.scale,
            d: self.core.d.map(|d| &d[head * p..(head + 1) * p]),
            dscale: &mut tiles.columns,
            dd,
            rows,
        });
        let total = tiles.decays.total * across;
        decay_gradient(&mut tiles.inside, &tiles.from_entering, &tiles.to_leaving, rows, total);
        for row in 0..rows {
            let at = (start + row) * heads + head;
            // SAFETY: this row and head belongs to this task.
            unsafe {
                *self.shared.scale.ptr().add(at) = tiles.columns[row];
                *self.shared.log_decay.ptr().add(at) = tiles.inside[row];
            }
        }
        let offset = (start * heads + head) * p;
        let block = Block { offset, rows, columns: p, stride: heads * p };
        // SAFETY: these rows of dx belong to this task.
        unsafe { unpack(&tiles.du, self.shared.x, block) };
    }

    /// Writes dB and dC of the chunk, or this block's part of them.
    fn store_wide(&self, tiles: &Tiles, (start, rows): (usize, usize)) {
        let (n, groups) = (self.core.shape.d_state, self.core.shape.groups);
        let stride = groups * n;
        let offset = start * stride + self.group * n;
        let block = Block { offset, rows, columns: n, stride };
        if self.blocks == 1 {
            // SAFETY: these rows and this group belong to this task.
            unsafe {
                unpack(&tiles.db, self.shared.b, block);
                unpack(&tiles.dc, self.shared.c, block);
            }
            return;
        }
        let len = self.core.shape.tokens * stride;
        let target = Target::F32(self.shared.partial);
        let of_b = Block { offset: self.block * len + offset, ..block };
        let of_c = Block { offset: (self.blocks + self.block) * len + offset, ..block };
        // SAFETY: these rows, this group and this head block belong to this task.
        unsafe {
            unpack(&tiles.db, target, of_b);
            unpack(&tiles.dc, target, of_c);
        }
    }

    fn store_initial(&self, dstates: &[f32]) {
        let initial = self.core.runs[self.segment.run].initial;
        let (Some(target), Some(index)) = (self.shared.initial_states, initial) else { return };
        let len = self.core.shape.head_dim * self.core.shape.d_state;
        let padded_len = self.core.shape.head_dim * padded(self.core.shape.d_state);
        for (slot, head) in self.heads.clone().enumerate() {
            // SAFETY: the initial state of this run and head belongs to this task.
            let to = unsafe { target.slice((index * self.core.shape.heads + head) * len, len) };
            store_state(self.core, &dstates[slot * padded_len..(slot + 1) * padded_len], to);
        }
    }
}
