//! Rotary position embedding (Su et al. 2021, RoFormer).
//!
//! `x` is `[tokens, heads, head_dim]` (batch and sequence are flattened into tokens). The first
//! `rotary_dim` entries of each head are rotated pairwise by the angle `position * theta^(-2 i /
//! rotary_dim)` of pair i; the rest pass through. Pair i is `(x[i], x[i + rotary_dim / 2])` in the
//! half-split layout (GPT-NeoX, Llama) and `(x[2 i], x[2 i + 1])` in the interleaved one (GPT-J):
//!
//! `(a, b) -> (a cos - b sin, a sin + b cos)`.
//!
//! The tables `cos` and `sin` are `[positions, rotary_dim / 2]`, f32 whatever the type of `x`: a bf16
//! angle is wrong by whole turns at long range. The gradient is the inverse rotation. Frequency
//! scaling (linear, Llama 3) changes the tables alone and is not built here.

pub mod cpu;
pub mod reference;

#[cfg(test)]
mod tests;

/// Shape and layout of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Heads of a token.
    pub heads: usize,
    /// Entries of a head.
    pub head_dim: usize,
    /// Entries that are rotated: even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Pairs of neighbours instead of halves.
    pub interleaved: bool,
}

/// The tables of positions `0..positions`: `(cos, sin)`, each `[positions, rotary_dim / 2]`.
///
/// Angles are computed in f64: in f32 they would be off by 1e-3 at position 16384.
pub fn tables(positions: usize, rotary_dim: usize, theta: f64) -> (Vec<f32>, Vec<f32>) {
    let half = rotary_dim / 2;
    let angle = |at: usize| {
        let frequency = theta.powf(-2.0 * (at % half) as f64 / rotary_dim as f64);
        (at / half) as f64 * frequency
    };
    let angles = (0..positions * half).map(angle);
    angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip()
}

/// Positions of a packed batch: every sequence of `cu_seqlens` counts from 0.
pub fn packed_positions(cu_seqlens: &[i32]) -> Vec<u32> {
    cu_seqlens.windows(2).flat_map(|ends| 0..(ends[1] - ends[0]).max(0) as u32).collect()
}
