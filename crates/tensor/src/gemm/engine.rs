//! The register tile: `rows` rows of A against `cols` columns of B, summed over one block of k.
//!
//! A tile keeps `rows * cols` sums in registers. A step along k loads one row of B (a few vectors)
//! and one broadcast value per row of A, so that a 14 x 32 tile needs 16 loads for 28 vector
//! multiply-adds. The code is written once against [`Engine`] and compiled per instruction set.
//!
//! Every sum runs over k in increasing order from zero, whatever the tile's height and wherever the
//! element lies in it. That is what makes a row of C independent of the other rows.

use super::pack::PackFn;
#[cfg(target_arch = "x86_64")]
use super::skinny::SkinnyFn;

/// Arguments of one register tile. `a` points at `depth` groups of row values, `b` at `depth` rows.
pub struct Tile<Acc> {
    /// Steps along k (pairs of k for paired bf16).
    pub depth: usize,
    /// First value of A; row `i` of step `d` lies `i` units plus `d * a_step` bytes further.
    pub a: *const u8,
    /// Bytes from one step of A to the next.
    pub a_step: isize,
    /// First value of B; column `j` of step `d` lies `j` units plus `d * b_step` bytes further.
    pub b: *const u8,
    /// Bytes from one step of B to the next.
    pub b_step: isize,
    /// Where the sums go, row-major.
    pub c: *mut Acc,
    /// Elements from one row of sums to the next.
    pub c_stride: isize,
    /// Whether to add to what is there instead of overwriting it.
    pub accumulate: bool,
}

/// One compiled register tile.
pub type TileFn<Acc> = unsafe fn(&Tile<Acc>);

/// What the blocked loops need to know of an instruction set and a pair of element types.
#[derive(Clone, Copy)]
pub struct Kernels<Acc: 'static> {
    /// Register tiles for the general case.
    pub micro: Micro<Acc>,
    /// Wide register tiles for few rows and B in place: longer runs of memory.
    pub wide: Micro<Acc>,
    /// Elements of k in one packed unit.
    pub depth_per_unit: usize,
    /// How A is read.
    pub a: Side,
    /// How B is read.
    pub b: Side,
}

/// How one operand reaches the register tiles.
#[derive(Clone, Copy)]
pub struct Side {
    /// Packs lanes into panels.
    pub pack: PackFn,
    /// Elements are units, so that the operand can be read in place where lanes are neighbours.
    pub direct: bool,
    /// Routines that multiply few rows by this operand in place where its k is contiguous.
    #[cfg(target_arch = "x86_64")]
    pub skinny: &'static [SkinnyFn],
}

/// Register tiles of one instruction set.
#[derive(Clone, Copy)]
pub struct Micro<Acc: 'static> {
    /// Columns of every tile in `tiles`.
    pub cols: usize,
    /// Tiles of height 1, 2, 3, ...
    pub tiles: &'static [TileFn<Acc>],
    /// Bytes of one packed unit.
    pub unit_bytes: usize,
    /// Units of k that one block of packed panels may span.
    pub max_depth: usize,
}

/// Vector arithmetic of one instruction set and unit type.
///
/// # Safety of all methods
/// The processor has the instruction set, and pointers are valid for one vector (one unit for
/// `splat`). Nothing needs alignment.
#[allow(clippy::missing_safety_doc)]
pub trait Engine {
    /// Type of the sums.
    type Acc: Copy;
    /// One vector of operands.
    type Operand: Copy;
    /// One vector of sums.
    type Sum: Copy;
    /// Sums in a vector.
    const LANES: usize;
    /// Bytes of a unit.
    const UNIT_BYTES: usize;

    /// Asks for a cache line; the address need not be valid.
    fn prefetch(_address: *const u8) {}
    unsafe fn zero() -> Self::Sum;
    unsafe fn load(from: *const u8) -> Self::Operand;
    unsafe fn splat(from: *const u8) -> Self::Operand;
    unsafe fn multiply_add(a: Self::Operand, b: Self::Operand, sum: Self::Sum) -> Self::Sum;
    unsafe fn add_to(to: *mut Self::Acc, sum: Self::Sum);
    unsafe fn store(to: *mut Self::Acc, sum: Self::Sum);
}

/// Steps along k that B is fetched ahead.
const ROWS_AHEAD: isize = 8;

/// The register tile of `ROWS` rows and `VECTORS` vectors of columns.
///
/// # Safety
/// The pointers of `tile` cover the tile; the processor has the instructions of `E`.
#[inline(always)]
pub unsafe fn multiply<E: Engine, const ROWS: usize, const VECTORS: usize>(tile: &Tile<E::Acc>) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[E::zero(); VECTORS]; ROWS];
        let (mut a, mut b) = (tile.a, tile.b);
        for _ in 0..tile.depth {
            // The rows of a panel follow each other closely, but those of B in place do not.
            for line in 0..(VECTORS * E::LANES * E::UNIT_BYTES).div_ceil(64) {
                E::prefetch(b.wrapping_offset(ROWS_AHEAD * tile.b_step).wrapping_add(line * 64));
            }
            let mut columns = [E::load(b); VECTORS];
            for j in 1..VECTORS {
                columns[j] = E::load(b.add(j * E::LANES * E::UNIT_BYTES));
            }
            for i in 0..ROWS {
                let row = E::splat(a.add(i * E::UNIT_BYTES));
                for j in 0..VECTORS {
                    sums[i][j] = E::multiply_add(row, columns[j], sums[i][j]);
                }
            }
            a = a.offset(tile.a_step);
            b = b.offset(tile.b_step);
        }
        for i in 0..ROWS {
            let row = tile.c.offset(i as isize * tile.c_stride);
            for j in 0..VECTORS {
                let to = row.add(j * E::LANES);
                if tile.accumulate {
                    E::add_to(to, sums[i][j]);
                } else {
                    E::store(to, sums[i][j]);
                }
            }
        }
    }
}
