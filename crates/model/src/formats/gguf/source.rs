//! A GGUF file as a source of tensors.

use super::fault::Fault;
use super::reader::{GgufFile, TensorInfo};
use super::types::TensorType;
use crate::{Error, Result};
use danaus_kernel::ops::quantized::BlockType;
use danaus_tensor::param::TensorSource;
use danaus_tensor::storage::Storage;
use danaus_tensor::{DType, Tensor};
use std::path::Path;
use std::sync::Arc;

/// What names of weights end with in a file.
const WEIGHT: &str = ".weight";

/// The tensors of a GGUF file under its own names.
///
/// Plain tensors keep theirs (`output_norm.weight`). The bytes of quantised ones are u8 tensors
/// `[.., rows, row_bytes]` whose name ends with the block type in place of `weight`:
/// `blk.0.attn_q.weight` of type Q8_0 is `blk.0.attn_q.q8_0`. All are views of the mapped file.
pub struct GgufSource {
    file: Arc<GgufFile>,
}

impl GgufSource {
    /// Maps and validates a file.
    ///
    /// # Errors
    /// As [`GgufFile::open`]; two tensors whose names here would be the same.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Arc::new(GgufFile::open(path)?))
    }

    /// The tensors of an open file.
    ///
    /// # Errors
    /// Two tensors whose names here would be the same.
    pub fn new(file: Arc<GgufFile>) -> Result<Self> {
        for (name, info) in file.tensors() {
            let TensorType::Block(block) = info.kind else { continue };
            let ours = source_name(name, info.kind);
            // `a.weight` and `a` of one block type, or a plain tensor with the name that blocks get.
            let twin = !name.ends_with(WEIGHT)
                && file.info(&format!("{name}{WEIGHT}")).is_some_and(|twin| twin.kind == info.kind);
            if twin || file.info(&ours).is_some() {
                let path = file.path().to_path_buf();
                let fault = Fault::DuplicateTensor(format!("{ours} ({})", block.name()));
                return Err(Error::Gguf { path, fault });
            }
        }
        Ok(Self { file })
    }

    /// The file, for its metadata.
    pub fn file(&self) -> &Arc<GgufFile> {
        &self.file
    }

    /// What the file says of the tensor with a name of this source.
    fn find(&self, name: &str) -> Option<&TensorInfo> {
        let plain = |info: &&TensorInfo| matches!(info.kind, TensorType::Plain(_));
        if let Some(info) = self.file.info(name).filter(plain) {
            return Some(info);
        }
        let (stem, block) = name.rsplit_once('.')?;
        let block = BlockType::ALL.into_iter().find(|kind| kind.name() == block)?;
        let quantised =
            |name: &str| self.file.info(name).filter(|info| info.kind == TensorType::Block(block));
        quantised(&format!("{stem}{WEIGHT}")).or_else(|| quantised(stem))
    }
}

/// The name a tensor has in [`GgufSource`].
pub fn source_name(name: &str, kind: TensorType) -> String {
    match kind {
        TensorType::Plain(_) => name.to_string(),
        TensorType::Block(block) => {
            format!("{}.{}", name.strip_suffix(WEIGHT).unwrap_or(name), block.name())
        }
    }
}

impl TensorSource for GgufSource {
    fn tensor(&self, name: &str) -> danaus_tensor::Result<Option<Tensor>> {
        let Some(info) = self.find(name) else { return Ok(None) };
        let (mut shape, len) = (info.shape(), info.data.len());
        let dtype = match info.kind {
            TensorType::Plain(dtype) => dtype,
            TensorType::Block(block) => {
                if let Some(cols) = shape.last_mut() {
                    *cols = block.row_bytes(*cols)?;
                }
                if shape.len() == 1 {
                    shape.insert(0, 1);
                }
                DType::U8
            }
        };
        // Offsets are multiples of at least eight and maps start on a page, so this always succeeds.
        let storage = Storage::mapped(self.file.map.clone(), info.data.start, len, dtype.size());
        let storage = storage.ok_or_else(|| {
            danaus_tensor::Error::format(self.file.path(), format!("tensor {name} is misplaced"))
        })?;
        Tensor::from_raw_storage(storage, shape, dtype).map(Some)
    }

    fn contains(&self, name: &str) -> danaus_tensor::Result<bool> {
        Ok(self.find(name).is_some())
    }

    fn names(&self) -> Vec<String> {
        self.file.tensors().map(|(name, info)| source_name(name, info.kind)).collect()
    }
}
