//! Kronecker-sparse patterns, and the steps of a product of such factors.

use danaus_tensor::{Error, Result};

/// The support of a Kronecker-sparse factor: `I_a (x) ones(b, c) (x) I_d`, a matrix of `a b d` rows
/// and `a c d` columns made of `a d` dense blocks of `b x c`.
///
/// Block `g = i d + j` joins the rows `(i b + p) d + j` with the columns `(i c + q) d + j`. Values
/// are stored block by block, `[a d, b, c]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    /// Copies along the diagonal.
    pub a: usize,
    /// Rows of a block.
    pub b: usize,
    /// Columns of a block.
    pub c: usize,
    /// Distance between neighbouring rows (and columns) of a block.
    pub d: usize,
}

impl Pattern {
    /// The pattern of four numbers.
    pub const fn new(a: usize, b: usize, c: usize, d: usize) -> Self {
        Self { a, b, c, d }
    }

    /// The pattern of the butterfly factor of a stride: pairs `(p, p + stride)` of `n` points.
    pub const fn butterfly(n: usize, stride: usize) -> Self {
        Self::new(n / (2 * stride), 2, 2, stride)
    }

    /// Rows of the factor.
    pub const fn rows(self) -> usize {
        self.a * self.b * self.d
    }

    /// Columns of the factor.
    pub const fn cols(self) -> usize {
        self.a * self.c * self.d
    }

    /// Dense blocks.
    pub const fn blocks(self) -> usize {
        self.a * self.d
    }

    /// Stored numbers.
    pub const fn parameters(self) -> usize {
        self.blocks() * self.b * self.c
    }

    /// The pattern of the transposed factor, whose blocks are transposed too.
    pub const fn transposed(self) -> Self {
        Self::new(self.a, self.c, self.b, self.d)
    }

    /// `I_times (x)` this.
    pub const fn repeated(self, times: usize) -> Self {
        Self::new(self.a * times, self.b, self.c, self.d)
    }

    /// This `(x) I_times`.
    pub const fn spread(self, times: usize) -> Self {
        Self::new(self.a, self.b, self.c, self.d * times)
    }

    /// The number of elements, refused where it is zero or overflows.
    ///
    /// # Errors
    /// Naming the pattern.
    pub fn check(self, op: &'static str) -> Result<Self> {
        let Self { a, b, c, d } = self;
        let product = [a, b, c, d].iter().try_fold(1usize, |all, &part| all.checked_mul(part));
        if product.is_none_or(|product| product == 0) {
            let valid = "four numbers of at least 1 whose product fits the address space";
            return Err(Error::argument(op, "pattern", format!("({a}, {b}, {c}, {d})"), valid));
        }
        Ok(self)
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({}, {}, {}, {})", self.a, self.b, self.c, self.d)
    }
}

/// One factor of a product, and where its values lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// The pattern of the values as they are stored.
    pub pattern: Pattern,
    /// Whether the factor's transpose is meant: an address pattern, nothing is moved.
    pub transposed: bool,
    /// Which tensor holds the values.
    pub source: usize,
    /// Position of the first value in that tensor.
    pub offset: usize,
}

impl Step {
    /// A factor with a tensor of its own.
    pub const fn new(pattern: Pattern, source: usize) -> Self {
        Self { pattern, transposed: false, source, offset: 0 }
    }

    /// The transposed factor over the same values.
    pub const fn flipped(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// The blocks as they are applied.
    pub const fn blocks(&self) -> Blocks {
        let Pattern { a, b, c, d } = self.pattern;
        match self.transposed {
            false => Blocks { a, d, rows: b, cols: c, row_stride: c, col_stride: 1 },
            true => Blocks { a, d, rows: c, cols: b, row_stride: 1, col_stride: c },
        }
    }

    /// Rows of the factor as it is applied.
    pub const fn rows(&self) -> usize {
        if self.transposed { self.pattern.cols() } else { self.pattern.rows() }
    }

    /// Columns of the factor as it is applied.
    pub const fn cols(&self) -> usize {
        if self.transposed { self.pattern.rows() } else { self.pattern.cols() }
    }

    /// Positions of the values in their tensor.
    pub const fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.pattern.parameters()
    }
}

/// Blocks of a step: element (p, q) of block g lies at `g rows cols + p row_stride + q col_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// Copies along the diagonal.
    pub a: usize,
    /// Distance between neighbouring rows and columns.
    pub d: usize,
    /// Outputs of a block.
    pub rows: usize,
    /// Inputs of a block.
    pub cols: usize,
    /// Between elements of a column of a block.
    pub row_stride: usize,
    /// Between elements of a row of a block.
    pub col_stride: usize,
}

impl Blocks {
    /// Numbers of a block.
    pub const fn elems(&self) -> usize {
        self.rows * self.cols
    }

    /// First row, first column and first value of block `g`.
    pub const fn start(&self, g: usize) -> (usize, usize, usize) {
        let (i, j) = (g / self.d, g % self.d);
        (i * self.rows * self.d + j, i * self.cols * self.d + j, g * self.elems())
    }

    /// Number of blocks.
    pub const fn count(&self) -> usize {
        self.a * self.d
    }
}
