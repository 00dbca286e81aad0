//! `danaus quickstart`.

use super::tokenizer::NotUtf8Option;
use crate::progress::Live;
use clap::Args;
use danaus::train::quickstart::{Options, fresh_folder};
use danaus::train::tasks::lm::run::{self, Outcome};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Args)]
#[command(after_help = "Example: danaus quickstart --data src --minutes 3 --out runs/mine")]
pub struct QuickstartArgs {
    /// File or folder with text (default: the sources in cargo's registry)
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Folder for checkpoints, metrics, the model and the report
    #[arg(long, default_value = "runs/quickstart", value_name = "FOLDER")]
    out: PathBuf,
    /// Minutes of training
    #[arg(long, default_value_t = 1.6, value_name = "M")]
    minutes: f64,
    /// Files that are not UTF-8: refuse (with the offset), skip, or bytes (default: refuse, but skip in
    /// cargo's registry)
    #[arg(long)]
    not_utf8: Option<NotUtf8Option>,
    /// Seed of everything random
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
}

/// A flag that Ctrl-C sets, so that a run ends with a checkpoint. A second Ctrl-C ends at once.
pub fn stop_on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            // What a shell reports for a process that Ctrl-C ended.
            std::process::exit(130);
        }
        eprintln!("stopping after this step; press Ctrl-C again to stop at once");
    })?;
    Ok(stop)
}

pub fn run(args: &QuickstartArgs) -> anyhow::Result<ExitCode> {
    let options = Options {
        data: args.data.clone(),
        out: fresh_folder(&args.out)?,
        minutes: args.minutes,
        not_utf8: args.not_utf8.map(Into::into),
        seed: args.seed,
    };
    let stop = stop_on_interrupt()?;
    let mut live = Live::new();
    let outcome = run::run(&options.into_run(), &mut live, &stop)?;
    live.finish();
    print(args.seed, &outcome);
    Ok(ExitCode::SUCCESS)
}

fn print(seed: u64, outcome: &Outcome) {
    let summary = &outcome.summary;
    println!(
        "trained {} steps on {:.2} M tokens in {:.0} s (seed {})",
        summary.step,
        summary.tokens as f64 / 1e6,
        summary.seconds,
        seed
    );
    println!("held-out bits per byte:");
    println!("  this model             {:.3}", outcome.bits_per_byte);
    println!("  gzip -9, file by file  {:.3}", outcome.gzip);
    println!("  byte trigram           {:.3}", outcome.trigram);
    for sample in &outcome.samples {
        println!("--- {}", sample.kind);
        println!("{}\u{ab}{}\u{bb}{}", sample.prompt, sample.output, sample.suffix);
    }
    println!("---");
    println!("model:   {}", outcome.model.display());
    println!("report:  {}", outcome.report.display());
    println!(
        "try:     danaus generate --model {} --prompt 'fn main() {{'",
        outcome.model.display()
    );
}
