//! Vectorised channel-last convolution for f32 and bf16, with f32 arithmetic.
//!
//! A task owns a block of rows of one run; vectors run over channels, and a window of the last `width`
//! inputs slides down in registers, so every input is loaded once. Backward is one pass as well: it
//! recomputes the value before the activation, keeps `width` partial sums of dx in registers and walks
//! `width - 1` rows beyond its block to complete them. Weight gradients are summed per block, then over
//! blocks in order.

use crate::ops::ssd::cpu::rows::{Rows, Source, Target};
use crate::ops::ssd::runs::Run;
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{self, Kernel, Lane, Simd, math};
use danaus_runtime::threads::{self, SharedMut};
use half::bf16;

/// Largest number of taps.
pub const MAX_WIDTH: usize = 8;
/// Rows of a task: long enough that the halo of backward is below one tenth.
const BLOCK: usize = 64;

/// Inputs of both passes.
pub struct Conv<'a> {
    /// The sequences.
    pub runs: &'a [Run],
    /// Channels.
    pub channels: usize,
    /// Taps, 1 to [`MAX_WIDTH`].
    pub width: usize,
    /// `[tokens, channels]`.
    pub x: Rows<'a>,
    /// `[channels, width]`.
    pub weight: &'a [f32],
    /// `[channels]`.
    pub bias: Option<&'a [f32]>,
    /// `[states, channels, width - 1]`, oldest first.
    pub initial_states: Option<&'a [f32]>,
    /// Apply silu.
    pub silu: bool,
}

/// Where gradients go.
pub struct Gradients<'a> {
    /// Of `x`, contiguous.
    pub x: Target,
    /// Of `weight`.
    pub weight: &'a mut [f32],
    /// Of `bias`.
    pub bias: &'a mut [f32],
    /// Of `initial_states`.
    pub initial_states: Option<&'a mut [f32]>,
}

impl Conv<'_> {
    /// Taps by row, `[width, channels]`, so that vectors of channels are contiguous.
    fn taps(&self) -> Scratch<f32> {
        let mut taps = Scratch::new(self.width * self.channels);
        for channel in 0..self.channels {
            for w in 0..self.width {
                taps[w * self.channels + channel] = self.weight[channel * self.width + w];
            }
        }
        taps
    }

    /// Blocks of rows, `(run, first row, last row)` relative to the run.
    fn blocks(&self) -> Vec<(usize, usize, usize)> {
        let blocks = |(index, run): (usize, &Run)| {
            let len = run.len;
            let block = move |first| (index, first, len.min(first + BLOCK));
            (0..len).step_by(BLOCK).map(block)
        };
        self.runs.iter().enumerate().flat_map(blocks).collect()
    }

    /// The initial state of a run by row, `[width - 1, channels]`, zeros without one.
    fn history(&self, run: &Run) -> Scratch<f32> {
        let rows = self.width - 1;
        let mut history = Scratch::new(rows * self.channels);
        if let (Some(states), Some(index)) = (self.initial_states, run.initial) {
            let state = &states[index * self.channels * rows..][..self.channels * rows];
            for channel in 0..self.channels {
                for row in 0..rows {
                    history[row * self.channels + channel] = state[channel * rows + row];
                }
            }
        }
        history
    }

    fn input(&self, row: usize, channel: usize) -> f32 {
        let at = row * self.x.stride + channel;
        match self.x.data {
            Source::F32(data) => data[at],
            Source::Bf16(data) => data[at].to_f32(),
        }
    }
}

/// Computes `y` `[tokens, channels]`.
pub fn forward(conv: &Conv, y: Target) {
    let (taps, blocks) = (conv.taps(), conv.blocks());
    threads::for_each(blocks.len(), |task| {
        let (run, first, last) = blocks[task];
        let run = &conv.runs[run];
        let history = conv.history(run);
        let walk = Walk { conv, run, first, last, taps: &taps, history: &history };
        simd::dispatch(Forward { walk, y });
    });
}

/// Writes the last `width - 1` inputs of every run that leaves a state, `[states, channels, width - 1]`.
pub fn final_states(conv: &Conv, states: &mut [f32]) {
    let history = conv.width - 1;
    for run in conv.runs {
        let Some(index) = run.last else { continue };
        let before = conv.history(run);
        for channel in 0..conv.channels {
            for place in 0..history {
                let virtual_row = run.len + place;
                let value = match virtual_row.checked_sub(history) {
                    Some(row) => conv.input(run.start + row, channel),
                    None => before[virtual_row * conv.channels + channel],
                };
                states[(index * conv.channels + channel) * history + place] = value;
            }
        }
    }
}

/// Computes all gradients. `dy` has rows of `channels`; `dfinal` is the cotangent of the final states.
pub fn backward(conv: &Conv, dy: Rows, dfinal: Option<&[f32]>, gradients: Gradients) {
    let (taps, blocks) = (conv.taps(), conv.blocks());
    let parameters = (conv.width + 1) * conv.channels;
    let mut sums = Scratch::<f32>::new(blocks.len() * parameters);
    let history_len = (conv.width - 1) * conv.channels;
    let mut dhistory = Scratch::<f32>::new(conv.runs.len() * history_len);
    let (sums_shared, dhistory_shared) = (SharedMut::new(&mut sums), SharedMut::new(&mut dhistory));
    threads::for_each(blocks.len(), |task| {
        let (index, first, last) = blocks[task];
        let run = &conv.runs[index];
        let history = conv.history(run);
        let walk = Walk { conv, run, first, last, taps: &taps, history: &history };
        // SAFETY: sums belong to the block, the history's gradient to the first block of the run.
        let (sums, dhistory) = unsafe {
            let len = if first == 0 { history_len } else { 0 };
            let dhistory = dhistory_shared.slice(index * history_len, len);
            (sums_shared.slice(task * parameters, parameters), dhistory)
        };
        simd::dispatch(Backward { walk, dy, dx: gradients.x, sums, dhistory });
    });
    gradients.weight.fill(0.0);
    gradients.bias.fill(0.0);
    for block in sums.chunks_exact(parameters.max(1)) {
        for channel in 0..conv.channels {
            for w in 0..conv.width {
                gradients.weight[channel * conv.width + w] += block[w * conv.channels + channel];
            }
            gradients.bias[channel] += block[conv.width * conv.channels + channel];
        }
    }
    states_backward(conv, dfinal, gradients.x, (&dhistory, gradients.initial_states));
}

/// Adds the cotangents of the final states to dx, and completes the gradients of the initial states.
fn states_backward(
    conv: &Conv,
    dfinal: Option<&[f32]>,
    dx: Target,
    (dhistory, mut dinitial): (&[f32], Option<&mut [f32]>),
) {
    let (history, channels) = (conv.width - 1, conv.channels);
    for (index, run) in conv.runs.iter().enumerate() {
        if let (Some(dinitial), Some(state)) = (&mut dinitial, run.initial) {
            for channel in 0..channels {
                for place in 0..history {
                    let from = dhistory[(index * history + place) * channels + channel];
                    dinitial[(state * channels + channel) * history + place] = from;
                }
            }
        }
        let (Some(dfinal), Some(last)) = (dfinal, run.last) else { continue };
        for channel in 0..channels {
            for place in 0..history {
                let value = dfinal[(last * channels + channel) * history + place];
                let virtual_row = run.len + place;
                match (virtual_row.checked_sub(history), &mut dinitial, run.initial) {
                    // SAFETY: the parallel loop is over and the row lies in dx.
                    (Some(row), ..) => unsafe {
                        add_to(dx, (run.start + row) * channels + channel, value);
                    },
                    (None, Some(dinitial), Some(state)) => {
                        dinitial[(state * channels + channel) * history + virtual_row] += value;
                    }
                    _ => {}
                }
            }
        }
    }
}

/// # Safety
/// The element exists and nobody else uses it.
unsafe fn add_to(target: Target, at: usize, value: f32) {
    // SAFETY: promised by the caller.
    unsafe {
        match target {
            Target::F32(data) => *data.ptr().add(at) += value,
            Target::Bf16(data) => {
                let element = data.ptr().add(at);
                *element = bf16::from_f32((*element).to_f32() + value);
            }
        }
    }
}

/// A block of rows of one run.
#[derive(Clone, Copy)]
struct Walk<'a> {
    conv: &'a Conv<'a>,
    run: &'a Run,
    /// First row, relative to the run.
    first: usize,
    /// One past the last row.
    last: usize,
    taps: &'a [f32],
    history: &'a [f32],
}

/// A full or partial vector.
///
/// # Safety
/// `count` elements are readable.
#[inline(always)]
unsafe fn load<S: Simd, T: Lane>(s: S, from: *const T, count: usize) -> S::F {
    // SAFETY: promised by the caller.
    unsafe { if count == S::LANES { T::load(s, from) } else { T::load_partial(s, from, count) } }
}

/// Writes a full or partial vector.
///
/// # Safety
/// `count` elements are writable.
#[inline(always)]
unsafe fn store<S: Simd, T: Lane>(s: S, to: *mut T, value: S::F, count: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        if count == S::LANES {
            T::store(s, to, value);
        } else {
            T::store_partial(s, to, value, count);
        }
    }
}

/// The last `W - 1` inputs before a block and its taps, for one vector of channels.
struct Lanes<S: Simd, const W: usize> {
    window: [S::F; W],
    taps: [S::F; W],
    bias: S::F,
}

impl Walk<'_> {
    /// # Safety
    /// `count` channels from `channel` exist in `x` and in the parameters.
    #[inline(always)]
    unsafe fn lanes<S: Simd, T: Lane, const W: usize>(
        &self,
        s: S,
        x: *const T,
        (channel, count): (usize, usize),
    ) -> Lanes<S, W> {
        let channels = self.conv.channels;
        let mut lanes = Lanes { window: [s.zero(); W], taps: [s.zero(); W], bias: s.zero() };
        // SAFETY: rows before the run come from its history, the others from `x`.
        unsafe {
            for w in 0..W {
                lanes.taps[w] = load(s, self.taps.as_ptr().add(w * channels + channel), count);
            }
            if let Some(bias) = self.conv.bias {
                lanes.bias = load(s, bias.as_ptr().add(channel), count);
            }
            for back in 1..W {
                // Place W - 1 - back of the window, before the first shift.
                lanes.window[W - back] = match self.first.checked_sub(back) {
                    Some(row) => {
                        let row = self.run.start + row;
                        load(s, x.add(row * self.conv.x.stride + channel), count)
                    }
                    None => {
                        let row = W - 1 + self.first - back;
                        load(s, self.history.as_ptr().add(row * channels + channel), count)
                    }
                };
            }
        }
        lanes
    }
}

impl<S: Simd, const W: usize> Lanes<S, W> {
    /// Takes the next input in and returns the value before the activation.
    #[inline(always)]
    fn next(&mut self, s: S, input: S::F) -> S::F {
        for w in 1..W {
            self.window[w - 1] = self.window[w];
        }
        self.window[W - 1] = input;
        let mut sum = self.bias;
        for w in 0..W {
            sum = s.fma(self.taps[w], self.window[w], sum);
        }
        sum
    }
}

/// Calls `$body` with the constant `$w` equal to the run-time width.
macro_rules! with_width {
    ($width:expr, $w:ident => $body:expr) => {
        match $width {
            1 => {
                const $w: usize = 1;
                $body
            }
            2 => {
                const $w: usize = 2;
                $body
            }
            3 => {
                const $w: usize = 3;
                $body
            }
            4 => {
                const $w: usize = 4;
                $body
            }
            5 => {
                const $w: usize = 5;
                $body
            }
            6 => {
                const $w: usize = 6;
                $body
            }
            7 => {
                const $w: usize = 7;
                $body
            }
            8 => {
                const $w: usize = 8;
                $body
            }
            width => unreachable!("a width of {width} was let through"),
        }
    };
}

struct Forward<'a> {
    walk: Walk<'a>,
    y: Target,
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.walk.conv.width;
        with_width!(width, W => match (self.walk.conv.x.data, self.y) {
            (Source::F32(x), Target::F32(y)) => forward_rows::<S, f32, W>(s, &self.walk, x, y),
            (Source::Bf16(x), Target::Bf16(y)) => forward_rows::<S, bf16, W>(s, &self.walk, x, y),
            _ => unreachable!("the output has the type of the input"),
        });
    }
}

#[inline(always)]
fn forward_rows<S: Simd, T: Lane, const W: usize>(s: S, walk: &Walk, x: &[T], y: SharedMut<T>) {
    let (channels, stride) = (walk.conv.channels, walk.conv.x.stride);
    assert!(x.len() >= (walk.run.start + walk.last - 1) * stride + channels);
    for channel in (0..channels).step_by(S::LANES) {
        let count = (channels - channel).min(S::LANES);
        // SAFETY: the rows and channels exist; the output rows belong to this task.
        unsafe {
            let mut lanes = walk.lanes::<S, T, W>(s, x.as_ptr(), (channel, count));
            for row in walk.run.start + walk.first..walk.run.start + walk.last {
                let input = load(s, x.as_ptr().add(row * stride + channel), count);
                let value = lanes.next(s, input);
                let value = match walk.conv.silu {
                    true => s.mul(value, math::sigmoid(s, value)),
                    false => value,
                };
                store(s, y.ptr().add(row * channels + channel), value, count);
            }
        }
    }
}

struct Backward<'a> {
    walk: Walk<'a>,
    dy: Rows<'a>,
    dx: Target,
    /// `[width + 1, channels]`: gradients of the taps and of the bias.
    sums: &'a mut [f32],
    /// `[width - 1, channels]` in the first block of a run, else empty.
    dhistory: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.walk.conv.width;
        let (x, dy, dx) = (self.walk.conv.x.data, self.dy.data, self.dx);
        with_width!(width, W => match (x, dy, dx) {
            (Source::F32(x), Source::F32(dy), Target::F32(dx)) => {
                backward_rows::<S, f32, W>(s, self, (x, dy), dx);
            }
            (Source::Bf16(x), Source::Bf16(dy), Target::Bf16(dx)) => {
                backward_rows::<S, bf16, W>(s, self, (x, dy), dx);
            }
            _ => unreachable!("gradients have the type of the input"),
        });
    }
}

#[inline(always)]
fn backward_rows<S: Simd, T: Lane, const W: usize>(
    s: S,
    task: Backward,
    (x, dy): (&[T], &[T]),
    dx: SharedMut<T>,
) {
    let Backward { walk, dy: dy_rows, sums, dhistory, .. } = task;
    let (conv, run) = (walk.conv, walk.run);
    let (channels, stride) = (conv.channels, conv.x.stride);
    // Rows beyond the block still reach back into it.
    let end = run.len.min(walk.last + W - 1);
    assert!(x.len() >= (run.start + end - 1) * stride + channels);
    assert!(dy.len() >= (run.start + end - 1) * dy_rows.stride + channels);
    let one = s.splat(1.0);
    for channel in (0..channels).step_by(S::LANES) {
        let count = (channels - channel).min(S::LANES);
        // SAFETY: rows and channels exist; rows of dx in the block belong to this task.
        unsafe {
            let mut lanes = walk.lanes::<S, T, W>(s, x.as_ptr(), (channel, count));
            let mut partial = [s.zero(); W];
            let mut dtaps = [s.zero(); W];
            let mut dbias = s.zero();
            // A finished row: `row` counts from `W - 1` rows before the run.
            let mut finish = |row: usize, value: S::F| match row.checked_sub(W - 1) {
                Some(row) if row >= walk.first && row < walk.last => {
                    store(s, dx.ptr().add((run.start + row) * channels + channel), value, count);
                }
                None if walk.first == 0 => {
                    store(s, dhistory.as_mut_ptr().add(row * channels + channel), value, count);
                }
                _ => {}
            };
            for row in walk.first..end {
                let at = run.start + row;
                let input = load(s, x.as_ptr().add(at * stride + channel), count);
                let value = lanes.next(s, input);
                let mut g = load(s, dy.as_ptr().add(at * dy_rows.stride + channel), count);
                if conv.silu {
                    let sigmoid = math::sigmoid(s, value);
                    let slope = s.mul(sigmoid, s.fma(value, s.sub(one, sigmoid), one));
                    g = s.mul(g, slope);
                }
                if row < walk.last {
                    dbias = s.add(dbias, g);
                    for w in 0..W {
                        dtaps[w] = s.fma(g, lanes.window[w], dtaps[w]);
                    }
                }
                for w in 0..W {
                    partial[w] = s.fma(g, lanes.taps[w], partial[w]);
                }
                finish(row, partial[0]);
                for w in 1..W {
                    partial[w - 1] = partial[w];
                }
                partial[W - 1] = s.zero();
            }
            for w in 0..W - 1 {
                finish(end + w, partial[w]);
            }
            for w in 0..W {
                store(s, sums.as_mut_ptr().add(w * channels + channel), dtaps[w], count);
            }
            store(s, sums.as_mut_ptr().add(W * channels + channel), dbias, count);
        }
    }
}
