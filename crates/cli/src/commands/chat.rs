//! `danaus chat`.

use super::sampling::SamplingArgs;
use clap::Args;
use danaus::model::Model;
use danaus::model::generate::{Chat, Turn};
use danaus::text::chat::ChatTemplate;
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "Examples:\n  danaus chat --model M --system 'Be brief.'\n  \
                        danaus chat --model M --once 'What is a butterfly matrix?' --json\n\
                        In a conversation: /reset begins anew, /exit leaves.")]
pub struct ChatArgs {
    /// Model folder
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// Instructions to the model
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Say this, print the answer, leave
    #[arg(long, value_name = "MESSAGE")]
    once: Option<String>,
    /// Which of the model's chat templates
    #[arg(long, default_value = "default", value_name = "NAME")]
    template: String,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Print the answer with its tokens as JSON
    #[arg(long, requires = "once")]
    json: bool,
}

pub fn run(args: &ChatArgs) -> anyhow::Result<ExitCode> {
    let model = Model::load(&args.model, args.sampling.compute()?)?;
    let tokenizer = model.tokenizer()?;
    let template = ChatTemplate::of(tokenizer, &args.template)?;
    let request = args.sampling.request(&model, &[])?;
    let mut chat = Chat::new(&model.decoder, tokenizer, template, request, args.system.clone());
    if let Some(message) = &args.once {
        let turn = say(&mut chat, message, !args.json)?;
        if args.json {
            let completion = &turn.completion;
            let object = json!({
                "text": completion.text, "tokens": completion.tokens,
                "log_probs": completion.log_probs, "finish_reason": completion.finish.name(),
                "prompt_tokens": turn.prompt_tokens, "seed": args.sampling.seed,
            });
            println!("{object}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    converse(&mut chat)?;
    Ok(ExitCode::SUCCESS)
}

fn converse(chat: &mut Chat) -> anyhow::Result<()> {
    let shows_prompt = std::io::stdin().is_terminal();
    let mut line = String::new();
    loop {
        if shows_prompt {
            eprint!("> ");
        }
        line.clear();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim() {
            "" => {}
            "/exit" => return Ok(()),
            "/reset" => chat.reset(),
            command if command.starts_with('/') => {
                eprintln!("danaus: {command} is no command; there are /reset and /exit");
            }
            message => match say(chat, message, true) {
                Ok(turn) => {
                    let (new, all) = (turn.new_tokens, turn.prompt_tokens);
                    tracing::info!(new, all, "prompt tokens read");
                }
                // A refused message ends the turn, not the conversation.
                Err(error) => eprintln!("danaus: {error:#}"),
            },
        }
    }
}

fn say(chat: &mut Chat, message: &str, shows: bool) -> anyhow::Result<Turn> {
    let mut out = std::io::stdout().lock();
    let mut written = Ok(());
    let turn = chat.say(message, |text| {
        if shows && written.is_ok() {
            written = write!(out, "{text}").and_then(|()| out.flush());
        }
    })?;
    written?;
    if shows {
        writeln!(out)?;
    }
    Ok(turn)
}
