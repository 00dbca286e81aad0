//! A model's folder: `config.json`, `model.safetensors`, `tokenizer.json`.

use crate::config::Config;
use crate::decoder::{Compute, Decoder};
use crate::{Error, Result};
use danaus_runtime::fs::write_atomic;
use danaus_runtime::memory::available_bytes;
use danaus_tensor::param::TensorSource;
use danaus_tensor::safetensors::{Checkpoint, SINGLE_NAME, save};
use danaus_tensor::{DType, Device, ParamBuilder, Tensor};
use danaus_text::tokenizer::Tokenizer;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// File names inside the folder.
pub const CONFIG_NAME: &str = "config.json";
/// The tokenizer's file.
pub const TOKENIZER_NAME: &str = "tokenizer.json";

/// A decoder with its tokenizer.
pub struct Model {
    /// The network.
    pub decoder: Decoder,
    /// Absent where the folder has none.
    pub tokenizer: Option<Tokenizer>,
}

impl Model {
    /// Loads a folder.
    ///
    /// # Errors
    /// When a file is missing or malformed, a tensor is missing, unexpected, of another shape, or not
    /// finite; each is named.
    pub fn load(folder: &Path, compute: Compute) -> Result<Self> {
        let fail = |detail: String| Error::Checkpoint { path: folder.to_path_buf(), detail };
        if !folder.is_dir() {
            return Err(fail("no such folder".into()));
        }
        let config = Config::load(&folder.join(CONFIG_NAME))?;
        let source = Arc::new(Checkpoint::open(folder)?);
        config.check_memory(available_bytes())?;
        check_finite(&source).map_err(&fail)?;
        let dtype = if compute.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let params = ParamBuilder::load(source, dtype, Device::Cpu);
        let decoder = Decoder::build(&params, &config, compute)?;
        let unused = params.unused();
        if !unused.is_empty() {
            return Err(fail(format!("unexpected tensors: {}", unused.join(", "))));
        }
        let path = folder.join(TOKENIZER_NAME);
        let tokenizer = if path.is_file() { Some(Tokenizer::load(&path)?) } else { None };
        if let Some(tokenizer) = &tokenizer
            && tokenizer.vocab_size() > config.vocab_size
        {
            let (ours, theirs) = (config.vocab_size, tokenizer.vocab_size());
            return Err(fail(format!("{TOKENIZER_NAME} has {theirs} tokens, the model {ours}")));
        }
        Ok(Self { decoder, tokenizer })
    }

    /// Writes a folder, each file replaced in one step.
    ///
    /// # Errors
    /// When the folder cannot be made or a file not written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        save_decoder(&self.decoder, folder)?;
        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.save(&folder.join(TOKENIZER_NAME))?;
        }
        Ok(())
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When the folder had none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        let missing =
            || Error::argument("tokenizer", "missing", format!("a {TOKENIZER_NAME} in the folder"));
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
    let path = folder.join(CONFIG_NAME);
    write_atomic(&path, |file| file.write_all(decoder.config().to_json().as_bytes()))
        .map_err(|error| danaus_tensor::Error::io(&path, error))?;
    Ok(())
}

/// Names the first tensor with a NaN or an infinity.
fn check_finite(source: &Checkpoint) -> std::result::Result<(), String> {
    for name in source.names() {
        let found = source.tensor(&name).map_err(|error| error.to_string())?;
        let Some(tensor) = found.filter(|tensor| tensor.dtype().is_float()) else { continue };
        let sum = tensor.to_dtype(DType::F64).and_then(|tensor| tensor.sum_all()?.to_scalar());
        let sum = sum.map_err(|error| error.to_string())?;
        // A finite sum in f64 means that every element is finite.
        if !sum.is_finite() {
            return Err(format!("tensor {name} holds NaN or infinite values"));
        }
    }
    Ok(())
}
