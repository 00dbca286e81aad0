//! `danaus analyze`.

use clap::Args;
use danaus::matrix::structured::factor::Spectrum;
use danaus::model::inspect::{MatrixReport, analyze_file};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "\
Ranks count singular values above the rounding noise of the tensor's element type. A displacement of
low rank means a Toeplitz-like or Hankel-like matrix. Costs four singular value decompositions a
matrix and more for the formats: name the tensors of a large file.

Examples:
  danaus analyze weights.safetensors
  danaus analyze model --tensor 'layers.*.mlp.up.weight' --json")]
pub struct AnalyzeArgs {
    /// Model folder, or safetensors, GGUF or PyTorch file
    path: PathBuf,
    /// Which tensors, * for any one part of a name (default: every matrix)
    #[arg(long, value_name = "PATTERN")]
    tensor: Option<String>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &AnalyzeArgs) -> anyhow::Result<ExitCode> {
    let watching = super::compress::Watching::new();
    let mut watch = |done: usize, of: usize, name: &str| watching.show(done, of, name);
    let reports = analyze_file(&args.path, args.tensor.as_deref(), &mut watch)?;
    watching.finish();
    if args.json {
        println!("{}", serde_json::to_string(&reports)?);
    } else {
        reports.iter().for_each(print);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &MatrixReport) {
    let found = &report.analysis;
    let [rows, cols] = found.shape;
    println!("{}: {rows} x {cols}, norm {:.4e}", report.name, found.norm);
    line("M", 1.0, &found.matrix);
    for one in &found.displacements {
        line(one.operators, one.relative_norm, &one.spectrum);
    }
    for fit in &found.formats {
        println!(
            "  {:>5.1}% of the parameters: {:<24} error {:.4}",
            100.0 * fit.share,
            fit.format,
            fit.relative_error
        );
    }
}

fn line(name: &str, relative_norm: f64, spectrum: &Spectrum) {
    let [half, most, all] = spectrum.energy_ranks;
    println!(
        "  {name:<14} norm {relative_norm:<6.3} rank {} of {}, stable {:.1}, 50/90/99% in {half}/{most}/{all}",
        spectrum.rank, spectrum.of, spectrum.stable_rank
    );
}
