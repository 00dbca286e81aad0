//! A source whose quantised tensors are read as f32.

use danaus_kernel::ops::quantized::{BlockType, dequantize};
use danaus_tensor::Tensor;
use danaus_tensor::param::TensorSource;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Another source's tensors; blocks `NAME.q8_0` become weights `NAME.weight`, one at a time when asked.
pub struct Dequantized {
    inner: Arc<dyn TensorSource>,
    /// Names here, with the inner names and types of those that are blocks there.
    blocks: BTreeMap<String, (String, BlockType)>,
}

/// The block type that a tensor's name ends with, and what stands before.
pub fn block_name(name: &str) -> Option<(&str, BlockType)> {
    let (stem, last) = name.rsplit_once('.')?;
    let block = BlockType::ALL.into_iter().find(|block| block.name() == last)?;
    Some((stem, block))
}

impl Dequantized {
    /// Wraps a source.
    pub fn new(inner: Arc<dyn TensorSource>) -> Self {
        let named = |name: String| {
            let (stem, block) = block_name(&name)?;
            Some((format!("{stem}.weight"), (name, block)))
        };
        let blocks = inner.names().into_iter().filter_map(named).collect();
        Self { inner, blocks }
    }

    /// Whether a tensor of the inner source has another name here.
    fn hides(&self, name: &str) -> bool {
        let here = block_name(name).map(|(stem, _)| format!("{stem}.weight"));
        here.and_then(|here| self.blocks.get(&here)).is_some_and(|(inner, _)| inner == name)
    }
}

impl TensorSource for Dequantized {
    fn tensor(&self, name: &str) -> danaus_tensor::Result<Option<Tensor>> {
        let Some((inner, block)) = self.blocks.get(name) else {
            return match self.hides(name) {
                true => Ok(None),
                false => self.inner.tensor(name),
            };
        };
        let Some(bytes) = self.inner.tensor(inner)? else { return Ok(None) };
        let (mut shape, row_bytes) = match bytes.dims() {
            [leading @ .., row_bytes] => (leading.to_vec(), *row_bytes),
            [] => return Ok(None),
        };
        let cols = row_bytes / block.block_bytes() * block.block_len();
        let rows: usize = shape.iter().product();
        shape.push(cols);
        dequantize(&bytes.reshape([rows, row_bytes])?, *block, cols)?.reshape(shape).map(Some)
    }

    fn contains(&self, name: &str) -> danaus_tensor::Result<bool> {
        match self.blocks.get(name) {
            Some((inner, _)) => self.inner.contains(inner),
            None => Ok(!self.hides(name) && self.inner.contains(name)?),
        }
    }

    fn names(&self) -> Vec<String> {
        let here = |name: String| match block_name(&name) {
            Some((stem, _)) if self.hides(&name) => format!("{stem}.weight"),
            _ => name,
        };
        self.inner.names().into_iter().map(here).collect()
    }
}
