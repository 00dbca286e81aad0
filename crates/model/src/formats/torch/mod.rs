//! PyTorch checkpoints: `pytorch_model.bin`, whole or sharded, read without Python.
//!
//! A file of `torch.save` is a zip archive of stored entries: `NAME/data.pkl`, a pickle of names and
//! strided views, and `NAME/data/KEY`, the raw data of each storage. The pickle is run by a machine
//! that can build state dicts and nothing else ([`pickle`]); no code of a file is ever run. Tensors that
//! lie in one piece are views of the mapped file, others are gathered when asked for. Several tensors
//! may share a storage (tied weights); they are read as separate tensors.
//!
//! Not read, each with its own message: the format before PyTorch 1.6, TorchScript programs, compressed
//! entries, big-endian files, tensors with more elements than their storage.

mod archive;
mod fault;
pub mod pickle;
pub mod value;

pub use fault::Fault;

use super::shards;
use crate::{Error, Result};
use archive::Archive;
use danaus_runtime::fs::{self, Mapped};
use danaus_tensor::param::TensorSource;
use danaus_tensor::storage::Storage;
use danaus_tensor::{DType, Device, Tensor};
use pickle::Loaded;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use value::Value;

/// The only file of an unsharded checkpoint.
pub const SINGLE_NAME: &str = "pytorch_model.bin";
/// The index file of a sharded checkpoint.
pub const INDEX_NAME: &str = "pytorch_model.bin.index.json";

/// A tensor of a file: a strided view of some of its bytes.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Element type.
    pub dtype: DType,
    /// Elements in each dimension.
    pub shape: Vec<usize>,
    /// Elements between neighbours in each dimension.
    pub strides: Vec<usize>,
    /// Bytes of the file from the view's first element to the storage's end.
    bytes: Range<usize>,
}

impl Entry {
    /// Number of elements.
    pub fn elem_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected *= size;
            fits
        })
    }
}

/// One open file of `torch.save`.
pub struct TorchFile {
    path: PathBuf,
    map: Arc<Mapped>,
    entries: BTreeMap<String, Entry>,
}

impl TorchFile {
    /// Maps and validates a file: every tensor's shape, strides and data are checked here.
    ///
    /// # Errors
    /// When it cannot be read, or with the [`Fault`] that was found.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |error| danaus_tensor::Error::io(path, error);
        if std::fs::metadata(path).map_err(io)?.len() == 0 {
            return Err(refuse(path, Fault::NotZip("the file is empty".into())));
        }
        let map = Arc::new(fs::map(path).map_err(io)?);
        let entries = entries(&map).map_err(|fault| refuse(path, fault))?;
        Ok(Self { path: path.to_path_buf(), map, entries })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors by name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    fn read(&self, entry: &Entry) -> danaus_tensor::Result<Tensor> {
        let (shape, dtype) = (entry.shape.clone(), entry.dtype);
        let len = entry.elem_count() * dtype.size();
        if len == 0 {
            return Tensor::zeros(shape, dtype, &Device::Cpu);
        }
        // Truth values are checked byte by byte, so they are always copied.
        if entry.is_contiguous() && dtype != DType::Bool {
            let align = dtype.size().min(8);
            let storage = Storage::mapped(self.map.clone(), entry.bytes.start, len, align);
            if let Some(storage) = storage {
                return Tensor::from_raw_storage(storage, shape, dtype);
            }
        }
        let storage = Storage::filled(len, |to| gather(entry, &self.map[entry.bytes.clone()], to))?;
        Tensor::from_raw_storage(storage, shape, dtype)
    }
}

fn refuse(path: &Path, fault: Fault) -> Error {
    Error::Torch { path: path.to_path_buf(), fault }
}

/// Copies the elements of a view in row-major order.
fn gather(entry: &Entry, from: &[u8], to: &mut [u8]) {
    let size = entry.dtype.size();
    let mut index = vec![0; entry.shape.len()];
    let mut at = 0;
    for element in to.chunks_exact_mut(size) {
        element.copy_from_slice(&from[at * size..(at + 1) * size]);
        if entry.dtype == DType::Bool {
            element[0] = u8::from(element[0] != 0);
        }
        for dim in (0..index.len()).rev() {
            index[dim] += 1;
            at += entry.strides[dim];
            if index[dim] < entry.shape[dim] {
                break;
            }
            at -= index[dim] * entry.strides[dim];
            index[dim] = 0;
        }
    }
}

/// The tensors of a mapped file.
fn entries(file: &[u8]) -> std::result::Result<BTreeMap<String, Entry>, Fault> {
    let archive = Archive::read(file)?;
    let Loaded { top, arenas } = pickle::load(&file[archive.pickle.clone()], file.len())?;
    let Value::Dict(dict) = top else { return Err(Fault::NotStateDict(top.kind())) };
    let mut entries = BTreeMap::new();
    for (key, value) in &arenas.dicts[dict] {
        let Value::Text(name) = key else {
            return Err(Fault::NotTensor {
                name: "without a text as name".into(),
                kind: key.kind(),
            });
        };
        let Value::Tensor(tensor) = value else {
            return Err(Fault::NotTensor { name: name.to_string(), kind: value.kind() });
        };
        let tensor = &arenas.tensors[*tensor];
        let storage = arenas.storages[tensor.storage];
        let range = archive.storage(storage.key);
        let range = range.ok_or_else(|| Fault::NoStorage(storage.key.to_string()))?;
        let size = storage.dtype.size() as u64;
        let (expected, found) = (storage.elements.saturating_mul(size), range.len() as u64);
        if expected > found {
            return Err(Fault::StorageSize { key: storage.key.to_string(), found, expected });
        }
        let start = range.start + (tensor.offset * size) as usize;
        let entry = Entry {
            dtype: storage.dtype,
            shape: tensor.shape.clone(),
            strides: tensor.strides.clone(),
            bytes: start..range.end,
        };
        if entries.insert(name.to_string(), entry).is_some() {
            return Err(Fault::DuplicateTensor(name.to_string()));
        }
    }
    Ok(entries)
}

/// The tensors of a checkpoint: one file, or a folder with one file or an index of shards.
pub struct TorchSource {
    files: Vec<TorchFile>,
    place: BTreeMap<String, usize>,
}

impl TorchSource {
    /// Opens a file or folder.
    ///
    /// # Errors
    /// When neither `pytorch_model.bin` nor its index is there, a file is refused, the index names a
    /// tensor that its shard lacks, or two shards hold the same tensor.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Self::from_files(vec![TorchFile::open(path)?]);
        }
        let (single, index) = (path.join(SINGLE_NAME), path.join(INDEX_NAME));
        if single.is_file() {
            return Self::from_files(vec![TorchFile::open(single)?]);
        }
        if !index.is_file() {
            let detail = format!("neither {SINGLE_NAME} nor {INDEX_NAME} is in this folder");
            return Err(Error::Checkpoint { path: path.to_path_buf(), detail });
        }
        let mut files = Vec::new();
        for (shard, tensors) in shards::read(&index)? {
            let file = TorchFile::open(path.join(&shard))?;
            if let Some(missing) = tensors.iter().find(|name| !file.entries.contains_key(*name)) {
                let detail = format!("{shard} lacks tensor {missing}");
                return Err(Error::Checkpoint { path: index, detail });
            }
            files.push(file);
        }
        Self::from_files(files)
    }

    fn from_files(files: Vec<TorchFile>) -> Result<Self> {
        let mut place = BTreeMap::new();
        for (position, file) in files.iter().enumerate() {
            for name in file.entries.keys() {
                if place.insert(name.clone(), position).is_some() {
                    let detail = format!("tensor {name} stands in two shards");
                    return Err(Error::Checkpoint { path: file.path.clone(), detail });
                }
            }
        }
        Ok(Self { files, place })
    }

    /// The files this checkpoint consists of.
    pub fn files(&self) -> &[TorchFile] {
        &self.files
    }
}

impl TensorSource for TorchSource {
    fn tensor(&self, name: &str) -> danaus_tensor::Result<Option<Tensor>> {
        let Some(&position) = self.place.get(name) else { return Ok(None) };
        let file = &self.files[position];
        file.entries.get(name).map(|entry| file.read(entry)).transpose()
    }

    fn contains(&self, name: &str) -> danaus_tensor::Result<bool> {
        Ok(self.place.contains_key(name))
    }

    fn names(&self) -> Vec<String> {
        self.place.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
