//! Moving elements on a GPU: bits of one size, through the strided kernel of formulas; transpositions
//! through tiles.

use super::super::elementwise::cuda::{Operand, merge, pointwise};
use super::super::expr::Statements;
use crate::cuda::{SCALAR, bits_type};
use crate::{Element, Error, Result, Tensor};
use danaus_runtime::cuda::{Argument, Defines, Header, Launch, Source, Variant};

const HEADERS: &[Header] = &[SCALAR];
static SOURCE: Source = Source::new("copy.cuh", include_str!("copy.cuh"), HEADERS);

/// Shortest side that is worth tiles.
const SHORT: usize = 16;

/// The kernel's `Turn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    rows: i64,
    cols: i64,
    row_tiles: i64,
    col_tiles: i64,
    from_col: i64,
    to_row: i64,
    sizes: [i64; 6],
    from: [i64; 6],
    to: [i64; 6],
}

// SAFETY: plain numbers in the order of the kernel's struct.
unsafe impl Argument for Turn {}

impl Turn {
    /// Neighbours that can be moved at once: up to 8 bytes.
    fn pack(&self, size: usize, addresses: [u64; 2]) -> usize {
        let sides = [self.rows, self.cols, self.from_col, self.to_row];
        let fits = |pack: usize| {
            let divides = |value: &i64| value % pack as i64 == 0;
            sides.iter().chain(&self.from).chain(&self.to).all(divides)
                && addresses.iter().all(|address| address.is_multiple_of((size * pack) as u64))
        };
        [4, 2].into_iter().find(|&pack| pack * size <= 8 && fits(pack)).unwrap_or(1)
    }
}

fn defines(kind: &str, pack: usize) -> Defines {
    Defines::new().set("BITS", kind).set("PACK", pack)
}

/// The transposition that a copy to row-major order is, if it is one, and its blocks.
fn turn(shape: &[usize], strides: &[isize], size: usize) -> Option<(Turn, usize)> {
    let (dims, mut strides) = merge(shape, &[strides.to_vec()]);
    let (last, strides) = (dims.len() - 1, strides.pop()?);
    let axis = strides.iter().position(|&stride| stride == 1)?;
    let apart = strides[last] != 0 && strides[last] != 1;
    if !apart || dims[axis] < SHORT || dims[last] < SHORT || dims.len() > 8 {
        return None;
    }
    let tile = if size <= 4 { 64 } else { 32 };
    let step = |axis: usize| dims[axis + 1..].iter().product::<usize>() as i64;
    let (rows, cols) = (dims[axis], dims[last]);
    let (row_tiles, col_tiles) = (rows.div_ceil(tile), cols.div_ceil(tile));
    let mut turn = Turn {
        rows: rows as i64,
        cols: cols as i64,
        row_tiles: row_tiles as i64,
        col_tiles: col_tiles as i64,
        from_col: strides[last] as i64,
        to_row: step(axis),
        sizes: [1; 6],
        from: [0; 6],
        to: [0; 6],
    };
    let mut blocks = row_tiles * col_tiles;
    let others = (0..last).filter(|&other| other != axis);
    let count = others.clone().count();
    for (place, other) in others.enumerate() {
        let place = 6 - count + place;
        turn.sizes[place] = dims[other] as i64;
        turn.from[place] = strides[other] as i64;
        turn.to[place] = step(other);
        blocks *= dims[other];
    }
    Some((turn, blocks))
}

/// Copies `x`, of any layout, to the fresh tensor `out` of the same shape and dtype.
pub(crate) fn contiguous_into(x: &Tensor, out: &mut Tensor) -> Result<()> {
    let (kind, shape, gpu) = (bits_type(x.dtype()), x.shape().clone(), x.gpu()?.clone());
    if x.elem_count() > 0
        && let Some((turn, blocks)) = turn(&shape, x.strides(), x.dtype().size())
        && let Ok(blocks) = u32::try_from(blocks)
    {
        let (from, to) = (x.device_address()?, out.device_address_mut()?);
        let pack = turn.pack(x.dtype().size(), [from, to]);
        let kernel = gpu.kernel(&SOURCE, "transpose", &defines(kind, pack))?;
        // SAFETY: the turn visits every element of `x` and its place in the fresh `out` once.
        return Ok(unsafe { kernel.launch(&Launch::linear(blocks, 256), &[&from, &to, &turn])? });
    }
    let inputs = [Operand::input(x, &shape, kind)?];
    let outputs = [Operand::output(out, kind)?];
    pointwise("contiguous", &gpu, kind, &Statements::copy(), &shape, &outputs, &inputs)
}

/// Copies `part` into the positions from `first` on along `dim` of the fresh tensor `out`.
pub(crate) fn place(part: &Tensor, out: &mut Tensor, dim: usize, first: usize) -> Result<()> {
    let (kind, shape, gpu) = (bits_type(part.dtype()), part.shape().clone(), part.gpu()?.clone());
    let inputs = [Operand::input(part, &shape, kind)?];
    let outputs = [Operand::part(out, kind, dim, first)?];
    pointwise("cat", &gpu, kind, &Statements::copy(), &shape, &outputs, &inputs)
}

/// The bits of an element, for types of up to 8 bytes.
fn bits<T: Element>(op: &'static str, value: T) -> Result<u64> {
    let size = size_of::<T>();
    if size > 8 {
        return Err(Error::not_on_cuda(op, T::DTYPE));
    }
    let mut bytes = [0u8; 8];
    // SAFETY: an element is plain data of `size` bytes, at most 8.
    unsafe {
        std::ptr::copy_nonoverlapping((&raw const value).cast(), bytes.as_mut_ptr(), size);
    }
    Ok(u64::from_le_bytes(bytes))
}

/// Sets the positions `range` along `dim` of the fresh tensor `out` to `value`.
pub(crate) fn fill<T: Element>(
    out: &mut Tensor,
    dim: usize,
    range: std::ops::Range<usize>,
    value: T,
) -> Result<()> {
    let (kind, gpu) = (bits_type(T::DTYPE), out.gpu()?.clone());
    let mut dims = out.dims().to_vec();
    dims[dim] = range.len();
    let outputs = [Operand::part(out, kind, dim, range.start)?];
    let statements = Statements::constant(bits("pad", value)?);
    pointwise("pad", &gpu, kind, &statements, &dims, &outputs, &[])
}

/// Sets all elements of a fresh tensor.
pub(crate) fn fill_all<T: Element>(out: &mut Tensor, value: T) -> Result<()> {
    let (kind, shape, gpu) = (bits_type(T::DTYPE), out.shape().clone(), out.gpu()?.clone());
    let outputs = [Operand::output(out, kind)?];
    let statements = Statements::constant(bits("full", value)?);
    pointwise("full", &gpu, kind, &statements, &shape, &outputs, &[])
}

/// The kernels that are shipped.
pub(crate) fn variants() -> Vec<Variant> {
    let kinds =
        [("u8", 1), ("u16", 1), ("u16", 4), ("u32", 1), ("u32", 2), ("u64", 1), ("u128", 1)];
    kinds.map(|(kind, pack)| Variant::new(SOURCE.clone(), defines(kind, pack))).to_vec()
}

#[cfg(test)]
mod tests {
    use super::turn;

    #[test]
    fn only_transpositions_go_through_tiles() {
        assert!(turn(&[64, 64], &[64, 1], 4).is_none());
        assert!(turn(&[64, 64], &[0, 1], 4).is_none());
        assert!(turn(&[64, 64], &[128, 2], 4).is_none());
        assert!(turn(&[64, 8], &[1, 64], 4).is_none());
        let (plain, blocks) = turn(&[100, 70], &[1, 100], 2).unwrap();
        assert_eq!((plain.rows, plain.cols, plain.from_col, plain.to_row), (100, 70, 100, 70));
        assert_eq!((blocks, plain.sizes), (4, [1; 6]));
        assert_eq!(plain.pack(2, [256, 512]), 2);
        assert_eq!(plain.pack(2, [258, 512]), 1);
        assert_eq!(plain.pack(8, [256, 512]), 1);
        // Heads of 20 columns beside one another merge with their columns.
        let (merged, blocks) = turn(&[3, 5, 20, 40], &[4000, 20, 1, 100], 8).unwrap();
        assert_eq!((merged.rows, merged.cols), (100, 40));
        assert_eq!((merged.sizes[5], merged.from[5], merged.to[5]), (3, 4000, 4000));
        assert_eq!(blocks, 4 * 2 * 3);
        let (apart, blocks) = turn(&[3, 5, 20, 40], &[8000, 1600, 1, 20], 8).unwrap();
        assert_eq!((apart.rows, apart.cols, apart.to_row), (20, 40, 40));
        assert_eq!((apart.sizes[5], apart.from[5], apart.to[5]), (15, 1600, 800));
        assert_eq!(blocks, 2 * 15);
    }
}
