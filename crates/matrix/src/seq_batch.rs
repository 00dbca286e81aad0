//! Which tokens of a packed batch belong together.

use crate::state::StepLists;
use danaus_tensor::{Device, Error, Result, Tensor};
use std::sync::Arc;

/// Sequences packed one after another along the token axis; no padding anywhere.
///
/// Sequence `b` holds the tokens `bounds[b]..bounds[b + 1]`. The bounds are kept on the host, where
/// work lists are made, and as an i32 tensor, where operators read them.
#[derive(Clone)]
pub struct SeqBatch {
    bounds: Arc<[usize]>,
    cu_seqlens: Tensor,
    max_seqlen: usize,
    step: Option<Arc<StepLists>>,
}

impl SeqBatch {
    /// Sequences of these lengths, which may be zero.
    ///
    /// # Errors
    /// When there are more tokens than an i32 counts.
    pub fn from_lengths(lengths: &[usize]) -> Result<Self> {
        let mut bounds = vec![0usize];
        for length in lengths {
            bounds.push(bounds[bounds.len() - 1] + length);
        }
        Self::from_bounds(bounds)
    }

    /// `batch` sequences of `length` tokens: the packed view of a `[batch, length]` array.
    ///
    /// # Errors
    /// When there are more tokens than an i32 counts.
    pub fn equal(batch: usize, length: usize) -> Result<Self> {
        Self::from_lengths(&vec![length; batch])
    }

    /// Sequences between given bounds, which start at 0 and do not decrease.
    ///
    /// # Errors
    /// When they do not, or exceed an i32.
    pub fn from_bounds(bounds: Vec<usize>) -> Result<Self> {
        let ordered = bounds.first() == Some(&0) && bounds.is_sorted();
        let narrow: Option<Vec<i32>> = bounds.iter().map(|&bound| bound.try_into().ok()).collect();
        let Some(narrow) = narrow.filter(|_| ordered) else {
            let valid = "bounds from 0 upwards that fit an i32";
            return Err(Error::argument("seq_batch", "cu_seqlens", format!("{bounds:?}"), valid));
        };
        let cu_seqlens = Tensor::from_vec(narrow, [bounds.len()], &Device::Cpu)?;
        let lengths = bounds.windows(2).map(|pair| pair[1] - pair[0]);
        let max_seqlen = lengths.max().unwrap_or(0);
        Ok(Self { max_seqlen, bounds: bounds.into(), cu_seqlens, step: None })
    }

    /// One token for each sequence of a decoding step whose lists lie on the device already.
    ///
    /// # Errors
    /// When there are more sequences than an i32 counts.
    pub fn of_step(step: Arc<StepLists>) -> Result<Self> {
        let single = Self::equal(step.len(), 1)?;
        Ok(Self { step: Some(step), ..single })
    }

    /// Where the numbers of a decoding step lie on the device, if they are there already.
    pub fn step(&self) -> Option<&StepLists> {
        self.step.as_deref()
    }

    /// Bounds of the sequences, one more than there are sequences.
    pub fn bounds(&self) -> &[usize] {
        &self.bounds
    }

    /// The bounds as an i32 tensor.
    pub fn cu_seqlens(&self) -> &Tensor {
        &self.cu_seqlens
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.bounds[self.len()]
    }

    /// Length of the longest sequence.
    pub fn max_seqlen(&self) -> usize {
        self.max_seqlen
    }

    /// Lengths of the sequences.
    pub fn lengths(&self) -> impl Iterator<Item = usize> {
        self.bounds.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// Position of every token in its sequence.
    pub fn positions(&self) -> Vec<i64> {
        self.lengths().flat_map(|length| 0..length as i64).collect()
    }

    /// Number of every token's sequence, `[1, tokens]`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn seq_idx(&self) -> Result<Tensor> {
        let numbers = self.lengths().enumerate();
        let all: Vec<i32> =
            numbers.flat_map(|(index, length)| vec![index as i32; length]).collect();
        let tokens = all.len();
        Tensor::from_vec(all, [1, tokens], &Device::Cpu)
    }

    /// Refuses a tensor whose first dimension is not the number of tokens.
    ///
    /// # Errors
    /// Naming both.
    pub fn check(&self, op: &'static str, x: &Tensor) -> Result<()> {
        if x.dims().first() == Some(&self.tokens()) {
            return Ok(());
        }
        let expected = format!("[{} tokens, ...] as cu_seqlens says", self.tokens());
        Err(Error::shape(op, "x", x.shape(), expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_views_agree() {
        let batch = SeqBatch::from_lengths(&[2, 0, 3]).unwrap();
        assert_eq!((batch.len(), batch.tokens(), batch.max_seqlen()), (3, 5, 3));
        assert_eq!(batch.positions(), [0, 1, 0, 1, 2]);
        assert_eq!(batch.seq_idx().unwrap().to_vec::<i32>().unwrap(), [0, 0, 2, 2, 2]);
        assert_eq!(batch.cu_seqlens().to_vec::<i32>().unwrap(), [0, 2, 2, 5]);
        assert!(SeqBatch::from_bounds(vec![0, 3, 2]).is_err());
        assert!(SeqBatch::from_bounds(vec![1, 2]).is_err());
    }
}
