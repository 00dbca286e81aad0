//! `danaus train --task mqar|selective-copying|induction`.

use super::quickstart::stop_on_interrupt;
use super::train::{TrainArgs, config, print_summary};
use crate::progress::Live;
use clap::Args;
use danaus::train::tasks::recall::RecallOptions;
use danaus::train::tasks::recall::examples::{Kind, Recall};
use danaus::train::tasks::recall::run::{self, RecallRun};
use std::process::ExitCode;

/// What only the made-up tasks have.
#[derive(Args)]
pub struct RecallArgs {
    /// Mixer of every block: attention, mamba1, mamba2, linear_attention, retnet,
    /// gated_linear_attention (made-up tasks; default mamba2)
    #[arg(long, value_name = "NAME")]
    mixer: Option<String>,
    /// Blocks (made-up tasks; default 2)
    #[arg(long, value_name = "N")]
    depth: Option<usize>,
    /// Width of the model (made-up tasks; default 128)
    #[arg(long, value_name = "N")]
    d_model: Option<usize>,
    /// Width of a recurrent state, for mamba1 and mamba2
    #[arg(long, value_name = "N")]
    d_state: Option<usize>,
    /// Key-value pairs, or tokens to copy (made-up tasks; default mqar 32, selective-copying 16)
    #[arg(long, value_name = "N")]
    pairs: Option<usize>,
    /// Training examples, seen again and again; without it none comes twice (made-up tasks)
    #[arg(long, value_name = "N")]
    examples: Option<u64>,
    /// Measure at this many tokens after training; may be given several times (made-up tasks; default:
    /// that of training)
    #[arg(long, value_name = "N")]
    test_length: Vec<usize>,
    /// Examples of each such length (made-up tasks; default 64)
    #[arg(long, value_name = "N")]
    test_examples: Option<u64>,
}

impl RecallArgs {
    /// Which of these options were given.
    pub fn given(&self) -> [(&'static str, bool); 8] {
        [
            ("--mixer", self.mixer.is_some()),
            ("--depth", self.depth.is_some()),
            ("--d-model", self.d_model.is_some()),
            ("--d-state", self.d_state.is_some()),
            ("--pairs", self.pairs.is_some()),
            ("--examples", self.examples.is_some()),
            ("--test-length", !self.test_length.is_empty()),
            ("--test-examples", self.test_examples.is_some()),
        ]
    }
}

pub fn run(args: &TrainArgs, kind: Kind) -> anyhow::Result<ExitCode> {
    let own = &args.recall;
    let (vocab_size, pairs) = match kind {
        Kind::Mqar { .. } => (1024, 32),
        Kind::SelectiveCopying => (16, 16),
        Kind::Induction => (16, 1),
    };
    let recall = Recall {
        kind,
        vocab_size: args.vocab_size.unwrap_or(vocab_size),
        length: args.row_tokens.unwrap_or(256),
        pairs: own.pairs.unwrap_or(pairs),
        seed: args.seed,
    };
    let mut test_lengths = own.test_length.clone();
    if test_lengths.is_empty() {
        test_lengths.push(recall.length);
    }
    let request = RecallRun {
        options: RecallOptions {
            recall,
            rows: args.rows.unwrap_or(32),
            examples: own.examples,
            validation: 256,
        },
        mixer: own.mixer.clone().unwrap_or_else(|| "mamba2".into()),
        depth: own.depth.unwrap_or(2),
        d_model: own.d_model.unwrap_or(128),
        d_state: own.d_state,
        test_lengths,
        test_examples: own.test_examples.unwrap_or(64),
        out: args.out.clone(),
        compute: args.compute(),
        start: args.start(),
        config: config(args)?,
        title: format!("Danaus: {}", args.out.display()),
    };
    let stop = stop_on_interrupt()?;
    let mut live = Live::new();
    let outcome = run::run(&request, &mut live, &stop)?;
    live.finish();
    print_summary(&outcome.summary, args.seed);
    println!("{} blocks of {}, {} parameters", request.depth, request.mixer, outcome.parameters);
    for (length, score) in &outcome.scores {
        println!(
            "accuracy at {length} tokens: {:.2} % of {} answers",
            100.0 * score.accuracy(),
            score.targets
        );
    }
    println!("model:   {}\nreport:  {}", outcome.model.display(), outcome.report.display());
    Ok(ExitCode::SUCCESS)
}
