//! Tensor files: safetensors, single or sharded, read through a memory map.
//!
//! Reading trusts nothing: the header is validated by the `safetensors` crate before a byte of data is
//! touched, so a corrupt file costs an error and no memory. Tensors are views of the map where their
//! alignment allows it. Writing goes to a temporary file that replaces the target in one step.

use crate::param::TensorSource;
use crate::storage::Storage;
use crate::{DType, Device, Error, Result, Tensor};
use danaus_runtime::fs::{self, Mapped};
use safetensors::tensor::{Metadata, SafeTensors, TensorInfo};
use safetensors::{Dtype, SafeTensorError, View};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The index file of a sharded checkpoint.
pub const INDEX_NAME: &str = "model.safetensors.index.json";
/// The only file of an unsharded checkpoint.
pub const SINGLE_NAME: &str = "model.safetensors";

/// One open safetensors file.
pub struct TensorFile {
    path: PathBuf,
    map: Arc<Mapped>,
    data_start: usize,
    metadata: Metadata,
}

fn dtype_of(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        Dtype::F8_E4M3 => DType::F8E4M3,
        Dtype::F8_E5M2 => DType::F8E5M2,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I8 => DType::I8,
        Dtype::U32 => DType::U32,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        Dtype::C64 => DType::C64,
        _ => return None,
    })
}

fn file_dtype(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::F8E4M3 => Dtype::F8_E4M3,
        DType::F8E5M2 => Dtype::F8_E5M2,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I8 => Dtype::I8,
        DType::U32 => Dtype::U32,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
        DType::C64 => Dtype::C64,
        DType::C128 => return None,
    })
}

impl TensorFile {
    /// Maps and validates a file.
    ///
    /// # Errors
    /// When it cannot be read, or is not a well-formed safetensors file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = std::fs::metadata(path).map_err(|error| Error::io(path, error))?;
        if file.len() == 0 {
            return Err(Error::format(path, "the file is empty"));
        }
        let map = Arc::new(fs::map(path).map_err(|error| Error::io(path, error))?);
        let invalid = |error: SafeTensorError| {
            Error::format(path, format!("not a valid safetensors file: {error}"))
        };
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(invalid)?;
        Ok(Self { path: path.to_path_buf(), map, data_start: 8 + header, metadata })
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.metadata.tensors().into_keys().collect();
        names.sort();
        names
    }

    /// Text entries of the header.
    pub fn metadata(&self) -> HashMap<String, String> {
        self.metadata.metadata().clone().unwrap_or_default()
    }

    /// Shape, dtype and bytes of a tensor without touching its data.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// When there is none, or its element type is none of ours.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self.metadata.info(name).ok_or_else(|| {
            Error::format(&self.path, format!("no tensor {name}; there are {:?}", self.names()))
        })?;
        let dtype = dtype_of(info.dtype).ok_or_else(|| {
            let detail = format!("tensor {name} has element type {:?}, not supported", info.dtype);
            Error::format(&self.path, detail)
        })?;
        let (start, end) = info.data_offsets;
        let (start, len) = (self.data_start + start, end - start);
        let align = if dtype == DType::Bool { usize::MAX } else { dtype.size().min(8) };
        // Truth values are checked byte by byte, so they are always copied.
        let storage = match align {
            usize::MAX => None,
            align => Storage::mapped(self.map.clone(), start, len, align),
        };
        match storage {
            Some(storage) => Tensor::from_raw_storage(storage, info.shape.clone(), dtype),
            None => self.copied(info, dtype, start, len),
        }
    }

    fn copied(&self, info: &TensorInfo, dtype: DType, start: usize, len: usize) -> Result<Tensor> {
        let bytes = self.map.get(start..start + len);
        let bytes = bytes.ok_or_else(|| Error::format(&self.path, "data ends early"))?;
        if dtype == DType::Bool {
            let values: Vec<bool> = bytes.iter().map(|&byte| byte != 0).collect();
            return Tensor::from_vec(values, info.shape.clone(), &Device::Cpu);
        }
        let mut tensor = Tensor::empty([len], DType::U8, &Device::Cpu)?;
        tensor.as_slice_mut::<u8>()?.copy_from_slice(bytes);
        tensor.reinterpret(info.shape.clone(), dtype)
    }

    /// All tensors by name.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.names().into_iter().map(|name| Ok((name.clone(), self.tensor(&name)?))).collect()
    }
}

/// The tensors of a checkpoint: one file, or a folder with one file or an index of shards.
pub struct Checkpoint {
    files: Vec<TensorFile>,
    place: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens a file or folder.
    ///
    /// # Errors
    /// When neither `model.safetensors` nor its index is there, or a file is malformed, or the index
    /// names a tensor that its shard lacks.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_file() {
            return Self::from_files(vec![TensorFile::open(path)?]);
        }
        std::fs::metadata(path).map_err(|error| Error::io(path, error))?;
        let (single, index) = (path.join(SINGLE_NAME), path.join(INDEX_NAME));
        if single.is_file() {
            return Self::from_files(vec![TensorFile::open(single)?]);
        }
        if !index.is_file() {
            let detail = format!("neither {SINGLE_NAME} nor {INDEX_NAME} is in this folder");
            return Err(Error::format(path, detail));
        }
        Self::from_index(path, &index)
    }

    fn from_files(files: Vec<TensorFile>) -> Result<Self> {
        let mut place = BTreeMap::new();
        for (position, file) in files.iter().enumerate() {
            for name in file.names() {
                if place.insert(name.clone(), position).is_some() {
                    return Err(Error::format(
                        &file.path,
                        format!("tensor {name} stands in two shards"),
                    ));
                }
            }
        }
        Ok(Self { files, place })
    }

    fn from_index(folder: &Path, index: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(index).map_err(|error| Error::io(index, error))?;
        let parsed: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| Error::format(index, format!("not valid JSON: {error}")))?;
        let map = parsed.get("weight_map").and_then(serde_json::Value::as_object);
        let map = map.ok_or_else(|| Error::format(index, "no object \"weight_map\""))?;
        let mut shards = BTreeMap::new();
        for (tensor, shard) in map {
            let shard = shard.as_str().filter(|name| !name.contains(['/', '\\']) && *name != "..");
            let shard = shard.ok_or_else(|| {
                Error::format(index, format!("the shard of {tensor} is no plain file name"))
            })?;
            shards.entry(shard.to_string()).or_insert_with(Vec::new).push(tensor.clone());
        }
        let absent = |shard: &&String| !folder.join(shard).is_file();
        let missing: Vec<&str> = shards.keys().filter(absent).map(String::as_str).collect();
        if !missing.is_empty() {
            return Err(Error::format(index, format!("missing shards: {}", missing.join(", "))));
        }
        let mut files = Vec::new();
        for (shard, tensors) in shards {
            let file = TensorFile::open(folder.join(&shard))?;
            if let Some(missing) = tensors.iter().find(|name| file.info(name).is_none()) {
                return Err(Error::format(index, format!("{shard} lacks tensor {missing}")));
            }
            files.push(file);
        }
        Self::from_files(files)
    }

    /// The files this checkpoint consists of.
    pub fn files(&self) -> &[TensorFile] {
        &self.files
    }
}

impl TensorSource for Checkpoint {
    fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        self.place.get(name).map(|&file| self.files[file].tensor(name)).transpose()
    }

    fn contains(&self, name: &str) -> Result<bool> {
        Ok(self.place.contains_key(name))
    }

    fn names(&self) -> Vec<String> {
        self.place.keys().cloned().collect()
    }
}

impl TensorSource for BTreeMap<String, Tensor> {
    fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        Ok(self.get(name).cloned())
    }

    fn contains(&self, name: &str) -> Result<bool> {
        Ok(self.contains_key(name))
    }

    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }
}

/// A contiguous tensor as the writer wants it.
struct Entry {
    tensor: Tensor,
    dtype: Dtype,
}

impl View for Entry {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }
    fn data(&self) -> Cow<'_, [u8]> {
        // Entries are made contiguous, so the bytes are always there.
        Cow::Borrowed(self.tensor.as_bytes().unwrap_or_default())
    }
    fn data_len(&self) -> usize {
        self.tensor.bytes()
    }
}

/// Writes tensors and text entries to a file, which is replaced in one step.
///
/// # Errors
/// When a dtype has no place in the format (c128: write real and imaginary part), or writing fails.
pub fn save<'a>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: HashMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    let mut entries = Vec::new();
    for (name, tensor) in tensors {
        let tensor = tensor.detach().to_device(&Device::Cpu)?.contiguous()?;
        let dtype = file_dtype(tensor.dtype()).ok_or_else(|| {
            let what = format!("tensor {name} of {} in a safetensors file", tensor.dtype());
            Error::unsupported("save", what, "save its real and imaginary parts")
        })?;
        entries.push((name.to_string(), Entry { tensor, dtype }));
    }
    let metadata = (!metadata.is_empty()).then_some(metadata);
    let written =
        fs::replace(path, |temporary| safetensors::serialize_to_file(entries, metadata, temporary));
    written.map_err(|error| match error {
        SafeTensorError::IoError(error) => Error::io(path, error),
        other => Error::format(path, other.to_string()),
    })
}

#[cfg(test)]
mod tests;
