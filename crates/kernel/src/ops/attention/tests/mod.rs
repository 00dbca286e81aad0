//! Kernels against the f64 reference.

mod backward;
mod forward;
mod support;
