//! `danaus train`.

use super::quickstart::stop_on_interrupt;
use super::tokenizer::NotUtf8Option;
use crate::progress::Live;
use clap::Args;
use danaus::model::decoder::Compute;
use danaus::tensor::DType;
use danaus::text::fim::FimOptions;
use danaus::train::optim::OptimizerConfig;
use danaus::train::schedule::{Schedule, Shape};
use danaus::train::tasks::lm::LmOptions;
use danaus::train::tasks::lm::run::{self, LmRun};
use danaus::train::{Every, Start, TrainConfig};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(
    after_help = "Example: danaus train --data src --preset quickstart --minutes 5 --out runs/code\n\
                        Ctrl-C writes a checkpoint; --resume goes on from the newest one."
)]
pub struct TrainArgs {
    /// File or folder with text
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Folder of the run
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Model: a config.json, or transformer, mamba2, quickstart
    #[arg(long, default_value = "quickstart", value_name = "NAME|FILE")]
    preset: String,
    /// Tokenizer to use (default: train one on the data)
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Tokens of a new tokenizer
    #[arg(long, default_value_t = 2048, value_name = "N")]
    vocab_size: usize,
    /// Sequences per batch
    #[arg(long, default_value_t = 4, value_name = "N")]
    rows: usize,
    /// Tokens per sequence
    #[arg(long, default_value_t = 512, value_name = "N")]
    row_tokens: usize,
    /// Share of documents trained as fill-in-the-middle
    #[arg(long, default_value_t = 0.5, value_name = "X")]
    fim_rate: f64,
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
    /// Keep block inputs only and compute blocks again in backward
    #[arg(long)]
    recompute: bool,
    /// Files that are not UTF-8: refuse (with the offset), skip, or bytes
    #[arg(long, default_value = "refuse")]
    not_utf8: NotUtf8Option,
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
    seed: u64,
}

fn config(args: &TrainArgs) -> anyhow::Result<TrainConfig> {
    let mut optimizer = OptimizerConfig::named(&args.optimizer)?;
    if let Some(lr) = args.lr {
        optimizer.set_lr(lr);
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
    let mut task = LmOptions::new(args.rows, args.row_tokens, args.seed);
    task.loader.fim =
        (args.fim_rate != 0.0).then(|| FimOptions { rate: args.fim_rate, ..FimOptions::default() });
    let request = LmRun {
        data: Some(args.data.clone()),
        out: args.out.clone(),
        model: args.preset.clone(),
        tokenizer: args.tokenizer.clone(),
        vocab_size: args.vocab_size,
        task,
        compute: Compute {
            dtype: if args.bf16 { DType::BF16 } else { DType::F32 },
            recompute: args.recompute,
            ..Compute::default()
        },
        not_utf8: Some(args.not_utf8.into()),
        start: if args.resume { Start::Resume } else { Start::New },
        config: config(args)?,
        title: format!("Danaus: {}", args.out.display()),
    };
    let stop = stop_on_interrupt()?;
    let mut live = Live::new();
    let outcome = run::run(&request, &mut live, &stop)?;
    live.finish();
    let summary = &outcome.summary;
    println!(
        "{} after step {}, {:.2} M tokens, {:.0} s; loss {:.3} (seed {})",
        summary.ending,
        summary.step,
        summary.tokens as f64 / 1e6,
        summary.seconds,
        summary.loss,
        args.seed
    );
    println!("model:   {}\nreport:  {}", outcome.model.display(), outcome.report.display());
    Ok(ExitCode::SUCCESS)
}
