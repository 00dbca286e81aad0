//! Generation: prompts and steps through states.
//!
//! A prompt is taken in as one packed batch, then every sequence takes one token a step; sequences that
//! end leave the batch. Random choices are keyed by (seed, sequence, position), so that a text does not
//! depend on its neighbours.

mod sampling;

pub use sampling::{Sampling, choose};

use crate::decoder::Decoder;
use crate::{Error, Result};
use danaus_matrix::state::Slot;
use danaus_matrix::{SeqBatch, StatePool};
use danaus_tensor::{DType, no_grad};

/// What to generate.
#[derive(Clone, Debug)]
pub struct Request {
    /// Prompts as token ids; none may be empty.
    pub prompts: Vec<Vec<u32>>,
    /// Tokens to generate at most, per prompt.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end a text (they are not part of it).
    pub stop: Vec<u32>,
    /// Number of tokens the tokenizer knows; ids from there on are never chosen.
    pub vocab_size: usize,
}

/// A generated text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    /// New tokens.
    pub tokens: Vec<u32>,
    /// Natural logarithm of each token's probability under the model, before sampling filters.
    pub log_probs: Vec<f64>,
    /// Whether a stop token ended it.
    pub stopped: bool,
}

/// A sequence in flight.
struct Sequence {
    index: usize,
    slot: Slot,
    history: Vec<u32>,
    next: u32,
}

/// Generates for every prompt. `on_token(prompt, token)` is called as tokens come.
///
/// # Errors
/// When a prompt is empty or too long, a sampling parameter is out of range, or the model fails.
pub fn generate(
    decoder: &Decoder,
    request: &Request,
    mut on_token: impl FnMut(usize, u32),
) -> Result<Vec<Completion>> {
    check(decoder, request)?;
    let mut completions = vec![Completion::default(); request.prompts.len()];
    if request.max_tokens == 0 {
        return Ok(completions);
    }
    no_grad(|| {
        let mut pool = decoder.state_pool(request.prompts.len())?;
        let mut active = prefill(decoder, request, &mut pool, &mut completions)?;
        loop {
            active.retain(|sequence| !ended(sequence, request, &completions[sequence.index]));
            for sequence in &active {
                on_token(sequence.index, sequence.next);
            }
            active.retain(|sequence| completions[sequence.index].tokens.len() < request.max_tokens);
            if active.is_empty() {
                return Ok(completions);
            }
            step(decoder, request, &mut pool, &mut active, &mut completions)?;
        }
    })
}

fn check(decoder: &Decoder, request: &Request) -> Result<()> {
    request.sampling.check()?;
    let room = decoder.config().max_positions;
    for prompt in &request.prompts {
        if prompt.is_empty() {
            return Err(Error::argument("prompt", "empty", "at least one token"));
        }
        if prompt.len().saturating_add(request.max_tokens) > room {
            let given = format!("{} tokens and {} to generate", prompt.len(), request.max_tokens);
            let valid = format!("at most {room} together (max_positions)");
            return Err(Error::argument("prompt", given, valid));
        }
    }
    Ok(())
}

/// A sequence whose last choice was a stop token has ended without it.
fn ended(sequence: &Sequence, request: &Request, completion: &Completion) -> bool {
    debug_assert!(completion.tokens.len() <= request.max_tokens);
    completion.stopped && request.stop.contains(&sequence.next)
}

fn prefill(
    decoder: &Decoder,
    request: &Request,
    pool: &mut StatePool,
    completions: &mut [Completion],
) -> Result<Vec<Sequence>> {
    let slots: Vec<Slot> =
        request.prompts.iter().map(|_| pool.reserve()).collect::<danaus_tensor::Result<_>>()?;
    let lengths: Vec<usize> = request.prompts.iter().map(Vec::len).collect();
    let batch = SeqBatch::from_lengths(&lengths)?;
    let hidden = decoder.advance(&request.prompts.concat(), &batch, pool, &slots)?;
    let mut active = Vec::new();
    for (index, prompt) in request.prompts.iter().enumerate() {
        let last = hidden.narrow(0, batch.bounds()[index + 1] - 1, 1)?;
        let mut sequence = Sequence { index, slot: slots[index], history: prompt.clone(), next: 0 };
        let logits = decoder.project(&last)?.to_dtype(DType::F64)?.to_vec::<f64>()?;
        accept(request, &mut sequence, &logits, &mut completions[index])?;
        active.push(sequence);
    }
    Ok(active)
}

fn step(
    decoder: &Decoder,
    request: &Request,
    pool: &mut StatePool,
    active: &mut [Sequence],
    completions: &mut [Completion],
) -> Result<()> {
    let ids: Vec<u32> = active.iter().map(|sequence| sequence.next).collect();
    let slots: Vec<Slot> = active.iter().map(|sequence| sequence.slot).collect();
    let batch = SeqBatch::equal(ids.len(), 1)?;
    let hidden = decoder.advance(&ids, &batch, pool, &slots)?;
    let logits = decoder.project(&hidden)?.to_dtype(DType::F64)?.to_vec::<f64>()?;
    let width = decoder.config().vocab_size;
    for (sequence, logits) in active.iter_mut().zip(logits.chunks(width)) {
        accept(request, sequence, logits, &mut completions[sequence.index])?;
    }
    Ok(())
}

/// Chooses the next token and notes it, unless it is a stop token.
fn accept(
    request: &Request,
    sequence: &mut Sequence,
    logits: &[f64],
    completion: &mut Completion,
) -> Result<()> {
    let known = &logits[..request.vocab_size.min(logits.len())];
    let stream = sequence.index as u64;
    let position = sequence.history.len() as u64;
    let (token, log_prob) = choose(known, &request.sampling, &sequence.history, stream, position)?;
    sequence.next = token;
    if request.stop.contains(&token) {
        completion.stopped = true;
        return Ok(());
    }
    sequence.history.push(token);
    completion.tokens.push(token);
    completion.log_probs.push(log_prob);
    Ok(())
}

#[cfg(test)]
mod tests;
