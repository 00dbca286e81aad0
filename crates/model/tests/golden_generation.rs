//! Checkpoints that other projects made, through the generator: prompts of different lengths in one
//! batch, prompts cut into pieces, texts.

use danaus_model::decoder::Compute;
use danaus_model::generate::{Batching, Completion, Generator, Request, Sampling, generate};
use danaus_model::{Decoder, Model};
use danaus_tensor::DType;
use danaus_testkit::{Golden, golden};
use std::path::{Path, PathBuf};

const MODELS: [&str; 5] = ["llama-gqa", "llama3-rope-tied-bf16", "opt", "mamba", "mamba2"];

fn folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/40-engine")).join(name)
}

fn ids(case: &Golden, name: &str) -> Vec<u32> {
    let wide = case.get(name).to_dtype(DType::I64).unwrap().to_vec::<i64>().unwrap();
    wide.into_iter().map(|id| id as u32).collect()
}

fn request(prompts: Vec<Vec<u32>>, max_tokens: usize) -> Request {
    Request { prompts, max_tokens, sampling: Sampling::greedy(), ..Request::default() }
}

fn run(decoder: &Decoder, request: Request, max_tokens: usize) -> Vec<Completion> {
    let batching = Batching { max_tokens, ..Batching::default() };
    Generator::new(decoder, &[request], batching).unwrap().run(|_, _| {}).unwrap().0
}

/// Tokens while the two best logits are at least 2e-3 apart, log-probabilities to 1e-4.
#[test]
fn a_batch_of_prompts_gives_the_original_tokens() {
    for name in MODELS {
        let model = Model::load(&folder(name), Compute::default()).unwrap();
        let case = golden("40-engine", &format!("{name}.golden"));
        let prompts = (0..3).map(|at| ids(&case, &format!("prompt_{at}"))).collect();
        let found = run(&model.decoder, request(prompts, 32), 2048);
        for (at, completion) in found.iter().enumerate() {
            let expected = ids(&case, &format!("greedy_{at}"));
            let floats = |what: &str| case.get(&format!("{what}_{at}")).to_vec::<f32>().unwrap();
            let (margins, log_probs) = (floats("greedy_margin"), floats("greedy_logprob"));
            let certain = margins.iter().position(|&margin| margin < 2e-3).unwrap_or(32);
            assert_eq!(completion.tokens[..certain], expected[..certain], "{name} {at}");
            for (found, expected) in completion.log_probs[..certain].iter().zip(log_probs) {
                assert!(
                    (found - f64::from(expected)).abs() < 1e-4,
                    "{name} {at}: {found} {expected}"
                );
            }
        }
    }
}

/// Cutting a prompt and company in the batch change no bit at the invariant level, in f32.
#[test]
fn cuts_and_company_change_no_bit() {
    for name in MODELS {
        let model = Model::load(&folder(name), Compute::default()).unwrap();
        let case = golden("40-engine", &format!("{name}.golden"));
        let prompts: Vec<Vec<u32>> = (0..3).map(|at| ids(&case, &format!("prompt_{at}"))).collect();
        let together = run(&model.decoder, request(prompts.clone(), 16), 2048);
        for (prompt, together) in prompts.into_iter().zip(together) {
            for budget in [1, 3, 7, 16, 2048] {
                let alone =
                    run(&model.decoder, request(vec![prompt.clone()], 16), budget).remove(0);
                assert_eq!(alone.tokens, together.tokens, "{name}, {budget} tokens a pass");
                assert_eq!(alone.log_probs, together.log_probs, "{name}, {budget} tokens a pass");
            }
        }
    }
}

/// From text to text, whole and in pieces.
#[test]
fn texts_equal_the_originals() {
    for name in MODELS {
        let model = Model::load(&folder(name), Compute::default()).unwrap();
        let tokenizer = model.tokenizer().unwrap();
        let file = std::fs::read_to_string(folder(&format!("{name}.text.json"))).unwrap();
        let file: serde_json::Value = serde_json::from_str(&file).unwrap();
        for case in file["greedy_text"].as_array().unwrap() {
            if case["min_margin"].as_f64().unwrap() < 2e-3 {
                continue;
            }
            let (prompt, text) = (case["prompt"].as_str().unwrap(), &case["completion"]);
            let text = text.as_str().unwrap();
            let request = Request {
                tokenizer: Some(tokenizer.clone()),
                ..request(vec![tokenizer.encode_prompt(prompt).unwrap()], 32)
            };
            let mut streamed = String::new();
            let found =
                generate(&model.decoder, &request, |_, piece| streamed += &piece.text).unwrap();
            assert_eq!(streamed, found[0].text);
            assert!(found[0].text.starts_with(text), "{name}: {:?} {text:?}", found[0].text);
        }
    }
}
