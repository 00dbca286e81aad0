//! Live progress of a training run on the terminal.

use danaus::train::progress::{Observer, Plan, Progress};
use danaus::train::tasks::lm::run::{Stage, Watcher};
use danaus::train::{Sample, Validation};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;

/// A line that is drawn again after every step; on a pipe, a plain line now and then.
pub struct Live {
    bar: ProgressBar,
    plain: bool,
    last_plain: f64,
}

impl Live {
    /// Starts without drawing.
    pub fn new() -> Self {
        let bar = ProgressBar::new(1000);
        // A constant template is well formed.
        if let Ok(style) = ProgressStyle::with_template("{bar:28} {msg}") {
            bar.set_style(style);
        }
        Self { plain: bar.is_hidden(), bar, last_plain: f64::NEG_INFINITY }
    }

    /// Prints a line above the bar.
    pub fn note(&self, line: &str) {
        if self.plain {
            println!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Live {
    fn started(&mut self, plan: &Plan) {
        let terms: Vec<String> = plan
            .memory
            .iter()
            .map(|term| format!("{} {}", term.what, danaus::train::guard::bytes(term.bytes)))
            .collect();
        self.note(&format!("memory: {}", terms.join(" + ")));
        if plan.first_step > 0 {
            self.note(&format!("continuing after step {}", plan.first_step));
        }
    }

    fn stepped(&mut self, progress: &Progress) {
        let bits = progress.bits_per_byte.map(|bits| format!(" {bits:.3} bits/byte"));
        let message = format!(
            "step {} loss {:.3}{} {:.0} tokens/s lr {:.1e} ETA {:.0} s",
            progress.step,
            progress.smooth_loss,
            bits.unwrap_or_default(),
            progress.tokens_per_s,
            progress.lr,
            progress.eta_seconds
        );
        if !self.plain {
            self.bar.set_position((progress.fraction * 1000.0) as u64);
            self.bar.set_message(message);
        } else if progress.seconds - self.last_plain >= 10.0 {
            self.last_plain = progress.seconds;
            println!("{message}");
        }
    }

    fn validated(&mut self, step: u64, validation: &Validation, _: &[Sample]) {
        let bits = validation.bits_per_byte.map(|bits| format!(", {bits:.3} bits per byte"));
        let accuracy =
            validation.accuracy.map(|share| format!(", accuracy {:.2} %", 100.0 * share));
        self.note(&format!(
            "step {step}: held-out loss {:.3}{}{}",
            validation.loss,
            bits.unwrap_or_default(),
            accuracy.unwrap_or_default()
        ));
    }

    fn saved(&mut self, step: u64, folder: &Path) {
        tracing::info!(step, folder = %folder.display(), "checkpoint");
    }
}

impl Watcher for Live {
    fn stage(&mut self, stage: &Stage) {
        self.note(&match stage {
            Stage::Gathered(report) => format!(
                "data: {} documents, {:.1} MB, from {} groups ({} files seen)",
                report.documents,
                report.bytes as f64 / 1e6,
                report.groups,
                report.files_seen
            ),
            Stage::Encoded { vocab_size, tokens } => {
                format!(
                    "tokenizer: {vocab_size} tokens; {:.1} M tokens to train on",
                    *tokens as f64 / 1e6
                )
            }
            Stage::Built { parameters, layers } => {
                format!("model: {:.2} M parameters, blocks {layers}", *parameters as f64 / 1e6)
            }
        });
    }
}
