//! The `danaus` command: parses arguments, calls the library, prints. No logic lives here.
//!
//! Exit codes: 0 success, 1 failure (disk full, out of memory, a failed check), 2 bad input.

mod commands;
mod failure;
mod progress;

use clap::Parser;
use std::process::ExitCode;

/// Efficient sequence models: train, convert, compress and serve them.
#[derive(Parser)]
#[command(name = "danaus", version, about, propagate_version = true)]
struct Cli {
    /// Compute threads (default: all cores, or DANAUS_THREADS)
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Log more: -v what happens, -vv every step
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = ["warn", "info", "debug"][usize::from(cli.verbose.min(2))];
    tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr).init();
    if let Some(threads) = cli.threads {
        danaus::runtime::threads::set_threads(threads);
    }
    match danaus::runtime::threads::enter(|| commands::run(cli.command)) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}
