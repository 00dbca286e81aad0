//! Philox4x32, the counter-based random generator (Salmon et al., "Parallel random numbers: as easy
//! as 1, 2, 3", SC 2011).
//!
//! A value is a pure function of (seed, stream, element): nothing is carried from one draw to the
//! next, so a mask can be computed again in the backward pass, any split of the work over threads
//! gives the same numbers, and a GPU gives them too. The key is the 64-bit seed; the 128-bit counter
//! is `element / 4` in its low half and `stream` in its high half; each counter yields the four
//! elements `4 c .. 4 c + 4`.
//!
//! Ten rounds are the default of the engine; seven are the fewest that pass BigCrush and serve
//! attention dropout.

use crate::simd::{Kernel, Simd, dispatch};

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Counters that [`lanes`] advances together in the vectorised loops: one AVX-512 register each word.
pub const WIDTH: usize = 16;

/// Random bits of one counter, after `ROUNDS` rounds.
#[inline(always)]
pub fn philox<const ROUNDS: usize>(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let words = lanes::<ROUNDS, 1>(counter.map(|word| [word]), key);
    words.map(|word| word[0])
}

/// Random bits of `N` counters: `counters[w][i]` is word `w` of counter `i`, and so is the result.
///
/// Plain loops over the lanes, which the compiler turns into vector instructions when this is inlined
/// into a [`Kernel`].
#[inline(always)]
pub fn lanes<const ROUNDS: usize, const N: usize>(
    counters: [[u32; N]; 4],
    key: [u32; 2],
) -> [[u32; N]; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counters;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        for i in 0..N {
            let even = u64::from(MULTIPLIERS[0]) * u64::from(c0[i]);
            let odd = u64::from(MULTIPLIERS[1]) * u64::from(c2[i]);
            c0[i] = (odd >> 32) as u32 ^ c1[i] ^ k0;
            c2[i] = (even >> 32) as u32 ^ c3[i] ^ k1;
            c1[i] = odd as u32;
            c3[i] = even as u32;
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// Low and high word of a 64-bit number.
#[inline(always)]
pub fn words(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// The 32 random bits of one element.
#[inline]
pub fn element(seed: u64, stream: u64, index: u64) -> u32 {
    let [low, high] = words(index / 4);
    let [s0, s1] = words(stream);
    philox::<10>([low, high, s0, s1], words(seed))[(index % 4) as usize]
}

/// The random bits of [`WIDTH`] counters from `first` on, in the order of their elements.
///
/// `block[4 * i + w]` is the element `4 * (first + i) + w` of the stream.
#[inline(always)]
pub fn block<const ROUNDS: usize>(seed: u64, stream: u64, first: u64) -> [u32; 4 * WIDTH] {
    let [s0, s1] = words(stream);
    let mut low = [0u32; WIDTH];
    let mut high = [0u32; WIDTH];
    for i in 0..WIDTH {
        [low[i], high[i]] = words(first.wrapping_add(i as u64));
    }
    let random = lanes::<ROUNDS, WIDTH>([low, high, [s0; WIDTH], [s1; WIDTH]], words(seed));
    let mut ordered = [0u32; 4 * WIDTH];
    for i in 0..WIDTH {
        for (w, word) in random.iter().enumerate() {
            ordered[4 * i + w] = word[i];
        }
    }
    ordered
}

/// Maps random bits to [0, 1): the upper 24 bits, so that every value is exact in f32.
#[inline(always)]
pub fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

struct Fill<'a> {
    seed: u64,
    stream: u64,
    first: u64,
    out: &'a mut [u32],
}

impl Kernel for Fill<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Fill { seed, stream, first, out } = self;
        // A first element inside a counter shifts the start of the output into the first block.
        let mut skip = (first % 4) as usize;
        let mut counter = first / 4;
        let mut done = 0;
        while done < out.len() {
            let random = block::<10>(seed, stream, counter);
            let count = (out.len() - done).min(random.len() - skip);
            out[done..done + count].copy_from_slice(&random[skip..skip + count]);
            done += count;
            counter += WIDTH as u64;
            skip = 0;
        }
    }
}

/// Fills `out` with the elements `first, first + 1, ...` of a stream, ten rounds, on this thread.
pub fn fill(seed: u64, stream: u64, first: u64, out: &mut [u32]) {
    dispatch(Fill { seed, stream, first, out });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, with_isa};

    /// The known answers published with the authors' library Random123.
    #[test]
    fn known_answers() {
        let ones = u32::MAX;
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let pi_key = [0xa409_3822, 0x299f_31d0];
        assert_eq!(
            philox::<10>([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox::<10>([ones; 4], [ones; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(philox::<10>(pi, pi_key), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
        assert_eq!(
            philox::<7>([0; 4], [0; 2]),
            [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]
        );
        assert_eq!(
            philox::<7>([ones; 4], [ones; 2]),
            [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662]
        );
        assert_eq!(philox::<7>(pi, pi_key), [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a]);
    }

    #[test]
    fn a_fill_starts_anywhere_and_equals_the_scalar_form() {
        let (seed, stream) = (0x0123_4567_89ab_cdef, 0xfeed_0000_0000_0007);
        for isa in Isa::ALL {
            // The last start crosses from the low to the high word of the counter.
            for first in [0u64, 1, 3, 64, 61, 4 * u64::from(u32::MAX) - 10] {
                let mut out = vec![0u32; 203];
                if with_isa(isa, || fill(seed, stream, first, &mut out)).is_none() {
                    continue;
                }
                for (offset, &bits) in out.iter().enumerate() {
                    assert_eq!(bits, element(seed, stream, first + offset as u64), "{isa:?}");
                }
            }
        }
    }

    #[test]
    fn units_are_uniform() {
        let mut bits = vec![0u32; 1 << 16];
        fill(1, 2, 3, &mut bits);
        let values: Vec<f64> = bits.iter().map(|&b| f64::from(unit(b))).collect();
        assert!(values.iter().all(|v| (0.0..1.0).contains(v)));
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
        // Five standard deviations of both means over 65536 draws.
        assert!((mean - 0.5).abs() < 5.0 * 0.2887 / 256.0, "{mean}");
        assert!((square - 1.0 / 3.0).abs() < 5.0 * 0.2981 / 256.0, "{square}");
    }
}
