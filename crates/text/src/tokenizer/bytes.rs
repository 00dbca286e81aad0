//! The bytes behind every token of a byte-level vocabulary.
//!
//! Byte-level BPE writes each byte as one printable character (GPT-2): printable Latin-1 bytes as
//! themselves, the other 68 as U+0100, U+0101, ... in order of the byte.

use crate::{Error, Result};

/// Larger ids than this are taken for a damaged file rather than allocated for.
const MAX_VOCABULARY: u32 = 1 << 24;

/// Bytes of all tokens, end to end.
pub(super) struct TokenBytes {
    starts: Vec<u32>,
    data: Vec<u8>,
    special: Vec<bool>,
    singles: [Option<u32>; 256],
}

/// The character that stands for each byte.
pub(super) fn alphabet() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
        }
    })
}

fn is_byte_level(tokenizer: &tokenizers::Tokenizer) -> bool {
    use tokenizers::DecoderWrapper::{ByteLevel, Sequence};
    match tokenizer.get_decoder() {
        Some(ByteLevel(_)) => true,
        Some(Sequence(parts)) => {
            parts.get_decoders().iter().any(|part| matches!(part, ByteLevel(_)))
        }
        _ => false,
    }
}

impl TokenBytes {
    pub(super) fn new(tokenizer: &tokenizers::Tokenizer) -> Result<Self> {
        if !is_byte_level(tokenizer) {
            return Err(Error::Tokenizer {
                action: "use this tokenizer",
                reason: "its decoder is not ByteLevel; only byte-level tokenizers are supported"
                    .into(),
            });
        }
        let added = tokenizer.get_added_tokens_decoder();
        let mut vocabulary: Vec<(u32, String)> =
            tokenizer.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        vocabulary.sort_unstable();
        let size = vocabulary.last().map_or(0, |(id, _)| id.saturating_add(1));
        if size == 0 || size > MAX_VOCABULARY {
            return Err(Error::Tokenizer {
                action: "use this tokenizer",
                reason: format!("{size} token ids; valid: 1..={MAX_VOCABULARY}"),
            });
        }
        let byte_of: std::collections::HashMap<char, u8> =
            alphabet().into_iter().zip(0..=255).collect();

        let mut starts = vec![0];
        let mut data = Vec::new();
        let mut singles = [None; 256];
        for (id, token) in &vocabulary {
            // Ids that no token has stand for no bytes.
            starts.resize(*id as usize + 1, data.len() as u32);
            let letters: Option<Vec<u8>> =
                token.chars().map(|letter| byte_of.get(&letter).copied()).collect();
            match letters {
                Some(bytes) if !added.contains_key(id) => {
                    if let [byte] = bytes[..] {
                        singles[usize::from(byte)] = Some(*id);
                    }
                    data.extend(bytes);
                }
                _ => data.extend_from_slice(token.as_bytes()),
            }
            starts.push(data.len() as u32);
        }
        let mut special = vec![false; size as usize];
        for (id, token) in added {
            if let Some(flag) = special.get_mut(id as usize) {
                *flag = token.special;
            }
        }
        Ok(Self { starts, data, special, singles })
    }

    pub(super) fn len(&self) -> usize {
        self.special.len()
    }

    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let (&start, &end) = (self.starts.get(id)?, self.starts.get(id + 1)?);
        self.data.get(start as usize..end as usize)
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The token that is exactly this byte.
    pub(super) fn single(&self, byte: u8) -> Option<u32> {
        self.singles[usize::from(byte)]
    }
}
