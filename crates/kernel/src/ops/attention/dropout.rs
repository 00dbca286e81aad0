//! Dropout of attention probabilities with a mask that depends on the element alone.
//!
//! Philox4x32-7 keyed by the 64-bit seed; the counter is `(offset, b * H + h, i, j / 16)` and its 16
//! output bytes serve 16 consecutive keys. A key is kept iff its byte is below
//! `round(256 (1 - p_drop))`; kept probabilities are divided by exactly that ratio, so the
//! expectation is right for every `p_drop`. Tiles, threads and layouts cannot change the mask.

const ROUNDS: usize = 7;

/// Philox4x32 with seven rounds.
pub fn philox4x32_7(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let low = u64::from(c0) * 0xD251_1F53;
        let high = u64::from(c2) * 0xCD9E_8D57;
        (c0, c1, c2, c3) =
            ((high >> 32) as u32 ^ c1 ^ k0, high as u32, (low >> 32) as u32 ^ c3 ^ k1, low as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// Where the keep mask comes from.
#[derive(Clone, Copy)]
pub enum Dropout<'a> {
    /// The seeded mask of this module.
    Seeded {
        /// 64-bit key of the generator.
        seed: u64,
        /// First word of the counter: one value per call of a training step.
        offset: u32,
        /// Bytes below this are kept; 1 to 256.
        threshold: u32,
    },
    /// An explicit mask (batch, heads, q_len, k_len), 0 or 1, of a dense batch.
    Explicit {
        /// The mask.
        keep: &'a [u8],
        /// Its query and key lengths.
        lens: [usize; 2],
        /// 1 / (1 - p_drop).
        scale: f64,
    },
}

/// The row of the score matrix that a factor belongs to.
#[derive(Clone, Copy)]
pub struct RowIndex {
    /// `b * H + h`.
    pub batch_head: usize,
    /// Query position in its sequence.
    pub query: usize,
}

impl Dropout<'_> {
    /// The seeded form for a drop probability in [0, 1).
    pub fn seeded(p_drop: f64, seed: u64, offset: u32) -> Self {
        let threshold = (256.0 * (1.0 - p_drop)).round().clamp(1.0, 256.0) as u32;
        Dropout::Seeded { seed, offset, threshold }
    }

    /// Writes the factor (0 or the inverse keep ratio) of keys `first..first + out.len()`, `stride`
    /// elements apart in `out`.
    pub fn factors(
        &self,
        row: RowIndex,
        first: usize,
        mut write: impl FnMut(usize, f64),
        n: usize,
    ) {
        match *self {
            Dropout::Explicit { keep, lens, scale } => {
                let start = (row.batch_head * lens[0] + row.query) * lens[1] + first;
                for (index, &kept) in keep[start..start + n].iter().enumerate() {
                    write(index, if kept != 0 { scale } else { 0.0 });
                }
            }
            Dropout::Seeded { seed, offset, threshold } => {
                let key = [seed as u32, (seed >> 32) as u32];
                let scale = 256.0 / f64::from(threshold);
                let mut bytes = [0u8; 16];
                for j in first..first + n {
                    if j == first || j % 16 == 0 {
                        let counter =
                            [offset, row.batch_head as u32, row.query as u32, (j / 16) as u32];
                        for (word, four) in
                            philox4x32_7(counter, key).iter().zip(bytes.chunks_exact_mut(4))
                        {
                            four.copy_from_slice(&word.to_le_bytes());
                        }
                    }
                    let kept = u32::from(bytes[j % 16]) < threshold;
                    write(j - first, if kept { scale } else { 0.0 });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of the Random123 distribution for philox4x32 with 7 rounds.
    #[test]
    fn philox_matches_the_published_vectors() {
        assert_eq!(
            philox4x32_7([0; 4], [0; 2]),
            [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]
        );
        assert_eq!(
            philox4x32_7([u32::MAX; 4], [u32::MAX; 2]),
            [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662]
        );
    }

    #[test]
    fn factors_do_not_depend_on_the_cut() {
        let dropout = Dropout::seeded(0.3, 0x1234_5678_9abc_def0, 7);
        let row = RowIndex { batch_head: 5, query: 11 };
        let mut whole = [0.0; 100];
        dropout.factors(row, 0, |j, f| whole[j] = f, 100);
        for first in [1, 15, 16, 17, 63] {
            dropout.factors(row, first, |j, f| assert_eq!(f, whole[first + j]), 30);
        }
        let mut total = 0.0;
        let mut rows = 0;
        for query in 0..200 {
            let row = RowIndex { batch_head: 0, query };
            dropout.factors(row, 0, |_, f| total += f, 100);
            rows += 100;
        }
        // Mean 1; the standard deviation of the mean is sqrt(p/(1-p)/20000) = 0.0046.
        assert!((total / f64::from(rows) - 1.0).abs() < 0.02);
    }
}
