//! The `danaus` command: parses arguments, calls the library, prints. No logic lives here.
//!
//! Exit codes: 0 success, 1 failure (disk full, out of memory, a failed check), 2 bad input.

mod commands;
mod failure;
mod progress;

use clap::Parser;
use std::process::ExitCode;

/// More threads than any machine we know has cores.
const MAX_THREADS: usize = 1024;

/// Efficient sequence models: train, convert, compress and serve them.
#[derive(Parser)]
#[command(
    name = "danaus",
    version,
    after_help = "Examples:\n  danaus quickstart\n  danaus help train\n  danaus op run softmax --help"
)]
struct Cli {
    /// Compute threads (default: all cores, or DANAUS_THREADS)
    #[arg(long, global = true, value_name = "N", help_heading = "Everywhere")]
    threads: Option<usize>,
    /// Log more: -v what happens, -vv every step
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Everywhere")]
    verbose: u8,
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = ["warn", "info", "debug"][usize::from(cli.verbose.min(2))];
    tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr).init();
    match run(cli) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let from_environment = std::env::var("DANAUS_THREADS").ok();
    let asked = match (cli.threads, &from_environment) {
        (Some(count), _) => Some(("--threads", count.to_string())),
        (None, Some(text)) => Some(("DANAUS_THREADS", text.clone())),
        (None, None) => None,
    };
    if let Some((name, text)) = asked {
        let count = text.trim().parse().ok().filter(|count| (1..=MAX_THREADS).contains(count));
        if !count.is_some_and(danaus::runtime::threads::set_threads) {
            let line = format!("{name} is {text}, valid is 1 to {MAX_THREADS}");
            return Err(failure::BadInput(line).into());
        }
    }
    // A run that trains goes on without its reader.
    if !matches!(cli.command, commands::Command::Train(_) | commands::Command::Quickstart(_)) {
        danaus::runtime::process::end_with_the_reader();
    }
    danaus::runtime::threads::enter(|| commands::run(cli.command))
}
