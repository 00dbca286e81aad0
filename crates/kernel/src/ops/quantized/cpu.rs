//! The products on tensors, and decoding and encoding in parallel.
//!
//! # Method
//! One row of x: four rows of W are decoded in registers and multiplied at once (`tile.rs`), so that
//! each core reads four streams of blocks and nothing else from memory. More rows: six rows of W are
//! decoded to scratch memory that stays in the second-level cache, and tiles of 4 x 6 sums run over
//! pieces of k that stay in the first. Decoding costs about as much as three rows of x, so
//! it is done once for all rows.
//!
//! `danaus_tensor::gemm` is not used for large batches: it sums one k after another where this sums in
//! lanes along k, and a prompt would not have the bits of the same tokens one by one.

use super::decode::with_format;
use super::tile::{Decode, Rows};
use super::{Activations, BlockType, encode, int8};
use crate::ops::activation::Activation;
use crate::ops::linear;
use crate::vector::rows_of;
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::dispatch;
use danaus_runtime::threads::{self, SharedMut};
use danaus_tensor::gemm::{self, Epilogue, Mat, MatMut, Output};
use danaus_tensor::{Element, Result, Tensor};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of a panel of decoded rows.
const PANEL_BYTES: usize = 1 << 20;

/// Weights worth a task.
const GRAIN: usize = 1 << 15;

/// The same for integers, which take a quarter of the time.
const INTEGER_GRAIN: usize = 1 << 17;

/// Decodes rows in parallel.
pub(super) fn decode(kind: BlockType, cols: usize, blocks: &[u8], out: &mut [f32]) {
    let rows = out.len() / cols.max(1);
    assert_eq!(
        blocks.len(),
        rows * (cols / kind.block_len()) * kind.block_bytes(),
        "rows of blocks"
    );
    let (tasks, per_task) = threads::split(rows, GRAIN / cols.max(1));
    let row_bytes = blocks.len() / rows.max(1);
    let out = SharedMut::new(out);
    threads::for_each(tasks, |task| {
        let rows = rows_of(task, per_task, rows);
        // SAFETY: tasks decode disjoint rows.
        let out = unsafe { out.slice(rows.start * cols, rows.len() * cols) };
        let blocks = &blocks[rows.start * row_bytes..rows.end * row_bytes];
        with_format!(kind, F => dispatch(Decode::<F>::new(blocks, out)));
    });
}

/// Encodes rows in parallel; the first row that has no finite encoding, if there is one.
pub(super) fn encode(kind: BlockType, cols: usize, x: &[f32], out: &mut [u8]) -> Option<usize> {
    let rows = x.len() / cols.max(1);
    let row_bytes = out.len() / rows.max(1);
    let failed = AtomicUsize::new(usize::MAX);
    let (tasks, per_task) = threads::split(rows, (1 << 12) / cols.max(1));
    let out = SharedMut::new(out);
    threads::for_each(tasks, |task| {
        for row in rows_of(task, per_task, rows) {
            // SAFETY: a row belongs to one task.
            let out = unsafe { out.slice(row * row_bytes, row_bytes) };
            let x = &x[row * cols..][..cols];
            let blocks =
                x.chunks_exact(kind.block_len()).zip(out.chunks_exact_mut(kind.block_bytes()));
            for (x, block) in blocks {
                if !encode::encode_block(kind, x, block) {
                    failed.fetch_min(row, Ordering::Relaxed);
                }
            }
        }
    });
    Some(failed.into_inner()).filter(|&row| row != usize::MAX)
}

/// Inputs of the forward product; all contiguous.
pub(super) struct Product<'a> {
    pub kind: BlockType,
    pub x: &'a [f32],
    pub cols: usize,
    pub activations: Activations,
    pub blocks: &'a [u8],
    pub bias: Option<&'a Tensor>,
    pub activation: Option<Activation>,
    pub residual: Option<&'a Tensor>,
}

impl Product<'_> {
    /// Writes `y`, and the value before the activation if it is wanted.
    pub(super) fn run<C>(&self, y: &mut Tensor, before: Option<&mut Tensor>) -> Result<()>
    where
        C: Output<Acc = f32> + Element,
    {
        if y.elem_count() == 0 {
            return Ok(());
        }
        let rows = y.dims().last().copied().unwrap_or(1);
        let bias = self.bias.map(|bias| bias.as_slice::<f32>()).transpose()?;
        let epilogue = Epilogue {
            bias: bias.map(|bias| bias.as_ptr()),
            preactivation: before
                .map(|before| linear::matrix_mut::<C>(before, rows))
                .transpose()?,
            activation: linear::epilogue_activation(self.activation),
            residual: self
                .residual
                .map(|residual| linear::matrix::<C>(residual, rows))
                .transpose()?,
        };
        let count = y.elem_count() / rows;
        let y = linear::matrix_mut::<C>(y, rows)?;
        let finish = |rows: Range<usize>, sums: &[f32], stride: usize| {
            let (ptr, row_stride) = (sums.as_ptr(), stride as isize);
            let sums = Mat { ptr, rows: count, cols: rows.len(), row_stride, col_stride: 1 };
            // SAFETY: `infer` checked the shapes; tasks finish disjoint columns of fresh outputs.
            unsafe { gemm::finish(y, sums, (0..count, rows), &epilogue) };
        };
        match self.activations {
            Activations::Int8 if self.cols > 0 => self.integer_sums(rows, count, finish),
            // A sum of nothing is the same in either mode.
            _ => self.sums(rows, count, finish),
        }
        Ok(())
    }
}

impl Product<'_> {
    /// Computes `x W^T` for ranges of rows of W in parallel and hands over each, `[count, rows]` with a
    /// stride.
    fn sums(
        &self,
        rows: usize,
        count: usize,
        finish: impl Fn(Range<usize>, &[f32], usize) + Sync + Send,
    ) {
        let (kind, cols) = (self.kind, self.cols);
        let row_bytes = cols / kind.block_len() * kind.block_bytes();
        assert!(self.blocks.len() == rows * row_bytes && self.x.len() == count * cols, "shapes");
        // Tasks of whole tiles; by shape alone.
        let work = TILE_ROWS * cols.max(1) * count.div_ceil(2);
        let (tasks, per_task) = threads::split(rows.div_ceil(TILE_ROWS), GRAIN.div_ceil(work));
        threads::for_each(tasks, |task| {
            let tiles = rows_of(task, per_task, rows.div_ceil(TILE_ROWS));
            let rows = tiles.start * TILE_ROWS..(tiles.end * TILE_ROWS).min(rows);
            let mut sums = Scratch::<f32>::new(count * rows.len());
            let blocks = &self.blocks[rows.start * row_bytes..rows.end * row_bytes];
            let task = Rows { blocks, rows: rows.len(), x: self.x, count, cols, sums: &mut sums };
            with_format!(kind, F => dispatch(task.of::<F>()));
            let stride = rows.len();
            finish(rows, &sums, stride);
        });
    }

    /// As [`Self::sums`] with x rounded to eight bits.
    fn integer_sums(
        &self,
        rows: usize,
        count: usize,
        finish: impl Fn(Range<usize>, &[f32], usize) + Sync + Send,
    ) {
        let (kind, cols) = (self.kind, self.cols);
        let row_bytes = cols / kind.block_len() * kind.block_bytes();
        assert!(self.blocks.len() == rows * row_bytes && self.x.len() == count * cols, "shapes");
        let x = int8::round(kind, self.x, cols);
        let panels = rows.div_ceil(int8::TILE_ROWS);
        let work = int8::TILE_ROWS * cols.max(1) * count.div_ceil(4);
        let (tasks, per_task) = threads::split(panels, INTEGER_GRAIN.div_ceil(work));
        threads::for_each(tasks, |task| {
            let panels = rows_of(task, per_task, panels);
            let end = (panels.end * int8::TILE_ROWS).min(rows);
            let rows = panels.start * int8::TILE_ROWS..end;
            let stride = panels.len() * int8::TILE_ROWS;
            let mut sums = Scratch::<f32>::unspecified(count * stride);
            let blocks = &self.blocks[rows.start * row_bytes..rows.end * row_bytes];
            int8::multiply(kind, blocks, rows.len(), &x, &mut sums);
            finish(rows, &sums, stride);
        });
    }
}

/// Rows of W that a task has a multiple of: both the four of one row of x and the six of several.
const TILE_ROWS: usize = 12;

/// `y = x W`: `x` `[.., rows]`, `y` `[.., cols]`; panels of decoded rows, added in order.
pub(super) fn transpose(kind: BlockType, cols: usize, x: &[f32], blocks: &[u8], y: &mut [f32]) {
    if y.is_empty() {
        return;
    }
    let count = y.len() / cols;
    let rows = x.len() / count;
    if rows == 0 {
        return y.fill(0.0);
    }
    let row_bytes = blocks.len() / rows;
    let per_panel = (PANEL_BYTES / 4 / cols).clamp(1, rows);
    let mut panel = Scratch::<f32>::new(per_panel * cols);
    for start in (0..rows).step_by(per_panel) {
        let panel_rows = per_panel.min(rows - start);
        let panel = &mut panel[..panel_rows * cols];
        decode(kind, cols, &blocks[start * row_bytes..][..panel_rows * row_bytes], panel);
        let part = Mat {
            ptr: x[start..].as_ptr(),
            rows: count,
            cols: panel_rows,
            row_stride: rows as isize,
            col_stride: 1,
        };
        let panel = Mat::row_major(panel.as_ptr(), panel_rows, cols);
        let beta = if start == 0 { 0.0 } else { 1.0 };
        // SAFETY: the matrices lie in slices of their sizes; y is apart from them.
        unsafe {
            let y = MatMut::row_major(y.as_mut_ptr(), count, cols);
            gemm::gemm(y, part, panel, 1.0, beta, true);
        }
    }
}
