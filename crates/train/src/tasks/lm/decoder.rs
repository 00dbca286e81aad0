//! The engine's decoder as a language model to train.
//!
//! With activations in bf16 the parameters stay f32 masters: the decoder casts them on the tape, so
//! gradients and updates are f32. The moment keys dropout.

use super::{Completion, LanguageModel};
use crate::task::Moment;
use crate::{Error, Result};
use danaus_matrix::SeqBatch;
use danaus_model::Decoder;
use danaus_model::generate::{Request, Sampling, generate};
use danaus_tensor::{ParamSet, Tensor};
use danaus_text::loader::Batch;
use serde_json::Value;
use std::path::Path;

fn packed(batch: &Batch) -> Result<SeqBatch> {
    let bounds = batch.cu_seqlens.iter().map(|&bound| bound as usize).collect();
    Ok(SeqBatch::from_bounds(bounds)?)
}

impl LanguageModel for Decoder {
    fn params(&self) -> &ParamSet {
        Decoder::params(self)
    }

    fn config(&self) -> Result<Value> {
        let value = serde_json::to_value(Decoder::config(self));
        value.map_err(|error| Error::Internal(format!("the model's config: {error}")))
    }

    fn loss(&self, batch: &Batch, moment: Option<Moment>) -> Result<Tensor> {
        let (tokens, targets, packed) = (&batch.tokens, &batch.targets, packed(batch)?);
        Ok(match moment {
            Some(moment) => self.training_loss(tokens, targets, &packed, moment.noise())?,
            None => Decoder::loss(self, tokens, targets, &packed)?,
        })
    }

    fn complete(&self, request: &Completion) -> Result<Vec<u32>> {
        let temperature = request.temperature;
        let room = Decoder::config(self).max_positions.saturating_sub(request.prompt.len());
        let sampling = Sampling { temperature, seed: request.seed, ..Sampling::default() };
        let completions = generate(
            self,
            &Request {
                prompts: vec![request.prompt.to_vec()],
                max_tokens: request.max_tokens.min(room),
                sampling,
                stop: request.stop.to_vec(),
                vocab_size: request.vocab_size,
                ..Request::default()
            },
            |_, _| {},
        )?;
        Ok(completions.into_iter().next().map(|completion| completion.tokens).unwrap_or_default())
    }

    fn save(&self, folder: &Path) -> Result<()> {
        danaus_model::checkpoint::save_config(self, folder)?;
        Ok(())
    }

    fn activation_bytes(&self, tokens: usize) -> u64 {
        let recompute = Decoder::compute(self).recompute;
        let terms = Decoder::config(self).training_bytes(tokens, recompute).unwrap_or_default();
        terms.iter().filter(|(what, _)| *what == "activations").map(|(_, bytes)| bytes).sum()
    }
}
