//! The tiled forward pass on the CPU.
//!
//! Tasks are (sequence, key head, panels of rows). A task walks the visible key tiles once: pack the
//! tile's K and V, then for each panel S^T = K Q^T, the online softmax, O += P V. Scores live in one
//! 64 x 64 tile; nothing grows with the square of the length. The order of all sums depends on
//! positions alone, so results are the same at any thread count, and for a sequence alone or among
//! others. Tasks of a few rows (decoding) read keys and values in place (`few_rows.rs`), in the same
//! order of sums.

use super::dropout::RowIndex;
#[cfg(target_arch = "x86_64")]
use super::few_rows::{self, InPlace, Layout, Tile};
use super::mask::{Coverage, PANEL, PanelRows, TileMask};
use super::microkernel::Product;
use super::pack::{Element, Words, prefetch};
#[cfg(target_arch = "x86_64")]
use super::problem::Operand;
use super::problem::{Inputs, Outputs, Problem};
use super::softmax::{Finish, ROW_KEYS, State, Update, UpdateRows};
use super::tile_range::{Band, tiles};
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{Lane, dispatch};
use danaus_runtime::threads;
#[cfg(target_arch = "x86_64")]
use half::bf16;
use std::ops::Range;

/// Keys of a tile.
const KEY_TILE: usize = ROW_KEYS;
/// Lanes of the queries of tasks that read in place.
#[cfg(target_arch = "x86_64")]
const IN_PLACE_LANES: usize = few_rows::MOST;
#[cfg(not(target_arch = "x86_64"))]
const IN_PLACE_LANES: usize = PANEL;
/// Most panels that share a packed tile.
const PANELS: usize = 8;
/// Tasks wanted at least, to balance a few cores.
const TASKS: usize = 64;

/// Shape to task list: (sequence, key head, packed rows), longest first under causal masks.
fn tasks(problem: &Problem) -> Vec<(usize, usize, Range<usize>)> {
    let mut list = Vec::new();
    let rows: usize = problem.sequences.iter().map(|sequence| sequence.q_len).sum();
    let panels = (rows * problem.heads / (TASKS * PANEL)).clamp(1, PANELS);
    for (index, sequence) in problem.sequences.iter().enumerate() {
        let rows = sequence.q_len * problem.group();
        for kv_head in 0..problem.kv_heads {
            for first in (0..rows).step_by(panels * PANEL).rev() {
                let end = rows.min(first + panels * PANEL);
                list.push((index, kv_head, first..end));
            }
        }
    }
    list
}

/// Computes `out` and `lse` of all rows that belong to a sequence; other rows are left alone.
///
/// # Safety
/// The operands and outputs cover every row that the problem's sequences name.
pub unsafe fn forward<T: Element, O: Lane>(
    problem: &Problem,
    inputs: Inputs<T>,
    outputs: Outputs<O, f32>,
) {
    let list = tasks(problem);
    threads::for_each(list.len(), |index| {
        let (batch, kv_head, task) = list[index].clone();
        let sequence = problem.sequences[batch];
        let group = problem.group();
        let panel = |first: usize| PanelRows {
            batch,
            sequence,
            kv_head,
            group,
            first,
            count: (task.end - first).min(PANEL),
        };
        let panels: Vec<PanelRows> = task.clone().step_by(PANEL).map(panel).collect();
        // SAFETY: promised by the caller; tasks own disjoint rows.
        unsafe { Task::new(problem, inputs, &panels).run(outputs) };
    });
}

/// Whether a task's rows are so few that packing keys and values would cost more than it saves.
#[cfg(target_arch = "x86_64")]
fn reads_in_place<T: Element>(panels: &[PanelRows]) -> bool {
    use danaus_runtime::simd::{Isa, isa};
    let few = panels.len() == 1 && panels[0].count <= few_rows::MOST;
    let words = T::IS_F32 || Words::of::<T>() == Words::Bf16Pairs;
    few && words && isa() == Isa::Avx512
}

#[cfg(not(target_arch = "x86_64"))]
fn reads_in_place<T: Element>(_: &[PanelRows]) -> bool {
    false
}

/// A panel in flight.
struct Panel {
    rows: PanelRows,
    visible: Range<usize>,
    mask: TileMask,
    state: State,
    /// Transposed queries (word of feature, lane).
    q: Scratch<f32>,
    /// Unnormalised output (lane, value).
    output: Scratch<f32>,
}

struct Task<'a, T> {
    problem: &'a Problem<'a>,
    inputs: Inputs<'a, T>,
    words: Words,
    panels: Vec<Panel>,
    value_stride: usize,
    /// Whether the few rows of the task read keys and values in place.
    in_place: bool,
    k: Scratch<f32>,
    v: Scratch<f32>,
    scores: Scratch<f32>,
    pairs: Scratch<f32>,
    factors: Scratch<f32>,
}

impl<'a, T: Element> Task<'a, T> {
    /// # Safety
    /// As [`forward`].
    unsafe fn new(problem: &'a Problem<'a>, inputs: Inputs<'a, T>, rows: &[PanelRows]) -> Self {
        let words = Words::of::<T>();
        let value_stride = problem.value_dim.next_multiple_of(16);
        let in_place = reads_in_place::<T>(rows);
        let lanes = if in_place { IN_PLACE_LANES } else { PANEL };
        // SAFETY: promised by the caller.
        let panel =
            |rows: &PanelRows| unsafe { Panel::new(problem, &inputs, (words, lanes), *rows) };
        let key_words = words.count(problem.head_dim);
        let pairs = if words == Words::Bf16Pairs { KEY_TILE / 2 * PANEL } else { 0 };
        let factors = if problem.dropout.is_some() { KEY_TILE * PANEL } else { 0 };
        let packed = if in_place { 0 } else { KEY_TILE };
        Self {
            problem,
            inputs,
            words,
            panels: rows.iter().map(panel).collect(),
            value_stride,
            in_place,
            // Each is written before it is read. A decoding step has hundreds of tasks of one row, and
            // zeroing their tiles took a quarter of its attention.
            k: Scratch::unspecified(packed * key_words),
            v: Scratch::unspecified(words.count(packed) * value_stride),
            scores: Scratch::unspecified(KEY_TILE * PANEL),
            pairs: Scratch::unspecified(pairs),
            factors: Scratch::unspecified(factors),
        }
    }

    /// # Safety
    /// As [`forward`].
    unsafe fn run<O: Lane>(mut self, outputs: Outputs<O, f32>) {
        let start = self.panels.iter().map(|p| p.visible.start).min().unwrap_or(0);
        let end = self.panels.iter().map(|p| p.visible.end).max().unwrap_or(0);
        for keys in tiles(start..end.max(start), KEY_TILE) {
            let mut packed = false;
            for index in 0..self.panels.len() {
                let panel = &mut self.panels[index];
                let seen = keys.start < panel.visible.end && panel.visible.start < keys.end;
                if !seen
                    || panel.mask.prepare(self.problem, &panel.rows, keys.clone())
                        == Coverage::Empty
                {
                    continue;
                }
                // SAFETY: promised by the caller.
                unsafe {
                    if !packed {
                        if !self.in_place {
                            self.pack(keys.clone());
                        }
                        self.prefetch(keys.end..(keys.end + KEY_TILE).min(end));
                        packed = true;
                    }
                    self.step(index, keys.clone());
                }
            }
        }
        for panel in &self.panels {
            // SAFETY: promised by the caller.
            unsafe { panel.finish(self.problem, self.value_stride, outputs) };
        }
    }

    /// # Safety
    /// The keys exist.
    unsafe fn pack(&mut self, keys: Range<usize>) {
        let rows = &self.panels[0].rows;
        let (sequence, head) = (rows.sequence, rows.kv_head);
        let (head_dim, value_dim) = (self.problem.head_dim, self.problem.value_dim);
        let batch = sequence.kv_batch;
        let (k, v) = (self.inputs.k, self.inputs.v);
        // SAFETY: promised by the caller.
        let k_rows =
            keys.clone().map(|j| unsafe { k.slice(batch, sequence.k_start + j, head, head_dim) });
        self.words.natural(k_rows, &mut self.k);
        // SAFETY: as above.
        let v_rows = keys.map(|j| unsafe { v.slice(batch, sequence.k_start + j, head, value_dim) });
        self.words.paired(v_rows, &mut self.v, self.value_stride);
    }

    /// Asks for the next tile's rows while this one is computed: rows lie far apart (all heads are
    /// between two of them), which hardware prefetchers do not follow.
    ///
    /// # Safety
    /// The keys exist.
    unsafe fn prefetch(&self, keys: Range<usize>) {
        let rows = &self.panels[0].rows;
        let (sequence, head) = (rows.sequence, rows.kv_head);
        for row in keys.map(|j| sequence.k_start + j) {
            // SAFETY: promised by the caller.
            unsafe {
                let (k, v) = (self.inputs.k, self.inputs.v);
                prefetch(k.slice(sequence.kv_batch, row, head, self.problem.head_dim));
                prefetch(v.slice(sequence.kv_batch, row, head, self.problem.value_dim));
            }
        }
    }

    /// One panel against the packed tile.
    ///
    /// # Safety
    /// The tile is packed and the panel's mask prepared.
    unsafe fn step(&mut self, index: usize, keys: Range<usize>) {
        // SAFETY: promised by the caller.
        unsafe {
            self.scores(index, keys.clone());
            self.update(index, keys.clone());
            self.outputs(index, keys);
        }
    }

    /// Addresses of the keys (or values) of a tile.
    #[cfg(target_arch = "x86_64")]
    fn addresses<W>(
        &self,
        operand: Operand<T>,
        keys: Range<usize>,
    ) -> ([*const W; KEY_TILE], usize) {
        let rows = &self.panels[0].rows;
        let mut all = [std::ptr::null(); KEY_TILE];
        let count = keys.len();
        for (to, j) in all.iter_mut().zip(keys) {
            let (sequence, head) = (rows.sequence, rows.kv_head);
            // SAFETY: the tile's rows exist (see `step`).
            *to = unsafe { operand.row(sequence.kv_batch, sequence.k_start + j, head) }.cast();
        }
        (all, count)
    }

    /// Whether scores of the panel lie as rows of keys: where few rows read in place and nothing
    /// depends on positions.
    fn has_rows(&self, index: usize) -> bool {
        self.in_place && !self.panels[index].mask.is_needed() && self.problem.dropout.is_none()
    }

    #[cfg(target_arch = "x86_64")]
    fn layout(&self, index: usize) -> Layout {
        if self.has_rows(index) { Layout::ROWS } else { Layout::LANES }
    }

    /// S^T = K Q^T of keys in place; `W` is the type of the elements.
    ///
    /// # Safety
    /// As [`Self::step`]; `reads_in_place` found the instructions.
    #[cfg(target_arch = "x86_64")]
    unsafe fn scores_in_place<W: InPlace>(&mut self, index: usize, keys: Range<usize>) {
        let (addresses, count) = self.addresses::<W>(self.inputs.k, keys);
        let (panel, keys) = (&self.panels[index], &addresses[..count]);
        let (rows, width, layout) = (panel.rows.count, self.problem.head_dim, self.layout(index));
        // SAFETY: promised by the caller.
        unsafe { Tile { rows, keys, width, layout }.scores(&panel.q, &mut self.scores) }
    }

    /// O += P V of values in place.
    ///
    /// # Safety
    /// As [`Self::scores_in_place`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn outputs_in_place<W: InPlace>(&mut self, index: usize, keys: Range<usize>) {
        let (addresses, count) = self.addresses::<W>(self.inputs.v, keys);
        let layout = self.layout(index);
        let panel = &mut self.panels[index];
        let (rows, keys, width) = (panel.rows.count, &addresses[..count], self.problem.value_dim);
        let p = if self.words == Words::F32 { &self.scores } else { &self.pairs };
        let tile = Tile { rows, keys, width, layout };
        // SAFETY: promised by the caller.
        unsafe { tile.outputs(p, &mut panel.output, self.value_stride) }
    }

    /// S^T = K Q^T.
    ///
    /// # Safety
    /// As [`Self::step`].
    unsafe fn scores(&mut self, index: usize, keys: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        if self.in_place {
            // SAFETY: promised by the caller; the type was looked at by `reads_in_place`.
            return unsafe {
                match T::IS_F32 {
                    true => self.scores_in_place::<f32>(index, keys),
                    false => self.scores_in_place::<bf16>(index, keys),
                }
            };
        }
        let panel = &mut self.panels[index];
        let key_words = self.words.count(self.problem.head_dim);
        let scores = Product {
            a: self.k.as_ptr(),
            a_row: key_words,
            a_step: 1,
            b: panel.q.as_ptr(),
            b_stride: PANEL,
            c: self.scores.as_mut_ptr(),
            c_stride: PANEL,
            m: keys.len(),
            n: panel.rows.count.next_multiple_of(16),
            k: key_words,
            accumulate: false,
        };
        // SAFETY: K is (keys, words), Q^T (words, PANEL) and the scores (KEY_TILE, PANEL).
        unsafe { scores.run(self.words) };
    }

    /// Online softmax of the scores.
    fn update(&mut self, index: usize, keys: Range<usize>) {
        let has_rows = self.has_rows(index);
        let panel = &mut self.panels[index];
        if has_rows {
            return dispatch(UpdateRows {
                scores: &mut self.scores,
                rows: panel.rows.count,
                keys: keys.len(),
                mask: &panel.mask,
                state: &mut panel.state,
                output: &mut panel.output,
                output_stride: self.value_stride,
                pairs: &mut self.pairs,
                words: self.words,
            });
        }
        let dropped = self.problem.dropout.is_some();
        if dropped {
            drop_factors(self.problem, &panel.rows, keys.clone(), &mut self.factors);
        }
        dispatch(Update {
            scores: &mut self.scores,
            keys: keys.len(),
            lanes: panel.rows.count.next_multiple_of(16),
            mask: &panel.mask,
            factors: dropped.then_some(&*self.factors),
            state: &mut panel.state,
            output: &mut panel.output,
            output_stride: self.value_stride,
            pairs: &mut self.pairs,
            words: self.words,
        });
    }

    /// O += P V.
    ///
    /// # Safety
    /// As [`Self::step`].
    unsafe fn outputs(&mut self, index: usize, keys: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        if self.in_place {
            // SAFETY: as in `scores`.
            return unsafe {
                match T::IS_F32 {
                    true => self.outputs_in_place::<f32>(index, keys),
                    false => self.outputs_in_place::<bf16>(index, keys),
                }
            };
        }
        let panel = &mut self.panels[index];
        let probabilities =
            if self.words == Words::F32 { self.scores.as_ptr() } else { self.pairs.as_ptr() };
        let sum = Product {
            a: probabilities,
            a_row: 1,
            a_step: PANEL,
            b: self.v.as_ptr(),
            b_stride: self.value_stride,
            c: panel.output.as_mut_ptr(),
            c_stride: self.value_stride,
            m: panel.rows.count,
            n: self.value_stride,
            k: self.words.count(keys.len()),
            accumulate: true,
        };
        // SAFETY: P is (key words, PANEL), V (key words, stride) and the output (PANEL, stride).
        unsafe { sum.run(self.words) };
    }
}

impl Panel {
    /// # Safety
    /// The rows exist in q.
    unsafe fn new<T: Element>(
        problem: &Problem,
        inputs: &Inputs<T>,
        (words, lanes): (Words, usize),
        rows: PanelRows,
    ) -> Self {
        let sequence = rows.sequence;
        let band = Band::new(problem.window, sequence.q_len, sequence.k_len);
        let width = problem.head_dim;
        let mut q = Scratch::unspecified(words.count(width) * lanes);
        let q_row = |lane: usize| {
            let row = sequence.q_start + rows.query(lane);
            // SAFETY: promised by the caller.
            unsafe { inputs.q.slice(sequence.q_batch, row, rows.head(lane), width) }
        };
        (0..rows.count).for_each(|lane| prefetch(q_row(lane)));
        // Rows of whole vectors of lanes are rescaled and summed into; the others are never touched.
        let stride = problem.value_dim.next_multiple_of(16);
        let mut output = Scratch::unspecified(PANEL * stride);
        let touched = if lanes == PANEL { rows.count.next_multiple_of(16) } else { 16 };
        output[..touched * stride].fill(0.0);
        words.transposed((0..rows.count).map(q_row), width, &mut q, lanes);
        Self {
            rows,
            visible: sequence.covered(band.visible_keys(rows.queries())),
            mask: TileMask::new(problem, &rows),
            state: State::new(),
            q,
            output,
        }
    }

    /// Divides by the sums and writes the rows.
    ///
    /// # Safety
    /// The rows exist in the outputs and belong to this task.
    unsafe fn finish<O: Lane>(&self, problem: &Problem, stride: usize, outputs: Outputs<O, f32>) {
        let rows = &self.rows;
        let width = problem.value_dim;
        for lane in 0..rows.count {
            let head = rows.head(lane);
            let factor = self.mask.exponent_factor() * std::f32::consts::LN_2;
            let maximum = self.state.maximum[lane] * factor;
            let sink = problem.sinks.as_ref().map(|sinks| sinks[head] as f32);
            let (normaliser, lse) = normalise(maximum, self.state.sum[lane], sink);
            let sequence = &rows.sequence;
            let row = sequence.q_start + rows.query(lane);
            let start = sequence.out_batch * outputs.out_batch_stride
                + (row * problem.heads + head) * width;
            let lse_at = sequence.lse_start + head * problem.lse_head_stride + rows.query(lane);
            // SAFETY: promised by the caller.
            let (out, lse_out) =
                unsafe { (outputs.out.slice(start, width), outputs.lse.slice(lse_at, 1)) };
            lse_out[0] = lse;
            let row = &self.output[lane * stride..(lane + 1) * stride];
            dispatch(Finish { row, factor: normaliser, out });
        }
    }
}

/// Factor of the unnormalised output and the log-sum-exp, from maximum, sum and sink logit.
fn normalise(maximum: f32, sum: f32, sink: Option<f32>) -> (f32, f32) {
    let Some(sink) = sink else {
        return if sum == 0.0 { (0.0, f32::NEG_INFINITY) } else { (1.0 / sum, maximum + sum.ln()) };
    };
    if sum == 0.0 {
        return (0.0, sink);
    }
    let top = maximum.max(sink);
    let decay = (maximum - top).exp();
    let total = sum * decay + (sink - top).exp();
    (decay / total, top + total.ln())
}

/// Fills the dropout factors (key, lane) of one tile.
pub fn drop_factors(problem: &Problem, rows: &PanelRows, keys: Range<usize>, factors: &mut [f32]) {
    let Some(dropout) = problem.dropout else { return };
    for lane in 0..rows.count {
        let batch_head = rows.batch * problem.heads + rows.head(lane);
        let row = RowIndex { batch_head, query: rows.query(lane) };
        let write = |key: usize, factor: f64| factors[key * PANEL + lane] = factor as f32;
        dropout.factors(row, keys.start, write, keys.len());
    }
}
