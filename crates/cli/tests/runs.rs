//! Whole runs of the command: killed at any moment, resumed, on any number of threads.

mod common;

use common::{Place, command, succeed};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// What must be equal bit for bit: every loss, rate and norm with its step, without times.
fn losses(run: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        let object = line.as_object_mut().unwrap();
        for time in ["seconds", "tokens_per_s", "peak_memory"] {
            object.remove(time);
        }
        line.to_string()
    });
    lines.collect()
}

fn weights(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("model/model.safetensors")).unwrap()
}

/// The step of the newest checkpoint, 0 where there is none.
fn saved_step(run: &Path) -> u64 {
    let name = std::fs::read_to_string(run.join("checkpoints/latest")).unwrap_or_default();
    name.trim().strip_prefix("step-").map_or(0, |step| step.parse().unwrap())
}

/// Whether there is a complete checkpoint: the first one may not be pointed to yet.
fn has_checkpoint(run: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(run.join("checkpoints")) else { return false };
    let folders = entries.map(|entry| entry.unwrap().path());
    let finished = |path: &Path| path.extension().is_none() && path.join("training.json").is_file();
    folders.into_iter().any(|path| finished(&path))
}

/// A small generator of moments, so that a failure can be repeated.
fn moments(seed: u64) -> impl Iterator<Item = f64> {
    (1u64..).map(move |index| {
        let mixed = (index + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    })
}

/// Kills a run `kills` times at random moments, resumes it each time, and compares the whole with a run
/// that was never interrupted.
fn kill_and_resume(kills: u32, steps: &str, seed: u64) {
    let place = Place::new();
    let settings = ["--steps", steps, "--checkpoint-every", "5", "--validate-every", "20"];
    let begun = Instant::now();
    place.train("whole", &settings);
    let whole = begun.elapsed().as_secs_f64();

    let run = place.path("parts");
    let mut draws = moments(seed);
    let mut killed = 0;
    let mut before = 0;
    while killed < kills {
        let resume: &[&str] = if has_checkpoint(&run) { &["--resume"] } else { &[] };
        let more = [&settings[..], resume].concat();
        let arguments = place.train_arguments("parts", &more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut child = command(&arguments).stdout(Stdio::null()).spawn().unwrap();
        // From the first instructions to a fair share of the run, so that there are kills before, in
        // and after checkpoints.
        let share = draws.next().unwrap() * (1.5 / f64::from(kills)).min(0.9);
        std::thread::sleep(Duration::from_secs_f64(share * whole + 0.02));
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        let status = child.wait().unwrap();
        if ended.is_some() {
            assert!(status.success(), "the run ended by itself with {status}");
            break;
        }
        killed += 1;
        let now = saved_step(&run);
        assert!(now >= before, "the checkpoint of step {before} got lost, {now} is left");
        before = now;
    }
    assert!(killed > 0, "the run was over before the first kill");
    if !run.join("model").is_dir() {
        let resume: &[&str] = if has_checkpoint(&run) { &["--resume"] } else { &[] };
        place.train("parts", &[&settings[..], resume].concat());
    }
    assert_eq!(losses(&place.path("whole")), losses(&run));
    assert!(weights(&place.path("whole")) == weights(&run), "the weights differ");
    println!("{killed} kills, {} lines of metrics, the same bits", losses(&run).len());
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    kill_and_resume(3, "60", 1);
}

/// `cargo test --release -p danaus-cli --test runs -- --ignored --nocapture`
#[test]
#[ignore = "takes about a minute"]
fn twenty_kills_lose_nothing() {
    kill_and_resume(20, "2000", 2);
}

/// Ctrl-C ends a run after its step, with a checkpoint, a model and a report.
#[test]
#[cfg(unix)]
fn an_interrupted_run_is_whole() {
    let place = Place::new();
    let arguments = place.train_arguments("run", &["--steps", "1000000"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let child = command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    let trains = || std::fs::metadata(place.path("run/metrics.jsonl")).is_ok_and(|m| m.len() > 0);
    while !trains() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let step = saved_step(&place.path("run"));
    assert!(step > 0 && text.contains(&format!("interrupted after step {step},")), "{text}");
    let stored = place.path(&format!("run/checkpoints/step-{step}"));
    let saved = std::fs::read(stored.join("model.safetensors")).unwrap();
    assert!(saved == weights(&place.path("run")), "the model is not that of the checkpoint");
    assert!(place.path("run/report.html").is_file());
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    for optimizer in ["adamw", "lion", "muon", "sgd"] {
        let place = Place::new();
        let fixed = ["--optimizer", optimizer, "--micro-batches", "2", "--checkpoint-every", "4"];
        let all = [&fixed[..], &["--steps", "12", "--schedule", "constant"]].concat();
        place.train("whole", &all);
        let first = [&fixed[..], &["--steps", "6", "--schedule", "constant"]].concat();
        place.train("parts", &first);
        place.train("parts", &[&all[..], &["--resume"]].concat());
        assert_eq!(steps_only(&place.path("whole")), steps_only(&place.path("parts")));
        assert!(weights(&place.path("whole")) == weights(&place.path("parts")), "{optimizer}");
    }
}

/// Updates without validations, which a run that ended in between has more of.
fn steps_only(run: &Path) -> Vec<String> {
    losses(run).into_iter().filter(|line| !line.contains("val_loss")).collect()
}

#[test]
fn threads_change_no_bit() {
    let place = Place::new();
    let settings = ["--steps", "12", "--optimizer", "muon", "--schedule", "wsd"];
    for bf16 in [false, true] {
        let more = if bf16 { [&settings[..], &["--bf16"]].concat() } else { settings.to_vec() };
        let runs: Vec<(Vec<String>, Vec<u8>, String)> = [1, 2, 3]
            .iter()
            .map(|threads| {
                let (count, out) = (threads.to_string(), format!("run-{threads}-{bf16}"));
                place.train(&out, &[&more[..], &["--threads", &count]].concat());
                let model = place.at(&format!("{out}/model"));
                let arguments = ["generate", "--model", &model, "--prompt", "fn item", "--json"];
                let drawn = ["--max-tokens", "40", "--seed", "7", "--threads", &count];
                let text = succeed(&[&arguments[..], &drawn].concat());
                let mut text: serde_json::Value = serde_json::from_str(&text).unwrap();
                text.as_object_mut().unwrap().remove("timings");
                let text = text.to_string();
                (losses(&place.path(&out)), weights(&place.path(&out)), text)
            })
            .collect();
        for run in &runs[1..] {
            assert_eq!(run.0, runs[0].0, "losses, bf16 {bf16}");
            assert!(run.1 == runs[0].1, "weights, bf16 {bf16}");
            assert_eq!(run.2, runs[0].2, "generated text, bf16 {bf16}");
        }
    }
}

/// Every optimiser, schedule and weight format, positions and norms of every kind: each learns.
#[test]
fn all_kinds_of_runs_learn() {
    let place = Place::new();
    let config = common::CONFIG;
    let variants = [
        ("\"weights\": \"dense\"", "\"weights\": \"lowrank(6)\""),
        ("\"weights\": \"dense\"", "\"weights\": \"monarch(2)\""),
        ("\"weights\": \"dense\"", "\"weights\": \"butterfly\""),
        ("\"weights\": \"dense\"", "\"weights\": \"kaleidoscope\""),
        ("\"weights\": \"dense\"", "\"weights\": \"ldr(2)\""),
        ("\"max_positions\": 64", "\"max_positions\": 64, \"learned_positions\": true"),
        (
            "\"kind\": \"rms\", \"eps\": 1e-5, \"bias\": false",
            "\"kind\": \"layer\", \"bias\": true",
        ),
        ("{ \"kind\": \"swiglu\", \"d_ff\": 16 }", "{ \"kind\": \"none\" }"),
        ("\"n_heads\": 2", "\"n_heads\": 4, \"n_kv_heads\": 2, \"softcap\": 20.0"),
        (
            "\"MA\",\n  \"max_positions\": 64,\n  \"attention\": { \"n_heads\": 2",
            "\"MW\",\n  \"max_positions\": 64,\n  \"attention\": { \"n_heads\": 2, \"window\": 9",
        ),
        ("\"tied_head\": true", "\"tied_head\": false"),
    ];
    for (number, (from, to)) in variants.into_iter().enumerate() {
        assert!(config.contains(from), "{from}");
        place.write("config.json", config.replacen(from, to, 1));
        learns(&place, &format!("model-{number}"), &["--lr", "0.01"]);
        let model = place.at(&format!("model-{number}/model"));
        let text = succeed(&["generate", "--model", &model, "--prompt", "fn item_", "-n", "8"]);
        assert!(text.starts_with("fn item_"), "{text}");
    }
    place.write("config.json", config);
    for schedule in ["cosine", "linear", "wsd", "constant"] {
        learns(&place, schedule, &["--schedule", schedule, "--lr", "0.01"]);
    }
    for (optimizer, lr) in [("adamw", "0.01"), ("lion", "0.003"), ("muon", "0.01"), ("sgd", "0.3")]
    {
        learns(&place, optimizer, &["--optimizer", optimizer, "--lr", lr]);
    }
    learns(&place, "bf16", &["--bf16", "--lr", "0.01", "--recompute", "--micro-batches", "2"]);
}

/// Trains 40 steps and demands a loss clearly below the first.
fn learns(place: &Place, out: &str, more: &[&str]) {
    let fixed = ["--steps", "40", "--warmup-steps", "4", "--validate-every", "40"];
    place.train(out, &[&fixed[..], more].concat());
    let loss = |line: &String| -> Option<f64> {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64()
    };
    let losses: Vec<f64> = losses(&place.path(out)).iter().filter_map(loss).collect();
    let last = losses[losses.len() - 5..].iter().sum::<f64>() / 5.0;
    assert!(last < losses[0] - 0.5, "{out}: from {} to {last}", losses[0]);
    let page = std::fs::read_to_string(place.path(out).join("report.html")).unwrap();
    for part in ["Loss (nats per token)", "Learning rate", "Tokens per second", "<mark>", "<svg"] {
        assert!(page.contains(part), "{out}: the report lacks {part}");
    }
}

/// The main job on a folder of one's own: all it promises is printed and left behind.
#[test]
fn quickstart_on_own_data() {
    let place = Place::new();
    let (data, out) = (place.at("data"), place.at("quick"));
    let arguments = ["quickstart", "--data", &data, "--out", &out, "--minutes", "0.02"];
    let text = succeed(&arguments);
    let parts = [
        "data: 6 documents",
        "tokenizer: ",
        "model: ",
        "memory: weights ",
        "bits/byte",
        "tokens/s",
        "ETA",
        "this model",
        "gzip -9, file by file",
        "byte trigram",
        "--- completion",
        "--- infilling",
        "report.html",
        "danaus generate --model",
    ];
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    for file in ["checkpoints/latest", "metrics.jsonl", "report.html", "model/config.json"] {
        assert!(place.path("quick").join(file).is_file(), "{file} is missing");
    }
    let model = place.at("quick/model");
    let gap = ["generate", "--model", &model, "--fim", "fn item_1(x: u32) ->", "}", "-n", "5"];
    succeed(&gap);
    assert!(succeed(&["inspect", &model]).contains("4 blocks (MMAM)"));
    let eval = succeed(&["eval", "ppl", "--model", &model, "--text", &data, "--json"]);
    let eval: serde_json::Value = serde_json::from_str(&eval).unwrap();
    assert!(eval["bits_per_byte"].as_f64().is_some_and(|bits| bits > 0.0 && bits < 10.0));
    // A second run does not overwrite the first.
    let again = succeed(&arguments);
    assert!(again.contains("quick-2"), "{again}");
}
