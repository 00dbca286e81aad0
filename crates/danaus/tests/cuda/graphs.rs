//! Decoding steps as graphs: replays against the same steps launch by launch. The bits are the same, so
//! texts, log-probabilities and states are compared without tolerance.

use crate::gpu;
use danaus::matrix::mixer::{AttentionConfig, LinearAttentionConfig, Mamba1Config, Mamba2Config};
use danaus::model::config::{Config, MlpConfig};
use danaus::model::decoder::{Compute, Decoder};
use danaus::model::generate::{
    Batching, Completion, Generator, GraphUse, Request, Sampling, generate, read,
};
use danaus::tensor::{DType, Device};

const VOCAB: usize = 97;

/// Three layers of the kinds that letters name.
fn config(layers: &str) -> Config {
    Config {
        max_positions: 2048,
        attention: Some(AttentionConfig {
            n_heads: 4,
            n_kv_heads: Some(2),
            head_dim: Some(64),
            rope_theta: Some(10_000.0),
            window: layers.contains('W').then_some(200),
            ..AttentionConfig::default()
        })
        .filter(|_| layers.contains(['A', 'W'])),
        mamba1: layers.contains('S').then(Mamba1Config::default),
        mamba2: layers.contains('M').then(|| Mamba2Config {
            d_state: 64,
            head_dim: 32,
            ..Mamba2Config::default()
        }),
        linear_attention: layers
            .contains(['L', 'R', 'G'])
            .then(|| LinearAttentionConfig { n_heads: 2, ..LinearAttentionConfig::default() }),
        mlp: MlpConfig::Gated { d_ff: 192, activation: "silu".into(), bias: false },
        ..Config::bare(VOCAB, 128, layers)
    }
}

fn decoder(device: Device, layers: &str, dtype: DType) -> Decoder {
    let compute = Compute { device, ..Compute::new(dtype) };
    Decoder::init(&config(layers), 3, compute).unwrap()
}

fn prompt(length: usize, seed: usize) -> Vec<u32> {
    (0..length).map(|at| ((at * 7 + seed * 13) % VOCAB) as u32).collect()
}

fn run(decoder: &Decoder, requests: &[Request], graph: bool) -> (Vec<Completion>, GraphUse) {
    let batching = Batching { graph, ..Batching::of(decoder) };
    let generator = Generator::new(decoder, requests, batching).unwrap();
    let (completions, timings) = generator.run(|_, _| {}).unwrap();
    (completions, timings.graph)
}

fn assert_equal(what: &str, found: &[Completion], expected: &[Completion]) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.tokens, expected.tokens, "{what}, text {index}");
        assert_eq!(found.log_probs, expected.log_probs, "{what}, text {index}");
    }
}

/// Both ways, and how the recorded one went.
fn compare(what: &str, decoder: &Decoder, requests: &[Request]) -> (Vec<Completion>, GraphUse) {
    let (expected, launched) = run(decoder, requests, false);
    let (found, used) = run(decoder, requests, true);
    assert_eq!((launched.replayed, launched.refused.as_deref()), (0, Some("off")), "{what}");
    assert_equal(what, &found, &expected);
    assert_eq!(used.refused, None, "{what}");
    (found, used)
}

fn request(prompts: Vec<Vec<u32>>, max_tokens: usize) -> Request {
    Request { prompts, max_tokens, sampling: Sampling::greedy(), ..Request::default() }
}

#[test]
fn replays_have_the_bits_of_launches() {
    let Some(device) = gpu() else { return };
    for layers in ["AAA", "WAW", "SSS", "MMM", "MAM", "SAMA"] {
        for dtype in [DType::BF16, DType::F32] {
            let decoder = decoder(device, layers, dtype);
            for batch in [1, 2, 5] {
                let prompts = (0..batch).map(|b| prompt(3 + 20 * b, b)).collect();
                let what = format!("{layers}, {dtype}, {batch} at a time");
                let (_, used) = compare(&what, &decoder, &[request(prompts, 40)]);
                // One step by launches, one rehearsed, all others replayed; the first token is the prompt's.
                let expected = GraphUse { replayed: 37, launched: 2, recorded: 1, refused: None };
                assert_eq!(used, expected, "{what}");
            }
        }
    }
}

/// Layers whose states count tokens.
#[test]
fn linear_attention_is_replayed_too() {
    let Some(device) = gpu() else { return };
    for layers in ["LL", "RR", "GG", "RAG"] {
        let decoder = decoder(device, layers, DType::F32);
        for batch in [1, 3] {
            let prompts = (0..batch).map(|b| prompt(3 + 20 * b, b)).collect();
            let (_, used) = compare(layers, &decoder, &[request(prompts, 30)]);
            assert_eq!((used.replayed, used.recorded), (27, 1), "{layers}");
        }
    }
}

/// Texts that outgrow the room of their page tables (512 tokens) and the arenas of their caches.
#[test]
fn caches_grow_past_their_buckets() {
    let Some(device) = gpu() else { return };
    for layers in ["AA", "AM"] {
        let decoder = decoder(device, layers, DType::BF16);
        for batch in [1, 3] {
            let prompts = (0..batch).map(|b| prompt(470 + b, b)).collect();
            let what = format!("{layers}, {batch} at a time");
            let (_, used) = compare(&what, &decoder, &[request(prompts, 200)]);
            assert!(used.recorded >= 2 && used.replayed > 180, "{what}: {used:?}");
        }
    }
}

/// Sampling reads all scores; texts end one after the other, so that batches shrink and fill again.
#[test]
fn batches_change_and_texts_are_sampled() {
    let Some(device) = gpu() else { return };
    for layers in ["AMA", "SSS"] {
        let decoder = decoder(device, layers, DType::BF16);
        let requests: Vec<Request> = (0..7)
            .map(|index| Request {
                sampling: Sampling { temperature: 0.9, seed: index, ..Sampling::default() },
                completions: 1 + index as usize % 2,
                ..request(vec![prompt(5 + index as usize, 1)], 12 + 9 * index as usize)
            })
            .collect();
        let (_, used) = compare(layers, &decoder, &requests);
        assert!(used.recorded >= 3 && used.replayed > 20, "{used:?}");
        let few = Batching { max_sequences: 2, ..Batching::of(&decoder) };
        let texts = |graph| {
            let batching = Batching { graph, ..few };
            Generator::new(&decoder, &requests, batching).unwrap().run(|_, _| {}).unwrap().0
        };
        assert_equal("two at a time", &texts(true), &texts(false));
    }
}

/// What a replayed text leaves is the state that launches leave, and others may go on from it.
#[test]
fn states_after_replays_are_whole() {
    let Some(device) = gpu() else { return };
    for layers in ["MAM", "SSS", "LAG"] {
        let decoder = decoder(device, layers, DType::F32);
        let first = Request { keep_states: true, ..request(vec![prompt(9, 2), prompt(4, 3)], 20) };
        let (texts, used) = compare(layers, &decoder, &[first]);
        assert!(used.replayed > 10, "{used:?}");
        for text in texts {
            let state = text.state.unwrap();
            let next = Request {
                start: Some(state.clone()),
                completions: 2,
                ..request(vec![vec![text.tokens[19]]], 15)
            };
            let (found, _) = run(&decoder, &[next], true);
            let whole = read(&decoder, state.tokens(), None, Batching::of(&decoder)).unwrap();
            let again = Request { start: Some(whole), ..request(vec![vec![text.tokens[19]]], 15) };
            let expected = generate(&decoder, &again, |_, _| {}).unwrap();
            for found in found {
                assert_eq!(found.tokens, expected[0].tokens, "{layers}");
            }
        }
    }
}

#[test]
fn what_is_not_recorded_says_so() {
    let Some(device) = gpu() else { return };
    let with_conv = |layers: &str| {
        let mut config = config(layers);
        if let Some(attention) = &mut config.attention {
            attention.conv_width = Some(4);
        }
        Decoder::init(&config, 3, Compute { device, ..Compute::new(DType::F32) }).unwrap()
    };
    let requests = [request(vec![prompt(6, 1)], 10)];
    let (_, used) = run(&with_conv("AM"), &requests, true);
    assert!(used.refused.unwrap().contains("conv-kv"));
    assert_eq!((used.replayed, used.launched), (0, 9));
    let on_processor = decoder(Device::Cpu, "M", DType::F32);
    assert!(run(&on_processor, &requests, true).1.refused.unwrap().contains("GPU"));
}
