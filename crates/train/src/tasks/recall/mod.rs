//! Tasks that ask a model to find again what it has seen: associative recall, selective copying, induction.
//!
//! The loss is the mean cross-entropy over the tokens at which something is asked; the measure is
//! **accuracy**, the share of them whose likeliest token is right. Training draws examples of one length;
//! measuring may use any other, since a sequence is read in chunks with states (see [`accuracy`]): that
//! shows whether a model recalls at thousands of times the length it learned from.

pub mod examples;
pub mod run;

use crate::task::{Identity, Loss, MemoryTerm, Moment, Task, Validation};
use crate::tasks::lm::LanguageModel;
use crate::{Error, Result};
use danaus_matrix::SeqBatch;
use danaus_model::Decoder;
use danaus_tensor::{DType, Device, ParamSet, Tensor, no_grad};
use danaus_text::loader::IGNORE;
use danaus_text::rng::{Rng, stream};
use examples::{Recall, Set};
use serde_json::{Value, json};
use std::path::Path;

/// Tokens that a sequence is measured with at a time.
const CHUNK: usize = 4096;
/// Stream of the order of examples.
const ORDER: u64 = 0x6f72_6465;

/// Settings of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecallOptions {
    /// The examples.
    pub recall: Recall,
    /// Sequences of a batch.
    pub rows: usize,
    /// Training examples, taken again in another order each time; `None` never repeats one.
    pub examples: Option<u64>,
    /// Examples of a validation during training.
    pub validation: u64,
}

/// A decoder that learns to recall.
pub struct Recalling {
    decoder: Decoder,
    options: RecallOptions,
    position: u64,
    /// Order of the examples in the present pass over them.
    order: Option<(u64, Vec<u64>)>,
}

/// Packed sequences of equal length.
pub struct Batch {
    tokens: Vec<u32>,
    targets: Vec<i64>,
    rows: usize,
}

/// Which share of what is asked a decoder gets right.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Answers.
    pub targets: u64,
    /// Right ones.
    pub right: u64,
    /// Sum of the losses in nats.
    pub nats: f64,
}

impl Score {
    /// Right answers over all.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.targets.max(1) as f64
    }

    /// Mean loss in nats.
    pub fn loss(&self) -> f64 {
        self.nats / self.targets.max(1) as f64
    }

    /// Counts the rows of `logits`, `[answers, vocab]`.
    fn add(&mut self, logits: &Tensor, expected: &[i64]) -> Result<()> {
        let vocab = logits.dims()[1];
        let values = logits.to_dtype(DType::F32)?.to_vec::<f32>()?;
        for (row, &target) in values.chunks(vocab).zip(expected) {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|&logit| f64::from(logit - most).exp()).sum();
            let logit = row.get(target as usize).copied().unwrap_or(f32::NEG_INFINITY);
            // A tie is no answer.
            let is_best = row.iter().filter(|&&other| other >= logit).count() == 1;
            self.targets += 1;
            self.right += u64::from(is_best);
            self.nats += sum.ln() + f64::from(most - logit);
        }
        Ok(())
    }
}

/// Rows of `hidden` at which something is asked, and what.
fn asked(hidden: &Tensor, targets: &[i64]) -> Result<Option<(Tensor, Vec<i64>)>> {
    let at: Vec<i64> =
        (0..targets.len()).filter(|&at| targets[at] != IGNORE).map(|at| at as i64).collect();
    if at.is_empty() {
        return Ok(None);
    }
    let expected = at.iter().map(|&at| targets[at as usize]).collect();
    let rows = Tensor::from_vec(at.clone(), [at.len()], &Device::Cpu)?;
    Ok(Some((hidden.index_select(0, &rows.to_device(&hidden.device())?)?, expected)))
}

/// The score of a decoder on `count` test examples, each read in chunks with states.
///
/// # Errors
/// When an example is longer than the model's `max_positions`, or an operator fails.
pub fn accuracy(decoder: &Decoder, recall: &Recall, count: u64) -> Result<Score> {
    let mut score = Score::default();
    for number in 0..count {
        let example = recall.example(Set::Test, number);
        let mut pool = decoder.state_pool(1)?;
        let slot = pool.reserve()?;
        for (tokens, targets) in example.tokens.chunks(CHUNK).zip(example.targets.chunks(CHUNK)) {
            let batch = SeqBatch::from_lengths(&[tokens.len()])?;
            let hidden = no_grad(|| decoder.advance(tokens, &batch, &mut pool, &[slot]))?;
            if let Some((rows, expected)) = asked(&hidden, targets)? {
                score.add(&no_grad(|| decoder.project(&rows))?, &expected)?;
            }
        }
    }
    Ok(score)
}

impl Recalling {
    /// Starts with the first example.
    ///
    /// # Errors
    /// When the settings fit no example, or not the decoder.
    pub fn new(decoder: Decoder, options: RecallOptions) -> Result<Self> {
        options.recall.check()?;
        if options.rows == 0 {
            return Err(Error::config("rows", 0, "at least 1"));
        }
        if options.examples == Some(0) {
            return Err(Error::config("examples", 0, "at least 1"));
        }
        let (vocab, longest) = (decoder.config().vocab_size, decoder.config().max_positions);
        if options.recall.vocab_size > vocab {
            let valid = format!("at most {vocab}, the model's");
            return Err(Error::config("vocab_size", options.recall.vocab_size, valid));
        }
        if options.recall.length > longest {
            let valid = format!("at most {longest} (max_positions of the model)");
            return Err(Error::config("length", options.recall.length, valid));
        }
        Ok(Self { decoder, options, position: 0, order: None })
    }

    /// The model.
    pub fn model(&self) -> &Decoder {
        &self.decoder
    }

    /// The number of the example at a position of the training.
    fn number(&mut self, position: u64) -> u64 {
        let Some(count) = self.options.examples else { return position };
        let pass = position / count;
        if self.order.as_ref().is_none_or(|(of, _)| *of != pass) {
            let mut order: Vec<u64> = (0..count).collect();
            Rng::new(self.options.recall.seed, stream(ORDER, pass)).shuffle(&mut order);
            self.order = Some((pass, order));
        }
        self.order.as_ref().map_or(0, |(_, order)| order[(position % count) as usize])
    }

    fn batch(&self, set: Set, numbers: &[u64]) -> Batch {
        let (mut tokens, mut targets) = (Vec::new(), Vec::new());
        for &number in numbers {
            let example = self.options.recall.example(set, number);
            tokens.extend(example.tokens);
            targets.extend(example.targets);
        }
        Batch { tokens, targets, rows: numbers.len() }
    }

    fn hidden(&self, batch: &Batch) -> Result<Tensor> {
        let packed = SeqBatch::equal(batch.rows, self.options.recall.length)?;
        Ok(self.decoder.hidden(&batch.tokens, &packed)?)
    }
}

impl Task for Recalling {
    type Batch = Batch;

    fn params(&self) -> &ParamSet {
        self.decoder.params()
    }

    fn next_batch(&mut self) -> Result<Option<Batch>> {
        let end = self.position + self.options.rows as u64;
        let numbers: Vec<u64> = (self.position..end).map(|at| self.number(at)).collect();
        self.position = end;
        Ok(Some(self.batch(Set::Training, &numbers)))
    }

    fn loss(&self, batch: &Batch, moment: Moment) -> Result<Loss> {
        let packed = SeqBatch::equal(batch.rows, self.options.recall.length)?;
        let Batch { tokens, targets, .. } = batch;
        let mean = self.decoder.training_loss(tokens, targets, &packed, moment.noise())?;
        let targets = (batch.rows * self.options.recall.targets()) as u64;
        Ok(Loss { mean, targets, tokens: batch.tokens.len() as u64, bytes: 0 })
    }

    fn validate(&self) -> Result<Option<Validation>> {
        let numbers: Vec<u64> = (0..self.options.validation).collect();
        let mut score = Score::default();
        for rows in numbers.chunks(self.options.rows) {
            let batch = self.batch(Set::Test, rows);
            let hidden = no_grad(|| self.hidden(&batch))?;
            if let Some((rows, expected)) = asked(&hidden, &batch.targets)? {
                score.add(&no_grad(|| self.decoder.project(&rows))?, &expected)?;
            }
        }
        let accuracy = Some(score.accuracy());
        let measured = Validation { loss: score.loss(), bits_per_byte: None, accuracy };
        Ok((score.targets > 0).then_some(measured))
    }

    fn cursor(&self) -> Result<Value> {
        Ok(json!({ "position": self.position }))
    }

    fn seek(&mut self, cursor: &Value) -> Result<()> {
        let position = cursor["position"].as_u64();
        self.position =
            position.ok_or_else(|| Error::config("cursor", cursor, "a saved position"))?;
        Ok(())
    }

    fn identity(&self) -> Result<Identity> {
        let Recall { kind, vocab_size, length, pairs, seed } = self.options.recall;
        let task = format!(
            "{} of {pairs} in {length}, {vocab_size} tokens, seed {seed}, {}",
            kind.name(),
            self.options.examples.map_or("fresh".to_string(), |count| format!("{count} examples"))
        );
        Ok(Identity { task, model: LanguageModel::config(&self.decoder)?, tokenizer: None })
    }

    fn save(&self, folder: &Path) -> Result<()> {
        LanguageModel::save(&self.decoder, folder)
    }

    fn memory(&self) -> Vec<MemoryTerm> {
        let tokens = self.options.rows * self.options.recall.length;
        let bytes = self.decoder.activation_bytes(tokens);
        vec![MemoryTerm { what: "activations".to_string(), bytes }]
    }
}

#[cfg(test)]
mod tests;
