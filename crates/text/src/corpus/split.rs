//! Training and validation documents.

use std::collections::BTreeMap;

use super::{Corpus, Document};
use crate::digest::Hasher;
use crate::{Error, Result};

/// Two sets of documents that share no group.
#[derive(Clone, Debug)]
pub struct Split {
    /// To train on.
    pub train: Vec<Document>,
    /// To measure on.
    pub validation: Vec<Document>,
}

impl Corpus {
    /// Splits by group: a group's place depends on its name and the seed alone, so it stays on its
    /// side when other groups come and go.
    ///
    /// Both sides get at least one group. A corpus of a single document is cut in two at the end of
    /// a line; its tail is the validation part.
    ///
    /// # Errors
    /// A fraction outside of 0..1, or a single document too short to be cut.
    pub fn split(self, validation_fraction: f64, seed: u64) -> Result<Split> {
        if !(validation_fraction > 0.0 && validation_fraction < 1.0) {
            let valid = "between 0 and 1, both excluded";
            return Err(Error::argument("validation_fraction", validation_fraction, valid));
        }
        let mut groups: BTreeMap<String, Vec<Document>> = BTreeMap::new();
        for document in self.documents {
            groups.entry(document.group.clone()).or_default().push(document);
        }
        let mut ranked: Vec<(f64, Vec<Document>)> =
            groups.into_iter().map(|(group, d)| (position(&group, seed), d)).collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        if ranked.len() < 2 {
            let only = ranked.pop().map(|(_, documents)| documents);
            return cut(only.unwrap_or_default(), validation_fraction);
        }
        let below = ranked.iter().filter(|(at, _)| *at < validation_fraction).count();
        let validation_groups = below.clamp(1, ranked.len() - 1);
        let train = ranked.split_off(validation_groups);
        let flatten = |side: Vec<(f64, Vec<Document>)>| {
            let mut documents: Vec<Document> = side.into_iter().flat_map(|(_, d)| d).collect();
            documents.sort_by(|a, b| a.name.cmp(&b.name));
            documents
        };
        Ok(Split { train: flatten(train), validation: flatten(ranked) })
    }
}

/// A group's place in [0, 1).
fn position(group: &str, seed: u64) -> f64 {
    let mut hasher = Hasher::default();
    hasher.update(b"split");
    hasher.update(&seed.to_le_bytes());
    hasher.field(group.as_bytes());
    (hasher.finish().prefix() >> 11) as f64 / (1u64 << 53) as f64
}

/// One group: its last documents, or the tail of its only one, are the validation part.
fn cut(mut documents: Vec<Document>, fraction: f64) -> Result<Split> {
    if documents.len() > 1 {
        let count = (documents.len() as f64 * fraction).ceil() as usize;
        let validation = documents.split_off(documents.len() - count.clamp(1, documents.len() - 1));
        return Ok(Split { train: documents, validation });
    }
    let Some(mut document) = documents.pop() else {
        return Err(Error::argument("documents", 0, "at least one"));
    };
    let wanted = (document.bytes.len() as f64 * (1.0 - fraction)) as usize;
    let after_line = document.bytes[wanted..].iter().position(|&byte| byte == b'\n');
    let before_line = document.bytes[..wanted].iter().rposition(|&byte| byte == b'\n');
    let at = after_line.map(|n| wanted + n + 1).filter(|&at| at < document.bytes.len());
    let at = at.or(before_line.map(|n| n + 1)).unwrap_or(0);
    if at == 0 || at == document.bytes.len() {
        return Err(Error::argument(
            "validation_fraction",
            fraction,
            "a single document is cut at the end of a line; this one has only one line: give more \
             text",
        ));
    }
    let tail = document.bytes.split_off(at);
    let validation = Document { bytes: tail, ..document.clone() };
    Ok(Split { train: vec![document], validation: vec![validation] })
}
