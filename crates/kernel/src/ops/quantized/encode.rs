//! f32 to blocks.
//!
//! Q8_0 and Q4_0 give the bytes of the formats' reference quantisers (round to nearest with halves
//! away from zero; the scale of Q4_0 takes the sign of the largest element). Q4_K is fitted by least
//! squares: every 32 weights get a scale and a minimum from a search over candidate grids, the eight
//! pairs are rounded to six bits, and the two common factors are then fitted to all 256 weights. Its sums
//! run in eight lanes, so that they become vectors and are the same with every instruction set.

use super::BlockType;
use super::reference::six_bits;
use danaus_runtime::simd::{Kernel, Simd, dispatch};
use danaus_tensor::{Error, Result};
use half::f16;

/// Types that [`encode_block`] writes.
pub const ENCODED: [BlockType; 3] = [BlockType::Q8_0, BlockType::Q4_0, BlockType::Q4K];

/// Refuses types that cannot be written.
pub(super) fn check(kind: BlockType) -> Result<()> {
    if ENCODED.contains(&kind) {
        return Ok(());
    }
    let valid = ENCODED.map(BlockType::name).join(", ");
    Err(Error::argument("quantize", "block_type", kind, valid))
}

/// Encodes one block; false when a scale is not finite in f16 (elements that are NaN, infinite, or
/// beyond what the format holds).
///
/// # Panics
/// If the lengths are not those of the type, or the type is not among [`ENCODED`].
pub fn encode_block(kind: BlockType, x: &[f32], block: &mut [u8]) -> bool {
    assert!(x.len() == kind.block_len() && block.len() == kind.block_bytes(), "one block");
    dispatch(Encode { kind, x, block })
}

struct Encode<'a> {
    kind: BlockType,
    x: &'a [f32],
    block: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Out = bool;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        let Self { kind, x, block } = self;
        if x.iter().any(|value| !value.is_finite()) {
            return false;
        }
        match kind {
            BlockType::Q8_0 => q8_0(x, block),
            BlockType::Q4_0 => q4_0(x, block),
            BlockType::Q4K => q4_k(x, block),
            other => panic!("{other} has no encoder"),
        }
    }
}

/// Lanes of sums.
const LANES: usize = 8;

/// Adds lanes in pairs.
#[inline(always)]
fn add_up(mut sums: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// 1.5 * 2^23: added to a small number and taken away again it leaves the nearest integer.
const MAGIC: f32 = 12_582_912.0;

/// Writes an f16; whether it is finite.
fn put(block: &mut [u8], at: usize, value: f32) -> bool {
    let half = f16::from_f32(value);
    block[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.is_finite()
}

/// 1 / d, or 0 for 0.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

#[inline(always)]
fn q8_0(x: &[f32], block: &mut [u8]) -> bool {
    let largest = x.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let d = largest / 127.0;
    let factor = inverse(d);
    for (code, value) in block[2..].iter_mut().zip(x) {
        // `f32::round` takes halves away from zero, as the reference does.
        *code = (value * factor).round() as i8 as u8;
    }
    put(block, 0, d)
}

#[inline(always)]
fn q4_0(x: &[f32], block: &mut [u8]) -> bool {
    // The first of the largest magnitudes decides the sign.
    let largest = x.iter().fold(0f32, |a, &b| if b.abs() > a.abs() { b } else { a });
    let d = largest / -8.0;
    let factor = inverse(d);
    // One rounding of the product and the sum together: the product is exact in f64.
    let code = |value: f32| {
        let shifted = (f64::from(value) * f64::from(factor) + 8.5) as f32;
        (shifted as u8).min(15)
    };
    for j in 0..16 {
        block[2 + j] = code(x[j]) | code(x[j + 16]) << 4;
    }
    put(block, 0, d)
}

/// A grid `scale q - min` with q in 0..=15 and both numbers at least 0.
#[derive(Clone, Copy)]
struct Grid {
    scale: f32,
    min: f32,
}

impl Grid {
    /// The code of x; `inverse` is that of the scale.
    #[inline(always)]
    fn code(self, x: f32, inverse: f32) -> f32 {
        let code = ((x + self.min) * inverse).clamp(0.0, 15.0);
        (code + MAGIC) - MAGIC
    }

    #[inline(always)]
    fn error(self, x: &[f32]) -> f32 {
        let (inverse, mut sums) = (inverse(self.scale), [0f32; LANES]);
        for x in x.as_chunks::<LANES>().0 {
            for i in 0..LANES {
                let off = self.scale * self.code(x[i], inverse) - self.min - x[i];
                sums[i] += off * off;
            }
        }
        add_up(sums)
    }

    /// The best grid for the codes that this one gives.
    #[inline(always)]
    fn refitted(self, x: &[f32]) -> Self {
        let (n, inverse) = (x.len() as f32, inverse(self.scale));
        let mut sums = [[0f32; LANES]; 4];
        for x in x.as_chunks::<LANES>().0 {
            for i in 0..LANES {
                let q = self.code(x[i], inverse);
                sums[0][i] += q;
                sums[1][i] += q * q;
                sums[2][i] += x[i];
                sums[3][i] += q * x[i];
            }
        }
        let [q1, q2, x1, qx] = [sums[0], sums[1], sums[2], sums[3]].map(add_up);
        let determinant = n * q2 - q1 * q1;
        if determinant > 0.0 {
            let scale = (n * qx - q1 * x1) / determinant;
            let min = (q1 * scale - x1) / n;
            if scale > 0.0 && min >= 0.0 {
                return Self { scale, min };
            }
        }
        // No minimum: one number is left.
        let scale = if q2 > 0.0 { (qx / q2).max(0.0) } else { 0.0 };
        Self { scale, min: 0.0 }
    }

    /// Searches grids around the range of the values.
    #[inline(always)]
    fn fit(x: &[f32]) -> Self {
        let low = x.iter().fold(0f32, |low, &value| low.min(value));
        let high = x.iter().fold(low, |high, &value| high.max(value));
        let mut best = Self { scale: (high - low) / 15.0, min: -low };
        let mut least = best.error(x);
        for step in 0..=20 {
            // Slightly narrower and wider grids: 15 codes over 13.5 to 16.5 steps.
            let scale = (high - low) / (13.5 + 0.15 * step as f32);
            let grid = Self { scale, min: -low }.refitted(x);
            let error = grid.error(x);
            if error < least {
                (best, least) = (grid, error);
            }
        }
        best
    }
}

/// The sixteen numbers of a block of Q4_K: `d sc[k] q - dmin m[k]`.
#[derive(Clone, Copy)]
struct Scales {
    d: f32,
    dmin: f32,
    sc: [u8; 8],
    m: [u8; 8],
}

impl Scales {
    #[inline(always)]
    fn grid(&self, k: usize) -> Grid {
        Grid { scale: self.d * f32::from(self.sc[k]), min: self.dmin * f32::from(self.m[k]) }
    }

    #[inline(always)]
    fn error(&self, x: &[f32]) -> f32 {
        let mut sum = 0.0;
        for (k, x) in x.chunks_exact(32).enumerate() {
            sum += self.grid(k).error(x);
        }
        sum
    }

    /// Factors for these grids, rounded to f16 as they will be stored.
    fn of(grids: &[Grid; 8]) -> Self {
        let stored = |value: f32| f16::from_f32(value / 63.0).to_f32();
        let d = stored(grids.iter().fold(0f32, |most, grid| most.max(grid.scale)));
        let dmin = stored(grids.iter().fold(0f32, |most, grid| most.max(grid.min)));
        let six = |value: f32, d: f32| (value * inverse(d)).round().min(63.0) as u8;
        let sc = std::array::from_fn(|k| six(grids[k].scale, d));
        let m = std::array::from_fn(|k| six(grids[k].min, dmin));
        Self { d, dmin, sc, m }
    }

    /// The best d and dmin for the codes that this one gives.
    #[inline(always)]
    fn refitted(&self, x: &[f32]) -> Self {
        // Least squares of d a - dmin b = x with a = sc q and b = m.
        let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0f64, 0f64, 0f64, 0f64, 0f64);
        for (k, part) in x.chunks_exact(32).enumerate() {
            let (grid, b) = (self.grid(k), f64::from(self.m[k]));
            let inverse = inverse(grid.scale);
            for &x in part {
                let code = f64::from(grid.code(x, inverse));
                let (a, x) = (f64::from(self.sc[k]) * code, f64::from(x));
                (aa, ab, bb) = (aa + a * a, ab + a * b, bb + b * b);
                (ax, bx) = (ax + a * x, bx + b * x);
            }
        }
        let determinant = aa * bb - ab * ab;
        let (d, dmin) = if determinant > 1e-9 * aa * bb {
            ((bb * ax - ab * bx) / determinant, (ab * ax - aa * bx) / determinant)
        } else if aa > 0.0 {
            (ax / aa, 0.0)
        } else {
            return *self;
        };
        if d <= 0.0 || dmin < 0.0 {
            return *self;
        }
        let stored = |value: f64| f16::from_f64(value).to_f32();
        Self { d: stored(d), dmin: stored(dmin), ..*self }
    }
}

#[inline(always)]
fn q4_k(x: &[f32], block: &mut [u8]) -> bool {
    let mut grids = [Grid { scale: 0.0, min: 0.0 }; 8];
    for (grid, x) in grids.iter_mut().zip(x.chunks_exact(32)) {
        *grid = Grid::fit(x);
    }
    let mut scales = Scales::of(&grids);
    let mut least = scales.error(x);
    for _ in 0..3 {
        let next = scales.refitted(x);
        let error = next.error(x);
        if error >= least || error.is_nan() {
            break;
        }
        (scales, least) = (next, error);
    }
    let finite = put(block, 0, scales.d) & put(block, 2, scales.dmin);
    let s = &mut block[4..16];
    for k in 0..4 {
        s[k] = scales.sc[k] | scales.sc[k + 4] >> 4 << 6;
        s[k + 4] = scales.m[k] | scales.m[k + 4] >> 4 << 6;
        s[k + 8] = (scales.sc[k + 4] & 15) | scales.m[k + 4] << 4;
    }
    debug_assert!((0..8).all(|k| six_bits(s, k) == (scales.sc[k], scales.m[k])));
    for (k, x) in x.chunks_exact(32).enumerate() {
        let grid = scales.grid(k);
        let (inverse, bytes) = (inverse(grid.scale), &mut block[16 + 32 * (k / 2)..][..32]);
        for (byte, &x) in bytes.iter_mut().zip(x) {
            let code = grid.code(x, inverse) as u8;
            *byte = if k % 2 == 0 { code } else { *byte | code << 4 };
        }
    }
    finite
}
