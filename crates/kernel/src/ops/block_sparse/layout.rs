//! Which blocks of a matrix exist, and the flat block butterfly.

use danaus_tensor::{DType, Error, Result, Tensor};

/// Which blocks of a matrix of `rows x cols` blocks exist, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    cols: usize,
    block: usize,
    /// First block of every row of blocks, and the number of all.
    starts: Vec<usize>,
    /// Column of every block.
    columns: Vec<usize>,
}

/// The flat block butterfly: entry (i, j) of a pattern of `size x size` exists where `i = j` or `i xor j`
/// is one of the `factors` smallest powers of two. It is stretched over the matrix and cut into blocks;
/// a block exists where any of its elements does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlatButterfly {
    /// Rows and columns of the pattern, a power of two from 2 on.
    pub size: usize,
    /// How many strides, 1..=log2(size).
    pub factors: usize,
    /// Rows and columns of a block.
    pub block: usize,
    /// First rows and columns of the matrix that exist as a whole.
    pub global: usize,
    /// Whether columns of the pattern are ordered as (place in a group of `2^factors`, group).
    pub shuffle: bool,
}

impl Layout {
    /// From a mask `[rows, cols]` of blocks.
    ///
    /// # Errors
    /// When the mask has another length, or the block no elements.
    pub fn from_mask(mask: &[bool], [rows, cols]: [usize; 2], block: usize) -> Result<Self> {
        if mask.len() != rows * cols || block == 0 {
            let valid = format!("{rows} x {cols} of them, and blocks of 1 or more rows");
            return Err(Error::argument("block_sparse", "layout", mask.len(), valid));
        }
        let (mut starts, mut columns) = (vec![0], Vec::new());
        for row in 0..rows {
            columns.extend((0..cols).filter(|col| mask[row * cols + col]));
            starts.push(columns.len());
        }
        Ok(Self { cols, block, starts, columns })
    }

    /// From a tensor of bytes or truth values, `[rows, cols]`.
    ///
    /// # Errors
    /// When the shape or dtype is another one.
    pub fn from_tensor(mask: &Tensor, block: usize) -> Result<Self> {
        if !matches!(mask.dtype(), DType::U8 | DType::Bool) {
            return Err(Error::dtype("block_sparse", "layout", mask.dtype(), "u8 or bool"));
        }
        let &[rows, cols] = mask.dims() else {
            let expected = "[rows, cols] of blocks";
            return Err(Error::shape("block_sparse", "layout", mask.shape(), expected));
        };
        let bytes = mask.detach().to_dtype(DType::U8)?.to_vec::<u8>()?;
        let mask: Vec<bool> = bytes.iter().map(|&byte| byte != 0).collect();
        Self::from_mask(&mask, [rows, cols], block)
    }

    /// Rows and columns of a block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Rows of blocks.
    pub fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// Columns of blocks.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of blocks that exist.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Part of the blocks that exists.
    pub fn density(&self) -> f64 {
        self.len() as f64 / (self.rows() * self.cols()).max(1) as f64
    }

    /// Index and column of the blocks of a row of blocks.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        (self.starts[row]..self.starts[row + 1]).map(|index| (index, self.columns[index]))
    }

    /// Row and column of every block, in the order that they are stored in.
    pub fn places(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..self.rows()).flat_map(|row| self.row(row).map(move |(_, col)| (row, col)))
    }

    /// The layout of the transposed matrix, and for each of its blocks the index of the block here.
    pub fn transposed(&self) -> (Layout, Vec<usize>) {
        let (mut starts, mut columns, mut order) = (vec![0], Vec::new(), Vec::new());
        for blocks in self.by_column() {
            for (index, row) in blocks {
                columns.push(row);
                order.push(index);
            }
            starts.push(columns.len());
        }
        (Layout { cols: self.rows(), block: self.block, starts, columns }, order)
    }

    /// Index and row of the blocks of every column of blocks.
    pub(super) fn by_column(&self) -> Vec<Vec<(usize, usize)>> {
        let mut columns = vec![Vec::new(); self.cols];
        for (index, (row, col)) in self.places().enumerate() {
            columns[col].push((index, row));
        }
        columns
    }
}

impl FlatButterfly {
    /// The layout for a matrix of `out x inp` elements, both rounded up to whole blocks.
    ///
    /// # Errors
    /// When the size is no power of two or does not divide the rounded sides, there are more factors
    /// than it has, or `global` exceeds the smaller side.
    pub fn layout(&self, out: usize, inp: usize) -> Result<Layout> {
        let Self { size, block, global, .. } = *self;
        let padded = self.check(out, inp)?;
        let pattern = self.pattern();
        let blocks = padded.map(|side| side / block);
        // Rows and columns of the pattern that a block covers a part of.
        let covered = |index: usize, side: usize| {
            let scale = side / size;
            index * block / scale..((index + 1) * block - 1) / scale + 1
        };
        let exists = |at: usize| {
            let (row, col) = (at / blocks[1], at % blocks[1]);
            row * block < global
                || col * block < global
                || covered(row, padded[0])
                    .any(|i| covered(col, padded[1]).any(|j| pattern[i * size + j]))
        };
        let mask: Vec<bool> = (0..blocks[0] * blocks[1]).map(exists).collect();
        Layout::from_mask(&mask, blocks, block)
    }

    /// The pattern of `size x size`.
    fn pattern(&self) -> Vec<bool> {
        let Self { size, factors, .. } = *self;
        let exists =
            |i: usize, j: usize| i == j || ((i ^ j).is_power_of_two() && (i ^ j) < 1 << factors);
        let group = 1 << factors;
        let source = |col: usize| match self.shuffle {
            true => col % (size / group) * group + col / (size / group),
            false => col,
        };
        (0..size * size).map(|at| exists(at / size, source(at % size))).collect()
    }

    /// The sides in whole blocks.
    fn check(&self, out: usize, inp: usize) -> Result<[usize; 2]> {
        const OP: &str = "flat_butterfly";
        let Self { size, factors, block, global, .. } = *self;
        if size < 2 || !size.is_power_of_two() {
            return Err(Error::argument(OP, "size", size, "a power of two from 2 on"));
        }
        let most = size.trailing_zeros() as usize;
        if !(1..=most).contains(&factors) {
            return Err(Error::argument(
                OP,
                "factors",
                factors,
                format!("1..={most} for size {size}"),
            ));
        }
        if block == 0 {
            return Err(Error::argument(OP, "block", block, "1 or more"));
        }
        let padded = [out, inp].map(|side| side.div_ceil(block) * block);
        for (name, side) in [("out", padded[0]), ("in", padded[1])] {
            if side == 0 || !side.is_multiple_of(size) {
                let valid = format!("a divisor of {name} in whole blocks of {block}, {side}");
                return Err(Error::argument(OP, "size", size, valid));
            }
        }
        if global > out.min(inp) {
            let valid = format!("0..={}, the smaller side", out.min(inp));
            return Err(Error::argument(OP, "global", global, valid));
        }
        Ok(padded)
    }
}
