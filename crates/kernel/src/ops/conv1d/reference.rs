//! The convolution written down, any float type: the oracle of the tests and the f64 path.

use crate::ops::ssd::runs::Run;
use num_traits::Float;

/// Inputs, contiguous and channel-last.
pub struct Conv<'a, T> {
    /// The sequences.
    pub runs: &'a [Run],
    /// Channels.
    pub channels: usize,
    /// Taps.
    pub width: usize,
    /// `[tokens, channels]`.
    pub x: &'a [T],
    /// `[channels, width]`, the last tap meets the current token.
    pub weight: &'a [T],
    /// `[channels]`.
    pub bias: Option<&'a [T]>,
    /// `[states, channels, width - 1]`, oldest first.
    pub initial_states: Option<&'a [T]>,
    /// Number of final states.
    pub states: usize,
    /// Apply silu.
    pub silu: bool,
}

/// Gradients, shaped like the inputs.
pub struct Gradients<T> {
    /// Of `x`.
    pub x: Vec<T>,
    /// Of `weight`.
    pub weight: Vec<T>,
    /// Of `bias`, zero without one.
    pub bias: Vec<T>,
    /// Of `initial_states`.
    pub initial_states: Vec<T>,
}

/// Where the input of a tap lies.
enum Tap {
    Token(usize),
    State(usize),
    Zero,
}

impl<T: Float> Conv<'_, T> {
    /// The input `offset` rows after the start of a run; negative offsets reach into its state.
    fn tap(&self, run: &Run, channel: usize, offset: isize) -> Tap {
        if offset >= 0 {
            return Tap::Token((run.start + offset as usize) * self.channels + channel);
        }
        let history = self.width - 1;
        match (self.initial_states, run.initial) {
            (Some(_), Some(index)) => {
                let place = (history as isize + offset) as usize;
                Tap::State((index * self.channels + channel) * history + place)
            }
            _ => Tap::Zero,
        }
    }

    fn value(&self, tap: &Tap) -> T {
        match *tap {
            Tap::Token(at) => self.x[at],
            Tap::State(at) => self.initial_states.map_or(T::zero(), |states| states[at]),
            Tap::Zero => T::zero(),
        }
    }

    fn before_activation(&self, run: &Run, channel: usize, row: usize) -> T {
        let start = self.bias.map_or(T::zero(), |bias| bias[channel]);
        (0..self.width).fold(start, |sum, w| {
            let offset = (row + w) as isize - (self.width as isize - 1);
            let input = self.value(&self.tap(run, channel, offset));
            sum + self.weight[channel * self.width + w] * input
        })
    }
}

/// `(y, final_states)`.
pub fn forward<T: Float>(conv: &Conv<T>) -> (Vec<T>, Vec<T>) {
    let history = conv.width - 1;
    let mut y = vec![T::zero(); conv.x.len()];
    let mut last = vec![T::zero(); conv.states * conv.channels * history];
    for run in conv.runs {
        for channel in 0..conv.channels {
            for row in 0..run.len {
                let value = conv.before_activation(run, channel, row);
                let gate = if conv.silu { T::one() + (-value).exp() } else { T::one() };
                y[(run.start + row) * conv.channels + channel] = value / gate;
            }
            let Some(index) = run.last else { continue };
            for place in 0..history {
                let offset = (run.len + place) as isize - history as isize;
                let to = (index * conv.channels + channel) * history + place;
                last[to] = conv.value(&conv.tap(run, channel, offset));
            }
        }
    }
    (y, last)
}

/// Gradients for the cotangents of `y` and of the final states.
pub fn backward<T: Float>(conv: &Conv<T>, dy: &[T], dfinal: Option<&[T]>) -> Gradients<T> {
    let zeros = |len: usize| vec![T::zero(); len];
    let mut grads = Gradients {
        x: zeros(conv.x.len()),
        weight: zeros(conv.weight.len()),
        bias: zeros(conv.channels),
        initial_states: zeros(conv.initial_states.map_or(0, <[T]>::len)),
    };
    let history = conv.width - 1;
    let one = T::one();
    for run in conv.runs {
        for channel in 0..conv.channels {
            for row in 0..run.len {
                let mut g = dy[(run.start + row) * conv.channels + channel];
                if conv.silu {
                    let value = conv.before_activation(run, channel, row);
                    let sigmoid = one / (one + (-value).exp());
                    g = g * sigmoid * (one + value * (one - sigmoid));
                }
                grads.bias[channel] = grads.bias[channel] + g;
                for w in 0..conv.width {
                    let tap = conv.tap(run, channel, (row + w) as isize - history as isize);
                    let at = channel * conv.width + w;
                    grads.weight[at] = grads.weight[at] + g * conv.value(&tap);
                    grads.add(&tap, g * conv.weight[at]);
                }
            }
            let (Some(dfinal), Some(index)) = (dfinal, run.last) else { continue };
            for place in 0..history {
                let tap = conv.tap(run, channel, (run.len + place) as isize - history as isize);
                grads.add(&tap, dfinal[(index * conv.channels + channel) * history + place]);
            }
        }
    }
    grads
}

impl<T: Float> Gradients<T> {
    fn add(&mut self, tap: &Tap, value: T) {
        match *tap {
            Tap::Token(at) => self.x[at] = self.x[at] + value,
            Tap::State(at) => self.initial_states[at] = self.initial_states[at] + value,
            Tap::Zero => {}
        }
    }
}

/// Sizes of an update step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdateShape {
    /// Sequences.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// New tokens.
    pub seqlen: usize,
    /// Taps.
    pub width: usize,
    /// Inputs that the state holds, at least `width - 1`.
    pub state_len: usize,
}

/// One decoding step on channel-first arrays: `x` and `y` `[batch, channels, seqlen]`, `state`
/// `[batch, channels, state_len]`, advanced in place.
///
/// Without `cache_seqlens` the state is a line, oldest input first. With it the state is a ring, and the
/// next input of sequence `b` goes to place `cache_seqlens[b] % state_len`.
pub fn update<T: Float>(
    shape: &UpdateShape,
    x: &[T],
    state: &mut [T],
    (weight, bias): (&[T], Option<&[T]>),
    silu: bool,
    cache_seqlens: Option<&[i64]>,
    y: &mut [T],
) {
    let &UpdateShape { seqlen, width, state_len, .. } = shape;
    let history = width - 1;
    let mut inputs = vec![T::zero(); state_len.max(history) + seqlen];
    for row in 0..shape.batch * shape.channels {
        let (batch, channel) = (row / shape.channels, row % shape.channels);
        let state = &mut state[row * state_len..(row + 1) * state_len];
        let new = &x[row * seqlen..(row + 1) * seqlen];
        let position =
            cache_seqlens.map(|seqlens| seqlens[batch].rem_euclid(state_len.max(1) as i64));
        // The line of the last `state_len` inputs, then the new ones.
        for place in 0..state_len {
            let from = position.map_or(place, |position| (position as usize + place) % state_len);
            inputs[place] = state[from];
        }
        inputs[state_len..state_len + seqlen].copy_from_slice(new);
        for t in 0..seqlen {
            let first = state_len + t - history;
            let taps = inputs[first..first + width].iter();
            let start = bias.map_or(T::zero(), |bias| bias[channel]);
            let weights = &weight[channel * width..(channel + 1) * width];
            let sum = taps.zip(weights).fold(start, |sum, (&x, &w)| sum + x * w);
            y[row * seqlen + t] = if silu { sum / (T::one() + (-sum).exp()) } else { sum };
        }
        match position {
            None => state.copy_from_slice(&inputs[seqlen..seqlen + state_len]),
            Some(position) => {
                for (t, &value) in new.iter().enumerate() {
                    state[(position as usize + t) % state_len] = value;
                }
            }
        }
    }
}
