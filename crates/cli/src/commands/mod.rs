//! One file a command.

mod analyze;
mod attention;
mod bench;
mod chat;
mod compress;
mod convert;
mod devices;
mod eval;
mod factor;
mod generate;
mod inspect;
mod kernels;
mod op;
mod quickstart;
mod sampling;
mod selftest;
mod systems;
mod tokenizer;
mod train;
mod train_recall;

use clap::Subcommand;
use danaus::model::generate::GraphUse;
use serde_json::json;
use std::process::ExitCode;

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Train a small model on real code, compare it with compressors, write a report
    Quickstart(quickstart::QuickstartArgs),
    /// Train a model on a file or folder
    Train(train::TrainArgs),
    /// Continue a text, or fill a gap in one
    Generate(generate::GenerateArgs),
    /// Talk to a model
    Chat(chat::ChatArgs),
    /// Measure a model: bits per byte, or logits into a file
    #[command(subcommand, after_help = "Example: danaus eval ppl --model M --text src/lib.rs")]
    Eval(eval::EvalCommand),
    /// Train a tokenizer, or look through its eyes
    #[command(subcommand, after_help = "Example: danaus tokenizer train --data src --out t.json")]
    Tokenizer(tokenizer::TokenizerCommand),
    /// Convert a model to another format, quantised or not
    Convert(convert::ConvertArgs),
    /// Replace a model's weights by structured ones, within a budget
    Compress(compress::CompressArgs),
    /// Multiply a model's structured weights out
    Densify(compress::DensifyArgs),
    /// Find the fast algorithm of a matrix, or the nearest structured one
    Factor(factor::FactorArgs),
    /// Say what structure the matrices of a file have
    Analyze(analyze::AnalyzeArgs),
    /// Say what a model folder, GGUF, PyTorch or tensor file holds, and what is wrong with it
    Inspect(inspect::InspectArgs),
    /// List operators, or run one on tensors from a file
    #[command(subcommand, after_help = "Example: danaus op list attention")]
    Op(op::OpCommand),
    /// Study attention: errors of its eight-bit form
    #[command(subcommand)]
    Attention(attention::AttentionCommand),
    /// Measure speed against the roofline and named peers
    Bench(bench::BenchArgs),
    /// Compile GPU kernels ahead of time
    #[command(subcommand)]
    Kernels(kernels::KernelsCommand),
    /// Show what computes here: processor, GPUs, compiler
    Devices,
    /// Run the golden cases
    Selftest(selftest::SelftestArgs),
    /// Show the implemented systems and how far each has come
    Systems(systems::SystemsArgs),
}

/// How decoding steps ran: on a GPU by replays of recorded graphs, or why not.
fn graph_json(used: &GraphUse) -> serde_json::Value {
    json!({
        "replayed": used.replayed, "launched": used.launched, "recorded": used.recorded,
        "refused": used.refused,
    })
}

/// Runs a command.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Quickstart(args) => quickstart::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Eval(command) => eval::run(&command),
        Command::Tokenizer(command) => tokenizer::run(&command),
        Command::Convert(args) => convert::run(&args),
        Command::Compress(args) => compress::run_compress(&args),
        Command::Densify(args) => compress::run_densify(&args),
        Command::Factor(args) => factor::run(&args),
        Command::Analyze(args) => analyze::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Op(command) => op::run(&command),
        Command::Attention(command) => attention::run(&command),
        Command::Bench(args) => bench::run(&args),
        Command::Kernels(command) => kernels::run(&command),
        Command::Devices => devices::run(),
        Command::Selftest(args) => selftest::run(&args),
        Command::Systems(args) => systems::run(&args),
    }
}
