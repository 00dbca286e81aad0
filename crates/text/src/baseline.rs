//! How well text compresses without a neural network, in bits per byte: what a model has to beat.
//!
//! * [`gzip`]: DEFLATE at its best level, file by file (it cannot learn from the training text).
//! * [`ByteTrigram`]: the next byte given the two before it, learned from the training text.
//!
//! The trigram model interpolates all orders with the weights of Witten and Bell (1991): with
//! `n(h)` bytes seen after a history h and `d(h)` distinct ones,
//!
//! ```text
//! p(c | ab) = (count(abc) + d(ab) p(c | b)) / (n(ab) + d(ab)),   ...   p(c | nothing) from 1/256
//! ```
//!
//! so every byte has a positive probability after every history and the probabilities sum to one.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

/// Bits per byte of gzip at its best level, each document by itself, headers included.
/// Zero for no bytes.
pub fn gzip<D: AsRef<[u8]>>(documents: &[D]) -> f64 {
    let (mut compressed, mut total) = (0, 0);
    for document in documents {
        let bytes = document.as_ref();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        // Writing into memory does not fail; a failure would count as no compression.
        let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
        compressed += written.map_or(bytes.len(), |output| output.len());
        total += bytes.len();
    }
    if total == 0 { 0.0 } else { compressed as f64 * 8.0 / total as f64 }
}

/// Counts of bytes after one class of histories.
struct Counts {
    /// count[history * 256 + byte]
    counts: Vec<u32>,
    /// Bytes seen after each history.
    totals: Vec<u32>,
    /// Distinct bytes seen after each history.
    distinct: Vec<u32>,
}

impl Counts {
    fn new(histories: usize) -> Self {
        let (totals, distinct) = (vec![0; histories], vec![0; histories]);
        Self { counts: vec![0; histories * 256], totals, distinct }
    }

    fn add(&mut self, history: usize, byte: u8) {
        let count = &mut self.counts[history * 256 + usize::from(byte)];
        self.distinct[history] += u32::from(*count == 0);
        *count = count.saturating_add(1);
        self.totals[history] = self.totals[history].saturating_add(1);
    }

    fn probability(&self, history: usize, byte: u8, lower_order: f64) -> f64 {
        let total = f64::from(self.totals[history]);
        if total == 0.0 {
            return lower_order;
        }
        let count = f64::from(self.counts[history * 256 + usize::from(byte)]);
        let distinct = f64::from(self.distinct[history]);
        (count + distinct * lower_order) / (total + distinct)
    }
}

/// An interpolated byte trigram model; about 64 MiB.
pub struct ByteTrigram {
    unigrams: Counts,
    bigrams: Counts,
    trigrams: Counts,
}

impl ByteTrigram {
    /// Counts the bytes of the documents; histories do not cross from one to the next.
    pub fn train<D: AsRef<[u8]>>(documents: &[D]) -> Self {
        let mut model = Self {
            unigrams: Counts::new(1),
            bigrams: Counts::new(1 << 8),
            trigrams: Counts::new(1 << 16),
        };
        for document in documents {
            let bytes = document.as_ref();
            for (at, &byte) in bytes.iter().enumerate() {
                model.unigrams.add(0, byte);
                if let Some(history) = history(bytes, at, 1) {
                    model.bigrams.add(history, byte);
                }
                if let Some(history) = history(bytes, at, 2) {
                    model.trigrams.add(history, byte);
                }
            }
        }
        model
    }

    /// The probability of `byte` after `before`, of which the last two bytes matter.
    pub fn probability(&self, before: &[u8], byte: u8) -> f64 {
        let mut p = self.unigrams.probability(0, byte, 1.0 / 256.0);
        if let Some(history) = history(before, before.len(), 1) {
            p = self.bigrams.probability(history, byte, p);
        }
        if let Some(history) = history(before, before.len(), 2) {
            p = self.trigrams.probability(history, byte, p);
        }
        p
    }

    /// Mean of -log2 p over all bytes of the documents; zero for no bytes.
    pub fn bits_per_byte<D: AsRef<[u8]>>(&self, documents: &[D]) -> f64 {
        let (mut bits, mut total) = (0.0, 0usize);
        for document in documents {
            let bytes = document.as_ref();
            for (at, &byte) in bytes.iter().enumerate() {
                bits -= self.probability(&bytes[..at], byte).log2();
            }
            total += bytes.len();
        }
        if total == 0 { 0.0 } else { bits / total as f64 }
    }
}

/// The `order` bytes before position `at` as one number.
fn history(bytes: &[u8], at: usize, order: usize) -> Option<usize> {
    let bytes = bytes.get(at.checked_sub(order)?..at)?;
    Some(bytes.iter().fold(0, |history, &byte| history << 8 | usize::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounding: 256 terms of at most 1, so 1e-12 is generous.
    #[test]
    fn probabilities_sum_to_one() {
        let model = ByteTrigram::train(&["abracadabra", "alakazam", "b"]);
        for before in ["", "a", "ab", "zz", "xyzab"] {
            let sum: f64 = (0..=255).map(|byte| model.probability(before.as_bytes(), byte)).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{before:?} {sum}");
        }
    }

    /// "aab": p(b | aa) by hand. Unigram: (1 + 2/256) / 5; bigram of a: 2 seen, 2 distinct;
    /// trigram of aa: 1 seen, 1 distinct.
    #[test]
    fn interpolation_matches_the_formula() {
        let model = ByteTrigram::train(&["aab"]);
        let unigram = (1.0 + 2.0 / 256.0) / 5.0;
        let bigram = (1.0 + 2.0 * unigram) / 4.0;
        let trigram = (1.0 + bigram) / 2.0;
        assert!((model.probability(b"aa", b'b') - trigram).abs() < 1e-15);
        let expected =
            -(model.probability(b"", b'a').log2() + model.probability(b"a", b'b').log2());
        assert!((model.bits_per_byte(&["ab"]) - expected / 2.0).abs() < 1e-12);
    }

    #[test]
    fn known_extremes() {
        assert_eq!(ByteTrigram::train::<&str>(&[]).bits_per_byte(&["any text"]), 8.0);
        let text = "the same line again\n".repeat(500);
        let model = ByteTrigram::train(&[&text]);
        assert!(model.bits_per_byte(&[&text]) < 1.0);
        assert!(gzip(&[&text]) < 0.2);
        assert!(gzip(&["x"]) > 8.0, "the header counts");
        assert_eq!(gzip::<&str>(&[]), 0.0);
    }
}
