//! `danaus systems`.

use clap::Args;
use danaus::systems::{SYSTEMS, Status};
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;

/// Example: danaus systems --status partial
#[derive(Args)]
#[command(after_help = "Example: danaus systems --json")]
pub struct SystemsArgs {
    /// Print a JSON list
    #[arg(long)]
    json: bool,
}

pub fn run(args: &SystemsArgs) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if args.json {
        let row = |system: &danaus::systems::System| {
            json!({
                "number": system.number, "name": system.name, "room": system.room,
                "status": system.status.to_string(), "command": system.command, "note": system.note,
            })
        };
        let rows: Vec<_> = SYSTEMS.iter().map(row).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    for system in &SYSTEMS {
        writeln!(
            out,
            "{:>2}  {:<8} {:<42} {}",
            system.number, system.status, system.name, system.room
        )?;
        if system.status != Status::Planned {
            writeln!(out, "             {}; see: {}", system.note, system.command)?;
        }
    }
    let count = |status| SYSTEMS.iter().filter(|system| system.status == status).count();
    let (works, partial, planned) =
        (count(Status::Works), count(Status::Partial), count(Status::Planned));
    writeln!(out, "{works} work, {partial} partial, {planned} planned")?;
    Ok(ExitCode::SUCCESS)
}
