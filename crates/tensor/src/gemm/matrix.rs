//! Raw strided matrices.

use std::ops::Range;

/// A matrix to read. Strides count elements and may be zero or negative.
#[derive(Debug)]
pub struct Mat<T> {
    /// Element (0, 0).
    pub ptr: *const T,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub row_stride: isize,
    /// Elements from one column to the next.
    pub col_stride: isize,
}

/// A matrix to write; as [`Mat`].
#[derive(Debug)]
pub struct MatMut<T> {
    /// Element (0, 0).
    pub ptr: *mut T,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub row_stride: isize,
    /// Elements from one column to the next.
    pub col_stride: isize,
}

macro_rules! common {
    ($matrix:ident, $pointer:ty) => {
        impl<T> Clone for $matrix<T> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<T> Copy for $matrix<T> {}

        // SAFETY: this is a description; whoever follows the pointer promises, in an `unsafe` block,
        // that no other thread writes the same elements.
        unsafe impl<T: Send> Send for $matrix<T> {}
        // SAFETY: as above.
        unsafe impl<T: Sync> Sync for $matrix<T> {}

        impl<T> $matrix<T> {
            /// A contiguous matrix, one row after another.
            pub fn row_major(ptr: $pointer, rows: usize, cols: usize) -> Self {
                Self { ptr, rows, cols, row_stride: cols as isize, col_stride: 1 }
            }

            /// The transposed matrix over the same memory.
            pub fn transposed(self) -> Self {
                Self {
                    ptr: self.ptr,
                    rows: self.cols,
                    cols: self.rows,
                    row_stride: self.col_stride,
                    col_stride: self.row_stride,
                }
            }

            /// The same shape and strides, `elements` further in memory.
            pub fn moved(self, elements: isize) -> Self {
                Self { ptr: self.ptr.wrapping_offset(elements), ..self }
            }

            /// Address of one element.
            ///
            /// # Safety
            /// The element exists.
            pub(super) unsafe fn at(&self, row: usize, col: usize) -> $pointer {
                let offset = row as isize * self.row_stride + col as isize * self.col_stride;
                // SAFETY: promised by the caller.
                unsafe { self.ptr.offset(offset) }
            }

            /// A block of the matrix.
            ///
            /// # Safety
            /// The ranges lie in the matrix.
            pub(super) unsafe fn narrow(&self, rows: Range<usize>, cols: Range<usize>) -> Self {
                // SAFETY: promised by the caller.
                let ptr = unsafe { self.at(rows.start, cols.start) };
                Self { ptr, rows: rows.len(), cols: cols.len(), ..*self }
            }
        }
    };
}

common!(Mat, *const T);
common!(MatMut, *mut T);

impl<T> MatMut<T> {
    /// The same matrix to read.
    pub fn as_mat(&self) -> Mat<T> {
        Mat {
            ptr: self.ptr,
            rows: self.rows,
            cols: self.cols,
            row_stride: self.row_stride,
            col_stride: self.col_stride,
        }
    }
}
