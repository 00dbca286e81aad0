//! Matrix products on the CPU: `C = f(alpha A B + beta C)` on raw strided matrices.
//!
//! A is m x k, B is k x n, C is m x n, all with any strides. Element types: f32, f64, bf16 (summed in
//! f32, stored as bf16 or f32), and f32 times bf16 (weights kept in half precision).

mod config;
mod driver;
mod elements;
mod engine;
mod epilogue;
mod erf;
mod matrix;
mod pack;
mod portable;
mod scratch;
#[cfg(target_arch = "x86_64")]
mod skinny;
mod span;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

use danaus_runtime::threads;

use driver::{Operand, Problem};
pub use elements::{GemmElement, Times};
use epilogue::Finish;
pub use epilogue::{Activation, Epilogue, Output};
pub use matrix::{Mat, MatMut};

/// How a product is computed and finished.
#[derive(Clone, Copy)]
pub struct Options<C: Output> {
    /// Factor of the product.
    pub alpha: C::Acc,
    /// Factor of the old C; with 0 the old C is not read.
    pub beta: C::Acc,
    /// Whether to use the thread pool; `false` inside tasks. Bits do not depend on it.
    pub parallel: bool,
    /// Last steps.
    pub epilogue: Epilogue<C>,
}

impl<C: Output> Default for Options<C> {
    /// C = A B on all threads.
    fn default() -> Self {
        Self { alpha: C::ONE, beta: C::ZERO, parallel: true, epilogue: Epilogue::default() }
    }
}

/// `C = alpha A B + beta C` with one element type.
///
/// # Safety
/// As [`gemm_with`].
///
/// # Panics
/// As [`gemm_with`].
pub unsafe fn gemm<T: GemmElement>(
    c: MatMut<T>,
    a: Mat<T>,
    b: Mat<T>,
    alpha: <T as Output>::Acc,
    beta: <T as Output>::Acc,
    parallel: bool,
) {
    let options = Options { alpha, beta, parallel, epilogue: Epilogue::default() };
    // SAFETY: promised by the caller.
    unsafe { gemm_with(c, a, b, &options) }
}

/// A product with mixed element types and an epilogue.
///
/// # Safety
/// All matrices are valid for their shapes and strides; C (and the copy of the preactivation) are
/// written by nobody else meanwhile, do not overlap A, B or themselves. The bias holds one value per
/// column; preactivation and residual have the shape of C.
///
/// # Panics
/// When the shapes do not fit together.
pub unsafe fn gemm_with<A, B, C>(c: MatMut<C>, a: Mat<A>, b: Mat<B>, options: &Options<C>)
where
    A: Times<B>,
    C: Output<Acc = A::Acc>,
{
    assert!(
        c.rows == a.rows && a.cols == b.rows && b.cols == c.cols,
        "gemm: C is {}x{}, A {}x{}, B {}x{}",
        c.rows,
        c.cols,
        a.rows,
        a.cols,
        b.rows,
        b.cols
    );
    let (m, n, k) = (c.rows, c.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    let finish = Finish::new(c, options.alpha, options.beta, &options.epilogue);
    if k == 0 {
        let zero = C::ZERO;
        let zeros = Mat { ptr: &raw const zero, rows: m, cols: n, row_stride: 0, col_stride: 0 };
        // SAFETY: promised by the caller; all elements of `zeros` are the one zero.
        return unsafe { C::finish(&finish, zeros, (0..m, 0..n)) };
    }
    let kernels = A::kernels();
    let (a, b) = (Operand::rows(a), Operand::rows(b.transposed()));
    let parallel = options.parallel;
    // A column-major C, or a few long columns, are the transposed product: the same sums, each in
    // the same order, since every multiplication commutes.
    let column_major = c.row_stride == 1 && c.col_stride != 1;
    let problem = if column_major || (n <= MATRIX_VECTOR && n < m && c.col_stride != 1) || n == 1 {
        let kernels = kernels.transposed();
        Problem { kernels, a: b, b: a, depth: k, finish: finish.transposed(), parallel }
    } else {
        Problem { kernels, a, b, depth: k, finish, parallel }
    };
    // SAFETY: promised by the caller.
    unsafe { driver::run(problem) }
}

/// Columns up to which a product with strided C counts as matrix times vectors.
const MATRIX_VECTOR: usize = 4;

/// Element distances between the matrices of a batch; 0 repeats one matrix.
#[derive(Clone, Copy, Debug)]
pub struct BatchStrides {
    /// Between matrices A.
    pub a: isize,
    /// Between matrices B.
    pub b: isize,
    /// Between matrices C (and copies of the preactivation, and residuals).
    pub c: isize,
}

/// Multiply-adds above which one product is worth all threads for itself.
const LARGE_PRODUCT: usize = 1 << 24;

/// `batch` products; `c`, `a`, `b` describe the first one. The bias is shared.
///
/// Small products are spread over threads, large ones use all threads one after another; the bits
/// are the same.
///
/// # Safety
/// As [`gemm_with`], for every matrix of the batch; those of C do not overlap.
///
/// # Panics
/// As [`gemm_with`].
pub unsafe fn gemm_batched<A, B, C>(
    batch: usize,
    strides: BatchStrides,
    c: MatMut<C>,
    a: Mat<A>,
    b: Mat<B>,
    options: &Options<C>,
) where
    A: Times<B>,
    B: Sync,
    C: Output<Acc = A::Acc>,
{
    let work = c.rows * c.cols * a.cols;
    let spread = options.parallel && batch > 1 && work < LARGE_PRODUCT;
    let product = |index: usize, parallel: bool| {
        let index = index as isize;
        let epilogue = Epilogue {
            preactivation: options.epilogue.preactivation.map(|p| p.moved(index * strides.c)),
            residual: options.epilogue.residual.map(|r| r.moved(index * strides.c)),
            ..options.epilogue
        };
        let options = Options { parallel, epilogue, ..*options };
        let c = c.moved(index * strides.c);
        let (a, b) = (a.moved(index * strides.a), b.moved(index * strides.b));
        // SAFETY: promised by the caller for every index of the batch.
        unsafe { gemm_with(c, a, b, &options) };
    };
    if spread {
        // Several products a task when they are tiny; by shape, not by threads.
        let grain = (1 << 17) / work.clamp(1, 1 << 17);
        let (tasks, per_task) = threads::split(batch, grain);
        threads::for_each(tasks, |task| {
            let end = ((task + 1) * per_task).min(batch);
            (task * per_task..end).for_each(|index| product(index, false));
        });
    } else {
        (0..batch).for_each(|index| product(index, options.parallel));
    }
}
