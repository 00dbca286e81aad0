//! The tensors of any container, as they are stored.

use crate::checkpoint::{CONFIG_NAME, is_finite};
use crate::formats::dequantized::{Dequantized, block_name};
use crate::formats::gguf::GgufSource;
use crate::formats::torch::{self, TorchSource};
use crate::{Error, Result};
use danaus_tensor::param::TensorSource;
use danaus_tensor::safetensors::{Checkpoint, INDEX_NAME, SINGLE_NAME};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest metadata text that is shown.
const SHOWN: usize = 200;

/// Which container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One safetensors file.
    SafetensorsFile,
    /// A folder with safetensors files.
    SafetensorsFolder,
    /// A GGUF file.
    Gguf,
    /// One file of `torch.save`.
    TorchFile,
    /// A folder with files of `torch.save`.
    TorchFolder,
}

impl Kind {
    /// What a person calls it.
    pub fn label(self) -> &'static str {
        match self {
            Self::SafetensorsFile => "safetensors file",
            Self::SafetensorsFolder => "folder of safetensors",
            Self::Gguf => "GGUF file",
            Self::TorchFile => "PyTorch file",
            Self::TorchFolder => "folder of PyTorch files",
        }
    }
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Name in the file.
    pub name: String,
    /// Elements in each dimension.
    pub shape: Vec<usize>,
    /// Element or block type.
    pub dtype: String,
    /// Bytes in the file.
    pub bytes: u64,
}

impl Row {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }
}

/// An open container.
pub(super) struct Container {
    path: PathBuf,
    files: Files,
}

enum Files {
    Safetensors(Arc<Checkpoint>),
    Gguf(Arc<GgufSource>),
    Torch(Arc<TorchSource>),
}

impl Container {
    /// Recognises a file by its first bytes, a folder by its files.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |error| danaus_tensor::Error::io(path, error);
        let files = if path.is_dir() {
            let has = |name: &str| path.join(name).is_file();
            if has(SINGLE_NAME) || has(INDEX_NAME) {
                Files::Safetensors(Arc::new(Checkpoint::open(path)?))
            } else if has(torch::SINGLE_NAME) || has(torch::INDEX_NAME) {
                Files::Torch(Arc::new(TorchSource::open(path)?))
            } else {
                let detail = format!(
                    "none of {SINGLE_NAME}, {INDEX_NAME}, {} and {} is in this folder",
                    torch::SINGLE_NAME,
                    torch::INDEX_NAME
                );
                return Err(Error::Checkpoint { path: path.to_path_buf(), detail });
            }
        } else {
            let mut first = [0; 4];
            let mut file = std::fs::File::open(path).map_err(io)?;
            let got = std::io::Read::read(&mut file, &mut first).map_err(io)?;
            match &first[..got] {
                b"GGUF" => Files::Gguf(Arc::new(GgufSource::open(path)?)),
                [b'P', b'K', ..] | [0x80, 2..=5, ..] => {
                    Files::Torch(Arc::new(TorchSource::open(path)?))
                }
                _ => Files::Safetensors(Arc::new(Checkpoint::open(path)?)),
            }
        };
        Ok(Self { path: path.to_path_buf(), files })
    }

    pub(super) fn kind(&self) -> Kind {
        match (&self.files, self.path.is_dir()) {
            (Files::Safetensors(_), true) => Kind::SafetensorsFolder,
            (Files::Safetensors(_), false) => Kind::SafetensorsFile,
            (Files::Gguf(_), _) => Kind::Gguf,
            (Files::Torch(_), true) => Kind::TorchFolder,
            (Files::Torch(_), false) => Kind::TorchFile,
        }
    }

    /// Whether a model is expected here, so that its absence is a problem.
    pub(super) fn should_be_model(&self) -> bool {
        self.kind() == Kind::Gguf || self.path.join(CONFIG_NAME).is_file()
    }

    /// Its tensors by name.
    pub(super) fn source(&self) -> Arc<dyn TensorSource> {
        match &self.files {
            Files::Safetensors(files) => files.clone(),
            Files::Gguf(file) => file.clone(),
            Files::Torch(files) => files.clone(),
        }
    }

    /// All tensors in the container's order.
    pub(super) fn rows(&self) -> Result<Vec<Row>> {
        if let Files::Gguf(source) = &self.files {
            let row = |(name, info): (&str, &crate::formats::gguf::TensorInfo)| Row {
                name: name.to_string(),
                shape: info.shape(),
                dtype: info.kind.name().to_string(),
                bytes: info.data.len() as u64,
            };
            return Ok(source.file().tensors().map(row).collect());
        }
        if let Files::Torch(source) = &self.files {
            let entries = source.files().iter().flat_map(|file| file.entries());
            let row = |(name, entry): (&String, &torch::Entry)| Row {
                name: name.clone(),
                shape: entry.shape.clone(),
                dtype: entry.dtype.name().to_string(),
                bytes: (entry.elem_count() * entry.dtype.size()) as u64,
            };
            return Ok(entries.map(row).collect());
        }
        let source = self.source();
        let row = |name: String| {
            let tensor = source.tensor(&name)?;
            let (mut shape, mut dtype, bytes) = match &tensor {
                Some(tensor) => (tensor.dims().to_vec(), tensor.dtype().name(), tensor.bytes()),
                None => (Vec::new(), "missing", 0),
            };
            // Blocks of ours: bytes whose name ends with their type.
            if let (Some((_, block)), [.., row_bytes]) = (block_name(&name), &mut shape[..]) {
                *row_bytes = *row_bytes / block.block_bytes() * block.block_len();
                dtype = block.name();
            }
            Ok(Row { name, shape, dtype: dtype.to_string(), bytes: bytes as u64 })
        };
        source.names().into_iter().map(row).collect()
    }

    /// Complaints about tensors with NaN or infinities; quantised ones by their values.
    pub(super) fn not_finite(&self) -> Result<Vec<String>> {
        let source = Dequantized::new(self.source());
        let mut problems = Vec::new();
        for name in source.names() {
            if let Some(tensor) = source.tensor(&name)?
                && !is_finite(&tensor)?
            {
                problems.push(format!("tensor {name} holds NaN or infinite values"));
            }
        }
        Ok(problems)
    }

    /// Text entries; long values are cut.
    pub(super) fn metadata(&self) -> Vec<(String, String)> {
        let cut = |text: String| match text.char_indices().nth(SHOWN) {
            Some((at, _)) => format!("{} ... ({} bytes)", &text[..at], text.len()),
            None => text,
        };
        match &self.files {
            Files::Gguf(source) => source
                .file()
                .metadata()
                .map(|(key, value)| match value.as_array() {
                    Some(array) => (key.to_string(), format!("{} x {}", array.len(), array.kind())),
                    None => (key.to_string(), cut(format!("{value:?}"))),
                })
                .collect(),
            Files::Safetensors(files) => {
                let mut all: Vec<(String, String)> =
                    files.files().iter().flat_map(|file| file.metadata()).collect();
                all.sort();
                all.dedup();
                all.into_iter().map(|(key, value)| (key, cut(value))).collect()
            }
            Files::Torch(_) => Vec::new(),
        }
    }
}
