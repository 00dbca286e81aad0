//! Choosing a token from logits.
//!
//! Order: repetition penalty, temperature, top-k, top-p, min-p, then one draw. Temperature 0 takes the
//! largest logit (the first of equal ones).

use crate::{Error, Result};
use danaus_tensor::rng::Rng;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f64,
    /// Keep the k most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most probable tokens until their sum reaches this; 1 keeps all.
    pub top_p: f64,
    /// Keep tokens at least this fraction as probable as the first; 0 keeps all.
    pub min_p: f64,
    /// Divides positive and multiplies negative logits of tokens seen before; 1 is off.
    pub repetition_penalty: f64,
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
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// The largest logit, always.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Refuses parameters out of range.
    ///
    /// # Errors
    /// Naming the parameter.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::argument("temperature", self.temperature, "0 (greedy) or more"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::argument("top_p", self.top_p, "above 0, at most 1"));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(Error::argument("min_p", self.min_p, "0 to 1"));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            let valid = "above 0; 1 is off";
            return Err(Error::argument("repetition_penalty", self.repetition_penalty, valid));
        }
        Ok(())
    }
}

fn log_sum_exp(logits: &[f64]) -> f64 {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    top + logits.iter().map(|logit| (logit - top).exp()).sum::<f64>().ln()
}

/// A token and its log-probability under the unfiltered distribution.
///
/// # Errors
/// When the logits hold a NaN or nothing finite.
pub fn choose(
    logits: &[f64],
    sampling: &Sampling,
    history: &[u32],
    stream: u64,
    position: u64,
) -> Result<(u32, f64)> {
    let total = log_sum_exp(logits);
    if !total.is_finite() {
        return Err(Error::argument("logits", "not finite", "a model without NaN weights"));
    }
    let mut scores = logits.to_vec();
    penalise(&mut scores, sampling.repetition_penalty, history);
    let chosen = if sampling.temperature == 0.0 {
        argmax(&scores)
    } else {
        draw(&scores, sampling, Rng::new(sampling.seed, stream).uniform_at(position))
    };
    Ok((chosen as u32, logits[chosen] - total))
}

fn penalise(scores: &mut [f64], penalty: f64, history: &[u32]) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = history.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
        }
    }
}

fn argmax(scores: &[f64]) -> usize {
    let mut best = 0;
    for (index, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = index;
        }
    }
    best
}

/// One draw with a uniform number in [0, 1).
fn draw(scores: &[f64], sampling: &Sampling, uniform: f64) -> usize {
    let scaled: Vec<f64> = scores.iter().map(|score| score / sampling.temperature).collect();
    let total = log_sum_exp(&scaled);
    let probability = |index: usize| (scaled[index] - total).exp();
    let mut order: Vec<usize> = (0..scaled.len()).collect();
    order.sort_by(|&a, &b| scaled[b].total_cmp(&scaled[a]).then(a.cmp(&b)));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let kept_mass: f64 = order.iter().map(|&index| probability(index)).sum();
    let mut mass = 0.0;
    let within = |&index: &usize| {
        let before = mass;
        mass += probability(index) / kept_mass;
        before < sampling.top_p
    };
    let mut kept: Vec<usize> = order.into_iter().take_while(within).collect();
    let floor = sampling.min_p * probability(kept[0]);
    kept.retain(|&index| probability(index) >= floor);
    let sum: f64 = kept.iter().map(|&index| probability(index)).sum();
    let mut left = uniform * sum;
    for &index in &kept {
        left -= probability(index);
        if left < 0.0 {
            return index;
        }
    }
    kept[kept.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f64; 4] = [1.0, 3.0, 2.0, 0.0];

    fn shares(sampling: Sampling) -> [f64; 4] {
        let mut counts = [0.0; 4];
        let draws = 20_000;
        for position in 0..draws {
            counts[choose(&LOGITS, &sampling, &[], 0, position).unwrap().0 as usize] += 1.0;
        }
        counts.map(|count| count / draws as f64)
    }

    #[test]
    fn frequencies_match_probabilities() {
        let exact: Vec<f64> = LOGITS.iter().map(|l| (l - log_sum_exp(&LOGITS)).exp()).collect();
        for (found, exact) in shares(Sampling::default()).iter().zip(exact) {
            // Four standard deviations of 20000 draws.
            assert!((found - exact).abs() < 4.0 * (exact * (1.0 - exact) / 20_000.0).sqrt());
        }
    }

    #[test]
    fn filters_keep_the_right_tokens() {
        let kept = |sampling| shares(sampling).map(|share| share > 0.0);
        let base = Sampling::default();
        assert_eq!(kept(Sampling { top_k: 2, ..base }), [false, true, true, false]);
        assert_eq!(kept(Sampling { top_p: 0.6, ..base }), [false, true, false, false]);
        assert_eq!(kept(Sampling { top_p: 0.7, ..base }), [false, true, true, false]);
        assert_eq!(kept(Sampling { min_p: 0.2, ..base }), [false, true, true, false]);
    }

    #[test]
    fn greedy_penalty_and_log_probability() {
        let (token, log_prob) = choose(&LOGITS, &Sampling::greedy(), &[], 0, 0).unwrap();
        assert_eq!(token, 1);
        assert!((log_prob - (3.0 - log_sum_exp(&LOGITS))).abs() < 1e-12);
        let penalised = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        assert_eq!(choose(&LOGITS, &penalised, &[1, 1], 0, 0).unwrap().0, 2);
    }

    #[test]
    fn bad_parameters_are_named() {
        let message = |sampling: Sampling| sampling.check().unwrap_err().to_string();
        let base = Sampling::default();
        assert!(message(Sampling { temperature: -1.0, ..base }).starts_with("temperature is -1"));
        assert!(message(Sampling { top_p: 0.0, ..base }).starts_with("top_p"));
        assert!(message(Sampling { min_p: 2.0, ..base }).starts_with("min_p"));
        assert!(message(Sampling { repetition_penalty: 0.0, ..base }).contains("1 is off"));
        assert!(choose(&[f64::NAN, 1.0], &base, &[], 0, 0).is_err());
    }
}
