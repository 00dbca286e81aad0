//! Choosing among the candidate files.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::source::{self, Candidate};
use super::{Corpus, Document, Filter, GatherOptions, GatherReport, NotUtf8, Rejection, Source};
use crate::digest::{Digest, Hasher};
use crate::{Error, Result};

impl Corpus {
    /// Gathers documents.
    ///
    /// # Errors
    /// A path that is missing or unreadable, a file that is not UTF-8 under the policy
    /// [`NotUtf8::Refuse`], or nothing left after filtering.
    pub fn gather(options: &GatherOptions) -> Result<Self> {
        let root = options.source.root();
        let single_file = root.is_file();
        let filter = if single_file { Filter::off() } else { options.filter.clone() };
        let mut report = GatherReport::default();
        let candidates = by_extension(source::list(&options.source)?, options, &mut report);
        let mut documents = Vec::new();
        let mut contents = HashSet::new();
        for candidate in fair_order(candidates, options.seed) {
            if report.bytes + candidate.size > options.max_bytes && !single_file {
                *report.rejected.entry(Rejection::Budget).or_default() += 1;
                continue;
            }
            match read(&candidate, &filter, options.not_utf8, &mut contents)? {
                Ok(bytes) => {
                    report.bytes += bytes.len() as u64;
                    let Candidate { name, group, .. } = candidate;
                    documents.push(Document { name, group, bytes });
                }
                Err(rejection) => *report.rejected.entry(rejection).or_default() += 1,
            }
        }
        documents.sort_by(|a, b| a.name.cmp(&b.name));
        report.documents = documents.len() as u64;
        let groups: BTreeSet<&str> = documents.iter().map(|d| d.group.as_str()).collect();
        report.groups = groups.len() as u64;
        if documents.is_empty() {
            let mut summary = report.to_string();
            if matches!(options.source, Source::CargoRegistry(_)) {
                summary += "; cargo unpacks crates there when it builds; name a folder of your own";
            }
            return Err(Error::EmptyCorpus { path: root, summary });
        }
        Ok(Self { documents, report })
    }
}

fn by_extension(
    candidates: Vec<Candidate>,
    options: &GatherOptions,
    report: &mut GatherReport,
) -> Vec<Candidate> {
    report.files_seen = candidates.len() as u64;
    if options.source.root().is_file() {
        return candidates;
    }
    let wanted: HashSet<String> = match &options.extensions {
        Some(list) => list.iter().map(|e| e.trim_start_matches('.').to_lowercase()).collect(),
        None => options.source.default_extensions().iter().map(|e| (*e).to_string()).collect(),
    };
    let (taken, other): (Vec<_>, Vec<_>) = candidates
        .into_iter()
        .partition(|c| source::extension(&c.path).is_some_and(|e| wanted.contains(&e)));
    report.rejected.insert(Rejection::Extension, other.len() as u64);
    taken
}

/// Orders files so that any prefix of the order takes about the same number of bytes from every
/// group: each file is ranked by the bytes that come before it within its group, and within a group
/// the order is random but fixed by the seed.
fn fair_order(candidates: Vec<Candidate>, seed: u64) -> Vec<Candidate> {
    let mut groups: BTreeMap<String, Vec<(u64, Candidate)>> = BTreeMap::new();
    for candidate in candidates {
        let mut hasher = Hasher::default();
        hasher.update(&seed.to_le_bytes());
        hasher.field(candidate.name.as_bytes());
        let key = hasher.finish().prefix();
        groups.entry(candidate.group.clone()).or_default().push((key, candidate));
    }
    let mut ranked = Vec::new();
    for files in groups.values_mut() {
        files.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
        let mut before = 0;
        for (_, candidate) in files.drain(..) {
            let rank = before;
            before += candidate.size;
            ranked.push((rank, candidate));
        }
    }
    ranked.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    ranked.into_iter().map(|(_, candidate)| candidate).collect()
}

/// Reads one candidate and judges it. The outer error ends gathering, the inner one is counted.
fn read(
    candidate: &Candidate,
    filter: &Filter,
    policy: NotUtf8,
    contents: &mut HashSet<Digest>,
) -> Result<Result<Vec<u8>, Rejection>> {
    if filter.max_file_bytes.is_some_and(|limit| candidate.size > limit) {
        return Ok(Err(Rejection::TooLarge));
    }
    let path = &candidate.path;
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let is_prose = source::is_prose(path);
    let verdict = match (std::str::from_utf8(&bytes), policy) {
        (Ok(text), _) => filter.check(text, is_prose),
        (Err(_), NotUtf8::Skip) => Err(Rejection::NotUtf8),
        (Err(_), NotUtf8::Bytes) => filter.check(&String::from_utf8_lossy(&bytes), is_prose),
        (Err(error), NotUtf8::Refuse) => {
            return Err(Error::NotUtf8 { path: path.clone(), offset: error.valid_up_to() });
        }
    };
    if let Err(rejection) = verdict {
        return Ok(Err(rejection));
    }
    if !contents.insert(Digest::of(&bytes)) {
        return Ok(Err(Rejection::Copy));
    }
    Ok(Ok(bytes))
}
