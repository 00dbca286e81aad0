//! Block types as unsigned bytes in lanes of rows, with their scales.

use super::super::BlockType;
use super::lanes::Lanes;

/// Groups of 32 codes, eight vectors each; the second belongs to the next 32 where a type gives two.
pub(super) type Groups<L> = [[<L as Lanes>::I; 8]; 2];

/// Scales of a block in the order of k (one or two every 32), and minima (one every 32).
#[derive(Clone, Copy)]
pub(super) struct Scales<L: Lanes> {
    pub d: [L::F; 16],
    pub m: [L::F; 8],
}

/// One block type: weight = `d (code - OFFSET) + m`.
pub(super) trait Codes: Send + Sync + 'static {
    /// Which.
    const KIND: BlockType;
    /// What was added to make codes unsigned.
    const OFFSET: i32;
    /// Whether codes exceed 127.
    const WIDE: bool = false;
    /// Whether there are minima.
    const MINIMA: bool = false;
    /// Scales in 32 weights, 1 or 2.
    const SCALES: usize = 1;
    /// Groups of 32 that are decoded together, 1 or 2.
    const STEP: usize = 1;

    /// Scales and minima of the blocks at `block + row * stride`.
    ///
    /// # Safety
    /// The blocks exist.
    unsafe fn scales<L: Lanes>(l: L, block: *const u8, stride: usize) -> Scales<L>;

    /// Codes of step `P`.
    ///
    /// # Safety
    /// The blocks exist; `P` is below `block_len / 32 / STEP`.
    unsafe fn codes<L: Lanes, const P: usize>(l: L, block: *const u8, stride: usize) -> Groups<L>;
}

/// Runs `$body` with `$P` bound to every step of a block in turn.
macro_rules! for_steps {
    ($F:ident, $P:ident => $body:expr) => {{
        macro_rules! one {
            ($value:literal) => {{
                const $P: usize = $value;
                $body
            }};
        }
        one!(0);
        if $F::KIND.block_len() == 256 {
            one!(1);
            one!(2);
            one!(3);
            if $F::STEP == 1 {
                one!(4);
                one!(5);
                one!(6);
                one!(7);
            }
        }
    }};
}
pub(super) use for_steps;

/// Runs a block with `$F` bound to the [`Codes`] of a type that has them.
macro_rules! with_codes {
    ($kind:expr, $F:ident => $body:expr, else $other:expr) => {{
        use $crate::ops::quantized::{BlockType, int8::formats};
        match $kind {
            BlockType::Q4_0 => {
                type $F = formats::Q4_0;
                $body
            }
            BlockType::Q4_1 => {
                type $F = formats::Q4_1;
                $body
            }
            BlockType::Q5_0 => {
                type $F = formats::Q5_0;
                $body
            }
            BlockType::Q5_1 => {
                type $F = formats::Q5_1;
                $body
            }
            BlockType::Q8_0 => {
                type $F = formats::Q8_0;
                $body
            }
            BlockType::Q4K => {
                type $F = formats::Q4K;
                $body
            }
            BlockType::Q5K => {
                type $F = formats::Q5K;
                $body
            }
            BlockType::Q6K => {
                type $F = formats::Q6K;
                $body
            }
            _ => $other,
        }
    }};
}
pub(super) use with_codes;

/// The same scale, and minimum, for all that a block of 32 has.
#[inline(always)]
fn plain<L: Lanes>(l: L, d: L::I, m: Option<L::I>) -> Scales<L> {
    let m = m.map_or(l.splat(0.0), |m| l.widen_half(m));
    Scales { d: [l.widen_half(d); 16], m: [m; 8] }
}

/// Low and high nibbles of sixteen bytes a row: 32 codes.
#[inline(always)]
unsafe fn nibbles<L: Lanes>(l: L, from: *const u8, stride: usize) -> [L::I; 8] {
    // SAFETY: promised by the caller: sixteen bytes of every row.
    let packed = unsafe { l.quad(from, stride) };
    let mask = l.splat_i(0x0f0f_0f0f);
    let mut out = [mask; 8];
    for i in 0..4 {
        out[i] = l.and(packed[i], mask);
        out[4 + i] = l.and(l.shr(packed[i], 4), mask);
    }
    out
}

/// Adds 16 to the codes whose bit in `bits` is set, code e with bit e.
#[inline(always)]
fn fifth_bits<L: Lanes>(l: L, mut codes: [L::I; 8], bits: L::I) -> [L::I; 8] {
    // Bit i of four moves to bit 8 i + 4 by a sum of shifts, none of which overlap there.
    let (four, spread) = (l.splat_i(15), l.splat_i(0x0204_0810));
    let fifth = l.splat_i(0x1010_1010);
    for j in 0..8 {
        let own = l.and(l.shr(bits, 4 * j as u32), four);
        codes[j] = l.or(codes[j], l.and(l.mul_i(own, spread), fifth));
    }
    codes
}

/// 32 bytes a row.
#[inline(always)]
unsafe fn bytes<L: Lanes>(l: L, from: *const u8, stride: usize) -> [L::I; 8] {
    // SAFETY: promised by the caller: 32 bytes of every row.
    let ([a, b, c, d], [e, f, g, h]) =
        unsafe { (l.quad(from, stride), l.quad(from.add(16), stride)) };
    [a, b, c, d, e, f, g, h]
}

/// Low and high nibbles of 32 bytes a row, two groups of 32 codes.
#[inline(always)]
unsafe fn nibble_pair<L: Lanes>(l: L, from: *const u8, stride: usize) -> Groups<L> {
    // SAFETY: promised by the caller.
    let packed = unsafe { bytes(l, from, stride) };
    let mask = l.splat_i(0x0f0f_0f0f);
    let mut out = [packed; 2];
    for i in 0..8 {
        out[0][i] = l.and(packed[i], mask);
        out[1][i] = l.and(l.shr(packed[i], 4), mask);
    }
    out
}

/// The scales of Q4_K and Q5_K, eight, and eight negated minima.
#[inline(always)]
unsafe fn six_bits<L: Lanes>(l: L, block: *const u8, stride: usize) -> Scales<L> {
    // SAFETY: promised by the caller: d, dmin and twelve bytes of six-bit numbers.
    let [factors, a, b, c] = unsafe { l.quad(block, stride) };
    let d = l.widen_half(factors);
    let dmin = l.mul(l.splat(-1.0), l.widen_half(l.shr(factors, 16)));
    let (six, four) = (l.splat_i(0x3f3f_3f3f), l.splat_i(0x0f0f_0f0f));
    let two = l.splat_i(0x3030_3030);
    let high = [l.and(l.shr(a, 2), two), l.and(l.shr(b, 2), two)];
    let scales = [l.and(a, six), l.or(l.and(c, four), high[0])];
    let minima = [l.and(b, six), l.or(l.and(l.shr(c, 4), four), high[1])];
    let byte = l.splat_i(255);
    let mut out = Scales { d: [d; 16], m: [dmin; 8] };
    for k in 0..8 {
        let shift = 8 * (k as u32 % 4);
        out.d[k] = l.mul(d, l.to_f(l.and(l.shr(scales[k / 4], shift), byte)));
        out.m[k] = l.mul(dmin, l.to_f(l.and(l.shr(minima[k / 4], shift), byte)));
    }
    out
}

macro_rules! codes {
    ($name:ident, { $($constants:tt)* },
     |$sl:ident, $sblock:ident, $sstride:ident| $scales:expr,
     |$l:ident, $block:ident, $stride:ident, $p:ident| $codes:expr) => {
        pub(super) struct $name;

        // SAFETY of both blocks: the caller promises whole blocks, and all offsets lie in them.
        #[allow(clippy::undocumented_unsafe_blocks, unused_unsafe)]
        impl Codes for $name {
            const KIND: BlockType = BlockType::$name;
            $($constants)*

            #[inline(always)]
            unsafe fn scales<L: Lanes>($sl: L, $sblock: *const u8, $sstride: usize) -> Scales<L> {
                unsafe { $scales }
            }

            #[inline(always)]
            unsafe fn codes<L: Lanes, const P: usize>(
                $l: L,
                $block: *const u8,
                $stride: usize,
            ) -> Groups<L> {
                let $p = P;
                unsafe { $codes }
            }
        }
    };
}

codes!(
    Q4_0,
    {
        const OFFSET: i32 = 8;
    },
    |l, block, stride| plain(l, l.half(block, stride), None),
    |l, block, stride, _p| [nibbles(l, block.add(2), stride); 2]
);

codes!(
    Q4_1,
    {
        const OFFSET: i32 = 0;
        const MINIMA: bool = true;
    },
    |l, block, stride| {
        let both = l.word(block, stride);
        plain(l, both, Some(l.shr(both, 16)))
    },
    |l, block, stride, _p| [nibbles(l, block.add(4), stride); 2]
);

codes!(
    Q5_0,
    {
        const OFFSET: i32 = 16;
    },
    |l, block, stride| plain(l, l.half(block, stride), None),
    |l, block, stride, _p| {
        let low = nibbles(l, block.add(6), stride);
        [fifth_bits(l, low, l.word(block.add(2), stride)); 2]
    }
);

codes!(
    Q5_1,
    {
        const OFFSET: i32 = 0;
        const MINIMA: bool = true;
    },
    |l, block, stride| {
        let both = l.word(block, stride);
        plain(l, both, Some(l.shr(both, 16)))
    },
    |l, block, stride, _p| {
        let low = nibbles(l, block.add(8), stride);
        [fifth_bits(l, low, l.word(block.add(4), stride)); 2]
    }
);

codes!(
    Q8_0,
    {
        const OFFSET: i32 = 128;
        const WIDE: bool = true;
    },
    |l, block, stride| plain(l, l.half(block, stride), None),
    |l, block, stride, _p| {
        let sign = l.splat_i(0x8080_8080_u32 as i32);
        let mut out = bytes(l, block.add(2), stride);
        for i in 0..8 {
            out[i] = l.xor(out[i], sign);
        }
        [out; 2]
    }
);

codes!(
    Q4K,
    {
        const OFFSET: i32 = 0;
        const MINIMA: bool = true;
        const STEP: usize = 2;
    },
    |l, block, stride| six_bits(l, block, stride),
    |l, block, stride, p| nibble_pair(l, block.add(16 + 32 * p), stride)
);

codes!(
    Q5K,
    {
        const OFFSET: i32 = 0;
        const MINIMA: bool = true;
        const STEP: usize = 2;
    },
    |l, block, stride| six_bits(l, block, stride),
    |l, block, stride, p| {
        let mut out = nibble_pair(l, block.add(48 + 32 * p), stride);
        let high = bytes(l, block.add(16), stride);
        let fifth = l.splat_i(0x1010_1010);
        for n in 0..2 {
            // Bit 2 p + n of every byte belongs at bit 4.
            let bit = 2 * p + n;
            for i in 0..8 {
                let moved = match bit < 4 {
                    true => l.shl(high[i], 4 - bit as u32),
                    false => l.shr(high[i], bit as u32 - 4),
                };
                out[n][i] = l.or(out[n][i], l.and(moved, fifth));
            }
        }
        out
    }
);

codes!(
    Q6K,
    {
        const OFFSET: i32 = 32;
        const SCALES: usize = 2;
    },
    |l, block, stride| {
        let d = l.widen_half(l.half(block.add(208), stride));
        let words = l.quad(block.add(192), stride);
        let mut out = Scales { d: [d; 16], m: [d; 8] };
        for i in 0..16 {
            let scale = l.sar(l.shl(words[i / 4], 24 - 8 * (i as u32 % 4)), 24);
            out.d[i] = l.mul(d, l.to_f(scale));
        }
        out
    },
    |l, block, stride, p| {
        let (half, quarter) = (p / 4, p % 4);
        let mut low = bytes(l, block.add(64 * half + 32 * (quarter % 2)), stride);
        let high = bytes(l, block.add(128 + 32 * half), stride);
        let (four, two) = (l.splat_i(0x0f0f_0f0f), l.splat_i(0x3030_3030));
        for i in 0..8 {
            // Bits 2 quarter and the next belong at bits 4 and 5.
            let moved = match quarter {
                0 => l.shl(high[i], 4),
                1 => l.shl(high[i], 2),
                2 => high[i],
                _ => l.shr(high[i], 2),
            };
            low[i] = l.or(l.and(l.shr(low[i], 4 * (quarter as u32 / 2)), four), l.and(moved, two));
        }
        [low; 2]
    }
);
