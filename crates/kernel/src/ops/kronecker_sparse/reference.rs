//! The product written down, for real and complex numbers: the oracle of the tests, and the path of
//! f64 and of complex numbers.

use super::pattern::Step;
use danaus_runtime::threads::{self, SharedMut};
use danaus_tensor::Element;
use num_complex::Complex;
use std::ops::{AddAssign, Mul};

/// Numbers that factors are made of.
pub trait Scalar: Element + Mul<Output = Self> + AddAssign {
    /// The complex conjugate.
    fn conjugate(self) -> Self;
}

macro_rules! real {
    ($($type:ty),*) => { $(
        impl Scalar for $type {
            fn conjugate(self) -> Self {
                self
            }
        }
    )* };
}
real!(f32, f64);

impl Scalar for Complex<f32> {
    fn conjugate(self) -> Self {
        self.conj()
    }
}

impl Scalar for Complex<f64> {
    fn conjugate(self) -> Self {
        self.conj()
    }
}

/// `y = W x` for one factor and one vector.
fn multiply<T: Scalar>(step: &Step, values: &[T], x: &[T], y: &mut [T]) {
    let blocks = step.blocks();
    for g in 0..blocks.count() {
        let (row, col, value) = blocks.start(g);
        for p in 0..blocks.rows {
            let mut sum = T::default();
            for q in 0..blocks.cols {
                let w = values[value + p * blocks.row_stride + q * blocks.col_stride];
                sum += w * x[col + q * blocks.d];
            }
            y[row + p * blocks.d] = sum;
        }
    }
}

/// `dx = W^H dy` and `dW += dy x^H` for one factor and one vector.
fn pull<T: Scalar>(
    step: &Step,
    values: &[T],
    (x, dy): (&[T], &[T]),
    dx: &mut [T],
    dvalues: &mut [T],
) {
    let blocks = step.blocks();
    dx.fill(T::default());
    for g in 0..blocks.count() {
        let (row, col, value) = blocks.start(g);
        for p in 0..blocks.rows {
            let up = dy[row + p * blocks.d];
            for q in 0..blocks.cols {
                let at = value + p * blocks.row_stride + q * blocks.col_stride;
                let from = col + q * blocks.d;
                dx[from] += values[at].conjugate() * up;
                dvalues[at] += up * x[from].conjugate();
            }
        }
    }
}

/// The longest vector between two factors.
fn widest(steps: &[Step]) -> usize {
    steps.iter().map(|step| step.rows().max(step.cols())).max().unwrap_or(0)
}

/// Rows of `y` from rows of `x`.
pub fn forward<T: Scalar>(steps: &[Step], sources: &[&[T]], x: &[T], y: &mut [T]) {
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return };
    let (cols, rows, width) = (first.cols(), last.rows(), widest(steps));
    let count = x.len() / cols;
    let work: usize = steps.iter().map(|step| step.pattern.parameters()).sum();
    let (tasks, each) = threads::split(count, (1 << 16) / work.clamp(1, 1 << 16));
    let shared = SharedMut::new(y);
    threads::for_each(tasks, |task| {
        let mut buffers = [vec![T::default(); width], vec![T::default(); width]];
        for row in task * each..((task + 1) * each).min(count) {
            buffers[0][..cols].copy_from_slice(&x[row * cols..][..cols]);
            for step in steps {
                let [from, to] = &mut buffers;
                let values = &sources[step.source][step.range()];
                multiply(step, values, &from[..step.cols()], &mut to[..step.rows()]);
                buffers.swap(0, 1);
            }
            // SAFETY: every row of y belongs to one task.
            let out = unsafe { shared.slice(row * rows, rows) };
            out.copy_from_slice(&buffers[0][..rows]);
        }
    });
}

/// Gradients of `x` and of every source; complex ones are conjugate (`dx = W^H dy`).
pub fn backward<T: Scalar>(
    steps: &[Step],
    sources: &[&[T]],
    (x, dy): (&[T], &[T]),
    dx: &mut [T],
    dsources: &mut [Vec<T>],
) {
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return };
    let (cols, rows) = (first.cols(), last.rows());
    let mut inputs: Vec<Vec<T>> =
        steps.iter().map(|step| vec![T::default(); step.cols()]).collect();
    let mut grads = [vec![T::default(); widest(steps)], vec![T::default(); widest(steps)]];
    for ((x, dy), dx) in
        x.chunks_exact(cols).zip(dy.chunks_exact(rows)).zip(dx.chunks_exact_mut(cols))
    {
        inputs[0].copy_from_slice(x);
        for (index, step) in steps[..steps.len() - 1].iter().enumerate() {
            let (from, to) = inputs.split_at_mut(index + 1);
            let values = &sources[step.source][step.range()];
            multiply(step, values, &from[index], &mut to[0]);
        }
        grads[0][..rows].copy_from_slice(dy);
        for (index, step) in steps.iter().enumerate().rev() {
            let [from, to] = &mut grads;
            let values = &sources[step.source][step.range()];
            let dvalues = &mut dsources[step.source][step.range()];
            let up = &from[..step.rows()];
            pull(step, values, (&inputs[index], up), &mut to[..step.cols()], dvalues);
            grads.swap(0, 1);
        }
        dx.copy_from_slice(&grads[0][..cols]);
    }
}
