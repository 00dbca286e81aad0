//! Softmax and log-softmax over the last dimension.
//!
//! `y = e^(x - max) / sum e^(x - max)`, or `y = x - max - ln(sum e^(x - max))`. Entries of minus
//! infinity get probability 0; a row that has nothing else, or a NaN, or plus infinity, is all NaN,
//! as the quotient is. Sums are f32 for f32 and bf16, f64 for f64.
//!
//! Backward, from the output: `dx = y (dy - sum(y dy))`, and `dx = dy - e^y sum(dy)` for the logarithm.

pub mod cpu;
pub mod reference;

#[cfg(test)]
mod tests;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Probabilities.
    Softmax,
    /// Their logarithms.
    LogSoftmax,
}
