//! Softmax cross-entropy over logits `[tokens, vocab]` and targets `[tokens]`.
//!
//! With `lse = ln(sum_j e^(z_j))`, target t and label smoothing e, the loss of a token is
//!
//! `lse - (1 - e) z_t - e / vocab sum_j z_j + z_loss lse^2`
//!
//! (smoothing: Szegedy et al. 2016; z-loss: PaLM, Chowdhery et al. 2022). Tokens whose target is
//! `ignore_index` have loss 0 and no gradient. The mean divides by the number of the others; where
//! there are none it is 0, so that an empty micro-batch does not poison a run.
//!
//! The forward pass reads the logits once (maximum and sum are carried along in blocks) and keeps
//! `loss` and `lse`, f32 per token; probabilities are never stored. The backward pass reads the
//! logits once more and writes their gradient. Sums are f32 for f32 and bf16, f64 for f64. A NaN or
//! plus infinity among the logits makes the loss NaN; minus infinity is a masked class.

pub mod cpu;
pub mod reference;

#[cfg(test)]
mod tests;

/// What the loss adds up, per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Classes: length of a row of logits.
    pub vocab: usize,
    /// Target of tokens without a loss.
    pub ignore_index: i64,
    /// Weight of the uniform distribution in the target, in [0, 1).
    pub label_smoothing: f64,
    /// Weight of lse^2.
    pub z_loss: f64,
}

/// How the losses of the tokens become the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Divided by the number of tokens that are not ignored.
    Mean,
    /// Added up.
    Sum,
    /// One loss a token.
    None,
}

impl Reduction {
    /// Factor of the sum over the tokens; `None` has no sum and keeps every loss as it is.
    pub fn factor(self, ignore_index: i64, targets: &[i64]) -> f64 {
        match self {
            Reduction::Sum | Reduction::None => 1.0,
            Reduction::Mean => {
                let counted = targets.iter().filter(|&&target| target != ignore_index).count();
                1.0 / counted.max(1) as f64
            }
        }
    }
}
