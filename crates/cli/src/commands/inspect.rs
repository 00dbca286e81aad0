//! `danaus inspect`.

use clap::Args;
use danaus::model::describe;
use danaus::tensor::safetensors::{Checkpoint, TensorFile};
use danaus::train::guard::bytes;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "Example: danaus inspect runs/quickstart/model")]
pub struct InspectArgs {
    /// Model folder or safetensors file
    path: PathBuf,
}

pub fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    if args.path.join("config.json").is_file() {
        let found = describe(&args.path)?;
        let config = &found.config;
        let kind = match found.family == found.kind {
            true => found.kind.clone(),
            false => format!("{} ({} family)", found.kind, found.family),
        };
        println!(
            "{kind}: {} blocks ({}), width {}, {} tokens, up to {} positions",
            found.layers,
            config.layers,
            config.d_model,
            config.tokens(),
            config.max_positions
        );
        println!("parameters: {}", found.parameters);
        let terms = config.training_bytes(4096)?;
        let text: Vec<String> =
            terms.iter().map(|(what, size)| format!("{what} {}", bytes(*size))).collect();
        let total = terms.iter().map(|(_, size)| size).sum();
        println!("training with 4096 tokens a batch: {} = {}", text.join(" + "), bytes(total));
    }
    let checkpoint = Checkpoint::open(&args.path)?;
    let (mut count, mut total) = (0, 0);
    for file in checkpoint.files() {
        let (tensors, size) = table(file)?;
        count += tensors;
        total += size;
    }
    println!("{count} tensors, {}", bytes(total));
    Ok(ExitCode::SUCCESS)
}

/// One line a tensor: name, dtype, shape, bytes.
fn table(file: &TensorFile) -> anyhow::Result<(usize, u64)> {
    let names = file.names();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let mut total = 0;
    for name in &names {
        let tensor = file.tensor(name)?;
        let size = tensor.bytes() as u64;
        total += size;
        let (dtype, shape) = (tensor.dtype().name(), tensor.shape().to_string());
        println!("  {name:<width$}  {dtype:<5} {shape:<20} {}", bytes(size));
    }
    Ok((names.len(), total))
}
