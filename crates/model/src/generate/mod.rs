//! Generation: prompts and steps through states.
//!
//! Every sequence has tokens that its states have not seen yet: at first the prompt, then the one token
//! chosen last. A pass takes in the single tokens of all running sequences and, up to a budget of
//! tokens, stretches of prompts, as one packed batch without padding. Sequences that end leave the
//! batch and waiting ones take their place, so memory is bounded by the number of sequences that run at
//! a time, not by the number of requests. Several completions of one prompt share its states: the
//! prompt is taken in once.
//!
//! On a GPU steps of one token a sequence are recorded as graphs and replayed (`recorded.rs`).
//!
//! Draws are keyed by (seed, completion of the prompt, position), and logits are computed at the
//! invariant numeric level unless another is asked for: a text does not depend on its neighbours, nor on
//! where its prompt was cut.

mod chat;
mod choose;
mod eos;
mod exponential;
mod filter;
mod output;
mod prompts;
mod recorded;
mod run;
mod sampling;
mod state;
mod stop;

pub use chat::{Chat, Turn};
pub use eos::eos_tokens;
pub use output::{Finish, Piece};
pub use prompts::{Prompt, PromptText};
pub use recorded::GraphUse;
pub use run::{Batching, Generator, Timings};
pub use sampling::{Choice, Sampler, Sampling};
pub use state::{Identity, State};
pub use stop::{MAX_STOP_BYTES, MAX_STOP_STRINGS, StopStrings};

use crate::decoder::Decoder;
use crate::{Error, Result};
use danaus_text::tokenizer::Tokenizer;

/// Most alternatives whose log-probabilities are reported.
pub const MAX_TOP_LOG_PROBS: usize = 64;

/// What to generate.
#[derive(Clone)]
pub struct Request {
    /// Prompts as token ids; empty only where `start` has logits.
    pub prompts: Vec<Vec<u32>>,
    /// What was read before every prompt.
    pub start: Option<State>,
    /// Texts per prompt; text i draws from stream i of the seed.
    pub completions: usize,
    /// Tokens to generate at most, per text. 0 only reads the prompt.
    pub max_tokens: usize,
    /// Before so many tokens no stop token is chosen and no stop string looked for.
    pub min_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end a text (they are not part of it).
    pub stop: Vec<u32>,
    /// Strings that end a text (they are not part of it), across token borders.
    pub stop_strings: Vec<String>,
    /// Number of tokens the tokenizer knows; ids from there on are never chosen.
    pub vocab_size: usize,
    /// Gives texts; without it there are tokens alone.
    pub tokenizer: Option<Tokenizer>,
    /// Report so many of the most probable tokens at each place.
    pub top_log_probs: usize,
    /// Keep the states of finished sequences.
    pub keep_states: bool,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            start: None,
            completions: 1,
            max_tokens: 64,
            min_tokens: 0,
            sampling: Sampling::default(),
            stop: Vec::new(),
            stop_strings: Vec::new(),
            vocab_size: usize::MAX,
            tokenizer: None,
            top_log_probs: 0,
            keep_states: false,
        }
    }
}

/// A generated text.
#[derive(Clone, Debug, Default)]
pub struct Completion {
    /// New tokens.
    pub tokens: Vec<u32>,
    /// Natural logarithm of each token's probability under the model, before sampling filters.
    pub log_probs: Vec<f64>,
    /// The most probable tokens at each place with theirs, best first.
    pub top_log_probs: Vec<Vec<(u32, f64)>>,
    /// The text, without special tokens and stop string. Empty without a tokenizer.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// The state at the end, if it was asked for; the last token may not be in it yet.
    pub state: Option<State>,
}

impl Request {
    /// Refuses requests that cannot be honoured by a decoder.
    ///
    /// # Errors
    /// Naming the parameter: an empty prompt, more tokens than the context holds, sampling values out
    /// of range, too many stop strings.
    pub fn check(&self, decoder: &Decoder) -> Result<()> {
        let vocab = decoder.config().vocab_size;
        self.sampling.check(vocab)?;
        output::Output::new(self.tokenizer.as_ref(), &self.stop_strings)?;
        if self.completions == 0 {
            return Err(Error::argument("completions", 0, "at least 1"));
        }
        if self.top_log_probs > MAX_TOP_LOG_PROBS {
            let valid = format!("0 to {MAX_TOP_LOG_PROBS}");
            return Err(Error::argument("top_log_probs", self.top_log_probs, valid));
        }
        if self.min_tokens > self.max_tokens {
            let valid = format!("at most max_tokens, {}", self.max_tokens);
            return Err(Error::argument("min_tokens", self.min_tokens, valid));
        }
        if let Some(id) = self.stop.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::argument("stop token id", id, format!("0..{vocab}")));
        }
        let room = decoder.config().max_positions;
        let before = self.start.as_ref().map_or(0, |start| start.tokens.len());
        let has_logits = self.start.as_ref().is_some_and(State::has_logits);
        for prompt in &self.prompts {
            if prompt.is_empty() && !has_logits {
                return Err(Error::argument("prompt", "empty", "at least one token"));
            }
            let read = before + prompt.len();
            if read.saturating_add(self.max_tokens) > room {
                let given = format!("{read} tokens and {} to generate", self.max_tokens);
                let valid = format!("at most {room} together (max_positions)");
                return Err(Error::argument("prompt", given, valid));
            }
        }
        Ok(())
    }

    /// Lowers `max_tokens` to what the model has room for after the longest prompt, but not below 1.
    pub fn fit(&mut self, decoder: &Decoder) {
        let before = self.start.as_ref().map_or(0, |start| start.tokens.len());
        let longest = self.prompts.iter().map(Vec::len).max().unwrap_or(0);
        let room = decoder.config().max_positions.saturating_sub(before + longest);
        self.max_tokens = self.max_tokens.min(room.max(1));
    }
}

/// Generates for every prompt of a request; text i of prompt p is completion `p * completions + i`.
/// `on_piece(completion, piece)` is called as text comes.
///
/// # Errors
/// As [`Request::check`], and when the model fails.
pub fn generate(
    decoder: &Decoder,
    request: &Request,
    on_piece: impl FnMut(usize, &Piece),
) -> Result<Vec<Completion>> {
    let requests = std::slice::from_ref(request);
    Ok(Generator::new(decoder, requests, Batching::of(decoder))?.run(on_piece)?.0)
}

/// Reads tokens, after `start` if there is one, and returns the states with the logits of the last.
///
/// # Errors
/// As [`Request::check`], and when the model fails.
pub fn read(
    decoder: &Decoder,
    tokens: &[u32],
    start: Option<&State>,
    batching: Batching,
) -> Result<State> {
    let request = Request {
        prompts: vec![tokens.to_vec()],
        start: start.cloned(),
        max_tokens: 0,
        keep_states: true,
        ..Request::default()
    };
    let requests = std::slice::from_ref(&request);
    let (mut completions, _) = Generator::new(decoder, requests, batching)?.run(|_, _| {})?;
    let state = completions.pop().and_then(|completion| completion.state);
    state.ok_or_else(|| danaus_tensor::Error::internal("a prompt without a state").into())
}

#[cfg(test)]
mod tests;
