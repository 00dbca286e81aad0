//! Filling rows: which tokens of which document come next.

use std::ops::Range;
use std::sync::Arc;

use super::{Batch, Cursor, IGNORE, LoaderOptions};
use crate::Result;
use crate::fim::{Fim, Order};
use crate::pack::TokenSource;
use crate::rng::{self, Rng};
use crate::tokenizer::Tokenizer;

/// Tokens kept free for what re-tokenising the three parts of a document may add.
const GROWTH: usize = 5;

/// In less room than this a document is not rearranged: its parts would be a few tokens each.
const SMALLEST_FIM: usize = 32;

pub(super) struct Rows {
    source: Arc<dyn TokenSource>,
    tokenizer: Tokenizer,
    fim: Option<Fim>,
    options: LoaderOptions,
    end_of_text: i64,
    cursor: Cursor,
    /// The order of documents in epoch `order_of`.
    order: Vec<u32>,
    order_of: Option<u64>,
}

impl Rows {
    pub(super) fn new(
        source: Arc<dyn TokenSource>,
        tokenizer: Tokenizer,
        fim: Option<Fim>,
        options: LoaderOptions,
        cursor: Cursor,
    ) -> Self {
        let end_of_text = tokenizer.end_of_text().map_or(IGNORE, i64::from);
        let (order, order_of) = (Vec::new(), None);
        Self { source, tokenizer, fim, options, end_of_text, cursor, order, order_of }
    }

    /// The next batch and the position after it; `None` when all epochs are over.
    pub(super) fn next_batch(&mut self) -> Result<Option<(Batch, Cursor)>> {
        let mut batch = Batch { cu_seqlens: vec![0], epoch: self.cursor.epoch, ..Batch::default() };
        let full = self.options.rows * self.options.row_tokens;
        while batch.tokens.len() < full {
            // Sequences end with their row.
            let room = self.options.row_tokens - batch.tokens.len() % self.options.row_tokens;
            let Some(document) = self.document() else { break };
            if batch.tokens.is_empty() {
                batch.epoch = self.cursor.epoch;
            }
            self.append(document, room, &mut batch)?;
        }
        if batch.tokens.is_empty() {
            return Ok(None);
        }
        self.cursor.batches += 1;
        Ok(Some((batch, self.cursor.clone())))
    }

    /// The document at the cursor, which is moved over exhausted documents and epochs.
    fn document(&mut self) -> Option<usize> {
        loop {
            if self.options.epochs.is_some_and(|epochs| self.cursor.epoch >= epochs) {
                return None;
            }
            if self.order_of != Some(self.cursor.epoch) {
                self.order = (0..self.source.len() as u32).collect();
                if self.options.shuffle {
                    let stream = rng::stream(rng::EPOCH_ORDER, self.cursor.epoch);
                    Rng::new(self.options.seed, stream).shuffle(&mut self.order);
                }
                self.order_of = Some(self.cursor.epoch);
            }
            match self.order.get(self.cursor.position) {
                Some(&document)
                    if self.cursor.offset < self.source.tokens_of(document as usize) =>
                {
                    return Some(document as usize);
                }
                Some(_) => self.cursor.position += 1,
                None => {
                    self.cursor.position = 0;
                    self.cursor.epoch += 1;
                }
            }
            self.cursor.offset = 0;
        }
    }

    /// Appends one sequence of at most `room` tokens.
    fn append(&mut self, document: usize, room: usize, batch: &mut Batch) -> Result<()> {
        if let Some((sequence, used)) = self.rearranged(document, room)? {
            let cut = sequence.get(room).map_or(self.end_of_text, |&id| i64::from(id));
            push(batch, &sequence[..sequence.len().min(room)], cut);
            self.cursor.offset += used;
            return Ok(());
        }
        let (offset, length) = (self.cursor.offset, self.source.tokens_of(document));
        let end = length.min(offset + room);
        // One token more, if there is one, is the target of the last.
        let tokens = self.source.read(document, offset..length.min(end + 1))?;
        let after = tokens.get(end - offset).map_or(self.end_of_text, |&id| i64::from(id));
        push(batch, &tokens[..end - offset], after);
        self.cursor.offset = end;
        Ok(())
    }

    /// The next part of a document rearranged, and how many of its tokens that used; `None` if the
    /// draw says to leave it, there is little room, or it is not UTF-8.
    fn rearranged(&self, document: usize, room: usize) -> Result<Option<(Vec<u32>, usize)>> {
        let Some(fim) = self.fim.as_ref().filter(|_| room >= SMALLEST_FIM) else {
            return Ok(None);
        };
        let offset = self.cursor.offset;
        // One stream of draws for each part of each document in each epoch.
        let part = rng::stream(rng::stream(rng::FIM, self.cursor.epoch), document as u64);
        let mut rng = Rng::new(self.options.seed, rng::stream(part, offset as u64));
        let Some(order) = fim.draw_order(&mut rng) else { return Ok(None) };
        let most = room - Fim::SENTINELS - GROWTH;
        let end = self.source.tokens_of(document).min(offset + most);
        self.rearrange(fim, document, offset..end, order, &mut rng)
    }

    fn rearrange(
        &self,
        fim: &Fim,
        document: usize,
        range: Range<usize>,
        order: Order,
        rng: &mut Rng,
    ) -> Result<Option<(Vec<u32>, usize)>> {
        let tokens = self.source.read(document, range)?;
        // A part may end within a character of up to four tokens; that character is left to the
        // next part.
        for dropped in 0..4.min(tokens.len()) {
            let used = tokens.len() - dropped;
            let bytes = self.tokenizer.decode_bytes(&tokens[..used], false)?;
            if let Ok(text) = String::from_utf8(bytes) {
                return Ok(Some((fim.rearrange_anywhere(&text, order, rng)?, used)));
            }
        }
        Ok(None)
    }
}

/// Appends a sequence whose last token is followed by `after`.
fn push(batch: &mut Batch, sequence: &[u32], after: i64) {
    batch.tokens.extend_from_slice(sequence);
    batch.targets.extend(sequence.iter().skip(1).map(|&id| i64::from(id)));
    batch.targets.push(after);
    batch.cu_seqlens.push(batch.tokens.len() as i32);
    batch.max_seqlen = batch.max_seqlen.max(sequence.len());
}
