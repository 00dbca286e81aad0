//! Packing: copies a strip of an operand into a panel that a register tile reads front to back.
//!
//! A panel holds `width` lanes (rows of A or columns of B) for every unit of k:
//! `panel[unit][lane]`. A unit is one element, or, for the bf16 pair instruction, the elements
//! `2u` and `2u + 1` of k side by side. Lanes beyond the matrix are zero; an odd last element of k is
//! paired with zero.

use half::{bf16, f16};

/// One strip to pack.
pub struct Pack {
    /// Element at lane 0, k 0.
    pub source: *const u8,
    /// Elements between lanes.
    pub lane_stride: isize,
    /// Elements between successive k.
    pub depth_stride: isize,
    /// Lanes that exist, at most `width`.
    pub lanes: usize,
    /// Lanes of the panel.
    pub width: usize,
    /// Elements of k.
    pub depth: usize,
    /// The panel.
    pub panel: *mut u8,
}

/// One compiled packing routine.
pub type PackFn = unsafe fn(&Pack);

/// How elements become units.
pub trait Packer {
    /// Element of the matrix.
    type Source: Copy + Default;
    /// Element of the panel.
    type Unit: Copy + Default;
    /// Elements of k in a unit: 1 or 2.
    const DEPTH: usize;
    /// Joins the elements of a unit; `second` is ignored when `DEPTH` is 1.
    fn unit(first: Self::Source, second: Self::Source) -> Self::Unit;
}

/// Units are the elements.
pub struct Same<T>(T);
/// bf16 widened to f32.
pub struct Widen;
/// f16 widened to f32.
pub struct WidenHalf;
/// Two bf16 of successive k, the first in the low half.
pub struct Pair;

impl<T: Copy + Default> Packer for Same<T> {
    type Source = T;
    type Unit = T;
    const DEPTH: usize = 1;
    #[inline(always)]
    fn unit(first: T, _: T) -> T {
        first
    }
}

impl Packer for Widen {
    type Source = bf16;
    type Unit = f32;
    const DEPTH: usize = 1;
    #[inline(always)]
    fn unit(first: bf16, _: bf16) -> f32 {
        f32::from_bits(u32::from(first.to_bits()) << 16)
    }
}

/// 2^112: the difference between the exponent offsets of f32 and f16.
const HALF_OFFSET: f32 = f32::from_bits((112 + 127) << 23);

impl Packer for WidenHalf {
    type Source = f16;
    type Unit = f32;
    const DEPTH: usize = 1;
    /// Without branches or calls, so that loops over it become vectors. Subnormals come out right by
    /// the multiplication; infinities and NaN keep their highest exponent.
    #[inline(always)]
    fn unit(first: f16, _: f16) -> f32 {
        let bits = u32::from(first.to_bits());
        let (sign, magnitude) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
        let finite = (f32::from_bits(magnitude) * HALF_OFFSET).to_bits();
        let special = magnitude | 0x7f80_0000;
        let value = if magnitude >= 0x7c00 << 13 { special } else { finite };
        f32::from_bits(value | sign)
    }
}

impl Packer for Pair {
    type Source = bf16;
    type Unit = u32;
    const DEPTH: usize = 2;
    #[inline(always)]
    fn unit(first: bf16, second: bf16) -> u32 {
        u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16
    }
}

/// Packs from unit `first_unit` on, element by element.
///
/// # Safety
/// `request` describes readable elements and a writable panel of `P`'s types.
#[inline(always)]
pub unsafe fn scalar<P: Packer>(request: &Pack, first_unit: usize) {
    let source = request.source.cast::<P::Source>();
    let panel = request.panel.cast::<P::Unit>();
    let zero = P::Source::default();
    for unit in first_unit..request.depth.div_ceil(P::DEPTH) {
        let k = unit * P::DEPTH;
        let paired = P::DEPTH == 2 && k + 1 < request.depth;
        // SAFETY: `k < depth` and lanes below `lanes` exist; the panel holds `width` lanes a unit.
        unsafe {
            let row = panel.add(unit * request.width);
            for lane in 0..request.lanes {
                let at = lane as isize * request.lane_stride + k as isize * request.depth_stride;
                let first = source.offset(at).read();
                let second =
                    if paired { source.offset(at + request.depth_stride).read() } else { zero };
                row.add(lane).write(P::unit(first, second));
            }
            for lane in request.lanes..request.width {
                row.add(lane).write(P::Unit::default());
            }
        }
    }
}

/// Packs a strip whose lanes are neighbours in memory, `LANES` at a time; returns the units done.
///
/// Handles full panels only (`lanes == width == LANES`) and leaves an odd last k to [`scalar`].
///
/// # Safety
/// As [`scalar`]; moreover `lane_stride == 1`.
#[inline(always)]
pub unsafe fn neighbours<P: Packer, const LANES: usize>(request: &Pack) -> usize {
    let source = request.source.cast::<P::Source>();
    let panel = request.panel.cast::<[P::Unit; LANES]>();
    let units = request.depth / P::DEPTH;
    for unit in 0..units {
        // SAFETY: both rows of k exist with `LANES` elements; the panel has room for all units.
        unsafe {
            let first = source.offset((unit * P::DEPTH) as isize * request.depth_stride);
            let second = first.offset((P::DEPTH - 1) as isize * request.depth_stride);
            let first = first.cast::<[P::Source; LANES]>().read_unaligned();
            let second = second.cast::<[P::Source; LANES]>().read_unaligned();
            let mut joined = [P::Unit::default(); LANES];
            for lane in 0..LANES {
                joined[lane] = P::unit(first[lane], second[lane]);
            }
            panel.add(unit).write_unaligned(joined);
        }
    }
    units
}
