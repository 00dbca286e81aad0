//! Reading a `tokenizer.json` that may be damaged.
//!
//! The `tokenizers` crate panics on some malformed files (damaged JSON inside of a decoder, tokens
//! shorter than the prefix of continued words, merges longer than every token). What is known is refused
//! before it gets there; should it panic all the same, that becomes an error, too.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

use super::failed;
use crate::{Error, Result};

const ACTION: &str = "load tokenizer.json";

/// The fields that are looked at; reading them checks the syntax of all others.
#[derive(Deserialize)]
struct File {
    model: Option<Model>,
}

#[derive(Default, Deserialize)]
struct Model {
    continuing_subword_prefix: Option<String>,
    #[serde(default, deserialize_with = "longest")]
    vocab: usize,
    #[serde(default, deserialize_with = "longest")]
    merges: usize,
}

/// Bytes of the longest key of an object, or of the longest item of a list: a text of two words, or a list
/// of two texts.
fn longest<'de, D: Deserializer<'de>>(value: D) -> std::result::Result<usize, D::Error> {
    value.deserialize_any(Longest)
}

/// See [`longest`].
struct Longest;

impl<'de> Visitor<'de> for Longest {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of merges or an object of tokens")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<usize, A::Error> {
        let mut most = 0;
        while let Some((key, _)) = map.next_entry::<std::borrow::Cow<str>, IgnoredAny>()? {
            most = most.max(key.len());
        }
        Ok(most)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<usize, A::Error> {
        let mut most = 0;
        while let Some(Merge(length)) = list.next_element()? {
            most = most.max(length);
        }
        Ok(most)
    }
}

/// Bytes that a merge makes; 0 for an item of another kind of list (tokens with scores).
struct Merge(usize);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(value: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Item<'a> {
            Text(#[serde(borrow)] std::borrow::Cow<'a, str>),
            Pair(String, String),
            Other(IgnoredAny),
        }
        Ok(Self(match Item::deserialize(value)? {
            Item::Text(text) => text.len().saturating_sub(1),
            Item::Pair(a, b) => a.len() + b.len(),
            Item::Other(_) => 0,
        }))
    }
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
    let model = file.model.unwrap_or_default();
    if model.merges > model.vocab {
        return Err(refuse(format!(
            "a merge makes a token of {} bytes; the longest of the vocabulary has {}",
            model.merges, model.vocab
        )));
    }
    let prefix = model.continuing_subword_prefix;
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

    /// Each made the `tokenizers` crate panic.
    #[test]
    fn malformed_files_that_its_reader_stumbles_over() {
        parse(json()).unwrap();
        let control = json().replace("\"type\": \"ByteLevel\"", "\"type\": \"Byte\nLevel\"");
        let message = parse(&control).unwrap_err().to_string();
        assert!(message.contains("control character"), "{message}");
        let prefix = json().replace("prefix\": null", "prefix\": \"abcdef\"");
        let message = parse(&prefix).unwrap_err().to_string();
        assert!(message.contains("continuing_subword_prefix is \"abcdef\""), "{message}");
        for merges in [r#"["ab ab"]"#, r#"[["ab", "ab"]]"#] {
            let long = json().replace(r#"["a b"]"#, merges);
            let message = parse(&long).unwrap_err().to_string();
            assert!(message.contains("a merge makes a token of 4 bytes"), "{message}");
        }
    }
}
