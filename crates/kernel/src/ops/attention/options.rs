//! Options of attention, and their plain part that the operator keeps.

use super::fp8::Fp8;
use super::tile_range::Window;
use danaus_tensor::Tensor;

/// Everything optional about an attention call. The default is full attention, scaled by
/// `head_dim^-1/2`.
#[derive(Clone, Default)]
pub struct AttentionOptions {
    /// Hide keys to the right of the diagonal, which ends in the bottom right corner.
    pub causal: bool,
    /// Keys visible to the left of the diagonal; `None` is all.
    pub window_left: Option<usize>,
    /// Keys visible to the right of the diagonal; `None` is all.
    pub window_right: Option<usize>,
    /// Factor of the dot products; `None` is `head_dim^-1/2`.
    pub softmax_scale: Option<f64>,
    /// `s -> softcap tanh(s / softcap)`; `None` is off.
    pub softcap: Option<f64>,
    /// ALiBi slopes (heads) or (batch, heads); no gradient.
    pub alibi_slopes: Option<Tensor>,
    /// Sink logits (heads), with gradient.
    pub sinks: Option<Tensor>,
    /// Kept blocks of the score matrix, u8 or bool: (rows, columns), (heads, rows, columns) or (batch,
    /// heads, rows, columns), blocks counted from the start of each sequence. With packed sequences
    /// it is as large as the longest ones need.
    pub block_mask: Option<Tensor>,
    /// Rows and columns of a block of `block_mask`.
    pub block_size: Option<usize>,
    /// Explicit dropout mask (batch, heads, q_len, k_len), u8 or bool, instead of the seeded one.
    pub keep: Option<Tensor>,
    /// Queries in use per sequence (batch), a prefix of the rows.
    pub q_lens: Option<Tensor>,
    /// Keys in use per sequence (batch), a prefix of the rows.
    pub k_lens: Option<Tensor>,
    /// Drop probability in [0, 1). The seeded mask keeps a key with probability
    /// `round(256 (1 - p_drop)) / 256` and divides by exactly that.
    pub p_drop: f64,
    /// Seed of the dropout mask.
    pub seed: u64,
    /// Distinguishes dropout masks of the same seed, e.g. the training step.
    pub dropout_offset: u32,
    /// Products in eight-bit floats, forward only; `None` is off.
    pub fp8: Option<Fp8>,
}

/// The options that are plain values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    pub window: Window,
    pub softmax_scale: Option<f64>,
    pub softcap: Option<f64>,
    pub block_size: Option<usize>,
    pub p_drop: f64,
    pub seed: u64,
    pub dropout_offset: u32,
}

impl AttentionOptions {
    /// Causal attention and nothing else.
    pub fn causal() -> Self {
        Self { causal: true, ..Self::default() }
    }

    pub(super) fn attributes(&self) -> Attributes {
        let right = if self.causal { Some(0) } else { self.window_right };
        Attributes {
            window: Window { left: self.window_left, right },
            softmax_scale: self.softmax_scale,
            softcap: self.softcap,
            block_size: self.block_size,
            p_drop: self.p_drop,
            seed: self.seed,
            dropout_offset: self.dropout_offset,
        }
    }
}
