//! `danaus attention`.

use clap::{Args, Subcommand};
use danaus::kernel::ops::attention::Fp8Scales;
use danaus::kernel::ops::attention::fp8::error::measure;
use danaus::tensor::Device;
use serde_json::json;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum AttentionCommand {
    /// Error of attention in e4m3 on data with outliers, against exact attention in f64
    #[command(after_help = "Example: danaus attention fp8-error --n 4096 --d 128\n\
                            Entries are N(0, 1) + N(0, 100) Bernoulli(0.001).")]
    Fp8Error(Fp8ErrorArgs),
}

#[derive(Args)]
pub struct Fp8ErrorArgs {
    /// Queries and keys
    #[arg(long, default_value_t = 4096)]
    n: usize,
    /// Head dimension: a power of two, 16 or more; on a GPU 64, 128 or 256
    #[arg(long, default_value_t = 128)]
    d: usize,
    /// Seed of data and signs
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the eight-bit form runs
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
    /// Print a JSON record
    #[arg(long)]
    json: bool,
}

pub fn run(command: &AttentionCommand) -> anyhow::Result<ExitCode> {
    let AttentionCommand::Fp8Error(args) = command;
    let device = args.device.open()?;
    let errors = measure(args.n, args.d, args.seed, &device)?;
    let scales = |scales| match scales {
        Fp8Scales::Head => "head",
        Fp8Scales::Tile => "tile",
    };
    if args.json {
        let row = |e: &danaus::kernel::ops::attention::fp8::error::SchemeError| json!({ "scales": scales(e.scales), "rotated": e.rotated, "rmse": e.rmse });
        let rows: Vec<_> = errors.iter().map(row).collect();
        let record = json!({
            "n": args.n, "d": args.d, "seed": args.seed, "device": device.to_string(),
            "schemes": rows,
        });
        println!("{record:#}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<10} {:<9} {:>10} {:>14}", "a scale a", "rotated", "RMSE", "times better");
    for e in &errors {
        let better = errors[0].rmse / e.rmse;
        let rotated = if e.rotated { "yes" } else { "no" };
        println!("{:<10} {rotated:<9} {:>10.3e} {better:>14.2}", scales(e.scales), e.rmse);
    }
    Ok(ExitCode::SUCCESS)
}
