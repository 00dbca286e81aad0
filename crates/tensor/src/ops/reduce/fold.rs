//! The loop under every reduction.

use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{Kernel, Simd, dispatch};
use danaus_runtime::threads::{self, SharedMut};

/// A tensor as `outer x count x inner`, of which `count` is folded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub outer: usize,
    pub count: usize,
    pub inner: usize,
}

/// One way to fold values.
pub(super) trait Fold<V>: Copy + Send + Sync {
    /// What is known of the values so far.
    type State: Copy + Default + Send + Sync;
    /// Of no values.
    fn start(&self) -> Self::State;
    /// With one more value, the `index`-th along the folded dimension.
    fn step(&self, state: Self::State, value: V, index: usize) -> Self::State;
    /// Of two sets of values; `a` comes first.
    fn join(&self, a: Self::State, b: Self::State) -> Self::State;
}

/// States kept side by side, along a row or across columns.
const LANES: usize = 32;
/// Columns folded together when the folded dimension is not the last one.
const COLUMNS: usize = 256;
/// Elements worth a task.
const GRAIN: usize = 1 << 15;
/// Units of work below which long folds are cut into parts.
const FEW_UNITS: usize = 16;

/// Folds `x` to `out` (`outer x inner` elements).
pub(super) fn fold<T, U, V, F>(
    extent: Extent,
    x: &[T],
    out: &mut [U],
    widen: impl Fn(T) -> V + Copy + Sync + Send,
    finish: impl Fn(F::State) -> U + Copy + Sync + Send,
    fold: F,
) where
    T: Copy + Send + Sync,
    U: Copy + Send + Sync,
    F: Fold<V>,
{
    let Extent { outer, count, inner } = extent;
    let bands = if inner == 1 { 1 } else { inner.div_ceil(COLUMNS) };
    // By the shape alone: the number of parts must not depend on threads.
    let long = outer * bands < FEW_UNITS && count * inner > 2 * GRAIN;
    let part = if long { count.div_ceil(64).max(GRAIN.div_ceil(inner)) } else { count.max(1) };
    let parts = count.div_ceil(part).max(1);
    let mut partial = Scratch::<F::State>::new(if parts > 1 { parts * out.len() } else { 0 });
    let (partial_out, out_len) = (SharedMut::new(&mut partial), out.len());
    let shared = SharedMut::new(out);
    let units = parts * outer * bands;
    let unit_size = (part * inner.min(COLUMNS)).max(1);
    let (tasks, per_task) = threads::split(units, GRAIN.div_ceil(unit_size));
    threads::for_each(tasks, |task| {
        let mut states = [fold.start(); COLUMNS];
        for unit in task * per_task..((task + 1) * per_task).min(units) {
            let (chunk, row, band) = (unit / bands / outer, unit / bands % outer, unit % bands);
            let rows = chunk * part..((chunk + 1) * part).min(count);
            let columns = band * COLUMNS..((band + 1) * COLUMNS).min(inner);
            let columns = if inner == 1 { 0..1 } else { columns };
            let block = &x[row * count * inner..(row + 1) * count * inner];
            let (first, width) = (row * inner + columns.start, columns.len());
            let states = &mut states[..width];
            states.fill(fold.start());
            dispatch(Block { x: block, inner, rows, columns, states: &mut *states, widen, fold });
            if parts == 1 {
                // SAFETY: units write disjoint ranges.
                let to = unsafe { shared.slice(first, width) };
                to.iter_mut().zip(&*states).for_each(|(to, state)| *to = finish(*state));
            } else {
                // SAFETY: units write disjoint ranges.
                let to = unsafe { partial_out.slice(chunk * out_len + first, width) };
                to.copy_from_slice(states);
            }
        }
    });
    if parts > 1 {
        for (index, to) in out.iter_mut().enumerate() {
            let states = (0..parts).map(|chunk| partial[chunk * out_len + index]);
            *to = finish(states.reduce(|a, b| fold.join(a, b)).unwrap_or(fold.start()));
        }
    }
}

/// Folds some rows of some columns.
struct Block<'a, T, F, S, W> {
    x: &'a [T],
    inner: usize,
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
    states: &'a mut [S],
    widen: W,
    fold: F,
}

impl<T, V, F, W> Kernel for Block<'_, T, F, F::State, W>
where
    T: Copy,
    F: Fold<V>,
    W: Fn(T) -> V,
{
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        if self.inner == 1 {
            let row = &self.x[self.rows.clone()];
            self.states[0] = fold_row(row, self.rows.start, &self.widen, self.fold);
            return;
        }
        for row in self.rows {
            let from = &self.x[row * self.inner..][self.columns.clone()];
            for (state, &value) in self.states.iter_mut().zip(from) {
                *state = self.fold.step(*state, (self.widen)(value), row);
            }
        }
    }
}

#[inline(always)]
fn fold_row<T: Copy, V, F: Fold<V>>(
    row: &[T],
    first: usize,
    widen: &impl Fn(T) -> V,
    fold: F,
) -> F::State {
    if row.len() < LANES {
        let mut state = fold.start();
        for (index, &value) in row.iter().enumerate() {
            state = fold.step(state, widen(value), first + index);
        }
        return state;
    }
    let mut lanes = [fold.start(); LANES];
    let whole = row.len() - row.len() % LANES;
    for start in (0..whole).step_by(LANES) {
        let chunk = &row[start..start + LANES];
        for lane in 0..LANES {
            lanes[lane] = fold.step(lanes[lane], widen(chunk[lane]), first + start + lane);
        }
    }
    for (lane, &value) in row[whole..].iter().enumerate() {
        lanes[lane] = fold.step(lanes[lane], widen(value), first + whole + lane);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] = fold.join(lanes[lane], lanes[lane + width]);
        }
    }
    lanes[0]
}
