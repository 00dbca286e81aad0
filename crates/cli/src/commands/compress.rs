//! `danaus compress` and `danaus densify`.

use clap::Args;
use danaus::model::Error;
use danaus::model::compress::{Candidates, Options, Report, compress, densify};
use danaus::tensor::DType;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "\
Formats: lowrank(RANK), monarch(BLOCKS), butterfly, ldr(RANK), pixelfly(BLOCK,SIZE,FACTORS,RANK); lowrank,
monarch and pixelfly without numbers leave them to the budget. One format with its number needs neither --budget nor --max-error.
Budgets and limits are about linear weights; embedding, positions and head stay dense.

Examples:
  danaus compress model --format monarch --format lowrank --budget 0.5 --out model-half
  danaus compress model --format 'monarch(4)' --only 'layers.*.mlp.*' --out model-mlp
  danaus compress model --format lowrank --max-error 0.1 --out model-close --json")]
pub struct CompressArgs {
    /// Model folder or GGUF file
    source: PathBuf,
    /// What to choose from; may be given several times
    #[arg(long, value_name = "FORMAT", required = true)]
    format: Vec<String>,
    /// Parameters that the weights keep, as a share of what they have
    #[arg(long, value_name = "SHARE")]
    budget: Option<f64>,
    /// Largest relative error of a weight (Frobenius norm)
    #[arg(long, value_name = "ERROR")]
    max_error: Option<f64>,
    /// Which weights: a name without its last part, * for any one part
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    #[command(flatten)]
    written: Written,
}

#[derive(Args)]
#[command(after_help = "Example:\n  danaus densify model-half --out model-dense")]
pub struct DensifyArgs {
    /// Model folder
    source: PathBuf,
    #[command(flatten)]
    written: Written,
}

/// What both write.
#[derive(Args)]
struct Written {
    /// Folder to write; nothing may lie there
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Type of matrices: f32, bf16, f16 (default: that of the weight, f32 for densify)
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Written {
    fn dtype(&self) -> anyhow::Result<Option<DType>> {
        let Some(name) = &self.dtype else { return Ok(None) };
        let known = [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)];
        let found = known.iter().find(|(known, _)| known == name);
        let unknown = || Error::Argument {
            arg: "dtype",
            given: name.clone(),
            valid: known.map(|(name, _)| name).join(", "),
        };
        Ok(Some(found.ok_or_else(unknown)?.1))
    }

    fn print(&self, report: &Report) -> anyhow::Result<ExitCode> {
        match self.json {
            true => println!("{}", serde_json::to_string(report)?),
            false => println!("{}{}", report.table(), self.out.display()),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A line that names the weight at work, on terminals only.
pub(super) struct Watching(ProgressBar);

impl Watching {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::new(0);
        // A constant template is well formed.
        if let Ok(style) = ProgressStyle::with_template("{bar:28} {pos}/{len} {msg} ETA {eta}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub(super) fn show(&self, done: usize, of: usize, name: &str) {
        self.0.set_length(of as u64);
        self.0.set_position(done as u64);
        self.0.set_message(name.to_string());
    }

    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

pub fn run_compress(args: &CompressArgs) -> anyhow::Result<ExitCode> {
    let formats = args.format.iter().map(|text| text.parse::<Candidates>());
    let options = Options {
        formats: formats.collect::<Result<_, _>>()?,
        budget: args.budget,
        max_error: args.max_error,
        only: args.only.clone(),
        dtype: args.written.dtype()?,
    };
    let watching = Watching::new();
    let mut watch = |done: usize, of: usize, name: &str| watching.show(done, of, name);
    let report = compress(&args.source, &args.written.out, &options, &mut watch)?;
    watching.finish();
    args.written.print(&report)
}

pub fn run_densify(args: &DensifyArgs) -> anyhow::Result<ExitCode> {
    let watching = Watching::new();
    let mut watch = |done: usize, of: usize, name: &str| watching.show(done, of, name);
    let dtype = args.written.dtype()?;
    let report = densify(&args.source, &args.written.out, dtype, &mut watch)?;
    watching.finish();
    args.written.print(&report)
}
