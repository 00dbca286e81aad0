//! The main job's settings: a small hybrid on real code in a minute and a half on two cores.
//!
//! The run itself is [`crate::tasks::lm::run`]. In so short a time the number of tokens seen decides:
//! a narrow model without MLPs, a small vocabulary and short batches beat everything larger at equal
//! arithmetic, and Muon beats AdamW by a wide margin.

use crate::config::{Every, TrainConfig};
use crate::optim::{AdamW, Muon, OptimizerConfig};
use crate::schedule::{Schedule, Shape};
use crate::tasks::lm::LmOptions;
use crate::tasks::lm::run::LmRun;
use crate::trainer::Start;
use crate::{Error, Result};
use danaus_model::decoder::Compute;
use danaus_text::corpus::NotUtf8;
use std::path::{Path, PathBuf};

/// Tokens of the vocabulary.
const VOCAB_SIZE: usize = 2048;
/// Sequences per batch and tokens per sequence.
const ROWS: usize = 4;
const ROW_TOKENS: usize = 512;

/// What a user may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// File or folder; `None` reads the sources in cargo's registry.
    pub data: Option<PathBuf>,
    /// Folder of the run.
    pub out: PathBuf,
    /// Minutes of training.
    pub minutes: f64,
    /// What to do with files that are not UTF-8; `None` is the source's default.
    pub not_utf8: Option<NotUtf8>,
    /// Seed of everything random.
    pub seed: u64,
}

impl Options {
    /// The run with these options.
    pub fn into_run(self) -> LmRun {
        LmRun {
            config: train_config(self.minutes, self.seed),
            task: task_options(self.seed),
            data: self.data,
            out: self.out,
            model: "quickstart".to_string(),
            tokenizer: None,
            vocab_size: VOCAB_SIZE,
            compute: Compute::default(),
            not_utf8: self.not_utf8,
            start: Start::New,
            title: "Danaus quickstart".to_string(),
        }
    }
}

fn task_options(seed: u64) -> LmOptions {
    let gap = (
        "    /// Whether there are no elements.\n    pub fn is_empty(&self) -> bool {\n        ",
        "\n    }\n\n    /// Number of elements.\n    pub fn len(&self) -> usize {\n        self.len\n    }\n",
    );
    LmOptions {
        validation_batches: Some(8),
        prompts: vec![
            "/// Returns the number of".to_string(),
            "use std::".to_string(),
            "impl<T> ".to_string(),
        ],
        gaps: vec![(gap.0.to_string(), gap.1.to_string())],
        sample_tokens: 48,
        ..LmOptions::new(ROWS, ROW_TOKENS, seed)
    }
}

fn train_config(minutes: f64, seed: u64) -> TrainConfig {
    let rest = AdamW { lr: 0.02, weight_decay: 0.0, ..AdamW::default() };
    let optimizer = Muon { lr: 0.01, weight_decay: 0.0, rest, ..Muon::default() };
    TrainConfig {
        steps: None,
        minutes: Some(minutes),
        optimizer: OptimizerConfig::Muon(optimizer),
        schedule: Schedule {
            shape: Shape::Wsd,
            warmup_steps: 20,
            final_factor: 0.02,
            decay_fraction: 0.6,
        },
        seed,
        validate: Every::Seconds(30.0),
        checkpoint: Every::Seconds(30.0),
        keep: 1,
        ..TrainConfig::default()
    }
}

/// `folder` if it holds nothing yet, else `folder-2`, `folder-3`, ...: no run is overwritten.
///
/// # Errors
/// When the path has no last part to number.
pub fn fresh_folder(folder: &Path) -> Result<PathBuf> {
    let taken = |path: &Path| path.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    if !taken(folder) {
        return Ok(folder.to_path_buf());
    }
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.ok_or_else(|| Error::config("--out", folder.display(), "a folder's name"))?;
    let mut numbered = (2u32..).map(|number| folder.with_file_name(format!("{name}-{number}")));
    let free = numbered.find(|path| !taken(path));
    free.ok_or_else(|| Error::config("--out", folder.display(), "a name that is free"))
}
