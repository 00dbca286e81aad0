//! Products against a double precision oracle, and bit-for-bit identities.

use danaus_runtime::simd::{Isa, with_isa};
use danaus_runtime::threads::with_threads;
use half::{bf16, f16};

use super::epilogue::activate_f64;
use super::{
    Activation, BatchStrides, Epilogue, GemmElement, Mat, MatMut, Options, Output, Times,
    gemm_batched, gemm_with,
};

/// xorshift: enough for test data, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    }
}

trait Number: Copy + Default + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    /// Unit roundoff.
    const ROUNDOFF: f64;
}

impl Number for f32 {
    fn from_f64(value: f64) -> f32 {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    const ROUNDOFF: f64 = 6e-8;
}

impl Number for f64 {
    fn from_f64(value: f64) -> f64 {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
    const ROUNDOFF: f64 = 1.2e-16;
}

impl Number for bf16 {
    fn from_f64(value: f64) -> bf16 {
        bf16::from_f64(value)
    }
    fn to_f64(self) -> f64 {
        bf16::to_f64(self)
    }
    const ROUNDOFF: f64 = 4e-3;
}

impl Number for f16 {
    fn from_f64(value: f64) -> f16 {
        f16::from_f64(value)
    }
    fn to_f64(self) -> f64 {
        f16::to_f64(self)
    }
    const ROUNDOFF: f64 = 5e-4;
}

/// A matrix with its storage; element (0, 0) may lie anywhere in it.
#[derive(Clone)]
struct Owned<T> {
    data: Vec<T>,
    origin: usize,
    rows: usize,
    cols: usize,
    row_stride: isize,
    col_stride: isize,
}

/// How a test matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lies {
    RowMajor,
    ColumnMajor,
    /// Rows with a gap.
    Padded,
    /// Every third element, rows backwards.
    Scattered,
}

const LAYOUTS: [Lies; 4] = [Lies::RowMajor, Lies::ColumnMajor, Lies::Padded, Lies::Scattered];

impl<T: Number> Owned<T> {
    fn random(rows: usize, cols: usize, lies: Lies, random: &mut Random) -> Self {
        let (r, c) = (rows as isize, cols as isize);
        let (row_stride, col_stride, origin) = match lies {
            Lies::RowMajor => (c, 1, 0),
            Lies::ColumnMajor => (1, r, 0),
            Lies::Padded => (c + 5, 1, 2),
            Lies::Scattered => (-(3 * c), 3, (3 * c * (r - 1).max(0)) as usize),
        };
        let len = (rows * cols * 3 + rows * 5 + 8).max(1);
        let data = (0..len).map(|_| T::from_f64(random.unit())).collect();
        Self { data, origin, rows, cols, row_stride, col_stride }
    }

    fn mat(&self) -> Mat<T> {
        Mat {
            ptr: self.data.as_ptr().wrapping_add(self.origin),
            rows: self.rows,
            cols: self.cols,
            row_stride: self.row_stride,
            col_stride: self.col_stride,
        }
    }

    fn mat_mut(&mut self) -> MatMut<T> {
        MatMut {
            ptr: self.data.as_mut_ptr().wrapping_add(self.origin),
            rows: self.rows,
            cols: self.cols,
            row_stride: self.row_stride,
            col_stride: self.col_stride,
        }
    }

    fn index(&self, row: usize, col: usize) -> usize {
        let offset = row as isize * self.row_stride + col as isize * self.col_stride;
        (self.origin as isize + offset) as usize
    }

    fn get(&self, row: usize, col: usize) -> f64 {
        self.data[self.index(row, col)].to_f64()
    }

    /// All elements in row-major order.
    fn values(&self) -> Vec<T> {
        let at = |i: usize| self.data[self.index(i / self.cols, i % self.cols)];
        (0..self.rows * self.cols).map(at).collect()
    }
}

/// Value and sum of magnitudes of one element of A B.
fn oracle<A: Number, B: Number>(a: &Owned<A>, b: &Owned<B>, row: usize, col: usize) -> (f64, f64) {
    (0..a.cols).fold((0.0, 0.0), |(sum, size), k| {
        let term = a.get(row, k) * b.get(k, col);
        (sum + term, size + term.abs())
    })
}

/// Compares with the oracle. A sum of k products in roundoff u errs by at most (k + 1) u times the
/// sum of magnitudes; scaling, adding C and storing add a few roundings.
fn check<A, B, C>(m: usize, n: usize, k: usize, lies: [Lies; 3], factors: (f64, f64), seed: u64)
where
    A: Number + Times<B>,
    B: Number,
    C: Number + Output<Acc = A::Acc>,
    A::Acc: Number,
{
    let random = &mut Random(seed | 1);
    let a = Owned::<A>::random(m, k, lies[0], random);
    let b = Owned::<B>::random(k, n, lies[1], random);
    let mut c = Owned::<C>::random(m, n, lies[2], random);
    let before = c.clone();
    let (alpha, beta) = factors;
    let options = Options::<C> {
        alpha: A::Acc::from_f64(alpha),
        beta: A::Acc::from_f64(beta),
        ..Options::default()
    };
    // SAFETY: the matrices own their storage.
    unsafe { gemm_with(c.mat_mut(), a.mat(), b.mat(), &options) };
    for row in 0..m {
        for col in 0..n {
            let (sum, size) = oracle(&a, &b, row, col);
            let old = before.get(row, col);
            let expected = alpha * sum + beta * old;
            let scale = alpha.abs() * size + (beta * old).abs();
            let bound = (k as f64 + 4.0) * A::Acc::ROUNDOFF * scale
                + C::ROUNDOFF * expected.abs()
                + f64::from(f32::MIN_POSITIVE);
            let found = c.get(row, col);
            assert!(
                (found - expected).abs() <= bound,
                "{m}x{n}x{k} {lies:?} alpha {alpha} beta {beta} at ({row}, {col}): \
                 {found} instead of {expected}, tolerance {bound}"
            );
        }
    }
    // Nothing outside of C was touched.
    let mut outside = before.clone();
    for row in 0..m {
        for col in 0..n {
            let at = c.index(row, col);
            outside.data[at] = c.data[at];
        }
    }
    assert!(outside.data == c.data, "{m}x{n}x{k} {lies:?}: wrote outside of C");
}

const SIZES: [usize; 16] = [0, 1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 257];

fn random_shapes<A, B, C>(isa: Isa, cases: usize)
where
    A: Number + Times<B>,
    B: Number,
    C: Number + Output<Acc = A::Acc>,
    A::Acc: Number,
{
    with_isa(isa, || {
        let random = &mut Random(0x5eed + isa as u64);
        for _ in 0..cases {
            let mut size = || SIZES[random.below(SIZES.len())];
            let (m, n, k) = (size(), size(), size());
            let lies = [(); 3].map(|()| LAYOUTS[random.below(4)]);
            let factors = [(1.0, 0.0), (1.0, 1.0), (-0.5, 0.25)][random.below(3)];
            check::<A, B, C>(m, n, k, lies, factors, random.next());
        }
    });
}

#[test]
fn f32_matches_the_oracle() {
    Isa::ALL.into_iter().for_each(|isa| random_shapes::<f32, f32, f32>(isa, 150));
}

#[test]
fn f64_matches_the_oracle() {
    Isa::ALL.into_iter().for_each(|isa| random_shapes::<f64, f64, f64>(isa, 100));
}

#[test]
fn bf16_matches_the_oracle() {
    Isa::ALL.into_iter().for_each(|isa| random_shapes::<bf16, bf16, bf16>(isa, 100));
    Isa::ALL.into_iter().for_each(|isa| random_shapes::<bf16, bf16, f32>(isa, 100));
}

#[test]
fn f32_times_bf16_matches_the_oracle() {
    Isa::ALL.into_iter().for_each(|isa| random_shapes::<f32, bf16, f32>(isa, 80));
}

#[test]
fn f32_times_f16_matches_the_oracle() {
    Isa::ALL.into_iter().for_each(|isa| random_shapes::<f32, f16, f32>(isa, 80));
}

#[test]
fn every_small_shape() {
    for (m, n, k) in (0..5 * 5 * 5).map(|i| (i % 5, i / 5 % 5, i / 25)) {
        let lies = [LAYOUTS[m % 4], LAYOUTS[n % 4], LAYOUTS[k % 4]];
        check::<f32, f32, f32>(m, n, k, lies, (1.5, 0.5), 7);
        check::<bf16, bf16, bf16>(m, n, k, lies, (1.0, 0.0), 8);
    }
}

#[test]
fn large_shapes_of_every_path() {
    let rows = [Lies::RowMajor; 3];
    let transposed_a = [Lies::ColumnMajor, Lies::RowMajor, Lies::RowMajor];
    let transposed_b = [Lies::RowMajor, Lies::ColumnMajor, Lies::RowMajor];
    let column_major_c = [Lies::RowMajor, Lies::RowMajor, Lies::ColumnMajor];
    // Several row tiles; several blocks of k; several spans of k, at once and in turn.
    check::<f32, f32, f32>(300, 290, 700, rows, (1.0, 0.0), 1);
    check::<f32, f32, f32>(300, 290, 700, transposed_a, (1.0, 1.0), 2);
    check::<f32, f32, f32>(33, 40, 5000, transposed_a, (2.0, 0.0), 3);
    check::<f32, f32, f32>(250, 200, 2100, transposed_b, (1.0, 0.0), 4);
    check::<bf16, bf16, bf16>(300, 290, 1700, transposed_b, (1.0, 0.0), 5);
    check::<bf16, bf16, bf16>(40, 33, 4999, rows, (1.0, 1.0), 6);
    check::<f32, f32, f32>(130, 140, 300, column_major_c, (1.0, 0.0), 7);
    check::<f64, f64, f64>(130, 140, 2300, rows, (1.0, 0.0), 8);
    // Matrix times vector and vector times matrix, contiguous either way.
    for lies in [rows, transposed_a, transposed_b] {
        check::<f32, f32, f32>(1, 1000, 1100, lies, (1.0, 0.0), 9);
        check::<f32, f32, f32>(1000, 1, 1100, lies, (1.0, 0.0), 10);
        check::<bf16, bf16, bf16>(3, 1000, 1101, lies, (1.0, 0.0), 11);
        check::<f32, bf16, f32>(5, 700, 513, lies, (1.0, 0.0), 12);
        check::<f32, f16, f32>(8, 150, 2563, lies, (1.0, 0.0), 13);
    }
}

/// The product of matrices in row-major order, on `threads` threads (0: as one task).
fn product<T: Number + GemmElement>(a: &Owned<T>, b: &Owned<T>, threads: usize) -> Vec<T> {
    let (m, n) = (a.rows, b.cols);
    let mut c = Owned::<T>::random(m, n, Lies::RowMajor, &mut Random(3));
    let options = Options::<T> { parallel: threads > 0, ..Options::default() };
    let mut run = || {
        // SAFETY: the matrices own their storage.
        unsafe { gemm_with(c.mat_mut(), a.mat(), b.mat(), &options) };
        c.values()
    };
    // Another pool's threads do not know a forced instruction set.
    if threads == 0 { run() } else { with_threads(threads, run) }
}

#[test]
fn bits_do_not_depend_on_threads() {
    fn compare<T: Number + GemmElement>(m: usize, n: usize, k: usize, lies: Lies) {
        let random = &mut Random(11);
        let a = Owned::<T>::random(m, k, lies, random);
        let b = Owned::<T>::random(k, n, Lies::RowMajor, random);
        let one = product(&a, &b, 1);
        for threads in [0, 2, 3] {
            assert!(product(&a, &b, threads) == one, "{m}x{n}x{k} on {threads} threads");
        }
    }
    compare::<f32>(256, 200, 700, Lies::RowMajor);
    compare::<f32>(64, 64, 9000, Lies::ColumnMajor);
    compare::<f32>(1, 2000, 3000, Lies::RowMajor);
    compare::<bf16>(256, 200, 1300, Lies::ColumnMajor);
    compare::<bf16>(64, 48, 9000, Lies::RowMajor);
    compare::<f64>(150, 130, 5000, Lies::RowMajor);
}

/// A row of C has the same bits alone, in a small and in a large product, for any columns of B.
#[test]
fn a_row_does_not_depend_on_the_others() {
    fn compare<T: Number + GemmElement>(isa: Isa, k: usize, lies: Lies) {
        with_isa(isa, || {
            let random = &mut Random(12);
            let (m, n) = (150, 100);
            let a = Owned::<T>::random(m, k, Lies::RowMajor, random);
            let b = Owned::<T>::random(k, n, lies, random);
            let all = product(&a, &b, 0);
            for (first, rows) in [(0, 1), (149, 1), (37, 2), (40, 5), (3, 15), (20, 115)] {
                let part = Owned {
                    origin: a.index(first, 0),
                    rows,
                    data: a.data.clone(),
                    ..Owned { data: Vec::new(), ..a }
                };
                let found = product(&part, &b, 0);
                let expected = &all[first * n..(first + rows) * n];
                assert!(found == expected, "{isa:?} k {k} rows {first}..+{rows} {lies:?}");
            }
            for (first, cols) in [(0, 1), (99, 1), (50, 3), (10, 33)] {
                let part = Owned {
                    origin: b.index(0, first),
                    cols,
                    data: b.data.clone(),
                    ..Owned { data: Vec::new(), ..b }
                };
                let found = product(&a, &part, 0);
                let expected = |i: usize| all[i / cols * n + first + i % cols];
                let same = (0..m * cols).all(|i| found[i] == expected(i));
                assert!(same, "{isa:?} k {k} columns {first}..+{cols} {lies:?}");
            }
        });
    }
    for isa in Isa::ALL {
        for lies in [Lies::RowMajor, Lies::ColumnMajor] {
            compare::<f32>(isa, 70, lies);
            compare::<f32>(isa, 2500, lies);
            compare::<bf16>(isa, 1201, lies);
            compare::<f64>(isa, 601, lies);
        }
    }
}

/// Weights kept in half precision, stored `[out, in]`: every number of rows that has a routine of its
/// own gives the bits of the general path, and those are the bits of widened weights.
#[test]
fn rows_beside_narrow_weights_do_not_depend_on_the_others() {
    fn compare<B: Number>(isa: Isa, k: usize)
    where
        f32: Times<B, Acc = f32>,
    {
        with_isa(isa, || {
            let random = &mut Random(15);
            let (m, n) = (40, 75);
            let a = Owned::<f32>::random(m, k, Lies::RowMajor, random);
            let b = Owned::<B>::random(k, n, Lies::ColumnMajor, random);
            let product = |first: usize, rows: usize| {
                let mut c = Owned::<f32>::random(rows, n, Lies::RowMajor, &mut Random(3));
                let part = Mat { ptr: a.data[a.index(first, 0)..].as_ptr(), rows, ..a.mat() };
                // SAFETY: the matrices own their storage.
                unsafe { gemm_with(c.mat_mut(), part, b.mat(), &Options::default()) };
                c.values()
            };
            let all = product(0, m);
            for rows in 1..=10 {
                let expected = &all[rows * n..2 * rows * n];
                assert!(product(rows, rows) == expected, "{isa:?} k {k}, {rows} rows");
            }
            let wide = Owned::<f32> {
                data: b.data.iter().map(|&value| value.to_f64() as f32).collect(),
                origin: b.origin,
                rows: b.rows,
                cols: b.cols,
                row_stride: b.row_stride,
                col_stride: b.col_stride,
            };
            assert!(super::tests::product(&a, &wide, 0) == all, "{isa:?} k {k}: widened");
        });
    }
    for isa in Isa::ALL {
        for k in [31, 64, 1000, 2500] {
            compare::<bf16>(isa, k);
            compare::<f16>(isa, k);
        }
    }
}

#[test]
fn half_precision_of_every_value_is_widened_exactly() {
    use super::pack::{Packer, WidenHalf};
    for bits in 0..=u16::MAX {
        let half = f16::from_bits(bits);
        let (found, expected) = (WidenHalf::unit(half, half), half.to_f32());
        let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
        assert!(same, "{bits:x}: {found} instead of {expected}");
    }
}

#[test]
fn layout_does_not_change_bits() {
    let random = &mut Random(13);
    let a = Owned::<f32>::random(90, 600, Lies::RowMajor, random);
    let b = Owned::<f32>::random(600, 70, Lies::RowMajor, random);
    let expected = product(&a, &b, 1);
    for lies in LAYOUTS {
        let mut other = Owned::<f32>::random(600, 70, lies, &mut Random(1));
        let mut c = Owned::<f32>::random(90, 70, lies, &mut Random(1));
        for row in 0..600 {
            for col in 0..70 {
                let at = other.index(row, col);
                other.data[at] = b.data[b.index(row, col)];
            }
        }
        // SAFETY: the matrices own their storage.
        unsafe { gemm_with(c.mat_mut(), a.mat(), other.mat(), &Options::default()) };
        assert!(c.values() == expected, "{lies:?}");
    }
}

#[test]
fn nan_goes_through_products_and_stays_out_of_the_old_c() {
    for isa in Isa::ALL {
        with_isa(isa, || {
            for (m, n, k) in [(1, 40, 30), (20, 33, 0), (20, 33, 600), (150, 40, 33)] {
                let random = &mut Random(14);
                let mut a = Owned::<f32>::random(m, k, Lies::RowMajor, random);
                let b = Owned::<f32>::random(k, n, Lies::RowMajor, random);
                let mut c = Owned::<f32>::random(m, n, Lies::RowMajor, random);
                c.data.fill(f32::NAN);
                // SAFETY: the matrices own their storage.
                unsafe { gemm_with(c.mat_mut(), a.mat(), b.mat(), &Options::default()) };
                assert!(c.values().iter().all(|value| value.is_finite()));
                if k > 0 {
                    a.data[(m - 1) * k + k / 2] = f32::NAN;
                    // SAFETY: as above.
                    unsafe { gemm_with(c.mat_mut(), a.mat(), b.mat(), &Options::default()) };
                    let nan: Vec<bool> = c.values().iter().map(|value| value.is_nan()).collect();
                    assert!((0..m * n).all(|i| nan[i] == (i / n == m - 1)));
                }
            }
        });
    }
}

/// All steps of the epilogue; `C` may lie transposed, and the residual may be C itself.
fn check_epilogue<C>(activation: Activation, lies: Lies, tolerance: f64)
where
    f32: Times<f32, Acc = C::Acc>,
    C: Number + Output<Acc = f32>,
{
    let (m, n, k) = (37, 45, 600);
    let random = &mut Random(15);
    let a = Owned::<f32>::random(m, k, Lies::RowMajor, random);
    let b = Owned::<f32>::random(k, n, Lies::ColumnMajor, random);
    let bias: Vec<f32> = (0..n).map(|_| random.unit() as f32).collect();
    let mut c = Owned::<C>::random(m, n, lies, random);
    let before = c.clone();
    let mut copy = Owned::<C>::random(m, n, Lies::Padded, random);
    let options = Options {
        alpha: 0.125,
        beta: 0.5,
        parallel: true,
        epilogue: Epilogue {
            bias: Some(bias.as_ptr()),
            preactivation: Some(copy.mat_mut()),
            activation,
            residual: Some(c.mat()),
        },
    };
    // SAFETY: the matrices own their storage.
    unsafe { gemm_with(c.mat_mut(), a.mat(), b.mat(), &options) };
    for row in 0..m {
        for col in 0..n {
            let (sum, _) = oracle(&a, &b, row, col);
            let old = before.get(row, col);
            let inner = 0.125 * sum + 0.5 * old + f64::from(bias[col]);
            let outer = activate_f64(activation, inner) + old;
            let found = (copy.get(row, col), c.get(row, col));
            let close = |x: f64, y: f64| (x - y).abs() <= tolerance * (1.0 + y.abs());
            assert!(
                close(found.0, inner) && close(found.1, outer),
                "{activation:?} {lies:?}: {found:?} instead of {inner}, {outer}"
            );
        }
    }
}

#[test]
fn epilogue_steps_come_in_order() {
    use Activation::{GeluErf, GeluTanh, Identity, Relu, Silu};
    for isa in Isa::ALL {
        with_isa(isa, || {
            for activation in [Identity, Relu, GeluTanh, GeluErf, Silu] {
                for lies in LAYOUTS {
                    // The sum errs by about sqrt(k) roundings of values near 10, scaled by 1/8.
                    check_epilogue::<f32>(activation, lies, 1e-5);
                    check_epilogue::<bf16>(activation, lies, 8e-3);
                }
            }
        });
    }
}

#[test]
fn an_activation_without_a_copy_works_in_place() {
    let random = &mut Random(16);
    let a = Owned::<f64>::random(30, 50, Lies::RowMajor, random);
    let b = Owned::<f64>::random(50, 20, Lies::RowMajor, random);
    for activation in [Activation::Relu, Activation::GeluErf, Activation::Silu] {
        let mut c = Owned::<f64>::random(30, 20, Lies::RowMajor, random);
        let epilogue = Epilogue { activation, ..Epilogue::default() };
        let options = Options { epilogue, ..Options::default() };
        // SAFETY: the matrices own their storage.
        unsafe { gemm_with(c.mat_mut(), a.mat(), b.mat(), &options) };
        for (row, col) in (0..600).map(|i| (i / 20, i % 20)) {
            let expected = activate_f64(activation, oracle(&a, &b, row, col).0);
            assert!((c.get(row, col) - expected).abs() < 1e-13 * (1.0 + expected.abs()));
        }
    }
}

#[test]
fn a_batch_equals_single_products() {
    for (batch, m, n, k) in [(50, 9, 17, 23), (3, 200, 300, 310), (1, 5, 6, 7), (0, 4, 4, 4)] {
        let random = &mut Random(17);
        let a = Owned::<f32>::random(m * batch.max(1), k, Lies::RowMajor, random);
        let b = Owned::<f32>::random(k, n, Lies::RowMajor, random);
        let mut c = Owned::<f32>::random(m * batch.max(1), n, Lies::RowMajor, random);
        let one = Owned { rows: m, data: a.data.clone(), ..Owned { data: Vec::new(), ..a } };
        let first = MatMut { rows: m, ..c.mat_mut() };
        // One B for all: stride 0.
        let strides = BatchStrides { a: (m * k) as isize, b: 0, c: (m * n) as isize };
        let options = Options::default();
        // SAFETY: the matrices own their storage.
        unsafe { gemm_batched(batch, strides, first, one.mat(), b.mat(), &options) };
        for index in 0..batch {
            let part = Owned { origin: index * m * k, ..one.clone() };
            let found = &c.data[index * m * n..(index + 1) * m * n];
            assert!(found == product(&part, &b, 1), "product {index} of {batch}");
        }
    }
}
