//! Converting a model between containers: any checkpoint that is read, to any that is written.
//!
//! * `danaus`: our folder; every architecture and mixture of blocks can be spelled.
//! * `hf`: a folder in the spelling of Hugging Face, for models that one of its architectures has.
//! * `gguf`: one file, for models that GGUF has an architecture for, quantised or not.
//!
//! Quantised weights are dequantised on the way, so that a conversion to another type starts from the
//! numbers the source computes with. Structured weights stay what they are in our folder; the other
//! targets know dense ones only, so that they are multiplied out, and the summary says how many.

mod gguf;

use crate::checkpoint::{ExportOptions, Model, Opened, export};
use crate::decoder::Compute;
use crate::formats::gguf::TensorType;
use crate::{Error, Result};
use danaus_tensor::DType;
use std::path::Path;

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Our folder.
    Danaus,
    /// Hugging Face's folder.
    Hf,
    /// A GGUF file.
    Gguf,
}

impl Target {
    /// Every target.
    pub const ALL: [Target; 3] = [Target::Danaus, Target::Hf, Target::Gguf];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Danaus => "danaus",
            Self::Hf => "hf",
            Self::Gguf => "gguf",
        }
    }

    /// The target of a name.
    ///
    /// # Errors
    /// When there is none; the message lists the valid names.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|target| target.name() == name);
        let names = Self::ALL.map(Self::name).join(", ");
        found.ok_or_else(|| Error::argument("format", name, names))
    }

    /// The element types it can be written in.
    pub fn types(self) -> &'static [&'static str] {
        match self {
            Self::Danaus | Self::Hf => &["f32", "bf16", "f16"],
            Self::Gguf => gguf::TYPES,
        }
    }
}

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// The architecture's name in the target.
    pub architecture: String,
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// Type of the large weights.
    pub elements: String,
    /// Whether a tokenizer went along.
    pub tokenizer: bool,
    /// What is not as it was asked for: weights in another type (which, in what, why), or multiplied out.
    pub exceptions: Vec<String>,
}

/// Reads what lies at `source` and writes it to `out`. Without `elements`, weights keep their float
/// type; quantised ones become f32 in folders and f16 in GGUF.
///
/// # Errors
/// When the source cannot be read, the target has no spelling for the model, the element type is none
/// of the target's, or something already lies at `out`.
pub fn convert(
    source: &Path,
    out: &Path,
    target: Target,
    elements: Option<&str>,
) -> Result<Summary> {
    if out.exists() {
        let given = format!("{}, which exists", out.display());
        return Err(Error::argument("out", given, "a path where nothing lies"));
    }
    if let Some(name) = elements.filter(|name| !target.types().contains(name)) {
        let valid = format!("one of {} for {}", target.types().join(", "), target.name());
        return Err(Error::argument("dtype", name, valid));
    }
    let opened = Opened::open_dequantized(source)?;
    let kept = opened.float_type()?;
    let (opened, densified) = match target {
        Target::Danaus => (opened, Vec::new()),
        Target::Hf | Target::Gguf => opened.densified()?,
    };
    let mut summary = write(opened, out, target, (kept, elements))?;
    if let Some(first) = densified.first() {
        let count = densified.len();
        let line = format!(
            "{count} structured matrices as dense ones ({first}, ...): {} has no others",
            target.name()
        );
        summary.exceptions.insert(0, line);
    }
    Ok(summary)
}

fn write(
    opened: Opened,
    out: &Path,
    target: Target,
    (kept, elements): (DType, Option<&str>),
) -> Result<Summary> {
    if target == Target::Gguf {
        let fallback = TensorType::Plain(match kept {
            _ if opened.is_quantized() => DType::F16,
            DType::BF16 | DType::F16 => kept,
            _ => DType::F32,
        });
        let kind = elements.and_then(TensorType::from_name).unwrap_or(fallback);
        return gguf::write(&opened, out, kind);
    }
    let dtype = elements.and_then(|name| name.parse().ok()).unwrap_or(kept);
    let model = opened.load(Compute::default())?;
    let architecture = match target {
        Target::Hf => export(&model, out, ExportOptions { dtype: Some(dtype) })?.to_string(),
        _ => {
            model.save_as(out, dtype)?;
            "danaus".to_string()
        }
    };
    summary(&model, out, architecture, dtype)
}

fn summary(model: &Model, out: &Path, architecture: String, dtype: DType) -> Result<Summary> {
    let io = |error| danaus_tensor::Error::io(out, error);
    let mut bytes = 0;
    for entry in std::fs::read_dir(out).map_err(io)? {
        bytes += entry.and_then(|entry| entry.metadata()).map_err(io)?.len();
    }
    Ok(Summary {
        architecture,
        tensors: model.decoder.params().len(),
        bytes,
        elements: dtype.name().to_string(),
        tokenizer: model.tokenizer.is_some(),
        exceptions: Vec::new(),
    })
}

#[cfg(test)]
mod tests;
