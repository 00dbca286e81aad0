//! `danaus eval ppl` and `danaus eval logits`.

use super::sampling::parse_compute;
use super::tokenizer::NotUtf8Option;
use crate::failure::BadInput;
use clap::{Args, Subcommand};
use danaus::model::Model;
use danaus::model::decoder::Compute;
use danaus::model::eval::{self, Windows};
use danaus::tensor::safetensors::{TensorFile, save};
use danaus::tensor::{DType, Device};
use danaus::text::corpus::{Corpus, GatherOptions, Source};
use serde_json::json;
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum EvalCommand {
    /// Perplexity and bits per byte on a text file
    #[command(
        after_help = "Example: danaus eval ppl --model runs/quickstart/model --text src/lib.rs \
                      --window 512 --stride 256"
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
    /// Tokens that are looked at together (default: 512, or as many as the model takes)
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// How far a window moves; each token is predicted once (default: half a window)
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Files that are not UTF-8: refuse (with the offset), skip, or bytes
    #[arg(long, default_value = "refuse")]
    not_utf8: NotUtf8Option,
    /// Arithmetic: f32 or bf16; int8: f32, rounded to eight bits before products with quantised weights
    #[arg(long, default_value = "f32", value_parser = parse_compute)]
    compute: Compute,
    /// Where to compute: cpu, or cuda:N for a GPU
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How the model computes, on a device that is there.
fn compute(dtype: DType, device: Device) -> anyhow::Result<Compute> {
    if !matches!(dtype, DType::F32 | DType::F64 | DType::BF16) {
        let line = format!("--dtype is {dtype}, valid is f32, f64, bf16");
        return Err(BadInput(line).into());
    }
    Ok(Compute { device: device.open()?, ..Compute::new(dtype) })
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
    /// Where to compute: cpu, or cuda:N for a GPU
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
}

pub fn run(command: &EvalCommand) -> anyhow::Result<ExitCode> {
    match command {
        EvalCommand::Ppl(args) => {
            let compute = Compute { device: args.device.open()?, ..args.compute };
            let model = Model::load(&args.model, compute)?;
            let most = model.decoder.config().max_positions;
            let window = args.window.unwrap_or(most.min(512));
            let windows = Windows { window, stride: args.stride.unwrap_or(window / 2) };
            let mut options = GatherOptions::new(Source::Path(args.text.clone()));
            options.not_utf8 = args.not_utf8.into();
            let documents = Corpus::gather(&options)?.documents;
            let texts: Vec<&[u8]> = documents.iter().map(|document| &document.bytes[..]).collect();
            let found = eval::perplexity(&model.decoder, model.tokenizer()?, &texts, windows)?;
            let (loss, bits) = (found.loss(), found.bits_per_byte());
            let perplexity = found.perplexity();
            if args.json {
                let row = json!({
                    "loss": loss, "perplexity": perplexity, "bits_per_byte": bits,
                    "tokens": found.tokens, "bytes": found.bytes,
                    "window": windows.window, "stride": windows.stride,
                });
                println!("{row}");
            } else {
                println!(
                    "loss {loss:.4} nats per token, perplexity {perplexity:.3}, \
                     {bits:.4} bits per byte ({} tokens)",
                    found.tokens
                );
            }
        }
        EvalCommand::Logits(args) => {
            let model = Model::load(&args.model, compute(args.dtype, args.device)?)?;
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
