//! Filters of a distribution, by selection instead of sorting.
//!
//! A vocabulary has 50 to 250 thousand tokens and a filter usually keeps a few dozen, so the best ones
//! are selected in one pass; the nucleus of a flat distribution grows by doubling.

use super::exponential::{exponentials, largest, sum_of_exponentials};
use super::sampling::Sampling;
use std::cmp::Ordering;

/// First guess for the number of tokens in a nucleus.
const FIRST_NUCLEUS: usize = 128;

/// Tokens that may be drawn, with weights relative to the most probable one's 1.
pub(super) struct Candidates {
    tokens: Vec<(u32, f64)>,
}

/// `ln sum exp`, exact where the largest value is subtracted first.
pub(super) fn log_sum_exp(values: &[f64]) -> f64 {
    let top = largest(values);
    top + sum_of_exponentials(values, top).ln()
}

/// The better one first: higher score, then lower id.
fn better(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The `count` best tokens, best first.
pub(super) fn best(scores: &[f64], count: usize) -> Vec<(u32, f64)> {
    let count = count.min(scores.len());
    if count == 0 {
        return Vec::new();
    }
    let room = 2 * count;
    let mut kept: Vec<(u32, f64)> = Vec::with_capacity(room);
    // What is not above this cannot be among the best: of equal scores, earlier ids come first.
    let mut bar = None;
    for (id, &score) in scores.iter().enumerate() {
        if bar.is_some_and(|bar| score <= bar) {
            continue;
        }
        kept.push((id as u32, score));
        if kept.len() == room {
            let (_, last, _) = kept.select_nth_unstable_by(count - 1, better);
            bar = Some(last.1);
            kept.truncate(count);
        }
    }
    kept.sort_unstable_by(better);
    kept.truncate(count);
    kept
}

impl Candidates {
    /// Applies top-k, top-p, min-p and typical-p to scores (logits after the temperature).
    pub(super) fn new(scores: &[f64], sampling: &Sampling) -> Self {
        let top = largest(scores);
        let weight = |(id, score): (u32, f64)| (id, (score - top).exp());
        let limit = match sampling.top_k {
            0 => scores.len(),
            k => k.min(scores.len()),
        };
        let mut tokens: Vec<(u32, f64)> = match (limit < scores.len(), sampling.top_p < 1.0) {
            (true, _) => best(scores, limit).into_iter().map(weight).collect(),
            (false, true) => nucleus(scores, top, sampling.top_p),
            (false, false) => {
                let all = (0..).zip(scores.iter().copied()).map(weight);
                all.filter(|(_, weight)| *weight >= sampling.min_p).collect()
            }
        };
        if limit < scores.len() && sampling.top_p < 1.0 {
            let sum: f64 = tokens.iter().map(|(_, weight)| weight).sum();
            keep_mass(&mut tokens, sum * sampling.top_p);
        }
        if sampling.min_p > 0.0 {
            tokens.retain(|(_, weight)| *weight >= sampling.min_p);
        }
        if sampling.typical_p < 1.0 {
            keep_typical(&mut tokens, sampling.typical_p);
        }
        if !tokens.is_sorted_by_key(|(id, _)| *id) {
            tokens.sort_unstable_by_key(|(id, _)| *id);
        }
        Self { tokens }
    }

    fn sum(&self) -> f64 {
        self.tokens.iter().map(|(_, weight)| weight).sum()
    }

    /// Tokens and probabilities.
    pub(super) fn probabilities(mut self) -> Vec<(u32, f64)> {
        let sum = self.sum();
        self.tokens.iter_mut().for_each(|(_, weight)| *weight /= sum);
        self.tokens
    }

    /// The token at a uniform number in [0, 1); none if every score is minus infinity.
    pub(super) fn draw(&self, uniform: f64) -> Option<u32> {
        let mut left = uniform * self.sum();
        for (id, weight) in &self.tokens {
            left -= weight;
            if left < 0.0 {
                return Some(*id);
            }
        }
        // Rounding may leave a little at the end.
        self.tokens.iter().rev().find(|(_, weight)| *weight > 0.0).map(|(id, _)| *id)
    }
}

/// A draw among all tokens, as from [`Candidates`] without a filter; uses the scores up.
pub(super) fn draw_any(scores: &mut [f64], uniform: f64) -> Option<u32> {
    let top = largest(scores);
    let mut left = uniform * exponentials(scores, top);
    for (id, weight) in scores.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return Some(id as u32);
        }
    }
    // Rounding may leave a little at the end.
    scores.iter().rposition(|weight| *weight > 0.0).map(|id| id as u32)
}

/// Keeps leading tokens until their weights reach `mass`.
fn keep_mass(tokens: &mut Vec<(u32, f64)>, mass: f64) -> bool {
    let mut sum = 0.0;
    let reached = tokens.iter().position(|(_, weight)| {
        sum += weight;
        sum >= mass
    });
    if let Some(last) = reached {
        tokens.truncate(last + 1);
    }
    reached.is_some()
}

/// The most probable tokens up to a share of all.
fn nucleus(scores: &[f64], top: f64, share: f64) -> Vec<(u32, f64)> {
    let mass = share * scores.iter().map(|score| (score - top).exp()).sum::<f64>();
    let mut count = FIRST_NUCLEUS;
    loop {
        let chosen = best(scores, count);
        let mut tokens: Vec<(u32, f64)> =
            chosen.into_iter().map(|(id, score)| (id, (score - top).exp())).collect();
        if keep_mass(&mut tokens, mass) || count >= scores.len() {
            return tokens;
        }
        count = count.saturating_mul(8);
    }
}

/// Keeps the tokens whose surprise `-ln p` is nearest to its mean, up to a share of all.
fn keep_typical(tokens: &mut Vec<(u32, f64)>, share: f64) {
    tokens.retain(|(_, weight)| *weight > 0.0);
    let sum: f64 = tokens.iter().map(|(_, weight)| weight).sum();
    let surprise = |weight: f64| -(weight / sum).ln();
    let mean: f64 = tokens.iter().map(|&(_, weight)| weight / sum * surprise(weight)).sum();
    let distance = |token: &(u32, f64)| (surprise(token.1) - mean).abs();
    tokens.sort_unstable_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.0.cmp(&b.0)));
    keep_mass(tokens, share * sum);
}
