//! Kernels against the f64 reference.

mod forward;
mod support;
