//! What the recall tasks ask: examples as a pure function of settings, seed and number.
//!
//! | task | tokens | targets |
//! | --- | --- | --- |
//! | `mqar` | `pairs` keys with their values, then noise in which every key comes once more | at each such key, its value |
//! | `selective-copying` | `pairs` tokens scattered in noise, then as many markers | at the i-th marker, the i-th token |
//! | `induction` | noise in which a marker comes once, its follower, noise, the marker again | at the last marker, the follower |
//!
//! Multi-query associative recall: keys are drawn from the lower half of the vocabulary without 0, values
//! from the upper half, both without repetition. A key asks again `2 g` tokens behind the pairs, where the
//! slots g are drawn without repetition with weights `g^(a - 1)`, g from 1 and a = 0.01: most soon, a few
//! late. Everything else is 0, or a random token.
//!
//! Sources: Arora et al., Zoology, 2023 (the first); Gu and Dao, Mamba, 2023 (the other two).

use crate::{Error, Result};
use danaus_text::loader::IGNORE;
use danaus_text::rng::{Rng, stream};

/// Exponent of the distances at which keys come again.
const POWER: f64 = 0.01;
/// Streams of the generator: one a set of examples.
const TRAINING: u64 = 0x7265_6361;

/// Which examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// To learn from.
    Training,
    /// To measure with; never seen in training.
    Test,
}

/// Which task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Multi-query associative recall.
    Mqar {
        /// Whether the tokens that ask nothing are random instead of 0.
        random_non_queries: bool,
    },
    /// Some tokens are to be repeated in order.
    SelectiveCopying,
    /// What followed last time follows again.
    Induction,
}

impl Kind {
    /// Names for [`Self::from_name`].
    pub const NAMES: &str = "mqar, selective-copying, induction";

    /// The task of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "mqar" => Some(Self::Mqar { random_non_queries: true }),
            "selective-copying" => Some(Self::SelectiveCopying),
            "induction" => Some(Self::Induction),
            _ => None,
        }
    }

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mqar { .. } => "mqar",
            Self::SelectiveCopying => "selective-copying",
            Self::Induction => "induction",
        }
    }
}

/// The shape of a task's examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recall {
    /// Which task.
    pub kind: Kind,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Tokens of an example.
    pub length: usize,
    /// Key-value pairs, or tokens to copy; the induction task has one.
    pub pairs: usize,
    /// Seed of all examples.
    pub seed: u64,
}

/// One sequence with its targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// What is asked at each token, or [`IGNORE`].
    pub targets: Vec<i64>,
}

impl Recall {
    /// Refuses shapes that no example has.
    ///
    /// # Errors
    /// Naming the setting.
    pub fn check(&self) -> Result<()> {
        let Self { vocab_size: vocab, length, pairs, .. } = *self;
        let least = |name: &'static str, given: usize, least: usize| match given >= least {
            true => Ok(()),
            false => Err(Error::config(name, given, format!("at least {least}"))),
        };
        if pairs == 0 || pairs > 1 << 20 {
            return Err(Error::config("pairs", pairs, "1..=1048576"));
        }
        match self.kind {
            // As many keys beside 0, and as many values, as there are pairs; two tokens a pair and two a
            // query.
            Kind::Mqar { .. } => {
                least("vocab_size", vocab, 2 * pairs + 2)?;
                least("length", length, 4 * pairs)
            }
            Kind::SelectiveCopying => {
                least("vocab_size", vocab, 3)?;
                least("length", length, 2 * pairs)
            }
            Kind::Induction if pairs != 1 => {
                Err(Error::config("pairs", pairs, "1 for the induction task"))
            }
            Kind::Induction => {
                least("vocab_size", vocab, 3)?;
                least("length", length, 4)
            }
        }
    }

    /// The same task with other lengths.
    pub fn with_length(self, length: usize) -> Self {
        Self { length, ..self }
    }

    /// Targets of an example.
    pub fn targets(&self) -> usize {
        self.pairs
    }

    /// Example `number` of a set. The shape has passed [`Self::check`].
    pub fn example(&self, set: Set, number: u64) -> Example {
        let kind = TRAINING + u64::from(set == Set::Test);
        let mut rng = Rng::new(self.seed, stream(kind, number));
        match self.kind {
            Kind::Mqar { random_non_queries } => self.mqar(&mut rng, random_non_queries),
            Kind::SelectiveCopying => self.selective_copying(&mut rng),
            Kind::Induction => self.induction(&mut rng),
        }
    }

    fn mqar(&self, rng: &mut Rng, random_non_queries: bool) -> Example {
        let half = self.vocab_size / 2;
        let keys = distinct(rng, self.pairs, half - 1);
        let values = distinct(rng, self.pairs, self.vocab_size - half);
        let mut tokens = vec![0; self.length];
        let mut asked = vec![false; self.length];
        let mut targets = vec![IGNORE; self.length];
        let slots = (self.length - 2 * self.pairs) / 2;
        let gaps = weighted_distinct(rng, self.pairs, slots);
        for (pair, gap) in gaps.into_iter().enumerate() {
            let (key, value) = (1 + keys[pair] as u32, (half + values[pair]) as u32);
            (tokens[2 * pair], tokens[2 * pair + 1]) = (key, value);
            let at = 2 * self.pairs + 2 * gap;
            (tokens[at], asked[at], targets[at]) = (key, true, i64::from(value));
        }
        if random_non_queries {
            for at in (2 * self.pairs..self.length).filter(|&at| !asked[at]) {
                tokens[at] = rng.up_to(self.vocab_size as u64 - 1) as u32;
            }
        }
        Example { tokens, targets }
    }

    fn selective_copying(&self, rng: &mut Rng) -> Example {
        let marker = self.vocab_size as u32 - 1;
        let context = self.length - self.pairs;
        let mut tokens = vec![0; context];
        tokens.resize(self.length, marker);
        let mut targets = vec![IGNORE; self.length];
        let mut places = distinct(rng, self.pairs, context);
        places.sort_unstable();
        for (index, place) in places.into_iter().enumerate() {
            let token = 1 + rng.up_to(u64::from(marker) - 2) as u32;
            tokens[place] = token;
            targets[context + index] = i64::from(token);
        }
        Example { tokens, targets }
    }

    fn induction(&self, rng: &mut Rng) -> Example {
        let marker = self.vocab_size as u32 - 1;
        let mut tokens: Vec<u32> =
            (0..self.length).map(|_| rng.up_to(u64::from(marker) - 1) as u32).collect();
        let mut targets = vec![IGNORE; self.length];
        let last = self.length - 1;
        let first = rng.up_to(last as u64 - 3) as usize;
        (tokens[first], tokens[last]) = (marker, marker);
        targets[last] = i64::from(tokens[first + 1]);
        Example { tokens, targets }
    }
}

/// `count` different numbers below `below`, in random order.
fn distinct(rng: &mut Rng, count: usize, below: usize) -> Vec<usize> {
    // Floyd: as many draws as numbers, whatever the range.
    let mut chosen = std::collections::HashSet::with_capacity(count);
    let mut order = Vec::with_capacity(count);
    for last in below - count..below {
        let drawn = rng.up_to(last as u64) as usize;
        let number = if chosen.insert(drawn) { drawn } else { last };
        chosen.insert(number);
        order.push(number);
    }
    rng.shuffle(&mut order);
    order
}

/// `count` different slots below `below` with weights `(slot + 1)^(POWER - 1)`.
fn weighted_distinct(rng: &mut Rng, count: usize, below: usize) -> Vec<usize> {
    // The largest of ln(u) / weight come first: drawing without repetition in one pass (Efraimidis and
    // Spirakis 2006).
    let key = |slot: usize, rng: &mut Rng| {
        let weight = (slot as f64 + 1.0).powf(POWER - 1.0);
        (rng.uniform().max(f64::MIN_POSITIVE).ln() / weight, slot)
    };
    let mut keyed: Vec<(f64, usize)> = (0..below).map(|slot| key(slot, rng)).collect();
    let order = |a: &(f64, usize), b: &(f64, usize)| b.0.total_cmp(&a.0);
    if count < keyed.len() {
        keyed.select_nth_unstable_by(count, order);
        keyed.truncate(count);
    }
    keyed.sort_unstable_by(order);
    keyed.into_iter().map(|(_, slot)| slot).collect()
}
