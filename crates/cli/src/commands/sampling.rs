//! Options that `generate` and `chat` share.

use anyhow::Context;
use clap::Args;
use danaus::kernel::ops::quantized::Activations;
use danaus::model::Model;
use danaus::model::decoder::Compute;
use danaus::model::generate::{Request, Sampling, eos_tokens};
use danaus::tensor::{DType, Device};
use danaus::text::tokenizer::Tokenizer;

#[derive(Args)]
pub struct SamplingArgs {
    /// Tokens to write at most (default: 64, or what the model has room for)
    #[arg(short = 'n', long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Write at least so many tokens before a stop token or string counts
    #[arg(long, default_value_t = 0)]
    min_tokens: usize,
    /// 0 takes the likeliest token
    #[arg(long, default_value_t = 0.7, allow_hyphen_values = true)]
    temperature: f64,
    /// Keep the K most probable tokens; 0 keeps all
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: usize,
    /// Keep the most probable tokens up to this sum
    #[arg(long, default_value_t = 1.0, value_name = "P", allow_hyphen_values = true)]
    top_p: f64,
    /// Keep tokens at least this fraction as probable as the first
    #[arg(long, default_value_t = 0.0, value_name = "P", allow_hyphen_values = true)]
    min_p: f64,
    /// Keep the tokens of most typical surprise up to this sum
    #[arg(long, default_value_t = 1.0, value_name = "P", allow_hyphen_values = true)]
    typical_p: f64,
    /// Above 1 makes tokens seen before less likely
    #[arg(long, default_value_t = 1.0, value_name = "X", allow_hyphen_values = true)]
    repetition_penalty: f64,
    /// Subtracted from the logits of tokens seen before
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_hyphen_values = true)]
    presence_penalty: f32,
    /// Subtracted from a token's logit each time it was seen
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_hyphen_values = true)]
    frequency_penalty: f64,
    /// Added to the logit of a token; may be given several times
    #[arg(long, value_name = "ID:BIAS", value_parser = parse_bias, allow_hyphen_values = true)]
    logit_bias: Vec<(u32, f64)>,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// End the text before this string; may be given several times
    #[arg(long, value_name = "STRING")]
    stop: Vec<String>,
    /// End the text at this token; may be given several times
    #[arg(long, value_name = "ID")]
    stop_token: Vec<u32>,
    /// Go on after the tokens that end a text
    #[arg(long)]
    ignore_eos: bool,
    /// Type of activations and caches: f32, or bf16 (prompts are read faster, results are rounded);
    /// int8: f32, rounded to eight bits before products with quantised weights (faster)
    #[arg(long, default_value = "f32", value_parser = parse_compute)]
    compute: Compute,
    /// Where to compute: cpu, or cuda:N for a GPU
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
}

/// How models compute when they write.
pub fn parse_compute(text: &str) -> anyhow::Result<Compute> {
    let plain = Compute::default();
    match text {
        "f32" => Ok(plain),
        "bf16" => Ok(Compute { dtype: DType::BF16, ..plain }),
        "int8" => Ok(Compute { activations: Activations::Int8, ..plain }),
        _ => anyhow::bail!("valid is f32, bf16 or int8"),
    }
}

fn parse_bias(text: &str) -> anyhow::Result<(u32, f64)> {
    let (id, bias) = text.split_once(':').context("valid is ID:BIAS, such as 17:-2.5")?;
    Ok((id.parse()?, bias.parse()?))
}

impl SamplingArgs {
    /// How the model computes, on a device that is there.
    pub fn compute(&self) -> anyhow::Result<Compute> {
        Ok(Compute { device: self.device.open()?, ..self.compute })
    }

    /// A request without prompts. `extra_stop` ends texts beside the usual tokens.
    pub fn request(&self, model: &Model, extra_stop: &[u32]) -> anyhow::Result<Request> {
        let tokenizer = model.tokenizer.as_ref();
        let mut stop = self.stop_token.clone();
        if !self.ignore_eos {
            stop.extend(eos_tokens(&model.special, tokenizer));
            stop.extend_from_slice(extra_stop);
        }
        // A stop string that is a special token never shows as text: it stops as a token.
        let special = |text: &String| {
            let id = tokenizer?.token_to_id(text)?;
            tokenizer?.is_special(id).then_some(id)
        };
        stop.extend(self.stop.iter().filter_map(special));
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
        };
        Ok(Request {
            max_tokens: self.max_tokens.unwrap_or(64),
            min_tokens: self.min_tokens,
            sampling,
            stop,
            stop_strings: self.stop.clone(),
            // Rows of padding in the head are no tokens.
            vocab_size: model
                .decoder
                .config()
                .tokens()
                .min(tokenizer.map_or(usize::MAX, Tokenizer::vocab_size)),
            tokenizer: tokenizer.cloned(),
            ..Request::default()
        })
    }
}
