//! Packed training batches from tokenised documents, prepared on a background thread.
//!
//! A batch is one run of `rows * row_tokens` tokens with `cu_seqlens`, no padding. Documents follow
//! one another; one that reaches over the end of a row goes on in the next row as a sequence of its
//! own, so a sequence is never longer than a row.
//!
//! ```text
//! tokens      a b c | d e f g h | i j      documents "abc", "defghij" and rows of 8
//! targets     b c $ | e f g h i | j $      $ = end of text, or ignored if there is none
//! cu_seqlens  0       3           8  10
//! ```
//!
//! The target at the end of a document is the end-of-text token. It is never an input: nothing
//! follows it in its sequence, so its own target would be ignored.
//!
//! **Fill-in-the-middle** ([`crate::fim`]) is drawn anew in every epoch for each document, or for
//! each part of a document that goes into one row: an infilling task whose middle lies in another
//! row would teach nothing. This is what the original does, which rearranges samples that are
//! already cut to the context length. Where re-tokenising made a part longer than its row, its tail
//! is cut off (as in the original); every uncut part ends with the end-of-text target, since that
//! is where a middle ends.
//!
//! **Resuming**: a batch is a pure function of the data, the settings and a [`Cursor`]; a loader
//! that is opened at a saved cursor continues with the same bits.

mod cursor;
mod rows;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

pub use cursor::{Cursor, Settings};
use rows::Rows;

use crate::fim::{Fim, FimOptions};
use crate::pack::TokenSource;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Target of positions that do not count in the loss.
pub const IGNORE: i64 = -100;

/// What batches look like and in which order documents come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoaderOptions {
    /// Rows per batch.
    pub rows: usize,
    /// Tokens per row: the longest sequence.
    pub row_tokens: usize,
    /// Seed of the order of documents and of fill-in-the-middle.
    pub seed: u64,
    /// Draw a new order of documents in each epoch; otherwise they come as stored.
    pub shuffle: bool,
    /// Passes over the data; `None` never ends. The last batch may be short.
    pub epochs: Option<u64>,
    /// Rearrange documents; `None` leaves all as they are.
    pub fim: Option<FimOptions>,
    /// Batches prepared ahead.
    pub prefetch: usize,
}

impl LoaderOptions {
    /// Endless shuffled training batches with fill-in-the-middle at its default rates.
    pub fn training(rows: usize, row_tokens: usize, seed: u64) -> Self {
        let fim = Some(FimOptions::default());
        Self { rows, row_tokens, seed, shuffle: true, epochs: None, fim, prefetch: 4 }
    }

    /// One pass in stored order, nothing rearranged.
    pub fn evaluation(rows: usize, row_tokens: usize) -> Self {
        let epochs = Some(1);
        Self { rows, row_tokens, seed: 0, shuffle: false, epochs, fim: None, prefetch: 2 }
    }

    fn validate(&self, source: &dyn TokenSource) -> Result<()> {
        let counts =
            [("rows", self.rows), ("row_tokens", self.row_tokens), ("prefetch", self.prefetch)];
        for (name, count) in counts {
            if count == 0 {
                return Err(Error::argument(name, count, "at least 1"));
            }
        }
        // `cu_seqlens` is i32.
        if self.rows.checked_mul(self.row_tokens).is_none_or(|n| n > i32::MAX as usize) {
            let given = format!("{} x {}", self.rows, self.row_tokens);
            return Err(Error::argument("rows x row_tokens", given, "below 2^31"));
        }
        if u32::try_from(source.len()).is_err() {
            return Err(Error::argument("documents", source.len(), "below 2^32"));
        }
        if source.total_tokens() == 0 {
            return Err(Error::argument("documents", "without tokens", "at least one token"));
        }
        Ok(())
    }
}

/// Packed sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `[tokens]`.
    pub tokens: Vec<u32>,
    /// The token that follows each one, or [`IGNORE`], `[tokens]`.
    pub targets: Vec<i64>,
    /// Where sequences begin, and where the last one ends, `[sequences + 1]`.
    pub cu_seqlens: Vec<i32>,
    /// Length of the longest sequence.
    pub max_seqlen: usize,
    /// The epoch in which the batch begins.
    pub epoch: u64,
}

impl Batch {
    /// Position of every token within its sequence, `[tokens]`.
    pub fn positions(&self) -> Vec<u32> {
        let lengths = self.cu_seqlens.windows(2).map(|ends| (ends[1] - ends[0]) as u32);
        lengths.flat_map(|length| 0..length).collect()
    }

    /// Bytes of text that the targets stand for, given [`Tokenizer::byte_lengths`]: with the summed
    /// loss it yields bits per byte.
    pub fn target_bytes(&self, byte_lengths: &[u32]) -> u64 {
        let ids = self.targets.iter().filter_map(|target| usize::try_from(*target).ok());
        ids.map(|id| byte_lengths.get(id).copied().map_or(0, u64::from)).sum()
    }
}

type Prepared = Result<(Batch, Cursor)>;

/// Batches in order; see the module.
pub struct Loader {
    /// Taken on drop, which ends the thread.
    batches: Option<Receiver<Prepared>>,
    thread: Option<JoinHandle<()>>,
    cursor: Cursor,
}

impl Loader {
    /// Starts at the beginning.
    ///
    /// # Errors
    /// Invalid options; fill-in-the-middle without sentinels; no tokens.
    pub fn new(
        source: Arc<dyn TokenSource>,
        tokenizer: &Tokenizer,
        options: LoaderOptions,
    ) -> Result<Self> {
        let settings = Settings::new(source.as_ref(), tokenizer, &options);
        Self::start(source, tokenizer, options, Cursor::start(settings))
    }

    /// Continues at a saved position.
    ///
    /// # Errors
    /// As [`Self::new`]; a position that was saved with other data, tokenizer or settings.
    pub fn resume(
        source: Arc<dyn TokenSource>,
        tokenizer: &Tokenizer,
        options: LoaderOptions,
        cursor: Cursor,
    ) -> Result<Self> {
        let parts = rows::count_parts(source.as_ref(), &options);
        cursor.check(&Settings::new(source.as_ref(), tokenizer, &options), parts)?;
        Self::start(source, tokenizer, options, cursor)
    }

    fn start(
        source: Arc<dyn TokenSource>,
        tokenizer: &Tokenizer,
        options: LoaderOptions,
        cursor: Cursor,
    ) -> Result<Self> {
        options.validate(source.as_ref())?;
        let fim = options.fim.map(|fim| Fim::new(tokenizer, fim)).transpose()?;
        let (sender, batches) = sync_channel(options.prefetch);
        let mut rows = Rows::new(source, tokenizer.clone(), fim, options, cursor.clone());
        let produce = move || {
            while let Some(prepared) = rows.next_batch().transpose() {
                let failed = prepared.is_err();
                // The receiver is gone once the loader is dropped.
                if sender.send(prepared).is_err() || failed {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("danaus-loader".into())
            .spawn(produce)
            .map_err(|error| Error::Thread(error.to_string()))?;
        Ok(Self { batches: Some(batches), thread: Some(thread), cursor })
    }

    /// The position after the last batch that was handed out, to be saved with a checkpoint.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// The next batch; `None` after the last epoch.
    ///
    /// # Errors
    /// Failures of the store or the tokenizer. There are no batches after a failure.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        let Some(batches) = &self.batches else { return Ok(None) };
        match batches.recv() {
            Ok(prepared) => {
                let (batch, cursor) = prepared?;
                self.cursor = cursor;
                Ok(Some(batch))
            }
            Err(_) => self.join().map(|()| None),
        }
    }

    fn join(&mut self) -> Result<()> {
        self.batches = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(Error::Thread("ended by a panic; this is a defect".into())),
            _ => Ok(()),
        }
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // A panic of the thread was printed when it happened; there is nobody to tell here.
        let _ = self.join();
    }
}

#[cfg(test)]
mod tests;
