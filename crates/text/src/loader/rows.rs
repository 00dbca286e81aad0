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

/// A piece of a document that is drawn as a whole.
#[derive(Clone, Copy)]
struct Part {
    document: u32,
    /// First token, counted in parts.
    index: u32,
}

/// Tokens of a part. Shuffled documents are drawn in parts of one row, so that a long file does not
/// fill many batches in a row; documents in stored order are one part each.
fn part_tokens(options: &LoaderOptions) -> usize {
    if options.shuffle { options.row_tokens } else { usize::MAX }
}

/// Parts of all documents.
pub(super) fn count_parts(source: &dyn TokenSource, options: &LoaderOptions) -> usize {
    let size = part_tokens(options);
    (0..source.len()).map(|document| source.tokens_of(document).div_ceil(size).max(1)).sum()
}

pub(super) struct Rows {
    source: Arc<dyn TokenSource>,
    tokenizer: Tokenizer,
    fim: Option<Fim>,
    options: LoaderOptions,
    end_of_text: i64,
    cursor: Cursor,
    /// The order of parts in epoch `order_of`.
    order: Vec<Part>,
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
            let Some((document, range)) = self.piece() else { break };
            if batch.tokens.is_empty() {
                batch.epoch = self.cursor.epoch;
            }
            self.append(document, range, room, &mut batch)?;
        }
        if batch.tokens.is_empty() {
            return Ok(None);
        }
        self.cursor.batches += 1;
        Ok(Some((batch, self.cursor.clone())))
    }

    /// What is left of the part at the cursor, which is moved over exhausted parts and epochs.
    fn piece(&mut self) -> Option<(usize, Range<usize>)> {
        loop {
            if self.options.epochs.is_some_and(|epochs| self.cursor.epoch >= epochs) {
                return None;
            }
            if self.order_of != Some(self.cursor.epoch) {
                self.order = self.draw_order();
                self.order_of = Some(self.cursor.epoch);
            }
            match self.order.get(self.cursor.position) {
                Some(part) => {
                    let (document, size) = (part.document as usize, part_tokens(&self.options));
                    let first = (part.index as usize).saturating_mul(size);
                    let end = self.source.tokens_of(document).min(first.saturating_add(size));
                    let start = first + self.cursor.offset;
                    if start < end {
                        return Some((document, start..end));
                    }
                    self.cursor.position += 1;
                }
                None => {
                    self.cursor.position = 0;
                    self.cursor.epoch += 1;
                }
            }
            self.cursor.offset = 0;
        }
    }

    fn draw_order(&self) -> Vec<Part> {
        let size = part_tokens(&self.options);
        let parts = |document: usize| {
            let count = self.source.tokens_of(document).div_ceil(size).max(1) as u32;
            (0..count).map(move |index| Part { document: document as u32, index })
        };
        let mut order: Vec<Part> = (0..self.source.len()).flat_map(parts).collect();
        if self.options.shuffle {
            let stream = rng::stream(rng::EPOCH_ORDER, self.cursor.epoch);
            Rng::new(self.options.seed, stream).shuffle(&mut order);
        }
        order
    }

    /// Appends one sequence of at most `room` tokens of a piece.
    fn append(
        &mut self,
        document: usize,
        piece: Range<usize>,
        room: usize,
        batch: &mut Batch,
    ) -> Result<()> {
        if let Some((sequence, used)) = self.rearranged(document, piece.clone(), room)? {
            let cut = sequence.get(room).map_or(self.end_of_text, |&id| i64::from(id));
            push(batch, &sequence[..sequence.len().min(room)], cut);
            self.cursor.offset += used;
            return Ok(());
        }
        let end = piece.end.min(piece.start + room);
        // One token more, if the document has one, is the target of the last.
        let length = self.source.tokens_of(document);
        let tokens = self.source.read(document, piece.start..length.min(end + 1))?;
        let count = end - piece.start;
        let after = tokens.get(count).map_or(self.end_of_text, |&id| i64::from(id));
        push(batch, &tokens[..count], after);
        self.cursor.offset += count;
        Ok(())
    }

    /// The beginning of a piece rearranged, and how many of its tokens that used; `None` if the draw
    /// says to leave it, there is little room, or it is not UTF-8.
    fn rearranged(
        &self,
        document: usize,
        piece: Range<usize>,
        room: usize,
    ) -> Result<Option<(Vec<u32>, usize)>> {
        let Some(fim) = self.fim.as_ref().filter(|_| room >= SMALLEST_FIM) else {
            return Ok(None);
        };
        // One stream of draws for each part of each document in each epoch.
        let part = rng::stream(rng::stream(rng::FIM, self.cursor.epoch), document as u64);
        let mut rng = Rng::new(self.options.seed, rng::stream(part, piece.start as u64));
        let Some(order) = fim.draw_order(&mut rng) else { return Ok(None) };
        let most = room - Fim::SENTINELS - GROWTH;
        let end = piece.end.min(piece.start + most);
        self.rearrange(fim, document, piece.start..end, order, &mut rng)
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
