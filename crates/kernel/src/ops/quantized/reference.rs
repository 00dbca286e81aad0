//! Blocks to f32, element by element: what the formats mean, and the oracle of the kernels.
//!
//! The roundings are part of the formats: a scale times a scale is rounded to f32, then its product
//! with the code, then the minimum is subtracted. Every byte pattern is valid: the scales may come out
//! infinite or NaN, but nothing here fails or reads outside of the block.

use super::BlockType;
use half::f16;

/// The codes of IQ4_NL and IQ4_XS.
pub(super) const NONLINEAR: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// Twice the values of the 4-bit float with two exponent bits; the code of -0 gives 0.
pub(super) const E2M1: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// The f16 at byte `at`.
#[inline(always)]
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[inline(always)]
fn word_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Half of 2^(x - 127): the scale of the doubled values in [`E2M1`].
#[inline(always)]
pub(super) fn half_power(x: u8) -> f32 {
    let bits = match x {
        0 | 1 => 0x0020_0000 << x,
        x => (u32::from(x) - 1) << 23,
    };
    f32::from_bits(bits)
}

/// Scale and minimum `k` (0..8) of the twelve bytes of Q4_K and Q5_K, six bits each.
#[inline(always)]
pub(super) fn six_bits(s: &[u8], k: usize) -> (u8, u8) {
    if k < 4 {
        (s[k] & 63, s[k + 4] & 63)
    } else {
        let (low, high) = (s[k + 4], k - 4);
        ((low & 15) | (s[high] >> 6) << 4, (low >> 4) | (s[k] >> 6) << 4)
    }
}

/// Scale `i` (0..16) of the twelve bytes of Q3_K.
#[inline(always)]
pub(super) fn q3_scale(s: &[u8], i: usize) -> i32 {
    let low = if i < 8 { s[i] & 15 } else { s[i - 8] >> 4 };
    let high = (s[8 + i % 4] >> (2 * (i / 4))) & 3;
    i32::from(low | high << 4) - 32
}

/// Scale `k` (0..8) of an IQ4_XS block.
#[inline(always)]
pub(super) fn iq4_scale(block: &[u8], k: usize) -> i32 {
    let low = (block[4 + k / 2] >> (4 * (k % 2))) & 15;
    let high = (u16::from_le_bytes([block[2], block[3]]) >> (2 * k)) & 3;
    i32::from(low) + 16 * i32::from(high) - 32
}

/// The 4-bit code `e` (0..32) of sixteen bytes: low nibbles first.
#[inline(always)]
fn nibble(bytes: &[u8], e: usize) -> u8 {
    if e < 16 { bytes[e] & 15 } else { bytes[e - 16] >> 4 }
}

/// Decodes one block.
///
/// # Panics
/// If `block` or `out` have not the lengths of the type.
pub fn decode_block(kind: BlockType, block: &[u8], out: &mut [f32]) {
    assert!(block.len() == kind.block_bytes() && out.len() == kind.block_len(), "one block");
    match kind {
        BlockType::Q4_0 => {
            fill(out, |e| (f32::from(nibble(&block[2..], e)) - 8.0) * half_at(block, 0))
        }
        BlockType::Q4_1 => {
            fill(out, |e| f32::from(nibble(&block[4..], e)) * half_at(block, 0) + half_at(block, 2))
        }
        BlockType::Q5_0 => fill(out, |e| {
            let q = nibble(&block[6..], e) | ((word_at(block, 2) >> e & 1) as u8) << 4;
            (f32::from(q) - 16.0) * half_at(block, 0)
        }),
        BlockType::Q5_1 => fill(out, |e| {
            let q = nibble(&block[8..], e) | ((word_at(block, 4) >> e & 1) as u8) << 4;
            f32::from(q) * half_at(block, 0) + half_at(block, 2)
        }),
        BlockType::Q8_0 => fill(out, |e| f32::from(block[2 + e] as i8) * half_at(block, 0)),
        BlockType::Iq4Nl => {
            fill(out, |e| NONLINEAR[usize::from(nibble(&block[2..], e))] * half_at(block, 0));
        }
        BlockType::Mxfp4 => {
            fill(out, |e| E2M1[usize::from(nibble(&block[1..], e))] * half_power(block[0]));
        }
        BlockType::Q2K => fill(out, |e| q2_k(block, e)),
        BlockType::Q3K => fill(out, |e| q3_k(block, e)),
        BlockType::Q4K => fill(out, |e| {
            let (g, n, j) = (e / 64, e / 32 % 2, e % 32);
            let q = (block[16 + 32 * g + j] >> (4 * n)) & 15;
            affine(block, e / 32, q)
        }),
        BlockType::Q5K => fill(out, |e| {
            let (g, n, j) = (e / 64, e / 32 % 2, e % 32);
            let q = (block[48 + 32 * g + j] >> (4 * n)) & 15;
            affine(block, e / 32, q | (block[16 + j] >> (e / 32) & 1) << 4)
        }),
        BlockType::Q6K => fill(out, |e| q6_k(block, e)),
        BlockType::Iq4Xs => fill(out, |e| {
            let k = e / 32;
            let scale = half_at(block, 0) * iq4_scale(block, k) as f32;
            scale * NONLINEAR[usize::from(nibble(&block[8 + 16 * k..], e % 32))]
        }),
    }
}

fn fill(out: &mut [f32], value: impl Fn(usize) -> f32) {
    out.iter_mut().enumerate().for_each(|(e, out)| *out = value(e));
}

/// `d sc q - dmin m` with the scales of Q4_K and Q5_K.
fn affine(block: &[u8], k: usize, q: u8) -> f32 {
    let (scale, min) = six_bits(&block[4..16], k);
    let (d, m) = (half_at(block, 0) * f32::from(scale), half_at(block, 2) * f32::from(min));
    d * f32::from(q) - m
}

fn q2_k(block: &[u8], e: usize) -> f32 {
    let (h, s, j) = (e / 128, e / 32 % 4, e % 32);
    let q = (block[16 + 32 * h + j] >> (2 * s)) & 3;
    let scale = block[e / 16];
    let d = half_at(block, 80) * f32::from(scale & 15);
    d * f32::from(q) - half_at(block, 82) * f32::from(scale >> 4)
}

fn q3_k(block: &[u8], e: usize) -> f32 {
    let (h, s, j) = (e / 128, e / 32 % 4, e % 32);
    let low = (block[32 + 32 * h + j] >> (2 * s)) & 3;
    let high = (block[j] >> (e / 32)) & 1;
    let q = f32::from(low) - if high == 0 { 4.0 } else { 0.0 };
    half_at(block, 108) * q3_scale(&block[96..108], e / 16) as f32 * q
}

fn q6_k(block: &[u8], e: usize) -> f32 {
    let (h, n, j) = (e / 128, e / 64 % 2, e % 64);
    let low = (block[64 * h + j] >> (4 * n)) & 15;
    let high = (block[128 + 32 * h + e % 32] >> (2 * (e % 128 / 32))) & 3;
    let scale = half_at(block, 208) * f32::from(block[192 + e / 16] as i8);
    scale * (f32::from(low | high << 4) - 32.0)
}

/// Decodes whole rows.
///
/// # Panics
/// If `bytes` are not as many blocks as `out` has.
pub fn decode(kind: BlockType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len() / kind.block_bytes(), out.len() / kind.block_len(), "blocks");
    let blocks = bytes.chunks_exact(kind.block_bytes());
    for (block, out) in blocks.zip(out.chunks_exact_mut(kind.block_len())) {
        decode_block(kind, block, out);
    }
}

/// Rows of `x W^T` with x rounded to eight bits, in f64: `x` `[count, cols]`, result `[count, rows]`.
///
/// Every 32 elements of x have the scale `d = max|x| / 127` in f32 and codes `x (127 / max|x|)`, rounded
/// to the nearest integer with ties to even; all below 2^-100 is zero.
///
/// # Panics
/// If the lengths do not fit.
pub fn linear_int8(kind: BlockType, x: &[f32], bytes: &[u8], cols: usize) -> Vec<f64> {
    let mut weights = vec![0f32; bytes.len() / kind.block_bytes() * kind.block_len()];
    decode(kind, bytes, &mut weights);
    let rounded: Vec<f64> = x
        .chunks_exact(32)
        .flat_map(|group| {
            let most = group.iter().fold(0f32, |most, value| most.max(value.abs()));
            let (d, inverse) = match most < 2f32.powi(-100) {
                true => (0.0, 0.0),
                false => (most / 127.0, 127.0 / most),
            };
            let value = move |&x: &f32| f64::from(d) * f64::from((x * inverse).round_ties_even());
            group.iter().map(value)
        })
        .collect();
    let mut out = Vec::new();
    for x in rounded.chunks_exact(cols) {
        for w in weights.chunks_exact(cols) {
            out.push(x.iter().zip(w).map(|(x, &w)| x * f64::from(w)).sum());
        }
    }
    out
}
