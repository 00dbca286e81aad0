//! `generate`, `chat`, `tokenizer` and `eval ppl` from outside: results, and one line per error.

use danaus::model::checkpoint::save_decoder;
use danaus::model::decoder::Compute;
use danaus::model::{Decoder, presets};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn golden(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/40-engine")).join(name)
}

/// A small hybrid with random weights and the golden tokenizer.
fn model(seed: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut config = presets::quickstart(384);
    config.d_model = 64;
    config.max_positions = 256;
    let decoder = Decoder::init(&config, seed, Compute::default()).unwrap();
    save_decoder(&decoder, folder.path()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(golden("llama-gqa").join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn danaus(args: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_danaus"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(args: &[&str], input: &str) -> String {
    let output = danaus(args, input);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn json_lines(args: &[&str]) -> Vec<Value> {
    stdout(args, "").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn refusal(args: &[&str]) -> String {
    let output = danaus(args, "");
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {line}");
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    line
}

#[test]
fn texts_stream_batch_and_repeat() {
    let folder = model(1);
    let m = folder.path().to_str().unwrap();
    let base = ["generate", "--model", m, "-n", "12", "--seed", "3"];
    let with = |more: &[&str]| json_lines(&[&base[..], more, &["--json"]].concat());
    let single = with(&["--prompt", "The engine", "--logprobs", "2"]).remove(0);
    let text = single["text"].as_str().unwrap();
    let streamed = stdout(&[&base[..], &["--prompt", "The engine"]].concat(), "");
    assert_eq!(streamed, format!("The engine{text}\n"));
    assert_eq!(single["tokens"].as_array().unwrap().len(), 12);
    assert_eq!(single["top_log_probs"][0].as_array().unwrap().len(), 2);
    assert_eq!(single["finish_reason"], "length");
    assert!(single["timings"]["decode_tokens_per_s"].as_f64().unwrap() > 0.0);

    let file = folder.path().join("prompts.jsonl");
    std::fs::write(&file, "{\"prompt\": \"The engine\"}\n{\"prompt\": \"x\", \"seed\": 9}\n")
        .unwrap();
    let many = with(&["--prompts-file", file.to_str().unwrap(), "--completions", "2"]);
    assert_eq!(many.len(), 4);
    assert_eq!(many[0]["tokens"], single["tokens"], "the same text in a batch of four");
    assert_eq!((&many[2]["seed"], &many[3]["completion"]), (&Value::from(9), &Value::from(1)));

    // A stop string from the middle of the text.
    let letters: Vec<char> = text.chars().collect();
    let stop: String = letters[letters.len() / 2..].iter().take(2).collect();
    let cut = with(&["--prompt", "The engine", "--stop", &stop]).remove(0);
    assert_eq!(cut["text"], text[..text.find(&stop).unwrap()]);
    assert_eq!(cut["finish_reason"], "stop_string");
}

#[test]
fn a_saved_state_goes_on() {
    let (folder, other) = (model(1), model(2));
    let (m, o) = (folder.path().to_str().unwrap(), other.path().to_str().unwrap());
    let state = folder.path().join("state.safetensors");
    let s = state.to_str().unwrap();
    let run =
        |more: &[&str]| json_lines(&[&["generate", "-n", "9", "--json"], more].concat()).remove(0);
    let whole = run(&["--model", m, "--prompt", "The cache stores"]);
    let saved = run(&["--model", m, "--prompt", "The cache stores", "--save-state", s]);
    let loaded = run(&["--model", m, "--load-state", s]);
    for found in [&saved, &loaded] {
        for key in ["tokens", "log_probs", "prompt_tokens"] {
            assert_eq!(found[key], whole[key], "{key}");
        }
    }
    let line = refusal(&["generate", "--model", o, "--load-state", s]);
    assert!(line.contains("a state of another model"), "{line}");
    let line =
        refusal(&["generate", "--model", m, "--prompt", "a", "--prompt", "b", "--save-state", s]);
    assert!(line.contains("one prompt, not 2"), "{line}");
}

#[test]
fn a_chat_answers_and_refuses_in_the_templates_words() {
    let folder = model(1);
    let m = folder.path().to_str().unwrap();
    let base = ["chat", "--model", m, "-n", "6", "--temperature", "0"];
    let once = json_lines(&[&base[..], &["--once", "Hi", "--json"]].concat()).remove(0);
    let talk = stdout(&base, "Hi\n/nothing\n/reset\nHi\n/exit\nunheard\n");
    let answer = format!("{}\n", once["text"].as_str().unwrap());
    assert_eq!(talk, answer.repeat(2));

    std::fs::write(folder.path().join("chat_template.jinja"), "{{ raise_exception('no chats') }}")
        .unwrap();
    assert_eq!(refusal(&[&base[..], &["--once", "Hi"]].concat()), "danaus: no chats\n");
    std::fs::write(folder.path().join("chat_template.jinja"), "a\nb\n{% if %}").unwrap();
    let line = refusal(&[&base[..], &["--once", "Hi"]].concat());
    assert!(line.contains("chat template, line 3"), "{line}");
}

#[test]
fn tokens_there_and_back() {
    let t = golden("llama3-rope-tied-bf16");
    let t = t.to_str().unwrap();
    let cases = std::fs::read_to_string(golden("llama3-rope-tied-bf16.text.json")).unwrap();
    let cases: Value = serde_json::from_str(&cases).unwrap();
    let case = &cases["encode"][7];
    let text = case["text"].as_str().unwrap();
    let found = stdout(&["tokenizer", "encode", "--tokenizer", t, "--json"], text);
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["ids"], case["ids_with_special"]);
    let plain = stdout(&["tokenizer", "encode", "--tokenizer", t, "--no-special-tokens", text], "");
    let back = stdout(&["tokenizer", "decode", "--tokenizer", t, "--json", plain.trim()], "");
    assert_eq!(serde_json::from_str::<Value>(&back).unwrap()["text"], text);
    let chat = &cases["chat"][2];
    let found =
        stdout(&["tokenizer", "chat", "--tokenizer", t, "--json"], &chat["messages"].to_string());
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!((&found["text"], &found["ids"]), (&chat["rendered"], &chat["ids"]));
    let line = refusal(&["tokenizer", "decode", "--tokenizer", t, "1,x"]);
    assert!(line.contains("\"x\" is no token id"), "{line}");
    let wizard = r#"[{"role": "wizard", "content": "a"}]"#;
    let line = refusal(&["tokenizer", "chat", "--tokenizer", t, wizard]);
    assert!(line.contains("role is `wizard`"), "{line}");
}

#[test]
fn perplexity_is_reported() {
    let folder = model(1);
    let m = folder.path().to_str().unwrap();
    let file = folder.path().join("text.txt");
    std::fs::write(&file, "The engine computes the state exactly. ".repeat(20)).unwrap();
    let f = file.to_str().unwrap();
    let found = json_lines(&["eval", "ppl", "--model", m, "--text", f, "--window", "64", "--json"])
        .remove(0);
    let number = |name: &str| found[name].as_f64().unwrap();
    assert!((number("perplexity") - number("loss").exp()).abs() < 1e-9);
    let bits = number("loss") * number("tokens") / std::f64::consts::LN_2 / number("bytes");
    assert!((number("bits_per_byte") - bits).abs() < 1e-9);
    assert_eq!(number("stride"), 32.0);
    let line = refusal(&["eval", "ppl", "--model", m, "--text", f, "--window", "999"]);
    assert!(line.contains("window is 999, valid is 2..=256"), "{line}");
}

#[test]
fn errors_are_one_line() {
    let folder = model(1);
    let m = folder.path().to_str().unwrap();
    let with = |more: &[&str]| {
        let all = [&["generate", "--model", m, "--prompt", "a"], more].concat();
        refusal(&all)
    };
    let cases: [(&[&str], &str); 9] = [
        (&["--temperature", "-1"], "temperature is -1"),
        (&["--top-p", "NaN"], "top_p is NaN"),
        (&["--min-p", "-0.5"], "min_p is -0.5"),
        (&["-n", "400"], "1 tokens and 400 to generate, valid is at most 256 together"),
        (&["--stop", ""], "stop string is 0 bytes long"),
        (&["--stop-token", "9999"], "stop token id is 9999"),
        (&["--logit-bias", "9999:1"], "logit_bias token id is 9999"),
        (&["--prompt-ids", "9999"], "token id is 9999"),
        (&["--max-batch", "0"], "at least one sequence"),
    ];
    for (args, expected) in cases {
        let line = with(args);
        assert!(line.contains(expected), "{args:?}: {line}");
    }
    let line = refusal(&["generate", "--model", m]);
    assert!(line.contains("--prompt"), "{line}");
    std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
    let line = refusal(&["chat", "--model", m, "--once", "Hi"]);
    assert!(line.contains("chat_template.jinja"), "{line}");
}

/// `--compute int8` works on quantised weights and is refused by name on others, by every command that
/// takes it.
#[test]
fn int8_is_for_quantised_weights() {
    let path = |name: &str| golden(name).to_str().unwrap().to_string();
    let file = golden("llama-gqa.text.json");
    let text = file.to_str().unwrap();
    for name in ["llama-gqa", "llama3-rope-tied-bf16"] {
        let model = path(name);
        let commands: [&[&str]; 3] = [
            &["generate", "--model", &model, "--prompt", "a", "--compute", "int8"],
            &["eval", "ppl", "--model", &model, "--text", text, "--compute", "int8"],
            &["bench", "generate", "--model", &model, "--batch", "1", "--compute", "int8"],
        ];
        for command in commands {
            let line = refusal(command);
            assert!(line.contains("compute is int8"), "{command:?}: {line}");
            assert!(line.contains("needs f32 activations and weights of q4_0"), "{line}");
        }
    }
    let model = path("llama-q8_0.gguf");
    let ask = |compute: &str| {
        let ids = ["--prompt-ids", "1,2,3,4,5", "-n", "4", "--temperature", "0", "--ignore-eos"];
        let model = ["generate", "--model", &model, "--compute", compute, "--json"];
        json_lines(&[&model[..], &ids[..]].concat()).remove(0)
    };
    let (exact, rounded) = (ask("f32"), ask("int8"));
    assert_eq!(rounded["tokens"].as_array().unwrap().len(), 4);
    assert_ne!(exact["log_probs"], rounded["log_probs"], "nothing was rounded");
    let unknown =
        danaus(&["generate", "--model", &model, "--prompt", "a", "--compute", "int4"], "");
    let error = String::from_utf8_lossy(&unknown.stderr);
    assert_eq!(unknown.status.code(), Some(2), "{error}");
    assert!(error.contains("valid is f32, bf16 or int8"), "{error}");
}
