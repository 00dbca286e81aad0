//! The recurrence written down: one channel and one token after the other, any float type. It is the
//! oracle of the tests and the f64 path. Backward is the reverse recurrence, with states recomputed from
//! checkpoints.

use super::Shape;
use crate::ops::ssd::reference::{Steps, unclamped};
use crate::ops::ssd::runs::Run;
use num_traits::Float;

/// Tokens between two kept states of the backward pass.
const CHECKPOINT: usize = 64;

/// B or C.
#[derive(Clone, Copy)]
pub enum Map<'a, T> {
    /// `[tokens, groups, d_state]`.
    Token(&'a [T]),
    /// `[channels, d_state]`.
    Constant(&'a [T]),
}

impl<T> Map<'_, T> {
    fn start(&self, shape: &Shape, token: usize, channel: usize) -> usize {
        let group = channel / shape.channels_per_group();
        match self {
            Map::Token(_) => (token * shape.groups + group) * shape.d_state,
            Map::Constant(_) => channel * shape.d_state,
        }
    }

    fn values(&self) -> &[T] {
        match self {
            Map::Token(values) | Map::Constant(values) => values,
        }
    }
}

/// Inputs of the recurrence; arrays are contiguous.
pub struct Scan<'a, T> {
    /// Sizes.
    pub shape: Shape,
    /// The sequences.
    pub runs: &'a [Run],
    /// `[tokens, channels]`.
    pub u: &'a [T],
    /// `[tokens, channels]`, before bias and softplus.
    pub delta: &'a [T],
    /// Whether softplus is applied to `delta + delta_bias`.
    pub delta_softplus: bool,
    /// `[channels]`.
    pub delta_bias: Option<&'a [T]>,
    /// `[channels, d_state]`.
    pub a: &'a [T],
    /// What is written to the state.
    pub b: Map<'a, T>,
    /// What is read from it.
    pub c: Map<'a, T>,
    /// `[channels]`.
    pub d: Option<&'a [T]>,
    /// `[tokens, channels]`.
    pub z: Option<&'a [T]>,
    /// `[states, channels, d_state]`.
    pub initial_states: Option<&'a [T]>,
    /// Number of last states.
    pub states: usize,
}

/// Gradients, shaped like the inputs; those of absent inputs mean nothing.
pub struct Gradients<T> {
    /// Of `u`.
    pub u: Vec<T>,
    /// Of `delta`.
    pub delta: Vec<T>,
    /// Of `delta_bias`.
    pub delta_bias: Vec<T>,
    /// Of `a`.
    pub a: Vec<T>,
    /// Of `b`.
    pub b: Vec<T>,
    /// Of `c`.
    pub c: Vec<T>,
    /// Of `d`.
    pub d: Vec<T>,
    /// Of `z`.
    pub z: Vec<T>,
    /// Of `initial_states`.
    pub initial_states: Vec<T>,
}

impl<T: Float> Scan<'_, T> {
    /// The step size and its derivative by `delta`.
    fn step(&self, token: usize, channel: usize) -> (T, T) {
        let bias = self.delta_bias.map_or(T::zero(), |bias| bias[channel]);
        let steps = Steps { dt_softplus: self.delta_softplus, ..Steps::default() };
        unclamped(self.delta[token * self.shape.channels + channel] + bias, &steps)
    }

    fn state(&self, index: usize, channel: usize) -> std::ops::Range<usize> {
        let n = self.shape.d_state;
        let start = (index * self.shape.channels + channel) * n;
        start..start + n
    }

    fn row(&self, channel: usize) -> &[T] {
        &self.a[self.state(0, channel)]
    }

    fn first_state(&self, run: &Run, channel: usize) -> Vec<T> {
        match (self.initial_states, run.initial) {
            (Some(states), Some(index)) => states[self.state(index, channel)].to_vec(),
            _ => vec![T::zero(); self.shape.d_state],
        }
    }

    fn advance(&self, state: &mut [T], token: usize, channel: usize) {
        let (step, _) = self.step(token, channel);
        let input = step * self.u[token * self.shape.channels + channel];
        let b = &self.b.values()[self.b.start(&self.shape, token, channel)..];
        for (s, (&a, &b)) in state.iter_mut().zip(self.row(channel).iter().zip(b)) {
            *s = (step * a).exp() * *s + input * b;
        }
    }

    /// The output before the gate.
    fn read(&self, state: &[T], token: usize, channel: usize) -> T {
        let c = &self.c.values()[self.c.start(&self.shape, token, channel)..];
        let skip = self
            .d
            .map_or(T::zero(), |d| d[channel] * self.u[token * self.shape.channels + channel]);
        state.iter().zip(c).fold(T::zero(), |sum, (&s, &c)| sum + s * c) + skip
    }
}

fn sigmoid<T: Float>(x: T) -> T {
    T::one() / (T::one() + (-x).exp())
}

/// `(y, last_state)`.
pub fn forward<T: Float>(scan: &Scan<T>) -> (Vec<T>, Vec<T>) {
    let mut y = vec![T::zero(); scan.u.len()];
    let mut last = vec![T::zero(); scan.states * scan.shape.state_len()];
    for run in scan.runs {
        for channel in 0..scan.shape.channels {
            let mut state = scan.first_state(run, channel);
            for token in run.start..run.start + run.len {
                scan.advance(&mut state, token, channel);
                let at = token * scan.shape.channels + channel;
                let gate = scan.z.map_or(T::one(), |z| z[at] * sigmoid(z[at]));
                y[at] = scan.read(&state, token, channel) * gate;
            }
            if let Some(index) = run.last {
                last[scan.state(index, channel)].copy_from_slice(&state);
            }
        }
    }
    (y, last)
}

/// Gradients for the cotangents of `y` and of the last states.
pub fn backward<T: Float>(scan: &Scan<T>, dy: &[T], dlast: Option<&[T]>) -> Gradients<T> {
    let zeros = |len: usize| vec![T::zero(); len];
    let channels = scan.shape.channels;
    let mut grads = Gradients {
        u: zeros(scan.u.len()),
        delta: zeros(scan.u.len()),
        delta_bias: zeros(channels),
        a: zeros(scan.a.len()),
        b: zeros(scan.b.values().len()),
        c: zeros(scan.c.values().len()),
        d: zeros(channels),
        z: zeros(scan.z.map_or(0, <[T]>::len)),
        initial_states: zeros(scan.initial_states.map_or(0, <[T]>::len)),
    };
    for run in scan.runs {
        for channel in 0..channels {
            let mut ds = match (dlast, run.last) {
                (Some(dlast), Some(index)) => dlast[scan.state(index, channel)].to_vec(),
                _ => zeros(scan.shape.d_state),
            };
            backward_run(scan, dy, run, channel, &mut ds, &mut grads);
            if let (Some(_), Some(index)) = (scan.initial_states, run.initial) {
                grads.initial_states[scan.state(index, channel)].copy_from_slice(&ds);
            }
        }
    }
    grads
}

/// Walks one run backwards; `ds` enters as the gradient of its last state and leaves as that of its
/// initial one.
fn backward_run<T: Float>(
    scan: &Scan<T>,
    dy: &[T],
    run: &Run,
    channel: usize,
    ds: &mut [T],
    grads: &mut Gradients<T>,
) {
    let mut checkpoints = Vec::new();
    let mut state = scan.first_state(run, channel);
    for offset in 0..run.len {
        if offset % CHECKPOINT == 0 {
            checkpoints.push(state.clone());
        }
        scan.advance(&mut state, run.start + offset, channel);
    }
    for (block, checkpoint) in checkpoints.iter().enumerate().rev() {
        let begin = block * CHECKPOINT;
        let end = run.len.min(begin + CHECKPOINT);
        // States before each token of the block, and the one after the last.
        let mut states = vec![checkpoint.clone()];
        for offset in begin..end {
            let mut next = states[offset - begin].clone();
            scan.advance(&mut next, run.start + offset, channel);
            states.push(next);
        }
        for offset in (begin..end).rev() {
            let (before, after) = (&states[offset - begin], &states[offset - begin + 1]);
            backward_token(scan, dy, (run.start + offset, channel), (before, after), ds, grads);
        }
    }
}

fn backward_token<T: Float>(
    scan: &Scan<T>,
    dy: &[T],
    (token, channel): (usize, usize),
    (before, after): (&[T], &[T]),
    ds: &mut [T],
    grads: &mut Gradients<T>,
) {
    let at = token * scan.shape.channels + channel;
    let (step, slope) = scan.step(token, channel);
    let u = scan.u[at];
    let mut g = dy[at];
    if let Some(z) = scan.z {
        let (gate, one) = (sigmoid(z[at]), T::one());
        let y = scan.read(after, token, channel);
        grads.z[at] = g * y * gate * (one + z[at] * (one - gate));
        g = g * z[at] * gate;
    }
    let (b0, c0) =
        (scan.b.start(&scan.shape, token, channel), scan.c.start(&scan.shape, token, channel));
    let (mut through_input, mut through_decay) = (T::zero(), T::zero());
    for (k, &a) in scan.row(channel).iter().enumerate() {
        let decay = (step * a).exp();
        ds[k] = ds[k] + g * scan.c.values()[c0 + k];
        grads.c[c0 + k] = grads.c[c0 + k] + g * after[k];
        grads.b[b0 + k] = grads.b[b0 + k] + step * u * ds[k];
        through_input = through_input + ds[k] * scan.b.values()[b0 + k];
        let exponent = decay * before[k] * ds[k];
        let row = channel * scan.shape.d_state + k;
        grads.a[row] = grads.a[row] + step * exponent;
        through_decay = through_decay + a * exponent;
        ds[k] = decay * ds[k];
    }
    grads.u[at] = step * through_input;
    if let Some(d) = scan.d {
        grads.u[at] = grads.u[at] + d[channel] * g;
        grads.d[channel] = grads.d[channel] + g * u;
    }
    grads.delta[at] = (u * through_input + through_decay) * slope;
    grads.delta_bias[channel] = grads.delta_bias[channel] + grads.delta[at];
}
