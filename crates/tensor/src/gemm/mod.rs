//! Matrix products on the CPU: `C = f(alpha A B + beta C)` on raw strided matrices.
//!
//! A is m x k, B is k x n, C is m x n, all with any strides (also zero and negative for A and B).
//! Element types: f32, f64, bf16 (summed in f32, stored as bf16 or f32), and f32 times bf16 or f16
//! (weights kept in half precision). `f` is the [`Epilogue`]: bias, copy of the preactivation, activation,
//! residual. No tensors here, no shape errors, no gradients: `matmul` and the kernels call this.
//!
//! # Method
//! The scheme of Goto and van de Geijn (Anatomy of High-Performance Matrix Multiplication, 2008) with
//! the register tile of BLIS. A tile of 14 x 32 sums stays in 28 AVX-512 registers; per step of k it
//! reads 14 + 32 values for 448 multiply-adds. Its operands come from packed strips of A
//! (14 x 512 f32, 28 KiB, first-level cache) and panels of B (512 x 32, 64 KiB each, eight of them in
//! the second level). A tile of C of 112 x 256 then moves 0.75 MiB of operands for 14.7 million
//! multiply-adds, under one byte a cycle from the third level: the arithmetic is the limit.
//! For bf16 the unit is a pair along k (`vdpbf16ps`), which doubles the rate at the same traffic;
//! processors without it widen to f32 while packing.
//!
//! With few rows the matrix B is the limit: 2 m multiply-adds an element. It is then read once, in
//! place: wide tiles where columns are neighbours, transposition in registers where k is
//! contiguous (`skinny.rs`).
//!
//! # Bits
//! * Results do not depend on the number of threads, on `parallel`, or on strides.
//! * They are *invariant*: an element of C is a sum over k in an order given by k and the instruction
//!   set alone: k is cut into spans of at most 2048, a span into blocks, each summed one by one
//!   from zero. A row of C therefore has the same bits in a product of one row and of a thousand.
//!   No flag is needed; the order costs nothing measurable.
//! * They differ between instruction sets (fused or separate rounding, pairs of bf16).
//!
//! `vdpbf16ps` treats subnormal inputs and sums as zero. A NaN or infinity in A or B goes through
//! even if alpha is 0.
//!
//! # Measured
//! EPYC 9004 (Zen 4), 2 cores, GFLOP/s, random data; the peak is about 236 in f32, twice that in
//! bf16. PyTorch 2 with MKL and oneDNN on 2 threads, the `gemm` crate 0.19 with AVX-512.
//!
//! | m x n x k | ours f32 | `gemm` crate | PyTorch | ours bf16 | PyTorch |
//! | --- | --- | --- | --- | --- | --- |
//! | 1024 x 1024 x 1024 | 206 | 204-213 | 187-197 | 390 | 426-439 |
//! | 2048 x 1024 x 256 | 196-210 | 188-214 | 191-203 | 302-350 | 433-442 |
//! | 2048 x 256 x 1024 | 198 | 204-215 | 190-205 | 384 | 431-444 |
//! | 256 x 256 x 2048, A transposed | 185-190 | 162-181 | 194 | 343-357 | 406 |
//! | 64 x 64 x 64, one thread | 99 | 106 | 77 | 123 | 31 |
//! | 1 x 4096 x 4096, B transposed | 11 | 7-10 | 10-11 | 22-26 | 71-79 |
//!
//! Calls from outside the thread pool wake its threads anew; Linux then sometimes leaves both on one
//! core for a while, and products of a millisecond or two take twice as long. Long computations
//! should run inside the pool.

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

use std::ops::Range;

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

/// The last steps of a product alone, for sums that were computed elsewhere: finishes rows `at.0` and
/// columns `at.1` of C from `sums`, whose first element belongs to the first of both.
///
/// # Safety
/// `sums` is valid and has the shape of the ranges, which lie in C; the rest as [`gemm_with`].
pub unsafe fn finish<C: Output>(
    c: MatMut<C>,
    sums: Mat<C::Acc>,
    at: (Range<usize>, Range<usize>),
    epilogue: &Epilogue<C>,
) {
    // SAFETY: promised by the caller.
    unsafe { C::finish(&Finish::new(c, C::ONE, C::ZERO, epilogue), sums, at) }
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
