//! States of causal mixers between steps: keys and values, or recurrent state and convolution inputs.
//!
//! A [`StatePool`] holds one slot per sequence and one [`LayerState`] per layer and slot. Whatever the
//! mixer, a slot can be marked after each token, committed to any of the marks (speculative decoding
//! keeps an accepted prefix), rolled back, snapshotted, restored and written to a file. Recurrent states
//! are values that share storage until they change, so a mark of one costs nothing; a mark of a
//! key-value cache is a length, and its snapshots share pages.

mod kv;
mod pool;
mod recurrent;
mod step;
mod store;

pub use kv::{KvState, PAGE};
pub use pool::{Slot, Snapshot, StatePool};
pub use recurrent::RecurrentState;
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
}

impl LayerState {
    /// The present point.
    pub fn mark(&self) -> Mark {
        match self {
            Self::Kv(state) => Mark::Tokens(state.len()),
            Self::ConvKv(conv, state) => Mark::ConvTokens(conv.clone(), state.len()),
            Self::Recurrent(state) => Mark::Value(state.clone()),
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
            // A mark belongs to the state it was made by; the pool keeps them together.
            _ => {}
        }
    }

    /// A copy that outlives the company of other sequences cheaply.
    pub(crate) fn snapshot(&self) -> Result<Self> {
        match self {
            Self::Kv(_) | Self::ConvKv(..) => Ok(self.clone()),
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
        }
    }
}

#[cfg(test)]
mod tests;
