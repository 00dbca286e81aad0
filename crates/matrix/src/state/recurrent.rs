//! State of a recurrent mixer: the scan's state and the last inputs of its convolution.

use danaus_tensor::{Result, Tensor};
use std::hash::Hasher;

/// Values of one sequence in one layer. Tensors are immutable, so a copy shares them.
#[derive(Clone)]
pub struct RecurrentState {
    /// Last `width - 1` inputs of the convolution, `[1, channels, width - 1]`.
    pub conv: Tensor,
    /// `[1, heads, head_dim, d_state]`, or `[1, channels, d_state]` of a diagonal system; f32 (f64 beside
    /// f64).
    pub scan: Tensor,
}

impl RecurrentState {
    pub(super) fn bytes(&self) -> usize {
        self.conv.bytes() + self.scan.bytes()
    }

    pub(super) fn digest(&self, hasher: &mut impl Hasher) -> Result<()> {
        hasher.write(self.conv.contiguous()?.as_bytes()?);
        hasher.write(self.scan.contiguous()?.as_bytes()?);
        Ok(())
    }
}
