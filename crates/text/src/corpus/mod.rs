//! Gathering documents to train on: a file, a folder, or the sources that cargo keeps on disk.
//!
//! The result depends on the files and the options only, never on the order in which the system
//! lists a folder. Files are taken evenly from all groups (a group is a crate, or a single file)
//! until a byte budget is reached, filtered ([`Filter`]), and exact copies are dropped. Groups are
//! also the unit of the split into training and validation ([`Corpus::split`]): two versions of one
//! crate are one group, so no near copy of a validation document is trained on.
//!
//! Near-duplicates, licences and personal data are not looked at here.

mod filter;
mod gather;
mod source;
mod split;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use filter::{Filter, Rejection};
pub use source::cargo_registry;
pub use split::Split;

/// One text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Path relative to the root of its corpus, with `/` on every system.
    pub name: String,
    /// What it must not be separated from when splitting: the crate without its version, or itself.
    pub group: String,
    /// The content, usually UTF-8 (see [`NotUtf8`]).
    pub bytes: Vec<u8>,
}

impl AsRef<[u8]> for Document {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What to do with a file that is not UTF-8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotUtf8 {
    /// Stop with an error that names the file and the offset.
    #[default]
    Refuse,
    /// Keep it; the tokenizer encodes such bytes one by one, without loss.
    Bytes,
    /// Leave it out and count it.
    Skip,
}

/// Where documents come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// One file, taken as it is, or a folder with everything below it.
    Path(PathBuf),
    /// The unpacked crates of cargo's registry: `registry/src/*/*` below this cargo home.
    CargoRegistry(PathBuf),
}

/// What to gather.
#[derive(Clone, Debug)]
pub struct GatherOptions {
    /// Where to look.
    pub source: Source,
    /// Extensions to take, without the dot; `None` takes those of the source's default list. A
    /// source that is a single file is always taken.
    pub extensions: Option<Vec<String>>,
    /// What to leave out of a folder. A single file is not filtered.
    pub filter: Filter,
    /// Stop after about this many bytes.
    pub max_bytes: u64,
    /// Which files represent a group when the budget does not reach for all of them.
    pub seed: u64,
    /// Policy for files that are not UTF-8.
    pub not_utf8: NotUtf8,
}

impl GatherOptions {
    /// The defaults for a source: code filters, 32 MiB, refusing what is not UTF-8. (Among crates,
    /// where test data in other encodings is nobody's mistake, such files are skipped.)
    pub fn new(source: Source) -> Self {
        let not_utf8 = match source {
            Source::Path(_) => NotUtf8::Refuse,
            Source::CargoRegistry(_) => NotUtf8::Skip,
        };
        Self {
            source,
            extensions: None,
            filter: Filter::default(),
            max_bytes: 32 << 20,
            seed: 0,
            not_utf8,
        }
    }
}

/// What gathering saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatherReport {
    /// Files below the source.
    pub files_seen: u64,
    /// Documents kept.
    pub documents: u64,
    /// Bytes kept.
    pub bytes: u64,
    /// Groups (crates, or single files) among the documents kept.
    pub groups: u64,
    /// Files left out, by reason.
    pub rejected: BTreeMap<Rejection, u64>,
}

impl fmt::Display for GatherReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} documents, {:.1} MB, {} groups of {} files",
            self.documents,
            self.bytes as f64 / 1e6,
            self.groups,
            self.files_seen
        )?;
        let reasons = self.rejected.iter().filter(|(_, count)| **count > 0);
        reasons.enumerate().try_for_each(|(i, (reason, count))| {
            write!(f, "{}{count} {reason}", if i == 0 { "; left out: " } else { ", " })
        })
    }
}

/// Documents and how they were chosen.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// The documents, sorted by name.
    pub documents: Vec<Document>,
    /// What was seen and left out.
    pub report: GatherReport,
}

#[cfg(test)]
mod tests;
