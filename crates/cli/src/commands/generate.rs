//! `danaus generate`.

use crate::failure::BadInput;
use anyhow::Context;
use clap::Args;
use danaus::model::Model;
use danaus::model::decoder::Compute;
use danaus::model::generate::{Completion, Request, Sampling, generate};
use danaus::text::fim::{Fim, FimOptions, Order};
use danaus::text::tokenizer::Tokenizer;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(
    after_help = "Examples:\n  danaus generate --model runs/quickstart/model --prompt 'fn main() {'\n  \
                        danaus generate --model runs/quickstart/model --fim 'fn len(&self) -> usize {' '}'"
)]
pub struct GenerateArgs {
    /// Model folder
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// Text to continue
    #[arg(long, conflicts_with_all = ["prompt_ids", "fim"])]
    prompt: Option<String>,
    /// Token ids to continue, separated by commas
    #[arg(long, value_delimiter = ',', conflicts_with = "fim")]
    prompt_ids: Option<Vec<u32>>,
    /// Text before and after a gap to fill
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"])]
    fim: Option<Vec<String>>,
    /// Tokens to write at most
    #[arg(short = 'n', long, default_value_t = 64)]
    max_tokens: usize,
    /// 0 takes the likeliest token
    #[arg(long, default_value_t = 0.7, allow_hyphen_values = true)]
    temperature: f64,
    /// Keep the K most probable tokens; 0 keeps all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Keep the most probable tokens up to this sum
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Keep tokens at least this fraction as probable as the first
    #[arg(long, default_value_t = 0.0)]
    min_p: f64,
    /// Above 1 makes tokens seen before less likely
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Go on after the end of a text
    #[arg(long)]
    ignore_eos: bool,
    /// Print tokens, log-probabilities and text as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    let model = Model::load(&args.model, Compute::default())?;
    let (prompt, stop) = prompt(args, &model)?;
    let tokenizer = model.tokenizer.as_ref();
    let vocab_size = model.decoder.config().vocab_size;
    let request = Request {
        prompts: vec![prompt],
        max_tokens: args.max_tokens,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repetition_penalty: args.repetition_penalty,
            seed: args.seed,
        },
        stop: if args.ignore_eos { Vec::new() } else { stop },
        vocab_size: tokenizer.map_or(vocab_size, Tokenizer::vocab_size),
    };
    let mut out = std::io::stdout().lock();
    let mut stream = tokenizer.filter(|_| !args.json).map(|tokenizer| tokenizer.detokenizer(true));
    if let Some(prompt) = args.prompt.as_ref().filter(|_| !args.json) {
        write!(out, "{prompt}")?;
    }
    let mut failed = Ok(());
    let completions = generate(&model.decoder, &request, |_, token| {
        if let Some(stream) = &mut stream {
            failed = stream.push(token).map_err(anyhow::Error::from).and_then(|text| {
                write!(out, "{text}")?;
                Ok(out.flush()?)
            });
        }
    })?;
    failed?;
    let completion = completions.into_iter().next().context("no completion")?;
    match stream {
        Some(stream) => writeln!(out, "{}", stream.finish())?,
        None => writeln!(out, "{}", describe(args, &completion, tokenizer)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prompt tokens, and the tokens that end the text.
fn prompt(args: &GenerateArgs, model: &Model) -> anyhow::Result<(Vec<u32>, Vec<u32>)> {
    let end = || model.tokenizer.as_ref().and_then(Tokenizer::end_of_text).into_iter().collect();
    if let Some(ids) = &args.prompt_ids {
        return Ok((ids.clone(), end()));
    }
    if let Some([before, after]) = args.fim.as_deref() {
        let fim = Fim::new(model.tokenizer()?, FimOptions::default())?;
        return Ok((fim.prompt(before, after, Order::Psm)?, fim.stop_tokens()));
    }
    let Some(text) = &args.prompt else {
        return Err(BadInput("give --prompt, --prompt-ids or --fim".into()).into());
    };
    Ok((model.tokenizer()?.encode_ordinary(text)?, end()))
}

fn describe(
    args: &GenerateArgs,
    completion: &Completion,
    tokenizer: Option<&Tokenizer>,
) -> anyhow::Result<String> {
    let text = tokenizer.map(|tokenizer| tokenizer.decode(&completion.tokens, true)).transpose()?;
    if args.json {
        return Ok(json!({
            "tokens": completion.tokens, "log_probs": completion.log_probs, "text": text,
            "stopped": completion.stopped, "seed": args.seed,
        })
        .to_string());
    }
    let ids: Vec<String> = completion.tokens.iter().map(u32::to_string).collect();
    Ok(text.unwrap_or_else(|| ids.join(",")))
}
