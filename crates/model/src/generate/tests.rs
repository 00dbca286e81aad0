//! Generation through states equals generation by recomputing everything.

use super::*;
use crate::decoder::Compute;
use crate::presets;

fn tiny() -> Decoder {
    let mut config = presets::quickstart(50);
    config.d_model = 32;
    config.max_positions = 64;
    if let Some(mamba2) = &mut config.mamba2 {
        mamba2.head_dim = 16;
        mamba2.d_state = 8;
    }
    Decoder::init(&config, 3, Compute { dtype: DType::F64, recompute: false }).unwrap()
}

fn request(prompts: &[&[u32]], sampling: Sampling) -> Request {
    Request {
        prompts: prompts.iter().map(|prompt| prompt.to_vec()).collect(),
        max_tokens: 12,
        sampling,
        stop: vec![],
        vocab_size: 50,
    }
}

#[test]
fn states_and_recomputation_agree() {
    let decoder = tiny();
    let prompt = [5u32, 17, 3];
    let request = request(&[&prompt], Sampling::greedy());
    let found = &generate(&decoder, &request, |_, _| {}).unwrap()[0];
    let mut text = prompt.to_vec();
    for (&token, &log_prob) in found.tokens.iter().zip(&found.log_probs) {
        let batch = SeqBatch::from_lengths(&[text.len()]).unwrap();
        let logits = decoder.logits(&text, &batch).unwrap();
        let last = logits.select(0, text.len() - 1).unwrap().to_vec::<f64>().unwrap();
        let (expected, exact) = choose(&last, &Sampling::greedy(), &text, 0, 0).unwrap();
        assert_eq!(token, expected);
        assert!((log_prob - exact).abs() < 1e-9);
        text.push(token);
    }
    assert_eq!(found.tokens.len(), 12);
}

#[test]
fn neighbours_change_nothing() {
    let decoder = tiny();
    let sampling = Sampling { temperature: 0.8, top_k: 20, seed: 9, ..Sampling::default() };
    let prompts: [&[u32]; 3] = [&[1, 2, 3, 4], &[7], &[9, 9]];
    let mut seen = vec![Vec::new(); 3];
    let all = generate(&decoder, &request(&prompts, sampling), |index, token| {
        seen[index].push(token);
    })
    .unwrap();
    for (completion, seen) in all.iter().zip(&seen) {
        assert_eq!(&completion.tokens, seen);
    }
    // The first sequence draws from stream 0 whether or not others follow.
    let alone = generate(&decoder, &request(&prompts[..1], sampling), |_, _| {}).unwrap();
    assert_eq!(alone[0].tokens, all[0].tokens);
}

#[test]
fn stop_tokens_end_a_text_and_bad_requests_are_refused() {
    let decoder = tiny();
    let mut request = request(&[&[5, 17, 3]], Sampling::greedy());
    let whole = generate(&decoder, &request, |_, _| {}).unwrap().remove(0);
    let stop = whole.tokens[4];
    let first = whole.tokens.iter().position(|&token| token == stop).unwrap();
    request.stop = vec![stop];
    let cut = generate(&decoder, &request, |_, _| {}).unwrap().remove(0);
    assert_eq!(cut.tokens, whole.tokens[..first]);
    assert!(cut.stopped && !whole.stopped);
    let message =
        |request: &Request| generate(&decoder, request, |_, _| {}).unwrap_err().to_string();
    request.prompts = vec![vec![1; 60]];
    assert!(message(&request).contains("at most 64 together"));
    request.prompts = vec![vec![]];
    assert!(message(&request).contains("at least one token"));
    request.prompts = vec![vec![50]];
    assert!(message(&request).contains("token id is 50"));
}
