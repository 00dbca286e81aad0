//! The recurrence itself, token by token: a few tokens of decoding, where the state is read and written
//! once a token and never copied, and whole sequences at the invariant level, where a token's bits must
//! not depend on how many tokens are processed together.

use super::Core;
use super::rows::{Block, Target, pack, unpack};
use super::tile::padded;
use crate::ops::ssd::runs::Run;
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{self, Kernel, Simd, math};
use danaus_runtime::threads::{self, SharedMut};

/// Advances `states` `[states, heads, head_dim, d_state]` in place through all tokens of every run and
/// writes `y`. Each run updates the state `last`, which must hold its entering state; `initial_states`
/// is not read. The gate and the skip connection apply as in the forward pass.
pub fn step(core: &Core, y: Target, states: &mut [f32]) {
    let (heads, len) = (core.shape.heads, core.shape.head_dim * core.shape.d_state);
    let shared = SharedMut::new(states);
    threads::for_each(core.runs.len() * heads, |task| {
        let (run, head) = (core.runs[task / heads], task % heads);
        let Some(index) = run.last else { return };
        // SAFETY: every run and head has its own state.
        let state = unsafe { shared.slice((index * heads + head) * len, len) };
        walk(core, run, head, state, y);
    });
}

/// As the chunked forward pass, by the recurrence: `y`, and the states that runs leave behind.
pub fn recurrent(core: &Core, y: Target, final_state: &mut [f32]) {
    let (heads, len) = (core.shape.heads, core.shape.head_dim * core.shape.d_state);
    let shared = SharedMut::new(final_state);
    threads::for_each(core.runs.len() * heads, |task| {
        let (index, head) = (task / heads, task % heads);
        let run = core.runs[index];
        let mut own = Scratch::<f32>::new(if run.last.is_some() { 0 } else { len });
        let state: &mut [f32] = match run.last {
            // SAFETY: every final state belongs to one run, and every head has its own part.
            Some(last) => unsafe { shared.slice((last * heads + head) * len, len) },
            None => &mut own,
        };
        match core.initial(index, head) {
            Some(initial) => state.copy_from_slice(initial),
            None => state.fill(0.0),
        }
        walk(core, run, head, state, y);
    });
}

/// Takes one head's state through the tokens of a run.
pub(crate) fn walk(core: &Core, run: Run, head: usize, state: &mut [f32], y: Target) {
    let (heads, p, n) = (core.shape.heads, core.shape.head_dim, core.shape.d_state);
    let group = head / core.shape.heads_per_group();
    let narrow = || Scratch::<f32>::new(padded(p));
    let wide = || Scratch::<f32>::new(padded(n));
    let (mut x, mut out, mut z, mut b, mut c) = (narrow(), narrow(), narrow(), wide(), wide());
    for token in run.start..run.start + run.len {
        pack(core.x, (token, head * p), (1, p), &mut x);
        pack(core.b, (token, group * n), (1, n), &mut b);
        pack(core.c, (token, group * n), (1, n), &mut c);
        let at = token * heads + head;
        let decay = math::exp_scalar(core.log_decay[at]);
        let scale = core.scale[at];
        let (state, out_tile) = (&mut *state, &mut *out);
        simd::dispatch(Update { state, decay, scale, x: &x, b: &b, c: &c, y: out_tile, n });
        let d = core.d.map(|d| &d[head * p..(head + 1) * p]);
        if let Some(from) = core.z {
            pack(from, (token, head * p), (1, p), &mut z);
        }
        let z = core.z.map(|_| &*z);
        let (y_tile, x) = (&mut *out, &*x);
        simd::dispatch(super::epilogue::Epilogue { y: y_tile, x, d, z, rows: 1, columns: p });
        let block = Block { offset: at * p, rows: 1, columns: p, stride: p };
        // SAFETY: this token and head belongs to this task.
        unsafe { unpack(&out, y, block) };
    }
}

/// `state <- decay state + scale x B^T`, `y = state C`, one pass over the state.
struct Update<'a> {
    state: &'a mut [f32],
    decay: f32,
    scale: f32,
    x: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
    y: &'a mut [f32],
    n: usize,
}

impl Kernel for Update<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.n;
        assert!(self.b.len() >= n && self.c.len() >= n);
        let decay = s.splat(self.decay);
        for (row, state) in self.state.chunks_exact_mut(n).enumerate() {
            let factor = s.splat(self.scale * self.x[row]);
            let mut sum = s.zero();
            for at in (0..n).step_by(S::LANES) {
                let count = (n - at).min(S::LANES);
                // SAFETY: `count` elements of the row; B and C are padded to whole vectors.
                unsafe {
                    let b = s.load(self.b.as_ptr().add(at));
                    let c = s.load(self.c.as_ptr().add(at));
                    let to = state.as_mut_ptr().add(at);
                    let old =
                        if count == S::LANES { s.load(to) } else { s.load_partial(to, count) };
                    let new = s.fma(decay, old, s.mul(factor, b));
                    sum = s.fma(new, c, sum);
                    if count == S::LANES {
                        s.store(to, new);
                    } else {
                        s.store_partial(to, new, count);
                    }
                }
            }
            self.y[row] = s.reduce_add(sum);
        }
    }
}
