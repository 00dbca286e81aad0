//! `danaus selftest`.

use clap::Args;
use danaus::bench::selftest::{self, Outcome, Tally};
use danaus::tensor::Device;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "Example: danaus selftest --filter attention")]
pub struct SelftestArgs {
    /// Folder with cases.json and the golden files
    #[arg(long, default_value = "tests/golden", value_name = "FOLDER")]
    golden: PathBuf,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Where to run
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
    /// Print every comparison
    #[arg(long)]
    all: bool,
}

pub fn run(args: &SelftestArgs) -> anyhow::Result<ExitCode> {
    let device = args.device.open()?;
    let registry = danaus::registry()?;
    let outcomes = selftest::run(&registry, &args.golden, &args.filter, device, |outcome| {
        print(outcome, args.all);
    })?;
    let Tally { passed, failed, not_on_device } = selftest::tally(&outcomes);
    print!("selftest on {device}: {passed} passed, {failed} failed");
    match not_on_device {
        0 => println!(),
        count => println!(", {count} not on cuda (the operator has no GPU kernel yet)"),
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(outcome: &Outcome, all: bool) {
    if outcome.not_on_device() {
        return println!("none {}: not on cuda", outcome.case);
    }
    let verdict = if outcome.passed() { "ok  " } else { "FAIL" };
    match &outcome.result {
        Err(error) => println!("{verdict} {}: {error}", outcome.case),
        Ok(checks) => {
            let worst =
                checks.iter().map(|check| check.error / check.tolerance).fold(0.0, f64::max);
            println!("{verdict} {} (worst {:.2} of the tolerance)", outcome.case, worst);
            for check in checks.iter().filter(|check| all || !check.passed()) {
                println!(
                    "       {}: {:.2e}, allowed {:.1e}",
                    check.tensor, check.error, check.tolerance
                );
            }
        }
    }
}
