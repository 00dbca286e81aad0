//! Checkpoints that other projects made, loaded as they are: logits, hidden states and greedy tokens.
//!
//! Expected values were computed in float64 from the stored weights; ours are f32. Tolerances are
//! absolute: 2e-4 on logits of size 10, 1e-4 on log-probabilities. Random models agree to 2e-5; the
//! hybrids, whose logits are four times as large, to 8e-5, and in f64 to the rounding of the file.
//! Greedy tokens are compared up to the first place where the two best logits are closer than 2e-3.

use danaus_matrix::SeqBatch;
use danaus_model::decoder::{Compute, Decoder};
use danaus_model::{Model, eval};
use danaus_tensor::safetensors::TensorFile;
use danaus_tensor::{DType, Tensor, no_grad};
use danaus_testkit::{Golden, golden};
use std::path::{Path, PathBuf};

/// The complete models, with their golden files beside them.
const MODELS: [(&str, &str); 6] = [
    ("40-engine", "llama-gqa"),
    ("40-engine", "llama3-rope-tied-bf16"),
    ("40-engine", "opt"),
    ("40-engine", "mamba"),
    ("40-engine", "mamba2"),
    ("29-starcoder", "tiny-starcoder"),
];

/// Tiny random checkpoints with the settings that the models above leave at their defaults.
const FAMILIES: [&str; 9] =
    ["llama", "mistral", "qwen2", "qwen3", "opt", "gpt2", "gpt_bigcode", "mamba", "mamba2"];
/// Mamba and attention in turn, in the spelling of state-spaces.
const HYBRIDS: [&str; 2] = ["hybrid_mamba1", "hybrid_mamba2"];

fn folder(system: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(system).join(name)
}

fn load(system: &str, name: &str) -> Model {
    Model::load(&folder(system, name), Compute::default()).unwrap()
}

#[track_caller]
fn assert_near(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
    let pairs = wide(found).into_iter().zip(wide(expected));
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst <= tolerance, "{what}: off by {worst:e}, allowed {tolerance:e}");
}

/// Logits and every hidden state.
fn check_forward(what: &str, model: &Model, case: &dyn Fn(&str) -> Tensor, tolerance: f64) {
    let found = eval::logits(&model.decoder, &case("input_ids"), None, true).unwrap();
    for (name, tensor) in &found {
        assert_near(&format!("{what} {name}"), tensor, &case(name), tolerance);
    }
    assert_eq!(found.len(), model.decoder.config().layers.len() + 2);
}

#[test]
fn logits_and_hidden_states_equal_the_originals() {
    for (system, name) in MODELS {
        let case = golden(system, &format!("{name}.golden"));
        let tolerance = if system == "29-starcoder" { 2e-5 } else { 2e-4 };
        check_forward(name, &load(system, name), &|key| case.get(key).clone(), tolerance);
    }
}

#[test]
fn every_setting_of_every_family_equals_the_original() {
    for name in FAMILIES {
        check_family(name, DType::F32, 2e-5);
    }
    for name in HYBRIDS {
        check_family(name, DType::F32, 8e-5);
        check_family(name, DType::F64, 2e-6);
    }
}

fn check_family(name: &str, dtype: DType, tolerance: f64) {
    let path = folder("40-engine/families", name);
    let file = TensorFile::open(path.join("expected.safetensors")).unwrap();
    let model = Model::load(&path, Compute::new(dtype)).unwrap();
    check_forward(name, &model, &|key| file.tensor(key).unwrap(), tolerance);
}

fn ids(tensor: &Tensor) -> Vec<u32> {
    let wide = tensor.to_dtype(DType::I64).unwrap().to_vec::<i64>().unwrap();
    wide.into_iter().map(|id| id as u32).collect()
}

/// The likeliest tokens with their log-probabilities.
fn greedy(decoder: &Decoder, prompt: &[u32], count: usize) -> Vec<(u32, f64)> {
    no_grad(|| {
        let mut pool = decoder.state_pool(1).unwrap();
        let slot = [pool.reserve().unwrap()];
        let (mut fresh, mut chosen) = (prompt.to_vec(), Vec::new());
        while chosen.len() < count {
            let batch = SeqBatch::from_lengths(&[fresh.len()]).unwrap();
            let hidden = decoder.advance(&fresh, &batch, &mut pool, &slot).unwrap();
            let last = hidden.narrow(0, fresh.len() - 1, 1).unwrap();
            let logits = decoder.project(&last).unwrap().to_dtype(DType::F64).unwrap();
            let logits = logits.to_vec::<f64>().unwrap();
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            let total: f64 = logits.iter().map(|value| (value - logits[best]).exp()).sum();
            chosen.push((best as u32, -total.ln()));
            fresh = vec![best as u32];
        }
        chosen
    })
}

fn check_greedy(name: &str, decoder: &Decoder, case: &Golden) {
    for prompt in 0..3 {
        let get = |what: &str| case.get(&format!("{what}_{prompt}"));
        let expected = ids(get("greedy"));
        let margins = get("greedy_margin").to_vec::<f32>().unwrap();
        let log_probs = get("greedy_logprob").to_vec::<f32>().unwrap();
        let found = greedy(decoder, &ids(get("prompt")), expected.len());
        let certain = margins.iter().position(|&margin| margin < 2e-3).unwrap_or(margins.len());
        assert!(certain > 0, "{name} {prompt}: nothing to compare");
        for at in 0..certain {
            let (token, log_prob) = found[at];
            assert_eq!(token, expected[at], "{name}, prompt {prompt}, token {at}");
            let error = (log_prob - f64::from(log_probs[at])).abs();
            assert!(error < 1e-4, "{name}, prompt {prompt}, token {at}: log-probability {error:e}");
        }
    }
}

#[test]
fn greedy_tokens_equal_the_originals() {
    for (system, name) in MODELS {
        let case = golden(system, &format!("{name}.golden"));
        check_greedy(name, &load(system, name).decoder, &case);
    }
}

#[test]
fn padded_batches_of_recurrent_models() {
    for name in ["hf_mamba1", "hf_mamba2"] {
        let model = load("12-mamba2-ssd", name);
        let case = golden("12-mamba2-ssd", &format!("{name}/expected"));
        let (input, mask) = (case.get("input_ids"), case.get("attention_mask_left_padded"));
        let plain = eval::logits(&model.decoder, input, None, false).unwrap();
        assert_near(name, &plain[0].1, case.get("logits"), 2e-4);
        let padded = eval::logits(&model.decoder, input, Some(mask), false).unwrap();
        // The original's rows at padding mean nothing; ours are zero.
        let kept = mask.to_dtype(DType::F32).unwrap().unsqueeze(2).unwrap();
        let kept = kept.broadcast_to(padded[0].1.shape().clone()).unwrap();
        let expected = case.get("logits_left_padded").mul(&kept).unwrap();
        assert_near(&format!("{name} padded"), &padded[0].1, &expected, 2e-4);
        let expected = ids(case.get("greedy_from_7"));
        let found = greedy(&model.decoder, &expected[..7], expected.len() - 7);
        let found: Vec<u32> = found.into_iter().map(|(token, _)| token).collect();
        assert_eq!(found, expected[7..], "{name}");
    }
}

/// A row of a batch is the row alone, and a prompt taken in pieces is the prompt as a whole. Products of
/// other shapes sum in another order, so f32 leaves a few units in the last place.
#[test]
fn batches_and_pieces_change_nothing() {
    for (system, name) in MODELS {
        let decoder = load(system, name).decoder;
        let case = golden(system, &format!("{name}.golden"));
        let tokens = ids(case.get("input_ids"));
        let length = tokens.len() / 2;
        let both = decoder.logits(&tokens, &SeqBatch::equal(2, length).unwrap()).unwrap();
        for row in 0..2 {
            let own = &tokens[row * length..(row + 1) * length];
            let alone = decoder.logits(own, &SeqBatch::equal(1, length).unwrap()).unwrap();
            let expected = both.narrow(0, row * length, length).unwrap();
            assert_near(&format!("{name} alone"), &alone, &expected, 2e-5);
            for piece in [1, 3, 7, 16] {
                let mut pool = decoder.state_pool(1).unwrap();
                let slot = [pool.reserve().unwrap()];
                for (at, part) in own.chunks(piece).enumerate() {
                    let batch = SeqBatch::from_lengths(&[part.len()]).unwrap();
                    let hidden = decoder.advance(part, &batch, &mut pool, &slot).unwrap();
                    let found = decoder.project(&hidden).unwrap();
                    let expected = alone.narrow(0, at * piece, part.len()).unwrap();
                    assert_near(&format!("{name} in pieces of {piece}"), &found, &expected, 4e-5);
                }
            }
        }
    }
}
