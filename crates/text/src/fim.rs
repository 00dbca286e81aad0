//! Fill-in-the-middle: a document is cut at two places and rearranged so that a left-to-right model
//! learns to write the middle (Bavarian et al. 2022; StarCoder, Li et al. 2023).
//!
//! ```text
//! PSM:  <fim_prefix> prefix <fim_suffix> suffix <fim_middle> middle
//! SPM:  <fim_prefix> <fim_suffix> suffix <fim_middle> prefix middle      (variant 2)
//! ```
//!
//! The cut points are in characters, uniform over 0..=len, sorted; the three parts are encoded
//! separately, so that a cut inside of a word looks at inference as it did in training. Nothing is
//! appended: the caller adds the end-of-text token that tells the model where a middle ends.

use crate::rng::Rng;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The order of the three parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Prefix, suffix, middle.
    Psm,
    /// Suffix, then prefix and middle in one run.
    Spm,
}

/// How often documents are rearranged.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct FimOptions {
    /// Share of the documents that are rearranged.
    pub rate: f64,
    /// Share of those in the order SPM.
    pub spm_rate: f64,
}

impl Default for FimOptions {
    fn default() -> Self {
        Self { rate: 0.5, spm_rate: 0.5 }
    }
}

impl FimOptions {
    fn validate(&self) -> Result<()> {
        for (name, share) in [("fim rate", self.rate), ("fim spm_rate", self.spm_rate)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::argument(name, share, "0..=1"));
            }
        }
        Ok(())
    }
}

/// Rearranges documents for one tokenizer.
#[derive(Clone)]
pub struct Fim {
    tokenizer: Tokenizer,
    options: FimOptions,
    prefix: u32,
    middle: u32,
    suffix: u32,
}

/// Spellings of one sentinel: StarCoder, SantaCoder, Qwen.
fn find(tokenizer: &Tokenizer, part: &str) -> Option<u32> {
    [format!("<fim_{part}>"), format!("<fim-{part}>"), format!("<|fim_{part}|>")]
        .iter()
        .find_map(|spelling| tokenizer.token_to_id(spelling))
}

impl Fim {
    /// How many tokens the sentinels add to a document.
    pub const SENTINELS: usize = 3;

    /// Looks the sentinels up.
    ///
    /// # Errors
    /// A tokenizer without them, or shares outside of 0..=1.
    pub fn new(tokenizer: &Tokenizer, options: FimOptions) -> Result<Self> {
        options.validate()?;
        let parts =
            [("prefix", "<fim_prefix>"), ("middle", "<fim_middle>"), ("suffix", "<fim_suffix>")];
        let found = parts.map(|(part, _)| find(tokenizer, part));
        if let [Some(prefix), Some(middle), Some(suffix)] = found {
            return Ok(Self { tokenizer: tokenizer.clone(), options, prefix, middle, suffix });
        }
        let missing = parts.iter().zip(found).filter(|(_, id)| id.is_none());
        Err(Error::MissingSentinels { missing: missing.map(|((_, name), _)| *name).collect() })
    }

    /// The shares in use.
    pub fn options(&self) -> FimOptions {
        self.options
    }

    /// Rearranges a document at two given places, in characters and any order.
    ///
    /// # Errors
    /// A place beyond the end of the text.
    pub fn rearrange(&self, text: &str, cuts: [usize; 2], order: Order) -> Result<Vec<u32>> {
        let [first, second] = [cuts[0].min(cuts[1]), cuts[0].max(cuts[1])];
        let (first, second) = (byte_offset(text, first)?, byte_offset(text, second)?);
        let prefix = self.tokenizer.encode_ordinary(&text[..first])?;
        let middle = self.tokenizer.encode_ordinary(&text[first..second])?;
        let suffix = self.tokenizer.encode_ordinary(&text[second..])?;
        let mut ids = self.arrange(&prefix, &suffix, order);
        ids.extend(middle);
        Ok(ids)
    }

    /// Draws whether and in which order to rearrange a document.
    pub fn draw_order(&self, rng: &mut Rng) -> Option<Order> {
        let rearranged = rng.uniform() < self.options.rate;
        let order = if rng.uniform() < self.options.spm_rate { Order::Spm } else { Order::Psm };
        rearranged.then_some(order)
    }

    /// Rearranges a document at two places drawn uniformly.
    ///
    /// # Errors
    /// Failures of the tokenizer.
    pub fn rearrange_anywhere(&self, text: &str, order: Order, rng: &mut Rng) -> Result<Vec<u32>> {
        let length = text.chars().count() as u64;
        let cuts = [rng.up_to(length) as usize, rng.up_to(length) as usize];
        self.rearrange(text, cuts, order)
    }

    /// The prompt whose continuation is the text between `prefix` and `suffix`.
    ///
    /// # Errors
    /// Failures of the tokenizer.
    pub fn prompt(&self, prefix: &str, suffix: &str, order: Order) -> Result<Vec<u32>> {
        let prefix = self.tokenizer.encode_ordinary(prefix)?;
        let suffix = self.tokenizer.encode_ordinary(suffix)?;
        Ok(self.arrange(&prefix, &suffix, order))
    }

    /// The tokens at which generation of a middle stops: end of text and every sentinel.
    pub fn stop_tokens(&self) -> Vec<u32> {
        let pad = find(&self.tokenizer, "pad");
        let optional = [self.tokenizer.end_of_text(), pad];
        let sentinels = [self.prefix, self.middle, self.suffix];
        optional.into_iter().flatten().chain(sentinels).collect()
    }

    fn arrange(&self, prefix: &[u32], suffix: &[u32], order: Order) -> Vec<u32> {
        let (open, suffix_mark, middle_mark) = ([self.prefix], [self.suffix], [self.middle]);
        match order {
            Order::Psm => [&open, prefix, &suffix_mark, suffix, &middle_mark].concat(),
            Order::Spm => [&open, &suffix_mark, suffix, &middle_mark, prefix].concat(),
        }
    }
}

fn byte_offset(text: &str, characters: usize) -> Result<usize> {
    let mut offsets = text.char_indices().map(|(offset, _)| offset).chain([text.len()]);
    offsets.nth(characters).ok_or_else(|| {
        Error::argument("cut point", characters, format!("0..={} characters", text.chars().count()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> String {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/29-starcoder/");
        std::fs::read_to_string(format!("{root}{name}")).unwrap()
    }

    fn fim(options: FimOptions) -> Fim {
        let json = golden("tiny-starcoder/tokenizer.json");
        Fim::new(&Tokenizer::from_json(json).unwrap(), options).unwrap()
    }

    /// All ids of the original permutation function with scripted cut points.
    #[test]
    fn golden_cases_are_exact() {
        let fim = fim(FimOptions::default());
        let file: serde_json::Value = serde_json::from_str(&golden("fim.json")).unwrap();
        let cases = file["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 20);
        for case in cases {
            let cuts: [usize; 2] =
                serde_json::from_value(case["boundaries_chars"].clone()).unwrap();
            let order = if case["mode"] == "psm" { Order::Psm } else { Order::Spm };
            let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let text = case["text"].as_str().unwrap();
            assert_eq!(fim.rearrange(text, cuts, order).unwrap(), expected, "{text:?} {cuts:?}");
        }
    }

    #[test]
    fn prompt_is_the_document_up_to_the_middle() {
        let fim = fim(FimOptions::default());
        let text = "fn add(a: u32, b: u32) -> u32 {\n    a + b\n}\n";
        for order in [Order::Psm, Order::Spm] {
            let document = fim.rearrange(text, [10, 30], order).unwrap();
            let prompt = fim.prompt(&text[..10], &text[30..], order).unwrap();
            assert!(document.starts_with(&prompt));
            let middle = fim.tokenizer.decode(&document[prompt.len()..], false).unwrap();
            assert_eq!(middle, text[10..30]);
        }
        assert_eq!(fim.stop_tokens(), [0, 4, 1, 2, 3]);
    }

    /// Shares over 4000 draws: the standard error is 0.008 (0.011 for the half that is rearranged),
    /// bounds are five of them. The cut points are characters: nothing splits `é`.
    #[test]
    fn draws_have_the_stated_shares() {
        let fim = fim(FimOptions::default());
        let text = "déjà vu: été";
        let (mut rearranged, mut spm, mut edge) = (0, 0, 0);
        for seed in 0..4000 {
            let mut rng = Rng::new(seed, 5);
            let Some(order) = fim.draw_order(&mut rng) else { continue };
            let ids = fim.rearrange_anywhere(text, order, &mut rng).unwrap();
            rearranged += 1;
            spm += u32::from(order == Order::Spm);
            edge += u32::from(ids.ends_with(&[fim.middle]));
            let bytes = fim.tokenizer.decode_bytes(&ids, true).unwrap();
            let mut characters: Vec<char> = String::from_utf8(bytes).unwrap().chars().collect();
            let mut expected: Vec<char> = text.chars().collect();
            characters.sort_unstable();
            expected.sort_unstable();
            assert_eq!(characters, expected);
        }
        assert!((1800..=2200).contains(&rearranged), "{rearranged}");
        let share = f64::from(spm) / f64::from(rearranged);
        assert!((share - 0.5).abs() < 0.1, "{share}");
        assert!(edge > 0, "equal cut points occur");
    }

    #[test]
    fn errors_name_the_cause() {
        let fim = fim(FimOptions::default());
        let error = fim.rearrange("abc", [0, 4], Order::Psm).unwrap_err().to_string();
        assert!(error.contains("cut point") && error.contains("0..=3"), "{error}");
        let json = golden("tiny-starcoder/tokenizer.json").replace("<fim_suffix>", "<other>");
        let bare = Tokenizer::from_json(json).unwrap();
        let error = Fim::new(&bare, FimOptions::default()).err().unwrap();
        assert!(
            matches!(&error, Error::MissingSentinels { missing } if missing == &["<fim_suffix>"])
        );
        let wrong = FimOptions { rate: 1.5, ..FimOptions::default() };
        assert!(Fim::new(&fim.tokenizer, wrong).is_err());
    }
}
