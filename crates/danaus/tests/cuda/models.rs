//! Whole models: the same training, evaluation and text on both devices.
//!
//! f32 losses of a few steps differ by the rounding of other orders of sums, 1e-4 at the sizes here; the
//! first differ by 1e-6. Muon, whose iteration doubles small differences, is given 1e-3.

use crate::gpu;
use danaus::matrix::SeqBatch;
use danaus::matrix::mixer::AttentionConfig;
use danaus::model::config::{Config, MlpConfig};
use danaus::model::decoder::{Compute, Decoder};
use danaus::model::generate::{Batching, Generator, Request, Sampling, State, generate, read};
use danaus::tensor::{DType, Device, Level, no_grad};
use danaus::text::pack::{PackedDocuments, TokenSource};
use danaus::text::tokenizer::{Tokenizer, TrainOptions};
use danaus::train::optim::OptimizerConfig;
use danaus::train::tasks::lm::{LanguageModel, LanguageModelling, LmData, LmOptions};
use danaus::train::{Every, Observer, Progress, Start, TrainConfig, Trainer};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A small Llama: grouped heads of 64, rotary embedding, gated MLP.
fn llama(vocab_size: usize) -> Config {
    Config {
        max_positions: 512,
        attention: Some(AttentionConfig {
            n_heads: 4,
            n_kv_heads: Some(2),
            head_dim: Some(64),
            rope_theta: Some(10_000.0),
            ..AttentionConfig::default()
        }),
        mlp: MlpConfig::Gated { d_ff: 192, activation: "silu".into(), bias: false },
        ..Config::bare(vocab_size, 128, "AA")
    }
}

fn decoder(device: Device, dtype: DType, vocab_size: usize) -> Decoder {
    let compute = Compute { device, ..Compute::new(dtype) };
    Decoder::init(&llama(vocab_size), 3, compute).unwrap()
}

fn task(device: Device, dtype: DType) -> LanguageModelling<Decoder> {
    let line = |i: usize| format!("let value_{} = other_{} + {};\n", i % 7, i % 5, i % 3);
    let documents = |from: usize, count: usize| -> Vec<String> {
        (from..from + count).map(|d| (0..4 + d % 9).map(|i| line(i + d)).collect()).collect()
    };
    let (training, held_out) = (documents(0, 60), documents(100, 5));
    let options = TrainOptions { vocab_size: 320, ..TrainOptions::default() };
    let tokenizer = Tokenizer::train(&training, &options).unwrap();
    let packed = |texts: &[String]| -> Arc<dyn TokenSource> {
        Arc::new(PackedDocuments::encode(texts, &tokenizer).unwrap())
    };
    let data = LmData {
        training: packed(&training),
        held_out: Some(packed(&held_out)),
        tokenizer: tokenizer.clone(),
    };
    let mut options = LmOptions::new(2, 96, 11);
    options.prompts = vec!["let value".into()];
    options.sample_tokens = 8;
    LanguageModelling::new(decoder(device, dtype, tokenizer.vocab_size()), data, options).unwrap()
}

fn config(optimizer: &str, steps: u64) -> TrainConfig {
    TrainConfig {
        steps: Some(steps),
        checkpoint: Every::Steps(4),
        validate: Every::End,
        micro_batches: 2,
        clip_norm: Some(0.5),
        optimizer: OptimizerConfig::named(optimizer).unwrap(),
        ..TrainConfig::default()
    }
}

/// Losses and gradient norms of all steps; stops after `stop_at`.
struct Watch<'a> {
    losses: Vec<[f64; 2]>,
    stop_at: u64,
    stop: &'a AtomicBool,
}

impl Observer for Watch<'_> {
    fn stepped(&mut self, progress: &Progress) {
        self.losses.push([progress.loss, progress.grad_norm]);
        self.stop.store(progress.step >= self.stop_at, Ordering::Relaxed);
    }
}

fn train(
    task: &mut LanguageModelling<Decoder>,
    config: TrainConfig,
    run: &std::path::Path,
    stop_at: u64,
) -> Vec<[f64; 2]> {
    let stop = AtomicBool::new(false);
    let mut watch = Watch { losses: Vec::new(), stop_at, stop: &stop };
    let mut trainer = Trainer::new(task, config, run, Start::ResumeOrNew).unwrap();
    trainer.run(&mut watch, &stop).unwrap();
    watch.losses
}

#[test]
fn training_has_the_losses_of_the_processor() {
    let Some(device) = gpu() else { return };
    for (optimizer, tolerance) in [("adamw", 1e-4), ("lion", 1e-3), ("sgd", 1e-4), ("muon", 1e-3)] {
        let run = |device: Device, dtype: DType| {
            let folder = tempfile::tempdir().unwrap();
            train(&mut task(device, dtype), config(optimizer, 8), folder.path(), u64::MAX)
        };
        let expected = run(Device::Cpu, DType::F32);
        let found = run(device, DType::F32);
        assert_eq!(found.len(), expected.len());
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            for (a, b) in found.iter().zip(expected) {
                assert!((a / b - 1.0).abs() < tolerance, "{optimizer}, step {step}: {a}, not {b}");
            }
        }
        // bf16 activations: the same course, to a few roundings of 2^-9.
        let found = run(device, DType::BF16);
        let (last, wanted) = (found[7][0], expected[7][0]);
        assert!((last / wanted - 1.0).abs() < 0.02, "{optimizer} in bf16: {last}, not {wanted}");
    }
}

#[test]
fn training_resumes_with_the_same_bits() {
    let Some(device) = gpu() else { return };
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let weights = |task: &LanguageModelling<Decoder>| -> Vec<Vec<f32>> {
        let params = LanguageModel::params(task.model()).iter();
        params.map(|param| param.tensor().to_vec::<f32>().unwrap()).collect()
    };
    let mut one = task(device, DType::BF16);
    train(&mut one, config("adamw", 9), whole.path(), u64::MAX);
    train(&mut task(device, DType::BF16), config("adamw", 9), parts.path(), 6);
    let mut two = task(device, DType::BF16);
    train(&mut two, config("adamw", 9), parts.path(), u64::MAX);
    assert!(weights(&one) == weights(&two));
    // A checkpoint of a GPU goes on on the processor.
    train(&mut task(Device::Cpu, DType::F32), config("adamw", 10), parts.path(), u64::MAX);
}

fn request(prompts: Vec<Vec<u32>>) -> Request {
    Request { prompts, max_tokens: 24, sampling: Sampling::greedy(), ..Request::default() }
}

#[test]
fn greedy_text_is_that_of_the_processor() {
    let Some(device) = gpu() else { return };
    let prompts = vec![vec![1, 2, 3], vec![17; 40], (0..70).map(|i| i % 90).collect()];
    let on = |device| {
        generate(&decoder(device, DType::F32, 97), &request(prompts.clone()), |_, _| {}).unwrap()
    };
    let (expected, found) = (on(Device::Cpu), on(device));
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found.tokens, expected.tokens);
        for (a, b) in found.log_probs.iter().zip(&expected.log_probs) {
            assert!((a - b).abs() < 1e-4, "{a}, not {b}");
        }
    }
}

/// Steps through the cache against one pass over the whole text.
#[test]
fn steps_agree_with_a_whole_pass_in_bf16() {
    let Some(device) = gpu() else { return };
    let decoder = decoder(device, DType::BF16, 97);
    let prompt: Vec<u32> = (0..75).map(|i| i * 7 % 97).collect();
    let mut request = request(vec![prompt.clone()]);
    request.sampling = Sampling { temperature: 0.8, seed: 5, ..Sampling::default() };
    let found = generate(&decoder, &request, |_, _| {}).unwrap().remove(0);
    let text: Vec<u32> = prompt.iter().chain(&found.tokens).copied().collect();
    let batch = SeqBatch::from_lengths(&[text.len()]).unwrap();
    let logits = no_grad(|| decoder.logits(&text, &batch)).unwrap();
    let logits = logits.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
    for (index, (&token, log_prob)) in found.tokens.iter().zip(&found.log_probs).enumerate() {
        let row = &logits[(prompt.len() + index - 1) * 97..][..97];
        let total = row.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        let expected = row[token as usize] - total;
        assert!((log_prob - expected).abs() < 0.03, "token {index}: {log_prob}, not {expected}");
    }
}

/// A state that was read on a GPU is saved, loaded, forked and continued.
#[test]
fn states_are_shared_saved_and_loaded() {
    let Some(device) = gpu() else { return };
    let decoder = decoder(device, DType::F32, 97);
    let prompt: Vec<u32> = (0..45).collect();
    let whole = generate(&decoder, &request(vec![prompt.clone()]), |_, _| {}).unwrap();
    let state = read(&decoder, &prompt, None, Batching::of(&decoder)).unwrap();
    let identity = danaus::model::generate::Identity::of(&decoder, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    state.save(&path, &identity).unwrap();
    let loaded = State::load(&path, &decoder, &identity).unwrap();
    for start in [state, loaded] {
        let request = Request { start: Some(start), completions: 3, ..request(vec![Vec::new()]) };
        for found in generate(&decoder, &request, |_, _| {}).unwrap() {
            assert_eq!(found.tokens, whole[0].tokens);
        }
    }
}

#[test]
fn the_invariant_level_is_refused_on_a_gpu() {
    let Some(device) = gpu() else { return };
    let decoder = decoder(device, DType::F32, 97);
    let batching = Batching { level: Level::Invariant, ..Batching::of(&decoder) };
    let requests = [request(vec![vec![1]])];
    let error = Generator::new(&decoder, &requests, batching).err().unwrap();
    assert!(error.to_string().contains("level is invariant"), "{error}");
}
