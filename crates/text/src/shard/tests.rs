use super::*;
use crate::tokenizer::TrainOptions;

fn tokenizer() -> Tokenizer {
    let options = TrainOptions { vocab_size: 300, ..TrainOptions::default() };
    Tokenizer::train(&["fn main() { let x = 1; let y = x; }\n".repeat(20)], &options).unwrap()
}

fn documents() -> PackedDocuments {
    PackedDocuments::from_documents(&[vec![5, 6, 7, 270], vec![], vec![8; 13], vec![1, 2]])
}

fn contents(shard: &Shard) -> Result<Vec<Vec<u32>>> {
    (0..shard.len()).map(|i| shard.read(i, 0..shard.tokens_of(i))).collect()
}

#[test]
fn shards_give_back_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tokens");
    let (tokenizer, documents) = (tokenizer(), documents());
    write(&path, &documents, &tokenizer).unwrap();
    let shard = Shard::open(&path).unwrap();
    shard.verify().unwrap();
    assert_eq!(shard.tokenizer(), tokenizer.digest());
    assert_eq!(PackedDocuments::from_documents(&contents(&shard).unwrap()), documents);
    assert_eq!(shard.read(2, 3..5).unwrap(), [8, 8]);
    assert!(shard.read(2, 3..14).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    write(&path, &PackedDocuments::from_documents::<Vec<u32>>(&[]), &tokenizer).unwrap();
    assert!(Shard::open(&path).unwrap().is_empty());
    let foreign = PackedDocuments::from_documents(&[[4000]]);
    assert!(write(&path, &foreign, &tokenizer).unwrap_err().to_string().contains("4000"));
}

/// Every byte of the file, changed in several ways: the header, the padding aside, never opens; the
/// tokens open but do not verify; nothing panics.
#[test]
fn every_damaged_byte_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tokens");
    write(&path, &documents(), &tokenizer()).unwrap();
    let good = std::fs::read(&path).unwrap();
    let token_end = HEADER + 19 * 2;
    for at in 0..good.len() {
        for change in [0x01, 0x80, 0xFF] {
            let mut bad = good.clone();
            bad[at] ^= change;
            std::fs::write(&path, &bad).unwrap();
            let opened = Shard::open(&path);
            let in_tokens = (HEADER..token_end).contains(&at);
            let in_padding = (token_end..token_end.next_multiple_of(8)).contains(&at);
            assert_eq!(opened.is_ok(), in_tokens || in_padding, "byte {at}");
            if let Ok(shard) = opened {
                assert_eq!(shard.verify().is_ok(), in_padding, "byte {at}");
                // Either an error (an id beyond the vocabulary) or some ids: no panic.
                let _ = contents(&shard);
            }
        }
    }
}

#[test]
fn every_truncation_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tokens");
    write(&path, &documents(), &tokenizer()).unwrap();
    let good = std::fs::read(&path).unwrap();
    for length in 0..good.len() {
        std::fs::write(&path, &good[..length]).unwrap();
        assert!(matches!(Shard::open(&path), Err(Error::Shard { .. })), "{length}");
    }
    std::fs::write(&path, [&good[..], &[0]].concat()).unwrap();
    assert!(Shard::open(&path).is_err());

    // Truncated while open: the next read fails, the process lives.
    std::fs::write(&path, &good).unwrap();
    let shard = Shard::open(&path).unwrap();
    std::fs::write(&path, &good[..HEADER + 4]).unwrap();
    assert!(matches!(shard.read(2, 0..13), Err(Error::Io { .. })));
}

/// A header with a valid checksum but absurd counts must not lead to a large allocation.
#[test]
fn absurd_counts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tokens");
    for (documents, tokens) in [(u64::MAX, 0), (0, u64::MAX), (1 << 61, 1 << 61), (1 << 40, 8)] {
        let header = Header {
            bytes_per_token: 2,
            vocab_size: 300,
            documents,
            tokens,
            tokenizer: Digest([0; 32]),
            token_checksum: 0,
        };
        std::fs::write(&path, header.encode(&[])).unwrap();
        let error = Shard::open(&path).unwrap_err().to_string();
        assert!(error.contains("announces"), "{error}");
    }
}
