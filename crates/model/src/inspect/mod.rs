//! What lies at a path: container, architecture, sizes, tensors, tokenizer, and what is wrong with it.
//!
//! Headers alone say most of it. Finding NaN and infinities reads every byte once; [`inspect`] does so
//! unless told not to. A file that is no model by itself (one shard, a tensor file) is listed all the
//! same.

mod container;
mod memory;
mod structure;

pub use container::{Kind, Row};
pub use memory::Memory;
pub use structure::{MatrixReport, analyze_file};

use crate::checkpoint::Opened;
use crate::{Error, Result};
use container::Container;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Everything known about a path.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where.
    pub path: PathBuf,
    /// Which container.
    pub kind: Kind,
    /// What kind of model, if it is one.
    pub model: Option<ModelReport>,
    /// The tokenizer, if there is one.
    pub tokenizer: Option<TokenizerReport>,
    /// Text entries of the container: GGUF keys, safetensors metadata.
    pub metadata: Vec<(String, String)>,
    /// All tensors, as they are stored.
    pub tensors: Vec<Row>,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Elements of all tensors.
    pub elements: u64,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// A recognised model.
#[derive(Debug, Serialize)]
pub struct ModelReport {
    /// Whose spelling it is.
    pub family: String,
    /// The architecture's name there.
    pub architecture: String,
    /// One letter a block.
    pub layers: String,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Number of parameters.
    pub parameters: usize,
    /// Memory it takes.
    pub memory: Memory,
    /// Its config in our terms.
    pub config: serde_json::Value,
}

/// A tokenizer.
#[derive(Debug, Serialize)]
pub struct TokenizerReport {
    /// One more than the largest id.
    pub vocab_size: usize,
    /// SHA-256 of its file.
    pub digest: String,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Each ends a text.
    pub eos: Vec<u32>,
    /// Whether a chat template goes with it.
    pub chat_template: bool,
}

/// Looks at a file or folder. With `scan`, weights are searched for NaN and infinities.
///
/// # Errors
/// When nothing readable lies there; whatever is wrong inside is part of the report.
pub fn inspect(path: &Path, scan: bool) -> Result<Report> {
    let container = Container::open(path)?;
    let tensors = container.rows()?;
    let mut problems = Vec::new();
    if scan {
        problems.extend(container.not_finite()?);
    }
    let mut report = Report {
        path: path.to_path_buf(),
        kind: container.kind(),
        model: None,
        tokenizer: None,
        metadata: container.metadata(),
        bytes: tensors.iter().map(|row| row.bytes).sum(),
        elements: tensors.iter().map(|row| row.elements()).sum(),
        tensors,
        problems,
    };
    match Opened::open_dequantized(path) {
        Ok(opened) => model(&opened, &mut report)?,
        // A tensor file need not be a model.
        Err(_) if !container.should_be_model() => {}
        Err(error) => report.problems.push(without_path(error, path)),
    }
    Ok(report)
}

/// Adds what a recognised model tells.
fn model(opened: &Opened, report: &mut Report) -> Result<()> {
    let described = opened.describe()?;
    let config = &described.config;
    report.problems.extend(opened.problems()?);
    report.model = Some(ModelReport {
        family: described.family,
        architecture: described.kind,
        layers: config.layers.clone(),
        d_model: config.d_model,
        vocab_size: config.vocab_size,
        max_positions: config.max_positions,
        parameters: described.parameters,
        memory: Memory::of(config, report.bytes)?,
        config: serde_json::from_str(&config.to_json()).unwrap_or_default(),
    });
    match opened.tokenizer() {
        Ok(Some(tokenizer)) => {
            report.tokenizer = Some(TokenizerReport {
                vocab_size: tokenizer.vocab_size(),
                digest: tokenizer.digest().to_string(),
                bos: described.special.bos.or(tokenizer.bos()),
                eos: match &described.special.eos[..] {
                    [] => tokenizer.eos().into_iter().collect(),
                    all => all.to_vec(),
                },
                chat_template: !tokenizer.settings().templates.is_empty(),
            });
        }
        Ok(None) => {}
        Err(error) => report.problems.push(without_path(error, &report.path)),
    }
    Ok(())
}

/// An error's text without the path that the report begins with.
fn without_path(error: Error, path: &Path) -> String {
    let text = error.to_string();
    let prefix = format!("{}: ", path.display());
    text.strip_prefix(&prefix).map(str::to_string).unwrap_or(text)
}

#[cfg(test)]
mod tests;
