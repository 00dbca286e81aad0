//! The text of one sequence as it grows: bytes to characters, stop strings, the final pieces.

use super::stop::StopStrings;
use crate::{Error, Result};
use danaus_text::tokenizer::{Detokenizer, Tokenizer};

/// Why a text ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was chosen; it is not part of the text.
    Stop,
    /// A stop string was completed; it is not part of the text, its tokens are among the tokens.
    StopString,
    /// As many tokens as were asked for.
    #[default]
    Length,
}

impl Finish {
    /// The name reports use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::StopString => "stop_string",
            Self::Length => "length",
        }
    }
}

/// What became known in one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// The token; none when only held-back text is released at the end.
    pub token: Option<u32>,
    /// Text that is now certain; often less or more than the token's own. Empty without a tokenizer.
    pub text: String,
}

/// Text in the making.
pub(super) struct Output {
    detokenizer: Option<Detokenizer>,
    stop: StopStrings,
    /// All released text.
    pub text: String,
}

impl Output {
    pub(super) fn new(tokenizer: Option<&Tokenizer>, strings: &[String]) -> Result<Self> {
        if tokenizer.is_none() && !strings.is_empty() {
            let valid = "a model with a tokenizer, or none of them";
            return Err(Error::argument("stop strings", "given without a tokenizer", valid));
        }
        let detokenizer = tokenizer.map(|tokenizer| tokenizer.detokenizer(true));
        Ok(Self { detokenizer, stop: StopStrings::new(strings)?, text: String::new() })
    }

    /// Takes a token; returns the released text and whether a stop string was completed. Without
    /// `search` stop strings are not looked for yet.
    pub(super) fn push(&mut self, token: u32, search: bool) -> Result<(String, bool)> {
        let Some(detokenizer) = &mut self.detokenizer else { return Ok((String::new(), false)) };
        let piece = detokenizer.push(token)?;
        let (released, stopped) = if search { self.stop.push(&piece) } else { (piece, false) };
        self.text += &released;
        Ok((released, stopped))
    }

    /// Ends the text and returns what was held back. After a stop string that is nothing.
    pub(super) fn finish(&mut self, finish: Finish) -> String {
        let rest = self.detokenizer.take().map(Detokenizer::finish).unwrap_or_default();
        if finish == Finish::StopString {
            return String::new();
        }
        let (mut last, stopped) = self.stop.push(&rest);
        if !stopped {
            last += &self.stop.finish();
        }
        self.text += &last;
        last
    }
}
