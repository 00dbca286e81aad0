//! The tokenizer in a GGUF file's metadata, read and written.
//!
//! `tokenizer.ggml.model` is `gpt2` for byte-level BPE, the only kind that is read;
//! `tokenizer.ggml.pre` names the word splitter. Token types: 1 piece, 2 unknown, 3 control, 4 added by
//! the user, 5 unused, 6 byte.

use super::reader::GgufFile;
use super::value::ValueType;
use super::writer::MetaValue;
use crate::{Error, Result};
use danaus_text::tokenizer::vocabulary::{Kind, Split, Vocabulary};
use danaus_text::tokenizer::{Settings, Tokenizer};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const TEMPLATE: &str = "tokenizer.chat_template";

/// Splitters by the format's names.
const SPLITS: [(&str, Split); 4] = [
    ("gpt-2", Split::Gpt2),
    ("llama-bpe", Split::Llama3),
    ("qwen2", Split::Qwen2),
    ("starcoder", Split::StarCoder),
];

/// A tokenizer and what goes with it.
pub struct Described {
    /// The tokenizer, which puts the first token where the file says so.
    pub tokenizer: Tokenizer,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text or an answer.
    pub eos: Option<u32>,
    /// Jinja text that renders a conversation.
    pub chat_template: Option<String>,
}

impl Described {
    /// The tokenizer with its special tokens and template as settings.
    ///
    /// # Errors
    /// Ids that are none of its tokens.
    pub fn into_tokenizer(self) -> Result<Tokenizer> {
        let spelled = |id: Option<u32>| -> Result<Option<String>> {
            let bytes = id.map(|id| self.tokenizer.token_bytes(id)).transpose()?;
            Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
        };
        let mut settings =
            Settings { bos: spelled(self.bos)?, eos: spelled(self.eos)?, ..Settings::default() };
        if let Some(template) = self.chat_template {
            settings.set_template("default", template);
        }
        Ok(self.tokenizer.with_settings(settings)?)
    }

    /// What goes with a tokenizer: its settings, and `bos` and `eos` of a model where they are silent.
    pub fn of(tokenizer: Tokenizer, bos: Option<u32>, eos: Option<u32>) -> Self {
        Self {
            bos: tokenizer.bos().or(bos),
            eos: eos.or(tokenizer.eos()),
            chat_template: tokenizer.settings().template("default").map(str::to_string),
            tokenizer,
        }
    }
}

/// The tokenizer of a file; `None` where it has none.
///
/// # Errors
/// Another kind than byte-level BPE, an unknown splitter (the known ones are listed), lists that do
/// not fit.
pub fn read(file: &GgufFile) -> Result<Option<Described>> {
    let Some(model) = file.text(MODEL)? else { return Ok(None) };
    let refuse = |key: &str, given: &str, valid: &str| Error::Checkpoint {
        path: file.path().to_path_buf(),
        detail: format!("{key} is {given}, valid is {valid}"),
    };
    if model != "gpt2" {
        return Err(refuse(MODEL, model, "gpt2 (byte-level BPE)"));
    }
    let pre = file.text(PRE)?.unwrap_or("missing");
    let split = SPLITS.iter().find(|(name, _)| *name == pre).map(|(_, split)| *split);
    let split = split.ok_or_else(|| {
        let known: Vec<&str> = SPLITS.iter().map(|(name, _)| *name).collect();
        refuse(PRE, pre, &known.join(", "))
    })?;
    let tokens = file.required(TOKENS, file.texts(TOKENS)?)?;
    let types = file.integers(TYPES)?.unwrap_or_else(|| vec![1; tokens.len()]);
    if types.len() != tokens.len() {
        let given = format!("a list of {}", types.len());
        return Err(refuse(TYPES, &given, &format!("one of {}, as {TOKENS}", tokens.len())));
    }
    let kind = |kind: i64| match kind {
        1 | 6 => Ok(Kind::Piece),
        2 | 3 => Ok(Kind::Special),
        4 => Ok(Kind::Added),
        5 => Ok(Kind::Unused),
        other => Err(refuse(TYPES, &other.to_string(), "1 to 6")),
    };
    let token = |(token, number): (&str, i64)| Ok((token.to_string(), kind(number)?));
    let tokens = tokens.into_iter().zip(types).map(token).collect::<Result<_>>()?;
    let pair = |merge: &str| match merge.split_once(' ') {
        Some((a, b)) => Ok((a.to_string(), b.to_string())),
        None => Err(refuse(MERGES, &format!("{merge:?}"), "pairs with a blank between")),
    };
    let merges = file.required(MERGES, file.texts(MERGES)?)?;
    let merges = merges.into_iter().map(pair).collect::<Result<_>>()?;
    let id = |key: &str| Ok::<_, Error>(file.size(key)?.and_then(|id| u32::try_from(id).ok()));
    let (bos, eos) = (id(BOS)?, id(EOS)?);
    // Where a file does not say: Llama 3 begins texts with a token, the others do not.
    let add_bos = file.flag(ADD_BOS)?.unwrap_or(split == Split::Llama3);
    let first = if add_bos { Some(file.required(BOS, bos)?) } else { None };
    let tokenizer = Vocabulary { tokens, merges, split, first }.to_tokenizer()?;
    let chat_template = file.text(TEMPLATE)?.map(str::to_string);
    Ok(Some(Described { tokenizer, bos, eos, chat_template }))
}

/// The metadata of a tokenizer for a model with `vocab_size` rows of embeddings; ids beyond the
/// tokenizer's are filled with unused tokens.
///
/// # Errors
/// A tokenizer that the format cannot describe, or one with more tokens than rows.
pub fn metadata(described: &Described, vocab_size: usize) -> Result<Vec<(String, MetaValue)>> {
    let mut vocabulary = Vocabulary::of(&described.tokenizer)?;
    if vocabulary.tokens.len() > vocab_size {
        let given = format!("{} tokens", vocabulary.tokens.len());
        return Err(Error::argument("tokenizer", given, format!("at most {vocab_size}")));
    }
    for id in vocabulary.tokens.len()..vocab_size {
        vocabulary.tokens.push((format!("[PAD{id}]"), Kind::Unused));
    }
    let named = SPLITS.iter().find(|(_, split)| *split == vocabulary.split);
    let pre = named.map(|(name, _)| *name).unwrap_or_default();
    let number = |kind: &Kind| match kind {
        Kind::Piece => 1,
        Kind::Special => 3,
        Kind::Added => 4,
        Kind::Unused => 5,
    };
    let types = vocabulary.tokens.iter().map(|(_, kind)| MetaValue::I32(number(kind))).collect();
    let tokens = vocabulary.tokens.iter().map(|(token, _)| token.as_str());
    let merges = vocabulary.merges.iter().map(|(a, b)| format!("{a} {b}"));
    let mut all = vec![
        (MODEL, MetaValue::Text("gpt2".into())),
        (PRE, MetaValue::Text(pre.into())),
        (TOKENS, MetaValue::texts(tokens)),
        (TYPES, MetaValue::Array(ValueType::I32, types)),
        (MERGES, MetaValue::texts(merges)),
    ];
    let bos = vocabulary.first.or(described.bos);
    all.extend(bos.map(|id| (BOS, MetaValue::U32(id))));
    all.extend(described.eos.map(|id| (EOS, MetaValue::U32(id))));
    all.push((ADD_BOS, MetaValue::Bool(vocabulary.first.is_some())));
    let template = described.chat_template.clone();
    all.extend(template.map(|template| (TEMPLATE, MetaValue::Text(template))));
    Ok(all.into_iter().map(|(key, value)| (key.to_string(), value)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::writer::write;
    use super::*;
    use std::path::PathBuf;

    fn engine(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/40-engine").join(name)
    }

    #[test]
    fn the_golden_file_has_the_golden_tokenizer() {
        let file = GgufFile::open(engine("llama-q8_0.gguf")).unwrap();
        let found = read(&file).unwrap().unwrap();
        let wanted = Tokenizer::load(&engine("llama-gqa")).unwrap();
        assert_eq!((found.bos, found.eos), (Some(0), Some(2)));
        assert!(found.chat_template.as_deref().unwrap().contains("<|im_start|>assistant"));
        let vocabulary = Vocabulary::of(&found.tokenizer).unwrap();
        assert_eq!(vocabulary, Vocabulary::of(&wanted).unwrap());
        let text = "<|im_start|>The matrix returns 16 blocks twice,\n    é<|im_end|>";
        let ids = wanted.encode(text, true).unwrap();
        assert_eq!(found.tokenizer.encode(text, true).unwrap(), ids);
        let theirs: Vec<(String, MetaValue)> = file
            .metadata()
            .filter(|(key, _)| key.starts_with("tokenizer."))
            .map(|(key, value)| (key.to_string(), MetaValue::from(value)))
            .collect();
        assert_eq!(metadata(&found, 384).unwrap(), theirs);
    }

    #[test]
    fn rows_without_a_token_are_filled() {
        let file = GgufFile::open(engine("llama-q8_0.gguf")).unwrap();
        let found = read(&file).unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("padded.gguf");
        write(&path, &metadata(&found, 400).unwrap(), &[], |_, _| unreachable!()).unwrap();
        let padded = read(&GgufFile::open(&path).unwrap()).unwrap().unwrap();
        assert_eq!(padded.tokenizer.vocab_size(), 400);
        let vocabulary = Vocabulary::of(&padded.tokenizer).unwrap();
        assert_eq!(vocabulary.tokens[399].0, "[PAD399]");
        assert!(metadata(&found, 300).unwrap_err().to_string().contains("at most 300"));
    }

    #[test]
    fn other_kinds_are_refused_with_the_list() {
        let file = GgufFile::open(engine("llama-q8_0.gguf")).unwrap();
        let found = read(&file).unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.gguf");
        let with = |key: &str, value: Option<MetaValue>| {
            let mut all = metadata(&found, 384).unwrap();
            all.retain(|(name, _)| name != key);
            all.extend(value.map(|value| (key.to_string(), value)));
            write(&path, &all, &[], |_, _| unreachable!()).unwrap();
            match read(&GgufFile::open(&path).unwrap()) {
                Ok(Some(_)) => "read".to_string(),
                Ok(None) => "none".to_string(),
                Err(error) => error.to_string(),
            }
        };
        let text = |text: &str| Some(MetaValue::Text(text.into()));
        assert_eq!(with(MODEL, None), "none");
        assert_eq!(with(TYPES, None), "read");
        assert!(with(MODEL, text("llama")).contains("valid is gpt2"));
        let message = with(PRE, text("deepseek-llm"));
        assert!(message.contains("is deepseek-llm, valid is gpt-2, llama-bpe, qwen2, starcoder"));
        assert!(with(PRE, None).contains("is missing, valid is gpt-2"));
        assert!(with(TOKENS, None).contains("tokenizer.ggml.tokens is missing"));
        assert!(with(MERGES, Some(MetaValue::texts(["ab"]))).contains("pairs with a blank"));
        assert!(with(MERGES, Some(MetaValue::texts(["a zz"]))).contains("is no token"));
        assert!(
            with(TYPES, Some(MetaValue::Array(ValueType::I32, vec![]))).contains("a list of 0")
        );
        let types = vec![MetaValue::I32(7); 384];
        assert!(with(TYPES, Some(MetaValue::Array(ValueType::I32, types))).contains("1 to 6"));
    }
}
