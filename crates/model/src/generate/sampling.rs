//! Choosing a token from logits.
//!
//! ```text
//! logits + bias -> penalties -> / temperature -> top_k -> top_p -> min_p -> typical_p -> softmax -> draw
//! ```
//!
//! Temperature 0 takes the largest score, of equal ones the lowest id. Every filter sees the
//! probabilities that the one before left, normalised, and keeps the token that reaches its bound; of
//! equal probabilities it prefers the lower id. The draw walks the kept tokens in order of their ids
//! with one uniform number, Philox keyed by (seed, stream, position in the text): nothing else in the
//! batch can change it. Stream i belongs to completion i of a prompt.
//!
//! Penalties count the whole text so far, prompt and answer.

use super::exponential::largest;
use super::filter::{Candidates, best, draw_any, log_sum_exp};
use crate::{Error, Result};
use danaus_runtime::pool::Scratch;
use danaus_tensor::rng::Rng;
use std::collections::HashMap;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f64,
    /// Keep the k most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most probable tokens until their sum reaches this; 1 keeps all.
    pub top_p: f64,
    /// Keep tokens at least this fraction as probable as the first; 0 keeps all.
    pub min_p: f64,
    /// Keep the tokens whose surprise is nearest to the mean surprise until their sum reaches this; 1
    /// keeps all.
    pub typical_p: f64,
    /// Divides positive and multiplies negative logits of tokens seen before; 1 is off.
    pub repetition_penalty: f64,
    /// Subtracted from the logit of a token seen before; 0 is off. f32, as elsewhere, where it is
    /// multiplied by a mask of f32.
    pub presence_penalty: f32,
    /// Subtracted for every time that a token was seen; 0 is off.
    pub frequency_penalty: f64,
    /// Added to the logits of some tokens, before everything else.
    pub logit_bias: Vec<(u32, f64)>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// The largest logit, always.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether a filter may drop tokens.
    fn filters(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0 || self.typical_p < 1.0
    }

    /// Refuses parameters out of range, for a vocabulary of `vocab_size` tokens.
    ///
    /// # Errors
    /// Naming the parameter.
    pub fn check(&self, vocab_size: usize) -> Result<()> {
        let share = |value: f64| value > 0.0 && value <= 1.0;
        let finite = |value: f64| value.is_finite();
        let refusal = if !(self.temperature >= 0.0 && finite(self.temperature)) {
            ("temperature", self.temperature, "0 (greedy) or more")
        } else if !share(self.top_p) {
            ("top_p", self.top_p, "above 0, at most 1")
        } else if !(0.0..=1.0).contains(&self.min_p) {
            ("min_p", self.min_p, "0 to 1")
        } else if !share(self.typical_p) {
            ("typical_p", self.typical_p, "above 0, at most 1")
        } else if !(self.repetition_penalty > 0.0 && finite(self.repetition_penalty)) {
            ("repetition_penalty", self.repetition_penalty, "above 0; 1 is off")
        } else if !self.presence_penalty.is_finite() {
            ("presence_penalty", f64::from(self.presence_penalty), "a finite number; 0 is off")
        } else if !finite(self.frequency_penalty) {
            ("frequency_penalty", self.frequency_penalty, "a finite number; 0 is off")
        } else if let Some((_, bias)) = self.logit_bias.iter().find(|(_, bias)| !finite(*bias)) {
            ("logit_bias", *bias, "finite numbers")
        } else {
            let beyond = self.logit_bias.iter().find(|(id, _)| *id as usize >= vocab_size);
            return match beyond {
                Some((id, _)) => {
                    Err(Error::argument("logit_bias token id", id, format!("0..{vocab_size}")))
                }
                None => Ok(()),
            };
        };
        Err(Error::argument(refusal.0, refusal.1, refusal.2))
    }
}

/// A chosen token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability under the model, before bias, penalties and filters.
    pub log_prob: f64,
    /// The most probable tokens with theirs, best first; as many as were asked for.
    pub top: Vec<(u32, f64)>,
}

/// Chooses the tokens of one text.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    stream: u64,
    /// How often each token was seen; kept only where a penalty asks.
    seen: HashMap<u32, u32>,
}

impl Sampler {
    /// For completion `stream` of a prompt.
    pub fn new(sampling: &Sampling, stream: u64) -> Self {
        Self { sampling: sampling.clone(), stream, seen: HashMap::new() }
    }

    /// Whether the largest logit is taken, whatever was said before.
    pub(super) fn is_plain(&self) -> bool {
        let greedy = self.sampling.temperature == 0.0 && self.sampling.logit_bias.is_empty();
        greedy && !self.penalises()
    }

    fn penalises(&self) -> bool {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } =
            self.sampling;
        repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0
    }

    /// Notes tokens of the text, which penalties count.
    pub fn note(&mut self, tokens: &[u32]) {
        if self.penalises() {
            tokens.iter().for_each(|&token| *self.seen.entry(token).or_default() += 1);
        }
    }

    /// The token at `position` of the text, and the `top` most probable ones. Tokens of `banned` are
    /// not chosen.
    ///
    /// # Errors
    /// When the logits hold a NaN or nothing finite, or everything is banned.
    pub fn choose(
        &self,
        logits: &[f64],
        banned: &[u32],
        position: u64,
        top: usize,
    ) -> Result<Choice> {
        let total = log_sum_exp(logits);
        if !total.is_finite() {
            return Err(Error::argument("logits", "not finite", "a model without NaN weights"));
        }
        let token = match self.is_plain() && banned.is_empty() {
            true => argmax(logits),
            false => self.draw(logits, banned, position),
        };
        let Some(token) = token else {
            return Err(Error::argument("stop tokens", "the whole vocabulary", "fewer of them"));
        };
        let top = best(logits, top).into_iter().map(|(id, logit)| (id, logit - total)).collect();
        Ok(Choice { token, log_prob: logits[token as usize] - total, top })
    }

    /// The token by bias, penalties and filters.
    fn draw(&self, logits: &[f64], banned: &[u32], position: u64) -> Option<u32> {
        // From the pool: several such buffers a step, freshly mapped each time, cost more page faults
        // than arithmetic.
        let mut scores = Scratch::from_fn(logits.len(), |id| logits[id]);
        self.score(&mut scores, banned);
        let uniform = || Rng::new(self.sampling.seed, self.stream).uniform_at(position);
        match self.sampling.temperature {
            0.0 => argmax(&scores),
            _ if self.sampling.filters() => {
                Candidates::new(&scores, &self.sampling).draw(uniform())
            }
            _ => draw_any(&mut scores, uniform()),
        }
    }

    /// The distribution that is drawn from: the kept tokens by id, with their probabilities.
    pub fn distribution(&self, logits: &[f64]) -> Vec<(u32, f64)> {
        let mut scores = logits.to_vec();
        self.score(&mut scores, &[]);
        match self.sampling.temperature {
            0.0 => argmax(&scores).map(|id| (id, 1.0)).into_iter().collect(),
            _ => Candidates::new(&scores, &self.sampling).probabilities(),
        }
    }

    /// Bias, penalties, temperature.
    fn score(&self, scores: &mut [f64], banned: &[u32]) {
        let sampling = &self.sampling;
        for (id, bias) in &sampling.logit_bias {
            if let Some(score) = scores.get_mut(*id as usize) {
                *score += bias;
            }
        }
        let presence = f64::from(sampling.presence_penalty);
        for (&id, &count) in &self.seen {
            if let Some(score) = scores.get_mut(id as usize) {
                let factor = sampling.repetition_penalty;
                *score = if *score > 0.0 { *score / factor } else { *score * factor };
                *score -= sampling.frequency_penalty * f64::from(count);
                *score -= presence;
            }
        }
        for &id in banned {
            if let Some(score) = scores.get_mut(id as usize) {
                *score = f64::NEG_INFINITY;
            }
        }
        if sampling.temperature != 0.0 && sampling.temperature != 1.0 {
            scores.iter_mut().for_each(|score| *score /= sampling.temperature);
        }
    }
}

/// The first of the largest; none where nothing is above -inf.
fn argmax(scores: &[f64]) -> Option<u32> {
    let top = largest(scores);
    let at = scores.iter().position(|&score| score == top);
    at.filter(|_| top > f64::NEG_INFINITY).map(|at| at as u32)
}

#[cfg(test)]
mod tests;
