//! What a model has read, kept in memory or in a file.
//!
//! A file is a safetensors file: `tokens` (u32), the layers' tensors (see `danaus_matrix::state`), and
//! `logits` of the last token where they are known, so that a text can go on without any new token.
//! Its header names the format, the kinds of the layers and the digests of model and tokenizer; another
//! model's state is refused by name. Nothing is rounded: a restored run equals an uninterrupted one bit
//! for bit.

use crate::decoder::Decoder;
use crate::{Error, Result};
use danaus_matrix::state::Snapshot;
use danaus_tensor::safetensors::{TensorFile, save};
use danaus_tensor::{DType, Device, Tensor};
use danaus_text::digest::Digest;
use danaus_text::tokenizer::Tokenizer;
use std::collections::HashMap;
use std::path::Path;

const FORMAT: &str = "danaus-state";
const VERSION: &str = "1";

/// The states of all layers after some tokens; cloning shares them.
#[derive(Clone)]
pub struct State {
    pub(super) tokens: Vec<u32>,
    pub(super) snapshot: Snapshot,
    /// `[vocab]`.
    pub(super) logits: Option<Tensor>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State({} tokens)", self.tokens.len())
    }
}

/// Which model and tokenizer a state belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Config and all weights.
    pub model: Digest,
    /// `tokenizer.json`, if there is one.
    pub tokenizer: Option<Digest>,
}

impl Identity {
    /// Reads all weights once.
    ///
    /// # Errors
    /// When a weight cannot be read.
    pub fn of(decoder: &Decoder, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        // One digest of the parts' digests: no copy of the whole model is needed.
        let mut parts = decoder.config().to_json();
        for param in decoder.params().iter() {
            let tensor = param.tensor().detach().contiguous()?.to_device(&Device::Cpu)?;
            let digest = Digest::of(tensor.as_bytes()?);
            let (name, shape, dtype) = (param.name(), tensor.shape(), tensor.dtype());
            parts += &format!("\n{name} {shape} {dtype} {digest}");
        }
        let tokenizer = tokenizer.map(Tokenizer::digest);
        Ok(Self { model: Digest::of(parts.as_bytes()), tokenizer })
    }
}

impl State {
    /// The tokens that were read.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether a text can go on from here without a new token.
    pub fn has_logits(&self) -> bool {
        self.logits.is_some()
    }

    /// Writes a file, replaced in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path, identity: &Identity) -> Result<()> {
        let mut tensors = self.snapshot.tensors()?;
        let tokens = Tensor::from_slice(&self.tokens, [self.tokens.len()], &Device::Cpu)?;
        tensors.push(("tokens".into(), tokens));
        tensors.extend(self.logits.clone().map(|logits| ("logits".into(), logits)));
        let tokenizer =
            identity.tokenizer.map_or_else(|| "none".into(), |digest| digest.to_string());
        let header = HashMap::from([
            ("format".to_string(), FORMAT.to_string()),
            ("version".into(), VERSION.into()),
            ("model".into(), identity.model.to_string()),
            ("tokenizer".into(), tokenizer),
            ("layers".into(), self.snapshot.kinds()),
        ]);
        let entries = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        Ok(save(path, entries, header)?)
    }

    /// Reads a file for a decoder.
    ///
    /// # Errors
    /// When it is malformed, or belongs to another model or tokenizer.
    pub fn load(path: &Path, decoder: &Decoder, identity: &Identity) -> Result<Self> {
        let fail = |detail: String| Error::Checkpoint { path: path.to_path_buf(), detail };
        let file = TensorFile::open(path)?;
        let header = file.metadata();
        let pool = decoder.state_pool(1)?;
        let tokenizer =
            identity.tokenizer.map_or_else(|| "none".into(), |digest| digest.to_string());
        let expected = [
            ("format", FORMAT.to_string(), "no saved state: format"),
            ("version", VERSION.into(), "a state of another version: version"),
            ("model", identity.model.to_string(), "a state of another model: digest"),
            ("tokenizer", tokenizer, "a state of another tokenizer: digest"),
            ("layers", pool.kinds(), "a state of other layers: kinds"),
        ];
        for (key, expected, what) in expected {
            let found = header.get(key).map_or("missing", String::as_str);
            if found != expected {
                return Err(fail(format!("{what} is {found}, expected {expected}")));
            }
        }
        let tokens = file.tensor("tokens")?;
        if tokens.rank() != 1 || tokens.dtype() != DType::U32 {
            return Err(fail("tokens is not a list of u32".into()));
        }
        let tokens = tokens.to_vec::<u32>()?;
        let vocab = decoder.config().vocab_size;
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(fail(format!("token id {id}, valid is 0..{vocab}")));
        }
        let logits = file.info("logits").map(|_| file.tensor("logits")).transpose()?;
        if let Some(logits) = logits.as_ref().filter(|logits| logits.dims() != [vocab]) {
            return Err(fail(format!("logits has shape {}, expected [{vocab}]", logits.shape())));
        }
        let snapshot = pool.snapshot_from(tokens.len(), |name| file.tensor(name)?.copy())?;
        Ok(Self { tokens, snapshot, logits })
    }
}
