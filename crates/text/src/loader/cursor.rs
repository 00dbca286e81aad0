//! Where a loader is, in a form that can be saved.

use serde::{Deserialize, Serialize};

use super::LoaderOptions;
use crate::digest::Digest;
use crate::fim::FimOptions;
use crate::pack::TokenSource;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Everything that decides which batches come; a position is only good for the same settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Identity of the documents.
    pub data: Digest,
    /// Identity of the tokenizer.
    pub tokenizer: Digest,
    /// Rows per batch.
    pub rows: usize,
    /// Tokens per row.
    pub row_tokens: usize,
    /// Seed of all draws.
    pub seed: u64,
    /// Whether documents are shuffled.
    pub shuffle: bool,
    /// Fill-in-the-middle rates.
    pub fim: Option<FimOptions>,
}

impl Settings {
    pub(super) fn new(
        source: &dyn TokenSource,
        tokenizer: &Tokenizer,
        options: &LoaderOptions,
    ) -> Self {
        Self {
            data: source.digest(),
            tokenizer: tokenizer.digest(),
            rows: options.rows,
            row_tokens: options.row_tokens,
            seed: options.seed,
            shuffle: options.shuffle,
            fim: options.fim,
        }
    }
}

/// A position between two batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// Version of this structure: 1.
    pub version: u32,
    /// Passes over the data completed.
    pub epoch: u64,
    /// Parts of this epoch completed.
    pub position: usize,
    /// Tokens of the present part used.
    pub offset: usize,
    /// Batches handed out.
    pub batches: u64,
    /// What the position belongs to.
    pub settings: Settings,
}

impl Cursor {
    const VERSION: u32 = 1;

    pub(super) fn start(settings: Settings) -> Self {
        Self { version: Self::VERSION, epoch: 0, position: 0, offset: 0, batches: 0, settings }
    }

    pub(super) fn check(&self, now: &Settings, parts: usize) -> Result<()> {
        let then = &self.settings;
        let pairs = [
            ("version", self.version.to_string(), Self::VERSION.to_string()),
            ("data", then.data.to_string(), now.data.to_string()),
            ("tokenizer", then.tokenizer.to_string(), now.tokenizer.to_string()),
            ("rows", then.rows.to_string(), now.rows.to_string()),
            ("row_tokens", then.row_tokens.to_string(), now.row_tokens.to_string()),
            ("seed", then.seed.to_string(), now.seed.to_string()),
            ("shuffle", then.shuffle.to_string(), now.shuffle.to_string()),
            ("fim", format!("{:?}", then.fim), format!("{:?}", now.fim)),
        ];
        for (field, expected, found) in pairs {
            if expected != found {
                return Err(Error::Cursor { field, expected, found });
            }
        }
        if self.position >= parts {
            let valid = format!("0..{parts}");
            return Err(Error::argument("cursor position", self.position, valid));
        }
        Ok(())
    }
}
