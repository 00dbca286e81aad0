//! Decoding steps that are recorded once and replayed.
//!
//! A recorded step reads and writes fixed places. [`StepMemory`] has them: the states of recurrent layers,
//! which the step reads first and overwrites last, and the lists that change from step to step (token
//! ids, positions, lengths, page tables, slots), which are rewritten before each replay. Key-value caches
//! and the slots of Mamba-2 lie in arenas that stay where they are until they grow. A round is
//!
//! ```text
//! enter_step                       room for a token, states and lists in their places; or why not
//! the step by itself, close_step   when it is rehearsed or recorded: mixers advance the states
//! or a replay,        leave_step   which knows nothing of the host's counts
//! ```
//!
//! Slots may come and go between steps: states move into the rows of the memory as they are needed, so
//! only the number of sequences is part of what was recorded.

use super::recurrent::Batch;
use super::{LayerState, Mark, PAGE, RecurrentState, Slot, StatePool};
use danaus_kernel::ops::attention::{CacheTables, cache_sequences};
use danaus_kernel::recording::overwrite;
use danaus_tensor::{Device, Error, Result, Tensor};
use std::sync::Arc;

/// Fewest pages that a page table has room for.
const FEWEST_PAGES: usize = 32;
/// Free pages a sequence that arenas have when a step is rehearsed.
const FREE_PAGES: usize = 8;

/// Pages that a page table has room for when `pages` are in use: an eighth of a power of two more at most.
/// Attention cuts keys by the room, so that a step of this room serves every length in it.
pub(super) fn table_pages(pages: usize) -> usize {
    let step = (pages.next_power_of_two() / 8).max(FEWEST_PAGES);
    pages.max(1).next_multiple_of(step)
}

/// What changes from step to step, on the device.
pub struct StepLists {
    /// Token ids, `[sequences]`, i64.
    pub ids: Tensor,
    /// Rows of a table of learned positions, alike.
    pub rows: Tensor,
    /// Positions in the texts, alike.
    pub positions: Tensor,
    /// Positions are below this.
    pub room: usize,
    sequences: Tensor,
    /// Page tables and lists of slots.
    tables: Vec<Tensor>,
    /// Of each layer with an arena: which, and the index of its table.
    layers: Vec<(usize, usize)>,
}

impl StepLists {
    /// Sequences of the step.
    pub fn len(&self) -> usize {
        self.ids.elem_count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The lists of the layer with this arena.
    pub(super) fn cache(&self, arena: usize) -> Option<CacheTables> {
        let pages = self.slots(arena)?;
        Some(CacheTables { sequences: self.sequences.clone(), pages })
    }

    /// The slots of the layer with this arena, or its page table.
    pub(super) fn slots(&self, arena: usize) -> Option<Tensor> {
        let (_, table) = self.layers.iter().find(|(own, _)| *own == arena)?;
        self.tables.get(*table).cloned()
    }
}

/// What the host knows about the tokens of a step.
pub struct StepTokens<'a> {
    /// Token ids, one a sequence.
    pub ids: &'a [i64],
    /// Rows of a table of learned positions.
    pub rows: &'a [i64],
}

/// The places of a recorded step.
pub struct StepMemory {
    lists: Arc<StepLists>,
    /// Page tables and lists of slots as they were written last.
    written: Vec<Vec<i32>>,
    /// Rows of recurrent layers; `None` for the others.
    recurrent: Vec<Option<Arc<Batch>>>,
    /// Addresses of the layers' arenas, where they have one.
    arenas: Vec<[u64; 2]>,
}

/// Whether a recorded step serves the next tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// As it is.
    Fits,
    /// A text has grown beyond the room of the lists.
    Longer,
    /// An arena has grown, or page tables or slots of layers have parted.
    Moved,
    /// Somebody else holds states that the step would overwrite.
    Shared,
}

impl StepMemory {
    /// The lists, for a batch.
    pub fn lists(&self) -> &Arc<StepLists> {
        &self.lists
    }
}

/// A point that all layers of some slots return to.
pub struct StepPoint(Vec<(usize, Vec<Option<Mark>>)>);

/// What a step reads about where the states of a layer lie in their arena.
struct Place {
    arena: usize,
    addresses: [u64; 2],
    /// A page table `[sequences * pages]` or slots `[sequences]`; `None` where a slot is shared.
    numbers: Option<Vec<i32>>,
}

impl Place {
    /// Of states in an arena.
    fn of(states: &[&mut LayerState], pages: usize) -> Result<Option<Self>> {
        Ok(match states.first() {
            Some(LayerState::Kv(state)) => Some(Self {
                arena: state.arena_key(),
                addresses: state.addresses()?,
                numbers: Some(page_table(states, pages)),
            }),
            Some(LayerState::Slot(state)) => Some(Self {
                arena: state.arena_key(),
                addresses: state.addresses()?,
                numbers: states.iter().map(|state| settled(state)).collect(),
            }),
            _ => None,
        })
    }
}

fn settled(state: &LayerState) -> Option<i32> {
    match state {
        LayerState::Slot(state) => state.settled().map(|slot| slot as i32),
        _ => None,
    }
}

fn page_table(states: &[&mut LayerState], pages: usize) -> Vec<i32> {
    let mut table = vec![0i32; states.len() * pages];
    for (state, row) in states.iter().zip(table.chunks_mut(pages.max(1))) {
        if let LayerState::Kv(state) = &**state {
            row.iter_mut().zip(state.pages()).for_each(|(to, page)| *to = *page as i32);
        }
    }
    table
}

impl StatePool {
    fn depth(&self) -> usize {
        self.fresh.len()
    }

    /// The kind of a layer that steps of this pool cannot be recorded with, if there is one.
    pub fn unrecorded_kind(&self) -> Option<&'static str> {
        // What lies behind a convolution keeps its inputs in tensors of their own, one a sequence.
        let known = |layer: &&LayerState| {
            matches!(layer, LayerState::Kv(_) | LayerState::Recurrent(_) | LayerState::Slot(_))
        };
        self.fresh.iter().find(|layer| !known(layer)).map(LayerState::kind)
    }

    /// Places for steps of as many sequences as there are slots, with room for their next token.
    ///
    /// # Errors
    /// When a slot was released, or there is no memory.
    pub fn step_memory(&mut self, slots: &[Slot], device: &Device) -> Result<StepMemory> {
        let ends = self.ends(slots)?;
        let pages = table_pages(ends.iter().max().map_or(1, |end| end.div_ceil(PAGE)));
        let (mut written, mut layers) = (Vec::<Vec<i32>>::new(), Vec::new());
        let (mut recurrent, mut arenas) = (Vec::new(), Vec::new());
        let mut bounded = false;
        for layer in 0..self.depth() {
            let mut states = self.layer(slots, layer)?;
            make_room(&mut states)?;
            recurrent.push(match states.first() {
                Some(LayerState::Recurrent(state)) => {
                    bounded |= state.counts();
                    Some(state.memory(slots.len())?)
                }
                Some(LayerState::Kv(state)) => {
                    bounded = true;
                    state.reserve(FREE_PAGES * slots.len())?;
                    None
                }
                _ => None,
            });
            if let Some(place) = Place::of(&states, pages)? {
                // Shared slots are found again when the step is entered.
                let table = place.numbers.unwrap_or_else(|| vec![0; slots.len()]);
                let known = written.iter().position(|other| *other == table);
                layers.push((place.arena, known.unwrap_or(written.len())));
                written.extend(known.is_none().then_some(table));
                arenas.push(place.addresses);
            }
        }
        let numbers = || Tensor::zeros([slots.len()], danaus_tensor::DType::I64, device);
        let table = |table: &Vec<i32>| match table.len() == slots.len() {
            true => Tensor::from_slice(table, [slots.len()], device),
            false => Tensor::from_slice(table, [slots.len(), pages], device),
        };
        let lists = StepLists {
            ids: numbers()?,
            rows: numbers()?,
            positions: numbers()?,
            room: if bounded { pages * PAGE } else { usize::MAX },
            sequences: Tensor::from_vec(cache_sequences(&ends)?, [6 * slots.len()], device)?,
            tables: written.iter().map(table).collect::<Result<_>>()?,
            layers,
        };
        Ok(StepMemory { lists: Arc::new(lists), written, recurrent, arenas })
    }

    /// Tokens of each slot with the next one.
    fn ends(&mut self, slots: &[Slot]) -> Result<Vec<usize>> {
        slots.iter().map(|&slot| Ok(self.tokens(slot)? + 1)).collect()
    }

    /// Makes room for one more token of each slot, and puts states and lists where the step reads them.
    /// Unless it is [`Fit::Fits`], nothing was put anywhere.
    ///
    /// # Errors
    /// When a slot was released, the lists are in use, or there is no memory.
    pub fn enter_step(
        &mut self,
        slots: &[Slot],
        memory: &mut StepMemory,
        tokens: &StepTokens,
    ) -> Result<Fit> {
        let ends = self.ends(slots)?;
        let room = memory.lists.room;
        if ends.iter().any(|&end| end > room) {
            return Ok(Fit::Longer);
        }
        let mut tables: Vec<Option<Vec<i32>>> = vec![None; memory.written.len()];
        let mut cache = 0;
        for layer in 0..self.depth() {
            let mut states = self.layer(slots, layer)?;
            make_room(&mut states)?;
            if let Some(rows) = &memory.recurrent[layer]
                && !RecurrentState::may_overwrite(&recurrent(&mut states), rows)
            {
                return Ok(Fit::Shared);
            }
            if let Some(place) = Place::of(&states, room / PAGE)? {
                let (arena, index) = memory.lists.layers[cache];
                // A pool that has become another would have other arenas.
                if arena != place.arena || place.addresses != memory.arenas[cache] {
                    return Ok(Fit::Moved);
                }
                let Some(table) = place.numbers else { return Ok(Fit::Shared) };
                if tables[index].get_or_insert_with(|| table.clone()) != &table {
                    return Ok(Fit::Moved);
                }
                cache += 1;
            }
        }
        for (layer, rows) in memory.recurrent.iter().enumerate() {
            if let Some(rows) = rows {
                let mut states = self.layer(slots, layer)?;
                RecurrentState::settle(&mut recurrent(&mut states), rows)?;
            }
        }
        memory.write(&ends, tokens, tables)?;
        Ok(Fit::Fits)
    }

    /// After the step itself: what it left goes back to where the next one begins. Recorded with it.
    ///
    /// # Errors
    /// When a slot was released.
    pub fn close_step(&mut self, slots: &[Slot], memory: &StepMemory) -> Result<()> {
        let mut left = Vec::new();
        for (layer, rows) in memory.recurrent.iter().enumerate() {
            if let Some(rows) = rows {
                let mut states = self.layer(slots, layer)?;
                let states = &mut recurrent(&mut states);
                left.push((RecurrentState::joined(states)?, rows.clone()));
                RecurrentState::rebind(states, rows)?;
            }
        }
        let pairs = left.iter().flat_map(|((conv, scan), rows)| rows.targets(conv, scan));
        overwrite(&pairs.collect::<Vec<_>>())
    }

    /// After a replay: counts the token that every layer has taken in.
    ///
    /// # Errors
    /// When a slot was released.
    pub fn leave_step(&mut self, slots: &[Slot]) -> Result<()> {
        for layer in 0..self.depth() {
            for state in self.layer(slots, layer)? {
                match state {
                    LayerState::Kv(state) | LayerState::ConvKv(_, state) => state.count_one(),
                    LayerState::Recurrent(state) => state.count_one()?,
                    // In place, and without a count.
                    LayerState::Slot(_) => {}
                }
            }
        }
        slots.iter().try_for_each(|&slot| self.advance(slot, 1))
    }

    /// The present point of some slots.
    ///
    /// # Errors
    /// When a slot was released.
    pub fn point(&mut self, slots: &[Slot]) -> Result<StepPoint> {
        let mut points = Vec::with_capacity(slots.len());
        for &slot in slots {
            let mut marks = Vec::with_capacity(self.depth());
            for layer in 0..self.depth() {
                let marked = |state: &&mut LayerState| match state {
                    // A mark would share the slot, and the step leave it; its host side does not change.
                    LayerState::Slot(_) => None,
                    state => Some(state.mark()),
                };
                marks.extend(self.layer(&[slot], layer)?.iter().map(marked));
            }
            points.push((self.tokens(slot)?, marks));
        }
        Ok(StepPoint(points))
    }

    /// Takes a step back that was written down and not run.
    ///
    /// # Errors
    /// When a slot was released.
    pub fn return_to(&mut self, slots: &[Slot], point: &StepPoint) -> Result<()> {
        for (&slot, (tokens, marks)) in slots.iter().zip(&point.0) {
            for (layer, mark) in marks.iter().enumerate() {
                let states = self.layer(&[slot], layer)?.into_iter();
                states.zip(mark).for_each(|(state, mark)| state.rewind(mark));
            }
            self.set_tokens(slot, *tokens)?;
        }
        Ok(())
    }
}

impl StepMemory {
    /// Rewrites the lists.
    fn write(
        &mut self,
        ends: &[usize],
        tokens: &StepTokens,
        tables: Vec<Option<Vec<i32>>>,
    ) -> Result<()> {
        let in_use = || Error::internal("the lists of a step are still in use");
        let lists = Arc::get_mut(&mut self.lists).ok_or_else(in_use)?;
        lists.ids.rewrite(tokens.ids)?;
        lists.rows.rewrite(tokens.rows)?;
        let positions: Vec<i64> = ends.iter().map(|&end| end as i64 - 1).collect();
        lists.positions.rewrite(&positions)?;
        if lists.layers.is_empty() {
            return Ok(());
        }
        lists.sequences.rewrite(&cache_sequences(ends)?)?;
        for (index, table) in tables.into_iter().enumerate() {
            if let Some(table) = table.filter(|table| *table != self.written[index]) {
                lists.tables[index].rewrite(&table)?;
                self.written[index] = table;
            }
        }
        Ok(())
    }
}

fn make_room(states: &mut [&mut LayerState]) -> Result<()> {
    for state in states {
        if let LayerState::Kv(state) | LayerState::ConvKv(_, state) = &mut **state {
            state.make_room(1)?;
        }
    }
    Ok(())
}

fn recurrent<'a>(states: &'a mut [&mut LayerState]) -> Vec<&'a mut RecurrentState> {
    let of = |state: &'a mut &mut LayerState| match &mut **state {
        LayerState::Recurrent(state) => Some(state),
        _ => None,
    };
    states.iter_mut().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_room_for_an_eighth_more_at_most() {
        assert_eq!([1, 32, 33, 64, 65, 256, 257].map(table_pages), [32, 32, 64, 64, 96, 256, 320]);
        for pages in 1..3000 {
            let room = table_pages(pages);
            assert!(room >= pages && room <= pages + (pages / 4).max(FEWEST_PAGES));
            assert_eq!(table_pages(room), room);
        }
    }
}
