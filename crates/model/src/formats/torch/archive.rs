//! The zip container of `torch.save`: entries `NAME/data.pkl`, `NAME/byteorder`, `NAME/data/KEY`.
//!
//! The directory is read in place by the `rawzip` crate; entries are stored as they are, so tensors
//! can be views of the mapped file.

use super::fault::Fault;
use rawzip::{CompressionMethod, ZipArchive};
use std::collections::HashMap;
use std::ops::Range;

/// First bytes of a file by PyTorch before 1.6: a pickle of its magic number.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// Where the parts of the archive stand in the file.
#[derive(Debug)]
pub struct Archive {
    /// The pickle.
    pub pickle: Range<usize>,
    /// Data by key.
    storages: HashMap<Box<str>, Range<usize>>,
}

impl Archive {
    /// Reads the directory of a mapped file.
    ///
    /// # Errors
    /// When it is no such archive; see [`Fault`].
    pub fn read(file: &[u8]) -> Result<Self, Fault> {
        if file.starts_with(LEGACY) {
            return Err(Fault::Legacy);
        }
        let not_zip = |error: rawzip::Error| Fault::NotZip(error.to_string());
        let archive = ZipArchive::from_slice(file).map_err(not_zip)?;
        let root = root(&archive)?;
        let mut pickle = None;
        let mut storages = HashMap::new();
        for entry in archive.entries() {
            let entry = entry.map_err(not_zip)?;
            let path = entry.file_path();
            // Names that are not UTF-8 are none of ours.
            let Ok(name) = std::str::from_utf8(path.as_ref()) else { continue };
            let Some(part) = name.strip_prefix(&root) else { continue };
            let key = part.strip_prefix("data/");
            if key.is_none() && !["data.pkl", "byteorder", "constants.pkl"].contains(&part) {
                continue;
            }
            if entry.compression_method() != CompressionMethod::STORE {
                let method = entry.compression_method().to_string();
                return Err(Fault::Compressed { entry: shown(name), method });
            }
            let data = archive.get_entry(entry.wayfinder()).map_err(not_zip)?;
            let (start, end) = data.compressed_data_range();
            let range = start as usize..end as usize;
            match (part, key) {
                ("data.pkl", _) if pickle.is_some() => {
                    return Err(Fault::DuplicateEntry(shown(name)));
                }
                ("data.pkl", _) => pickle = Some(range),
                ("constants.pkl", _) => return Err(Fault::TorchScript),
                ("byteorder", _) if data.data() != b"little" => {
                    let order = String::from_utf8_lossy(&data.data()[..data.data().len().min(20)]);
                    return Err(Fault::ByteOrder(order.into_owned()));
                }
                (_, Some(key)) if storages.insert(Box::from(key), range).is_some() => {
                    return Err(Fault::DuplicateEntry(shown(name)));
                }
                _ => {}
            }
        }
        Ok(Self { pickle: pickle.ok_or(Fault::NoPickle)?, storages })
    }

    /// Where the data of a storage stands.
    pub fn storage(&self, key: &str) -> Option<Range<usize>> {
        self.storages.get(key).cloned()
    }
}

/// The folder that holds everything, with its slash.
fn root(archive: &rawzip::ZipSliceArchive<&[u8]>) -> Result<String, Fault> {
    let mut found: Option<String> = None;
    for entry in archive.entries() {
        let entry = entry.map_err(|error| Fault::NotZip(error.to_string()))?;
        let path = entry.file_path();
        let name = std::str::from_utf8(path.as_ref()).unwrap_or_default();
        let root = name
            .strip_suffix("data.pkl")
            .filter(|root| root.ends_with('/') && root.len() > 1 && root.matches('/').count() == 1);
        match (root, &found) {
            (Some(root), None) => found = Some(root.to_string()),
            (Some(root), Some(first)) if root != first => {
                return Err(Fault::TwoPickles(shown(&format!("{first}data.pkl")), shown(name)));
            }
            _ => {}
        }
    }
    found.ok_or(Fault::NoPickle)
}

/// A name as messages show it.
fn shown(name: &str) -> String {
    name.chars().take(100).collect()
}
