//! What an attention call computes, free of tensors: operands by pointer and strides, one entry per
//! sequence, and the recipe of the scores.
//!
//! Dense batches, packed variable-length batches, padded batches and paged caches differ only in how
//! a row is addressed, so all kernels read rows through [`Operand::row`] and lengths through
//! [`Sequence`].

use super::dropout::Dropout;
use super::mask::BlockMask;
use super::tile_range::Window;
use danaus_runtime::threads::SharedMut;
use std::marker::PhantomData;
use std::ops::Range;

/// A read-only operand (batch, row, head, feature) whose features are contiguous.
pub struct Operand<'a, T> {
    start: *const T,
    batch_stride: isize,
    row_stride: isize,
    head_stride: isize,
    pages: Option<Pages<'a>>,
    marker: PhantomData<&'a [T]>,
}

/// Rows of a sequence scattered over pages of a common pool.
#[derive(Clone, Copy)]
pub struct Pages<'a> {
    /// Page index by (sequence, page of the sequence).
    pub table: &'a [i32],
    /// Pages listed per sequence.
    pub per_sequence: usize,
    /// Rows of a page.
    pub page_size: usize,
}

impl<T> Clone for Operand<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Operand<'_, T> {}

// SAFETY: an operand gives read access only, like `&[T]`.
unsafe impl<T: Sync> Send for Operand<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Operand<'_, T> {}

impl<'a, T> Operand<'a, T> {
    /// An operand by start and strides in elements: batch, row, head.
    ///
    /// # Safety
    /// Every row that the problem's sequences name is readable for `'a` at the address the strides
    /// give.
    pub unsafe fn from_strides(start: *const T, strides: [isize; 3]) -> Self {
        let [batch_stride, row_stride, head_stride] = strides;
        Self { start, batch_stride, row_stride, head_stride, pages: None, marker: PhantomData }
    }

    #[cfg(test)]
    /// A contiguous (batch, rows, heads, width) slice; packed (total, heads, width) with `rows` 0.
    pub fn contiguous(data: &'a [T], rows: usize, heads: usize, width: usize) -> Self {
        let row = (heads * width) as isize;
        // SAFETY: the caller's shape describes the slice; rows outside of it are never named.
        unsafe { Self::from_strides(data.as_ptr(), [rows as isize * row, row, width as isize]) }
    }

    /// The same pool read through a page table; the batch axis becomes the page axis.
    pub fn paged(self, pages: Pages<'a>) -> Self {
        Self { pages: Some(pages), ..self }
    }

    /// Address of one row.
    ///
    /// # Safety
    /// The row exists (see [`Operand::from_strides`]).
    #[inline(always)]
    pub unsafe fn row(&self, batch: usize, row: usize, head: usize) -> *const T {
        let (batch, row) = match self.pages {
            None => (batch, row),
            Some(pages) => {
                let page = pages.table[batch * pages.per_sequence + row / pages.page_size];
                (page as usize, row % pages.page_size)
            }
        };
        let offset = batch as isize * self.batch_stride
            + row as isize * self.row_stride
            + head as isize * self.head_stride;
        // SAFETY: promised by the caller.
        unsafe { self.start.offset(offset) }
    }

    /// One row as a slice.
    ///
    /// # Safety
    /// As [`Operand::row`], and the row is `width` elements long.
    #[inline(always)]
    pub unsafe fn slice(&self, batch: usize, row: usize, head: usize, width: usize) -> &'a [T] {
        // SAFETY: promised by the caller.
        unsafe { std::slice::from_raw_parts(self.row(batch, row, head), width) }
    }
}

/// One sequence of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Index on the batch axis of q (0 when packed).
    pub q_batch: usize,
    /// Index on the batch axis of the output; that of q unless the sequence is split.
    pub out_batch: usize,
    /// Index on the batch axis of k and v (0 when packed); row of the page table when paged.
    pub kv_batch: usize,
    /// First query row.
    pub q_start: usize,
    /// Number of queries.
    pub q_len: usize,
    /// First key row.
    pub k_start: usize,
    /// Number of keys.
    pub k_len: usize,
    /// Where query 0 of head 0 lies in the log-sum-exp output.
    pub lse_start: usize,
    /// Keys that this entry covers when a sequence is split over several; all by default.
    pub part: [usize; 2],
}

/// [`Sequence::part`] of a sequence that is not split.
pub const WHOLE: [usize; 2] = [0, usize::MAX];

impl Sequence {
    /// The keys of a range that this entry covers.
    pub fn covered(&self, keys: Range<usize>) -> Range<usize> {
        let start = keys.start.max(self.part[0]);
        start..keys.end.min(self.part[1]).max(start)
    }
}

/// ALiBi slopes: head h of sequence b adds `-slope * |i + k_len - q_len - j|`.
#[derive(Clone, Debug)]
pub struct Slopes {
    /// (H) or (B, H) values.
    pub values: Vec<f64>,
    /// Whether the values have a batch axis.
    pub per_batch: bool,
}

impl Slopes {
    /// The slope of one head.
    pub fn get(&self, batch: usize, head: usize, heads: usize) -> f64 {
        self.values[if self.per_batch { batch * heads + head } else { head }]
    }
}

/// Shapes and the recipe of the scores.
#[derive(Clone)]
pub struct Problem<'a> {
    /// The sequences of the batch.
    pub sequences: Vec<Sequence>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Features of a query or key.
    pub head_dim: usize,
    /// Features of a value.
    pub value_dim: usize,
    /// Distance between heads in the log-sum-exp output.
    pub lse_head_stride: usize,
    /// Factor of the dot products.
    pub softmax_scale: f64,
    /// `s -> softcap * tanh(s / softcap)` after scaling.
    pub softcap: Option<f64>,
    /// Which keys a query sees (causal is `right = Some(0)`).
    pub window: Window,
    /// Linear position biases.
    pub alibi: Option<Slopes>,
    /// Which blocks of the score matrix exist.
    pub block_mask: Option<BlockMask<'a>>,
    /// One extra logit per head in the denominator.
    pub sinks: Option<Vec<f64>>,
    /// Dropout of probabilities.
    pub dropout: Option<Dropout<'a>>,
}

impl<'a> Problem<'a> {
    /// Query heads that share one key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// A dense batch without any option: (batch, q_len, heads, head_dim) against k_len keys.
    pub fn dense(batch: usize, lens: [usize; 2], heads: [usize; 2], dims: [usize; 2]) -> Self {
        let [q_len, k_len] = lens;
        let sequence = |b| Sequence {
            q_batch: b,
            out_batch: b,
            kv_batch: b,
            q_start: 0,
            q_len,
            k_start: 0,
            k_len,
            lse_start: b * heads[0] * q_len,
            part: WHOLE,
        };
        Self {
            sequences: (0..batch).map(sequence).collect(),
            heads: heads[0],
            kv_heads: heads[1],
            head_dim: dims[0],
            value_dim: dims[1],
            lse_head_stride: q_len,
            softmax_scale: 1.0 / (dims[0] as f64).sqrt(),
            softcap: None,
            window: Window::default(),
            alibi: None,
            block_mask: None,
            sinks: None,
            dropout: None,
        }
    }

    /// Whether scores need more than scaling, so that the scale cannot be folded into the exponent.
    pub fn transforms_scores(&self) -> bool {
        self.softcap.is_some() || self.alibi.is_some() || self.softmax_scale <= 0.0
    }
}

/// Inputs of the forward pass.
pub struct Inputs<'a, T> {
    /// Queries (batch, q_len, heads, head_dim).
    pub q: Operand<'a, T>,
    /// Keys (batch, k_len, kv_heads, head_dim).
    pub k: Operand<'a, T>,
    /// Values (batch, k_len, kv_heads, value_dim).
    pub v: Operand<'a, T>,
}

impl<T> Clone for Inputs<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Inputs<'_, T> {}

/// Results of the forward pass; `A` is the type that sums have (f32 for narrower elements).
#[derive(Clone, Copy)]
pub struct Outputs<T, A> {
    /// (batch, q_len, heads, value_dim), contiguous.
    pub out: SharedMut<T>,
    /// Elements between sequences on the batch axis of `out`.
    pub out_batch_stride: usize,
    /// Natural logarithm of the denominators, laid out as the problem says.
    pub lse: SharedMut<A>,
}

/// What the backward pass is given besides the inputs.
#[derive(Clone, Copy)]
pub struct Cotangents<'a, T, A> {
    /// Result of the forward pass (batch, q_len, heads, value_dim).
    pub out: Operand<'a, T>,
    /// Cotangent of `out`, of the same shape.
    pub grad_out: Operand<'a, T>,
    /// Log-sum-exp of the forward pass.
    pub lse: &'a [A],
    /// Cotangent of the log-sum-exp.
    pub grad_lse: Option<&'a [A]>,
}

/// Gradients, contiguous with the shapes of their inputs; all zero at the start.
#[derive(Clone, Copy)]
pub struct Gradients<T, A> {
    /// Of q.
    pub q: SharedMut<T>,
    /// Elements between sequences of `q`.
    pub q_batch_stride: usize,
    /// Of k.
    pub k: SharedMut<T>,
    /// Elements between sequences of `k`.
    pub k_batch_stride: usize,
    /// Of v.
    pub v: SharedMut<T>,
    /// Elements between sequences of `v`.
    pub v_batch_stride: usize,
    /// Of the sinks, (sequence, head): one summand per sequence.
    pub sinks: Option<SharedMut<A>>,
}
