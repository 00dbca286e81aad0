//! The register-blocked product that all tiles use: `C += A B` over words.
//!
//! A is read one word at a time and broadcast, so any strides of A cost the same; this is what makes
//! every transposition of attention free: keys times transposed queries, transposed probabilities
//! times values, and the three products of the gradients only differ in the strides of A. B and C
//! are read by whole vectors.

use super::pack::Words;
use danaus_runtime::simd::{Kernel, Simd, dispatch};

/// A product of tiles in cache. `m` x `k` words times `k` words x `n`.
#[derive(Clone, Copy)]
pub struct Product {
    /// Broadcast operand: word (row, step) at `row * a_row + step * a_step`.
    pub a: *const f32,
    /// Distance of rows of A.
    pub a_row: usize,
    /// Distance of contraction words of A.
    pub a_step: usize,
    /// Streamed operand: `k` rows, 16 divides the row distance.
    pub b: *const f32,
    /// Distance of rows of B.
    pub b_stride: usize,
    /// f32 result.
    pub c: *mut f32,
    /// Distance of rows of C.
    pub c_stride: usize,
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C; a multiple of 16.
    pub n: usize,
    /// Contraction length in words.
    pub k: usize,
    /// Whether C keeps its old value as a summand.
    pub accumulate: bool,
}

/// Multiply-add of words.
trait Dot {
    /// `acc + a . b`.
    ///
    /// # Safety
    /// The processor has the instructions of the implementation.
    unsafe fn dot<S: Simd>(s: S, a: S::F, b: S::F, acc: S::F) -> S::F;
}

struct Single;
impl Dot for Single {
    #[inline(always)]
    unsafe fn dot<S: Simd>(s: S, a: S::F, b: S::F, acc: S::F) -> S::F {
        s.fma(a, b, acc)
    }
}

struct Pairs;
impl Dot for Pairs {
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn dot<S: Simd>(_: S, a: S::F, b: S::F, acc: S::F) -> S::F {
        use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps};
        use std::mem::transmute_copy;
        assert!(size_of::<S::F>() == size_of::<__m512>());
        // SAFETY: all three vectors are 512 bits of plain data, and the caller promises the
        // instruction.
        unsafe {
            let [a, b] = [transmute_copy::<S::F, __m512bh>(&a), transmute_copy(&b)];
            transmute_copy(&_mm512_dpbf16_ps(transmute_copy(&acc), a, b))
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    #[inline(always)]
    unsafe fn dot<S: Simd>(_: S, _: S::F, _: S::F, acc: S::F) -> S::F {
        acc
    }
}

impl Product {
    /// Computes the product.
    ///
    /// # Safety
    /// All named elements of A and B are readable, those of C writable and not part of A or B.
    pub unsafe fn run(self, words: Words) {
        dispatch(Run(self, words));
    }
}

struct Run(Product, Words);
impl Kernel for Run {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.1 {
            // SAFETY: promised to `Product::run`.
            Words::F32 => unsafe { columns::<S, Single>(s, &self.0) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above; pairs are only chosen where the processor has the instruction.
            Words::Bf16Pairs if S::LANES == 16 => unsafe { columns_of_pairs(s, &self.0) },
            Words::Bf16Pairs => debug_assert!(false, "pairs need a dot product instruction"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi1,bmi2,popcnt"
)]
fn columns_of_pairs<S: Simd>(s: S, p: &Product) {
    // SAFETY: promised to `Product::run`; this function has the instructions.
    unsafe { columns::<S, Pairs>(s, p) }
}

/// Splits the columns into register blocks: four vectors, then two, then one.
#[inline(always)]
unsafe fn columns<S: Simd, D: Dot>(s: S, p: &Product) {
    let mut column = 0;
    // SAFETY: every block lies in C.
    unsafe {
        if S::LANES == 16 {
            while column + 64 <= p.n {
                rows::<S, D, 4>(s, p, column);
                column += 64;
            }
        }
        while column + 2 * S::LANES <= p.n {
            rows::<S, D, 2>(s, p, column);
            column += 2 * S::LANES;
        }
        while column < p.n {
            rows::<S, D, 1>(s, p, column);
            column += S::LANES;
        }
    }
}

#[inline(always)]
unsafe fn rows<S: Simd, D: Dot, const N: usize>(s: S, p: &Product, column: usize) {
    let mut row = 0;
    // SAFETY: every block lies in C.
    unsafe {
        while row + 6 <= p.m {
            block::<S, D, 6, N>(s, p, row, column);
            row += 6;
        }
        if row + 4 <= p.m {
            block::<S, D, 4, N>(s, p, row, column);
            row += 4;
        }
        while row < p.m {
            block::<S, D, 1, N>(s, p, row, column);
            row += 1;
        }
    }
}

/// Repeats a block with `index` 0, 1, ... below `count` (at most 6). The indices are constants at once,
/// so the arrays they index become registers; a loop would be unrolled too late for that.
macro_rules! each {
    ($index:ident < $count:expr, $body:block) => {
        each!(@ $index, $count, $body, 0 1 2 3 4 5)
    };
    (@ $index:ident, $count:expr, $body:block, $($value:literal)*) => {
        $(if $value < $count {
            let $index = $value;
            $body
        })*
    };
}

/// `M` rows by `N` vectors of C, held in registers through the whole contraction.
#[inline(always)]
unsafe fn block<S: Simd, D: Dot, const M: usize, const N: usize>(
    s: S,
    p: &Product,
    row: usize,
    column: usize,
) {
    let mut sums = [[s.zero(); N]; M];
    // SAFETY: the block lies in C, its rows in A and its columns in B (promised to `Product::run`).
    unsafe {
        let mut a = p.a.add(row * p.a_row);
        let mut b = p.b.add(column);
        for _ in 0..p.k {
            let mut streamed = [s.zero(); N];
            each!(n < N, { streamed[n] = s.load(b.add(n * S::LANES)) });
            each!(m < M, {
                let word = s.splat(*a.add(m * p.a_row));
                each!(n < N, { sums[m][n] = D::dot(s, word, streamed[n], sums[m][n]) });
            });
            a = a.add(p.a_step);
            b = b.add(p.b_stride);
        }
        each!(m < M, {
            let c = p.c.add((row + m) * p.c_stride + column);
            each!(n < N, {
                let at = c.add(n * S::LANES);
                let sum = if p.accumulate { s.add(s.load(at), sums[m][n]) } else { sums[m][n] };
                s.store(at, sum);
            });
        });
    }
}
