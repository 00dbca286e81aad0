//! Layer norm and RMS norm over the last dimension, with an optional residual addition in front.
//!
//! For each row h of `cols` values, with learned `weight` and `bias` (both optional):
//!
//! * layer norm (Ba, Kiros, Hinton 2016): `y = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias`,
//!   where var divides by `cols`;
//! * RMS norm (Zhang and Sennrich 2019): `y = h / sqrt(mean(h^2) + eps) * weight + bias`.
//!
//! The fused form takes `x` and `residual`, computes `h = x + residual`, and returns h as well, which
//! pre-norm blocks carry on. h is rounded to the storage type before it is normalised, so `y` is
//! exactly the norm of the h that is returned, and the backward pass needs nothing but h.
//!
//! Statistics are f32 for f32 and bf16 (the variance in a second pass around the mean, so that a large
//! mean does not cancel it), f64 for f64. The backward pass recomputes them: the row is in the nearest
//! cache then, and nothing has to be saved. Column sums for `weight` and `bias` are taken in fixed
//! blocks of rows and added in order, so all results have the same bits on any number of threads.

pub mod cpu;
pub mod cpu_backward;
pub mod reference;

#[cfg(test)]
mod tests;

/// Which statistics a row is normalised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Mean and variance.
    Layer,
    /// Root of the mean square.
    Rms,
}

/// What is normalised: rows of `cols` values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Layer or RMS.
    pub kind: Kind,
    /// Added to the variance or mean square.
    pub eps: f64,
    /// Length of a row; at least 1.
    pub cols: usize,
}
