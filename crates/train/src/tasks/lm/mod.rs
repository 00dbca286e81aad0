//! Language modelling: next-token prediction on packed documents, with fill-in-the-middle.
//!
//! The loss is the mean cross-entropy over all targets of a batch. Held-out quality is **bits per
//! byte**, which does not depend on the tokenizer:
//!
//! ```text
//! bits per byte = (sum of token losses / ln 2 + 8 * bytes without prediction) / bytes of all documents
//! ```
//!
//! The first token of a document has nothing before it and is not predicted; its bytes are charged
//! with 8 bits each, as if stored. The end-of-text token is predicted and stands for no byte. So the
//! figure can be compared with that of a compressor on the same files.

mod decoder;
pub mod run;

use crate::task::{Identity, Loss, MemoryTerm, Moment, Sample, Task, Validation};
use crate::{Error, Result};
use danaus_tensor::{ParamSet, Tensor, no_grad};
use danaus_text::fim::{Fim, Order};
use danaus_text::loader::{Batch, Cursor, IGNORE, Loader, LoaderOptions};
use danaus_text::pack::TokenSource;
use danaus_text::tokenizer::Tokenizer;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// Name of the tokenizer's file in a model folder.
const TOKENIZER_NAME: &str = "tokenizer.json";

/// What this task needs of a model.
pub trait LanguageModel {
    /// All trainable parameters, always in the same order.
    fn params(&self) -> &ParamSet;

    /// The configuration, as it is saved.
    ///
    /// # Errors
    /// When it cannot be written down.
    fn config(&self) -> Result<Value>;

    /// Mean cross-entropy in nats over the targets that are not [`IGNORE`]: a scalar. `moment` keys
    /// dropout and is `None` in evaluation.
    ///
    /// # Errors
    /// When an operator fails.
    fn loss(&self, batch: &Batch, moment: Option<Moment>) -> Result<Tensor>;

    /// Tokens that follow a prompt, up to a stop token (not included) or `max_tokens`.
    ///
    /// # Errors
    /// When an operator fails.
    fn complete(&self, request: &Completion) -> Result<Vec<u32>>;

    /// Writes the configuration into a model folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    fn save(&self, folder: &Path) -> Result<()>;

    /// Memory that forward and backward need for a batch of so many tokens.
    fn activation_bytes(&self, tokens: usize) -> u64;
}

/// A prompt and how to go on from it.
#[derive(Clone, Debug)]
pub struct Completion<'a> {
    /// Token ids; not empty.
    pub prompt: &'a [u32],
    /// Tokens to write at most.
    pub max_tokens: usize,
    /// 0 takes the likeliest token.
    pub temperature: f64,
    /// Key of the draws.
    pub seed: u64,
    /// Tokens that end the text.
    pub stop: &'a [u32],
    /// Tokens the tokenizer knows; ids from there on are never written.
    pub vocab_size: usize,
}

/// Settings of the task.
#[derive(Clone, Debug, PartialEq)]
pub struct LmOptions {
    /// Training batches: sizes, order, fill-in-the-middle.
    pub loader: LoaderOptions,
    /// Held-out batches of a validation during training; `None` for all.
    pub validation_batches: Option<usize>,
    /// Texts to complete at each validation.
    pub prompts: Vec<String>,
    /// Gaps to fill at each validation: text before, text after.
    pub gaps: Vec<(String, String)>,
    /// Tokens of a sample.
    pub sample_tokens: usize,
    /// Temperature of samples.
    pub temperature: f64,
}

impl LmOptions {
    /// Training batches of `rows` sequences of up to `row_tokens` tokens, and no samples.
    pub fn new(rows: usize, row_tokens: usize, seed: u64) -> Self {
        Self {
            loader: LoaderOptions::training(rows, row_tokens, seed),
            validation_batches: None,
            prompts: Vec::new(),
            gaps: Vec::new(),
            sample_tokens: 64,
            temperature: 0.7,
        }
    }
}

/// Training and held-out documents.
#[derive(Clone)]
pub struct LmData {
    /// The tokenizer that encoded them.
    pub tokenizer: Tokenizer,
    /// Documents to train on.
    pub training: Arc<dyn TokenSource>,
    /// Documents to validate on.
    pub held_out: Option<Arc<dyn TokenSource>>,
}

/// A language model in training.
pub struct LanguageModelling<M> {
    model: M,
    data: LmData,
    options: LmOptions,
    loader: Loader,
    byte_lengths: Vec<u32>,
}

impl<M: LanguageModel> LanguageModelling<M> {
    /// Starts at the beginning of the data.
    ///
    /// # Errors
    /// Settings that do not fit the data; fill-in-the-middle without sentinels in the tokenizer.
    pub fn new(model: M, data: LmData, options: LmOptions) -> Result<Self> {
        let loader = Loader::new(data.training.clone(), &data.tokenizer, options.loader.clone())?;
        if !options.gaps.is_empty() {
            Fim::new(&data.tokenizer, options.loader.fim.unwrap_or_default())?;
        }
        let byte_lengths = data.tokenizer.byte_lengths();
        Ok(Self { model, data, options, loader, byte_lengths })
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Held-out loss and bits per byte over the first `batches` batches, or all documents.
    ///
    /// # Errors
    /// When the documents cannot be read or an operator fails.
    pub fn evaluate(&self, batches: Option<usize>) -> Result<Option<Validation>> {
        let Some(held_out) = &self.data.held_out else { return Ok(None) };
        let LoaderOptions { rows, row_tokens, .. } = self.options.loader;
        let options = LoaderOptions::evaluation(rows, row_tokens);
        let mut loader = Loader::new(held_out.clone(), &self.data.tokenizer, options)?;
        let mut sums = Sums::default();
        let mut left = batches.unwrap_or(usize::MAX);
        while left > 0
            && let Some(batch) = loader.next_batch()?
        {
            let mean = no_grad(|| self.model.loss(&batch, None))?.to_scalar()?;
            sums.add(&batch, mean, &self.byte_lengths);
            left -= 1;
        }
        Ok(sums.validation())
    }

    fn sample(&self, index: usize, prompt: &[u32], stop: &[u32]) -> Result<String> {
        let completion = Completion {
            prompt,
            max_tokens: self.options.sample_tokens,
            temperature: self.options.temperature,
            seed: self.options.loader.seed.wrapping_add(index as u64),
            stop,
            vocab_size: self.data.tokenizer.vocab_size(),
        };
        let tokens = self.model.complete(&completion)?;
        Ok(self.data.tokenizer.decode(&tokens, true)?)
    }
}

/// Sums over held-out batches.
#[derive(Default)]
struct Sums {
    nats: f64,
    targets: u64,
    /// Bytes that targets stand for, and bytes of all tokens.
    predicted_bytes: u64,
    bytes: u64,
}

impl Sums {
    fn add(&mut self, batch: &Batch, mean: f64, byte_lengths: &[u32]) {
        let targets = count_targets(batch);
        self.nats += mean * targets as f64;
        self.targets += targets;
        self.predicted_bytes += batch.target_bytes(byte_lengths);
        let length = |id: &u32| byte_lengths.get(*id as usize).copied().map_or(0, u64::from);
        self.bytes += batch.tokens.iter().map(length).sum::<u64>();
    }

    fn validation(&self) -> Option<Validation> {
        if self.targets == 0 || self.bytes == 0 {
            return None;
        }
        // A cut at the end of the last batch may leave a target whose token is no input any more.
        let stored = self.bytes.saturating_sub(self.predicted_bytes);
        let bytes = self.bytes.max(self.predicted_bytes) as f64;
        let bits = self.nats / std::f64::consts::LN_2 + 8.0 * stored as f64;
        let loss = self.nats / self.targets as f64;
        Some(Validation { loss, bits_per_byte: Some(bits / bytes), accuracy: None })
    }
}

fn count_targets(batch: &Batch) -> u64 {
    batch.targets.iter().filter(|target| **target != IGNORE).count() as u64
}

impl<M: LanguageModel> Task for LanguageModelling<M> {
    type Batch = Batch;

    fn params(&self) -> &ParamSet {
        self.model.params()
    }

    fn next_batch(&mut self) -> Result<Option<Batch>> {
        Ok(self.loader.next_batch()?)
    }

    fn loss(&self, batch: &Batch, moment: Moment) -> Result<Loss> {
        let mean = self.model.loss(batch, Some(moment))?;
        Ok(Loss {
            mean,
            targets: count_targets(batch),
            tokens: batch.tokens.len() as u64,
            bytes: batch.target_bytes(&self.byte_lengths),
        })
    }

    fn validate(&self) -> Result<Option<Validation>> {
        self.evaluate(self.options.validation_batches)
    }

    fn samples(&self) -> Result<Vec<Sample>> {
        let tokenizer = &self.data.tokenizer;
        let end: Vec<u32> = tokenizer.end_of_text().into_iter().collect();
        let mut samples = Vec::new();
        for (index, text) in self.options.prompts.iter().enumerate() {
            let prompt = tokenizer.encode_ordinary(text)?;
            let output = self.sample(index, &prompt, &end)?;
            let (kind, prompt) = ("completion".to_string(), text.clone());
            samples.push(Sample { kind, prompt, output, suffix: String::new() });
        }
        if self.options.gaps.is_empty() {
            return Ok(samples);
        }
        let fim = Fim::new(tokenizer, self.options.loader.fim.unwrap_or_default())?;
        for (index, (before, after)) in self.options.gaps.iter().enumerate() {
            let prompt = fim.prompt(before, after, Order::Psm)?;
            let output = self.sample(index, &prompt, &fim.stop_tokens())?;
            let (kind, prompt, suffix) = ("infilling".to_string(), before.clone(), after.clone());
            samples.push(Sample { kind, prompt, output, suffix });
        }
        Ok(samples)
    }

    fn cursor(&self) -> Result<Value> {
        let cursor = serde_json::to_value(self.loader.cursor());
        cursor.map_err(|error| Error::Internal(format!("the loader's cursor: {error}")))
    }

    fn seek(&mut self, cursor: &Value) -> Result<()> {
        let read = serde_json::from_value::<Cursor>(cursor.clone());
        let cursor =
            read.map_err(|error| Error::config("loader cursor", error, "a saved position"))?;
        let LmData { training, tokenizer, .. } = &self.data;
        self.loader =
            Loader::resume(training.clone(), tokenizer, self.options.loader.clone(), cursor)?;
        Ok(())
    }

    fn identity(&self) -> Result<Identity> {
        Ok(Identity {
            task: "lm".to_string(),
            model: self.model.config()?,
            tokenizer: Some(self.data.tokenizer.digest().to_string()),
        })
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.model.save(folder)?;
        let path = folder.join(TOKENIZER_NAME);
        let json = self.data.tokenizer.json().as_bytes();
        danaus_runtime::fs::write_atomic(&path, |writer| std::io::Write::write_all(writer, json))
            .map_err(Error::io(&path))
    }

    fn memory(&self) -> Vec<MemoryTerm> {
        let tokens = self.options.loader.rows * self.options.loader.row_tokens;
        let bytes = self.model.activation_bytes(tokens);
        vec![MemoryTerm { what: "activations".to_string(), bytes }]
    }
}

#[cfg(test)]
mod tests;
