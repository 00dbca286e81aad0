//! Logits of another library's Mamba models, with and without padding on the left, and its greedy tokens.
//!
//! The library computes parts in single precision: its values are good to 2e-4.

use danaus_matrix::mixer::{Mamba1Config, Mamba2Config};
use danaus_model::config::Config;
use danaus_model::decoder::{Compute, Decoder};
use danaus_model::eval;
use danaus_model::generate::{Request, Sampling, generate};
use danaus_tensor::{DType, Device, ParamBuilder, Tensor};
use danaus_testkit::{assert_close, golden};
use std::collections::BTreeMap;
use std::sync::Arc;

const SYSTEM: &str = "12-mamba2-ssd";
const TOLERANCE: f64 = 2e-4;

fn config(name: &str) -> Config {
    let first = name == "hf_mamba1";
    Config {
        max_positions: 64,
        mamba2: Some(Mamba2Config {
            d_state: 8,
            head_dim: 8,
            n_groups: 2,
            chunk_size: 8,
            ..Mamba2Config::default()
        }),
        mamba1: Some(Mamba1Config { d_state: 4, ..Mamba1Config::default() }),
        tied_head: first,
        ..Config::bare(48, 16, if first { "SS" } else { "MM" })
    }
}

fn published(name: &str) -> String {
    match name {
        "embedding.weight" => "backbone.embeddings.weight".into(),
        "norm.weight" => "backbone.norm_f.weight".into(),
        "head.weight" => "lm_head.weight".into(),
        layer => format!("backbone.{layer}"),
    }
}

fn load(name: &str) -> Decoder {
    let weights = golden(SYSTEM, &format!("{name}/model"));
    let (config, compute) = (config(name), Compute::new(DType::F64));
    let empty = Decoder::init(&config, 0, compute).unwrap();
    let named = empty
        .params()
        .iter()
        .map(|param| (param.name().to_string(), weights.get(&published(param.name())).clone()));
    let source: BTreeMap<String, Tensor> = named.collect();
    assert_eq!(source.len(), weights.names().count(), "every tensor has its place");
    let params = ParamBuilder::load(Arc::new(source), DType::F64, Device::Cpu);
    Decoder::build(&params, &config, compute).unwrap()
}

fn only_logits(decoder: &Decoder, ids: &Tensor, mask: Option<&Tensor>) -> Tensor {
    eval::logits(decoder, ids, mask, false).unwrap().remove(0).1
}

#[test]
fn logits_are_the_librarys() {
    for name in ["hf_mamba1", "hf_mamba2"] {
        let (decoder, case) = (load(name), golden(SYSTEM, &format!("{name}/expected")));
        let logits = only_logits(&decoder, case.get("input_ids"), None);
        assert_close(name, &logits, case.get("logits"), TOLERANCE);
    }
}

/// Padding on the left changes nothing: its tokens are dropped. What the library computes at the
/// padding's places means nothing and is zero here.
#[test]
fn left_padding_is_dropped() {
    for name in ["hf_mamba1", "hf_mamba2"] {
        let (decoder, case) = (load(name), golden(SYSTEM, &format!("{name}/expected")));
        let mask = case.get("attention_mask_left_padded");
        let logits = only_logits(&decoder, case.get("input_ids"), Some(mask));
        let real = mask.to_dtype(DType::F64).unwrap().unsqueeze(2).unwrap();
        assert!(real.sum_all().unwrap().to_scalar().unwrap() < real.elem_count() as f64);
        let expected = case.get("logits_left_padded").to_dtype(DType::F64).unwrap();
        assert_close(name, &logits, &expected.mul(&real).unwrap(), TOLERANCE);
    }
}

#[test]
fn greedy_tokens_are_the_librarys() {
    for name in ["hf_mamba1", "hf_mamba2"] {
        let (decoder, case) = (load(name), golden(SYSTEM, &format!("{name}/expected")));
        let expected = case.get("greedy_from_7").to_vec::<i64>().unwrap();
        let ids: Vec<u32> = expected.iter().map(|&id| id as u32).collect();
        let request = Request {
            prompts: vec![ids[..7].to_vec()],
            max_tokens: ids.len() - 7,
            sampling: Sampling::greedy(),
            vocab_size: 48,
            ..Request::default()
        };
        let found = generate(&decoder, &request, |_, _| {}).unwrap().remove(0);
        assert_eq!(found.tokens, ids[7..], "{name}");
    }
}
