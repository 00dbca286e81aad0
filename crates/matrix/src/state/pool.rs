//! Slots: the states of many sequences.

use super::{LayerState, Mark};
use danaus_tensor::{Error, Result};
use std::hash::{DefaultHasher, Hasher};

/// A sequence's place in a pool. A released slot's handle is refused from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    index: usize,
    generation: u64,
}

/// A copy of a slot's committed state; restoring it does not consume it.
#[derive(Clone)]
pub struct Snapshot {
    pub(super) tokens: usize,
    pub(super) layers: Vec<LayerState>,
}

impl Snapshot {
    /// Tokens the state has seen.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

struct Entry {
    layers: Vec<LayerState>,
    tokens: usize,
    /// Points after each token appended since the last commit, and before the first.
    marks: Vec<Vec<Mark>>,
}

/// States of up to a fixed number of sequences.
pub struct StatePool {
    pub(super) fresh: Vec<LayerState>,
    entries: Vec<Option<Entry>>,
    generations: Vec<u64>,
}

impl StatePool {
    /// A pool of `capacity` slots whose layers start as `fresh`.
    pub fn new(fresh: Vec<LayerState>, capacity: usize) -> Self {
        let entries = (0..capacity).map(|_| None).collect();
        Self { fresh, entries, generations: vec![0; capacity] }
    }

    /// Takes a free slot with fresh states.
    ///
    /// # Errors
    /// When all slots are taken.
    pub fn reserve(&mut self) -> Result<Slot> {
        let Some(index) = self.entries.iter().position(Option::is_none) else {
            let valid = "a free slot; release one or make a larger pool";
            let given = format!("all {} slots taken", self.entries.len());
            return Err(Error::argument("state pool", "reserve", given, valid));
        };
        let layers = self.fresh.clone();
        self.entries[index] = Some(Entry { layers, tokens: 0, marks: Vec::new() });
        Ok(Slot { index, generation: self.generations[index] })
    }

    /// Gives a slot back.
    ///
    /// # Errors
    /// When it was released before.
    pub fn release(&mut self, slot: Slot) -> Result<()> {
        self.entry(slot)?;
        self.entries[slot.index] = None;
        self.generations[slot.index] += 1;
        Ok(())
    }

    fn entry(&mut self, slot: Slot) -> Result<&mut Entry> {
        let alive = self.generations.get(slot.index) == Some(&slot.generation);
        let entry = self.entries.get_mut(slot.index).and_then(Option::as_mut).filter(|_| alive);
        entry.ok_or_else(|| {
            let given = format!("slot {} was released", slot.index);
            Error::argument("state pool", "slot", given, "a slot from reserve")
        })
    }

    /// The states of one layer for several slots, to be advanced together.
    ///
    /// # Errors
    /// When a slot was released or stands twice in the list.
    pub fn layer(&mut self, slots: &[Slot], layer: usize) -> Result<Vec<&mut LayerState>> {
        slots.iter().try_for_each(|&slot| self.entry(slot).map(|_| ()))?;
        let mut all: Vec<Option<&mut LayerState>> = self
            .entries
            .iter_mut()
            .map(|entry| entry.as_mut().and_then(|entry| entry.layers.get_mut(layer)))
            .collect();
        let mut chosen = Vec::with_capacity(slots.len());
        for slot in slots {
            // Every slot is alive, so what is missing was taken before.
            let state = all[slot.index].take().ok_or_else(|| {
                let given = format!("slot {} twice, or layer {layer}", slot.index);
                Error::argument(
                    "state pool",
                    "slots",
                    given,
                    "every slot once, and a layer there is",
                )
            })?;
            chosen.push(state);
        }
        Ok(chosen)
    }

    /// Notes that every layer has taken in `count` more tokens, at once and for good (a prompt).
    ///
    /// # Errors
    /// When the slot was released.
    pub fn advance(&mut self, slot: Slot, count: usize) -> Result<()> {
        let entry = self.entry(slot)?;
        entry.tokens += count;
        entry.marks.clear();
        Ok(())
    }

    /// Begins a run of tokens that may be taken back: call before the first of them.
    ///
    /// # Errors
    /// When the slot was released.
    pub fn begin(&mut self, slot: Slot) -> Result<()> {
        let entry = self.entry(slot)?;
        entry.marks = vec![entry.layers.iter().map(LayerState::mark).collect()];
        Ok(())
    }

    /// Notes one more tentative token after every layer has taken it in.
    ///
    /// # Errors
    /// When the slot was released or no run was begun.
    pub fn append(&mut self, slot: Slot) -> Result<()> {
        let entry = self.entry(slot)?;
        if entry.marks.is_empty() {
            let valid = "begin before the first tentative token";
            return Err(Error::argument("state pool", "append", "no run begun", valid));
        }
        entry.marks.push(entry.layers.iter().map(LayerState::mark).collect());
        Ok(())
    }

    /// Begins a draft whose tokens every layer takes in with one call, at most
    /// [`DRAFT_TOKENS`](super::DRAFT_TOKENS) of them. Nothing is copied for it: caches are cut, recurrent
    /// states replay what is accepted with their next step.
    ///
    /// # Errors
    /// When the slot was released, or a layer's state only goes back to points marked one by one.
    pub fn begin_draft(&mut self, slot: Slot) -> Result<()> {
        let entry = self.entry(slot)?;
        entry.marks.clear();
        entry.layers.iter_mut().try_for_each(LayerState::begin_draft)
    }

    /// Notes the `count` tokens of a draft after every layer has taken them in; `commit` says how many stay.
    ///
    /// # Errors
    /// When the slot was released.
    pub fn append_draft(&mut self, slot: Slot, count: usize) -> Result<()> {
        let entry = self.entry(slot)?;
        let marks =
            |accepted| entry.layers.iter().map(|layer| layer.draft_mark(count, accepted)).collect();
        entry.marks = (0..=count).map(marks).collect();
        Ok(())
    }

    /// Keeps the first `accepted` tentative tokens and forgets the rest.
    ///
    /// # Errors
    /// When the slot was released or fewer tokens were appended.
    pub fn commit(&mut self, slot: Slot, accepted: usize) -> Result<()> {
        let entry = self.entry(slot)?;
        let Some(marks) = entry.marks.get(accepted) else {
            let valid = format!("0..={}", entry.marks.len().saturating_sub(1));
            return Err(Error::argument("state pool", "accepted", accepted, valid));
        };
        for (layer, mark) in entry.layers.iter_mut().zip(marks) {
            layer.rewind(mark);
        }
        entry.tokens += accepted;
        entry.marks.clear();
        Ok(())
    }

    /// Forgets all tentative tokens.
    ///
    /// # Errors
    /// When the slot was released or no run was begun.
    pub fn rollback(&mut self, slot: Slot) -> Result<()> {
        self.commit(slot, 0)
    }

    /// The present state; it shares pages and tensors with the slot until either changes.
    ///
    /// # Errors
    /// When the slot was released, or there is no memory.
    pub fn snapshot(&mut self, slot: Slot) -> Result<Snapshot> {
        let entry = self.entry(slot)?;
        let layers = entry.layers.iter().map(LayerState::snapshot).collect::<Result<_>>()?;
        Ok(Snapshot { tokens: entry.tokens, layers })
    }

    /// Puts a snapshot's state into a slot. The snapshot may come from another pool of the model.
    ///
    /// # Errors
    /// When the slot was released, or the snapshot's layers are not those of this pool.
    pub fn restore(&mut self, slot: Slot, snapshot: &Snapshot) -> Result<()> {
        self.entry(slot)?;
        if snapshot.layers.len() != self.fresh.len() {
            let given = format!("{} layers", snapshot.layers.len());
            let valid = format!("{} layers", self.fresh.len());
            return Err(Error::argument("state pool", "snapshot", given, valid));
        }
        let layers = snapshot.layers.iter().zip(&self.fresh);
        let layers = layers.map(|(layer, fresh)| layer.moved_beside(fresh));
        let layers = layers.collect::<Result<_>>()?;
        let entry = self.entry(slot)?;
        entry.layers = layers;
        entry.tokens = snapshot.tokens;
        entry.marks.clear();
        Ok(())
    }

    /// Committed tokens of a slot.
    ///
    /// # Errors
    /// When the slot was released.
    pub fn tokens(&mut self, slot: Slot) -> Result<usize> {
        Ok(self.entry(slot)?.tokens)
    }

    /// Sets the number of committed tokens, for a step that is taken back.
    pub(super) fn set_tokens(&mut self, slot: Slot, tokens: usize) -> Result<()> {
        self.entry(slot)?.tokens = tokens;
        Ok(())
    }

    /// Bytes of all states in use.
    pub fn bytes(&self) -> usize {
        let layers = self.entries.iter().flatten().flat_map(|entry| &entry.layers);
        layers.map(LayerState::bytes).sum()
    }

    /// A hash of a slot's content: equal states, equal hashes.
    ///
    /// # Errors
    /// When the slot was released.
    pub fn hash(&mut self, slot: Slot) -> Result<u64> {
        let entry = self.entry(slot)?;
        let mut hasher = DefaultHasher::new();
        hasher.write_usize(entry.tokens);
        entry.layers.iter().try_for_each(|layer| layer.digest(&mut hasher))?;
        Ok(hasher.finish())
    }
}
