//! A byte-level BPE tokenizer as plain lists, the way other formats carry one: tokens by id, merges in
//! order, the name of a word splitter. [`Vocabulary::to_tokenizer`] assembles the `tokenizer.json` of
//! it, [`Vocabulary::of`] takes one apart; what lists cannot say is refused by name.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::Tokenizer;
use crate::{Error, Result};

/// What Llama 3 splits at; `{1,3}` is how many digits stay together, one in Qwen 2.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut into words before merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// GPT-2's expression.
    Gpt2,
    /// Llama 3's; words that are tokens are not merged.
    Llama3,
    /// Qwen 2's: text is normalised to NFC, every digit is a word.
    Qwen2,
    /// Every digit is a word, then GPT-2's expression.
    StarCoder,
}

impl Split {
    /// Every splitter.
    pub const ALL: [Split; 4] = [Split::Gpt2, Split::Llama3, Split::Qwen2, Split::StarCoder];

    /// The steps of `tokenizer.json`.
    fn steps(self) -> Vec<Value> {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        match self {
            Self::Gpt2 => vec![bytes(true)],
            Self::Llama3 => vec![split(LLAMA3), bytes(false)],
            Self::Qwen2 => vec![split(QWEN2), bytes(false)],
            Self::StarCoder => {
                vec![json!({"type": "Digits", "individual_digits": true}), bytes(true)]
            }
        }
    }

    fn normalizer(self) -> Value {
        match self {
            Self::Qwen2 => json!({"type": "NFC"}),
            _ => Value::Null,
        }
    }
}

/// What a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A piece of text, in the printable byte alphabet.
    Piece,
    /// Found in text as a whole, before anything else.
    Added,
    /// As [`Kind::Added`], and meant to steer: left out of decoded text.
    Special,
    /// Fills an id and never occurs.
    Unused,
}

/// A byte-level BPE tokenizer as lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Tokens by id.
    pub tokens: Vec<(String, Kind)>,
    /// Neighbours to merge, the most urgent first.
    pub merges: Vec<(String, String)>,
    /// How words are cut.
    pub split: Split,
    /// A token put before every text.
    pub first: Option<u32>,
}

fn refuse(reason: String) -> Error {
    Error::Tokenizer { action: "take the tokenizer apart", reason }
}

impl Vocabulary {
    /// The text of a `tokenizer.json`.
    ///
    /// # Errors
    /// Tokens that stand twice, merges of what are no tokens, a first token that is none.
    pub fn to_json(&self) -> Result<String> {
        let fail = |reason: String| Error::Tokenizer { action: "assemble a tokenizer", reason };
        check_merges(self).map_err(fail)?;
        let mut vocab = Map::new();
        let mut added = Vec::new();
        for (id, (token, kind)) in self.tokens.iter().enumerate() {
            if vocab.insert(token.clone(), Value::from(id)).is_some() {
                return Err(fail(format!("token {token:?} stands in the vocabulary twice")));
            }
            if matches!(kind, Kind::Added | Kind::Special) {
                added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": *kind == Kind::Special,
                }));
            }
        }
        let first = self.first.map(|id| {
            let token = self.tokens.get(id as usize);
            let valid = format!("an id below {}", self.tokens.len());
            token.map(|(token, _)| (id, token)).ok_or_else(|| Error::argument("bos", id, valid))
        });
        let steps = self.split.steps();
        let pre_tokenizer = match &steps[..] {
            [step] => step.clone(),
            _ => json!({"type": "Sequence", "pretokenizers": steps}),
        };
        let merges: Vec<_> = self.merges.iter().map(|(a, b)| json!([a, b])).collect();
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": self.split.normalizer(), "pre_tokenizer": pre_tokenizer,
            "post_processor": post_processor(first.transpose()?),
            "decoder": {
                "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true,
            },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": self.split == Split::Llama3,
                "vocab": vocab, "merges": merges,
            },
        });
        Ok(file.to_string())
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// As [`Self::to_json`].
    pub fn to_tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_json(self.to_json()?)
    }

    /// The lists of a tokenizer.
    ///
    /// # Errors
    /// What lists cannot say: another model than BPE, another splitter than those of [`Split`], a
    /// template that does more than put a token first, added tokens that take in white space.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let file: Value = serde_json::from_str(tokenizer.json())
            .map_err(|error| refuse(format!("not valid JSON: {error}")))?;
        let model = &file["model"];
        if model["type"] != "BPE" {
            return Err(refuse(format!("its model is {}, not BPE", model["type"])));
        }
        for field in ["dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"] {
            if !model[field].is_null() && model[field] != "" {
                return Err(refuse(format!("its {field} is {}; valid: null", model[field])));
            }
        }
        let split = split_of(&file)?;
        if model["ignore_merges"] == true && split != Split::Llama3 {
            return Err(refuse(
                "it ignores merges, which only Llama 3's splitter goes with".into(),
            ));
        }
        Ok(Self {
            tokens: tokens_of(&file, tokenizer.vocab_size())?,
            merges: merges_of(model)?,
            split,
            first: first_of(&file["post_processor"], tokenizer)?,
        })
    }
}

/// Puts a token before every text, or does nothing.
fn post_processor(first: Option<(u32, &String)>) -> Value {
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let Some((id, token)) = first else {
        return json!({
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false,
            "use_regex": true,
        });
    };
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    json!({
        "type": "TemplateProcessing",
        "single": [special, sequence("A")],
        "pair": [special, sequence("A"), sequence("B")],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

/// The splitter a file describes.
fn split_of(file: &Value) -> Result<Split> {
    let pre = &file["pre_tokenizer"];
    let steps = match pre["type"].as_str() {
        Some("Sequence") => pre["pretokenizers"].as_array().cloned().unwrap_or_default(),
        _ => vec![pre.clone()],
    };
    // `trim_offsets` concerns positions in the text, which no token depends on.
    let essence = |step: &Value| match step.as_object() {
        Some(fields) => {
            fields.iter().filter(|(name, _)| *name != "trim_offsets").map(owned).collect()
        }
        None => Map::new(),
    };
    let same = |split: &Split| {
        let theirs = split.steps();
        theirs.len() == steps.len()
            && theirs.iter().zip(&steps).all(|(a, b)| essence(a) == essence(b))
    };
    let found = Split::ALL.into_iter().find(same).ok_or_else(|| {
        refuse(format!(
            "its word splitter is none of those of GPT-2, Llama 3, Qwen 2 and StarCoder: {pre}"
        ))
    })?;
    let normalizer = &file["normalizer"];
    match normalizer.is_null() || *normalizer == found.normalizer() {
        true => Ok(found),
        false => Err(refuse(format!("it normalises text: {normalizer}"))),
    }
}

fn owned((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

/// Tokens by id; ids that no token has are named `[unused ID]`.
fn tokens_of(file: &Value, size: usize) -> Result<Vec<(String, Kind)>> {
    let mut tokens = vec![None; size];
    let mut put = |token: &str, id: Option<u64>, kind: Kind| {
        let slot = id.and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
        let slot = slot.ok_or_else(|| refuse(format!("token {token:?} has no valid id")))?;
        *slot = Some((token.to_string(), kind));
        Ok(())
    };
    let vocab = file["model"]["vocab"].as_object();
    for (token, id) in vocab.into_iter().flatten() {
        put(token, id.as_u64(), Kind::Piece)?;
    }
    for token in file["added_tokens"].as_array().into_iter().flatten() {
        let content = token["content"].as_str().unwrap_or_default();
        for field in ["single_word", "lstrip", "rstrip"] {
            if token[field] == true {
                return Err(refuse(format!("added token {content:?} has {field}")));
            }
        }
        let kind = if token["special"] == true { Kind::Special } else { Kind::Added };
        put(content, token["id"].as_u64(), kind)?;
    }
    let unused = |id: usize| (format!("[unused {id}]"), Kind::Unused);
    Ok(tokens.into_iter().enumerate().map(|(id, token)| token.unwrap_or(unused(id))).collect())
}

/// Merges, which files write as `"a b"` or `["a", "b"]`.
fn merges_of(model: &Value) -> Result<Vec<(String, String)>> {
    let pair = |merge: &Value| {
        let (a, b) = match merge {
            Value::String(text) => text.split_once(' ')?,
            other => (other.get(0)?.as_str()?, other.get(1)?.as_str()?),
        };
        Some((a.to_string(), b.to_string()))
    };
    let merges = model["merges"].as_array().into_iter().flatten();
    merges
        .map(|merge| pair(merge).ok_or_else(|| refuse(format!("{merge} is no pair to merge"))))
        .collect()
}

/// The token that a template puts first.
fn first_of(post: &Value, tokenizer: &Tokenizer) -> Result<Option<u32>> {
    match post["type"].as_str() {
        None | Some("ByteLevel") => return Ok(None),
        Some("TemplateProcessing") => {}
        Some("Sequence") => {
            let mut first = None;
            for step in post["processors"].as_array().into_iter().flatten() {
                first = first_of(step, tokenizer)?.or(first);
            }
            return Ok(first);
        }
        Some(other) => return Err(refuse(format!("its post-processor is {other}"))),
    }
    let pieces = post["single"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_text = |piece: &Value| piece.get("Sequence").is_some();
    match pieces {
        [text] if is_text(text) => Ok(None),
        [special, text] if is_text(text) => {
            let token = special["SpecialToken"]["id"].as_str().unwrap_or_default();
            let id = tokenizer.token_to_id(token);
            id.map(Some).ok_or_else(|| refuse(format!("its template has no token {token:?}")))
        }
        _ => Err(refuse("its template does more than put one token first".into())),
    }
}

/// Names the first merge that does not make a token.
fn check_merges(vocabulary: &Vocabulary) -> std::result::Result<(), String> {
    let tokens: HashSet<&str> = vocabulary.tokens.iter().map(|(token, _)| token.as_str()).collect();
    let complete = |(a, b): &(String, String)| {
        [a.as_str(), b.as_str(), &format!("{a}{b}")].iter().all(|part| tokens.contains(part))
    };
    match vocabulary.merges.iter().find(|merge| !complete(merge)) {
        Some((a, b)) => Err(format!("merge {a:?} {b:?}: a part of it or their union is no token")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{STARCODER_SPECIAL_TOKENS, TrainOptions};

    const TEXT: &str = "fn main() {\r\n\tlet x = 1234.5; // it's  a naïve test'S, we'll\n\n    see   <|endoftext|>é\n";

    fn trained() -> Vocabulary {
        let special = STARCODER_SPECIAL_TOKENS.iter().map(|token| token.to_string()).collect();
        let options =
            TrainOptions { vocab_size: 330, special_tokens: special, ..TrainOptions::default() };
        Vocabulary::of(&Tokenizer::train(&[TEXT.repeat(20)], &options).unwrap()).unwrap()
    }

    #[test]
    fn lists_and_files_are_the_same_tokenizer() {
        let base = trained();
        for split in Split::ALL {
            for first in [None, Some(0)] {
                let vocabulary = Vocabulary { split, first, ..base.clone() };
                let tokenizer = vocabulary.to_tokenizer().unwrap();
                assert_eq!(Vocabulary::of(&tokenizer).unwrap(), vocabulary, "{split:?} {first:?}");
                let ids = tokenizer.encode(TEXT, true).unwrap();
                assert_eq!(first.is_some(), ids[0] == 0, "{split:?} {first:?}");
                let text = tokenizer.decode(&ids[usize::from(first.is_some())..], false).unwrap();
                assert_eq!(text, TEXT, "{split:?}");
            }
        }
    }

    #[test]
    fn what_lists_cannot_say_is_refused() {
        let json = trained().to_json().unwrap();
        let cases = [
            ("\"use_regex\":true}", "\"use_regex\":false}", "word splitter is none"),
            ("\"normalizer\":null", "\"normalizer\":{\"type\":\"NFD\"}", "it normalises text"),
            ("\"lstrip\":false", "\"lstrip\":true", "has lstrip"),
            ("\"ignore_merges\":false", "\"ignore_merges\":true", "ignores merges"),
        ];
        for (from, to, expected) in cases {
            assert!(json.contains(from), "{from}");
            let tokenizer = Tokenizer::from_json(json.replace(from, to)).unwrap();
            let message = Vocabulary::of(&tokenizer).unwrap_err().to_string();
            assert!(message.contains(expected), "{expected}: {message}");
        }
    }

    #[test]
    fn damaged_lists_are_refused_by_name() {
        let mut twice = trained();
        twice.tokens[5].0 = twice.tokens[4].0.clone();
        assert!(
            twice.to_json().unwrap_err().to_string().contains("stands in the vocabulary twice")
        );
        let first = Vocabulary { first: Some(9999), ..trained() };
        assert!(first.to_json().unwrap_err().to_string().contains("bos"));
        let mut merges = trained();
        merges.merges.push(("q".into(), "zz".into()));
        assert!(merges.to_tokenizer().err().unwrap().to_string().contains("\"q\" \"zz\""));
    }
}
