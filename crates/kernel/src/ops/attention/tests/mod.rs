//! Kernels against the f64 reference and golden cases; gradients, bits, refusals.

mod arguments;
mod backward;
mod cache;
mod forward;
mod golden;
mod support;
