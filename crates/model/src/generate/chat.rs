//! A conversation on states: a turn reads only what is new.
//!
//! The whole conversation is rendered by the model's template at every turn, since templates may look
//! back. Where the text goes on from the one before (almost always), the tokens do too, including the
//! answer's own as they were drawn; then the longest state whose tokens begin the new ones is the start.
//! States are kept at the end of the last prompt and the last answer: a template that rewrites an
//! earlier answer, and a reset of nothing but the last turn, still find the prompt.

use super::{Batching, Completion, Finish, Generator, Request, State, read};
use crate::decoder::Decoder;
use crate::{Error, Result};
use danaus_text::chat::{ChatTemplate, Conversation, Message, Role};
use danaus_text::tokenizer::Tokenizer;

/// States that are kept.
const KEPT: usize = 3;

/// One question and its answer.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The answer.
    pub completion: Completion,
    /// Tokens of the whole prompt.
    pub prompt_tokens: usize,
    /// Those of them that had to be read.
    pub new_tokens: usize,
}

/// A conversation with a model.
pub struct Chat<'a> {
    decoder: &'a Decoder,
    tokenizer: &'a Tokenizer,
    template: ChatTemplate,
    /// Everything but the prompt.
    request: Request,
    system: Option<String>,
    messages: Vec<Message>,
    /// The text that the last states stand for, and its tokens.
    pub(super) said: (String, Vec<u32>),
    states: Vec<State>,
}

impl<'a> Chat<'a> {
    /// Begins a conversation; `request` says how answers are generated, its prompts are ignored.
    pub fn new(
        decoder: &'a Decoder,
        tokenizer: &'a Tokenizer,
        template: ChatTemplate,
        request: Request,
        system: Option<String>,
    ) -> Self {
        let said = (String::new(), Vec::new());
        let (messages, states) = (Vec::new(), Vec::new());
        let mut chat =
            Self { decoder, tokenizer, template, request, system, messages, said, states };
        chat.reset();
        chat
    }

    /// Forgets everything that was said. States are kept: the next conversation may begin alike.
    pub fn reset(&mut self) {
        let system = self.system.iter().map(|text| Message::new(Role::System, text));
        self.messages = system.collect();
        self.said = (String::new(), Vec::new());
    }

    /// What was said.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Says something and generates the answer; `on_text` sees it as it comes. A failed turn leaves
    /// the conversation as it was.
    ///
    /// # Errors
    /// The template's refusal, a conversation longer than the context, or a failure of the model.
    pub fn say(&mut self, message: &str, on_text: impl FnMut(&str)) -> Result<Turn> {
        self.messages.push(Message::new(Role::User, message));
        let turn = self.answer(on_text);
        match &turn {
            Ok(turn) => {
                self.messages.push(Message::new(Role::Assistant, &turn.completion.text));
            }
            Err(_) => drop(self.messages.pop()),
        }
        turn
    }

    fn answer(&mut self, mut on_text: impl FnMut(&str)) -> Result<Turn> {
        let conversation = Conversation {
            messages: self.messages.clone(),
            add_generation_prompt: true,
            tools: None,
        };
        let text = self.template.render(&conversation)?;
        let tokens = self.tokens(&text)?;
        let most = self.decoder.config().max_positions;
        let room = most.saturating_sub(tokens.len());
        if room == 0 {
            let given = format!("{} tokens long", tokens.len());
            let valid = format!("below {most} (max_positions); begin a new one");
            return Err(Error::argument("conversation", given, valid));
        }
        let (state, new_tokens) = self.read(&tokens)?;
        let max_tokens = self.request.max_tokens.min(room);
        let request = Request {
            prompts: vec![Vec::new()],
            start: Some(state),
            completions: 1,
            max_tokens,
            min_tokens: self.request.min_tokens.min(max_tokens),
            tokenizer: Some(self.tokenizer.clone()),
            keep_states: true,
            ..self.request.clone()
        };
        let requests = std::slice::from_ref(&request);
        let generator = Generator::new(self.decoder, requests, Batching::of(self.decoder))?;
        let (mut completions, _) = generator.run(|_, piece| on_text(&piece.text))?;
        let mut completion = completions.pop().unwrap_or_default();
        self.keep(completion.state.take());
        // After a stop string the tokens say more than the text.
        self.said = match completion.finish {
            Finish::StopString => (String::new(), Vec::new()),
            _ => (text + &completion.text, [&tokens[..], &completion.tokens].concat()),
        };
        Ok(Turn { completion, prompt_tokens: tokens.len(), new_tokens })
    }

    /// Tokens of the rendered conversation, going on from those said before where the text does.
    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let (before, tokens) = &self.said;
        match text.strip_prefix(before.as_str()).filter(|_| !before.is_empty()) {
            Some(rest) => Ok([&tokens[..], &self.tokenizer.encode(rest, false)?].concat()),
            None => Ok(self.tokenizer.encode(text, false)?),
        }
    }

    /// The state after some tokens, and how many of them were new.
    fn read(&mut self, tokens: &[u32]) -> Result<(State, usize)> {
        let fits = |state: &&State| {
            let known = state.tokens.len();
            tokens.starts_with(&state.tokens) && (known < tokens.len() || state.has_logits())
        };
        let start = self.states.iter().filter(fits).max_by_key(|state| state.tokens.len()).cloned();
        let known = start.as_ref().map_or(0, |start| start.tokens.len());
        let rest = &tokens[known..];
        let state = match start {
            Some(start) if rest.is_empty() => start,
            start => read(self.decoder, rest, start.as_ref(), Batching::of(self.decoder))?,
        };
        self.keep(Some(state.clone()));
        Ok((state, rest.len()))
    }

    fn keep(&mut self, state: Option<State>) {
        self.states.extend(state);
        let surplus = self.states.len().saturating_sub(KEPT);
        self.states.drain(..surplus);
    }
}
