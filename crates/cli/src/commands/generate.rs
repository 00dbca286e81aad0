//! `danaus generate`.

use super::sampling::SamplingArgs;
use crate::failure::BadInput;
use clap::Args;
use danaus::model::Model;
use danaus::model::generate::{
    Batching, Completion, Generator, Identity, Prompt, PromptText, Request, State, Timings, read,
};
use danaus::tensor::Level;
use danaus::text::fim::{Fim, FimOptions, Order};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(
    after_help = "Examples:\n  danaus generate --model runs/quickstart/model --prompt 'fn main() {'\n  \
                        danaus generate --model M --prompt 'A' --prompt 'B' -n 32 --temperature 0 --json\n  \
                        danaus generate --model M --prompt 'Long text' --save-state s.safetensors -n 0\n  \
                        danaus generate --model M --load-state s.safetensors --prompt ' goes on'\n  \
                        danaus generate --model runs/quickstart/model --fim 'fn len(&self) -> usize {' '}'"
)]
pub struct GenerateArgs {
    /// Model folder
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// Text to continue; may be given several times
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// File with a prompt a line: text, or JSON in a .jsonl file (string, or prompt | prompt_ids, seed)
    #[arg(long, value_name = "FILE")]
    prompts_file: Option<PathBuf>,
    /// Token ids to continue, separated by commas
    #[arg(long, value_delimiter = ',')]
    prompt_ids: Option<Vec<u32>>,
    /// Text before and after a gap to fill
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"])]
    fim: Option<Vec<String>>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Texts per prompt, each from its own stream of the seed
    #[arg(long, default_value_t = 1, value_name = "N")]
    completions: usize,
    /// Report the K most probable tokens at each place (in JSON)
    #[arg(long, default_value_t = 0, value_name = "K", requires = "json")]
    logprobs: usize,
    /// Sequences that run at a time
    #[arg(long, default_value_t = 32, value_name = "N")]
    max_batch: usize,
    /// Tokens of a pass; longer prompts are read in pieces
    #[arg(long, default_value_t = 2048, value_name = "N")]
    batch_tokens: usize,
    /// Read prompts in the fastest order of sums: texts may then differ with batch and cuts, as they
    /// always may on a GPU
    #[arg(long)]
    fast_prompts: bool,
    /// Go on from a saved state
    #[arg(long, value_name = "FILE")]
    load_state: Option<PathBuf>,
    /// Save the state after the prompt (one prompt only)
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,
    /// Record decoding steps on a GPU once and replay them; the texts are the same
    #[arg(long, value_enum, default_value_t = Switch::On)]
    graph: Switch,
    /// Print one JSON object per text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

pub fn run(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    let model = Model::load(&args.model, args.sampling.compute()?)?;
    let (mut prompts, extra_stop) = prompts(args, &model)?;
    let mut batching = Batching::of(&model.decoder);
    (batching.max_sequences, batching.max_tokens) = (args.max_batch, args.batch_tokens);
    batching.graph = args.graph == Switch::On;
    if args.fast_prompts {
        batching.level = Level::Deterministic;
    }
    let mut base = args.sampling.request(&model, &extra_stop)?;
    base.completions = args.completions;
    base.top_log_probs = args.logprobs;
    with_states(args, &model, &mut prompts, &mut base, batching)?;
    let requests: Vec<Request> = prompts
        .iter()
        .map(|prompt| {
            let mut request = base.clone();
            request.sampling.seed = prompt.seed.unwrap_or(request.sampling.seed);
            request.prompts = vec![prompt.encode(model.tokenizer.as_ref())?];
            if args.sampling.max_tokens.is_none() {
                request.fit(&model.decoder);
            }
            Ok(request)
        })
        .collect::<anyhow::Result<_>>()?;
    let generator = Generator::new(&model.decoder, &requests, batching)?;
    let mut out = std::io::stdout().lock();
    let streams = !args.json && requests.len() * args.completions == 1;
    if let (true, [text]) = (streams, &args.prompt[..]) {
        write!(out, "{text}")?;
    }
    let mut written = Ok(());
    let (completions, timings) = generator.run(|_, piece| {
        if streams && written.is_ok() {
            written = write!(out, "{}", piece.text).and_then(|()| out.flush());
        }
    })?;
    written?;
    tracing::info!(prompt = timings.prompt_rate(), decode = timings.decode_rate(), "tokens/s");
    let refused = timings.graph.refused.as_deref().filter(|_| batching.graph);
    if let Some(reason) = refused.filter(|_| model.decoder.device().is_cuda()) {
        tracing::warn!(reason, "decoding steps were not recorded");
    }
    for (index, completion) in completions.iter().enumerate() {
        let request = &requests[index / args.completions];
        if args.json {
            writeln!(out, "{}", describe(index, args, request, completion, &timings))?;
        } else if streams && request.tokenizer.is_some() {
            writeln!(out)?;
        } else {
            let ids: Vec<String> = completion.tokens.iter().map(u32::to_string).collect();
            let known = request.tokenizer.is_some();
            let text = if known { completion.text.clone() } else { ids.join(",") };
            writeln!(out, "--- {} ({})\n{text}", index, completion.finish.name())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prompts, and tokens that end these texts beside the usual ones.
fn prompts(args: &GenerateArgs, model: &Model) -> anyhow::Result<(Vec<Prompt>, Vec<u32>)> {
    let mut prompts: Vec<Prompt> = args.prompt.iter().map(|text| Prompt::text(text)).collect();
    prompts.extend(args.prompt_ids.clone().map(Prompt::ids));
    if let Some(path) = &args.prompts_file {
        prompts.extend(Prompt::read_file(path)?);
    }
    let mut stop = Vec::new();
    if let Some([before, after]) = args.fim.as_deref() {
        let fim = Fim::new(model.tokenizer()?, FimOptions::default())?;
        prompts.push(Prompt::ids(fim.prompt(before, after, Order::Psm)?));
        stop = fim.stop_tokens();
    }
    if prompts.is_empty() && args.load_state.is_some() {
        prompts.push(Prompt::ids(Vec::new()));
    }
    if prompts.is_empty() {
        let message = "give --prompt, --prompts-file, --prompt-ids, --fim or --load-state";
        return Err(BadInput(message.into()).into());
    }
    Ok((prompts, stop))
}

/// Loads the state to begin from, and saves the one after the prompt, which is then not read again.
fn with_states(
    args: &GenerateArgs,
    model: &Model,
    prompts: &mut [Prompt],
    base: &mut Request,
    batching: Batching,
) -> anyhow::Result<()> {
    if args.load_state.is_none() && args.save_state.is_none() {
        return Ok(());
    }
    let tokenizer = model.tokenizer.as_ref();
    let identity = Identity::of(&model.decoder, tokenizer)?;
    if let Some(path) = &args.load_state {
        base.start = Some(State::load(path, &model.decoder, &identity)?);
    }
    let Some(path) = &args.save_state else { return Ok(()) };
    let [prompt] = prompts else {
        let message = format!("--save-state takes one prompt, not {}", prompts.len());
        return Err(BadInput(message).into());
    };
    let ids = prompt.encode(tokenizer)?;
    if !ids.is_empty() || base.start.is_none() {
        base.start = Some(read(&model.decoder, &ids, base.start.as_ref(), batching)?);
    }
    prompt.text = PromptText::Ids(Vec::new());
    if let Some(state) = &base.start {
        state.save(path, &identity)?;
    }
    Ok(())
}

fn describe(
    index: usize,
    args: &GenerateArgs,
    request: &Request,
    completion: &Completion,
    timings: &Timings,
) -> serde_json::Value {
    let before = request.start.as_ref().map_or(0, |start| start.tokens().len());
    let text = request.tokenizer.as_ref().map(|_| &completion.text);
    let mut object = json!({
        "prompt": index / args.completions, "completion": index % args.completions,
        "prompt_tokens": before + request.prompts[0].len(),
        "tokens": completion.tokens, "log_probs": completion.log_probs, "text": text,
        "finish_reason": completion.finish.name(), "seed": request.sampling.seed,
        "timings": {
            "prompt_tokens": timings.prompt_tokens, "prompt_seconds": timings.prompt_seconds,
            "prompt_tokens_per_s": timings.prompt_rate(),
            "new_tokens": timings.new_tokens, "decode_seconds": timings.decode_seconds,
            "decode_tokens_per_s": timings.decode_rate(),
            "graph": super::graph_json(&timings.graph),
        },
    });
    if args.logprobs > 0 {
        object["top_log_probs"] = json!(completion.top_log_probs);
    }
    object
}
