//! `danaus inspect`.

use clap::Args;
use danaus::model::inspect::{ModelReport, Report, inspect};
use danaus::train::guard::bytes;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "\
Exit code 1 if problems are found.

Examples:
  danaus inspect runs/quickstart/model
  danaus inspect llama.q8_0.gguf --json | jq .problems")]
pub struct InspectArgs {
    /// Model folder, or safetensors, GGUF or PyTorch file
    path: PathBuf,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// Do not read weights to look for NaN and infinities
    #[arg(long)]
    no_scan: bool,
}

pub fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let report = inspect(&args.path, !args.no_scan)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(ExitCode::from(u8::from(!report.problems.is_empty())))
}

fn print(report: &Report) {
    println!("{}: {}", report.path.display(), report.kind.label());
    if let Some(model) = &report.model {
        print_model(model);
    }
    if let Some(tokenizer) = &report.tokenizer {
        let template = if tokenizer.chat_template { ", chat template" } else { "" };
        println!(
            "tokenizer: {} tokens, bos {:?}, eos {:?}{template}, sha256 {}",
            tokenizer.vocab_size, tokenizer.bos, tokenizer.eos, tokenizer.digest
        );
    }
    if report.model.is_some() && report.tokenizer.is_none() {
        println!("no tokenizer");
    }
    for (key, value) in &report.metadata {
        println!("  {key}: {value}");
    }
    let width = report.tensors.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for row in &report.tensors {
        let shape = format!("{:?}", row.shape);
        println!("  {:<width$}  {:<6} {shape:<20} {}", row.name, row.dtype, bytes(row.bytes));
    }
    println!(
        "{} tensors, {} elements, {}",
        report.tensors.len(),
        report.elements,
        bytes(report.bytes)
    );
    match report.problems.len() {
        0 => println!("no problems found"),
        count => println!("{count} problems:"),
    }
    for problem in &report.problems {
        println!("  {problem}");
    }
}

fn print_model(model: &ModelReport) {
    println!(
        "model: {} ({}), {} blocks ({}), width {}, {} tokens, up to {} positions",
        model.architecture,
        model.family,
        model.layers.len(),
        model.layers,
        model.d_model,
        model.vocab_size,
        model.max_positions
    );
    let memory = &model.memory;
    println!("parameters: {}", model.parameters);
    println!("to load: {} as stored, {} in f32", bytes(memory.load_stored), bytes(memory.load_f32));
    let window = match memory.state_per_token_in_window {
        0 => String::new(),
        size => format!(", {} a token in the window", bytes(size)),
    };
    println!(
        "states: {} a token{window}, {} a sequence",
        bytes(memory.state_per_token),
        bytes(memory.state_per_sequence)
    );
}
