//! The tiled backward pass on the CPU.
//!
//! Probabilities are recomputed from the log-sum-exp. A task owns a run of keys of one key head and
//! walks all query rows of the group for each block of keys: five products a tile, `S^T = K Q^T`,
//! `dP^T = V dO^T`, `dV += P^T dO`, `dK += dS^T Q`, `dQ += dS K`. dK and dV are complete when the
//! block is done. dQ is summed in f32 in the task; where few heads leave cores idle, keys are split
//! over several tasks by shape, and their dQ are added in order. The bits do not depend on threads.

use super::forward::drop_factors;
use super::gradient::{PairTiles, RowDot, TileGradient};
use super::mask::{Coverage, PANEL, PanelRows, TileMask};
use super::microkernel::Product;
use super::pack::{Element, Words};
use super::problem::{Cotangents, Gradients, Inputs, Operand, Problem, Sequence};
use super::softmax::Finish;
use super::tile_range::{Band, tiles};
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::dispatch;
use danaus_runtime::threads::{self, SharedMut};
use std::ops::Range;

/// Keys of a tile.
const KEY_TILE: usize = 64;
/// Tiles of keys that share a packed panel of rows.
const BLOCK_TILES: usize = 4;
/// Keys of a block.
const BLOCK: usize = BLOCK_TILES * KEY_TILE;
/// Tasks wanted at least.
const TASKS: usize = 8;

/// Everything the tasks read and write.
struct Pass<'a, T> {
    problem: &'a Problem<'a>,
    inputs: Inputs<'a, T>,
    cotangents: Cotangents<'a, T, f32>,
    gradients: Gradients<T, f32>,
    delta: &'a [f32],
    words: Words,
    key_stride: usize,
    value_stride: usize,
}

/// Adds all gradients to `gradients`, which start at zero.
///
/// # Safety
/// The operands and gradients cover every row that the problem's sequences name.
pub unsafe fn backward<T: Element>(
    problem: &Problem,
    inputs: Inputs<T>,
    cotangents: Cotangents<T, f32>,
    gradients: Gradients<T, f32>,
) {
    let mut delta = Scratch::<f32>::new(cotangents.lse.len());
    // SAFETY: promised by the caller.
    unsafe { fill_delta(problem, &cotangents, &gradients, SharedMut::new(&mut delta)) };
    let pass = Pass {
        problem,
        inputs,
        cotangents,
        gradients,
        delta: &delta,
        words: Words::of::<T>(),
        key_stride: problem.head_dim.next_multiple_of(16),
        value_stride: problem.value_dim.next_multiple_of(16),
    };
    let jobs = problem.sequences.len() * problem.kv_heads;
    let longest = problem.sequences.iter().map(|s| s.k_len).max().unwrap_or(0);
    let most_rows = problem.sequences.iter().map(|s| s.q_len).max().unwrap_or(0) * problem.group();
    let parts = (TASKS / jobs.max(1)).clamp(1, longest.div_ceil(BLOCK).max(1));
    let part_keys = longest.div_ceil(parts).next_multiple_of(BLOCK);
    if parts == 1 {
        threads::for_each(jobs, |job| {
            let (batch, kv_head) = (job / problem.kv_heads, job % problem.kv_heads);
            let rows = problem.sequences[batch].q_len * problem.group();
            let mut grad_q = Scratch::<f32>::new(rows * pass.key_stride);
            // SAFETY: promised by the caller; a job owns its key head and its group of query heads.
            unsafe {
                pass.keys(batch, kv_head, 0..longest, &mut grad_q);
                pass.store_queries(batch, kv_head, &grad_q);
            }
        });
        return;
    }
    let part_len = most_rows * pass.key_stride;
    let mut partial = Scratch::<f32>::new(jobs * parts * part_len);
    let shared = SharedMut::new(&mut partial);
    threads::for_each(jobs * parts, |task| {
        let (job, part) = (task / parts, task % parts);
        let (batch, kv_head) = (job / problem.kv_heads, job % problem.kv_heads);
        // SAFETY: as above; every task has its own part of the sums and of the keys.
        unsafe {
            let grad_q = shared.slice(task * part_len, part_len);
            pass.keys(batch, kv_head, part * part_keys..(part + 1) * part_keys, grad_q);
        }
    });
    threads::for_each(jobs, |job| {
        // SAFETY: the parts of a job are complete and belong to this task now.
        unsafe {
            let all = shared.slice(job * parts * part_len, parts * part_len);
            let (sum, others) = all.split_at_mut(part_len);
            for other in others.chunks_exact(part_len.max(1)) {
                sum.iter_mut().zip(other).for_each(|(sum, &x)| *sum += x);
            }
            pass.store_queries(job / problem.kv_heads, job % problem.kv_heads, sum);
        }
    });
}

/// `Delta = dO . O - dL` for every row, and the gradients of the sinks.
unsafe fn fill_delta<T: Element>(
    problem: &Problem,
    cotangents: &Cotangents<T, f32>,
    gradients: &Gradients<T, f32>,
    delta: SharedMut<f32>,
) {
    threads::for_each(problem.sequences.len() * problem.heads, |task| {
        let (batch, head) = (task / problem.heads, task % problem.heads);
        let sequence = problem.sequences[batch];
        let start = sequence.lse_start + head * problem.lse_head_stride;
        let sink = problem.sinks.as_ref().map(|sinks| sinks[head] as f32);
        let mut grad_sink = 0.0f32;
        for query in 0..sequence.q_len {
            let (row, width) = (sequence.q_start + query, problem.value_dim);
            let lse = cotangents.lse[start + query];
            if lse == f32::NEG_INFINITY {
                continue;
            }
            // SAFETY: promised by the caller of `backward`; a task owns the rows of its head.
            unsafe {
                let a = cotangents.out.slice(sequence.q_batch, row, head, width);
                let b = cotangents.grad_out.slice(sequence.q_batch, row, head, width);
                let grad_lse = cotangents.grad_lse.map_or(0.0, |grad| grad[start + query]);
                let value = dispatch(RowDot { a, b }) - grad_lse;
                delta.slice(start + query, 1)[0] = value;
                grad_sink -= sink.map_or(0.0, |sink| (sink - lse).exp()) * value;
            }
        }
        if let Some(sinks) = gradients.sinks {
            // SAFETY: (sequence, head) values, one per task.
            unsafe { sinks.slice(task, 1)[0] = grad_sink };
        }
    });
}

/// A panel of query rows in the layouts of the products.
struct PackedRows {
    q_by_feature: Scratch<f32>,
    q_by_row: Scratch<f32>,
    grad_by_feature: Scratch<f32>,
    grad_by_row: Scratch<f32>,
    lse: [f32; PANEL],
    delta: [f32; PANEL],
}

/// A block of keys in the layouts of the products, with its gradients.
struct PackedKeys {
    k: Scratch<f32>,
    k_by_key: Scratch<f32>,
    v: Scratch<f32>,
    grad_k: Scratch<f32>,
    grad_v: Scratch<f32>,
}

/// One tile of scores: its rows, their mask, its keys and where they start in their block.
struct TileAt<'a> {
    panel: &'a PanelRows,
    mask: &'a TileMask,
    keys: Range<usize>,
    first: usize,
}

/// Tiles of scores.
struct Tiles {
    scores: Scratch<f32>,
    grads: Scratch<f32>,
    factors: Scratch<f32>,
    pairs: PairTiles,
}

impl<'a, T: Element> Pass<'a, T> {
    /// All gradients that involve `keys` of one key head; dQ is added to `grad_q` (row, feature).
    ///
    /// # Safety
    /// As [`backward`]; no other task has these keys.
    unsafe fn keys(&self, batch: usize, kv_head: usize, keys: Range<usize>, grad_q: &mut [f32]) {
        let sequence = self.problem.sequences[batch];
        let keys = keys.start.min(sequence.k_len)..keys.end.min(sequence.k_len);
        let mut rows = self.new_rows();
        let mut block = self.new_keys();
        let mut work = self.new_tiles();
        let group = self.problem.group();
        let band = Band::new(self.problem.window, sequence.q_len, sequence.k_len);
        for keys in tiles(keys, BLOCK) {
            // SAFETY: promised by the caller, here and below.
            unsafe { self.pack_keys(&mut block, sequence, kv_head, keys.clone()) };
            let visible = band.visible_queries(keys.clone());
            for packed in tiles(visible.start * group..visible.end * group, PANEL) {
                let panel = PanelRows {
                    batch,
                    sequence,
                    kv_head,
                    group,
                    first: packed.start,
                    count: packed.len(),
                };
                let start = packed.start * self.key_stride;
                let grad_q = &mut grad_q[start..packed.end * self.key_stride];
                // SAFETY: as above.
                unsafe {
                    self.pack_rows(&mut rows, &panel);
                    self.panel(&panel, &rows, &mut block, &mut work, keys.clone(), grad_q);
                }
            }
            // SAFETY: as above.
            unsafe { self.store_keys(&block, sequence, kv_head, keys) };
        }
    }

    fn new_rows(&self) -> PackedRows {
        let (problem, words) = (self.problem, self.words);
        PackedRows {
            q_by_feature: Scratch::new(words.count(problem.head_dim) * PANEL),
            q_by_row: Scratch::new(words.count(PANEL) * self.key_stride),
            grad_by_feature: Scratch::new(words.count(problem.value_dim) * PANEL),
            grad_by_row: Scratch::new(words.count(PANEL) * self.value_stride),
            lse: [0.0; PANEL],
            delta: [0.0; PANEL],
        }
    }

    fn new_keys(&self) -> PackedKeys {
        let (problem, words) = (self.problem, self.words);
        PackedKeys {
            k: Scratch::new(BLOCK * words.count(problem.head_dim)),
            k_by_key: Scratch::new(words.count(BLOCK) * self.key_stride),
            v: Scratch::new(BLOCK * words.count(problem.value_dim)),
            grad_k: Scratch::new(BLOCK * self.key_stride),
            grad_v: Scratch::new(BLOCK * self.value_stride),
        }
    }

    fn new_tiles(&self) -> Tiles {
        let factors = if self.problem.dropout.is_some() { KEY_TILE * PANEL } else { 0 };
        Tiles {
            scores: Scratch::new(KEY_TILE * PANEL),
            grads: Scratch::new(KEY_TILE * PANEL),
            factors: Scratch::new(factors),
            pairs: PairTiles::new(self.words, KEY_TILE),
        }
    }

    unsafe fn pack_rows(&self, to: &mut PackedRows, panel: &PanelRows) {
        let (sequence, words) = (panel.sequence, self.words);
        let (head_dim, value_dim) = (self.problem.head_dim, self.problem.value_dim);
        let row = |operand: Operand<'a, T>, lane: usize, width: usize| {
            let row = sequence.q_start + panel.query(lane);
            // SAFETY: promised by the caller of `keys`.
            unsafe { operand.slice(sequence.q_batch, row, panel.head(lane), width) }
        };
        let q_rows = || (0..panel.count).map(|lane| row(self.inputs.q, lane, head_dim));
        let grads = || (0..panel.count).map(|lane| row(self.cotangents.grad_out, lane, value_dim));
        words.transposed(q_rows(), head_dim, &mut to.q_by_feature, PANEL);
        words.paired(q_rows(), &mut to.q_by_row, self.key_stride);
        words.transposed(grads(), value_dim, &mut to.grad_by_feature, PANEL);
        words.paired(grads(), &mut to.grad_by_row, self.value_stride);
        to.lse.fill(f32::INFINITY);
        to.delta.fill(0.0);
        for lane in 0..panel.count {
            let head = panel.head(lane) * self.problem.lse_head_stride;
            let at = sequence.lse_start + head + panel.query(lane);
            let lse = self.cotangents.lse[at];
            // Rows without keys have no probabilities; +inf makes them 0.
            if lse > f32::NEG_INFINITY {
                to.lse[lane] = lse * std::f32::consts::LOG2_E;
                to.delta[lane] = self.delta[at];
            }
        }
    }

    unsafe fn pack_keys(
        &self,
        to: &mut PackedKeys,
        sequence: Sequence,
        kv_head: usize,
        keys: Range<usize>,
    ) {
        let row = |operand: Operand<'a, T>, j: usize, width: usize| {
            // SAFETY: promised by the caller of `keys`.
            unsafe { operand.slice(sequence.kv_batch, sequence.k_start + j, kv_head, width) }
        };
        let (head_dim, value_dim) = (self.problem.head_dim, self.problem.value_dim);
        let k_rows = || keys.clone().map(|j| row(self.inputs.k, j, head_dim));
        self.words.natural(k_rows(), &mut to.k);
        self.words.paired(k_rows(), &mut to.k_by_key, self.key_stride);
        self.words.natural(keys.clone().map(|j| row(self.inputs.v, j, value_dim)), &mut to.v);
        to.grad_k.fill(0.0);
        to.grad_v.fill(0.0);
    }

    /// One panel of rows against the tiles of a block.
    unsafe fn panel(
        &self,
        panel: &PanelRows,
        rows: &PackedRows,
        block: &mut PackedKeys,
        work: &mut Tiles,
        keys: Range<usize>,
        grad_q: &mut [f32],
    ) {
        let band = Band::new(self.problem.window, panel.sequence.q_len, panel.sequence.k_len);
        let visible = band.visible_keys(panel.queries());
        let mut mask = TileMask::new(self.problem, panel);
        for tile in tiles(keys.clone(), KEY_TILE) {
            let seen = tile.start < visible.end && visible.start < tile.end;
            if !seen || mask.prepare(self.problem, panel, tile.clone()) == Coverage::Empty {
                continue;
            }
            let first = tile.start - keys.start;
            let at = TileAt { panel, mask: &mask, keys: tile.clone(), first };
            // SAFETY: promised by the caller of `keys`.
            unsafe {
                self.probabilities(&at, rows, block, work);
                self.products(panel.count, rows, block, work, first..first + tile.len(), grad_q);
            }
        }
    }

    /// `S^T`, `dP^T`, then P and dS of a tile.
    unsafe fn probabilities(
        &self,
        at: &TileAt,
        rows: &PackedRows,
        block: &PackedKeys,
        work: &mut Tiles,
    ) {
        let TileAt { panel, mask, ref keys, first } = *at;
        let lanes = panel.count.next_multiple_of(16);
        let tile = |a: &[f32], width: usize, b: &[f32], c: &mut [f32]| Product {
            a: a[first * self.words.count(width)..].as_ptr(),
            a_row: self.words.count(width),
            a_step: 1,
            b: b.as_ptr(),
            b_stride: PANEL,
            c: c.as_mut_ptr(),
            c_stride: PANEL,
            m: keys.len(),
            n: lanes,
            k: self.words.count(width),
            accumulate: false,
        };
        let (problem, words) = (self.problem, self.words);
        // SAFETY: keys are (block, words), rows (words, PANEL) and tiles (KEY_TILE, PANEL).
        unsafe {
            tile(&block.k, problem.head_dim, &rows.q_by_feature, &mut work.scores).run(words);
            tile(&block.v, problem.value_dim, &rows.grad_by_feature, &mut work.grads).run(words);
        }
        let dropped = problem.dropout.is_some();
        if dropped {
            drop_factors(problem, panel, keys.clone(), &mut work.factors);
        }
        dispatch(TileGradient {
            scores: &mut work.scores,
            grads: &mut work.grads,
            keys: keys.len(),
            lanes,
            mask,
            factors: dropped.then_some(&*work.factors),
            lse: &rows.lse,
            delta: &rows.delta,
            pairs: &mut work.pairs,
            words,
        });
    }

    /// `dV += P^T dO`, `dK += dS^T Q`, `dQ += dS K` of one tile.
    unsafe fn products(
        &self,
        count: usize,
        rows: &PackedRows,
        block: &mut PackedKeys,
        work: &Tiles,
        keys: Range<usize>,
        grad_q: &mut [f32],
    ) {
        let words = self.words;
        let (p, ds, ds_by_key) = match words {
            Words::F32 => (&*work.scores, &*work.grads, &*work.grads),
            Words::Bf16Pairs => (&*work.pairs.p, &*work.pairs.ds, &*work.pairs.ds_by_key),
        };
        let by_row = |a: &[f32], b: &[f32], c: &mut [f32], stride: usize| Product {
            a: a.as_ptr(),
            a_row: words.count(PANEL),
            a_step: 1,
            b: b.as_ptr(),
            b_stride: stride,
            c: c[keys.start * stride..].as_mut_ptr(),
            c_stride: stride,
            m: keys.len(),
            n: stride,
            k: words.count(count),
            accumulate: true,
        };
        let queries = Product {
            a: ds_by_key.as_ptr(),
            a_row: 1,
            a_step: PANEL,
            b: block.k_by_key[words.count(keys.start) * self.key_stride..].as_ptr(),
            b_stride: self.key_stride,
            c: grad_q.as_mut_ptr(),
            c_stride: self.key_stride,
            m: count,
            n: self.key_stride,
            k: words.count(keys.len()),
            accumulate: true,
        };
        // SAFETY: tiles are (KEY_TILE, PANEL), packed rows and keys have the strides given, and the
        // gradients have room for all rows of the panel and all keys of the block.
        unsafe {
            by_row(p, &rows.grad_by_row, &mut block.grad_v, self.value_stride).run(words);
            by_row(ds, &rows.q_by_row, &mut block.grad_k, self.key_stride).run(words);
            queries.run(words);
        }
    }

    unsafe fn store_keys(
        &self,
        block: &PackedKeys,
        sequence: Sequence,
        kv_head: usize,
        keys: Range<usize>,
    ) {
        let scale = self.problem.softmax_scale as f32;
        let (head_dim, value_dim) = (self.problem.head_dim, self.problem.value_dim);
        for (index, j) in keys.enumerate() {
            let row = (sequence.k_start + j) * self.problem.kv_heads + kv_head;
            let k_at = sequence.kv_batch * self.gradients.k_batch_stride + row * head_dim;
            let v_at = sequence.kv_batch * self.gradients.v_batch_stride + row * value_dim;
            // SAFETY: the rows exist and belong to this task.
            let (grad_k, grad_v) = unsafe {
                (self.gradients.k.slice(k_at, head_dim), self.gradients.v.slice(v_at, value_dim))
            };
            let row = &block.grad_k[index * self.key_stride..][..self.key_stride];
            dispatch(Finish { row, factor: scale, out: grad_k });
            let row = &block.grad_v[index * self.value_stride..][..self.value_stride];
            dispatch(Finish { row, factor: 1.0, out: grad_v });
        }
    }

    /// Scales and rounds the summed dQ of one group of heads.
    unsafe fn store_queries(&self, batch: usize, kv_head: usize, grad_q: &[f32]) {
        let sequence = self.problem.sequences[batch];
        let (group, head_dim) = (self.problem.group(), self.problem.head_dim);
        for packed in 0..sequence.q_len * group {
            let head = kv_head * group + packed % group;
            let row = (sequence.q_start + packed / group) * self.problem.heads + head;
            let at = sequence.q_batch * self.gradients.q_batch_stride + row * head_dim;
            // SAFETY: the row exists and belongs to this task.
            let out = unsafe { self.gradients.q.slice(at, head_dim) };
            let row = &grad_q[packed * self.key_stride..][..self.key_stride];
            dispatch(Finish { row, factor: self.problem.softmax_scale as f32, out });
        }
    }
}
