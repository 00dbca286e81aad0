//! A recall run from settings to a report: train, then measure at several lengths.

use super::examples::Recall;
use super::{RecallOptions, Recalling, Score, accuracy};
use crate::progress::{Observer, Summary};
use crate::report::{self, Measure, Report, ResultRow};
use crate::task::Task;
use crate::trainer::{self, Start, Trainer};
use crate::{Error, Result, TrainConfig, guard};
use danaus_model::decoder::Compute;
use danaus_model::{Config, Decoder, presets};
use danaus_runtime::fs;
use serde_json::json;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Name of the scores in a run's folder.
pub const FILE_NAME: &str = "recall.json";

/// What to run.
#[derive(Clone, Debug)]
pub struct RecallRun {
    /// Examples and batches.
    pub options: RecallOptions,
    /// Name of the mixer of every block, see [`presets::MIXERS`].
    pub mixer: String,
    /// Number of blocks.
    pub depth: usize,
    /// Width of the model.
    pub d_model: usize,
    /// Width of a recurrent state, for mixers that let it be chosen; `None` is their default.
    pub d_state: Option<usize>,
    /// Lengths to measure at after training.
    pub test_lengths: Vec<usize>,
    /// Examples of each.
    pub test_examples: u64,
    /// Folder of the run.
    pub out: PathBuf,
    /// How the model computes.
    pub compute: Compute,
    /// New, or from a checkpoint.
    pub start: Start,
    /// Optimiser, schedule, limits.
    pub config: TrainConfig,
    /// Heading of the report.
    pub title: String,
}

/// The result.
pub struct Outcome {
    /// Training.
    pub summary: Summary,
    /// Scores by length.
    pub scores: Vec<(usize, Score)>,
    /// Trainable numbers.
    pub parameters: usize,
    /// The model folder.
    pub model: PathBuf,
    /// The report.
    pub report: PathBuf,
}

/// Runs it all.
///
/// # Errors
/// When the settings fit no example or model, the folder cannot be written, or training fails.
pub fn run(request: &RecallRun, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
    request.config.validate()?;
    request.options.recall.check()?;
    for &length in &request.test_lengths {
        request.options.recall.with_length(length).check()?;
    }
    trainer::check_folder(&request.out, request.start)?;
    let config = model_config(request)?;
    let tokens = request.options.rows.saturating_mul(request.options.recall.length);
    guard::check_model(&config, tokens, &request.compute)?;
    let decoder = Decoder::init(&config, request.config.seed, request.compute)?;
    let parameters = decoder.params().elem_count();
    let mut task = Recalling::new(decoder, request.options)?;
    let (config, start) = (request.config.clone(), request.start);
    let mut trainer = Trainer::new(&mut task, config, &request.out, start)?;
    let summary = trainer.run(observer, stop)?;
    let model = trainer.export()?;
    let mut scores = Vec::new();
    for &length in &request.test_lengths {
        let recall = request.options.recall.with_length(length);
        scores.push((length, accuracy(task.model(), &recall, request.test_examples)?));
    }
    write_scores(request, &scores, &summary)?;
    let report = report(request, &task, &summary, &scores).write(&request.out)?;
    Ok(Outcome { summary, scores, parameters, model, report })
}

/// A model of equal blocks that may read every length that is asked for.
fn model_config(request: &RecallRun) -> Result<Config> {
    let recall = &request.options.recall;
    let shape = presets::Uniform {
        vocab_size: recall.vocab_size,
        d_model: request.d_model,
        depth: request.depth,
        d_state: request.d_state,
    };
    let config = presets::uniform(&request.mixer, &shape)?;
    let longest = request.test_lengths.iter().copied().max().unwrap_or(0);
    let max_positions = recall.length.max(longest).max(config.max_positions);
    let config = Config { max_positions, ..config };
    config.check()?;
    Ok(config)
}

fn write_scores(request: &RecallRun, scores: &[(usize, Score)], summary: &Summary) -> Result<()> {
    let Recall { kind, vocab_size, length, pairs, seed } = request.options.recall;
    let row = |(length, score): &(usize, Score)| {
        json!({
            "length": length,
            "accuracy": score.accuracy(),
            "loss": score.loss(),
            "answers": score.targets,
        })
    };
    let record = json!({
        "task": kind.name(),
        "mixer": request.mixer,
        "depth": request.depth,
        "d_model": request.d_model,
        "d_state": request.d_state,
        "vocab_size": vocab_size,
        "length": length,
        "pairs": pairs,
        "seed": seed,
        "steps": summary.step,
        "tokens": summary.tokens,
        "seconds": summary.seconds,
        "scores": scores.iter().map(row).collect::<Vec<_>>(),
    });
    let path: &Path = &request.out.join(FILE_NAME);
    fs::write_atomic(path, |writer| writeln!(writer, "{record:#}")).map_err(Error::io(path))
}

fn report(
    request: &RecallRun,
    task: &Recalling,
    summary: &Summary,
    scores: &[(usize, Score)],
) -> Report {
    let recall = &request.options.recall;
    let row = |(length, score): &(usize, Score)| ResultRow {
        name: format!("{length} tokens"),
        value: score.accuracy(),
        is_ours: *length == recall.length,
    };
    let setting = |name: &str, value: String| (name.to_string(), value);
    let mut settings = vec![
        setting("task", recall.kind.name().to_string()),
        setting("mixer", request.mixer.clone()),
        setting("vocabulary", recall.vocab_size.to_string()),
        setting("pairs", recall.pairs.to_string()),
        setting("batch", format!("{} x {} tokens", request.options.rows, recall.length)),
        setting(
            "training examples",
            request.options.examples.map_or("never repeated".into(), |count| count.to_string()),
        ),
        setting("optimiser", request.config.optimizer.name().to_string()),
        setting("learning rate", request.config.optimizer.lr().to_string()),
        setting("seed", request.config.seed.to_string()),
    ];
    settings.extend(report::machine());
    Report {
        title: request.title.clone(),
        summary: format!(
            "{} blocks of {}, {:.2} M parameters, trained for {:.0} seconds on {:.2} M tokens.",
            request.depth,
            request.mixer,
            task.params().elem_count() as f64 / 1e6,
            summary.seconds,
            summary.tokens as f64 / 1e6
        ),
        measure: Measure::Accuracy,
        results: scores.iter().map(row).collect(),
        samples: Vec::new(),
        settings,
    }
}
