//! States of causal mixers between steps: keys and values, or recurrent state and convolution inputs.
//!
//! A [`StatePool`] holds one slot per sequence and one [`LayerState`] per layer and slot. Whatever the
//! mixer, a slot can be marked after each token, committed to any of the marks (speculative decoding
//! keeps an accepted prefix), rolled back, snapshotted, restored and written to a file. Recurrent states
//! are values that share storage until they change, so a mark of one costs nothing; those of Mamba-2 lie in
//! slots of an arena and are stepped in place, a mark shares the slot; a mark of a key-value cache is a
//! length, and its snapshots share pages.

mod kv;
mod pool;
mod recurrent;
mod slots;
mod step;
mod store;

pub use kv::{KvState, PAGE};
pub use pool::{Slot, Snapshot, StatePool};
pub use recurrent::RecurrentState;
pub(crate) use slots::places;
pub use slots::{DRAFT_TOKENS, STEP_TOKENS, SlotState};
pub use step::{Fit, StepLists, StepMemory, StepPoint, StepTokens};

use danaus_tensor::{Device, Result, Tensor};

/// The state of one layer for one sequence.
#[derive(Clone)]
pub enum LayerState {
    /// Keys and values of all tokens so far.
    Kv(KvState),
    /// The same behind a convolution, whose last inputs are `[1, channels, width - 1]`.
    ConvKv(Tensor, KvState),
    /// A state of fixed size.
    Recurrent(RecurrentState),
    /// The same in a slot of an arena.
    Slot(SlotState),
}

/// A point that a state can return to.
#[derive(Clone)]
pub enum Mark {
    /// So many tokens in the cache.
    Tokens(usize),
    /// The same, and the inputs of the convolution.
    ConvTokens(Tensor, usize),
    /// The state itself.
    Value(RecurrentState),
    /// The slot that holds it.
    Slot(SlotState),
    /// So many accepted tokens of the last draft.
    Accepted(usize),
}

impl LayerState {
    /// The present point.
    pub fn mark(&self) -> Mark {
        match self {
            Self::Kv(state) => Mark::Tokens(state.len()),
            Self::ConvKv(conv, state) => Mark::ConvTokens(conv.clone(), state.len()),
            Self::Recurrent(state) => Mark::Value(state.clone()),
            Self::Slot(state) => Mark::Slot(state.clone()),
        }
    }

    /// Makes the next call a draft: all its tokens may be taken back.
    ///
    /// # Errors
    /// For states that only come back to points marked one by one.
    fn begin_draft(&mut self) -> Result<()> {
        match self {
            Self::Kv(_) => Ok(()),
            Self::Slot(state) => {
                state.begin_draft();
                Ok(())
            }
            Self::ConvKv(..) | Self::Recurrent(_) => {
                let remedy = "take drafts in token by token, with begin and append";
                let what = format!("a draft in one call of a {} state", self.kind());
                Err(danaus_tensor::Error::unsupported("state pool", what, remedy))
            }
        }
    }

    /// The point behind `accepted` of the `count` tokens of a draft, which were taken in.
    fn draft_mark(&self, count: usize, accepted: usize) -> Mark {
        match self {
            Self::Kv(state) => Mark::Tokens(state.len() + accepted - count),
            Self::Slot(_) => Mark::Accepted(accepted),
            // Refused when the draft began.
            Self::ConvKv(..) | Self::Recurrent(_) => self.mark(),
        }
    }

    /// The same content on a device.
    ///
    /// # Errors
    /// When the device cannot be used or has no memory.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(match self {
            Self::Kv(state) => Self::Kv(state.to_device(device)?),
            Self::ConvKv(conv, state) => {
                Self::ConvKv(conv.to_device(device)?, state.to_device(device)?)
            }
            Self::Recurrent(state) => Self::Recurrent(state.to_device(device)?),
            Self::Slot(state) => Self::Slot(state.to_device(device)?),
        })
    }

    /// Returns to a point marked on this state.
    pub fn rewind(&mut self, mark: &Mark) {
        match (self, mark) {
            (Self::Kv(state), Mark::Tokens(len)) => state.truncate(*len),
            (Self::ConvKv(conv, state), Mark::ConvTokens(inputs, len)) => {
                *conv = inputs.clone();
                state.truncate(*len);
            }
            (Self::Recurrent(state), Mark::Value(value)) => *state = value.clone(),
            (Self::Slot(state), Mark::Slot(value)) => *state = value.clone(),
            (Self::Slot(state), Mark::Accepted(count)) => state.accept(*count),
            // A mark belongs to the state it was made by; the pool keeps them together.
            _ => {}
        }
    }

    /// A copy that outlives the company of other sequences cheaply.
    pub(crate) fn snapshot(&self) -> Result<Self> {
        match self {
            Self::Kv(_) | Self::ConvKv(..) | Self::Slot(_) => Ok(self.clone()),
            Self::Recurrent(state) => Ok(Self::Recurrent(state.alone()?)),
        }
    }

    /// The same content beside `other`, a state of the same layer in another pool.
    ///
    /// # Errors
    /// When the states are not of the same kind, shape and dtype.
    pub(crate) fn moved_beside(&self, other: &Self) -> Result<Self> {
        match (self, other) {
            (Self::Kv(state), Self::Kv(other)) => Ok(Self::Kv(state.moved_beside(other)?)),
            (Self::ConvKv(conv, state), Self::ConvKv(_, other)) => {
                Ok(Self::ConvKv(conv.clone(), state.moved_beside(other)?))
            }
            (Self::Recurrent(state), Self::Recurrent(_)) => Ok(Self::Recurrent(state.clone())),
            (Self::Slot(state), Self::Slot(other)) => Ok(Self::Slot(state.moved_beside(other)?)),
            _ => {
                let valid = "a snapshot of a pool of the same model";
                Err(danaus_tensor::Error::argument("state pool", "snapshot", "foreign", valid))
            }
        }
    }

    /// Bytes in use.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Kv(state) => state.bytes(),
            Self::ConvKv(conv, state) => conv.bytes() + state.bytes(),
            Self::Recurrent(state) => state.bytes(),
            Self::Slot(state) => state.bytes(),
        }
    }

    /// Feeds the content to a hash.
    pub(crate) fn digest(&self, hasher: &mut impl std::hash::Hasher) -> Result<()> {
        match self {
            Self::Kv(state) => state.digest(hasher),
            Self::ConvKv(conv, state) => {
                hasher.write(conv.contiguous()?.to_device(&Device::Cpu)?.as_bytes()?);
                state.digest(hasher)
            }
            Self::Recurrent(state) => state.digest(hasher),
            Self::Slot(state) => state.digest(hasher),
        }
    }
}

#[cfg(test)]
mod tests;
