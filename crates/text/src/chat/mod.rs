//! Conversations as text, by the template that comes with a model.
//!
//! A template is a Jinja program over `messages`, `tools`, `add_generation_prompt` and the special
//! tokens. It is rendered with `minijinja`, set up as the `transformers` library sets Jinja2 up: blocks
//! swallow the line break behind them and the blanks before them, `raise_exception(text)` refuses the
//! conversation with the template's own words, `strftime_now(format)` is the local time, `tojson`
//! writes what Python would, strings, lists and dictionaries have Python's methods, and truth values
//! and `none` print as in Python. `{% generation %}` marks are scopes without further effect.
//!
//! A template comes with a download and is not trusted: it cannot reach files or other templates, and
//! source, steps, nesting, output, the size of every value and the sum of all that a rendering builds,
//! printed or not, are limited (`meter.rs`). Steps bound the time only roughly.
//!
//! The rendered text holds the special tokens, so it is encoded without the tokenizer's own template:
//! nothing is added twice.

mod environment;
mod growth;
mod json;
mod message;
mod meter;
mod program;

use std::sync::Arc;

use minijinja::value::Value;

use crate::tokenizer::{Settings, Tokenizer};
use crate::{Error, Result};
pub use message::{Message, Role};

/// A parsed template; cloning is cheap.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<minijinja::Environment<'static>>,
    source: Arc<str>,
    /// The special tokens, as the template names them.
    tokens: Vec<(&'static str, String)>,
}

/// What to render.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// The messages so far.
    pub messages: Vec<Message>,
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// A JSON list of the tools the model may call.
    pub tools: Option<String>,
}

impl ChatTemplate {
    /// Parses a template. `settings` name the special tokens it may print.
    ///
    /// # Errors
    /// A syntax error, with its line; a text that is too long.
    pub fn new(source: &str, settings: &Settings) -> Result<Self> {
        let source = environment::prepare(source)?.into();
        let environment = Arc::new(environment::build());
        let tokens = [
            ("bos_token", &settings.bos),
            ("eos_token", &settings.eos),
            ("pad_token", &settings.pad),
            ("unk_token", &settings.unk),
        ];
        let tokens = tokens.into_iter().filter_map(|(name, token)| Some((name, token.clone()?)));
        Ok(Self { environment, source, tokens: tokens.collect() })
    }

    /// The template of a tokenizer's folder: `name`, usually `default`.
    ///
    /// # Errors
    /// When there is none of that name (the message lists those there are), or it is malformed.
    pub fn of(tokenizer: &Tokenizer, name: &str) -> Result<Self> {
        let settings = tokenizer.settings();
        let names: Vec<&str> = settings.templates.iter().map(|(name, _)| name.as_str()).collect();
        let source = settings.template(name).ok_or_else(|| match names.is_empty() {
            true => {
                let valid = "a chat_template.jinja or an entry in tokenizer_config.json";
                Error::argument("chat template", "missing from the model", valid)
            }
            false => Error::argument("chat template", name, names.join(", ")),
        })?;
        Self::new(source, settings)
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// [`Error::Refused`] with the template's words, or what else the template does wrong.
    pub fn render(&self, conversation: &Conversation) -> Result<String> {
        if conversation.messages.is_empty() {
            return Err(Error::argument("messages", "empty", "at least one message"));
        }
        let messages = conversation.messages.iter().map(|message| message.entries.clone());
        let mut context = vec![
            ("messages", Value::from_iter(messages)),
            ("add_generation_prompt", Value::from(conversation.add_generation_prompt)),
        ];
        if let Some(tools) = &conversation.tools {
            let tools: Value = serde_json::from_str(tools)
                .map_err(|error| Error::argument("tools", error, "a JSON list"))?;
            context.push(("tools", tools));
        }
        for (name, token) in &self.tokens {
            context.push((name, Value::from(token.as_str())));
        }
        environment::render(&self.environment, &self.source, Value::from_iter(context))
    }

    /// The token ids of a conversation.
    ///
    /// # Errors
    /// As [`Self::render`], and failures of the tokenizer.
    pub fn encode(&self, tokenizer: &Tokenizer, conversation: &Conversation) -> Result<Vec<u32>> {
        tokenizer.encode(&self.render(conversation)?, false)
    }
}

#[cfg(test)]
mod tests;
