//! `danaus kernels build`.

use clap::{Args, Subcommand};
use danaus::kernels::{self, Built};
use danaus::runtime::cuda::Arch;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum KernelsCommand {
    /// Compile every shipped GPU kernel; needs NVRTC and no GPU
    #[command(after_help = "Example: danaus kernels build --arch sm_90a --out kernels\n\
                            Programs use the folder with DANAUS_KERNELS=kernels.")]
    Build(BuildArgs),
}

#[derive(Args)]
pub struct BuildArgs {
    /// Chip: sm_80, sm_86, sm_89, sm_90a, sm_100a, sm_120a
    #[arg(long)]
    arch: Arch,
    /// Folder for the compiled kernels
    #[arg(long = "out", value_name = "FOLDER")]
    output: PathBuf,
    /// Only kernels whose source name contains this
    #[arg(long, default_value = "")]
    filter: String,
}

pub fn run(command: &KernelsCommand) -> anyhow::Result<ExitCode> {
    let KernelsCommand::Build(args) = command;
    println!(
        "{:<18} {:<14} {:>4} {:>7} {:>6} {:>6}",
        "source", "entry", "regs", "shared", "stack", "spills"
    );
    let built = kernels::build(args.arch, &args.output, &args.filter, print)?;
    let failed = built.iter().filter(|one| !one.passed()).count();
    let entries: usize = built.iter().filter_map(|one| Some(one.result.as_ref().ok()?.len())).sum();
    println!("{}: {} variants, {entries} kernels, {failed} failed", args.arch, built.len());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(built: &Built) {
    match &built.result {
        Err(error) => println!("FAIL {error}"),
        Ok(entries) => {
            for entry in entries {
                println!(
                    "{:<18} {:<14} {:>4} {:>7} {:>6} {:>6}  {}",
                    built.source,
                    entry.entry,
                    entry.registers,
                    entry.shared,
                    entry.stack,
                    entry.spills,
                    built.defines
                );
            }
        }
    }
    for complaint in &built.complaints {
        println!("FAIL {} with {}: {complaint}", built.source, built.defines);
    }
}
