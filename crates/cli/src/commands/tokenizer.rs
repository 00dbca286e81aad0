//! `danaus tokenizer train`.

use clap::{Args, Subcommand};
use danaus::text::corpus::{Corpus, GatherOptions, NotUtf8, Source};
use danaus::text::tokenizer::{Tokenizer, TrainOptions};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum TokenizerCommand {
    /// Train a byte-level BPE tokenizer on a file or folder
    #[command(
        after_help = "Example: danaus tokenizer train --data src --vocab-size 4096 --out tokenizer.json"
    )]
    Train(TrainArgs),
}

#[derive(Args)]
pub struct TrainArgs {
    /// File or folder
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Where tokenizer.json goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Number of tokens, sentinels included
    #[arg(long, default_value_t = 4096, value_name = "N")]
    vocab_size: usize,
    /// Files that are not UTF-8: refuse (with the offset), skip, or bytes (keep them as they are)
    #[arg(long, default_value = "refuse")]
    not_utf8: NotUtf8Option,
    /// Seed of the sample that merges are learned from
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum NotUtf8Option {
    Refuse,
    Skip,
    Bytes,
}

impl From<NotUtf8Option> for NotUtf8 {
    fn from(option: NotUtf8Option) -> Self {
        match option {
            NotUtf8Option::Refuse => NotUtf8::Refuse,
            NotUtf8Option::Skip => NotUtf8::Skip,
            NotUtf8Option::Bytes => NotUtf8::Bytes,
        }
    }
}

pub fn run(command: &TokenizerCommand) -> anyhow::Result<ExitCode> {
    let TokenizerCommand::Train(args) = command;
    let mut options = GatherOptions::new(Source::Path(args.data.clone()));
    options.not_utf8 = args.not_utf8.into();
    let corpus = Corpus::gather(&options)?;
    let documents: Vec<&[u8]> =
        corpus.documents.iter().map(|document| document.bytes.as_slice()).collect();
    let training =
        TrainOptions { vocab_size: args.vocab_size, seed: args.seed, ..TrainOptions::default() };
    let tokenizer = Tokenizer::train(&documents, &training)?;
    tokenizer.save(&args.out)?;
    let report = &corpus.report;
    println!(
        "{}: {} tokens from {} documents ({:.1} MB)",
        args.out.display(),
        tokenizer.vocab_size(),
        report.documents,
        report.bytes as f64 / 1e6
    );
    Ok(ExitCode::SUCCESS)
}
