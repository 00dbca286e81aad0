//! `danaus eval ppl` and `danaus eval logits`.

use super::tokenizer::NotUtf8Option;
use crate::failure::BadInput;
use clap::{Args, Subcommand};
use danaus::model::Model;
use danaus::model::decoder::Compute;
use danaus::model::eval;
use danaus::tensor::DType;
use danaus::tensor::safetensors::{TensorFile, save};
use danaus::train::tasks::lm::run::evaluate_file;
use serde_json::json;
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum EvalCommand {
    /// Perplexity and bits per byte on a text file
    #[command(
        after_help = "Example: danaus eval ppl --model runs/quickstart/model --text src/lib.rs"
    )]
    Ppl(PplArgs),
    /// Logits for token ids from a file
    #[command(
        after_help = "Example: danaus eval logits --model M --input-ids ids.safetensors --out l.safetensors"
    )]
    Logits(LogitsArgs),
}

#[derive(Args)]
pub struct PplArgs {
    /// Model folder
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// Text file or folder
    #[arg(long, value_name = "PATH")]
    text: PathBuf,
    /// Tokens of context (default: 512, or what the model takes)
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Files that are not UTF-8: refuse (with the offset), skip, or bytes
    #[arg(long, default_value = "refuse")]
    not_utf8: NotUtf8Option,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct LogitsArgs {
    /// Model folder
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// File with input_ids [batch, length] and, optionally, attention_mask
    #[arg(long, value_name = "FILE")]
    input_ids: PathBuf,
    /// File for logits [batch, length, vocab]
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Also write hidden_00, hidden_01, ... after the embedding and each block
    #[arg(long)]
    hidden: bool,
    /// Arithmetic: f32, f64 or bf16
    #[arg(long, default_value = "f32")]
    dtype: DType,
}

pub fn run(command: &EvalCommand) -> anyhow::Result<ExitCode> {
    match command {
        EvalCommand::Ppl(args) => {
            let model = Model::load(&args.model, Compute::default())?;
            let most = model.decoder.config().max_positions;
            let context = args.context.unwrap_or(most.min(512));
            let found = evaluate_file(model, &args.text, context, args.not_utf8.into())?;
            let (loss, bits) = (found.loss, found.bits_per_byte.unwrap_or(f64::NAN));
            let perplexity = loss.exp();
            if args.json {
                let row = json!({"loss": loss, "perplexity": perplexity, "bits_per_byte": bits});
                println!("{row}");
            } else {
                println!(
                    "loss {loss:.4} nats, perplexity {perplexity:.3}, {bits:.4} bits per byte"
                );
            }
        }
        EvalCommand::Logits(args) => {
            if !matches!(args.dtype, DType::F32 | DType::F64 | DType::BF16) {
                let line = format!("--dtype is {}, valid is f32, f64, bf16", args.dtype);
                return Err(BadInput(line).into());
            }
            let compute = Compute { dtype: args.dtype, recompute: false };
            let model = Model::load(&args.model, compute)?;
            let file = TensorFile::open(&args.input_ids)?;
            let mask = file.info("attention_mask").map(|_| file.tensor("attention_mask"));
            let ids = file.tensor("input_ids")?;
            let found =
                eval::logits(&model.decoder, &ids, mask.transpose()?.as_ref(), args.hidden)?;
            let entries = found.iter().map(|(name, tensor)| (name.as_str(), tensor));
            save(&args.out, entries, HashMap::new())?;
            let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
            println!("{}: {}", args.out.display(), names.join(", "));
        }
    }
    Ok(ExitCode::SUCCESS)
}
