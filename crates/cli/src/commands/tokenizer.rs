//! `danaus tokenizer`: training, encoding, decoding, conversations as text.

use crate::failure::BadInput;
use clap::{Args, Subcommand};
use danaus::text::chat::{ChatTemplate, Conversation, Message};
use danaus::text::corpus::{Corpus, GatherOptions, NotUtf8, Source};
use danaus::text::tokenizer::{Tokenizer, TrainOptions};
use serde_json::json;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum TokenizerCommand {
    /// Train a byte-level BPE tokenizer on a file or folder
    #[command(
        after_help = "Example: danaus tokenizer train --data src --vocab-size 4096 --out tokenizer.json"
    )]
    Train(TrainArgs),
    /// Text to token ids
    #[command(after_help = "Examples:\n  danaus tokenizer encode --tokenizer M 'Hello world'\n  \
                            danaus tokenizer encode --tokenizer M --json < file.txt")]
    Encode(EncodeArgs),
    /// Token ids to text
    #[command(after_help = "Example: danaus tokenizer decode --tokenizer M 42,71,78")]
    Decode(DecodeArgs),
    /// A conversation as the text and tokens that the model sees
    #[command(after_help = "Example: echo '[{\"role\": \"user\", \"content\": \"Hi\"}]' | \
                            danaus tokenizer chat --tokenizer M")]
    Chat(ChatArgs),
}

#[derive(Args)]
pub struct EncodeArgs {
    /// tokenizer.json, or a folder with one
    #[arg(long, value_name = "PATH")]
    tokenizer: PathBuf,
    /// Text (default: standard input)
    text: Option<String>,
    /// Add no special tokens at the ends
    #[arg(long)]
    no_special_tokens: bool,
    /// Print ids and tokens as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct DecodeArgs {
    /// tokenizer.json, or a folder with one
    #[arg(long, value_name = "PATH")]
    tokenizer: PathBuf,
    /// Ids, separated by commas or blanks (default: standard input)
    ids: Vec<String>,
    /// Leave special tokens out
    #[arg(long)]
    no_special_tokens: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct ChatArgs {
    /// Folder of a tokenizer with a chat template
    #[arg(long, value_name = "FOLDER")]
    tokenizer: PathBuf,
    /// JSON list of messages (default: standard input)
    messages: Option<String>,
    /// Which of the chat templates
    #[arg(long, default_value = "default", value_name = "NAME")]
    template: String,
    /// JSON list of tools
    #[arg(long, value_name = "JSON")]
    tools: Option<String>,
    /// End behind the last message, not where the answer begins
    #[arg(long)]
    no_generation_prompt: bool,
    /// Print text and ids as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct TrainArgs {
    /// File or folder
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Where tokenizer.json goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Number of tokens, sentinels included
    #[arg(long, default_value_t = 4096, value_name = "N")]
    vocab_size: usize,
    /// Files that are not UTF-8: refuse (with the offset), skip, or bytes (keep them as they are)
    #[arg(long, default_value = "refuse")]
    not_utf8: NotUtf8Option,
    /// Seed of the sample that merges are learned from
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum NotUtf8Option {
    Refuse,
    Skip,
    Bytes,
}

impl From<NotUtf8Option> for NotUtf8 {
    fn from(option: NotUtf8Option) -> Self {
        match option {
            NotUtf8Option::Refuse => NotUtf8::Refuse,
            NotUtf8Option::Skip => NotUtf8::Skip,
            NotUtf8Option::Bytes => NotUtf8::Bytes,
        }
    }
}

pub fn run(command: &TokenizerCommand) -> anyhow::Result<ExitCode> {
    match command {
        TokenizerCommand::Train(args) => train(args)?,
        TokenizerCommand::Encode(args) => encode(args)?,
        TokenizerCommand::Decode(args) => decode(args)?,
        TokenizerCommand::Chat(args) => chat(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// An argument, or all of standard input.
fn given(argument: Option<&String>) -> anyhow::Result<String> {
    if let Some(text) = argument {
        return Ok(text.clone());
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        BadInput(format!("standard input is not UTF-8 at byte {place}")).into()
    })
}

fn load(path: &Path) -> anyhow::Result<Tokenizer> {
    Ok(Tokenizer::load(path)?)
}

fn encode(args: &EncodeArgs) -> anyhow::Result<()> {
    let tokenizer = load(&args.tokenizer)?;
    let ids = tokenizer.encode(&given(args.text.as_ref())?, !args.no_special_tokens)?;
    print_ids(&tokenizer, &ids, args.json)
}

fn print_ids(tokenizer: &Tokenizer, ids: &[u32], json: bool) -> anyhow::Result<()> {
    if json {
        let texts = ids.iter().map(|&id| tokenizer.decode(&[id], false));
        let texts: Vec<String> = texts.collect::<Result<_, _>>()?;
        println!("{}", json!({"ids": ids, "tokens": texts}));
    } else {
        println!("{}", ids.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
    }
    Ok(())
}

fn decode(args: &DecodeArgs) -> anyhow::Result<()> {
    let tokenizer = load(&args.tokenizer)?;
    let joined = args.ids.join(",");
    let text = given((!args.ids.is_empty()).then_some(&joined))?;
    let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
    let id = |part: &str| part.parse().map_err(|_| BadInput(format!("{part:?} is no token id")));
    let ids: Vec<u32> = parts.map(id).collect::<Result<_, _>>()?;
    let text = tokenizer.decode(&ids, args.no_special_tokens)?;
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", json!({"text": text}))?,
        false => writeln!(out, "{text}")?,
    }
    Ok(())
}

fn chat(args: &ChatArgs) -> anyhow::Result<()> {
    let tokenizer = load(&args.tokenizer)?;
    let conversation = Conversation {
        messages: Message::parse_list(&given(args.messages.as_ref())?)?,
        add_generation_prompt: !args.no_generation_prompt,
        tools: args.tools.clone(),
    };
    let template = ChatTemplate::of(&tokenizer, &args.template)?;
    let text = template.render(&conversation)?;
    if args.json {
        println!("{}", json!({"text": text, "ids": tokenizer.encode(&text, false)?}));
    } else {
        print!("{text}");
    }
    Ok(())
}

fn train(args: &TrainArgs) -> anyhow::Result<()> {
    let mut options = GatherOptions::new(Source::Path(args.data.clone()));
    options.not_utf8 = args.not_utf8.into();
    let corpus = Corpus::gather(&options)?;
    let documents: Vec<&[u8]> =
        corpus.documents.iter().map(|document| document.bytes.as_slice()).collect();
    let training =
        TrainOptions { vocab_size: args.vocab_size, seed: args.seed, ..TrainOptions::default() };
    let tokenizer = Tokenizer::train(&documents, &training)?;
    tokenizer.save(&args.out)?;
    let report = &corpus.report;
    println!(
        "{}: {} tokens from {} documents ({:.1} MB)",
        args.out.display(),
        tokenizer.vocab_size(),
        report.documents,
        report.bytes as f64 / 1e6
    );
    Ok(())
}
