//! States of a Mamba-2 layer that are stepped where they lie.
//!
//! All sequences of a pool share one arena a layer, a [`Mamba2Pool`]; a sequence is the number of a slot. A
//! step reads and writes every state once, whichever sequences come together, and moves nothing else. A
//! clone (a mark, a snapshot) shares the slot: the next step of either reads it and leaves its own state in
//! another one, so that nothing is copied for it. The arena doubles when it is full.
//!
//! A draft is taken in by one step that leaves the state before it; how much of it was accepted is a number,
//! and the next step replays that much. Until then [`SlotState::values`] has no state to give.

use super::StepLists;
use danaus_kernel::ops::mamba2_step::{
    Mamba2Pool, PoolShape, StepInputs, StepOptions, StepParams, StepRows, mamba2_step,
};
use danaus_tensor::{DType, Device, Error, Result, Tensor};
use std::hash::Hasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Slots of a new arena.
const FIRST_SLOTS: usize = 4;
/// Most tokens of a step, replayed ones and new.
pub const STEP_TOKENS: usize = 16;
/// Most tokens of a draft: the step behind it may be another one.
pub const DRAFT_TOKENS: usize = STEP_TOKENS / 2;

/// Inputs that a slot's rings hold beside a convolution of so many taps.
pub(crate) const fn places(width: usize) -> usize {
    width.saturating_sub(1) + STEP_TOKENS
}

/// The slots of one layer.
struct Arena {
    pool: Mamba2Pool,
    /// Taps of the convolution.
    width: usize,
    /// How many sequences and snapshots hold each slot.
    holders: Vec<u32>,
    free: Vec<usize>,
}

/// The state of one sequence in one layer; without a slot it has seen nothing.
pub struct SlotState {
    arena: Arc<Mutex<Arena>>,
    slot: Option<usize>,
    /// Accepted tokens of the last draft, which the state does not have yet.
    pending: usize,
    draft: Draft,
}

/// Where a state is between [`SlotState::begin_draft`] and [`SlotState::accept`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Draft {
    None,
    /// The next step is a draft.
    Asked,
    /// The last step was one.
    Taken,
}

impl Arena {
    fn new(pool: Mamba2Pool, width: usize) -> Self {
        Self { pool, width, holders: Vec::new(), free: Vec::new() }
    }

    /// A slot that nobody holds, with whatever is in it.
    fn take(&mut self) -> Result<usize> {
        if self.free.is_empty() {
            let count = self.holders.len();
            let total = (2 * count).max(FIRST_SLOTS);
            self.pool.grow(total)?;
            self.holders.resize(total, 0);
            // Handed out from the end of the list: lower ones first.
            self.free.extend((count..total).rev());
        }
        let slot = self.free.pop();
        let slot = slot.ok_or_else(|| Error::internal("a grown arena has no slot"))?;
        self.holders[slot] = 1;
        Ok(slot)
    }

    fn let_go(&mut self, slot: Option<usize>) {
        let Some(slot) = slot else { return };
        self.holders[slot] -= 1;
        if self.holders[slot] == 0 {
            self.free.push(slot);
        }
    }

    /// Where a state is read and where it may be left: another slot where others hold the first one.
    fn places(&mut self, slot: Option<usize>) -> Result<(usize, usize)> {
        match slot {
            Some(slot) if self.holders[slot] == 1 => Ok((slot, slot)),
            Some(slot) => Ok((slot, self.take()?)),
            None => {
                let slot = self.take()?;
                self.pool.clear(slot)?;
                Ok((slot, slot))
            }
        }
    }
}

impl Clone for SlotState {
    fn clone(&self) -> Self {
        if let Some(slot) = self.slot {
            self.lock().holders[slot] += 1;
        }
        Self {
            arena: self.arena.clone(),
            slot: self.slot,
            pending: self.pending,
            draft: self.draft,
        }
    }
}

impl Drop for SlotState {
    fn drop(&mut self) {
        self.lock().let_go(self.slot);
    }
}

impl SlotState {
    /// An empty state in an arena of its own on the processor; its clones share the arena. The shape's
    /// slots and places are the arena's matter.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(shape: &PoolShape, width: usize, dtype: DType) -> Result<Self> {
        let places = places(width);
        let pool = Mamba2Pool::new(&PoolShape { slots: 0, places, ..*shape }, dtype, &Device::Cpu)?;
        Ok(Self::empty(Arc::new(Mutex::new(Arena::new(pool, width)))))
    }

    fn empty(arena: Arc<Mutex<Arena>>) -> Self {
        Self { arena, slot: None, pending: 0, draft: Draft::None }
    }

    fn lock(&self) -> MutexGuard<'_, Arena> {
        // Every change of an arena is complete before anything can fail.
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether two sequences lie in one arena, so that one step can serve both.
    pub fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.arena, &other.arena)
    }

    /// Tells arenas apart.
    pub(super) fn arena_key(&self) -> usize {
        Arc::as_ptr(&self.arena) as usize
    }

    /// Where inputs and states of the arena begin on a GPU.
    pub(super) fn addresses(&self) -> Result<[u64; 2]> {
        let arena = self.lock();
        Ok([arena.pool.conv.device_address()?, arena.pool.scan.device_address()?])
    }

    /// The slot, if the next step reads it and leaves its own state in it.
    pub(super) fn settled(&self) -> Option<usize> {
        let slot = self.slot.filter(|_| self.pending == 0 && self.draft == Draft::None)?;
        (self.lock().holders[slot] == 1).then_some(slot)
    }

    /// Accepted tokens that the next step replays.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Whether the next call is a draft, which only a step can take in.
    pub fn drafts(&self) -> bool {
        self.draft == Draft::Asked
    }

    /// Makes the next step a draft, of at most [`DRAFT_TOKENS`] tokens.
    pub(super) fn begin_draft(&mut self) {
        self.draft = Draft::Asked;
    }

    /// Ends a draft: so many of its tokens are accepted. One that never came changes nothing.
    pub(super) fn accept(&mut self, count: usize) {
        if self.draft == Draft::Taken {
            self.pending = count;
        }
        self.draft = Draft::None;
    }

    /// Last `width - 1` inputs of the convolution `[1, channels, width - 1]` and the scan's state `[1,
    /// heads, head_dim, d_state]`, f32 (f64 beside f64).
    ///
    /// # Errors
    /// When accepted tokens of a draft are not in the state yet, or there is no memory for the values.
    pub fn values(&self) -> Result<(Tensor, Tensor)> {
        if self.pending > 0 {
            let given = format!("{} accepted tokens of a draft not taken in", self.pending);
            return Err(Error::argument("slot state", "values", given, "a step behind the draft"));
        }
        let arena = self.lock();
        match self.slot {
            Some(slot) => arena.pool.read(slot, arena.width),
            None => arena.pool.zeros(arena.width),
        }
    }

    /// Values of several sequences, joined along the first dimension; `None` where none has seen anything.
    ///
    /// # Errors
    /// When the shapes differ, or there is no memory.
    pub fn join(states: &[&mut Self]) -> Result<Option<(Tensor, Tensor)>> {
        if states.iter().all(|state| state.slot.is_none()) {
            return Ok(None);
        }
        let values = states.iter().map(|state| state.values()).collect::<Result<Vec<_>>>()?;
        let convs: Vec<&Tensor> = values.iter().map(|(conv, _)| conv).collect();
        let scans: Vec<&Tensor> = values.iter().map(|(_, scan)| scan).collect();
        Ok(Some((Tensor::cat(&convs, 0)?, Tensor::cat(&scans, 0)?)))
    }

    /// Replaces the state.
    ///
    /// # Errors
    /// When the values are not those of this layer, or there is no memory.
    pub fn set(&mut self, conv: &Tensor, scan: &Tensor) -> Result<()> {
        let arena = self.arena.clone();
        let mut arena = arena.lock().unwrap_or_else(PoisonError::into_inner);
        let own = self.slot.filter(|&slot| arena.holders[slot] == 1);
        let slot = own.map_or_else(|| arena.take(), Ok)?;
        if let Err(error) = arena.pool.fill(slot, conv, scan) {
            if own.is_none() {
                arena.let_go(Some(slot));
            }
            return Err(error);
        }
        if own.is_none() {
            arena.let_go(self.slot);
        }
        (self.slot, self.pending, self.draft) = (Some(slot), 0, Draft::None);
        Ok(())
    }

    /// One step of sequences that lie beside each other: `y` `[sequences, seqlen, heads * head_dim]`. `step`
    /// has the slots on the device where they are there already. If
    /// one of them drafts, the tokens of all others are accepted ones of a draft.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit, the sequences lie in different arenas, or there is no memory.
    pub fn step(
        states: &mut [&mut Self],
        inputs: &StepInputs,
        params: &StepParams,
        step: Option<&StepLists>,
        options: &StepOptions,
    ) -> Result<Tensor> {
        let options = &StepOptions {
            commit: options.commit && !states.iter().any(|state| state.drafts()),
            ..*options
        };
        let Some(arena) = states.first().map(|state| state.arena.clone()) else {
            return Err(Error::argument("slot state", "states", "none", "at least one"));
        };
        if states.iter().any(|state| !Arc::ptr_eq(&state.arena, &arena)) {
            let valid = "sequences of one pool";
            return Err(Error::argument("slot state", "states", "of several pools", valid));
        }
        let key = Arc::as_ptr(&arena) as usize;
        let mut arena = arena.lock().unwrap_or_else(PoisonError::into_inner);
        let mut places = Vec::with_capacity(states.len());
        for state in states.iter() {
            match arena.places(state.slot) {
                Ok(place) => places.push(place),
                Err(error) => {
                    give_back(&mut arena, states, &places);
                    return Err(error);
                }
            }
        }
        let list = |values: Vec<i32>| Tensor::from_vec(values, [places.len()], &Device::Cpu);
        let moved = places.iter().any(|(from, to)| from != to);
        let replays = states.iter().any(|state| state.pending > 0);
        let run = |pool: &mut Mamba2Pool| -> Result<Tensor> {
            // Lists that lie on the device are those of settled states.
            let slots = match step.and_then(|step| step.slots(key)) {
                Some(slots) => slots,
                None => list(places.iter().map(|place| place.0 as i32).collect())?,
            };
            let targets = list(places.iter().map(|place| place.1 as i32).collect())?;
            let accepted = list(states.iter().map(|state| state.pending as i32).collect())?;
            let (to_slots, accepted) = (moved.then_some(&targets), replays.then_some(&accepted));
            let rows = StepRows { slots: &slots, to_slots, accepted };
            mamba2_step(inputs, params, &rows, pool, options)
        };
        let y = run(&mut arena.pool);
        if y.is_err() {
            give_back(&mut arena, states, &places);
            return y;
        }
        for (state, &(_, to)) in states.iter_mut().zip(&places) {
            if state.slot != Some(to) {
                arena.let_go(state.slot);
                state.slot = Some(to);
            }
            state.pending = if options.commit { 0 } else { inputs.xbc.dims()[1] };
            state.draft = if state.drafts() { Draft::Taken } else { Draft::None };
        }
        y
    }

    /// The same content on a device, in an arena of its own unless it is there already.
    ///
    /// # Errors
    /// When the device cannot be used or has no memory.
    pub(super) fn to_device(&self, device: &Device) -> Result<Self> {
        let arena = self.lock();
        if arena.pool.scan.device() == *device {
            drop(arena);
            return Ok(self.clone());
        }
        let (shape, dtype, width) = (arena.pool.shape()?, arena.pool.conv.dtype(), arena.width);
        drop(arena);
        let pool = Mamba2Pool::new(&PoolShape { slots: 0, ..shape }, dtype, device)?;
        let arena = Arc::new(Mutex::new(Arena::new(pool, width)));
        let mut moved = Self::empty(arena);
        if self.slot.is_some() {
            let (conv, scan) = self.values()?;
            moved.set(&conv.to_device(device)?, &scan.to_device(device)?)?;
        }
        Ok(moved)
    }

    /// The same content in the arena of `other`; the same slot if that is its own.
    ///
    /// # Errors
    /// When the layers differ in shape or dtype, or there is no memory.
    pub(super) fn moved_beside(&self, other: &Self) -> Result<Self> {
        if self.is_beside(other) {
            return Ok(self.clone());
        }
        let (conv, scan) = self.values()?;
        other.filled(&conv, &scan)
    }

    /// A sequence in this one's arena with given values.
    ///
    /// # Errors
    /// When they do not fit the arena, or there is no memory.
    pub(super) fn filled(&self, conv: &Tensor, scan: &Tensor) -> Result<Self> {
        let device = self.lock().pool.scan.device();
        let mut state = Self::empty(self.arena.clone());
        state.set(&conv.to_device(&device)?, &scan.to_device(&device)?)?;
        Ok(state)
    }

    /// Bytes of the slot.
    pub(super) fn bytes(&self) -> usize {
        let arena = self.lock();
        if self.slot.is_some() { arena.pool.bytes() / arena.pool.slots().max(1) } else { 0 }
    }

    pub(super) fn digest(&self, hasher: &mut impl Hasher) -> Result<()> {
        let (conv, scan) = self.values()?;
        for tensor in [conv, scan] {
            hasher.write(tensor.contiguous()?.to_device(&Device::Cpu)?.as_bytes()?);
        }
        Ok(())
    }
}

/// Frees the slots that a step which failed had taken.
fn give_back(arena: &mut Arena, states: &[&mut SlotState], places: &[(usize, usize)]) {
    for (state, &(_, to)) in states.iter().zip(places) {
        if state.slot != Some(to) {
            arena.let_go(Some(to));
        }
    }
}
