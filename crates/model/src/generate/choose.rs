//! From logits to tokens: what is computed where the logits are, and what on the processor.

use super::Choice;
use super::run::Sequence;
use crate::generate::Request;
use crate::{Error, Result};
use danaus_kernel::ops::cross_entropy::{Options as LossOptions, Reduction, cross_entropy};
use danaus_runtime::pool::Scratch;
use danaus_runtime::threads;
use danaus_tensor::{DType, Device, Tensor};
use std::sync::{Mutex, PoisonError};

/// What the host wants of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The likeliest of so many tokens, and how likely it is.
    Best(usize),
    /// All of them.
    Scores,
}

impl Wanted {
    /// The likeliest alone where logits lie on a GPU and every text takes it and nothing else.
    pub fn of(
        running: &[Sequence],
        requests: &[Request],
        ready: &[usize],
        device: &Device,
    ) -> Self {
        let Some(&first) = ready.first() else { return Self::Scores };
        let known = requests[running[first].request].vocab_size;
        let plain = |&at: &usize| {
            let sequence = &running[at];
            let request = &requests[sequence.request];
            sequence.sampler.is_plain()
                && request.vocab_size == known
                && request.max_tokens > 0
                && request.top_log_probs == 0
                && sequence.completion.tokens.len() >= request.min_tokens
        };
        match device.is_cuda() && ready.iter().all(plain) {
            true => Self::Best(known),
            false => Self::Scores,
        }
    }
}

/// What the host will read, in one copy, of logits `[sequences, vocab]`: the best tokens and their
/// surprises `[2, sequences]` in f64, or all scores in f32 (f64 for f64).
pub(super) fn reduce(logits: &Tensor, wanted: Wanted) -> Result<Tensor> {
    let Wanted::Best(known) = wanted else {
        let wide = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        return Ok(logits.to_dtype(wide)?.contiguous()?);
    };
    let logits = logits.narrow(1, 0, known.min(logits.dims()[1]))?;
    let best = logits.argmax(-1)?;
    let options = LossOptions { reduction: Reduction::None, ..LossOptions::default() };
    let (surprise, _) = cross_entropy(&logits, &best, options)?;
    let (best, surprise) = (best.to_dtype(DType::F64)?, surprise.to_dtype(DType::F64)?);
    Ok(Tensor::cat(&[&best.unsqueeze(0)?, &surprise.unsqueeze(0)?], 0)?)
}

/// The likeliest tokens from what [`reduce`] left.
fn best_choices(reduced: &Tensor) -> Result<Vec<Result<Option<Choice>>>> {
    let numbers = reduced.to_vec::<f64>()?;
    let (tokens, surprises) = numbers.split_at(numbers.len() / 2);
    let choice = |(&token, &surprise): (&f64, &f64)| match surprise.is_finite() {
        true => Ok(Some(Choice { token: token as u32, log_prob: -surprise, top: Vec::new() })),
        false => Err(Error::argument("logits", "not finite", "a model without NaN weights")),
    };
    Ok(tokens.iter().zip(surprises).map(choice).collect())
}

/// Choices for sequences from what [`reduce`] left, in parallel; none where no token was asked for.
pub(super) fn choices(
    running: &[Sequence],
    requests: &[Request],
    ready: &[usize],
    (reduced, wanted): (&Tensor, Wanted),
) -> Result<Vec<Result<Option<Choice>>>> {
    if let Wanted::Best(_) = wanted {
        return best_choices(reduced);
    }
    let logits = reduced.to_device(&Device::Cpu)?;
    let wide = logits.dtype();
    let width = logits.dims()[1];
    let row = |index: usize, known: usize| -> Result<Scratch<f64>> {
        let range = index * width..index * width + known.min(width);
        Ok(match wide {
            DType::F64 => {
                let row = &logits.as_slice::<f64>()?[range];
                Scratch::from_fn(row.len(), |id| row[id])
            }
            _ => {
                let row = &logits.as_slice::<f32>()?[range];
                Scratch::from_fn(row.len(), |id| f64::from(row[id]))
            }
        })
    };
    let choose = |index: usize| -> Result<Option<Choice>> {
        let sequence = &running[ready[index]];
        let request = &requests[sequence.request];
        if request.max_tokens == 0 {
            return Ok(None);
        }
        let early = sequence.completion.tokens.len() < request.min_tokens;
        let banned = if early { request.stop.as_slice() } else { &[] };
        let position = sequence.history.len() as u64;
        let row = row(index, request.vocab_size)?;
        sequence.sampler.choose(&row, banned, position, request.top_log_probs).map(Some)
    };
    let found: Vec<Mutex<Option<Result<Option<Choice>>>>> =
        ready.iter().map(|_| Mutex::new(None)).collect();
    threads::for_each(ready.len(), |index| {
        *found[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(choose(index));
    });
    let missing = || Err(danaus_tensor::Error::internal("a choice was not made").into());
    let taken = found.into_iter().map(|cell| {
        let choice = cell.into_inner().unwrap_or_else(PoisonError::into_inner);
        choice.unwrap_or_else(missing)
    });
    Ok(taken.collect())
}
