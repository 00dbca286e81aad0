//! `danaus convert`.

use clap::Args;
use danaus::model::convert::{Target, convert};
use danaus::train::guard::bytes;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "\
Reads a model folder (ours, Hugging Face, state-spaces; safetensors or pytorch_model.bin) or a GGUF file.
Without --dtype weights keep their type; quantised ones become f32 in folders and f16 in GGUF.

Examples:
  danaus convert llama-3.2-1b --out llama.q8_0.gguf --format gguf --dtype q8_0
  danaus convert model.q4_k.gguf --out model-hf --format hf --dtype bf16")]
pub struct ConvertArgs {
    /// Model folder or GGUF file
    source: PathBuf,
    /// Where to write; nothing may lie there
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// What to write: hf (folder), danaus (folder) or gguf (file)
    #[arg(long, value_name = "FORMAT")]
    format: String,
    /// Type of matrices: f32, bf16, f16; for gguf also q8_0, q4_0, q4_k
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
}

pub fn run(args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let target = Target::from_name(&args.format)?;
    let summary = convert(&args.source, &args.out, target, args.dtype.as_deref())?;
    let tokenizer = if summary.tokenizer { "with tokenizer" } else { "without tokenizer" };
    println!(
        "{}: {} {}, {} tensors in {}, {}, {tokenizer}",
        args.out.display(),
        target.name(),
        summary.architecture,
        summary.tensors,
        summary.elements,
        bytes(summary.bytes)
    );
    for exception in &summary.exceptions {
        println!("  {exception}");
    }
    Ok(ExitCode::SUCCESS)
}
