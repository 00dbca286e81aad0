//! Examples against the published ones' structure, and the task's identities.

use super::examples::{Example, Kind};
use super::*;
use crate::trainer::{Start, Trainer};
use crate::{Every, TrainConfig};
use danaus_model::decoder::Compute;
use danaus_model::presets::{Uniform, uniform};
use danaus_testkit::golden;
use std::sync::atomic::AtomicBool;

fn recall(kind: &str, vocab_size: usize, length: usize, pairs: usize) -> Recall {
    Recall { kind: Kind::from_name(kind).unwrap(), vocab_size, length, pairs, seed: 3 }
}

/// What every example of multi-query associative recall satisfies.
fn check_mqar(example: &Example, recall: &Recall, is_random: bool) {
    let Recall { vocab_size, length, pairs, .. } = *recall;
    let half = (vocab_size / 2) as u32;
    let (tokens, targets) = (&example.tokens, &example.targets);
    assert_eq!((tokens.len(), targets.len()), (length, length));
    let mut values = std::collections::BTreeMap::new();
    for pair in tokens[..2 * pairs].chunks(2) {
        assert!((1..half).contains(&pair[0]) && (half..vocab_size as u32).contains(&pair[1]));
        assert!(values.insert(pair[0], i64::from(pair[1])).is_none(), "keys do not repeat");
    }
    let answers: std::collections::BTreeSet<i64> = values.values().copied().collect();
    assert_eq!(answers.len(), pairs, "values do not repeat");
    assert!(targets[..2 * pairs].iter().all(|&target| target == IGNORE));
    let mut asked = 0;
    for at in 2 * pairs..length {
        if targets[at] != IGNORE {
            assert_eq!(values.remove(&tokens[at]), Some(targets[at]), "each key asks once");
            assert_eq!(at % 2, 0);
            asked += 1;
        } else if !is_random {
            assert_eq!(tokens[at], 0);
        }
    }
    assert_eq!(asked, pairs);
}

#[test]
fn golden_examples_have_the_structure_of_ours() {
    let case = golden("12-mamba2-ssd", "mqar_examples");
    for (name, random_non_queries) in [("random_False", false), ("random_True", true)] {
        let kind = Kind::Mqar { random_non_queries };
        let recall = Recall { kind, ..recall("mqar", 64, 32, 4) };
        let rows = |part: &str| case.get(&format!("{part}.{name}")).to_vec::<i64>().unwrap();
        let (inputs, labels) = (rows("inputs"), rows("labels"));
        let mut distances = [0u64; 2];
        for (number, (tokens, targets)) in inputs.chunks(32).zip(labels.chunks(32)).enumerate() {
            let tokens = tokens.iter().map(|&token| token as u32).collect();
            let theirs = Example { tokens, targets: targets.to_vec() };
            check_mqar(&theirs, &recall, random_non_queries);
            let ours = recall.example(Set::Training, number as u64);
            check_mqar(&ours, &recall, random_non_queries);
            for (sum, example) in distances.iter_mut().zip([&theirs, &ours]) {
                let asked = (8..32).filter(|&at| example.targets[at] != IGNORE);
                *sum += asked.map(|at| at as u64).sum::<u64>();
            }
        }
        // Keys come again equally soon: means over 256 queries, with a spread of about 0.4 each.
        let [theirs, ours] = distances.map(|sum| sum as f64 / 256.0);
        assert!((theirs - ours).abs() < 1.5, "{theirs} {ours}");
    }
}

#[test]
fn copies_and_inductions_ask_for_what_was_shown() {
    let copying = recall("selective-copying", 16, 40, 6);
    let induction = recall("induction", 16, 24, 1);
    for number in 0..50 {
        let Example { tokens, targets } = copying.example(Set::Test, number);
        let shown: Vec<i64> =
            tokens[..34].iter().filter(|&&token| token != 0).map(|&t| i64::from(t)).collect();
        assert_eq!(shown, targets[34..]);
        assert!(tokens[34..].iter().all(|&token| token == 15));
        assert!(shown.iter().all(|token| (1..15).contains(token)));
        let Example { tokens, targets } = induction.example(Set::Test, number);
        let first = tokens.iter().position(|&token| token == 15).unwrap();
        assert_eq!(tokens.iter().filter(|&&token| token == 15).count(), 2);
        assert_eq!((tokens[23], targets[23]), (15, i64::from(tokens[first + 1])));
        assert!(first + 1 < 22 && targets[..23].iter().all(|&target| target == IGNORE));
    }
    assert_ne!(copying.example(Set::Test, 0), copying.example(Set::Training, 0));
    assert_ne!(copying.example(Set::Test, 0), copying.example(Set::Test, 1));
}

#[test]
fn impossible_shapes_are_named() {
    let message = |recall: Recall| recall.check().unwrap_err().to_string();
    assert!(message(recall("mqar", 16, 64, 8)).contains("vocab_size is 16, valid is at least 18"));
    assert!(message(recall("mqar", 64, 31, 8)).contains("length is 31, valid is at least 32"));
    assert!(message(recall("induction", 16, 64, 2)).contains("pairs is 2, valid is 1"));
    assert!(message(recall("selective-copying", 2, 64, 8)).contains("vocab_size is 2"));
    assert!(message(recall("selective-copying", 16, 64, 0)).contains("pairs is 0"));
    assert!(recall("mqar", 18, 32, 8).check().is_ok());
}

fn decoder(mixer: &str, vocab_size: usize) -> Decoder {
    let shape = Uniform { vocab_size, d_model: 64, depth: 2, d_state: None };
    Decoder::init(&uniform(mixer, &shape).unwrap(), 1, Compute::default()).unwrap()
}

fn options(recall: Recall) -> RecallOptions {
    RecallOptions { recall, rows: 8, examples: Some(20), validation: 9 }
}

/// A pass shows every example once, and the position alone says which comes next.
#[test]
fn passes_are_permutations_and_resume() {
    let recall = recall("mqar", 64, 32, 4);
    let mut task = Recalling::new(decoder("mamba2", 64), options(recall)).unwrap();
    for pass in 0..3 {
        let mut seen: Vec<u64> = (0..20).map(|at| task.number(20 * pass + at)).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..20));
    }
    (0..3).for_each(|_| drop(task.next_batch().unwrap()));
    let cursor = task.cursor().unwrap();
    let expected = task.next_batch().unwrap().unwrap().tokens;
    let mut other = Recalling::new(decoder("mamba2", 64), options(recall)).unwrap();
    other.seek(&cursor).unwrap();
    assert_eq!(other.next_batch().unwrap().unwrap().tokens, expected);
}

/// Reading in chunks with states gives the accuracy and loss of reading packed rows at once.
#[test]
fn chunks_give_the_score_of_whole_rows() {
    for mixer in ["attention", "mamba1", "mamba2", "retnet"] {
        let options = options(recall("mqar", 64, 64, 4));
        let task = Recalling::new(decoder(mixer, 64), options).unwrap();
        let whole = task.validate().unwrap().unwrap();
        let chunked = accuracy(task.model(), &options.recall, 9).unwrap();
        assert_eq!(chunked.targets, 36);
        assert!((whole.loss - chunked.loss()).abs() < 1e-4 * whole.loss, "{mixer}");
        assert_eq!(whole.accuracy, Some(chunked.accuracy()), "{mixer}");
    }
}

/// A little training finds the follower of the marker far more often than chance (1 in 7).
#[test]
fn a_little_training_beats_chance() {
    let recall = recall("mqar", 16, 16, 2);
    let options = RecallOptions { recall, rows: 32, examples: None, validation: 64 };
    let mut task = Recalling::new(decoder("mamba2", 16), options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig {
        steps: Some(150),
        checkpoint: Every::Steps(1000),
        validate: Every::Steps(1000),
        ..TrainConfig::default()
    };
    let mut trainer =
        Trainer::new(&mut task, config, &folder.path().join("run"), Start::New).unwrap();
    trainer.run(&mut (), &AtomicBool::new(false)).unwrap();
    let found = task.validate().unwrap().unwrap().accuracy.unwrap();
    assert!(found > 0.3, "{found}");
}
