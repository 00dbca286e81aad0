//! A faster path for the usual kind of byte-level BPE: no normaliser, the GPT-2 word splitter with
//! or without single digits, merges without dropout.
//!
//! Text is split by hand ([`super::split`]); each distinct word is merged once and remembered. For
//! anything unusual in the file there is no such path and the `tokenizers` crate does the work; the
//! tokens are the same in both cases, which the tests compare.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::bytes::TokenBytes;
use super::split;

/// Longer words are merged by the `tokenizers` crate, whose merging is not quadratic.
const LONGEST_WORD: usize = 512;

/// A cache that holds this many words starts anew.
const CACHED_WORDS: usize = 1 << 16;

/// Rank and result by the two neighbours that are merged.
type Merges = HashMap<(u32, u32), (u32, u32), BuildHasherDefault<WordHasher>>;

/// A word that this path does not merge.
pub(super) struct TooLong;

/// Splitting and merging by the rules of one file.
pub(super) struct Encoder {
    single_digits: bool,
    /// The token of each byte.
    singles: [u32; 256],
    merges: Merges,
    /// Caches that no call is using.
    caches: Mutex<Vec<Cache>>,
}

/// Tokens of the words seen so far.
#[derive(Default)]
struct Cache {
    words: HashMap<Box<[u8]>, Range<u32>, BuildHasherDefault<WordHasher>>,
    tokens: Vec<u32>,
}

/// Multiplies and rotates word by word: short keys, no adversary, bounded tables.
#[derive(Default)]
struct WordHasher(u64);

impl WordHasher {
    fn mix(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Hasher for WordHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(u64::from(value));
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }

    fn finish(&self) -> u64 {
        // The tables use the low bits, multiplication fills the high ones.
        self.0 ^ self.0 >> 32
    }
}

impl Encoder {
    /// The fast path for a `tokenizer.json`, if it is of the usual kind.
    pub(super) fn new(json: &str, bytes: &TokenBytes) -> Option<Self> {
        let file: Value = serde_json::from_str(json).ok()?;
        let model = &file["model"];
        let off = |value: &Value| matches!(value, Value::Null | Value::Bool(false));
        let plain = ["dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"];
        let usual = model["type"] == "BPE"
            && off(&file["normalizer"])
            && plain.iter().all(|key| off(&model[key]) || model[key] == "");
        // Added tokens that are not special are found in ordinary text, too.
        let added = file["added_tokens"].as_array()?;
        if !usual || added.iter().any(|token| token["special"] != true) {
            return None;
        }
        let single_digits = splitter(&file["pre_tokenizer"])?;
        let mut singles = [0; 256];
        for (byte, single) in (0..=255).zip(&mut singles) {
            *single = bytes.single(byte)?;
        }
        let merges = merges(model)?;
        Some(Self { single_digits, singles, merges, caches: Mutex::default() })
    }

    /// Appends the tokens of `text`; on failure `tokens` is as before.
    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<u32>) -> Result<(), TooLong> {
        let before = tokens.len();
        // A cache is only ever taken or returned under the lock, so poison means nothing.
        let mut free = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cache = free.pop().unwrap_or_default();
        drop(free);
        let encoded =
            split::words(text, self.single_digits, |word| self.word(word, &mut cache, tokens));
        if encoded.is_err() {
            tokens.truncate(before);
        }
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).push(cache);
        encoded
    }

    fn word(&self, word: &str, cache: &mut Cache, tokens: &mut Vec<u32>) -> Result<(), TooLong> {
        let word = word.as_bytes();
        if let Some(range) = cache.words.get(word) {
            tokens.extend_from_slice(&cache.tokens[range.start as usize..range.end as usize]);
            return Ok(());
        }
        if word.len() > LONGEST_WORD {
            return Err(TooLong);
        }
        if cache.words.len() >= CACHED_WORDS {
            *cache = Cache::default();
        }
        let start = cache.tokens.len();
        cache.tokens.extend(self.merge(word));
        tokens.extend_from_slice(&cache.tokens[start..]);
        cache.words.insert(word.into(), start as u32..cache.tokens.len() as u32);
        Ok(())
    }

    /// Merges the neighbours of lowest rank, leftmost first, until none can be merged.
    fn merge(&self, word: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = word.iter().map(|&byte| self.singles[usize::from(byte)]).collect();
        loop {
            let candidates = ids.windows(2).enumerate().filter_map(|(at, pair)| {
                let (rank, merged) = self.merges.get(&(pair[0], pair[1]))?;
                Some((*rank, at, *merged))
            });
            let Some((_, at, merged)) = candidates.min() else { return ids };
            ids[at] = merged;
            ids.remove(at + 1);
        }
    }
}

/// Whether digits are single words; `None` for any other splitter than GPT-2's.
fn splitter(value: &Value) -> Option<bool> {
    let is_byte_level = |part: &Value| {
        let regex = part.get("use_regex").is_none_or(|used| used == true);
        part["type"] == "ByteLevel" && part["add_prefix_space"] == false && regex
    };
    let is_digits = |part: &Value| part["type"] == "Digits" && part["individual_digits"] == true;
    match value["pretokenizers"].as_array().map(Vec::as_slice) {
        None if is_byte_level(value) => Some(false),
        Some([last]) if is_byte_level(last) => Some(false),
        Some([first, last]) if is_digits(first) && is_byte_level(last) => Some(true),
        _ => None,
    }
}

/// The merges of a model, written as pairs or (older files) as two words in one string.
fn merges(model: &Value) -> Option<Merges> {
    let vocabulary = model["vocab"].as_object()?;
    let id = |token: &str| u32::try_from(vocabulary.get(token)?.as_u64()?).ok();
    let mut merges = Merges::default();
    for (rank, merge) in (0..).zip(model["merges"].as_array()?) {
        let (left, right) = match merge.as_array().map(Vec::as_slice) {
            Some([left, right]) => (left.as_str()?, right.as_str()?),
            _ => merge.as_str()?.split_once(' ')?,
        };
        merges.insert((id(left)?, id(right)?), (rank, id(&format!("{left}{right}"))?));
    }
    Some(merges)
}
