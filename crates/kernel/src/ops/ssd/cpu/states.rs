//! Walking a stretch of tokens for its state alone, forwards for `H` and backwards for its gradient,
//! and joining the pieces of a sequence that was cut along time.
//!
//! States here are `[head_dim, padded(d_state)]` per head, the order of the public `[p, n]` states.

use super::super::config::{Plan, Segment};
use super::Core;
use super::decay::{Decays, ScaleRows};
use super::rows::{Rows, pack};
use super::tile::{Fused, Inner, Product, padded};
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{self, math};
use danaus_runtime::threads::{self, SharedMut};

/// Tiles for one sweep.
pub struct Sweep {
    decays: Decays,
    tiles: OuterTiles,
}

struct OuterTiles {
    narrow: Scratch<f32>,
    scaled: Scratch<f32>,
    wide: Scratch<f32>,
}

impl Sweep {
    /// Room for chunks of up to `tile` rows.
    pub fn new(core: &Core, tile: usize) -> Self {
        let narrow = tile * padded(core.shape.head_dim);
        let wide = tile * padded(core.shape.d_state);
        let tiles = OuterTiles {
            narrow: Scratch::new(narrow),
            scaled: Scratch::new(narrow),
            wide: Scratch::new(wide),
        };
        Self { decays: Decays::new(tile), tiles }
    }

    /// `state <- exp(alpha_last) state + sum_j leaving_j scale_j x_j B_j^T` for one chunk.
    pub fn forward(&mut self, core: &Core, head: usize, chunk: (usize, usize), state: &mut [f32]) {
        self.decays.load(core.vectors(), chunk, (head, core.shape.heads));
        self.tiles.load(core, head, chunk, (core.x, core.b));
        self.tiles.add(core, chunk.1, (&self.decays.weight, self.decays.total), state);
    }

    /// `dstate <- exp(alpha_last) dstate + sum_i exp(alpha_i) G_i C_i^T` for one chunk.
    pub fn backward(
        &mut self,
        core: &Core,
        head: usize,
        chunk: (usize, usize),
        gradient: Rows,
        dstate: &mut [f32],
    ) {
        self.decays.load(core.vectors(), chunk, (head, core.shape.heads));
        self.tiles.load(core, head, chunk, (gradient, core.c));
        self.tiles.add(core, chunk.1, (&self.decays.entering, self.decays.total), dstate);
    }
}

impl OuterTiles {
    fn load(
        &mut self,
        core: &Core,
        head: usize,
        (start, rows): (usize, usize),
        (narrow, wide): (Rows, Rows),
    ) {
        let (p, n) = (core.shape.head_dim, core.shape.d_state);
        let group = head / core.shape.heads_per_group();
        pack(narrow, (start, head * p), (rows, p), &mut self.narrow);
        pack(wide, (start, group * n), (rows, n), &mut self.wide);
    }

    fn add(&mut self, core: &Core, rows: usize, (factor, total): (&[f32], f32), state: &mut [f32]) {
        let width = padded(core.shape.head_dim);
        let out = &mut *self.scaled;
        simd::dispatch(ScaleRows { from: &self.narrow, factor, rows, width, out });
        outer(core, rows, (&self.scaled, &self.wide), total, state);
    }
}

/// `state <- total state + scaled^T wide`, tiles of `rows` rows.
pub fn outer(
    core: &Core,
    rows: usize,
    (scaled, wide): (&[f32], &[f32]),
    total: f32,
    state: &mut [f32],
) {
    let (p, width) = (core.shape.head_dim, padded(core.shape.d_state));
    let product = Product {
        left: scaled.as_ptr(),
        left_row: 1,
        left_column: padded(p),
        right: wide.as_ptr(),
        right_row: width,
        inner: Inner::Full(rows),
    };
    assert!(state.len() >= p * width);
    // SAFETY: the tiles hold `rows` padded rows, the state `p` of them.
    unsafe { Fused::new(p, width, state, width).scaled(total).second(product).run() }
}

/// The states that enter (`forward`) or the gradients that leave each segment, `[segments, state_len]`.
pub struct Passed(Scratch<f32>);

impl Passed {
    /// State of one segment and head, `[head_dim, d_state]`.
    pub fn state(&self, core: &Core, segment: usize, head: usize) -> &[f32] {
        let len = core.shape.head_dim * core.shape.d_state;
        &self.0[(segment * core.shape.heads + head) * len..][..len]
    }
}

/// Copies a public `[p, n]` state into padded rows, or zeros it.
pub fn load_state(core: &Core, from: Option<&[f32]>, state: &mut [f32]) {
    let (p, n) = (core.shape.head_dim, core.shape.d_state);
    match from {
        Some(from) => pack(Rows::f32(from, n), (0, 0), (p, n), state),
        None => state.fill(0.0),
    }
}

/// Copies padded rows to a public `[p, n]` state.
pub fn store_state(core: &Core, state: &[f32], to: &mut [f32]) {
    let n = core.shape.d_state;
    for (to, from) in to.chunks_exact_mut(n).zip(state.chunks_exact(padded(n))) {
        to.copy_from_slice(&from[..n]);
    }
}

/// Which way states travel.
#[derive(Clone, Copy)]
pub enum Direction<'a> {
    /// With the tokens, from the initial states.
    Forward,
    /// Against them, from the gradients of the final states, collecting from the gradient of `y`.
    Backward(Rows<'a>, Option<&'a [f32]>),
}

/// Boundary states of every segment, or `None` where no run was cut.
pub fn pass(
    core: &Core,
    plan: &Plan,
    segments: &[Segment],
    direction: Direction,
) -> Option<Passed> {
    if segments.iter().all(|segment| segment.first && segment.last) {
        return None;
    }
    let (heads, len) = (core.shape.heads, core.shape.head_dim * core.shape.d_state);
    let mut own = Scratch::<f32>::new(segments.len() * heads * len);
    let mut totals = Scratch::<f32>::new(segments.len() * heads);
    let (own_shared, totals_shared) = (SharedMut::new(&mut own), SharedMut::new(&mut totals));
    threads::for_each(segments.len() * heads, |task| {
        let (segment, head) = (segments[task / heads], task % heads);
        // SAFETY: every task has its own slot.
        let (slot, total) =
            unsafe { (own_shared.slice(task * len, len), totals_shared.slice(task, 1)) };
        total[0] = walk(core, plan.tile, &segment, head, direction, slot);
    });
    let mut joined = Scratch::<f32>::new(segments.len() * heads * len);
    let shared = SharedMut::new(&mut joined);
    threads::for_each(heads, |head| {
        let mut state = Scratch::<f32>::new(len);
        let mut visit = |index: usize| {
            let segment = &segments[index];
            let boundary = match direction {
                Direction::Forward if segment.first => Some(core.initial(segment.run, head)),
                Direction::Backward(_, dfinal) if segment.last => {
                    Some(core.dfinal(dfinal, segment.run, head))
                }
                _ => None,
            };
            match boundary {
                Some(Some(given)) => state.copy_from_slice(given),
                Some(None) => state.fill(0.0),
                None => {}
            }
            let slot = index * heads + head;
            // SAFETY: every head has its own slots.
            unsafe { shared.slice(slot * len, len) }.copy_from_slice(&state);
            let own = &own[slot * len..(slot + 1) * len];
            let total = totals[slot];
            state.iter_mut().zip(own).for_each(|(state, own)| *state = total * *state + own);
        };
        match direction {
            Direction::Forward => (0..segments.len()).for_each(&mut visit),
            Direction::Backward(..) => (0..segments.len()).rev().for_each(&mut visit),
        }
    });
    Some(Passed(joined))
}

/// The state that a segment adds by itself, into `out`; returns its total decay. The segment at the
/// far end of a run is never asked for its own state, so it is skipped.
fn walk(
    core: &Core,
    tile: usize,
    segment: &Segment,
    head: usize,
    direction: Direction,
    out: &mut [f32],
) -> f32 {
    let skip = match direction {
        Direction::Forward => segment.last,
        Direction::Backward(..) => segment.first,
    };
    if skip {
        return 0.0;
    }
    let mut sweep = Sweep::new(core, tile);
    let mut state = Scratch::<f32>::new(core.shape.head_dim * padded(core.shape.d_state));
    let mut log_total = 0.0;
    let mut step = |offset: usize| {
        let chunk = (segment.start + offset, tile.min(segment.len - offset));
        match direction {
            Direction::Forward => sweep.forward(core, head, chunk, &mut state),
            Direction::Backward(g, _) => sweep.backward(core, head, chunk, g, &mut state),
        }
        log_total += sweep.decays.alpha[chunk.1 - 1];
    };
    let offsets = (0..segment.len).step_by(tile);
    match direction {
        Direction::Forward => offsets.for_each(&mut step),
        Direction::Backward(..) => offsets.rev().for_each(&mut step),
    }
    store_state(core, &state, out);
    math::exp_scalar(log_total)
}
