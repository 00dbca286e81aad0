//! Generation: reading a prompt and writing tokens, on randomly initialised models of known shapes.
//!
//! Speed does not depend on the values of weights, so nothing has to be downloaded. A decoding step
//! must read every weight once and the states of its sequences; the share of the copy bandwidth
//! measured in the same process says how near that is. The products alone, with the same weights and
//! rows, are timed too: the rest of a step is overhead.

use crate::Result;
use crate::measure::{Budget, Variant, interleave, timed};
use crate::roofline::Roofline;
use danaus_kernel::ops::linear::{Extras, linear};
use danaus_matrix::SeqBatch;
use danaus_model::decoder::Compute;
use danaus_model::generate::{Batching, Generator, Request, Sampling, read};
use danaus_model::{Config, Decoder};
use danaus_tensor::{DType, Device, ParamBuilder, Tensor, no_grad};
use std::path::Path;
use std::time::{Duration, Instant};

/// Names of the shapes.
pub const SHAPES: [&str; 3] = ["llama-130m", "mamba2-130m", "llama-1b"];
/// Tokens that sequences have read before decoding is timed.
const PROMPT: usize = 128;
/// Tokens of the prompt whose reading is timed.
const LONG_PROMPT: usize = 512;
/// Steps whose median counts.
const STEPS: usize = 24;

/// What to measure.
#[derive(Clone, Debug)]
pub struct GenerateCase {
    /// One of [`SHAPES`].
    pub shape: String,
    /// Type of weights and activations.
    pub dtype: DType,
    /// Sequences at a time.
    pub batch: usize,
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
    /// Share of the measured f32 peak that reading reaches (narrow types may exceed 1).
    pub prefill_of_peak: f64,
    /// New tokens a second, all sequences together.
    pub decode_rate: f64,
    /// Median of a decoding step.
    pub step: Duration,
    /// Median of the matrix products of a step alone.
    pub products: Duration,
    /// Bytes that a step must move: weights, caches read, recurrent states read and written.
    pub bytes: usize,
    /// Share of the measured copy bandwidth that a step reaches.
    pub of_bandwidth: f64,
}

fn config(shape: &str) -> Result<Config> {
    let text = match shape {
        "llama-130m" => {
            r#"{"vocab_size": 50288, "d_model": 768, "layers": "AAAAAAAAAAAA", "max_positions": 2048,
                "attention": {"n_heads": 12, "rope_theta": 10000.0},
                "mlp": {"kind": "swiglu", "d_ff": 2048}, "#
        }
        "mamba2-130m" => {
            r#"{"vocab_size": 50288, "d_model": 768, "layers": "MMMMMMMMMMMMMMMMMMMMMMMM",
                "max_positions": 2048, "mamba2": {"d_state": 128, "head_dim": 64}, "#
        }
        "llama-1b" => {
            r#"{"vocab_size": 128256, "d_model": 2048, "layers": "AAAAAAAAAAAAAAAA",
                "max_positions": 2048,
                "attention": {"n_heads": 32, "n_kv_heads": 8, "head_dim": 64, "rope_theta": 500000.0},
                "mlp": {"kind": "swiglu", "d_ff": 8192}, "#
        }
        other => {
            let valid = SHAPES.join(", ");
            return Err(danaus_tensor::Error::argument("bench", "shape", other, valid).into());
        }
    };
    let rest = r#""model_type": "danaus", "version": 1, "tied_head": true}"#;
    Ok(Config::parse(&format!("{text}{rest}"), Path::new(shape))?)
}

/// Measures one case.
///
/// # Errors
/// When the shape is unknown, the dtype is not computed in, or there is no memory.
pub fn measure(case: &GenerateCase, roofline: Roofline) -> Result<GenerateRow> {
    let config = config(&case.shape)?;
    let params = ParamBuilder::init(0, case.dtype, Device::Cpu);
    let compute = Compute { dtype: case.dtype, recompute: false };
    let decoder = Decoder::build(&params, &config, compute)?;
    let parameters = decoder.params().elem_count();
    let prompt = |length: usize| -> Vec<u32> {
        (0..length as u32).map(|at| (at * 7919 + 13) % config.vocab_size as u32).collect()
    };
    let long = prompt(LONG_PROMPT);
    let mut reading = timed(|| Ok(read(&decoder, &long, None, Batching::default())?));
    let budget = Budget { min_turns: 2, max_turns: 3, time: Duration::from_secs(2) };
    let times = interleave(&mut [&mut reading as &mut Variant], budget)?;
    let prefill = times[0].median().as_secs_f64();
    // Only the last token is projected onto the vocabulary.
    let skipped = 2 * (LONG_PROMPT - 1) * config.vocab_size * config.d_model;
    let flops = decoder.flops(&SeqBatch::equal(1, LONG_PROMPT)?) as f64 - skipped as f64;
    let (step, states) = decode(&decoder, &prompt(PROMPT), case.batch)?;
    let products = products(&decoder, case)?;
    let weights: usize = decoder.params().iter().map(|param| param.tensor().bytes()).sum();
    let bytes = weights + states;
    Ok(GenerateRow {
        case: case.clone(),
        parameters,
        prefill_rate: LONG_PROMPT as f64 / prefill,
        prefill_of_peak: flops / prefill / roofline.f32_flops,
        decode_rate: case.batch as f64 / step.as_secs_f64(),
        step,
        products,
        bytes,
        of_bandwidth: bytes as f64 / step.as_secs_f64() / roofline.copy_bytes_per_s,
    })
}

/// Median of a step, and the bytes of the states that it must move.
fn decode(decoder: &Decoder, prompt: &[u32], batch: usize) -> Result<(Duration, usize)> {
    let request = Request {
        prompts: vec![prompt.to_vec(); batch],
        max_tokens: STEPS + 2,
        sampling: Sampling::greedy(),
        ..Request::default()
    };
    let requests = std::slice::from_ref(&request);
    let generator = Generator::new(decoder, requests, Batching::default())?;
    let mut moments = Vec::new();
    generator.run(|index, _| {
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
    Ok((median, batch * per_sequence))
}

/// Every matrix of the model times as many rows as a step has.
fn products(decoder: &Decoder, case: &GenerateCase) -> Result<Duration> {
    let matrices = decoder.params().iter().filter(|param| param.tensor().rank() == 2);
    let pairs: Vec<(Tensor, Tensor)> = matrices
        .map(|param| {
            let weight = param.tensor().detach();
            let x = super::randn(1, &[case.batch, weight.dims()[1]], case.dtype)?;
            Ok((x, weight))
        })
        .collect::<Result<_>>()?;
    let mut work = timed(|| {
        for (x, weight) in &pairs {
            linear(x, weight, Extras::default())?;
        }
        Ok(())
    });
    let budget = Budget { min_turns: 5, max_turns: 20, time: Duration::from_secs(1) };
    Ok(interleave(&mut [&mut work as &mut Variant], budget)?[0].median())
}
