//! Training of byte-level BPE vocabularies.
//!
//! Digits are split individually, then the GPT-2 expression splits words, then merges are learned
//! (StarCoder, section "Tokenizer"). All 256 bytes are in the vocabulary, so that any document can
//! be encoded. The result depends on the documents and options only.

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, ModelWrapper};

use super::{Tokenizer, bytes, failed};
use crate::rng::{self, Rng};
use crate::{Error, Result};

/// The special tokens of StarCoder, in the order of their ids 0..=18.
pub const STARCODER_SPECIAL_TOKENS: [&str; 19] = [
    "<|endoftext|>",
    "<fim_prefix>",
    "<fim_middle>",
    "<fim_suffix>",
    "<fim_pad>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<empty_output>",
    "<commit_before>",
    "<commit_msg>",
    "<commit_after>",
    "<reponame>",
];

/// What to train.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Number of token ids, special tokens and the 256 bytes included. Short texts may yield fewer.
    pub vocab_size: usize,
    /// Special tokens; they get the first ids in this order.
    pub special_tokens: Vec<String>,
    /// Pairs seen less often than this are not merged.
    pub min_frequency: u64,
    /// Train on at most about this many bytes, in whole documents drawn at random: merges settle
    /// long before a corpus ends.
    pub sample_bytes: usize,
    /// Seed of that draw.
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            vocab_size: 4096,
            special_tokens: STARCODER_SPECIAL_TOKENS.map(String::from).to_vec(),
            min_frequency: 2,
            sample_bytes: 8 << 20,
            seed: 0,
        }
    }
}

/// Whole documents in random order until the budget is reached; always at least one.
fn sample<'a, D: AsRef<[u8]>>(documents: &'a [D], options: &TrainOptions) -> Vec<&'a [u8]> {
    let total: usize = documents.iter().map(|document| document.as_ref().len()).sum();
    let mut order: Vec<usize> = (0..documents.len()).collect();
    if total > options.sample_bytes {
        Rng::new(options.seed, rng::stream(rng::TOKENIZER_SAMPLE, 0)).shuffle(&mut order);
    }
    let mut taken = 0;
    let mut sample = Vec::new();
    for index in order {
        let document = documents[index].as_ref();
        if sample.is_empty() || taken + document.len() <= options.sample_bytes {
            taken += document.len();
            sample.push(document);
        }
    }
    sample
}

pub(super) fn train<D: AsRef<[u8]>>(documents: &[D], options: &TrainOptions) -> Result<Tokenizer> {
    let smallest = options.special_tokens.len() + 256;
    if options.vocab_size < smallest {
        return Err(Error::argument(
            "vocab_size",
            options.vocab_size,
            format!("at least {smallest}: the special tokens and 256 bytes"),
        ));
    }
    let action = "train";
    let byte_level = ByteLevel::new(false, true, true);
    let split: Vec<PreTokenizerWrapper> = vec![Digits::new(true).into(), byte_level.into()];
    let mut tokenizer = tokenizers::Tokenizer::new(ModelWrapper::BPE(BPE::default()));
    tokenizer.with_pre_tokenizer(Some(Sequence::new(split)));
    tokenizer.with_decoder(Some(byte_level));

    let special = options.special_tokens.iter().map(|token| AddedToken::from(token.as_str(), true));
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(options.vocab_size)
        .min_frequency(options.min_frequency)
        .special_tokens(special.collect())
        .initial_alphabet(bytes::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let sample = sample(documents, options);
    let texts = sample.iter().flat_map(|document| document.utf8_chunks()).map(|c| c.valid());
    tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), texts).map_err(failed(action))?;
    Tokenizer::from_json(tokenizer.to_string(true).map_err(failed(action))?)
}
