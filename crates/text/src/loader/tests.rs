use std::sync::Arc;

use super::*;
use crate::pack::PackedDocuments;
use crate::tokenizer::TrainOptions;

fn texts() -> Vec<String> {
    let function = |i: usize| format!("fn item_{i}(värde: u32) -> u32 {{\n    värde + {i}\n}}\n");
    (0..40).map(|i| (0..=i % 7 * 3).map(|k| function(i * 100 + k)).collect()).collect()
}

fn tokenizer() -> Tokenizer {
    let options = TrainOptions { vocab_size: 320, ..TrainOptions::default() };
    Tokenizer::train(&texts(), &options).unwrap()
}

fn source(tokenizer: &Tokenizer) -> Arc<PackedDocuments> {
    Arc::new(PackedDocuments::encode(&texts(), tokenizer).unwrap())
}

/// Sequences of a batch with the target after the last token.
fn sequences(batch: &Batch) -> Vec<(Vec<u32>, i64)> {
    let ranges = batch.cu_seqlens.windows(2).map(|ends| ends[0] as usize..ends[1] as usize);
    ranges
        .map(|range| (batch.tokens[range.clone()].to_vec(), batch.targets[range.end - 1]))
        .collect()
}

#[test]
fn one_pass_gives_back_every_document() {
    let tokenizer = tokenizer();
    let source = source(&tokenizer);
    let options = LoaderOptions::evaluation(2, 48);
    let loader = Loader::new(source.clone(), &tokenizer, options).unwrap();
    let batches: Vec<Batch> = loader.map(Result::unwrap).collect();
    let (last, full) = batches.split_last().unwrap();
    assert!(full.iter().all(|batch| batch.tokens.len() == 96));
    assert!(!last.tokens.is_empty());
    let (mut rebuilt, mut document) = (Vec::new(), Vec::new());
    for batch in &batches {
        assert_eq!(batch.tokens.len(), batch.targets.len());
        assert!(batch.max_seqlen <= 48 && batch.positions().len() == batch.tokens.len());
        // Rows are never crossed: their limits are limits of sequences.
        let limits = (48..batch.tokens.len() as i32).step_by(48);
        assert!(limits.into_iter().all(|limit| batch.cu_seqlens.contains(&limit)));
        for (sequence, after) in sequences(batch) {
            document.extend(sequence);
            if after == 0 {
                rebuilt.push(std::mem::take(&mut document));
            }
        }
    }
    assert_eq!(PackedDocuments::from_documents(&rebuilt), *source);
    // All bytes are targets, but for the first token of each document.
    let lengths = tokenizer.byte_lengths();
    let target_bytes: u64 = batches.iter().map(|batch| batch.target_bytes(&lengths)).sum();
    let first_bytes: u32 = rebuilt.iter().map(|document| lengths[document[0] as usize]).sum();
    let all_bytes: usize = texts().iter().map(String::len).sum();
    assert_eq!(target_bytes + u64::from(first_bytes), all_bytes as u64);
}

#[test]
fn targets_within_a_split_document_are_its_next_tokens() {
    let tokenizer = tokenizer();
    let source = Arc::new(PackedDocuments::from_documents(&[vec![30, 31, 32], (40..47).collect()]));
    let options = LoaderOptions::evaluation(2, 8);
    let mut loader = Loader::new(source, &tokenizer, options).unwrap();
    let batch = loader.next_batch().unwrap().unwrap();
    assert_eq!(batch.tokens, [30, 31, 32, 40, 41, 42, 43, 44, 45, 46]);
    assert_eq!(batch.targets, [31, 32, 0, 41, 42, 43, 44, 45, 46, 0]);
    assert_eq!(batch.cu_seqlens, [0, 3, 8, 10]);
    assert_eq!(batch.positions(), [0, 1, 2, 0, 1, 2, 3, 4, 0, 1]);
    assert!(loader.next_batch().unwrap().is_none());
    assert!(loader.next_batch().unwrap().is_none());
}

#[test]
fn resuming_anywhere_gives_the_same_bits() {
    let tokenizer = tokenizer();
    let source = source(&tokenizer);
    let options = LoaderOptions::training(6, 128, 11);
    let mut loader = Loader::new(source.clone(), &tokenizer, options.clone()).unwrap();
    let mut saved = vec![serde_json::to_string(loader.cursor()).unwrap()];
    let mut batches = Vec::new();
    for _ in 0..60 {
        batches.push(loader.next_batch().unwrap().unwrap());
        saved.push(serde_json::to_string(loader.cursor()).unwrap());
    }
    assert!(batches.last().unwrap().epoch >= 1, "the test reaches a second epoch");
    assert!(batches.iter().all(|batch| batch.tokens.len() == 768));
    for at in [0, 1, 17, 42, 59] {
        let cursor: Cursor = serde_json::from_str(&saved[at]).unwrap();
        assert_eq!(cursor.batches, at as u64);
        let mut again =
            Loader::resume(source.clone(), &tokenizer, options.clone(), cursor).unwrap();
        for batch in batches[at..].iter().take(5) {
            assert_eq!(&again.next_batch().unwrap().unwrap(), batch, "from {at}");
        }
    }
    let other = LoaderOptions { seed: 12, ..options };
    let mut other = Loader::new(source, &tokenizer, other).unwrap();
    assert_ne!(other.next_batch().unwrap().unwrap(), batches[0]);
}

/// Only in less room than this is a part left as it is.
const SMALLEST: usize = 32;

/// Every token appears once an epoch whatever is rearranged: after undoing the rearrangement the
/// characters are those of the documents, but for the few that are cut off at row ends.
#[test]
fn rearranged_parts_carry_the_text() {
    let tokenizer = tokenizer();
    let source = source(&tokenizer);
    let fim = FimOptions { rate: 1.0, spm_rate: 0.5 };
    let options =
        LoaderOptions { fim: Some(fim), epochs: Some(1), ..LoaderOptions::training(4, 128, 3) };
    let loader = Loader::new(source.clone(), &tokenizer, options).unwrap();
    let (mut rearranged, mut plain, mut bytes) = (0, 0, 0);
    for batch in loader.map(Result::unwrap) {
        for (sequence, after) in sequences(&batch) {
            bytes += tokenizer.decode_bytes(&sequence, true).unwrap().len();
            let sentinel = |id: u32| sequence.iter().filter(|&&token| token == id).count();
            if sequence[0] == 1 {
                rearranged += 1;
                if after == 0 {
                    assert_eq!((sentinel(1), sentinel(2), sentinel(3)), (1, 1, 1));
                }
            } else {
                plain += 1;
                assert!(sequence.len() < SMALLEST, "{}", sequence.len());
            }
        }
    }
    let total: usize = texts().iter().map(String::len).sum();
    assert!(rearranged > plain, "{rearranged} {plain}");
    assert!(bytes <= total && bytes * 100 > total * 99, "{bytes} of {total}");
}

#[test]
fn half_of_the_documents_are_rearranged_and_epochs_differ() {
    let tokenizer = tokenizer();
    let source = source(&tokenizer);
    // Rows longer than every document, so a document is one sequence.
    let options = LoaderOptions { epochs: Some(50), ..LoaderOptions::training(1, 4096, 3) };
    let loader = Loader::new(source, &tokenizer, options).unwrap();
    let (mut rearranged, mut all) = (0, 0);
    for batch in loader.map(Result::unwrap) {
        for (sequence, _) in sequences(&batch) {
            all += 1;
            rearranged += usize::from(sequence[0] == 1);
        }
    }
    // 2000 draws and some parts at row ends: five standard errors are 0.056.
    let share = rearranged as f64 / all as f64;
    assert!(all >= 2000 && (share - 0.5).abs() < 0.06, "{rearranged} of {all}");
}

#[test]
fn text_that_is_not_utf8_stays_plain() {
    let tokenizer = tokenizer();
    let documents = vec![b"\xFF\xFE latin \xE9 ".repeat(40)];
    let source = Arc::new(PackedDocuments::encode(&documents, &tokenizer).unwrap());
    let fim = Some(FimOptions { rate: 1.0, spm_rate: 0.0 });
    let options = LoaderOptions { fim, ..LoaderOptions::evaluation(1, 64) };
    let loader = Loader::new(source, &tokenizer, options).unwrap();
    let ids: Vec<u32> = loader.flat_map(|batch| batch.unwrap().tokens).collect();
    assert_eq!(tokenizer.decode_bytes(&ids, false).unwrap(), documents[0]);
}

#[test]
fn errors_name_what_differs() {
    let tokenizer = tokenizer();
    let source = source(&tokenizer);
    let options = LoaderOptions::training(2, 64, 1);
    let cursor = Loader::new(source.clone(), &tokenizer, options.clone()).unwrap().cursor().clone();
    let resume = |options: &LoaderOptions, cursor: Cursor| {
        Loader::resume(source.clone(), &tokenizer, options.clone(), cursor).err().unwrap()
    };
    let wider = LoaderOptions { row_tokens: 128, ..options.clone() };
    assert!(matches!(resume(&wider, cursor.clone()), Error::Cursor { field: "row_tokens", .. }));
    let mut beyond = cursor.clone();
    beyond.position = 1000;
    let message = resume(&options, beyond).to_string();
    assert!(message.contains("`cursor position` is 1000; valid: 0.."), "{message}");
    let other: Arc<dyn TokenSource> = Arc::new(PackedDocuments::from_documents(&[vec![30, 31]]));
    let error = Loader::resume(other, &tokenizer, options.clone(), cursor).err().unwrap();
    assert!(matches!(error, Error::Cursor { field: "data", .. }));
    let empty: Arc<dyn TokenSource> = Arc::new(PackedDocuments::from_documents(&[Vec::new()]));
    assert!(Loader::new(empty, &tokenizer, options.clone()).is_err());
    let none = LoaderOptions { rows: 0, ..options };
    assert!(Loader::new(source.clone(), &tokenizer, none).is_err());
}
