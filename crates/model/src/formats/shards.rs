//! The index of a sharded checkpoint: `{"weight_map": {"TENSOR": "FILE"}}`.

use crate::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Largest index that is read; a model of 100 thousand tensors has one of 10 MB.
const MAX_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files of an index, each with the tensors it should hold.
///
/// # Errors
/// When the index cannot be read, is malformed or too large, or a file's name leaves the folder.
pub fn read(index: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let fail = |detail: String| Error::Checkpoint { path: index.to_path_buf(), detail };
    let text = read_limited(index, MAX_BYTES)?;
    let parsed: Index = serde_json::from_str(&text)
        .map_err(|error| fail(format!("not an index with a \"weight_map\": {error}")))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, shard) in parsed.weight_map {
        if shard.contains(['/', '\\', ':']) || ["", ".", ".."].contains(&shard.as_str()) {
            return Err(fail(format!("the shard of {tensor} is no plain file name: {shard:?}")));
        }
        shards.entry(shard).or_default().push(tensor);
    }
    Ok(shards)
}

/// The text of a file of at most `limit` bytes.
///
/// # Errors
/// When it cannot be read, is larger, or is not UTF-8.
pub fn read_limited(path: &Path, limit: u64) -> Result<String> {
    let io = |error| danaus_tensor::Error::io(path, error);
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > limit {
        let detail = format!("the file has {size} bytes, the limit is {limit}");
        return Err(Error::Checkpoint { path: path.to_path_buf(), detail });
    }
    let bytes = std::fs::read(path).map_err(io)?;
    String::from_utf8(bytes).map_err(|error| {
        let detail = format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to());
        Error::Checkpoint { path: path.to_path_buf(), detail }
    })
}
