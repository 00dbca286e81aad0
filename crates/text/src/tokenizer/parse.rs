//! Reading a `tokenizer.json` that may be damaged.
//!
//! The `tokenizers` crate panics on some malformed files (damaged JSON inside of a decoder, tokens
//! shorter than the prefix of continued words). What is known is refused before it gets there; should
//! it panic all the same, that becomes an error, too.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;

use super::failed;
use crate::{Error, Result};

const ACTION: &str = "load tokenizer.json";

/// The fields that are looked at; reading them checks the syntax of all others.
#[derive(Deserialize)]
struct File {
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    continuing_subword_prefix: Option<String>,
}

fn refuse(reason: String) -> Error {
    Error::Tokenizer { action: ACTION, reason }
}

/// The tokenizer of a file's text.
///
/// # Errors
/// Malformed JSON or content; a prefix of continued words, which no byte-level tokenizer has.
pub(super) fn parse(json: &str) -> Result<tokenizers::Tokenizer> {
    let file: File = serde_json::from_str(json).map_err(|error| refuse(error.to_string()))?;
    let prefix = file.model.and_then(|model| model.continuing_subword_prefix);
    if let Some(prefix) = prefix.filter(|prefix| !prefix.is_empty()) {
        return Err(refuse(format!(
            "continuing_subword_prefix is {prefix:?}; valid for byte-level tokenizers: null"
        )));
    }
    // Nothing of ours is reachable from the closure but the text.
    catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(json.as_bytes())))
        .map_err(|_| refuse("the file is malformed in a way that its reader does not name".into()))?
        .map_err(failed(ACTION))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json() -> &'static str {
        r#"{"version": "1.0", "added_tokens": [], "decoder": {"type": "ByteLevel",
            "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "continuing_subword_prefix": null,
            "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}"#
    }

    /// Both made the `tokenizers` crate panic.
    #[test]
    fn malformed_files_that_its_reader_stumbles_over() {
        parse(json()).unwrap();
        let control = json().replace("\"type\": \"ByteLevel\"", "\"type\": \"Byte\nLevel\"");
        let message = parse(&control).unwrap_err().to_string();
        assert!(message.contains("control character"), "{message}");
        let prefix = json().replace("prefix\": null", "prefix\": \"abcdef\"");
        let message = parse(&prefix).unwrap_err().to_string();
        assert!(message.contains("continuing_subword_prefix is \"abcdef\""), "{message}");
    }
}
