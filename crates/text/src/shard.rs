//! Tokenised documents on disk.
//!
//! Little-endian; 88 bytes of header, the tokens, zeros up to a multiple of 8, the offsets:
//!
//! ```text
//!  0  magic "DANAUSTK"          40  SHA-256 of the tokenizer [32]
//!  8  version u32 = 1           72  checksum of the tokens u64
//! 12  bytes per token u32 2|4   80  checksum of bytes 0..80 and of the offsets u64
//! 16  vocab_size u32            88  tokens, u16 or u32
//! 20  zero u32                  ..  offsets u64 [documents + 1], in tokens
//! 24  documents u64
//! 32  tokens u64
//! ```
//!
//! A checksum is the first eight bytes of a SHA-256. Opening checks everything but the tokens,
//! which [`Shard::verify`] reads through once. Tokens are read where they are needed by position
//! instead of through a memory map: a file that is truncated while it is in use is then an error
//! and not the end of the process.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::digest::{Digest, Hasher};
use crate::pack::{PackedDocuments, TokenSource, length, locate};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"DANAUSTK";
const VERSION: u32 = 1;
const HEADER: usize = 88;
const CHECKED: usize = 80;

/// The numbers in a shard's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    bytes_per_token: u32,
    vocab_size: u32,
    documents: u64,
    tokens: u64,
    tokenizer: Digest,
    token_checksum: u64,
}

impl Header {
    fn encode(&self, offsets: &[u8]) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.bytes_per_token.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.vocab_size.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.documents.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.tokens.to_le_bytes());
        bytes[40..72].copy_from_slice(&self.tokenizer.0);
        bytes[72..80].copy_from_slice(&self.token_checksum.to_le_bytes());
        let checksum = checksum(&bytes[..CHECKED], offsets);
        bytes[CHECKED..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the fields; the checksum is compared later, when the offsets are known.
    fn decode(bytes: &[u8; HEADER]) -> Result<Self, String> {
        if bytes[..8] != MAGIC {
            return Err("not a token shard (its first bytes are not DANAUSTK)".into());
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(format!("version {version}; this build reads version {VERSION}"));
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(&bytes[40..72]);
        let header = Self {
            bytes_per_token: u32_at(bytes, 12),
            vocab_size: u32_at(bytes, 16),
            documents: u64_at(bytes, 24),
            tokens: u64_at(bytes, 32),
            tokenizer: Digest(digest),
            token_checksum: u64_at(bytes, 72),
        };
        if ![2, 4].contains(&header.bytes_per_token) {
            return Err(format!("{} bytes per token; valid: 2 or 4", header.bytes_per_token));
        }
        Ok(header)
    }

    /// Where the offsets begin and where the file ends; `None` if the sizes are absurd.
    fn layout(&self) -> Option<(u64, u64)> {
        let tokens = self.tokens.checked_mul(u64::from(self.bytes_per_token))?;
        let offsets = tokens.checked_add(HEADER as u64)?.checked_next_multiple_of(8)?;
        let table = self.documents.checked_add(1)?.checked_mul(8)?;
        Some((offsets, offsets.checked_add(table)?))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn checksum(header: &[u8], offsets: &[u8]) -> u64 {
    let mut hasher = Hasher::default();
    hasher.update(header);
    hasher.update(offsets);
    hasher.finish().prefix()
}

/// Writes documents as one shard; an existing file is replaced at once and whole.
///
/// # Errors
/// A token outside of the tokenizer's vocabulary, or whatever writing reports.
pub fn write(path: &Path, documents: &PackedDocuments, tokenizer: &Tokenizer) -> Result<()> {
    let vocab_size = tokenizer.vocab_size();
    if let Some(token) = documents.tokens().iter().find(|token| **token as usize >= vocab_size) {
        return Err(Error::argument("token", token, format!("0..{vocab_size}")));
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let bytes_per_token = if vocab_size <= 1 << 16 { 2 } else { 4 };
    let header = Header {
        bytes_per_token,
        vocab_size: vocab_size as u32,
        documents: documents.len() as u64,
        tokens: documents.tokens().len() as u64,
        tokenizer: tokenizer.digest(),
        token_checksum: 0,
    };
    let written =
        fill(&temporary, documents, header).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        // The first error is the one that matters; a file left behind is harmless.
        let _ = std::fs::remove_file(&temporary);
        Error::io("write", path, error)
    })
}

fn fill(path: &Path, documents: &PackedDocuments, mut header: Header) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&[0; HEADER])?;
    let mut hasher = Hasher::default();
    for block in documents.tokens().chunks(4096) {
        let bytes: Vec<u8> = match header.bytes_per_token {
            2 => block.iter().flat_map(|&token| (token as u16).to_le_bytes()).collect(),
            _ => block.iter().flat_map(|token| token.to_le_bytes()).collect(),
        };
        hasher.update(&bytes);
        file.write_all(&bytes)?;
    }
    header.token_checksum = hasher.finish().prefix();
    let token_bytes = documents.tokens().len() * header.bytes_per_token as usize;
    let padding = token_bytes.next_multiple_of(8) - token_bytes;
    file.write_all(&[0; 8][..padding])?;
    let offsets: Vec<u8> = documents.offsets().iter().flat_map(|o| o.to_le_bytes()).collect();
    file.write_all(&offsets)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&header.encode(&offsets))?;
    file.flush()?;
    file.get_ref().sync_all()
}

/// An open shard.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: Mutex<File>,
    header: Header,
    header_checksum: u64,
    offsets: Vec<u64>,
}

impl Shard {
    /// Opens a shard and checks its header, its size and its table of documents.
    ///
    /// # Errors
    /// An unreadable file; one that is no shard, is of another version, truncated or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let unreadable = |error| Error::io("read", path, error);
        let mut file = File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        let mut bytes = [0; HEADER];
        if size < HEADER as u64 {
            let problem = format!("{size} bytes long, shorter than the header of {HEADER}");
            return Err(Error::shard(path, problem));
        }
        file.read_exact(&mut bytes).map_err(unreadable)?;
        let header = Header::decode(&bytes).map_err(|problem| Error::shard(path, problem))?;
        let (table, end) = match header.layout() {
            Some((table, end)) if end == size => (table, end),
            layout => {
                let expected = layout.map_or("an impossible size".into(), |(_, n)| n.to_string());
                let problem = format!("{size} bytes long, its header announces {expected}");
                return Err(Error::shard(path, problem));
            }
        };
        // The size of the file bounds this allocation.
        let mut raw = vec![0; (end - table) as usize];
        file.seek(SeekFrom::Start(table)).map_err(unreadable)?;
        file.read_exact(&mut raw).map_err(unreadable)?;
        let header_checksum = u64_at(&bytes, CHECKED);
        if checksum(&bytes[..CHECKED], &raw) != header_checksum {
            return Err(Error::shard(path, "the header or the table of documents is damaged"));
        }
        let offsets: Vec<u64> = raw.chunks_exact(8).map(|chunk| u64_at(chunk, 0)).collect();
        let ascending = offsets.is_sorted() && offsets.first() == Some(&0);
        if !ascending || offsets.last() != Some(&header.tokens) {
            return Err(Error::shard(path, "the table of documents is not in order"));
        }
        Ok(Self { path: path.into(), file: Mutex::new(file), header, header_checksum, offsets })
    }

    /// SHA-256 of the tokenizer that made the tokens.
    pub fn tokenizer(&self) -> Digest {
        self.header.tokenizer
    }

    /// All token ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.header.vocab_size as usize
    }

    /// Reads all tokens once and compares their checksum.
    ///
    /// # Errors
    /// An unreadable or damaged file.
    pub fn verify(&self) -> Result<()> {
        let mut hasher = Hasher::default();
        let tokens = self.header.tokens as usize;
        for start in (0..tokens).step_by(1 << 20) {
            hasher.update(&self.read_raw(start..tokens.min(start + (1 << 20)))?);
        }
        if hasher.finish().prefix() != self.header.token_checksum {
            return Err(Error::shard(&self.path, "the tokens are damaged (checksum)"));
        }
        Ok(())
    }

    fn read_raw(&self, tokens: Range<usize>) -> Result<Vec<u8>> {
        let width = self.header.bytes_per_token as usize;
        let mut bytes = vec![0; tokens.len() * width];
        // Another thread's panic leaves no state behind: every read seeks first.
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let start = (HEADER + tokens.start * width) as u64;
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| Error::io("read", &self.path, error))?;
        Ok(bytes)
    }
}

impl TokenSource for Shard {
    fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    fn tokens_of(&self, document: usize) -> usize {
        length(&self.offsets, document)
    }

    fn read(&self, document: usize, range: Range<usize>) -> Result<Vec<u32>> {
        let raw = self.read_raw(locate(&self.offsets, document, range)?)?;
        let tokens: Vec<u32> = match self.header.bytes_per_token {
            2 => raw.chunks_exact(2).map(|c| u32::from(u16::from_le_bytes([c[0], c[1]]))).collect(),
            _ => raw.chunks_exact(4).map(|c| u32_at(c, 0)).collect(),
        };
        match tokens.iter().find(|token| **token >= self.header.vocab_size) {
            Some(token) => {
                let size = self.header.vocab_size;
                let problem = format!("token {token} in document {document}; valid: 0..{size}");
                Err(Error::shard(&self.path, problem))
            }
            None => Ok(tokens),
        }
    }

    fn digest(&self) -> Digest {
        // The header's checksum covers the checksum of the tokens.
        Digest::of(&self.header_checksum.to_le_bytes())
    }
}

#[cfg(test)]
mod tests;
