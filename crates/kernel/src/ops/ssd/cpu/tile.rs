//! Products of small matrices that live in the first two cache levels: the one compute kernel behind
//! every step of the chunked algorithm.
//!
//! ```text
//! out <- out_scale out + row_scale (first) + second
//! ```
//! where `first` and `second` are products of a broadcast operand with any strides (left) and one
//! whose rows are contiguous (right). Triangular ranges skip the half that a causal mask removes.
//! Columns are padded to [`PAD`], so there are no partial vectors.

use danaus_runtime::simd::{self, Kernel, Simd};

/// Columns of every tile are a multiple of this, whatever the instruction set.
pub const PAD: usize = 16;

/// `columns` rounded up to the padding.
pub fn padded(columns: usize) -> usize {
    columns.next_multiple_of(PAD)
}

/// Rows of the largest register block.
const ROWS: usize = 8;

/// Which inner indices `k` contribute to row `i`.
#[derive(Clone, Copy)]
pub enum Inner {
    /// `0..len`.
    Full(usize),
    /// `0..=i` of `0..len`: the left operand is lower triangular, with zeros above up to a multiple of
    /// the register block.
    UpToRow(usize),
    /// `i..len`: the left operand is upper triangular, with zeros likewise.
    FromRow(usize),
}

/// `left[i, k] right[k, :]` summed over `k`.
#[derive(Clone, Copy)]
pub struct Product {
    /// First element of the left operand.
    pub left: *const f32,
    /// Distance between its rows `i`.
    pub left_row: usize,
    /// Distance between its columns `k`.
    pub left_column: usize,
    /// First element of the right operand.
    pub right: *const f32,
    /// Distance between its rows `k`; columns are contiguous.
    pub right_row: usize,
    /// Range of `k`.
    pub inner: Inner,
}

/// Row-wise dot products of the scaled first product with a tile, while it is in registers.
#[derive(Clone, Copy)]
pub struct RowDots {
    /// The tile, laid out like `out`.
    pub with: *const f32,
    /// Distance between its rows.
    pub row: usize,
    /// One result a row; overwritten.
    pub dots: *mut f32,
}

/// One fused computation; see the module's documentation.
#[derive(Clone, Copy)]
pub struct Fused {
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result, a multiple of [`PAD`].
    pub columns: usize,
    /// Scaled by rows.
    pub first: Option<Product>,
    /// Factor of `first` for each row; `None` is 1.
    pub row_scale: Option<*const f32>,
    /// Added unscaled.
    pub second: Option<Product>,
    /// Dot products of the scaled first product.
    pub dots: Option<RowDots>,
    /// Result.
    pub out: *mut f32,
    /// Distance between its rows.
    pub out_row: usize,
    /// Factor of the former content; 0 overwrites.
    pub out_scale: f32,
    /// Skip columns right of the diagonal's register block; they keep their content.
    pub lower: bool,
}

impl Fused {
    /// A computation without products: the builders below add them.
    pub fn new(rows: usize, columns: usize, out: &mut [f32], out_row: usize) -> Self {
        Self {
            rows,
            columns,
            first: None,
            row_scale: None,
            second: None,
            dots: None,
            out: out.as_mut_ptr(),
            out_row,
            out_scale: 0.0,
            lower: false,
        }
    }

    /// Sets the first product and the factors of its rows.
    pub fn first(mut self, product: Product, row_scale: &[f32]) -> Self {
        self.first = Some(product);
        self.row_scale = Some(row_scale.as_ptr());
        self
    }

    /// Sets the second product.
    pub fn second(mut self, product: Product) -> Self {
        self.second = Some(product);
        self
    }

    /// Collects row-wise dot products of the scaled first product with a tile.
    pub fn dots(mut self, with: &[f32], row: usize, dots: &mut [f32]) -> Self {
        self.dots = Some(RowDots { with: with.as_ptr(), row, dots: dots.as_mut_ptr() });
        self
    }

    /// Keeps the former content of the result, times a factor.
    pub fn scaled(mut self, out_scale: f32) -> Self {
        self.out_scale = out_scale;
        self
    }

    /// Skips columns right of the diagonal.
    pub fn lower(mut self) -> Self {
        self.lower = true;
        self
    }

    /// Runs it.
    ///
    /// # Safety
    /// All pointers cover the rows and columns that the sizes and strides name, `out` and `dots` are
    /// not aliased by an operand.
    pub unsafe fn run(self) {
        simd::dispatch(self);
    }

    /// One block of `R` rows and `V` vectors at `(row, column)`.
    #[inline(always)]
    unsafe fn block<S: Simd, const R: usize, const V: usize>(
        &self,
        s: S,
        row: usize,
        column: usize,
    ) {
        let mut sums = [[s.zero(); V]; R];
        // SAFETY: `run`'s caller promises that every operand covers rows `row..row + R` and columns
        // `column..column + V * LANES`.
        unsafe {
            if let Some(first) = &self.first {
                accumulate(s, first, row, column, &mut sums);
            }
            if let Some(row_scale) = self.row_scale {
                for r in 0..R {
                    let factor = s.splat(*row_scale.add(row + r));
                    for v in 0..V {
                        sums[r][v] = s.mul(sums[r][v], factor);
                    }
                }
            }
            if let Some(dots) = &self.dots {
                for r in 0..R {
                    let with = dots.with.add((row + r) * dots.row + column);
                    let mut total = s.zero();
                    for v in 0..V {
                        total = s.fma(sums[r][v], s.load(with.add(v * S::LANES)), total);
                    }
                    *dots.dots.add(row + r) += s.reduce_add(total);
                }
            }
            if let Some(second) = &self.second {
                accumulate(s, second, row, column, &mut sums);
            }
            let keep = s.splat(self.out_scale);
            for r in 0..R {
                let out = self.out.add((row + r) * self.out_row + column);
                for v in 0..V {
                    let at = out.add(v * S::LANES);
                    let sum = sums[r][v];
                    // A branch, not a product: fresh scratch may hold infinities or NaN.
                    let sum =
                        if self.out_scale == 0.0 { sum } else { s.fma(keep, s.load(at), sum) };
                    s.store(at, sum);
                }
            }
        }
    }

    /// All rows of a stripe of `V` vectors of columns. The stripe of the right operand stays in the
    /// first-level cache while the rows pass by.
    #[inline(always)]
    unsafe fn stripe<S: Simd, const V: usize>(&self, s: S, column: usize) {
        // Right of the diagonal: no row above `column` reaches this stripe.
        let mut row = if self.lower { column.min(self.rows) / ROWS * ROWS } else { 0 };
        // SAFETY: promised by the caller of `run`; blocks stay inside `rows` and `columns`.
        unsafe {
            // Sixteen accumulators fit the 32 registers of AVX-512, eight the 16 of AVX2.
            while S::LANES == 16 && row + 8 <= self.rows {
                self.block::<S, 8, V>(s, row, column);
                row += 8;
            }
            while row + 4 <= self.rows {
                self.block::<S, 4, V>(s, row, column);
                row += 4;
            }
            match self.rows - row {
                1 => self.block::<S, 1, V>(s, row, column),
                2 => self.block::<S, 2, V>(s, row, column),
                3 => self.block::<S, 3, V>(s, row, column),
                _ => {}
            }
        }
    }
}

/// Adds a product to a register block.
///
/// # Safety
/// As [`Fused::run`].
#[inline(always)]
unsafe fn accumulate<S: Simd, const R: usize, const V: usize>(
    s: S,
    product: &Product,
    row: usize,
    column: usize,
    sums: &mut [[S::F; V]; R],
) {
    let (begin, end) = match product.inner {
        Inner::Full(len) => (0, len),
        Inner::UpToRow(len) => (0, len.min(row + R)),
        Inner::FromRow(len) => (row.min(len), len),
    };
    // SAFETY: promised by the caller of `run`.
    unsafe {
        let mut left = product.left.add(row * product.left_row + begin * product.left_column);
        let mut right = product.right.add(begin * product.right_row + column);
        let mut local = *sums;
        for _ in begin..end {
            let mut vectors = [s.zero(); V];
            for v in 0..V {
                vectors[v] = s.load(right.add(v * S::LANES));
            }
            for r in 0..R {
                let factor = s.splat(*left.add(r * product.left_row));
                for v in 0..V {
                    local[r][v] = s.fma(factor, vectors[v], local[r][v]);
                }
            }
            left = left.wrapping_add(product.left_column);
            right = right.wrapping_add(product.right_row);
        }
        *sums = local;
    }
}

impl Kernel for Fused {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: promised by the caller of `Fused::run`, the only place that dispatches.
        unsafe {
            if let Some(dots) = &self.dots {
                std::slice::from_raw_parts_mut(dots.dots, self.rows).fill(0.0);
            }
            let mut column = 0;
            while column + 2 * S::LANES <= self.columns {
                self.stripe::<S, 2>(s, column);
                column += 2 * S::LANES;
            }
            if column < self.columns {
                self.stripe::<S, 1>(s, column);
            }
        }
    }
}
