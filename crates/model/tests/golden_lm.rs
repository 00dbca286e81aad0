//! The authors' Mamba-1 and Mamba-2 language models: logits, loss, gradients and greedy tokens in f64.

use danaus_kernel::ops::cross_entropy::{Options, cross_entropy};
use danaus_matrix::SeqBatch;
use danaus_matrix::mixer::{Mamba1Config, Mamba2Config};
use danaus_model::config::Config;
use danaus_model::decoder::{Compute, Decoder};
use danaus_model::generate::{Request, Sampling, generate};
use danaus_tensor::{DType, Device, ParamBuilder, Tensor};
use danaus_testkit::{Golden, assert_close, golden};
use std::collections::BTreeMap;
use std::sync::Arc;

const CASES: [&str; 2] = ["lm_mamba1", "lm_mamba2"];

fn config(case: &str) -> Config {
    Config {
        max_positions: 64,
        mamba2: Some(Mamba2Config {
            d_state: 8,
            head_dim: 8,
            chunk_size: 8,
            ..Mamba2Config::default()
        }),
        mamba1: Some(Mamba1Config { d_state: 4, ..Mamba1Config::default() }),
        tied_head: true,
        ..Config::bare(32, 16, if case == "lm_mamba1" { "SS" } else { "MM" })
    }
}

/// The published name of one of our parameters.
fn published(name: &str) -> String {
    match name {
        "embedding.weight" | "norm.weight" => {
            let rest = if name == "norm.weight" { "norm_f.weight" } else { name };
            format!("backbone.{rest}")
        }
        layer => format!("backbone.{layer}"),
    }
}

fn load(name: &str, case: &Golden) -> Decoder {
    let (config, compute) = (config(name), Compute::new(DType::F64));
    let empty = Decoder::init(&config, 0, compute).unwrap();
    let named = empty.params().iter().map(|param| {
        (param.name().to_string(), case.get(&format!("param.{}", published(param.name()))).clone())
    });
    let source: BTreeMap<String, Tensor> = named.collect();
    let params = ParamBuilder::load(Arc::new(source), DType::F64, Device::Cpu);
    Decoder::build(&params, &config, compute).unwrap()
}

fn ids(case: &Golden) -> Vec<u32> {
    let ids = case.get("input_ids").to_vec::<i64>().unwrap();
    ids.into_iter().map(|id| id as u32).collect()
}

#[test]
fn golden_logits_loss_and_gradients() {
    CASES.into_iter().for_each(check_training);
}

fn check_training(name: &str) {
    let case = golden("12-mamba2-ssd", name);
    let (decoder, ids) = (load(name, &case), ids(&case));
    let batch = SeqBatch::equal(2, 14).unwrap();
    let logits = decoder.logits(&ids, &batch).unwrap();
    assert_close("logits", &logits, &case.get("logits").flatten(0, 1).unwrap(), 1e-10);
    let mut targets: Vec<i64> = ids.iter().skip(1).map(|&id| i64::from(id)).collect();
    targets.push(-100);
    targets[13] = -100; // the last token of the first row predicts nothing
    let labels = Tensor::from_slice(&targets, [28], &Device::Cpu).unwrap();
    let (plain, _) = cross_entropy(&logits, &labels, Options::default()).unwrap();
    let loss = decoder.loss(&ids, &targets, &batch).unwrap();
    assert_close("fused loss", &loss, &plain, 1e-12);
    assert_close("loss", &loss, case.get("loss"), 1e-10);
    let mut gradients = loss.backward().unwrap();
    for param in decoder.params().iter() {
        let expected = case.get(&format!("grad.{}", published(param.name())));
        let found = param.take_grad(&mut gradients).unwrap();
        assert_close(param.name(), &found, expected, 1e-9);
    }
}

#[test]
fn golden_greedy_tokens() {
    CASES.into_iter().for_each(check_greedy);
}

fn check_greedy(name: &str) {
    let case = golden("12-mamba2-ssd", name);
    let (decoder, ids) = (load(name, &case), ids(&case));
    let expected = case.get("greedy_from_6").to_vec::<i64>().unwrap();
    let request = Request {
        prompts: vec![ids[..6].to_vec()],
        max_tokens: expected.len() - 6,
        sampling: Sampling::greedy(),
        stop: vec![],
        vocab_size: 32,
        ..Request::default()
    };
    let found = generate(&decoder, &request, |_, _| {}).unwrap().remove(0);
    let found: Vec<i64> = found.tokens.iter().map(|&token| i64::from(token)).collect();
    assert_eq!(found, expected[6..]);
}
