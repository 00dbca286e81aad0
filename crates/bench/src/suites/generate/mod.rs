//! Generation: reading a prompt and writing tokens, on random models of known shapes or on a file.
//!
//! Speed does not depend on the values of weights, so nothing has to be downloaded. A decoding step
//! must read every weight once and the states of its sequences; the share of the copy bandwidth
//! measured in the same process says how near that is. The products alone, with the same weights and
//! rows, are timed too: the rest of a step is overhead. Peers read the same file: llama.cpp a GGUF file
//! (both sides' prompts and steps take turns).
//!
//! On a GPU steps are timed as they run by default, replayed as graphs, and launch by launch, in turn.

mod peer;
mod subject;

pub use subject::{FORMATS, SHAPES, Subject};

use crate::Result;
use crate::measure::{Budget, Times, Variant, interleave, timed};
use crate::roofline::Roofline;
use danaus_kernel::ops::linear::{Extras, linear};
use danaus_kernel::ops::quantized::quantized_linear_with;
use danaus_matrix::SeqBatch;
use danaus_model::Decoder;
use danaus_model::decoder::Compute;
use danaus_model::generate::{Batching, Generator, GraphUse, Request, Sampling, read};
use danaus_tensor::no_grad;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Tokens that sequences have read before decoding is timed.
const PROMPT: usize = 128;
/// Tokens of the prompt whose reading is timed.
const LONG_PROMPT: usize = 512;
/// Steps whose median counts.
const STEPS: usize = 24;

/// What to measure.
#[derive(Clone, Debug)]
pub struct GenerateCase {
    /// Whose speed.
    pub subject: Subject,
    /// Types of activations and caches, and where it runs.
    pub compute: Compute,
    /// Sequences at a time.
    pub batch: usize,
    /// Folder with the peers' scripts; `None` measures ourselves alone.
    pub peers: Option<PathBuf>,
}

/// The figures of a case.
#[derive(Clone, Debug)]
pub struct GenerateRow {
    /// What was measured.
    pub case: GenerateCase,
    /// Number of parameters.
    pub parameters: usize,
    /// Prompt tokens a second.
    pub prefill_rate: f64,
    /// Share of the measured peak that reading reaches: f32 on the processor (narrow types may exceed 1),
    /// bf16 products on a GPU.
    pub prefill_of_peak: f64,
    /// New tokens a second, all sequences together.
    pub decode_rate: f64,
    /// Median of a decoding step.
    pub step: Duration,
    /// Median of a decoding step without graphs, on a GPU.
    pub launched: Option<Duration>,
    /// How the steps of `step` ran.
    pub graph: GraphUse,
    /// Median of the matrix products of a step alone.
    pub products: Duration,
    /// Bytes of the weights among `bytes`.
    pub weight_bytes: usize,
    /// Bytes that a step must move: weights, caches read, recurrent states read and written.
    pub bytes: usize,
    /// Share of the measured copy bandwidth that a step reaches.
    pub of_bandwidth: f64,
    /// The same for the weights alone.
    pub weights_of_bandwidth: f64,
    /// The peer's figures.
    pub peer: Option<PeerRates>,
}

/// A decoding step that was timed.
struct Step {
    median: Duration,
    /// Bytes of states that it must move.
    states: usize,
    graph: GraphUse,
}

/// What a peer reaches.
#[derive(Clone, Copy, Debug)]
pub struct PeerRates {
    /// Prompt tokens a second.
    pub prefill: f64,
    /// New tokens a second, all sequences together.
    pub decode: f64,
}

/// Rounds of decoding, ours and the peer's in turn.
const ROUNDS: usize = 3;

/// Measures one case.
///
/// # Errors
/// When the subject is unknown or no model, a peer fails, or there is no memory.
pub fn measure(case: &GenerateCase, roofline: Roofline) -> Result<GenerateRow> {
    let decoder = case.subject.decoder(case.compute)?;
    let config = decoder.config();
    let parameters = config.elem_count()?;
    let mut reader = match &case.peers {
        Some(folder) => Some(peer::Reader::start(&case.subject, folder)?),
        None => None,
    };
    let prompt = |length: usize| -> Vec<u32> {
        (0..length as u32).map(|at| (at * 7919 + 13) % config.vocab_size as u32).collect()
    };
    let long = prompt(LONG_PROMPT);
    let mut reading = timed(|| Ok(read(&decoder, &long, None, Batching::of(&decoder))?));
    let budget = Budget { min_turns: 2, max_turns: 3, time: Duration::from_secs(2) };
    let times = match &mut reader {
        None => interleave(&mut [&mut reading as &mut Variant], budget)?,
        Some(reader) => {
            let mut theirs = || reader.prefill();
            interleave(&mut [&mut reading as &mut Variant, &mut theirs], budget)?
        }
    };
    let prefill = times[0].median().as_secs_f64();
    // Only the last token is projected onto the vocabulary.
    let skipped = 2 * (LONG_PROMPT - 1) * config.vocab_size * config.d_model;
    let flops = decoder.flops(&SeqBatch::equal(1, LONG_PROMPT)?) as f64 - skipped as f64;
    let (mut steps, mut their_steps) = (Times::default(), Times::default());
    let (mut launched, mut states, mut graph) = (None, 0, GraphUse::default());
    for _ in 0..ROUNDS {
        let step = decode(&decoder, &prompt(PROMPT), case.batch, true)?;
        steps.push(step.median);
        (states, graph) = (step.states, step.graph);
        if case.compute.device.is_cuda() {
            let step = decode(&decoder, &prompt(PROMPT), case.batch, false)?;
            launched.get_or_insert_with(Times::default).push(step.median);
        }
        if let Some(reader) = &mut reader {
            their_steps.push(reader.step(case.batch)?);
        }
    }
    let step = steps.median();
    let weight_bytes = weights_read(&decoder);
    let bytes = weight_bytes + states;
    let share = |bytes: usize| bytes as f64 / step.as_secs_f64() / roofline.copy_bytes_per_s;
    Ok(GenerateRow {
        case: case.clone(),
        parameters,
        prefill_rate: LONG_PROMPT as f64 / prefill,
        prefill_of_peak: flops / prefill / roofline.f32_flops,
        decode_rate: case.batch as f64 / step.as_secs_f64(),
        step,
        launched: launched.map(|times| times.median()),
        graph,
        products: products(&decoder, case)?,
        weight_bytes,
        bytes,
        of_bandwidth: share(bytes),
        weights_of_bandwidth: share(weight_bytes),
        peer: reader.map(|_| PeerRates {
            prefill: LONG_PROMPT as f64 / times[1].median().as_secs_f64(),
            decode: case.batch as f64 / their_steps.median().as_secs_f64(),
        }),
    })
}

/// Bytes of the weights that a step reads: all but the embedding, of which it takes a few rows, unless
/// the head shares it.
fn weights_read(decoder: &Decoder) -> usize {
    let tied = decoder.config().tied_head;
    let read = |name: &str| tied || !name.starts_with("embedding.");
    let params = decoder.params().iter().filter(|param| read(param.name()));
    params.map(|param| param.tensor().bytes()).sum()
}

/// Times steps, as graphs if that is asked for.
fn decode(decoder: &Decoder, prompt: &[u32], batch: usize, graph: bool) -> Result<Step> {
    let request = Request {
        prompts: vec![prompt.to_vec(); batch],
        max_tokens: STEPS + 2,
        sampling: Sampling::greedy(),
        ..Request::default()
    };
    let requests = std::slice::from_ref(&request);
    let batching = Batching { graph, ..Batching::of(decoder) };
    let generator = Generator::new(decoder, requests, batching)?;
    let mut moments = Vec::new();
    let (_, timings) = generator.run(|index, _| {
        if index == 0 {
            moments.push(Instant::now());
        }
    })?;
    // The first token comes with the prompt, the first step warms up.
    let mut steps: Vec<Duration> = moments[1..].windows(2).map(|pair| pair[1] - pair[0]).collect();
    steps.sort_unstable();
    let median = steps.get(steps.len() / 2).copied().unwrap_or_default();
    let mut pool = decoder.state_pool(1)?;
    let slot = pool.reserve()?;
    let ids = &prompt[..1];
    no_grad(|| decoder.advance(ids, &SeqBatch::equal(1, 1)?, &mut pool, &[slot]))?;
    // Recurrent states are read and written; a cache is read, so far as it is filled.
    let per_sequence: usize = (0..decoder.config().layers.len())
        .map(|layer| -> Result<usize> {
            let state = pool.layer(&[slot], layer)?;
            Ok(match state[0].kind() {
                "kv" => state[0].bytes() * (prompt.len() + STEPS / 2) / danaus_matrix::state::PAGE,
                _ => 2 * state[0].bytes(),
            })
        })
        .sum::<Result<usize>>()?;
    Ok(Step { median, states: batch * per_sequence, graph: timings.graph })
}

/// Every matrix of the model times as many rows as a step has.
fn products(decoder: &Decoder, case: &GenerateCase) -> Result<Duration> {
    let mut pairs = Vec::new();
    for (weight, blocks) in subject::matrices(decoder) {
        let width = weight.dims()[1];
        let cols = blocks.map_or(width, |kind| width / kind.block_bytes() * kind.block_len());
        let x = super::randn(1, &[case.batch, cols], case.compute.dtype)?;
        pairs.push((x.to_device(&case.compute.device)?, weight, blocks, cols));
    }
    let mut work = timed(|| {
        for (x, weight, blocks, cols) in &pairs {
            match blocks {
                Some(kind) => {
                    let mode = case.compute.activations.of_type(*kind);
                    quantized_linear_with(x, weight, *kind, *cols, mode, Extras::default())?
                }
                None => linear(x, weight, Extras::default())?,
            };
        }
        Ok(case.compute.device.synchronize()?)
    });
    let budget = Budget { min_turns: 5, max_turns: 20, time: Duration::from_secs(1) };
    Ok(interleave(&mut [&mut work as &mut Variant], budget)?[0].median())
}
