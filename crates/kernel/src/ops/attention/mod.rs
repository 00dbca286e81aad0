//! Exact softmax attention.

pub mod dropout;
pub mod forward;
pub mod mask;
pub mod microkernel;
pub mod pack;
pub mod problem;
pub mod reference;
pub mod softmax;
pub mod tile_range;

#[cfg(test)]
mod tests;
