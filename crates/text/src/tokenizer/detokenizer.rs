//! Decoding one token at a time, for streams.

use super::Tokenizer;
use crate::Result;

/// Turns tokens into text as they arrive and never emits half of a character.
///
/// The pieces put together are what [`Tokenizer::decode`] gives for all tokens at once, including
/// the replacement characters for bytes that are not UTF-8.
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// The beginning of a character whose rest has not come yet: at most three bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer, skip_special_tokens: bool) -> Self {
        Self { tokenizer, skip_special_tokens, pending: Vec::new() }
    }

    /// Takes one token and returns the text that became complete, possibly none.
    ///
    /// # Errors
    /// An id outside of the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let bytes = self.tokenizer.token_bytes(id)?;
        if !(self.skip_special_tokens && self.tokenizer.is_special(id)) {
            self.pending.extend_from_slice(bytes);
        }
        let complete = complete_prefix(&self.pending);
        let text = String::from_utf8_lossy(&self.pending[..complete]).into_owned();
        self.pending.drain(..complete);
        Ok(text)
    }

    /// Ends the stream: what is left over of an unfinished character shows as U+FFFD.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// How many leading bytes can be decoded without knowing what follows.
fn complete_prefix(bytes: &[u8]) -> usize {
    let mut start = 0;
    loop {
        match std::str::from_utf8(&bytes[start..]) {
            Ok(_) => return bytes.len(),
            Err(error) => match error.error_len() {
                // Never valid, whatever follows: it is replaced now.
                Some(invalid) => start += error.valid_up_to() + invalid,
                None => return start + error.valid_up_to(),
            },
        }
    }
}
