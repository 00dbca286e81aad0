//! Metrics as JSON lines: one object a line, appended as training goes.
//!
//! A line is written by one system call, so a killed process leaves at most one broken line at the
//! end. When a run resumes from step `n`, later lines (and a broken one) are dropped first, so that
//! the file reads as if the run had never been interrupted.

use crate::{Error, Result};
use danaus_runtime::fs;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the file in a run's folder.
pub const FILE_NAME: &str = "metrics.jsonl";

/// One line: an update, a validation, or both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Updates done.
    pub step: u64,
    /// Mean training loss of the update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Gradient norm before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Tokens seen so far.
    pub tokens: u64,
    /// Tokens per second of the update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
    /// Seconds since the beginning.
    pub seconds: f64,
    /// Held-out loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// Held-out bits per byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_bits_per_byte: Option<f64>,
    /// Largest resident size of the process so far, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
}

/// The open file.
pub struct Metrics {
    path: PathBuf,
    file: File,
    /// The step of the checkpoint that is continued, if the file has a validation of it.
    validated: Option<u64>,
}

impl Metrics {
    /// Opens the file of a run whose first `step` updates are done; later lines are dropped.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join(FILE_NAME);
        let mut validated = None;
        if path.exists() {
            let kept: Vec<Line> =
                read(&path)?.into_iter().filter(|line| line.step <= step).collect();
            let write = |writer: &mut std::io::BufWriter<File>| {
                kept.iter().try_for_each(|line| writer.write_all(&encode(line)?))
            };
            fs::write_atomic(&path, write).map_err(Error::io(&path))?;
            let of_last = |line: &&Line| line.step == step && line.val_loss.is_some();
            validated = kept.iter().find(of_last).map(|line| line.step);
        }
        let file = OpenOptions::new().create(true).append(true).open(&path);
        Ok(Self { file: file.map_err(Error::io(&path))?, path, validated })
    }

    /// Appends a line; that of a validation which the file has, because a run was killed right behind it,
    /// is left as it is.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&mut self, line: &Line) -> Result<()> {
        if line.val_loss.is_some() && self.validated == Some(line.step) {
            return Ok(());
        }
        let written = encode(line).and_then(|bytes| self.file.write_all(&bytes));
        written.map_err(Error::io(&self.path))
    }
}

fn encode(line: &Line) -> std::io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// All whole lines of a metrics file; a broken last line is left out.
///
/// # Errors
/// When the file cannot be read, or a line before the last is not valid.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let mut lines = Vec::new();
    for (number, bytes) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        match serde_json::from_slice(bytes) {
            Ok(line) => lines.push(line),
            Err(_) if !bytes.ends_with(b"\n") => break,
            Err(error) => {
                return Err(Error::format(path, format!("line {}: {error}", number + 1)));
            }
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> Line {
        Line { step, loss: Some(1.0 / (step as f64 + 3.0)), tokens: 10 * step, ..Line::default() }
    }

    /// A run killed behind its last validation, and resumed there, had the validation twice.
    #[test]
    fn a_validation_made_again_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let validation = Line { val_loss: Some(1.0), ..line(2) };
        for _ in 0..2 {
            let mut metrics = Metrics::open(folder.path(), 2).unwrap();
            metrics.append(&validation).unwrap();
        }
        assert_eq!(read(&folder.path().join(FILE_NAME)).unwrap(), [validation]);
    }

    #[test]
    fn resuming_drops_later_and_broken_lines() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(folder.path(), 0).unwrap();
        (1..=7).for_each(|step| metrics.append(&line(step)).unwrap());
        // What a kill in the middle of a write leaves.
        metrics.file.write_all(b"{\"step\": 8, \"lo").unwrap();
        let path = folder.path().join(FILE_NAME);
        assert_eq!(read(&path).unwrap().len(), 7);

        let mut metrics = Metrics::open(folder.path(), 5).unwrap();
        metrics.append(&line(6)).unwrap();
        assert_eq!(read(&path).unwrap(), (1..=6).map(line).collect::<Vec<_>>());
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        std::fs::write(&path, "{\"step\":1,\"tokens\":1,\"seconds\":0}\nnonsense\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("line 2"));
    }
}
