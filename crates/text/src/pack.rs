//! Tokenised documents in memory, and what the loader asks of any store of them.
//!
//! Documents are kept end to end without separators; the loader knows where each one ends.

use std::ops::Range;

use rayon::prelude::*;

use crate::digest::{Digest, Hasher};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A store of tokenised documents.
pub trait TokenSource: Send + Sync {
    /// Number of documents.
    fn len(&self) -> usize;

    /// Whether there are no documents.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tokens of a document; 0 for a document that does not exist.
    fn tokens_of(&self, document: usize) -> usize;

    /// Some tokens of a document.
    ///
    /// # Errors
    /// A document or range that does not exist, or a store that cannot be read.
    fn read(&self, document: usize, range: Range<usize>) -> Result<Vec<u32>>;

    /// Identity of the content, so that a saved position is not applied to other data.
    fn digest(&self) -> Digest;

    /// Number of tokens of all documents.
    fn total_tokens(&self) -> u64 {
        (0..self.len()).map(|document| self.tokens_of(document) as u64).sum()
    }
}

/// Tokenised documents in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedDocuments {
    tokens: Vec<u32>,
    /// Document i is tokens[offsets[i]..offsets[i + 1]].
    offsets: Vec<u64>,
}

impl PackedDocuments {
    /// Encodes documents on all cores; spellings of special tokens in them are plain text. The
    /// order is kept.
    ///
    /// # Errors
    /// The first failure of the tokenizer.
    pub fn encode<D: AsRef<[u8]> + Sync>(documents: &[D], tokenizer: &Tokenizer) -> Result<Self> {
        let encoded: Vec<Vec<u32>> = documents
            .par_iter()
            .map(|document| tokenizer.encode_bytes(document.as_ref()))
            .collect::<Result<_>>()?;
        Ok(Self::from_documents(&encoded))
    }

    /// Documents that are tokens already.
    pub fn from_documents<D: AsRef<[u32]>>(documents: &[D]) -> Self {
        let mut packed = Self { tokens: Vec::new(), offsets: vec![0] };
        for document in documents {
            packed.tokens.extend_from_slice(document.as_ref());
            packed.offsets.push(packed.tokens.len() as u64);
        }
        packed
    }

    /// All tokens, document after document.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Where documents begin in [`Self::tokens`], and where the last one ends.
    pub fn offsets(&self) -> &[u64] {
        &self.offsets
    }
}

/// The range of tokens of a document, or of a part of it, checked against its offsets.
pub(crate) fn locate(
    offsets: &[u64],
    document: usize,
    range: Range<usize>,
) -> Result<Range<usize>> {
    let documents = offsets.len().saturating_sub(1);
    if document >= documents {
        return Err(Error::argument("document", document, format!("0..{documents}")));
    }
    let (start, end) = (offsets[document] as usize, offsets[document + 1] as usize);
    if range.start > range.end || range.end > end - start {
        let given = format!("{range:?} of document {document}");
        return Err(Error::argument("token range", given, format!("within 0..{}", end - start)));
    }
    Ok(start + range.start..start + range.end)
}

/// The length of a document by its offsets.
pub(crate) fn length(offsets: &[u64], document: usize) -> usize {
    match (offsets.get(document), offsets.get(document + 1)) {
        (Some(start), Some(end)) => (end - start) as usize,
        _ => 0,
    }
}

impl TokenSource for PackedDocuments {
    fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    fn tokens_of(&self, document: usize) -> usize {
        length(&self.offsets, document)
    }

    fn read(&self, document: usize, range: Range<usize>) -> Result<Vec<u32>> {
        Ok(self.tokens[locate(&self.offsets, document, range)?].to_vec())
    }

    fn digest(&self) -> Digest {
        let mut hasher = Hasher::default();
        hasher.update(&(self.offsets.len() as u64).to_le_bytes());
        self.offsets.iter().for_each(|offset| hasher.update(&offset.to_le_bytes()));
        for block in self.tokens.chunks(4096) {
            let bytes: Vec<u8> = block.iter().flat_map(|token| token.to_le_bytes()).collect();
            hasher.update(&bytes);
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        let packed = PackedDocuments::from_documents(&[vec![1, 2, 3], vec![], vec![4, 5]]);
        assert_eq!((packed.len(), packed.total_tokens()), (3, 5));
        assert_eq!(packed.read(0, 1..3).unwrap(), [2, 3]);
        assert_eq!(packed.read(2, 0..2).unwrap(), [4, 5]);
        assert_eq!(packed.tokens_of(1), 0);
        assert_eq!(packed.tokens_of(9), 0);
        assert!(packed.read(0, 1..4).unwrap_err().to_string().contains("0..3"));
        assert!(packed.read(3, 0..0).is_err());
        let other = PackedDocuments::from_documents(&[vec![1, 2], vec![3], vec![4, 5]]);
        assert_ne!(packed.digest(), other.digest());
    }
}
