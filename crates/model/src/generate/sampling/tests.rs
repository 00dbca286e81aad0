use super::*;
use danaus_tensor::safetensors::TensorFile;
use std::path::PathBuf;

const LOGITS: [f64; 4] = [1.0, 3.0, 2.0, 0.0];

fn choose(logits: &[f64], sampling: &Sampling, history: &[u32], position: u64) -> Result<Choice> {
    let mut sampler = Sampler::new(sampling, 0);
    sampler.note(history);
    sampler.choose(logits, &[], position, 0)
}

fn shares(sampling: Sampling) -> [f64; 4] {
    let mut counts = [0.0; 4];
    let draws = 20_000;
    for position in 0..draws {
        counts[choose(&LOGITS, &sampling, &[], position).unwrap().token as usize] += 1.0;
    }
    counts.map(|count| count / draws as f64)
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/40-engine")).join(name)
}

/// Every filter and penalty, alone and together, to the last digits of f64.
#[test]
fn golden_distributions() {
    let file = TensorFile::open(golden("sampling.golden.safetensors")).unwrap();
    let cases = std::fs::read_to_string(golden("sampling.cases.json")).unwrap();
    let cases: Vec<HashMap<String, f64>> = serde_json::from_str(&cases).unwrap();
    let rows = |name: &str| file.tensor(name).unwrap().to_vec::<f64>().unwrap();
    let logits = rows("logits");
    let history = file.tensor("history").unwrap().to_vec::<i32>().unwrap();
    for (index, case) in cases.iter().enumerate() {
        let number = |name: &str, usual: f64| case.get(name).copied().unwrap_or(usual);
        let sampling = Sampling {
            temperature: number("temperature", 1.0),
            top_k: number("top_k", 0.0) as usize,
            top_p: number("top_p", 1.0),
            min_p: number("min_p", 0.0),
            typical_p: number("typical_p", 1.0),
            repetition_penalty: number("repetition_penalty", 1.0),
            presence_penalty: number("presence_penalty", 0.0) as f32,
            frequency_penalty: number("frequency_penalty", 0.0),
            ..Sampling::default()
        };
        let expected = rows(&format!("case{index}.probs"));
        for (row, expected) in expected.chunks(64).enumerate() {
            let mut sampler = Sampler::new(&sampling, 0);
            let seen: Vec<u32> = history[20 * row..][..20].iter().map(|&id| id as u32).collect();
            sampler.note(&seen);
            let mut found = vec![0.0; 64];
            for (id, probability) in sampler.distribution(&logits[64 * row..][..64]) {
                found[id as usize] = probability;
            }
            for (id, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert!((found - expected).abs() < 1e-12, "case {index}, row {row}, token {id}");
            }
        }
    }
}

#[test]
fn frequencies_match_probabilities() {
    let exact: Vec<f64> = LOGITS.iter().map(|l| (l - log_sum_exp(&LOGITS)).exp()).collect();
    for (found, exact) in shares(Sampling::default()).iter().zip(exact) {
        // Four standard deviations of 20000 draws.
        assert!((found - exact).abs() < 4.0 * (exact * (1.0 - exact) / 20_000.0).sqrt());
    }
}

#[test]
fn filters_keep_the_right_tokens() {
    let base = Sampling::default;
    let kept = |sampling| shares(sampling).map(|share| share > 0.0);
    assert_eq!(kept(Sampling { top_k: 2, ..base() }), [false, true, true, false]);
    assert_eq!(kept(Sampling { top_p: 0.6, ..base() }), [false, true, false, false]);
    assert_eq!(kept(Sampling { top_p: 0.7, ..base() }), [false, true, true, false]);
    assert_eq!(kept(Sampling { min_p: 0.2, ..base() }), [false, true, true, false]);
    let bias = vec![(3, 100.0)];
    assert_eq!(kept(Sampling { logit_bias: bias, ..base() }), [false, false, false, true]);
}

/// Selection against sorting, with many equal scores.
#[test]
fn the_best_are_those_of_a_sort() {
    let rng = Rng::new(3, 0);
    for round in 0..300 {
        let length = 1 + rng.words(round)[0] as usize % 400;
        let level = |at: usize| f64::from(rng.words(1000 + (at as u64) * 300 + round)[0] % 50);
        let scores: Vec<f64> = (0..length).map(level).collect();
        let mut sorted: Vec<(u32, f64)> = (0..).zip(scores.iter().copied()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for count in [0, 1, 2, 7, 50, length, length + 3] {
            assert_eq!(best(&scores, count), sorted[..count.min(length)]);
        }
    }
}

/// The nucleus of a flat distribution is larger than the first guess.
#[test]
fn a_large_nucleus_is_found() {
    let sampling = Sampling { top_p: 0.5, ..Sampling::default() };
    let kept = Sampler::new(&sampling, 0).distribution(&[0.0; 4000]);
    assert_eq!(kept.len(), 2000);
    assert!(kept.iter().enumerate().all(|(at, (id, _))| at == *id as usize), "lower ids first");
}

#[test]
fn greedy_ties_penalties_and_log_probability() {
    let choice = choose(&LOGITS, &Sampling::greedy(), &[], 0).unwrap();
    assert_eq!(choice.token, 1);
    assert!((choice.log_prob - (3.0 - log_sum_exp(&LOGITS))).abs() < 1e-12);
    assert_eq!(choose(&[1.0, 5.0, 5.0], &Sampling::greedy(), &[], 0).unwrap().token, 1);
    let penalised = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
    let choice = choose(&LOGITS, &penalised, &[1, 1], 0).unwrap();
    assert_eq!(choice.token, 2);
    assert!((choice.log_prob - (2.0 - log_sum_exp(&LOGITS))).abs() < 1e-12, "of the model itself");
    let sampler = Sampler::new(&Sampling::greedy(), 0);
    let choice = sampler.choose(&LOGITS, &[1], 0, 2).unwrap();
    assert_eq!((choice.token, choice.top[0].0, choice.top[1].0), (2, 1, 2));
    assert!(sampler.choose(&LOGITS, &[0, 1, 2, 3], 0, 0).is_err());
}

#[test]
fn draws_depend_on_seed_stream_and_position_alone() {
    let flat = [0.0; 1000];
    let token = |seed, stream, position| {
        let sampling = Sampling { seed, ..Sampling::default() };
        Sampler::new(&sampling, stream).choose(&flat, &[], position, 0).unwrap().token
    };
    assert_eq!(token(5, 1, 9), token(5, 1, 9));
    let others = [token(6, 1, 9), token(5, 2, 9), token(5, 1, 10)];
    assert!(others.iter().all(|&other| other != token(5, 1, 9)), "{others:?}");
    // Filters that keep everything change nothing.
    let base = Sampling { seed: 5, ..Sampling::default() };
    for kept in [
        Sampling { top_k: 999_999, ..base.clone() },
        Sampling { min_p: 1e-9, ..base.clone() },
        Sampling { top_p: 1.0 - 1e-12, ..base.clone() },
    ] {
        let found = Sampler::new(&kept, 1).choose(&flat, &[], 9, 0).unwrap();
        assert_eq!(found.token, token(5, 1, 9));
    }
}

#[test]
fn bad_parameters_are_named() {
    let message = |sampling: Sampling| sampling.check(4).unwrap_err().to_string();
    let base = Sampling::default;
    assert!(message(Sampling { temperature: -1.0, ..base() }).starts_with("temperature is -1"));
    assert!(
        message(Sampling { temperature: f64::NAN, ..base() }).starts_with("temperature is NaN")
    );
    assert!(message(Sampling { top_p: 0.0, ..base() }).starts_with("top_p"));
    assert!(message(Sampling { top_p: f64::NAN, ..base() }).starts_with("top_p"));
    assert!(message(Sampling { min_p: 2.0, ..base() }).starts_with("min_p"));
    assert!(message(Sampling { typical_p: 0.0, ..base() }).starts_with("typical_p"));
    assert!(message(Sampling { repetition_penalty: 0.0, ..base() }).contains("1 is off"));
    assert!(message(Sampling { presence_penalty: f32::NAN, ..base() }).starts_with("presence"));
    let infinite = Sampling { frequency_penalty: f64::INFINITY, ..base() };
    assert!(message(infinite).starts_with("frequency_penalty"));
    let beyond = Sampling { logit_bias: vec![(4, 1.0)], ..base() };
    assert_eq!(message(beyond), "logit_bias token id is 4, valid is 0..4");
    assert!(message(Sampling { logit_bias: vec![(1, f64::NAN)], ..base() }).contains("logit_bias"));
    assert!(choose(&[f64::NAN, 1.0], &base(), &[], 0).is_err());
}
