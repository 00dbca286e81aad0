//! The recurrence written down: one token after the other, any float type. It is the oracle of the
//! tests and the f64 path. Backward is the reverse recurrence, with states recomputed from checkpoints.

use super::config::Shape;
use super::runs::Run;
use num_traits::Float;

/// Tokens between two kept states of the backward pass.
const CHECKPOINT: usize = 64;

/// Inputs of the core recurrence; arrays are contiguous.
pub struct Core<'a, T> {
    /// Sizes.
    pub shape: Shape,
    /// The sequences.
    pub runs: &'a [Run],
    /// `[tokens, heads, head_dim]`.
    pub x: &'a [T],
    /// `[tokens, heads]`, logarithm of the decay before each token.
    pub log_decay: &'a [T],
    /// `[tokens, heads]`, factor of the token's contribution.
    pub scale: &'a [T],
    /// `[tokens, groups, d_state]`.
    pub b: &'a [T],
    /// `[tokens, groups, d_state]`.
    pub c: &'a [T],
    /// `[heads, head_dim]`, factor of the skip connection.
    pub d: Option<&'a [T]>,
    /// `[states, heads, head_dim, d_state]`.
    pub initial_states: Option<&'a [T]>,
    /// Number of final states.
    pub states: usize,
}

/// Gradients of the core recurrence, shaped like the inputs.
pub struct CoreGradients<T> {
    /// Of `x`.
    pub x: Vec<T>,
    /// Of `log_decay`.
    pub log_decay: Vec<T>,
    /// Of `scale`.
    pub scale: Vec<T>,
    /// Of `b`.
    pub b: Vec<T>,
    /// Of `c`.
    pub c: Vec<T>,
    /// Of `d`, zero without one.
    pub d: Vec<T>,
    /// Of `initial_states`.
    pub initial_states: Vec<T>,
}

impl<T: Float> Core<'_, T> {
    fn row(&self, token: usize, head: usize) -> std::ops::Range<usize> {
        let start = (token * self.shape.heads + head) * self.shape.head_dim;
        start..start + self.shape.head_dim
    }

    fn group_row(&self, token: usize, head: usize) -> std::ops::Range<usize> {
        let group = head / self.shape.heads_per_group();
        let start = (token * self.shape.groups + group) * self.shape.d_state;
        start..start + self.shape.d_state
    }

    fn state_range(&self, index: usize, head: usize) -> std::ops::Range<usize> {
        let len = self.shape.head_dim * self.shape.d_state;
        let start = (index * self.shape.heads + head) * len;
        start..start + len
    }

    fn first_state(&self, run: &Run, head: usize) -> Vec<T> {
        match (self.initial_states, run.initial) {
            (Some(states), Some(index)) => states[self.state_range(index, head)].to_vec(),
            _ => vec![T::zero(); self.shape.head_dim * self.shape.d_state],
        }
    }

    /// `s <- exp(log_decay) s + scale x B^T`.
    fn advance(&self, state: &mut [T], token: usize, head: usize) {
        let decay = self.log_decay[token * self.shape.heads + head].exp();
        let scale = self.scale[token * self.shape.heads + head];
        let b = &self.b[self.group_row(token, head)];
        let rows = state.chunks_exact_mut(b.len());
        for (row, &x) in rows.zip(&self.x[self.row(token, head)]) {
            for (s, &b) in row.iter_mut().zip(b) {
                *s = decay * *s + scale * x * b;
            }
        }
    }
}

/// `(y, final_state)`.
pub fn core_forward<T: Float>(core: &Core<T>) -> (Vec<T>, Vec<T>) {
    let mut y = vec![T::zero(); core.x.len()];
    let mut final_state = vec![T::zero(); core.states * core.shape.state_len()];
    for run in core.runs {
        for head in 0..core.shape.heads {
            let mut state = core.first_state(run, head);
            for token in run.start..run.start + run.len {
                core.advance(&mut state, token, head);
                let c = &core.c[core.group_row(token, head)];
                for (p, index) in core.row(token, head).enumerate() {
                    let row = &state[p * c.len()..(p + 1) * c.len()];
                    y[index] = dot(row, c);
                    if let Some(d) = core.d {
                        y[index] = y[index] + d[head * core.shape.head_dim + p] * core.x[index];
                    }
                }
            }
            if let Some(index) = run.last {
                final_state[core.state_range(index, head)].copy_from_slice(&state);
            }
        }
    }
    (y, final_state)
}

/// Gradients for the cotangents of `y` and of the final states.
pub fn core_backward<T: Float>(core: &Core<T>, dy: &[T], dfinal: Option<&[T]>) -> CoreGradients<T> {
    let zeros = |len: usize| vec![T::zero(); len];
    let mut grads = CoreGradients {
        x: zeros(core.x.len()),
        log_decay: zeros(core.log_decay.len()),
        scale: zeros(core.scale.len()),
        b: zeros(core.b.len()),
        c: zeros(core.c.len()),
        d: zeros(core.shape.heads * core.shape.head_dim),
        initial_states: zeros(core.initial_states.map_or(0, <[T]>::len)),
    };
    for run in core.runs {
        for head in 0..core.shape.heads {
            let mut ds = match (dfinal, run.last) {
                (Some(dfinal), Some(index)) => dfinal[core.state_range(index, head)].to_vec(),
                _ => zeros(core.shape.head_dim * core.shape.d_state),
            };
            backward_run(core, dy, run, head, &mut ds, &mut grads);
            if let (Some(_), Some(index)) = (core.initial_states, run.initial) {
                grads.initial_states[core.state_range(index, head)].copy_from_slice(&ds);
            }
        }
    }
    grads
}

/// Walks one run backwards; `ds` enters as the gradient of its final state and leaves as that of its
/// initial one.
fn backward_run<T: Float>(
    core: &Core<T>,
    dy: &[T],
    run: &Run,
    head: usize,
    ds: &mut [T],
    grads: &mut CoreGradients<T>,
) {
    let mut checkpoints = Vec::new();
    let mut state = core.first_state(run, head);
    for offset in 0..run.len {
        if offset % CHECKPOINT == 0 {
            checkpoints.push(state.clone());
        }
        core.advance(&mut state, run.start + offset, head);
    }
    for (block, checkpoint) in checkpoints.iter().enumerate().rev() {
        let begin = block * CHECKPOINT;
        let end = run.len.min(begin + CHECKPOINT);
        // States before each token of the block, and the one after the last.
        let mut states = vec![checkpoint.clone()];
        for offset in begin..end {
            let mut next = states[offset - begin].clone();
            core.advance(&mut next, run.start + offset, head);
            states.push(next);
        }
        for offset in (begin..end).rev() {
            let (before, after) = (&states[offset - begin], &states[offset - begin + 1]);
            backward_token(core, dy, (run.start + offset, head), (before, after), ds, grads);
        }
    }
}

fn backward_token<T: Float>(
    core: &Core<T>,
    dy: &[T],
    (token, head): (usize, usize),
    (before, after): (&[T], &[T]),
    ds: &mut [T],
    grads: &mut CoreGradients<T>,
) {
    let n = core.shape.d_state;
    let scalar = token * core.shape.heads + head;
    let (scale, decay) = (core.scale[scalar], core.log_decay[scalar].exp());
    let group_row = core.group_row(token, head);
    for (p, index) in core.row(token, head).enumerate() {
        let (g, x) = (dy[index], core.x[index]);
        let mut ds_b = T::zero();
        for (k, column) in group_row.clone().enumerate() {
            let at = p * n + k;
            ds[at] = ds[at] + g * core.c[column];
            grads.c[column] = grads.c[column] + g * after[at];
            grads.b[column] = grads.b[column] + scale * x * ds[at];
            ds_b = ds_b + ds[at] * core.b[column];
            grads.log_decay[scalar] = grads.log_decay[scalar] + decay * before[at] * ds[at];
            ds[at] = decay * ds[at];
        }
        grads.x[index] = scale * ds_b;
        grads.scale[scalar] = grads.scale[scalar] + x * ds_b;
        if let Some(d) = core.d {
            let at = head * core.shape.head_dim + p;
            grads.x[index] = grads.x[index] + d[at] * g;
            grads.d[at] = grads.d[at] + g * x;
        }
    }
}

/// The same operator as an explicit lower-triangular matrix: quadratic in the length, for tests.
pub fn quadratic_forward<T: Float>(core: &Core<T>) -> Vec<T> {
    let mut y = vec![T::zero(); core.x.len()];
    for run in core.runs {
        for head in 0..core.shape.heads {
            let first = core.first_state(run, head);
            let at = |token: usize| token * core.shape.heads + head;
            for i in run.start..run.start + run.len {
                let c = &core.c[core.group_row(i, head)];
                // Walk j downwards so that the exponent is a plain sum of the decays in between.
                let mut exponent = T::zero();
                for j in (run.start..=i).rev() {
                    let cb = dot(c, &core.b[core.group_row(j, head)]);
                    let weight = exponent.exp() * cb * core.scale[at(j)];
                    for (to, from) in core.row(i, head).zip(core.row(j, head)) {
                        add_to(&mut y[to], weight * core.x[from]);
                    }
                    exponent = exponent + core.log_decay[at(j)];
                }
                for (p, index) in core.row(i, head).enumerate() {
                    let row = &first[p * c.len()..(p + 1) * c.len()];
                    add_to(&mut y[index], exponent.exp() * dot(row, c));
                    if let Some(d) = core.d {
                        let skip = d[head * core.shape.head_dim + p] * core.x[index];
                        add_to(&mut y[index], skip);
                    }
                }
            }
        }
    }
    y
}

fn add_to<T: Float>(target: &mut T, value: T) {
    *target = *target + value;
}

fn dot<T: Float>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).fold(T::zero(), |sum, (&a, &b)| sum + a * b)
}

/// How `dt` becomes the step size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Steps {
    /// Apply softplus after the bias.
    pub dt_softplus: bool,
    /// Bounds applied last; the gradient is zero outside.
    pub dt_limit: (f64, f64),
}

impl Default for Steps {
    fn default() -> Self {
        Self { dt_softplus: false, dt_limit: (0.0, f64::INFINITY) }
    }
}

/// The step size before clamping, and its derivative.
pub(crate) fn unclamped<T: Float>(raw: T, steps: &Steps) -> (T, T) {
    let threshold = T::from(20.0).unwrap_or_else(T::infinity);
    if !steps.dt_softplus || raw > threshold {
        (raw, T::one())
    } else {
        (raw.exp().ln_1p(), T::one() / (T::one() + (-raw).exp()))
    }
}

fn limits<T: Float>(steps: &Steps) -> (T, T) {
    let low = T::from(steps.dt_limit.0).unwrap_or_else(T::neg_infinity);
    (low, T::from(steps.dt_limit.1).unwrap_or_else(T::infinity))
}

/// `(scale, log_decay)` from `dt` `[tokens, heads]`, `A` `[heads]` and `dt_bias` `[heads]`.
pub fn prologue<T: Float>(
    dt: &[T],
    a: &[T],
    dt_bias: Option<&[T]>,
    steps: &Steps,
) -> (Vec<T>, Vec<T>) {
    let (low, high) = limits(steps);
    let scale: Vec<T> = (0..dt.len())
        .map(|i| {
            let raw = dt[i] + dt_bias.map_or(T::zero(), |bias| bias[i % a.len()]);
            let value = unclamped(raw, steps).0;
            if value < low {
                low
            } else if value > high {
                high
            } else {
                value
            }
        })
        .collect();
    let log_decay = scale.iter().enumerate().map(|(i, &scale)| scale * a[i % a.len()]).collect();
    (scale, log_decay)
}

/// `(d dt, d A, d dt_bias)` from the gradients of both results of [`prologue`].
pub fn prologue_backward<T: Float>(
    (dt, a, dt_bias): (&[T], &[T], Option<&[T]>),
    steps: &Steps,
    dscale: &[T],
    dlog_decay: &[T],
) -> (Vec<T>, Vec<T>, Vec<T>) {
    let (low, high) = limits::<T>(steps);
    let mut da = vec![T::zero(); a.len()];
    let mut dbias = vec![T::zero(); a.len()];
    let mut ddt = vec![T::zero(); dt.len()];
    for i in 0..dt.len() {
        let head = i % a.len();
        let raw = dt[i] + dt_bias.map_or(T::zero(), |bias| bias[head]);
        let (value, slope) = unclamped(raw, steps);
        let clamped = value.max(low).min(high);
        da[head] = da[head] + clamped * dlog_decay[i];
        if value >= low && value <= high {
            ddt[i] = (dscale[i] + a[head] * dlog_decay[i]) * slope;
            dbias[head] = dbias[head] + ddt[i];
        }
    }
    (ddt, da, dbias)
}

/// `y silu(z)` in place.
pub fn gate<T: Float>(y: &mut [T], z: &[T]) {
    for (y, &z) in y.iter_mut().zip(z) {
        *y = *y * z / (T::one() + (-z).exp());
    }
}

/// `(gradient of y before the gate, dz)`.
pub fn gate_backward<T: Float>(y: &[T], z: &[T], dout: &[T]) -> (Vec<T>, Vec<T>) {
    let one = T::one();
    let sigmoid = |z: T| one / (one + (-z).exp());
    let dy = dout.iter().zip(z).map(|(&g, &z)| g * z * sigmoid(z)).collect();
    let slope = |z: T| sigmoid(z) * (one + z * (one - sigmoid(z)));
    let dz = (0..y.len()).map(|i| dout[i] * y[i] * slope(z[i])).collect();
    (dy, dz)
}
