//! A language-model run from files to a report: gather, tokenise, train, compare, write.

use super::{LanguageModelling, LmData, LmOptions};
use crate::guard;
use crate::progress::{Observer, Summary};
use crate::report::{self, Measure, Report, ResultRow};
use crate::task::{Sample, Task};
use crate::trainer::{self, Start, Trainer};
use crate::{Error, Result, TrainConfig};
use danaus_model::decoder::Compute;
use danaus_model::{Config, Decoder, presets};
use danaus_tensor::DType;
use danaus_text::baseline::{ByteTrigram, gzip};
use danaus_text::corpus::{
    Corpus, Document, GatherOptions, GatherReport, NotUtf8, Source, cargo_registry,
};
use danaus_text::fim::FimOptions;
use danaus_text::pack::PackedDocuments;
use danaus_text::tokenizer::{Tokenizer, TrainOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Share of the groups (crates, folders) that is held out.
const HELD_OUT: f64 = 0.04;
/// Held-out bytes at most: enough for three digits, little enough to evaluate in seconds.
const HELD_OUT_BYTES: usize = 600_000;

/// What to run.
#[derive(Clone, Debug)]
pub struct LmRun {
    /// File or folder; `None` reads the sources in cargo's registry.
    pub data: Option<PathBuf>,
    /// Folder of the run.
    pub out: PathBuf,
    /// A preset's name, or the path of a config.
    pub model: String,
    /// Tokenizer to use; `None` trains one on the data.
    pub tokenizer: Option<PathBuf>,
    /// Tokens of a new tokenizer.
    pub vocab_size: usize,
    /// Batches, samples, fill-in-the-middle.
    pub task: LmOptions,
    /// How the model computes.
    pub compute: Compute,
    /// What to do with files that are not UTF-8; `None` is the source's default.
    pub not_utf8: Option<NotUtf8>,
    /// New, or from a checkpoint.
    pub start: Start,
    /// Optimiser, schedule, limits.
    pub config: TrainConfig,
    /// Heading of the report.
    pub title: String,
}

/// What happens before training.
pub enum Stage<'a> {
    /// Documents were found.
    Gathered(&'a GatherReport),
    /// The tokenizer is there and the documents are encoded.
    Encoded {
        /// Tokens of the vocabulary.
        vocab_size: usize,
        /// Tokens to train on.
        tokens: u64,
    },
    /// The model is made.
    Built {
        /// Number of parameters.
        parameters: usize,
        /// One letter per block.
        layers: &'a str,
    },
}

/// Sees the stages, and training as an [`Observer`].
pub trait Watcher: Observer {
    /// A stage is done.
    fn stage(&mut self, _stage: &Stage) {}
}

/// The result.
pub struct Outcome {
    /// Training.
    pub summary: Summary,
    /// Bits per byte of the model on the held-out files.
    pub bits_per_byte: f64,
    /// Of gzip -9, each file by itself.
    pub gzip: f64,
    /// Of a byte trigram model of the training files.
    pub trigram: f64,
    /// Completions and infilled gaps.
    pub samples: Vec<Sample>,
    /// The model folder.
    pub model: PathBuf,
    /// The report.
    pub report: PathBuf,
}

type Documents = Vec<Vec<u8>>;

/// Runs it all.
///
/// # Errors
/// When there is no data, the folder cannot be written, or training fails.
pub fn run(request: &LmRun, watcher: &mut dyn Watcher, stop: &AtomicBool) -> Result<Outcome> {
    // What can be refused at once is refused before minutes go into reading data.
    request.compute.device.open()?;
    request.config.validate()?;
    model_config(&request.model, 0)?;
    trainer::check_folder(&request.out, request.start)?;
    let (training, held_out) = gather(request, watcher)?;
    let tokenizer = tokenizer(request, &training)?;
    let encoded = PackedDocuments::encode(&training, &tokenizer)?;
    let (vocab_size, tokens) = (tokenizer.vocab_size(), encoded.tokens().len() as u64);
    watcher.stage(&Stage::Encoded { vocab_size, tokens });
    let config = model_config(&request.model, vocab_size)?;
    check_sizes(&config, request)?;
    let decoder = Decoder::init(&config, request.config.seed, request.compute)?;
    let parameters = decoder.params().elem_count();
    watcher.stage(&Stage::Built { parameters, layers: &config.layers });
    let data = LmData {
        training: Arc::new(encoded),
        held_out: Some(Arc::new(PackedDocuments::encode(&held_out, &tokenizer)?)),
        tokenizer,
    };
    let mut options = request.task.clone();
    if options.prompts.is_empty() {
        options.prompts =
            held_out.iter().filter_map(|document| opening(document)).take(3).collect();
    }
    let mut task = LanguageModelling::new(decoder, data, options)?;
    let (config, start) = (request.config.clone(), request.start);
    let mut trainer = Trainer::new(&mut task, config, &request.out, start)?;
    let summary = trainer.run(watcher, stop)?;
    let model = trainer.export()?;
    finish(request, summary, model, &task, (&training, &held_out))
}

fn bytes(documents: Vec<Document>) -> Documents {
    documents.into_iter().map(|document| document.bytes).collect()
}

fn gather(request: &LmRun, watcher: &mut dyn Watcher) -> Result<(Documents, Documents)> {
    let source = match &request.data {
        Some(path) => Source::Path(path.clone()),
        None => registry()?,
    };
    let mut options = GatherOptions::new(source);
    options.seed = request.config.seed;
    options.not_utf8 = request.not_utf8.unwrap_or(options.not_utf8);
    let corpus = Corpus::gather(&options)?;
    watcher.stage(&Stage::Gathered(&corpus.report));
    let split = corpus.split(HELD_OUT, request.config.seed)?;
    let mut budget = HELD_OUT_BYTES;
    let mut held_out = bytes(split.validation);
    // Whole files as long as they fit; a single file that does not is cut.
    held_out.retain_mut(|document| {
        let keep = document.len() <= budget || budget == HELD_OUT_BYTES;
        document.truncate(budget);
        budget -= if keep { document.len() } else { 0 };
        keep
    });
    Ok((bytes(split.train), held_out))
}

/// The sources that cargo has unpacked.
fn registry() -> Result<Source> {
    let valid = "a file or folder with text to train on";
    let missing = |place: String| {
        let given = format!("not given, and cargo has no sources here: {place}");
        Error::config("--data", given, valid)
    };
    let source = cargo_registry().ok_or_else(|| missing("no home folder".into()))?;
    if source.root().is_dir() {
        return Ok(source);
    }
    Err(missing(format!("{} does not exist", source.root().display())))
}

fn tokenizer(request: &LmRun, training: &Documents) -> Result<Tokenizer> {
    if let Some(path) = &request.tokenizer {
        return Ok(Tokenizer::load(path)?);
    }
    let settings = TrainOptions {
        vocab_size: request.vocab_size,
        seed: request.config.seed,
        ..TrainOptions::default()
    };
    Ok(Tokenizer::train(training, &settings)?)
}

/// A preset, or a config file whose vocabulary must hold the tokenizer's.
fn model_config(name: &str, vocab_size: usize) -> Result<Config> {
    if let Some(config) = presets::by_name(name, vocab_size) {
        return Ok(config);
    }
    let path = Path::new(name);
    if !path.is_file() {
        let valid = format!("a config file, or {}", presets::NAMES);
        return Err(Error::config("--preset", name, valid));
    }
    let config = Config::load(path)?;
    if config.vocab_size < vocab_size {
        let valid = format!("at least the tokenizer's {vocab_size}");
        return Err(Error::config("vocab_size", config.vocab_size, valid));
    }
    Ok(config)
}

/// How a document begins: its first words, as a prompt to show samples for.
fn opening(document: &[u8]) -> Option<String> {
    let text = document.utf8_chunks().next()?.valid().trim_start();
    let end = text.char_indices().nth(40).map_or(text.len(), |(at, _)| at);
    let words = text[..end].trim_end();
    (!words.is_empty()).then(|| words.to_string())
}

/// Refuses rows longer than the model's context, and a model that would not fit into memory, before
/// anything of it is made.
fn check_sizes(config: &Config, request: &LmRun) -> Result<()> {
    let loader = &request.task.loader;
    let (rows, row_tokens) = (loader.rows, loader.row_tokens);
    if row_tokens > config.max_positions {
        let valid = format!("at most {} (max_positions of the model)", config.max_positions);
        return Err(Error::config("row_tokens", row_tokens, valid));
    }
    let tokens = rows.saturating_mul(row_tokens);
    guard::check_model(config, tokens, &request.compute)
}

fn finish(
    request: &LmRun,
    summary: Summary,
    model: PathBuf,
    task: &LanguageModelling<Decoder>,
    (training, held_out): (&Documents, &Documents),
) -> Result<Outcome> {
    let validation = task.evaluate(None)?;
    let bits_per_byte = validation.and_then(|validation| validation.bits_per_byte);
    let bits_per_byte = bits_per_byte.unwrap_or(f64::NAN);
    let trigram = ByteTrigram::train(training).bits_per_byte(held_out);
    let gzip = gzip(held_out);
    let samples = task.samples()?;
    let row = |name: &str, value, is_ours| ResultRow { name: name.to_string(), value, is_ours };
    let report = Report {
        title: request.title.clone(),
        summary: format!(
            "{} blocks {}, {:.2} M parameters, trained for {:.0} seconds on {:.2} M tokens.",
            task.model().config().layers.len(),
            task.model().config().layers,
            task.params().elem_count() as f64 / 1e6,
            summary.seconds,
            summary.tokens as f64 / 1e6
        ),
        measure: Measure::BitsPerByte,
        results: vec![
            row("this model", bits_per_byte, true),
            row("gzip -9, file by file", gzip, false),
            row("byte trigram", trigram, false),
        ],
        samples: samples.clone(),
        settings: settings(request, task),
    };
    let report = report.write(&request.out)?;
    Ok(Outcome { summary, bits_per_byte, gzip, trigram, samples, model, report })
}

fn settings(request: &LmRun, task: &LanguageModelling<Decoder>) -> Vec<(String, String)> {
    let row = |name: &str, value: String| (name.to_string(), value);
    let loader = &request.task.loader;
    let dtype = match request.compute.dtype {
        DType::BF16 => "bf16 with f32 masters".to_string(),
        other => other.to_string(),
    };
    let schedule = &request.config.schedule;
    let schedule = format!("{}, {} steps of warm-up", schedule.shape, schedule.warmup_steps);
    let fim = loader.fim.map_or(0.0, |FimOptions { rate, .. }| rate);
    let mut rows = vec![
        row("model", request.model.clone()),
        row("vocabulary", task.model().config().vocab_size.to_string()),
        row("batch", format!("{} x {} tokens", loader.rows, loader.row_tokens)),
        row("fill-in-the-middle", format!("{fim} of the documents")),
        row("optimiser", request.config.optimizer.name().to_string()),
        row("learning rate", request.config.optimizer.lr().to_string()),
        row("schedule", schedule),
        row("micro-batches", request.config.micro_batches.to_string()),
        row("arithmetic", dtype),
        row("device", request.compute.device.to_string()),
        row("seed", request.config.seed.to_string()),
    ];
    rows.extend(report::machine());
    rows
}
