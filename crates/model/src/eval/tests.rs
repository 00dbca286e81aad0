//! Padding on either side changes nothing; perplexity against probabilities looked up one by one.

use super::*;
use crate::decoder::Compute;
use crate::presets;
use danaus_tensor::Device;
use danaus_testkit::assert_close;
use std::path::Path;

fn tiny() -> Decoder {
    let mut config = presets::quickstart(40);
    config.d_model = 16;
    config.max_positions = 16;
    if let Some(mamba2) = &mut config.mamba2 {
        mamba2.head_dim = 8;
        mamba2.d_state = 8;
    }
    Decoder::init(&config, 3, Compute::new(DType::F64)).unwrap()
}

fn whole(values: &[i64], shape: [usize; 2]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

#[test]
fn padding_on_either_side_changes_nothing() {
    let decoder = tiny();
    let ids = whole(&[0, 0, 5, 9, 30, 7, 8, 11, 0, 0], [2, 5]);
    let mask = whole(&[0, 0, 1, 1, 1, 1, 1, 1, 0, 0], [2, 5]);
    let padded = logits(&decoder, &ids, Some(&mask), true).unwrap();
    let names: Vec<&str> = padded.iter().map(|(name, _)| name.as_str()).collect();
    let expected = ["logits", "hidden_00", "hidden_01", "hidden_02", "hidden_03", "hidden_04"];
    assert_eq!(names, expected);
    for (row, from, own) in [(0, 2, [5i64, 9, 30]), (1, 0, [7, 8, 11])] {
        let alone = logits(&decoder, &whole(&own, [1, 3]), None, true).unwrap();
        for ((name, all), (_, single)) in padded.iter().zip(&alone) {
            let part = all.narrow(0, row, 1).unwrap().narrow(1, from, 3).unwrap();
            assert_close(name, &part, single, 1e-12);
        }
    }
    // Rows of padding are zero.
    let first = padded[0].1.narrow(0, 0, 1).unwrap().narrow(1, 0, 2).unwrap();
    assert!(first.to_vec::<f64>().unwrap().iter().all(|value| *value == 0.0));
}

#[test]
fn wrong_ids_are_named() {
    let decoder = tiny();
    let message = |ids: &Tensor, mask: Option<&Tensor>| {
        logits(&decoder, ids, mask, false).unwrap_err().to_string()
    };
    assert!(message(&whole(&[1, 40], [1, 2]), None).contains("token id is 40, valid is 0..40"));
    assert!(message(&whole(&[1, -4], [1, 2]), None).contains("input_ids is -4"));
    assert!(message(&whole(&[1; 17], [1, 17]), None).contains("sequence length is 17"));
    let mask = whole(&[1, 1], [2, 1]);
    assert!(message(&whole(&[1, 2], [1, 2]), Some(&mask)).contains("attention_mask has shape"));
    let real = Tensor::zeros([1, 2], DType::F32, &Device::Cpu).unwrap();
    assert!(message(&real, None).contains("input_ids has dtype f32"));
}

fn model() -> (Decoder, Tokenizer) {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/40-engine/llama-gqa");
    let mut config = presets::quickstart(384);
    config.max_positions = 64;
    let compute = Compute::new(DType::F64);
    let decoder = Decoder::init(&config, 1, compute).unwrap();
    (decoder, Tokenizer::load(Path::new(golden)).unwrap())
}

/// Against log-probabilities looked up one by one.
#[test]
fn windows_predict_every_token_once() {
    let (decoder, tokenizer) = model();
    let texts = ["The engine computes the state exactly. ".repeat(3), "x y".into(), "".into()];
    let names = ["window", "stride"];
    for (window, stride) in [(64, 32), (10, 3), (7, 6), (2, 1)] {
        let found = perplexity(&decoder, &tokenizer, &texts, Windows { window, stride }).unwrap();
        let (mut nats, mut count, mut bytes) = (0.0, 0, 0);
        for text in &texts {
            let ids = tokenizer.encode_ordinary(text).unwrap();
            for at in 1..ids.len() {
                // The earliest window that reaches the token.
                let start = (at + 1).saturating_sub(window).div_ceil(stride) * stride;
                let seen = &ids[start..at];
                let batch = SeqBatch::from_lengths(&[seen.len()]).unwrap();
                let logits = decoder.logits(seen, &batch).unwrap();
                let last = logits.select(0, seen.len() - 1).unwrap().to_vec::<f64>().unwrap();
                let total = last.iter().map(|logit| logit.exp()).sum::<f64>().ln();
                nats += total - last[ids[at] as usize];
                count += 1;
                bytes += tokenizer.token_bytes(ids[at]).unwrap().len();
            }
        }
        assert_eq!((found.tokens, found.bytes), (count, bytes), "{names:?} {window} {stride}");
        assert!((found.nats - nats).abs() < 1e-9 * nats, "{} {nats}", found.nats);
    }
    let message = |window, stride| {
        let windows = Windows { window, stride };
        perplexity(&decoder, &tokenizer, &texts, windows).unwrap_err().to_string()
    };
    assert!(message(65, 2).contains("2..=64") && message(8, 8).contains("1..=7"));
    let short = perplexity(&decoder, &tokenizer, &["x"], Windows { window: 8, stride: 4 });
    assert!(short.unwrap_err().to_string().contains("two tokens"));
}
