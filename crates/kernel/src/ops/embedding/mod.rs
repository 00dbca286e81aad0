//! Token embedding: `y[t] = weight[ids[t]]`.
//!
//! `weight` is `[vocab, dim]`, `ids` any shape, `y` that shape with `dim` appended. The gradient of
//! `weight` sums the cotangents of equal ids in the order of their positions, in f32, so it has the
//! same bits on any number of threads; atomics would not. Rows of `padding_idx` get no gradient.

pub mod cpu;
pub mod reference;

#[cfg(test)]
mod tests;
