//! The built command in temporary folders, on a model of a few thousand numbers.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// A model that trains a step in about a millisecond: scan, attention, gated MLP.
pub const CONFIG: &str = r#"{
  "model_type": "danaus", "version": 1, "vocab_size": 300, "d_model": 16, "layers": "MA",
  "max_positions": 64,
  "attention": { "n_heads": 2, "rope_theta": 10000.0 },
  "mamba2": { "d_state": 8, "head_dim": 8 },
  "mlp": { "kind": "swiglu", "d_ff": 16 }, "norm": { "kind": "rms", "eps": 1e-5, "bias": false },
  "tied_head": true, "weights": "dense"
}"#;

/// The command with these arguments, not yet run.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_danaus"));
    command.args(arguments).env_remove("DANAUS_THREADS");
    command
}

/// Runs the command and demands success.
pub fn succeed(arguments: &[&str]) -> String {
    let output = command(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Demands the exit code and one line on the error stream that holds all of `parts`.
pub fn complains(output: &Output, code: i32, parts: &[&str]) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{error}");
    let lines: Vec<&str> = error.lines().collect();
    assert!(lines.len() == 1 && lines[0].starts_with("danaus: "), "not one line: {error}");
    assert!(error.matches("(os error").count() < 2, "the cause is said twice: {error}");
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
    error
}

/// Runs the command and demands exit code 2 (bad input) and one clear line.
pub fn refused(arguments: &[&str], parts: &[&str]) -> String {
    complains(&command(arguments).output().unwrap(), 2, parts)
}

/// Demands exit code 2 and usage help that holds all of `parts`: what the command line's grammar refuses.
pub fn misused(arguments: &[&str], parts: &[&str]) {
    let output = command(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    for part in parts.iter().chain(&["--help"]) {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A temporary folder with a corpus and a config, and a model trained on them for four steps.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// A corpus of a few files and [`CONFIG`].
    pub fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(place.path("data")).unwrap();
        for file in 0..6 {
            let lines = (0..60).map(|line| {
                let (a, b) = (line * 7 + file, line * file % 11);
                format!("fn item_{a}(x: u32) -> u32 {{ x + {b} }} // line {line} of file {file}\n")
            });
            place.write(&format!("data/file{file}.rs"), lines.collect::<String>());
        }
        place.write("config.json", CONFIG);
        place
    }

    /// With a trained model in `run/model`.
    pub fn with_model() -> Self {
        static MODEL: OnceLock<Place> = OnceLock::new();
        let trained = MODEL.get_or_init(|| {
            let place = Self::new();
            place.train("run", &["--steps", "4"]);
            place
        });
        let place = Self::new();
        std::fs::create_dir_all(place.path("run/model")).unwrap();
        for entry in std::fs::read_dir(trained.path("run/model")).unwrap() {
            let entry = entry.unwrap();
            let name = format!("run/model/{}", entry.file_name().to_str().unwrap());
            std::fs::copy(entry.path(), place.path(&name)).unwrap();
        }
        place
    }

    /// A path below the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as text.
    pub fn at(&self, name: &str) -> String {
        text(&self.path(name)).to_string()
    }

    /// Writes a file.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// Arguments of a training run into `out`, with more behind them.
    pub fn train_arguments(&self, out: &str, more: &[&str]) -> Vec<String> {
        let fixed = ["--rows", "2", "--row-tokens", "32", "--vocab-size", "300"];
        let paths = [("--data", "data"), ("--preset", "config.json"), ("--out", out)];
        let mut arguments = vec!["train".to_string()];
        for (option, name) in paths {
            if !more.contains(&option) {
                arguments.extend([option.to_string(), self.at(name)]);
            }
        }
        let all = fixed.chunks(2).filter(|pair| !more.contains(&pair[0])).flatten();
        arguments.extend(all.chain(more).map(|word| word.to_string()));
        arguments
    }

    /// Trains into `out`.
    pub fn train(&self, out: &str, more: &[&str]) -> String {
        let arguments = self.train_arguments(out, more);
        succeed(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A training run that must be refused.
    pub fn train_refused(&self, out: &str, more: &[&str], parts: &[&str]) -> String {
        let arguments = self.train_arguments(out, more);
        refused(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), parts)
    }

    /// Greedy generation from the model that must be refused.
    pub fn generate_refused(&self, more: &[&str], parts: &[&str]) -> String {
        let model = self.at("run/model");
        let mut arguments = vec!["generate", "--model", &model];
        arguments.extend(more);
        if !more.iter().any(|word| word.starts_with("--prompt") || *word == "--fim") {
            arguments.extend(["--prompt", "fn "]);
        }
        refused(&arguments, parts)
    }
}
