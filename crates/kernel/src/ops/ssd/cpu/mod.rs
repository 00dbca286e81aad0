//! The chunked algorithm on the processor, for f32 and bf16 arrays with f32 arithmetic.
//!
//! * [`prologue`]: step sizes and log-decays from `dt`;
//! * [`forward`], [`backward`]: the passes over chunks, built from `tile` (products of small
//!   matrices), `decay` (exponentials and masks), `states` (state passing), `rows` (loads and
//!   stores) and `epilogue` (skip connection and gate);
//! * [`step`]: the recurrence itself, for decoding.
//!
//! Tasks are segments of runs times blocks of heads, a function of the shape alone, so results have the
//! same bits at any number of threads. A run's forward bits depend on its own rows only, as long as the
//! problem is not so small in sequences and heads that it is cut along time. All offsets are `usize`.

pub mod backward;
mod chunk;
mod decay;
pub(crate) mod epilogue;
pub mod forward;
mod gate;
pub mod prologue;
pub mod rows;
mod states;
pub mod step;
pub(crate) mod tile;

use super::config::Shape;
use super::runs::Run;
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{self, Kernel, Simd};
use danaus_runtime::threads;
use rows::{Block, Rows, Target, pack, transpose, unpack};
use tile::{Fused, Inner, Product, padded};

pub use gate::gate_backward;

/// Inputs of the passes.
pub struct Core<'a> {
    /// Sizes.
    pub shape: Shape,
    /// The sequences.
    pub runs: &'a [Run],
    /// Rows of `heads * head_dim`.
    pub x: Rows<'a>,
    /// Rows of `groups * d_state`.
    pub b: Rows<'a>,
    /// Rows of `groups * d_state`.
    pub c: Rows<'a>,
    /// `[tokens, heads]`.
    pub log_decay: &'a [f32],
    /// `[tokens, heads]`.
    pub scale: &'a [f32],
    /// `[heads, head_dim]`.
    pub d: Option<&'a [f32]>,
    /// Rows of `heads * head_dim`; backward takes the cotangent before the gate and ignores it.
    pub z: Option<Rows<'a>>,
    /// `[states, heads, head_dim, d_state]`.
    pub initial_states: Option<&'a [f32]>,
}

impl Core<'_> {
    fn vectors(&self) -> (&[f32], &[f32]) {
        (self.log_decay, self.scale)
    }

    fn state_at<'a>(&self, states: &'a [f32], index: usize, head: usize) -> &'a [f32] {
        let len = self.shape.head_dim * self.shape.d_state;
        &states[(index * self.shape.heads + head) * len..][..len]
    }

    /// The initial state of a run's head, if it has one.
    fn initial(&self, run: usize, head: usize) -> Option<&[f32]> {
        let index = self.runs[run].initial?;
        self.initial_states.map(|states| self.state_at(states, index, head))
    }

    /// The gradient of the final state of a run's head, if there is one.
    fn dfinal<'a>(&self, dfinal: Option<&'a [f32]>, run: usize, head: usize) -> Option<&'a [f32]> {
        let index = self.runs[run].last?;
        dfinal.map(|states| self.state_at(states, index, head))
    }
}

/// One chunk of B and C of one group, and their product.
struct GroupTiles {
    tile: usize,
    b: Scratch<f32>,
    c: Scratch<f32>,
    b_transposed: Scratch<f32>,
    /// `C B^T` on and below the diagonal, rows `padded(tile)` long.
    cb: Scratch<f32>,
}

impl GroupTiles {
    fn new(core: &Core, tile: usize) -> Self {
        let wide = tile * padded(core.shape.d_state);
        Self {
            tile,
            b: Scratch::new(wide),
            c: Scratch::new(wide),
            b_transposed: Scratch::new(core.shape.d_state * padded(tile)),
            cb: Scratch::new(tile * padded(tile)),
        }
    }

    fn load(&mut self, core: &Core, group: usize, (start, rows): (usize, usize)) {
        let n = core.shape.d_state;
        pack(core.b, (start, group * n), (rows, n), &mut self.b);
        pack(core.c, (start, group * n), (rows, n), &mut self.c);
        transpose(&self.b, (rows, n), &mut self.b_transposed);
        let product = Product {
            left: self.c.as_ptr(),
            left_row: padded(n),
            left_column: 1,
            right: self.b_transposed.as_ptr(),
            right_row: padded(rows),
            inner: Inner::Full(n),
        };
        let square = padded(self.tile);
        let fused = Fused::new(rows, padded(rows), &mut self.cb, square).second(product).lower();
        // SAFETY: the tiles hold `rows` and `n` padded rows, the result `rows`.
        unsafe { fused.run() };
    }
}

/// Adds `parts` equally long pieces in order and writes the sum.
fn reduce(pieces: &[f32], parts: usize, to: Target) {
    let len = pieces.len() / parts.max(1);
    let (tasks, per_task) = threads::split(len, 1 << 14);
    threads::for_each(tasks, |task| {
        let first = task * per_task;
        let last = len.min(first + per_task);
        let mut sum = Scratch::<f32>::new(padded(last - first));
        for part in 0..parts {
            let piece = &pieces[part * len + first..part * len + last];
            simd::dispatch(Add { to: &mut sum[..piece.len()], piece });
        }
        let columns = last - first;
        // SAFETY: every task has its own range.
        unsafe { unpack(&sum, to, Block { offset: first, rows: 1, columns, stride: columns }) };
    });
}

struct Add<'a> {
    to: &'a mut [f32],
    piece: &'a [f32],
}

impl Kernel for Add<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.to.iter_mut().zip(self.piece).for_each(|(to, piece)| *to += piece);
    }
}
