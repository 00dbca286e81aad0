//! State of a recurrent mixer: the scan's state and the last inputs of its convolution.
//!
//! Sequences that step together keep the states of a step as rows of one batch. When the same sequences
//! come again in the same order (nearly every decoding step), that batch is the next input as it is;
//! joining and parting would move every state twice more than the step itself.
//!
//! Layers without a convolution keep the number of tokens in its place (i64). It stays on the processor,
//! whatever device the state is on: reading it must not wait for the device.

use danaus_kernel::recording::overwrite;
use danaus_tensor::{DType, Device, Result, Tensor};
use std::hash::Hasher;
use std::sync::Arc;

/// Values of one sequence in one layer. Tensors are immutable, so a copy shares them.
#[derive(Clone)]
pub struct RecurrentState {
    /// Last `width - 1` inputs of the convolution, `[1, channels, width - 1]`; or the tokens so far.
    pub conv: Tensor,
    /// `[1, heads, head_dim, d_state]`, or `[1, channels, d_state]` of a diagonal system; f32 (f64 beside
    /// f64).
    pub scan: Tensor,
    /// The batch whose row this is.
    row: Option<(Arc<Batch>, usize)>,
}

/// States of several sequences, `[sequences, ...]` each.
pub(super) struct Batch {
    conv: Tensor,
    scan: Tensor,
}

impl Batch {
    /// What is to be written where, for values that do not lie here already.
    pub(super) fn targets<'a>(
        &'a self,
        conv: &'a Tensor,
        scan: &'a Tensor,
    ) -> Vec<(&'a Tensor, &'a Tensor)> {
        let moved = |(from, to): &(&Tensor, &Tensor)| {
            from.dtype() != DType::I64 && from.device_address().ok() != to.device_address().ok()
        };
        [(conv, &self.conv), (scan, &self.scan)].into_iter().filter(moved).collect()
    }
}

impl RecurrentState {
    /// A state with a batch dimension of 1.
    pub fn new(conv: Tensor, scan: Tensor) -> Self {
        Self { conv, scan, row: None }
    }

    /// Convolution and scan states of several sequences, joined along the first dimension.
    ///
    /// # Errors
    /// When the shapes differ, or there is no memory.
    pub fn join(states: &[&Self]) -> Result<(Tensor, Tensor)> {
        if let [single] = states {
            return Ok((single.conv.clone(), single.scan.clone()));
        }
        if let Some((batch, _)) = states.first().and_then(|first| first.row.as_ref()) {
            let in_place = |(at, state): (usize, &&Self)| {
                let row = state.row.as_ref();
                row.is_some_and(|(other, row)| Arc::ptr_eq(batch, other) && *row == at)
            };
            if batch.scan.dims()[0] == states.len() && states.iter().enumerate().all(in_place) {
                let conv =
                    if states[0].counts() { Self::counted(states)? } else { batch.conv.clone() };
                return Ok((conv, batch.scan.clone()));
            }
        }
        let convs: Vec<&Tensor> = states.iter().map(|state| &state.conv).collect();
        let scans: Vec<&Tensor> = states.iter().map(|state| &state.scan).collect();
        Ok((Tensor::cat(&convs, 0)?, Tensor::cat(&scans, 0)?))
    }

    /// The rows of joined states.
    ///
    /// # Errors
    /// Never for tensors with a first dimension.
    pub fn part(conv: Tensor, scan: Tensor) -> Result<Vec<Self>> {
        let count = scan.dims()[0];
        if count == 1 {
            return Ok(vec![Self::new(conv, scan)]);
        }
        let batch = Arc::new(Batch { conv, scan });
        let row = |at| {
            let (conv, scan) = (batch.conv.narrow(0, at, 1)?, batch.scan.narrow(0, at, 1)?);
            Ok(Self { conv, scan, row: Some((batch.clone(), at)) })
        };
        (0..count).map(row).collect()
    }

    /// Whether it counts tokens in place of a convolution's inputs.
    pub(super) fn counts(&self) -> bool {
        self.conv.dtype() == DType::I64
    }

    fn counted(states: &[&Self]) -> Result<Tensor> {
        Tensor::cat(&states.iter().map(|state| &state.conv).collect::<Vec<_>>(), 0)
    }

    /// Counts a token that a replayed step has taken in.
    pub(super) fn count_one(&mut self) -> Result<()> {
        if self.counts() {
            let count = self.conv.to_vec::<i64>()?.into_iter().map(|count| count + 1).collect();
            self.conv = Tensor::from_vec(count, self.conv.shape(), &Device::Cpu)?;
        }
        Ok(())
    }

    /// Room for the states of `count` sequences like this one, at fixed places.
    pub(super) fn memory(&self, count: usize) -> Result<Arc<Batch>> {
        let room = |like: &Tensor| {
            let mut dims = like.dims().to_vec();
            dims[0] = count;
            Tensor::zeros(dims, like.dtype(), &like.device())
        };
        Ok(Arc::new(Batch { conv: room(&self.conv)?, scan: room(&self.scan)? }))
    }

    /// Whether nobody but these states (and a step's memory) holds rows of the batch.
    pub(super) fn may_overwrite(states: &[&mut Self], batch: &Arc<Batch>) -> bool {
        let own = |state: &&&mut Self| {
            state.row.as_ref().is_some_and(|(other, _)| Arc::ptr_eq(batch, other))
        };
        Arc::strong_count(batch) == 1 + states.iter().filter(own).count()
    }

    /// Moves states into the rows of a batch that they may overwrite, unless they are there.
    pub(super) fn settle(states: &mut [&mut Self], batch: &Arc<Batch>) -> Result<()> {
        let in_place = |(at, state): (usize, &&mut Self)| {
            let row = state.row.as_ref();
            row.is_some_and(|(other, row)| Arc::ptr_eq(batch, other) && *row == at)
        };
        if states.iter().enumerate().all(in_place) {
            return Ok(());
        }
        let (conv, scan) = Self::joined(states)?;
        overwrite(&batch.targets(&conv, &scan))?;
        Self::rebind(states, batch)
    }

    /// [`Self::join`] of states that are about to change.
    pub(super) fn joined(states: &[&mut Self]) -> Result<(Tensor, Tensor)> {
        Self::join(&states.iter().map(|state| &**state).collect::<Vec<_>>())
    }

    /// Lets states be the rows of a batch that holds, or will hold, their values.
    pub(super) fn rebind(states: &mut [&mut Self], batch: &Arc<Batch>) -> Result<()> {
        for (at, state) in states.iter_mut().enumerate() {
            if !state.counts() {
                state.conv = batch.conv.narrow(0, at, 1)?;
            }
            state.scan = batch.scan.narrow(0, at, 1)?;
            state.row = Some((batch.clone(), at));
        }
        Ok(())
    }

    /// The same values on a device; a number of tokens stays where it is.
    pub(super) fn to_device(&self, device: &Device) -> Result<Self> {
        if self.scan.device() == *device {
            return Ok(self.clone());
        }
        let conv = if self.counts() { self.conv.clone() } else { self.conv.to_device(device)? };
        Ok(Self::new(conv, self.scan.to_device(device)?))
    }

    /// The same values in memory of their own: a row keeps its whole batch alive.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn alone(&self) -> Result<Self> {
        match self.row {
            Some(_) => Ok(Self::new(self.conv.copy()?, self.scan.copy()?)),
            None => Ok(self.clone()),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.conv.bytes() + self.scan.bytes()
    }

    pub(super) fn digest(&self, hasher: &mut impl Hasher) -> Result<()> {
        for tensor in [&self.conv, &self.scan] {
            hasher.write(tensor.contiguous()?.to_device(&Device::Cpu)?.as_bytes()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use danaus_tensor::DType;
    use danaus_testkit::{assert_close, randn};

    /// Rows come back as the batch they are, and as copies in any other order or company.
    #[test]
    fn joining_undoes_parting() {
        let (conv, scan) = (randn(1, &[3, 4, 2], DType::F64), randn(2, &[3, 2, 5, 6], DType::F64));
        let rows = RecurrentState::part(conv.clone(), scan.clone()).unwrap();
        let all: Vec<&RecurrentState> = rows.iter().collect();
        let (_, same) = RecurrentState::join(&all).unwrap();
        assert_eq!(same.as_bytes().unwrap().as_ptr(), scan.as_bytes().unwrap().as_ptr());
        let fresh = RecurrentState::new(rows[1].conv.clone(), rows[1].scan.clone());
        let own = rows[2].alone().unwrap();
        for chosen in [vec![2, 0, 1], vec![0, 1], vec![1, 1, 2], vec![2]] {
            for replace in [None, Some(&fresh), Some(&own)] {
                let mut states: Vec<&RecurrentState> = chosen.iter().map(|&at| &rows[at]).collect();
                let mut places = chosen.clone();
                if let Some(other) = replace {
                    states.push(other);
                    places.push(if std::ptr::eq(other, &fresh) { 1 } else { 2 });
                }
                let (c, s) = RecurrentState::join(&states).unwrap();
                for (at, &place) in places.iter().enumerate() {
                    let row = |x: &Tensor, at| x.narrow(0, at, 1).unwrap();
                    assert_close("conv", &row(&c, at), &row(&conv, place), 0.0);
                    assert_close("scan", &row(&s, at), &row(&scan, place), 0.0);
                }
            }
        }
    }
}
