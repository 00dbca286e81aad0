//! What stops a run before it does harm: too little memory, a loss that is no number, divergence.

use crate::checkpoint::Counters;
use crate::config::{Divergence, TrainConfig};
use crate::optim::Optimizer;
use crate::task::{MemoryTerm, Task};
use crate::{Error, Result};
use danaus_model::Config;
use danaus_model::decoder::Compute;
pub use danaus_model::decoder::available_memory;
pub use danaus_runtime::memory::in_words as bytes;
use danaus_tensor::{DType, ParamSet};
use std::path::PathBuf;

/// Share of the old value in the smoothed loss.
const SMOOTHING: f64 = 0.98;

/// A loss below this has not diverged, however small the best one was: a task that is learned completely
/// has losses near 0 whose ratios mean nothing.
const LEARNED: f64 = 0.01;

/// The memory that training a task needs, term by term.
pub fn memory_terms<T: Task>(task: &T, config: &TrainConfig) -> Vec<MemoryTerm> {
    let weights: u64 = task.params().iter().map(|param| param.tensor().bytes() as u64).sum();
    let term = |what: &str, bytes| MemoryTerm { what: what.to_string(), bytes };
    let mut terms = vec![
        term("weights", weights),
        term("gradients", weights * if config.micro_batches > 1 { 2 } else { 1 }),
        term("optimizer", Optimizer::state_bytes(&config.optimizer, task.params())),
    ];
    terms.extend(task.memory());
    terms
}

/// Refuses a run that would not fit. Weights exist already and are not asked for again.
///
/// # Errors
/// [`Error::Memory`] with the sum.
pub fn check_memory(terms: &[MemoryTerm], available: Option<u64>) -> Result<()> {
    let needed = terms.iter().fold(0u64, |sum, term| sum.saturating_add(term.bytes));
    let present = terms.iter().filter(|term| term.what == "weights").map(|term| term.bytes);
    let still = needed - present.sum::<u64>();
    match available {
        Some(available) if still > available => {
            let terms = terms.iter().map(|term| format!("{} {}", term.what, bytes(term.bytes)));
            Err(Error::Memory {
                needed: bytes(needed),
                sum: terms.collect::<Vec<_>>().join(" + "),
                available: bytes(available),
                remedy: "use a smaller batch, shorter sequences or a smaller model",
            })
        }
        _ => Ok(()),
    }
}

/// Refuses to train a model that would not fit, before it is built.
///
/// # Errors
/// [`Error::Memory`] with the sum, for steps of this many tokens.
pub fn check_model(config: &Config, tokens: usize, compute: &Compute) -> Result<()> {
    let terms = config.training_bytes(tokens, compute.recompute)?;
    let named = |(what, bytes): (&str, u64)| MemoryTerm { what: what.to_string(), bytes };
    let terms: Vec<MemoryTerm> = terms.into_iter().map(named).collect();
    check_memory(&terms, available_memory(&compute.device)?)
}

/// Refuses values that are no numbers, before they reach the weights.
///
/// # Errors
/// [`Error::NotFinite`] naming the last good checkpoint.
pub fn check_finite(
    what: &'static str,
    value: f64,
    step: u64,
    last: &Option<PathBuf>,
) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::NotFinite { what, value, step, last: last.clone() })
}

/// Refuses weights that are no numbers, before they are saved as the checkpoint to go on from.
///
/// # Errors
/// [`Error::NotFinite`] naming the last good checkpoint.
pub fn check_weights(params: &ParamSet, step: u64, last: &Option<PathBuf>) -> Result<()> {
    for param in params.iter() {
        // A finite sum in f64 means that every element is finite.
        let sum = param.tensor().detach().to_dtype(DType::F64)?.sum_all()?.to_scalar()?;
        check_finite("sum of a weight matrix", sum, step, last)?;
    }
    Ok(())
}

/// Follows the loss and stops a run whose loss stays far above its best.
///
/// # Errors
/// [`Error::Diverged`] naming the last good checkpoint.
pub fn follow_loss(
    counters: &mut Counters,
    loss: f64,
    divergence: Option<Divergence>,
    last: &Option<PathBuf>,
) -> Result<()> {
    // A plain mean at first, so that the start does not weigh more than it should.
    let keep = SMOOTHING.min(counters.step as f64 / (counters.step + 1) as f64);
    let before = counters.smooth_loss.unwrap_or(loss);
    let smooth = keep * before + (1.0 - keep) * loss;
    counters.smooth_loss = Some(smooth);
    let best = counters.best_loss.map_or(smooth, |best| best.min(smooth));
    counters.best_loss = Some(best);
    let Some(Divergence { factor, patience }) = divergence else { return Ok(()) };
    // A ratio means nothing for losses that may be negative.
    let above = best > 0.0 && loss > LEARNED.max(factor * best);
    counters.steps_above = if above { counters.steps_above + 1 } else { 0 };
    if above && counters.steps_above >= patience {
        let (step, last) = (counters.step, last.clone());
        return Err(Error::Diverged { step, loss, best, factor, patience, last });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_refused_with_the_sum() {
        let term = |what: &str, bytes| MemoryTerm { what: what.into(), bytes };
        let terms = [term("weights", 1 << 20), term("optimizer", 3 << 20)];
        assert!(check_memory(&terms, Some(3 << 20)).is_ok());
        assert!(check_memory(&terms, None).is_ok());
        let error = check_memory(&terms, Some((3 << 20) - 1)).unwrap_err().to_string();
        let sum = "4.0 MiB of memory (weights 1.0 MiB + optimizer 3.0 MiB), 3.0 MiB are available";
        assert!(error.contains(sum), "{error}");
    }

    /// A recall task at full accuracy was stopped as diverged.
    #[test]
    fn losses_near_zero_do_not_diverge() {
        let divergence = Some(Divergence { factor: 2.0, patience: 3 });
        let mut counters = Counters::default();
        for loss in [1e-5, 9e-4, 9e-4, 9e-4, 9e-4, 1.0, 1.0] {
            counters.step += 1;
            follow_loss(&mut counters, loss, divergence, &None).unwrap();
        }
        counters.step += 1;
        assert!(follow_loss(&mut counters, 1.0, divergence, &None).is_err());
    }

    #[test]
    fn divergence_needs_patience() {
        let divergence = Some(Divergence { factor: 2.0, patience: 3 });
        let mut counters = Counters::default();
        let losses = [1.0, 1.0, 5.0, 5.0, 1.0, 5.0, 5.0, 5.0];
        let outcome: Vec<bool> = losses
            .iter()
            .map(|&loss| {
                counters.step += 1;
                follow_loss(&mut counters, loss, divergence, &None).is_ok()
            })
            .collect();
        // Two high losses are forgiven, the third in a row is not.
        assert_eq!(outcome, [true, true, true, true, true, true, true, false]);
    }
}
