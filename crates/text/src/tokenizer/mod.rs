//! Byte-level BPE tokenizers: `tokenizer.json` of the Hugging Face format, in and out.
//!
//! Files are read and trained by the `tokenizers` crate, and the tokens are exactly its own. Added
//! here: a faster encoder for the usual kind of file, the bytes of every token (for bits
//! per byte and for streaming), text that may contain the spelling of a special token without
//! meaning it ([`Tokenizer::encode_ordinary`]), documents that are not UTF-8
//! ([`Tokenizer::encode_bytes`]) and a digest that checkpoints and shards carry.
//!
//! Only byte-level tokenizers (GPT-2, StarCoder, GPT-NeoX, Llama 3, Qwen) are accepted: the others
//! cannot represent every byte string, and everything above relies on `decode(encode(x)) == x`.
//! Truncation and padding settings of a file are dropped: batches are packed, never padded.

mod bytes;
mod detokenizer;
mod encoder;
mod parse;
mod settings;
mod split;
mod train;
pub mod vocabulary;

use std::path::Path;
use std::sync::Arc;

use crate::digest::Digest;
use crate::{Error, Result};
use bytes::TokenBytes;
pub use detokenizer::Detokenizer;
use encoder::Encoder;
pub use settings::Settings;
pub use train::{STARCODER_SPECIAL_TOKENS, TrainOptions};

/// A byte-level tokenizer. Cloning is cheap; all methods may be called from many threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
    settings: Arc<Settings>,
}

struct Inner {
    /// Recognises special tokens in the text.
    marked: tokenizers::Tokenizer,
    /// Takes their spelling for plain text.
    ordinary: tokenizers::Tokenizer,
    json: String,
    digest: Digest,
    bytes: TokenBytes,
    fast: Option<Encoder>,
}

fn failed(action: &'static str) -> impl Fn(tokenizers::Error) -> Error {
    move |error| Error::Tokenizer { action, reason: error.to_string() }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, or the one inside of a folder, and the [`Settings`] beside it.
    ///
    /// # Errors
    /// Unreadable file, malformed JSON, or a tokenizer that is not byte-level.
    pub fn load(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        let json = std::fs::read(&file).map_err(|e| Error::io("read", &file, e))?;
        let json = String::from_utf8(json).map_err(|e| Error::NotUtf8 {
            path: file.clone(),
            offset: e.utf8_error().valid_up_to(),
        })?;
        let settings = Settings::load(file.parent().unwrap_or(Path::new("")))?;
        Self::from_json(json)?.with_settings(settings)
    }

    /// Reads the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// Malformed JSON, or a tokenizer that is not byte-level.
    pub fn from_json(json: impl Into<String>) -> Result<Self> {
        let json = json.into();
        let action = "load tokenizer.json";
        let mut marked = parse::parse(&json)?;
        marked.with_truncation(None).map_err(failed(action))?;
        marked.with_padding(None);
        let bytes = TokenBytes::new(&marked)?;
        let mut ordinary = marked.clone();
        ordinary.set_encode_special_tokens(true);
        let digest = Digest::of(json.as_bytes());
        let fast = Encoder::new(&json, &bytes);
        let inner = Arc::new(Inner { marked, ordinary, json, digest, bytes, fast });
        Ok(Self { inner, settings: Arc::default() })
    }

    /// The same tokenizer with other settings.
    ///
    /// # Errors
    /// When `add_bos` is set and `bos` is not a token.
    pub fn with_settings(self, settings: Settings) -> Result<Self> {
        let tokenizer = Self { settings: Arc::new(settings), ..self };
        if tokenizer.settings.add_bos == Some(true) && tokenizer.bos().is_none() {
            let given = tokenizer.settings.bos.as_deref().unwrap_or("absent");
            return Err(Error::argument("bos_token", given, "a token, as add_bos_token is true"));
        }
        Ok(tokenizer)
    }

    /// What the files beside `tokenizer.json` say.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.token_to_id(self.settings.bos.as_deref()?)
    }

    /// The token that ends an answer, by the settings.
    pub fn eos(&self) -> Option<u32> {
        self.token_to_id(self.settings.eos.as_deref()?)
    }

    /// Trains a tokenizer on documents: see [`TrainOptions`].
    ///
    /// # Errors
    /// A vocabulary too small for the special tokens and the 256 bytes.
    pub fn train<D: AsRef<[u8]>>(documents: &[D], options: &TrainOptions) -> Result<Self> {
        train::train(documents, options)
    }

    /// Writes the file this tokenizer was read from, byte for byte, or the trained one; and beside it
    /// a `tokenizer_config.json` where there are settings.
    ///
    /// # Errors
    /// Whatever writing reports.
    pub fn save(&self, path: &Path) -> Result<()> {
        std::fs::write(path, &self.inner.json).map_err(|e| Error::io("write", path, e))?;
        match *self.settings == Settings::default() {
            true => Ok(()),
            false => self.settings.save(path.parent().unwrap_or(Path::new(""))),
        }
    }

    /// The text of `tokenizer.json`.
    pub fn json(&self) -> &str {
        &self.inner.json
    }

    /// SHA-256 of [`Self::json`].
    pub fn digest(&self) -> Digest {
        self.inner.digest
    }

    /// One more than the largest token id, special tokens included: the rows an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.inner.bytes.len()
    }

    /// Encodes text in which special tokens mean what they say. `add_special_tokens` also applies
    /// the file's template (a leading `<s>`, say), or `add_bos_token` of the settings, which wins.
    ///
    /// # Errors
    /// Failures inside of the tokenizer.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let marked = |add| -> Result<Vec<u32>> {
            let encoding = self.inner.marked.encode_fast(text, add);
            Ok(encoding.map_err(failed("encode"))?.get_ids().to_vec())
        };
        let ids = marked(add_special_tokens)?;
        let (Some(add), Some(bos), true) = (self.settings.add_bos, self.bos(), add_special_tokens)
        else {
            return Ok(ids);
        };
        // Whether the template added one shows in the number of leading ones.
        let leading = |ids: &[u32]| ids.iter().take_while(|&&id| id == bos).count();
        let added = leading(&ids) > leading(&marked(false)?);
        Ok(match (add, added) {
            (true, false) => [&[bos], ids.as_slice()].concat(),
            (false, true) => ids[1..].to_vec(),
            _ => ids,
        })
    }

    /// Encodes a prompt: as [`Self::encode`] with special tokens, but a text that already begins with
    /// the token that begins texts (a rendered template, say) does not get a second one.
    ///
    /// # Errors
    /// Failures inside of the tokenizer.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let plain = self.encode(text, false)?;
        match plain.first() {
            Some(first) if Some(*first) == self.bos() => Ok(plain),
            _ => self.encode(text, true),
        }
    }

    /// Encodes text that comes from outside: the spelling of a special token is ordinary text.
    ///
    /// # Errors
    /// Failures inside of the tokenizer.
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        if let Some(fast) = &self.inner.fast {
            let mut ids = Vec::with_capacity(text.len() / 3);
            if fast.encode(text, &mut ids).is_ok() {
                return Ok(ids);
            }
        }
        self.encode_by_library(text)
    }

    /// [`Self::encode_ordinary`] by the `tokenizers` crate alone: slower, to compare with.
    ///
    /// # Errors
    /// Failures inside of the tokenizer.
    pub fn encode_by_library(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.ordinary.encode_fast(text, false);
        Ok(encoding.map_err(failed("encode"))?.get_ids().to_vec())
    }

    /// Like [`Self::encode_ordinary`] for any bytes: those that are not UTF-8 become one token each.
    ///
    /// # Errors
    /// Failures inside of the tokenizer; a vocabulary without a token for such a byte.
    pub fn encode_bytes(&self, document: &[u8]) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(document.len() / 3);
        for chunk in document.utf8_chunks() {
            if !chunk.valid().is_empty() {
                ids.append(&mut self.encode_ordinary(chunk.valid())?);
            }
            for &byte in chunk.invalid() {
                ids.push(self.inner.bytes.single(byte).ok_or_else(|| Error::Tokenizer {
                    action: "encode a document that is not UTF-8",
                    reason: format!("the vocabulary has no token for byte {byte:#04x}"),
                })?);
            }
        }
        Ok(ids)
    }

    /// The text of some tokens; bytes that are not UTF-8 show as U+FFFD.
    ///
    /// # Errors
    /// An id outside of the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let bytes = self.decode_bytes(ids, skip_special_tokens)?;
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// The exact bytes of some tokens.
    ///
    /// # Errors
    /// An id outside of the vocabulary.
    pub fn decode_bytes(&self, ids: &[u32], skip_special_tokens: bool) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            let token = self.token_bytes(id)?;
            if !(skip_special_tokens && self.is_special(id)) {
                bytes.extend_from_slice(token);
            }
        }
        Ok(bytes)
    }

    /// Starts decoding one token at a time.
    pub fn detokenizer(&self, skip_special_tokens: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), skip_special_tokens)
    }

    /// The bytes of one token (the spelling of a special token).
    ///
    /// # Errors
    /// An id outside of the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        let valid = || format!("0..{}", self.vocab_size());
        self.inner.bytes.get(id).ok_or_else(|| Error::argument("token id", id, valid()))
    }

    /// How many bytes of text each token stands for, by id; 0 for special tokens. The sum over the
    /// targets of a loss is the denominator of bits per byte.
    pub fn byte_lengths(&self) -> Vec<u32> {
        let ids = 0..self.vocab_size() as u32;
        ids.map(|id| match self.is_special(id) {
            true => 0,
            false => self.inner.bytes.get(id).map_or(0, |bytes| bytes.len() as u32),
        })
        .collect()
    }

    /// The id of a token by its spelling in the file: special tokens as they are, others in the
    /// printable byte alphabet.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.marked.token_to_id(token)
    }

    /// Whether an id is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.bytes.is_special(id)
    }

    /// The token that ends a document: `<|endoftext|>` or one of its other common spellings.
    pub fn end_of_text(&self) -> Option<u32> {
        let spellings = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"];
        spellings.iter().find_map(|token| self.token_to_id(token))
    }
}

#[cfg(test)]
mod tests;
