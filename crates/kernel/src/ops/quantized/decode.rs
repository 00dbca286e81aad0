//! Blocks to vectors of f32 in registers, 32 weights at a time in the order of k.
//!
//! Types with codes of up to four bits are looked up in a table of sixteen values, which already holds
//! scale and minimum: one load, one shift and two permutations give 32 weights. A fifth bit chooses
//! between two tables. Q8_0 and Q6_K convert integers. Every value is that of `reference.rs` to the
//! bit: the same products and sums are rounded in the same places.

use super::BlockType;
use super::reference::{E2M1, NONLINEAR, half_power};
use danaus_runtime::simd::Simd;

/// Weights that are decoded at once.
pub(super) const GROUP: usize = 32;

/// 32 weights: the first `32 / LANES` vectors.
pub(super) type Group<S> = [<S as Simd>::F; 4];

/// Scales (0 to 15) and negated minima (16 to 31) within a block of 256, as far as a type has them.
pub(super) type Scales = [f32; 32];

/// Where the minima start.
const MINIMA: usize = 16;

/// One block type.
pub(super) trait Format: Send + Sync + 'static {
    /// Which.
    const KIND: BlockType;

    /// What the groups of a block share: nothing, or [`Scales`].
    type Shared: Copy;

    /// The scales within a block of 256, products with its common factors.
    ///
    /// # Safety
    /// `block` points at a whole block.
    unsafe fn shared<S: Simd>(s: S, block: *const u8) -> Self::Shared;

    /// Group `G` of a block. A constant, so that shifts and places are.
    ///
    /// # Safety
    /// `block` points at a whole block; `G` is below `block_len / 32`.
    unsafe fn group<S: Simd, const G: usize>(
        s: S,
        block: *const u8,
        shared: &Self::Shared,
    ) -> Group<S>;
}

/// Runs `$body` with `$G` bound to 0, or to 0 to 7 in turn for blocks of 256.
macro_rules! for_groups {
    ($F:ident, $G:ident => $body:expr) => {{
        macro_rules! one {
            ($value:literal) => {{
                const $G: usize = $value;
                $body
            }};
        }
        one!(0);
        if $F::KIND.block_len() == 256 {
            one!(1);
            one!(2);
            one!(3);
            one!(4);
            one!(5);
            one!(6);
            one!(7);
        }
    }};
}
pub(super) use for_groups;

/// Runs a block with `$F` bound to the [`Format`] of a type.
macro_rules! with_format {
    ($kind:expr, $F:ident => $body:expr) => {{
        use $crate::ops::quantized::{BlockType, decode};
        match $kind {
            BlockType::Q4_0 => {
                type $F = decode::Q4_0;
                $body
            }
            BlockType::Q4_1 => {
                type $F = decode::Q4_1;
                $body
            }
            BlockType::Q5_0 => {
                type $F = decode::Q5_0;
                $body
            }
            BlockType::Q5_1 => {
                type $F = decode::Q5_1;
                $body
            }
            BlockType::Q8_0 => {
                type $F = decode::Q8_0;
                $body
            }
            BlockType::Q2K => {
                type $F = decode::Q2K;
                $body
            }
            BlockType::Q3K => {
                type $F = decode::Q3K;
                $body
            }
            BlockType::Q4K => {
                type $F = decode::Q4K;
                $body
            }
            BlockType::Q5K => {
                type $F = decode::Q5K;
                $body
            }
            BlockType::Q6K => {
                type $F = decode::Q6K;
                $body
            }
            BlockType::Iq4Nl => {
                type $F = decode::Iq4Nl;
                $body
            }
            BlockType::Iq4Xs => {
                type $F = decode::Iq4Xs;
                $body
            }
            BlockType::Mxfp4 => {
                type $F = decode::Mxfp4;
                $body
            }
        }
    }};
}
pub(super) use with_format;

/// first + i.
const fn counting(first: i32) -> [f32; 16] {
    let (mut values, mut i) = ([0.0; 16], 0);
    while i < 16 {
        values[i] = (first + i as i32) as f32;
        i += 1;
    }
    values
}

/// first + i mod 4: the low two bits of an index.
const fn counting_quarters(first: i32) -> [f32; 16] {
    let (mut values, mut i) = ([0.0; 16], 0);
    while i < 16 {
        values[i] = (first + i as i32 % 4) as f32;
        i += 1;
    }
    values
}

const FROM_0: [f32; 16] = counting(0);
const FROM_16: [f32; 16] = counting(16);
const FROM_MINUS_8: [f32; 16] = counting(-8);
const FROM_MINUS_16: [f32; 16] = counting(-16);
const QUARTERS: [f32; 16] = counting_quarters(0);
const QUARTERS_MINUS_4: [f32; 16] = counting_quarters(-4);

/// Lane i has bit i, as floats for loading.
const LANE_BITS: [u32; 16] = {
    let (mut bits, mut i) = ([0; 16], 0);
    while i < 16 {
        bits[i] = 1 << i;
        i += 1;
    }
    bits
};

/// The f16 at `from`, widened, in all lanes: the conversion of a whole vector costs no more, and that
/// of one number waits for whatever was last in its register.
#[inline(always)]
unsafe fn half<S: Simd>(s: S, from: *const u8) -> S::F {
    // SAFETY: promised by the caller: two bytes of the block.
    s.splat_half(u16::from_le(unsafe { from.cast::<u16>().read_unaligned() }))
}

#[inline(always)]
unsafe fn word(from: *const u8) -> u32 {
    // SAFETY: promised by the caller: four bytes of the block.
    u32::from_le(unsafe { from.cast::<u32>().read_unaligned() })
}

/// A table times a number plus a number, each rounded.
#[inline(always)]
fn affine_table<S: Simd>(s: S, values: &[f32; 16], factor: S::F, addend: S::F) -> S::Table {
    s.shift_table(s.scale_table(s.table(values), factor), addend)
}

/// Logical shift by one of the amounts that codes are packed with.
#[inline(always)]
fn shifted<S: Simd>(s: S, v: S::I, bits: usize) -> S::I {
    match bits {
        0 => v,
        2 => s.shr_i::<2>(v),
        4 => s.shr_i::<4>(v),
        _ => s.shr_i::<6>(v),
    }
}

/// Sixteen bytes as the indices of 32 codes, low nibbles first; the code is in the low four bits.
#[inline(always)]
unsafe fn nibbles<S: Simd>(s: S, from: *const u8) -> [S::I; 4] {
    let mut indices = [s.splat_i(0); 4];
    let half = 16 / S::LANES;
    for i in 0..half {
        // SAFETY: promised by the caller: sixteen bytes of the block.
        let bytes = unsafe { s.load_u8(from.add(i * S::LANES)) };
        indices[i] = bytes;
        indices[half + i] = s.shr_i::<4>(bytes);
    }
    indices
}

/// 32 bytes as integers, shifted right.
#[inline(always)]
unsafe fn bytes<S: Simd>(s: S, from: *const u8, shift: usize) -> [S::I; 4] {
    let mut integers = [s.splat_i(0); 4];
    for i in 0..GROUP / S::LANES {
        // SAFETY: promised by the caller: 32 bytes of the block.
        integers[i] = shifted(s, unsafe { s.load_u8(from.add(i * S::LANES)) }, shift);
    }
    integers
}

#[inline(always)]
fn look_up<S: Simd>(s: S, table: S::Table, indices: [S::I; 4]) -> Group<S> {
    let mut out = [s.zero(); 4];
    for i in 0..GROUP / S::LANES {
        out[i] = s.lookup(table, indices[i]);
    }
    out
}

/// From `tables[1]` where bit e of `bits` is set for weight e, else from `tables[0]`.
#[inline(always)]
fn look_up_by_bit<S: Simd>(s: S, tables: [S::Table; 2], indices: [S::I; 4], bits: u32) -> Group<S> {
    let mut out = [s.zero(); 4];
    // SAFETY: the table has sixteen elements, as many as the longest vector.
    let lane_bits = s.bits(unsafe { s.load(LANE_BITS.as_ptr().cast()) });
    for i in 0..GROUP / S::LANES {
        let own = s.splat_i((bits >> (i * S::LANES)) as i32);
        let mask = s.positive_i(s.and_i(own, lane_bits));
        let (yes, no) = (s.lookup(tables[1], indices[i]), s.lookup(tables[0], indices[i]));
        out[i] = s.select(mask, yes, no);
    }
    out
}

/// From `tables[1]` where bit `bit` of the byte at `from + e` is set for weight e; the tables of the
/// first and the second sixteen weights.
#[inline(always)]
unsafe fn look_up_by_byte<S: Simd>(
    s: S,
    tables: [[S::Table; 2]; 2],
    indices: [S::I; 4],
    (from, bit): (*const u8, usize),
) -> Group<S> {
    let mut out = [s.zero(); 4];
    for i in 0..GROUP / S::LANES {
        let tables = tables[i * S::LANES / 16];
        // SAFETY: promised by the caller: 32 bytes of the block.
        let bytes = unsafe { s.load_u8(from.add(i * S::LANES)) };
        let mask = s.positive_i(s.and_i(bytes, s.splat_i(1 << bit)));
        let (yes, no) = (s.lookup(tables[1], indices[i]), s.lookup(tables[0], indices[i]));
        out[i] = s.select(mask, yes, no);
    }
    out
}

/// The scales of Q4_K and Q5_K: eight, and eight negated minima.
#[inline(always)]
unsafe fn scales_and_minima<S: Simd>(s: S, block: *const u8) -> Scales {
    // SAFETY: promised by the caller; the factors are bytes 0 to 4, the six-bit numbers 4 to 16.
    let (a, b, c, d, dmin) = unsafe {
        let [a, b, c] = [4, 8, 12].map(|at| word(block.add(at)));
        (a, b, c, half(s, block), half(s, block.add(2)))
    };
    let high = |word: u32| (word >> 6 & 0x0303_0303) << 4;
    let words = [
        a & 0x3f3f_3f3f,
        c & 0x0f0f_0f0f | high(a),
        b & 0x3f3f_3f3f,
        c >> 4 & 0x0f0f_0f0f | high(b),
    ];
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let (scales, minima) = (pair(words[0], words[1]), pair(words[2], words[3]));
    let mut out = [0.0; 32];
    // Eight of each; with sixteen lanes the upper half holds zeros.
    let negated = s.mul(s.splat(-1.0), dmin);
    for (start, bytes, factor) in [(0, scales, d), (MINIMA, minima, negated)] {
        let products = s.mul(s.from_i(s.widen_u8(u128::from(bytes))), factor);
        // SAFETY: sixteen elements follow either start.
        unsafe { s.store(out.as_mut_ptr().add(start), products) };
    }
    out
}

macro_rules! format {
    ($name:ident, |$s:ident, $block:ident| $body:expr) => {
        format!(@impl $name, (), |_s, _block| (), |$s, $block, _shared, _g| $body);
    };
    ($name:ident, scales: |$ss:ident, $sblock:ident| $scales:expr,
     |$s:ident, $block:ident, $shared:ident, $g:ident| $body:expr) => {
        format!(@impl $name, Scales, |$ss, $sblock| $scales, |$s, $block, $shared, $g| $body);
    };
    (@impl $name:ident, $type:ty, |$ss:ident, $sblock:ident| $scales:expr,
     |$s:ident, $block:ident, $shared:ident, $g:ident| $body:expr) => {
        pub(super) struct $name;

        // SAFETY of both blocks: the caller promises a whole block, and all offsets lie in it.
        #[allow(clippy::undocumented_unsafe_blocks, unused_unsafe)]
        impl Format for $name {
            const KIND: BlockType = BlockType::$name;
            type Shared = $type;

            #[inline(always)]
            unsafe fn shared<S: Simd>($ss: S, $sblock: *const u8) -> $type {
                unsafe { $scales }
            }

            #[inline(always)]
            unsafe fn group<S: Simd, const G: usize>(
                $s: S,
                $block: *const u8,
                $shared: &$type,
            ) -> Group<S> {
                let $g = G;
                unsafe { $body }
            }
        }
    };
}

format!(Q4_0, |s, block| {
    let table = s.scale_table(s.table(&FROM_MINUS_8), half(s, block));
    look_up(s, table, nibbles(s, block.add(2)))
});

format!(Q4_1, |s, block| {
    let table = affine_table(s, &FROM_0, half(s, block), half(s, block.add(2)));
    look_up(s, table, nibbles(s, block.add(4)))
});

format!(Q5_0, |s, block| {
    let d = half(s, block);
    let tables = [s.scale_table(s.table(&FROM_MINUS_16), d), s.scale_table(s.table(&FROM_0), d)];
    look_up_by_bit(s, tables, nibbles(s, block.add(6)), word(block.add(2)))
});

format!(Q5_1, |s, block| {
    let (d, m) = (half(s, block), half(s, block.add(2)));
    let tables = [affine_table(s, &FROM_0, d, m), affine_table(s, &FROM_16, d, m)];
    look_up_by_bit(s, tables, nibbles(s, block.add(8)), word(block.add(4)))
});

format!(Q8_0, |s, block| {
    let d = half(s, block);
    let mut out = [s.zero(); 4];
    for i in 0..GROUP / S::LANES {
        out[i] = s.mul(s.from_i(s.load_i8(block.add(2 + i * S::LANES))), d);
    }
    out
});

format!(Iq4Nl, |s, block| {
    let table = s.scale_table(s.table(&NONLINEAR), half(s, block));
    look_up(s, table, nibbles(s, block.add(2)))
});

format!(Mxfp4, |s, block| {
    let table = s.scale_table(s.table(&E2M1), s.splat(half_power(block.read())));
    look_up(s, table, nibbles(s, block.add(1)))
});

format!(
    Iq4Xs,
    scales: |s, block| {
        let (low, high) = (word(block.add(4)), u16::from_le(block.add(2).cast::<u16>().read_unaligned()));
        let d = s.widen_half(u16::from_le(block.cast::<u16>().read_unaligned()));
        let mut scales = [0.0; 32];
        for k in 0..8 {
            let code = low >> (4 * k) & 15 | (u32::from(high) >> (2 * k) & 3) << 4;
            scales[k] = d * (code as i32 - 32) as f32;
        }
        scales
    },
    |s, block, scales, g| {
        let table = s.scale_table(s.table(&NONLINEAR), s.splat(scales[g]));
        look_up(s, table, nibbles(s, block.add(8 + 16 * g)))
    }
);

format!(Q4K, scales: |s, block| scales_and_minima(s, block), |s, block, scales, g| {
    let indices = bytes(s, block.add(16 + 32 * (g / 2)), 4 * (g % 2));
    look_up(s, affine_table(s, &FROM_0, s.splat(scales[g]), s.splat(scales[MINIMA + g])), indices)
});

format!(Q5K, scales: |s, block| scales_and_minima(s, block), |s, block, scales, g| {
    let indices = bytes(s, block.add(48 + 32 * (g / 2)), 4 * (g % 2));
    let (d, m) = (s.splat(scales[g]), s.splat(scales[MINIMA + g]));
    let tables = [affine_table(s, &FROM_0, d, m), affine_table(s, &FROM_16, d, m)];
    look_up_by_byte(s, [tables; 2], indices, (block.add(16), g))
});

format!(
    Q2K,
    scales: |s, block| {
        let (d, dmin) = (half(s, block.add(80)), half(s, block.add(82)));
        let mut scales = [0.0; 32];
        for i in (0..16).step_by(S::LANES) {
            let codes = s.load_u8(block.add(i));
            let low = s.from_i(s.and_i(codes, s.splat_i(15)));
            s.store(scales.as_mut_ptr().add(i), s.mul(low, d));
            let high = s.from_i(s.shr_i::<4>(codes));
            let minima = s.mul(high, s.mul(s.splat(-1.0), dmin));
            s.store(scales.as_mut_ptr().add(MINIMA + i), minima);
        }
        scales
    },
    |s, block, scales, g| {
        let indices = bytes(s, block.add(16 + 32 * (g / 4)), 2 * (g % 4));
        let mut out = [s.zero(); 4];
        for i in 0..GROUP / S::LANES {
            let at = 2 * g + i * S::LANES / 16;
            let table = affine_table(s, &QUARTERS, s.splat(scales[at]), s.splat(scales[MINIMA + at]));
            out[i] = s.lookup(table, indices[i]);
        }
        out
    }
);

format!(
    Q3K,
    scales: |s, block| {
        let codes = std::slice::from_raw_parts(block.add(96), 12);
        let d = s.widen_half(u16::from_le(block.add(108).cast::<u16>().read_unaligned()));
        let mut scales = [0.0; 32];
        for i in 0..16 {
            scales[i] = d * super::reference::q3_scale(codes, i) as f32;
        }
        scales
    },
    |s, block, scales, g| {
        let indices = bytes(s, block.add(32 + 32 * (g / 4)), 2 * (g % 4));
        let mut tables = [[s.table(&QUARTERS); 2]; 2];
        for i in 0..2 {
            let scale = s.splat(scales[2 * g + i]);
            tables[i] = [
                s.scale_table(s.table(&QUARTERS_MINUS_4), scale),
                s.scale_table(s.table(&QUARTERS), scale),
            ];
        }
        look_up_by_byte(s, tables, indices, (block, g))
    }
);

format!(
    Q6K,
    scales: |s, block| {
        let d = half(s, block.add(208));
        let mut scales = [0.0; 32];
        for i in (0..16).step_by(S::LANES) {
            let codes = s.from_i(s.load_i8(block.add(192 + i)));
            s.store(scales.as_mut_ptr().add(i), s.mul(codes, d));
        }
        scales
    },
    |s, block, scales, g| {
        let (half_block, quarter) = (g / 4, g % 4);
        let low = bytes(s, block.add(64 * half_block + 32 * (quarter % 2)), 4 * (quarter / 2));
        let high = bytes(s, block.add(128 + 32 * half_block), 2 * quarter);
        let (fifteen, three) = (s.splat_i(15), s.splat_i(3));
        let mut out = [s.zero(); 4];
        for i in 0..GROUP / S::LANES {
            let scale = s.splat(scales[2 * g + i * S::LANES / 16]);
            let high = s.shl_i::<4>(s.and_i(high[i], three));
            let q = s.from_i(s.add_i(s.and_i(low[i], fifteen), high));
            out[i] = s.mul(s.sub(q, s.splat(32.0)), scale);
        }
        out
    }
);
