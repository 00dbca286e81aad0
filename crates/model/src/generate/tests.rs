//! Generation through states equals generation by recomputing everything; batches, chunks, files and
//! conversations change nothing.

use super::*;
use crate::decoder::Compute;
use crate::presets;
use danaus_matrix::SeqBatch;
use danaus_tensor::DType;
use danaus_text::chat::{ChatTemplate, Message, Role};
use std::path::{Path, PathBuf};

fn model(vocab: usize, layers: &str, dtype: DType) -> Decoder {
    let mut config = presets::quickstart(vocab);
    config.d_model = 32;
    config.layers = layers.into();
    config.max_positions = 256;
    if let Some(mamba2) = &mut config.mamba2 {
        mamba2.head_dim = 16;
        mamba2.d_state = 8;
    }
    Decoder::init(&config, 3, Compute::new(dtype)).unwrap()
}

fn tiny() -> Decoder {
    model(50, "MMAM", DType::F64)
}

fn request(prompts: &[&[u32]], sampling: Sampling) -> Request {
    Request {
        prompts: prompts.iter().map(|prompt| prompt.to_vec()).collect(),
        max_tokens: 12,
        sampling,
        ..Request::default()
    }
}

fn warm(seed: u64) -> Sampling {
    Sampling { temperature: 0.8, top_k: 20, seed, ..Sampling::default() }
}

fn tokens(completions: &[Completion]) -> Vec<Vec<u32>> {
    completions.iter().map(|completion| completion.tokens.clone()).collect()
}

fn all(decoder: &Decoder, request: &Request) -> Vec<Completion> {
    generate(decoder, request, |_, _| {}).unwrap()
}

fn golden(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/40-engine")).join(name)
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&golden("llama-gqa")).unwrap()
}

#[test]
fn states_and_recomputation_agree() {
    let decoder = tiny();
    let prompt = [5u32, 17, 3];
    let request = Request { top_log_probs: 3, ..request(&[&prompt], Sampling::greedy()) };
    let found = &all(&decoder, &request)[0];
    let mut text = prompt.to_vec();
    for (at, (&token, &log_prob)) in found.tokens.iter().zip(&found.log_probs).enumerate() {
        let batch = SeqBatch::from_lengths(&[text.len()]).unwrap();
        let logits = decoder.logits(&text, &batch).unwrap();
        let last = logits.select(0, text.len() - 1).unwrap().to_vec::<f64>().unwrap();
        let expected = Sampler::new(&Sampling::greedy(), 0).choose(&last, &[], 0, 3).unwrap();
        assert_eq!(token, expected.token);
        assert!((log_prob - expected.log_prob).abs() < 1e-9);
        assert_eq!(found.top_log_probs[at][0].0, token);
        assert!(found.top_log_probs[at].is_sorted_by(|a, b| a.1 >= b.1));
        text.push(token);
    }
    assert_eq!((found.tokens.len(), found.finish), (12, Finish::Length));
}

/// Different lengths and seeds, more texts than places, and a budget that cuts the prompts: every text
/// is the one it is alone.
#[test]
fn neighbours_places_and_chunks_change_nothing() {
    let decoder = tiny();
    let prompts: [&[u32]; 5] = [&[1, 2, 3, 4], &[7], &[9, 9], &[8; 40], &[7]];
    let requests: Vec<Request> = prompts
        .iter()
        .zip([9, 9, 4, 5, 9])
        .map(|(prompt, seed)| Request { completions: 2, ..request(&[prompt], warm(seed)) })
        .collect();
    let alone: Vec<Completion> = requests.iter().flat_map(|one| all(&decoder, one)).collect();
    for (max_sequences, max_tokens) in [(32, 2048), (3, 2048), (1, 5), (4, 1), (32, 7)] {
        let batching = Batching { max_sequences, max_tokens, ..Batching::default() };
        let mut seen = vec![Vec::new(); 10];
        let generator = Generator::new(&decoder, &requests, batching).unwrap();
        let (together, timings) =
            generator.run(|index, piece| seen[index].extend(piece.token)).unwrap();
        assert_eq!(tokens(&together), tokens(&alone), "{batching:?}");
        assert_eq!(tokens(&together), seen);
        assert_eq!(timings.prompt_tokens, 48, "prompts are read once for both completions");
    }
    assert_eq!(alone[2].tokens, alone[8].tokens, "equal prompts and seeds, equal texts");
    assert_ne!(alone[2].tokens, alone[3].tokens, "completions draw from streams of their own");
}

/// f32 at the invariant level, with all kernels: cutting a prompt, company in the batch, and a file in
/// between change no bit of any log-probability.
#[test]
fn cuts_and_company_change_no_bit() {
    let prompt: Vec<u32> = (0..70).map(|at| (at * 37 + 5) % 384).collect();
    for layers in ["AA", "MM", "MMAM"] {
        let decoder = model(384, layers, DType::F32);
        let alone = all(&decoder, &request(&[&prompt], warm(1))).remove(0);
        for max_tokens in [1, 3, 7, 16, 64] {
            let batching = Batching { max_tokens, ..Batching::default() };
            let requests = [request(&[&prompt], warm(1))];
            let generator = Generator::new(&decoder, &requests, batching).unwrap();
            let cut = generator.run(|_, _| {}).unwrap().0.remove(0);
            assert_eq!(cut.log_probs, alone.log_probs, "{layers} in pieces of {max_tokens}");
        }
        for others in [1, 2, 4, 9] {
            let company: Vec<Vec<u32>> =
                (0..others).map(|at| vec![at + 1; 5 + 11 * at as usize]).collect();
            let prompts: Vec<&[u32]> =
                std::iter::once(&prompt[..]).chain(company.iter().map(Vec::as_slice)).collect();
            let together = all(&decoder, &request(&prompts, warm(1))).remove(0);
            assert_eq!(together.log_probs, alone.log_probs, "{layers} beside {others}");
        }
    }
}

#[test]
fn stop_tokens_end_a_text_and_bad_requests_are_refused() {
    let decoder = tiny();
    let mut request = request(&[&[5, 17, 3]], Sampling::greedy());
    let whole = all(&decoder, &request).remove(0);
    let stop = whole.tokens[4];
    let first = whole.tokens.iter().position(|&token| token == stop).unwrap();
    request.stop = vec![stop];
    let cut = all(&decoder, &request).remove(0);
    assert_eq!(cut.tokens, whole.tokens[..first]);
    assert_eq!((cut.finish, whole.finish), (Finish::Stop, Finish::Length));
    request.min_tokens = 12;
    let later = all(&decoder, &request).remove(0);
    assert_eq!((later.tokens.len(), later.finish), (12, Finish::Length));
    assert!(!later.tokens.contains(&stop));
    let message = |change: &dyn Fn(&mut Request)| {
        let mut bad = request.clone();
        change(&mut bad);
        generate(&decoder, &bad, |_, _| {}).unwrap_err().to_string()
    };
    let long = message(&|bad| bad.prompts = vec![vec![1; 250]]);
    assert!(
        long.contains("250 tokens and 12 to generate") && long.contains("at most 256"),
        "{long}"
    );
    assert!(message(&|bad| bad.prompts = vec![vec![]]).contains("at least one token"));
    assert!(message(&|bad| bad.prompts = vec![vec![50]]).contains("token id is 50"));
    assert!(message(&|bad| bad.min_tokens = 13).contains("min_tokens"));
    assert!(message(&|bad| bad.stop = vec![50]).contains("stop token id is 50"));
    assert!(message(&|bad| bad.completions = 0).contains("completions"));
    assert!(message(&|bad| bad.top_log_probs = 99).contains("top_log_probs"));
    assert!(message(&|bad| bad.stop_strings = vec!["x".into()]).contains("without a tokenizer"));
    assert!(message(&|bad| bad.sampling.logit_bias = vec![(50, 1.0)]).contains("0..50"));
    let none = Batching { max_sequences: 0, ..Batching::default() };
    assert!(Generator::new(&decoder, &[], none).is_err());
}

/// Streamed pieces, the final text and a plain search of the decoded tokens agree.
#[test]
fn stop_strings_cut_the_text_where_a_search_would() {
    let tokenizer = tokenizer();
    let decoder = model(384, "MA", DType::F32);
    let base = Request {
        max_tokens: 60,
        vocab_size: tokenizer.vocab_size(),
        tokenizer: Some(tokenizer.clone()),
        ..request(&[&[40, 50], &[90]], Sampling { seed: 2, ..Sampling::default() })
    };
    let whole = all(&decoder, &base);
    for completion in &whole {
        assert_eq!(completion.text, tokenizer.decode(&completion.tokens, true).unwrap());
    }
    let letters: Vec<char> = whole[0].text.chars().collect();
    for start in [3, 11, 20] {
        let strings: Vec<String> = vec![letters[start..start + 3].iter().collect(), "\u{0}".into()];
        let mut streamed = vec![String::new(); 2];
        let stopping = Request { stop_strings: strings.clone(), ..base.clone() };
        let found =
            generate(&decoder, &stopping, |index, piece| streamed[index] += &piece.text).unwrap();
        for (index, completion) in found.iter().enumerate() {
            assert_eq!(completion.text, streamed[index]);
            let hit = strings.iter().filter_map(|string| whole[index].text.find(string)).min();
            assert_eq!(
                completion.text,
                whole[index].text[..hit.unwrap_or(whole[index].text.len())]
            );
            let finish = if hit.is_some() { Finish::StopString } else { Finish::Length };
            assert_eq!(completion.finish, finish);
        }
        assert_eq!(found[0].finish, Finish::StopString);
    }
}

/// f32, file in between: the same tokens and log-probabilities to the last bit.
#[test]
fn a_saved_state_continues_bit_for_bit() {
    let tokenizer = tokenizer();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let prompt: Vec<u32> = (3..40).collect();
    for layers in ["MMAM", "AA", "MM"] {
        let decoder = model(384, layers, DType::F32);
        let identity = Identity::of(&decoder, Some(&tokenizer)).unwrap();
        let expected = all(&decoder, &request(&[&prompt], warm(1))).remove(0);
        let state = read(&decoder, &prompt, None, Batching::default()).unwrap();
        state.save(&path, &identity).unwrap();
        let loaded = State::load(&path, &decoder, &identity).unwrap();
        assert_eq!(loaded.tokens(), prompt);
        for start in [state, loaded] {
            let go_on = Request { start: Some(start.clone()), ..request(&[&[]], warm(1)) };
            let found = all(&decoder, &go_on).remove(0);
            assert_eq!(found.tokens, expected.tokens, "{layers}");
            assert_eq!(found.log_probs, expected.log_probs, "{layers}");
            // And with more to read first, from the same state twice in one batch.
            let more = Request { start: Some(start), ..request(&[&[7, 8], &[7, 8]], warm(1)) };
            let found = all(&decoder, &more);
            assert_eq!(found[0].log_probs, found[1].log_probs);
        }
        let mut other = identity;
        other.tokenizer = None;
        let message = State::load(&path, &decoder, &other).unwrap_err().to_string();
        assert!(message.contains("another tokenizer"), "{message}");
        let foreign = Decoder::init(decoder.config(), 4, Compute::default()).unwrap();
        let identity = Identity::of(&foreign, Some(&tokenizer)).unwrap();
        let message = State::load(&path, &foreign, &identity).unwrap_err().to_string();
        assert!(message.contains("another model"), "{message}");
    }
    std::fs::write(&path, "nonsense").unwrap();
    let decoder = tiny();
    let identity = Identity::of(&decoder, None).unwrap();
    assert!(State::load(&path, &decoder, &identity).is_err());
}

/// A finished sequence's state goes on as if it had not been interrupted.
#[test]
fn an_interrupted_text_goes_on() {
    let decoder = tiny();
    let expected = all(&decoder, &Request { max_tokens: 30, ..request(&[&[5, 6]], warm(3)) });
    let first = Request { keep_states: true, ..request(&[&[5, 6]], warm(3)) };
    let half = all(&decoder, &first).remove(0);
    let state = half.state.unwrap();
    assert_eq!(state.tokens().len(), 2 + 11, "the last token is not read yet");
    let last = half.tokens[11];
    let rest = Request { start: Some(state), max_tokens: 18, ..request(&[&[last]], warm(3)) };
    let rest = all(&decoder, &rest).remove(0);
    assert_eq!([half.tokens, rest.tokens].concat(), expected[0].tokens);
}

#[test]
fn a_chat_reads_only_what_is_new() {
    let tokenizer = tokenizer();
    let decoder = model(384, "MAM", DType::F64);
    let template = ChatTemplate::of(&tokenizer, "default").unwrap();
    let options = Request {
        max_tokens: 8,
        stop: vec![2],
        vocab_size: tokenizer.vocab_size(),
        ..request(&[], warm(5))
    };
    let begin = || {
        let system = Some("Be brief.".to_string());
        Chat::new(&decoder, &tokenizer, template.clone(), options.clone(), system)
    };
    let mut chat = begin();
    let mut shown = String::new();
    let first = chat.say("Hi", |text| shown += text).unwrap();
    assert_eq!((shown, first.new_tokens), (first.completion.text.clone(), first.prompt_tokens));
    let second = chat.say("And?", |_| {}).unwrap();
    assert_eq!(chat.messages().len(), 5);
    assert_eq!(chat.messages()[2].text(), first.completion.text);
    if first.completion.text == first.completion.text.trim() {
        let before = first.prompt_tokens + first.completion.tokens.len();
        assert!(second.prompt_tokens - before + 1 >= second.new_tokens, "{second:?}");
    }
    // The same answer as from nothing.
    let tokens = chat.said.1.clone();
    let prompt = &tokens[..tokens.len() - second.completion.tokens.len()];
    let afresh = all(&decoder, &Request { prompts: vec![prompt.to_vec()], ..options.clone() });
    assert_eq!(afresh[0].tokens, second.completion.tokens);
    // A refused turn leaves the conversation as it was; a reset begins again.
    let long = "word ".repeat(300);
    let message = chat.say(&long, |_| {}).unwrap_err().to_string();
    assert!(message.contains("conversation is") && message.contains("max_positions"), "{message}");
    assert_eq!(chat.messages().len(), 5);
    chat.reset();
    assert_eq!(chat.messages().len(), 1);
    let again = chat.say("Hi", |_| {}).unwrap();
    assert_eq!(again.completion.tokens, first.completion.tokens);
    assert_eq!(begin().messages()[0].role(), Role::System);
    let refused =
        ChatTemplate::new("{{ raise_exception('not now') }}", tokenizer.settings()).unwrap();
    let mut chat = Chat::new(&decoder, &tokenizer, refused, options.clone(), None);
    assert_eq!(chat.say("Hi", |_| {}).unwrap_err().to_string(), "not now");
    assert!(Message::new(Role::User, "a").text() == "a");
}
