//! Prompts from a file: one a line.
//!
//! A file whose name ends in `.jsonl` has a JSON string or object a line: `{"prompt": "text"}` or
//! `{"prompt_ids": [1, 2]}`, with `"seed"` where a prompt has its own. In any other file every line is
//! a text. Empty lines are skipped.

use crate::{Error, Result};
use danaus_text::tokenizer::Tokenizer;
use serde::Deserialize;
use std::path::Path;

/// What to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptText {
    /// Text, to be encoded.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// A prompt, with a seed of its own or the common one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// What to continue.
    pub text: PromptText,
    /// Seed of its draws.
    pub seed: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: Option<String>,
    prompt_ids: Option<Vec<u32>>,
    seed: Option<u64>,
}

impl Prompt {
    /// Text with the common seed.
    pub fn text(text: &str) -> Self {
        Self { text: PromptText::Text(text.into()), seed: None }
    }

    /// Token ids with the common seed.
    pub fn ids(ids: Vec<u32>) -> Self {
        Self { text: PromptText::Ids(ids), seed: None }
    }

    /// The ids; a text begins with the token that begins texts where the tokenizer wants one.
    ///
    /// # Errors
    /// When there is a text and no tokenizer.
    pub fn encode(&self, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
        match (&self.text, tokenizer) {
            (PromptText::Ids(ids), _) => Ok(ids.clone()),
            (PromptText::Text(text), Some(tokenizer)) => Ok(tokenizer.encode_prompt(text)?),
            (PromptText::Text(_), None) => {
                let valid = "token ids, for a model without a tokenizer";
                Err(Error::argument("prompt", "a text", valid))
            }
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, holds no prompt, or a line is malformed (its number is named).
    pub fn read_file(path: &Path) -> Result<Vec<Self>> {
        let text =
            std::fs::read_to_string(path).map_err(|error| danaus_tensor::Error::io(path, error))?;
        let json = path.extension().is_some_and(|extension| extension == "jsonl");
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let prompts = lines.map(|(number, line)| match json {
            true => Self::parse(line).map_err(|problem| Error::Config {
                path: path.to_path_buf(),
                detail: format!("line {}: {problem}", number + 1),
            }),
            false => Ok(Self::text(line)),
        });
        let prompts: Vec<Self> = prompts.collect::<Result<_>>()?;
        match prompts.is_empty() {
            true => Err(Error::argument("prompts file", path.display(), "at least one prompt")),
            false => Ok(prompts),
        }
    }

    fn parse(line: &str) -> std::result::Result<Self, String> {
        if let Ok(text) = serde_json::from_str::<String>(line) {
            return Ok(Self::text(&text));
        }
        let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let text = match (line.prompt, line.prompt_ids) {
            (Some(text), None) => PromptText::Text(text),
            (None, Some(ids)) => PromptText::Ids(ids),
            _ => return Err("give either `prompt` or `prompt_ids`".into()),
        };
        Ok(Self { text, seed: line.seed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Vec<Prompt>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Prompt::read_file(&path)
    }

    #[test]
    fn lines_of_text_and_of_json() {
        let plain = read("p.txt", "one\n\n {\"a\"}\n").unwrap();
        assert_eq!(plain, [Prompt::text("one"), Prompt::text(" {\"a\"}")]);
        let json = "\"a\\nb\"\n{\"prompt\": \"c\", \"seed\": 7}\n{\"prompt_ids\": [1, 2]}\n";
        let found = read("p.jsonl", json).unwrap();
        assert_eq!(found[0], Prompt::text("a\nb"));
        assert_eq!(found[1], Prompt { seed: Some(7), ..Prompt::text("c") });
        assert_eq!(found[2].encode(None).unwrap(), [1, 2]);
        assert!(found[1].encode(None).unwrap_err().to_string().contains("without a tokenizer"));
        for (text, expected) in [
            ("\"a\"\n{\"prompt\": 3}", "line 2"),
            ("{\"promt\": \"a\"}", "unknown field `promt`"),
            ("{\"seed\": 1}", "either `prompt` or `prompt_ids`"),
            ("\n", "at least one prompt"),
        ] {
            let message = read("p.jsonl", text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
