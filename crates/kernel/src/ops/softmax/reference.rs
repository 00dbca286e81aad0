//! Softmax row by row, plainly; the oracle and the f64 path.

use super::Form;
use num_traits::Float;

/// `y` from rows of `cols` values.
pub fn forward<T: Float>(form: Form, cols: usize, x: &[T], y: &mut [T]) {
    for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)) {
        let largest = x.iter().copied().fold(T::neg_infinity(), T::max);
        let sum = x.iter().fold(T::zero(), |sum, &x| sum + (x - largest).exp());
        for (x, y) in x.iter().zip(y) {
            *y = match form {
                Form::Softmax => (*x - largest).exp() / sum,
                Form::LogSoftmax => *x - largest - sum.ln(),
            };
        }
    }
}

/// `dx` from the output `y` and its cotangent.
pub fn backward<T: Float>(form: Form, cols: usize, (y, dy): (&[T], &[T]), dx: &mut [T]) {
    let rows = y.chunks_exact(cols).zip(dy.chunks_exact(cols));
    for ((y, dy), dx) in rows.zip(dx.chunks_exact_mut(cols)) {
        let weighted = |(&y, &dy): (&T, &T)| match form {
            Form::Softmax => y * dy,
            Form::LogSoftmax => dy,
        };
        let sum = y.iter().zip(dy).map(weighted).fold(T::zero(), |a, b| a + b);
        for ((y, dy), dx) in y.iter().zip(dy).zip(dx) {
            *dx = match form {
                Form::Softmax => *y * (*dy - sum),
                Form::LogSoftmax => *dy - y.exp() * sum,
            };
        }
    }
}
