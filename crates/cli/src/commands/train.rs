//! `danaus train`.

use super::quickstart::stop_on_interrupt;
use super::tokenizer::NotUtf8Option;
use super::train_recall::{self, RecallArgs};
use crate::failure::BadInput;
use crate::progress::Live;
use clap::Args;
use danaus::model::decoder::Compute;
use danaus::tensor::{DType, Device};
use danaus::text::fim::FimOptions;
use danaus::train::optim::OptimizerConfig;
use danaus::train::schedule::{Schedule, Shape};
use danaus::train::tasks::lm::LmOptions;
use danaus::train::tasks::lm::run::{self, LmRun};
use danaus::train::tasks::recall::examples::Kind;
use danaus::train::{Every, Start, Summary, TrainConfig};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(
    after_help = "Example: danaus train --data src --preset quickstart --minutes 5 --out runs/code\n\
                        danaus train --task mqar --mixer mamba2 --d-state 64 --steps 2000 --out runs/mqar\n\
                        Ctrl-C writes a checkpoint; --resume goes on from the newest one."
)]
pub struct TrainArgs {
    /// What to learn: lm (text), or mqar, selective-copying, induction (made up; no data)
    #[arg(long, default_value = "lm", value_name = "NAME")]
    task: String,
    /// File or folder with text (lm)
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Folder of the run
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Model: a config.json, or transformer, mamba2, linear_attention, retnet, gated_linear_attention,
    /// quickstart (lm; default quickstart)
    #[arg(long, value_name = "NAME|FILE")]
    preset: Option<String>,
    /// Tokenizer to use (lm; default: train one on the data)
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Tokens of a new tokenizer, or of a made-up task (default 2048, mqar 1024, others 16)
    #[arg(long, value_name = "N")]
    pub vocab_size: Option<usize>,
    /// Sequences per batch (default: lm 4, others 32)
    #[arg(long, value_name = "N")]
    pub rows: Option<usize>,
    /// Tokens per sequence (default: lm 512, others 256)
    #[arg(long, value_name = "N")]
    pub row_tokens: Option<usize>,
    /// Share of documents trained as fill-in-the-middle (lm; default 0.5)
    #[arg(long, value_name = "X")]
    fim_rate: Option<f64>,
    #[command(flatten)]
    pub recall: RecallArgs,
    /// Updates to make
    #[arg(long, conflicts_with = "minutes", value_name = "N")]
    steps: Option<u64>,
    /// Minutes to train
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// adamw, lion, muon or sgd
    #[arg(long, default_value = "adamw", value_name = "NAME")]
    optimizer: String,
    /// Learning rate (default: the optimiser's)
    #[arg(long, value_name = "X")]
    lr: Option<f64>,
    /// Decoupled weight decay (default: the optimiser's)
    #[arg(long, value_name = "X")]
    weight_decay: Option<f64>,
    /// After warm-up: cosine, linear, wsd (stable, then a line down) or constant
    #[arg(long, default_value = "cosine", value_name = "NAME")]
    schedule: Shape,
    /// Updates over which the learning rate rises
    #[arg(long, default_value_t = 20, value_name = "N")]
    warmup_steps: u64,
    /// Largest norm of the gradient; 0 leaves it as it is
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    clip_norm: f64,
    /// Micro-batches per update
    #[arg(long, default_value_t = 1, value_name = "N")]
    micro_batches: u64,
    /// Compute in bf16 with f32 masters
    #[arg(long)]
    bf16: bool,
    /// Where to train: cpu, or cuda:N for a GPU
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
    /// Probability with which an element of what a block adds is dropped in training
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    dropout: f64,
    /// Keep block inputs only and compute blocks again in backward
    #[arg(long)]
    recompute: bool,
    /// Files that are not UTF-8: refuse (with the offset; default), skip, or bytes (lm)
    #[arg(long)]
    not_utf8: Option<NotUtf8Option>,
    /// Updates between checkpoints
    #[arg(long, default_value_t = 200, value_name = "N")]
    checkpoint_every: u64,
    /// Checkpoints to keep
    #[arg(long, default_value_t = 3, value_name = "N")]
    keep: usize,
    /// Updates between validations
    #[arg(long, default_value_t = 200, value_name = "N")]
    validate_every: u64,
    /// Go on from the newest checkpoint in the folder
    #[arg(long)]
    resume: bool,
    /// Seed of everything random
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
}

impl TrainArgs {
    /// How the model computes.
    pub fn compute(&self) -> Compute {
        let dtype = if self.bf16 { DType::BF16 } else { DType::F32 };
        Compute {
            recompute: self.recompute,
            dropout: self.dropout,
            device: self.device,
            ..Compute::new(dtype)
        }
    }

    /// New, or from a checkpoint.
    pub fn start(&self) -> Start {
        if self.resume { Start::Resume } else { Start::New }
    }

    /// Refuses options of another task than this one; each with whether it was given.
    fn refuse(&self, given: &[(&str, bool)]) -> anyhow::Result<()> {
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => {
                let task = &self.task;
                Err(BadInput(format!("{option} has no meaning with --task {task}: leave it out"))
                    .into())
            }
            None => Ok(()),
        }
    }
}

/// Optimiser, schedule and limits.
pub fn config(args: &TrainArgs) -> anyhow::Result<TrainConfig> {
    let mut optimizer = OptimizerConfig::named(&args.optimizer)?;
    if let Some(lr) = args.lr {
        optimizer.set_lr(lr);
    }
    if let Some(weight_decay) = args.weight_decay {
        optimizer.set_weight_decay(weight_decay);
    }
    Ok(TrainConfig {
        steps: args.steps.or(if args.minutes.is_none() { Some(1000) } else { None }),
        minutes: args.minutes,
        optimizer,
        schedule: Schedule {
            shape: args.schedule,
            warmup_steps: args.warmup_steps,
            ..Schedule::default()
        },
        micro_batches: args.micro_batches,
        clip_norm: (args.clip_norm != 0.0).then_some(args.clip_norm),
        seed: args.seed,
        checkpoint: Every::Steps(args.checkpoint_every),
        validate: Every::Steps(args.validate_every),
        keep: args.keep,
        ..TrainConfig::default()
    })
}

pub fn run(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    match Kind::from_name(&args.task) {
        Some(kind) => {
            args.refuse(&[
                ("--data", args.data.is_some()),
                ("--preset", args.preset.is_some()),
                ("--tokenizer", args.tokenizer.is_some()),
                ("--fim-rate", args.fim_rate.is_some()),
                ("--not-utf8", args.not_utf8.is_some()),
            ])?;
            train_recall::run(args, kind)
        }
        None if args.task == "lm" => {
            args.refuse(&args.recall.given())?;
            run_lm(args)
        }
        None => {
            let line = format!("--task is {}, valid is lm, {}", args.task, Kind::NAMES);
            Err(BadInput(line).into())
        }
    }
}

fn run_lm(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let missing = || BadInput("--data is missing: a file or folder with text".into());
    let data = args.data.clone().ok_or_else(missing)?;
    let (rows, row_tokens) = (args.rows.unwrap_or(4), args.row_tokens.unwrap_or(512));
    let mut task = LmOptions::new(rows, row_tokens, args.seed);
    let rate = args.fim_rate.unwrap_or(0.5);
    task.loader.fim = (rate != 0.0).then(|| FimOptions { rate, ..FimOptions::default() });
    let request = LmRun {
        data: Some(data),
        out: args.out.clone(),
        model: args.preset.clone().unwrap_or_else(|| "quickstart".into()),
        tokenizer: args.tokenizer.clone(),
        vocab_size: args.vocab_size.unwrap_or(2048),
        task,
        compute: args.compute(),
        not_utf8: Some(args.not_utf8.unwrap_or(NotUtf8Option::Refuse).into()),
        start: args.start(),
        config: config(args)?,
        title: format!("Danaus: {}", args.out.display()),
    };
    let stop = stop_on_interrupt()?;
    let mut live = Live::new();
    let outcome = run::run(&request, &mut live, &stop)?;
    live.finish();
    print_summary(&outcome.summary, args.seed);
    println!("model:   {}\nreport:  {}", outcome.model.display(), outcome.report.display());
    Ok(ExitCode::SUCCESS)
}

/// How a training ended, in a line.
pub fn print_summary(summary: &Summary, seed: u64) {
    println!(
        "{} after step {}, {:.2} M tokens, {:.0} s; loss {:.3} (seed {seed})",
        summary.ending,
        summary.step,
        summary.tokens as f64 / 1e6,
        summary.seconds,
        summary.loss,
    );
}
