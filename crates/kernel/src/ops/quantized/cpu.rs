//! The products, and decoding and encoding in parallel.

use super::{BlockType, encode, reference};
use crate::ops::activation::Activation;
use crate::ops::linear;
use danaus_runtime::pool::Scratch;
use danaus_runtime::threads::{self, SharedMut};
use danaus_tensor::gemm::{self, Epilogue, Mat, MatMut, Output};
use danaus_tensor::{Element, Result, Tensor};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of a panel of decoded rows.
const PANEL_BYTES: usize = 1 << 20;

/// Decodes rows in parallel.
pub(super) fn decode(kind: BlockType, cols: usize, blocks: &[u8], out: &mut [f32]) {
    let rows = out.len() / cols.max(1);
    let row_bytes = blocks.len() / rows.max(1);
    let (tasks, per_task) = crate::vector::split_rows(rows, cols);
    let out = SharedMut::new(out);
    threads::for_each(tasks, |task| {
        let rows = crate::vector::rows_of(task, per_task, rows);
        // SAFETY: tasks decode disjoint rows.
        let out = unsafe { out.slice(rows.start * cols, rows.len() * cols) };
        reference::decode(kind, &blocks[rows.start * row_bytes..rows.end * row_bytes], out);
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
        for row in crate::vector::rows_of(task, per_task, rows) {
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
        let options = gemm::Options { epilogue, ..gemm::Options::default() };
        let mut panel = Scratch::<f32>::new(rows * self.cols);
        decode(self.kind, self.cols, self.blocks, &mut panel);
        let x = Mat::row_major(self.x.as_ptr(), self.x.len() / self.cols.max(1), self.cols);
        let weight = Mat::row_major(panel.as_ptr(), rows, self.cols);
        let y = linear::matrix_mut::<C>(y, rows)?;
        // SAFETY: `infer` checked the shapes; the outputs are fresh and overlap nothing.
        unsafe { gemm::gemm_with(y, x, weight.transposed(), &options) };
        Ok(())
    }
}

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
