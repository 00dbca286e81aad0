//! Models on disk: loading any known spelling, saving our own, exporting that of Hugging Face.
//!
//! * [`Opened`]: a folder or file that was recognised, with its config and its tensors under our names;
//!   nothing but headers has been read.
//! * [`Model`]: the network with tokenizer and special tokens.
//! * [`export()`]: the way back.
//!
//! Our own folder holds `config.json`, `model.safetensors`, `tokenizer.json`.

mod densified;
mod export;
mod finite;
mod gguf;
mod open;
mod special;

pub(crate) use export::part_sizes;
pub use export::{ExportOptions, export};
pub(crate) use finite::is_finite;
pub(crate) use gguf::ROPE_FACTORS;
pub use open::{Description, Opened, describe};
pub use special::SpecialTokens;

use crate::config::Config;
use crate::decoder::{Compute, Decoder};
use crate::{Error, Result};
use danaus_runtime::fs::write_atomic;
use danaus_tensor::safetensors::{SINGLE_NAME, save};
use danaus_tensor::{DType, Param, Tensor};
use danaus_text::tokenizer::Tokenizer;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// File names inside the folder.
pub const CONFIG_NAME: &str = "config.json";
/// The tokenizer's file.
pub const TOKENIZER_NAME: &str = "tokenizer.json";

/// A decoder with its tokenizer.
pub struct Model {
    /// The network.
    pub decoder: Decoder,
    /// Absent where there is none, or none that can be read.
    pub tokenizer: Option<Tokenizer>,
    /// Why the tokenizer in the model's file is not read.
    unreadable: Option<String>,
    /// Tokens with a role, by `generation_config.json` or `config.json`.
    pub special: SpecialTokens,
}

impl Model {
    /// Loads a folder (ours, Hugging Face, state-spaces) or file; see [`Opened::open`].
    ///
    /// # Errors
    /// When a file is missing or malformed, the architecture is unknown, a setting is not implemented,
    /// or tensors are missing, unexpected, of another shape, or not finite; all are named.
    pub fn load(path: &Path, compute: Compute) -> Result<Self> {
        Opened::open(path)?.load(compute)
    }

    /// Writes a folder, each file replaced in one step.
    ///
    /// # Errors
    /// When the folder cannot be made or a file not written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        save_decoder(&self.decoder, folder)?;
        self.special.save(folder)?;
        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.save(&folder.join(TOKENIZER_NAME))?;
        }
        Ok(())
    }

    /// As [`Self::save`], with matrices in a dtype of choice; vectors stay as they are.
    ///
    /// # Errors
    /// When the folder cannot be made or a file not written.
    pub fn save_as(&self, folder: &Path, dtype: DType) -> Result<()> {
        let value = |param: &Param| -> Result<(String, Tensor)> {
            let tensor = param.tensor().detach();
            let tensor = if param.decays() { tensor.to_dtype(dtype)? } else { tensor };
            Ok((param.name().to_string(), tensor))
        };
        let values = self.decoder.params().iter().map(value).collect::<Result<Vec<_>>>()?;
        let entries = values.iter().map(|(name, tensor)| (name.as_str(), tensor));
        self.write(folder, self.decoder.config(), entries)
    }

    /// Writes a folder with other tensors and their config; the rest is this model's.
    pub(crate) fn write<'a>(
        &self,
        folder: &Path,
        config: &Config,
        tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    ) -> Result<()> {
        let io = |error| danaus_tensor::Error::io(folder, error);
        std::fs::create_dir_all(folder).map_err(io)?;
        save(folder.join(SINGLE_NAME), tensors, HashMap::new())?;
        write_text(&folder.join(CONFIG_NAME), &config.to_json())?;
        self.special.save(folder)?;
        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.save(&folder.join(TOKENIZER_NAME))?;
        }
        Ok(())
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        let missing = || match &self.unreadable {
            Some(why) => Error::argument("tokenizer", why, "a tokenizer of these, or token ids"),
            None => {
                let valid = format!("a {TOKENIZER_NAME} in the folder");
                Error::argument("tokenizer", "missing", valid)
            }
        };
        self.tokenizer.as_ref().ok_or_else(missing)
    }
}

/// Writes config and weights of a decoder.
///
/// # Errors
/// When the folder cannot be made or a file not written.
pub fn save_decoder(decoder: &Decoder, folder: &Path) -> Result<()> {
    let io = |error| danaus_tensor::Error::io(folder, error);
    std::fs::create_dir_all(folder).map_err(io)?;
    let values: Vec<(String, Tensor)> = decoder
        .params()
        .iter()
        .map(|param| (param.name().to_string(), param.tensor().detach()))
        .collect();
    let entries = values.iter().map(|(name, tensor)| (name.as_str(), tensor));
    save(folder.join(SINGLE_NAME), entries, HashMap::new())?;
    save_config(decoder, folder)
}

/// Writes the config alone.
///
/// # Errors
/// When the file cannot be written.
pub fn save_config(decoder: &Decoder, folder: &Path) -> Result<()> {
    write_text(&folder.join(CONFIG_NAME), &decoder.config().to_json())
}

pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    write_atomic(path, |file| file.write_all(text.as_bytes()))
        .map_err(|error| danaus_tensor::Error::io(path, error))?;
    Ok(())
}

#[cfg(test)]
mod tests;
