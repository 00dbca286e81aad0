//! Factors with large blocks: every block is a matrix product on the engine of
//! `danaus_tensor::gemm`.
//!
//! Between two factors a batch lies feature by feature, `[features, tokens]`. There a block of any
//! Kronecker-sparse factor is a plain product `[rows, cols] [cols, tokens]` whose operands are rows
//! at a distance of d: the permutations of the pattern are address patterns. The input is read, and
//! a gradient written, as the rows of tokens that they are where d = 1 (the first factor of a
//! Monarch matrix); the last factor of a Monarch matrix has d > 1, and its result is transposed
//! once.

use super::pattern::Step;
use danaus_runtime::threads::{self, SharedMut};
use danaus_tensor::gemm::{BatchStrides, GemmElement, Mat, MatMut, Options, Output, gemm_batched};
use danaus_tensor::{Device, Element, Result, Tensor};

/// A batch of vectors: element (feature, token) at `feature * by_feature + token * by_token`.
#[derive(Clone, Copy)]
struct Batch<P> {
    start: P,
    by_feature: usize,
    by_token: usize,
}

impl<P> Batch<P> {
    /// Token by token, as tensors lie.
    fn by_rows(start: P, features: usize) -> Self {
        Self { start, by_feature: 1, by_token: features }
    }

    /// Feature by feature.
    fn by_features(start: P, tokens: usize) -> Self {
        Self { start, by_feature: tokens, by_token: 1 }
    }
}

/// Distances between the blocks of a step: along the shorter of both directions outside, along the
/// other one inside of a batched product.
struct Walk {
    outer: usize,
    inner: usize,
    /// Features of the result, features of the input, values: of an outer and an inner step.
    strides: [[usize; 3]; 2],
}

impl Walk {
    fn of(step: &Step) -> Self {
        let blocks = step.blocks();
        let (rows, cols, len) = (blocks.rows * blocks.d, blocks.cols * blocks.d, blocks.elems());
        let along_a = [rows, cols, len * blocks.d];
        let along_d = [1, 1, len];
        match blocks.a <= blocks.d {
            true => Self { outer: blocks.a, inner: blocks.d, strides: [along_a, along_d] },
            false => Self { outer: blocks.d, inner: blocks.a, strides: [along_d, along_a] },
        }
    }

    /// Strides of an inner step in elements, for a batch of results and one of inputs.
    fn inner(&self, result: usize, input: usize) -> [isize; 3] {
        let [rows, cols, values] = self.strides[1];
        [(rows * result) as isize, (cols * input) as isize, values as isize]
    }

    /// Offsets of outer step `index` in features of the result, of the input, and in values.
    fn at(&self, index: usize) -> [usize; 3] {
        self.strides[0].map(|stride| stride * index)
    }
}

/// The values of a block as a matrix.
fn block<T>(step: &Step, start: *const T) -> Mat<T> {
    let blocks = step.blocks();
    Mat {
        ptr: start,
        rows: blocks.rows,
        cols: blocks.cols,
        row_stride: blocks.row_stride as isize,
        col_stride: blocks.col_stride as isize,
    }
}

/// The part of a batch that a block reads or writes, `[features, tokens]`, features at a distance
/// of d.
fn panel<T>(batch: Batch<*const T>, features: usize, d: usize, tokens: usize) -> Mat<T> {
    Mat {
        ptr: batch.start,
        rows: features,
        cols: tokens,
        row_stride: (batch.by_feature * d) as isize,
        col_stride: batch.by_token as isize,
    }
}

fn panel_mut<T>(batch: Batch<*mut T>, features: usize, d: usize, tokens: usize) -> MatMut<T> {
    let Batch { start, by_feature, by_token } = batch;
    let read = Batch { start: start.cast_const(), by_feature, by_token };
    let Mat { rows, cols, row_stride, col_stride, .. } = panel(read, features, d, tokens);
    MatMut { ptr: start, rows, cols, row_stride, col_stride }
}

/// `to = W from`.
///
/// # Safety
/// `values` holds the step's, `from` and `to` batches of its columns and rows; `to` is ours alone.
unsafe fn multiply<T: GemmElement>(
    step: &Step,
    values: *const T,
    from: Batch<*const T>,
    to: Batch<*mut T>,
    tokens: usize,
) {
    let (blocks, walk) = (step.blocks(), Walk::of(step));
    let [c, b, a] = walk.inner(to.by_feature, from.by_feature);
    for outer in 0..walk.outer {
        let [row, col, value] = walk.at(outer);
        let from = Batch { start: from.start.wrapping_add(col * from.by_feature), ..from };
        let to = Batch { start: to.start.wrapping_add(row * to.by_feature), ..to };
        let (x, y) = (
            panel(from, blocks.cols, blocks.d, tokens),
            panel_mut(to, blocks.rows, blocks.d, tokens),
        );
        let weights = block(step, values.wrapping_add(value));
        let strides = BatchStrides { a, b, c };
        // SAFETY: promised by the caller; blocks write disjoint features.
        unsafe { gemm_batched(walk.inner, strides, y, weights, x, &Options::default()) };
    }
}

/// `to = dy x^T`, the gradient of the values.
///
/// # Safety
/// As [`multiply`], with `to` as large as the values.
unsafe fn outer_products<T: GemmElement>(
    step: &Step,
    dy: Batch<*const T>,
    x: Batch<*const T>,
    to: *mut T,
    tokens: usize,
) {
    let (blocks, walk) = (step.blocks(), Walk::of(step));
    let [a, b, c] = walk.inner(dy.by_feature, x.by_feature);
    for outer in 0..walk.outer {
        let [row, col, value] = walk.at(outer);
        let dy = Batch { start: dy.start.wrapping_add(row * dy.by_feature), ..dy };
        let x = Batch { start: x.start.wrapping_add(col * x.by_feature), ..x };
        let left = panel(dy, blocks.rows, blocks.d, tokens);
        let right = panel(x, blocks.cols, blocks.d, tokens).transposed();
        let Mat { rows, cols, row_stride, col_stride, .. } = block(step, to.cast_const());
        let dvalues = MatMut { ptr: to.wrapping_add(value), rows, cols, row_stride, col_stride };
        let strides = BatchStrides { a, b, c };
        // SAFETY: promised by the caller; blocks have disjoint values.
        unsafe { gemm_batched(walk.inner, strides, dvalues, left, right, &Options::default()) };
    }
}

/// `to[c][r] = from[r][c]`, in parallel, through tiles that fit the first-level cache.
pub(super) fn transpose<T: Element>(from: &[T], rows: usize, cols: usize, to: &mut [T]) {
    const TILE: usize = 16;
    assert!(from.len() == rows * cols && to.len() == from.len(), "transpose: sizes");
    let (tasks, each) = threads::split(cols.div_ceil(TILE), (1 << 14) / (rows * TILE).max(1));
    let shared = SharedMut::new(to);
    threads::for_each(tasks, |task| {
        for strip in task * each..((task + 1) * each).min(cols.div_ceil(TILE)) {
            let (col, width) = (strip * TILE, (cols - strip * TILE).min(TILE));
            // SAFETY: a strip of columns is rows of the result that belong to one task.
            let out = unsafe { shared.slice(col * rows, width * rows) };
            for row in (0..rows).step_by(TILE) {
                let height = (rows - row).min(TILE);
                let mut tile = [[T::default(); TILE]; TILE];
                for r in 0..height {
                    tile[r][..width].copy_from_slice(&from[(row + r) * cols + col..][..width]);
                }
                for c in 0..width {
                    let line = &mut out[c * rows + row..][..height];
                    line.iter_mut().enumerate().for_each(|(r, to)| *to = tile[r][c]);
                }
            }
        }
    });
}

/// A buffer from the pool, with unspecified elements that are written before they are read.
fn room<T: Element>(len: usize) -> Result<Tensor> {
    Tensor::empty([len], T::DTYPE, &Device::Cpu)
}

/// Buffers of at most this many tokens: values are read once a piece, results stay near.
const PIECE: usize = 2048;

/// Pieces of a batch, by shape alone.
fn pieces(tokens: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..tokens).step_by(PIECE).map(move |start| start..(start + PIECE).min(tokens))
}

/// A batch whose features lie as a step reads them best: in place where neighbours of a block are
/// neighbours in memory, else a transposed copy that `hold` keeps.
fn as_input<T: Element>(
    rows: &[T],
    (features, d, tokens): (usize, usize, usize),
    hold: &mut Option<Tensor>,
) -> Result<Batch<*const T>> {
    if d == 1 {
        return Ok(Batch::by_rows(rows.as_ptr(), features));
    }
    let copy = hold.insert(room::<T>(features * tokens)?);
    transpose(rows, tokens, features, copy.as_slice_mut()?);
    Ok(Batch::by_features(copy.as_slice::<T>()?.as_ptr(), tokens))
}

/// Runs `product` into `rows`: straight, or through a transposed copy.
fn into_output<T: Element>(
    rows: &mut [T],
    (features, d, tokens): (usize, usize, usize),
    product: impl FnOnce(Batch<*mut T>),
) -> Result<()> {
    if d == 1 {
        product(Batch::by_rows(rows.as_mut_ptr(), features));
        return Ok(());
    }
    let mut copy = room::<T>(features * tokens)?;
    product(Batch::by_features(copy.as_slice_mut::<T>()?.as_mut_ptr(), tokens));
    transpose(copy.as_slice()?, features, tokens, rows);
    Ok(())
}

/// A batch in a buffer.
fn kept_batch<T: Element>(buffer: &Tensor, tokens: usize) -> Result<Batch<*const T>> {
    Ok(Batch::by_features(buffer.as_slice::<T>()?.as_ptr(), tokens))
}

/// The vectors behind every step but the last, feature by feature.
fn between<T: GemmElement + Element>(
    steps: &[Step],
    sources: &[&[T]],
    x: Batch<*const T>,
    tokens: usize,
) -> Result<Vec<Tensor>> {
    let mut kept: Vec<Tensor> = Vec::new();
    for step in &steps[..steps.len() - 1] {
        let mut to = room::<T>(step.rows() * tokens)?;
        let from = kept.last().map_or(Ok(x), |last| kept_batch(last, tokens))?;
        let values = sources[step.source][step.range()].as_ptr();
        let batch = Batch::by_features(to.as_slice_mut::<T>()?.as_mut_ptr(), tokens);
        // SAFETY: the operator checked the shapes; the buffer is fresh.
        unsafe { multiply(step, values, from, batch, tokens) };
        kept.push(to);
    }
    Ok(kept)
}

/// Rows of `y` from rows of `x`.
pub fn forward<T: GemmElement + Element>(
    steps: &[Step],
    sources: &[&[T]],
    x: &[T],
    y: &mut [T],
) -> Result<()> {
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return Ok(()) };
    let (cols, rows) = (first.cols(), last.rows());
    for piece in pieces(x.len() / cols) {
        let tokens = piece.len();
        let x = &x[piece.start * cols..piece.end * cols];
        let y = &mut y[piece.start * rows..piece.end * rows];
        let mut hold = None;
        let x = as_input(x, (cols, first.pattern.d, tokens), &mut hold)?;
        let kept = between(steps, sources, x, tokens)?;
        let from = kept.last().map_or(Ok(x), |last| kept_batch(last, tokens))?;
        let values = sources[last.source][last.range()].as_ptr();
        into_output(y, (rows, last.pattern.d, tokens), |to| {
            // SAFETY: the operator checked the shapes; y is fresh and ours.
            unsafe { multiply(last, values, from, to, tokens) }
        })?;
    }
    Ok(())
}

/// Gradients of `x` and, in the accumulator's type, of every source.
pub fn backward<T>(
    steps: &[Step],
    sources: &[&[T]],
    (x, dy): (&[T], &[T]),
    dx: &mut [T],
    dsources: &mut [Vec<<T as Output>::Acc>],
) -> Result<()>
where
    T: GemmElement + Element + Into<<T as Output>::Acc>,
{
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return Ok(()) };
    let (cols, rows) = (first.cols(), last.rows());
    for piece in pieces(x.len() / cols) {
        let tokens = piece.len();
        let dx = &mut dx[piece.start * cols..piece.end * cols];
        let (mut hold_x, mut hold_up) = (None, None);
        let x = &x[piece.start * cols..piece.end * cols];
        let x = as_input(x, (cols, first.pattern.d, tokens), &mut hold_x)?;
        let dy = &dy[piece.start * rows..piece.end * rows];
        let mut up = as_input(dy, (rows, last.pattern.d, tokens), &mut hold_up)?;
        let kept = between(steps, sources, x, tokens)?;
        for (index, step) in steps.iter().enumerate().rev() {
            let from = match index {
                0 => x,
                _ => kept_batch(&kept[index - 1], tokens)?,
            };
            let mut products = room::<T>(step.pattern.parameters())?;
            let start = products.as_slice_mut::<T>()?.as_mut_ptr();
            // SAFETY: the operator checked the shapes; the buffer is fresh.
            unsafe { outer_products(step, up, from, start, tokens) };
            let sums = dsources[step.source][step.range()].iter_mut();
            sums.zip(products.as_slice::<T>()?).for_each(|(sum, &part)| *sum += part.into());
            let flipped = step.flipped();
            let values = sources[step.source][step.range()].as_ptr();
            if index == 0 {
                into_output(dx, (cols, step.pattern.d, tokens), |to| {
                    // SAFETY: as above; dx is fresh and ours.
                    unsafe { multiply(&flipped, values, up, to, tokens) }
                })?;
            } else {
                let mut to = room::<T>(flipped.rows() * tokens)?;
                let batch = Batch::by_features(to.as_slice_mut::<T>()?.as_mut_ptr(), tokens);
                // SAFETY: as above.
                unsafe { multiply(&flipped, values, up, batch, tokens) };
                up = Batch::by_features(batch.start.cast_const(), tokens);
                // The gradient that this one was made of has been read for the last time.
                drop(hold_up.replace(to));
            }
        }
    }
    Ok(())
}
