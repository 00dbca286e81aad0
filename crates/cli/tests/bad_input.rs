//! Bad input gets one clear line and exit code 2; a machine that has too little gets exit code 1.

mod common;

use common::{CONFIG, Place, command, complains, misused, refused, succeed};
use std::process::Command;

#[test]
fn data_that_is_missing_or_cannot_be_read() {
    let place = Place::new();
    place.train_refused("run", &["--data", "/no/such/place"], &["cannot read /no/such/place"]);
    let out = place.at("tokenizer.json");
    let arguments = ["tokenizer", "train", "--data", "/no/such/place", "--out", &out];
    refused(&arguments, &["/no/such/place", "No such file"]);
    refused(&["quickstart", "--data", "/no/such/place", "--out", &out], &["/no/such/place"]);
    refused(&["inspect", "/no/such/place"], &["/no/such/place"]);
    refused(&["generate", "--model", "/no/such/place", "--prompt", "x"], &["no such folder"]);
    // A file that exists and cannot be read, by any user.
    #[cfg(target_os = "linux")]
    place.train_refused("run", &["--data", "/proc/self/mem"], &["cannot read /proc/self/mem"]);
}

#[test]
fn no_sources_in_cargos_registry() {
    let place = Place::new();
    let quickstart = || {
        let mut command = command(&["quickstart", "--out", &place.at("run")]);
        command.env("CARGO_HOME", place.path("cargo"));
        command
    };
    complains(&quickstart().output().unwrap(), 2, &["cargo", "--data"]);
    std::fs::create_dir_all(place.path("cargo/registry/src/index/empty-1.0.0")).unwrap();
    complains(&quickstart().output().unwrap(), 2, &["no documents", "name a folder of your own"]);
}

#[test]
fn a_corpus_without_text() {
    let place = Place::new();
    std::fs::create_dir(place.path("empty")).unwrap();
    let data = place.at("empty");
    place.train_refused("run", &["--data", &data], &["no documents in", "empty"]);
    place.write("empty/blank.rs", "\n \n");
    place.write("empty/picture.png", [0u8, 1, 2]);
    place.train_refused("run", &["--data", &data], &["no documents in", "1 empty"]);
    place.write("nothing.txt", "");
    place.train_refused("run", &["--data", &place.at("nothing.txt")], &["no documents in"]);
    place.write("word.txt", "one line only");
    place.train_refused("run", &["--data", &place.at("word.txt")], &["one line", "more text"]);
    let model = Place::with_model();
    let (folder, empty) = (model.at("run/model"), place.at("nothing.txt"));
    refused(&["eval", "ppl", "--model", &folder, "--text", &empty], &["no documents in"]);
}

/// A missing GPU is said at once, by every command that may use one.
#[test]
fn devices_that_are_not_there() {
    let place = Place::new();
    place.train_refused("run", &["--device", "cuda:99"], &["--device cpu"]);
    let model = Place::with_model();
    let folder = model.at("run/model");
    let generate = ["generate", "--model", &folder, "--prompt", "x", "--device"];
    let eval = ["eval", "ppl", "--model", &folder, "--text", &folder, "--device"];
    for command in [&generate[..], &eval[..], &["train", "--out", &folder, "--device"]] {
        misused(&[command, &["gpu"]].concat(), &["gpu", "cuda:N"]);
    }
    for command in [&generate[..], &eval[..]] {
        refused(&[command, &["cuda:99"]].concat(), &["--device cpu"]);
    }
}

#[test]
fn text_that_is_not_utf8() {
    let place = Place::new();
    place.write("data/latin.rs", b"// caf\xe9 au lait, tr\xe8s bien\nfn main() {}\n");
    place.train_refused("run", &["--steps", "2"], &["latin.rs", "offset 6"]);
    place.train("bytes", &["--steps", "2", "--not-utf8", "bytes"]);
    place.train("skip", &["--steps", "2", "--not-utf8", "skip"]);
    let (data, out) = (place.at("data"), place.at("tokenizer.json"));
    let base = ["tokenizer", "train", "--data", &data, "--out", &out, "--vocab-size", "300"];
    refused(&base, &["latin.rs", "offset 6"]);
    succeed(&[&base[..], &["--not-utf8", "bytes"]].concat());
    let model = place.at("bytes/model");
    let base = ["eval", "ppl", "--model", &model, "--window", "64", "--text", &data];
    refused(&base, &["latin.rs", "offset 6"]);
    succeed(&[&base[..], &["--not-utf8", "bytes"]].concat());
    let out = place.at("quick");
    let base = ["quickstart", "--data", &data, "--out", &out, "--minutes", "0.01"];
    refused(&base, &["latin.rs", "offset 6"]);
}

#[test]
fn config_fields_and_values() {
    let place = Place::new();
    let cases = [
        ("\"tied_head\"", "\"tied_haed\"", "unknown field `tied_haed`"),
        ("\"d_state\": 8", "\"d_stat\": 8", "unknown field `d_stat`"),
        ("\"d_state\": 8", "\"d_state\": 0", "mamba2.d_state is 0"),
        ("\"d_state\": 8", "\"d_state\": -8", "invalid value"),
        ("\"head_dim\": 8", "\"head_dim\": 7", "mamba2.head_dim is 7"),
        ("\"n_heads\": 2", "\"n_heads\": 5", "attention.n_heads is 5"),
        ("\"n_heads\": 2", "\"n_heads\": 2, \"n_kv_heads\": 3", "attention.n_kv_heads is 3"),
        ("10000.0", "-1.0", "attention.rope_theta is -1"),
        (
            "\"MA\"",
            "\"MXA\"",
            "letters A (attention), W (attention in a window), M (mamba2), S (mamba1), L (linear",
        ),
        ("\"MA\"", "\"\"", "number of layers is 0"),
        ("\"kind\": \"swiglu\"", "\"kind\": \"swoglu\"", "swoglu"),
        ("\"kind\": \"swiglu\"", "\"kind\": \"none\"", "unknown field `mlp.d_ff`"),
        ("\"kind\": \"rms\"", "\"kind\": \"rsm\"", "unknown variant `rsm`"),
        ("\"eps\": 1e-5", "\"eps\": -1e-5", "norm.eps"),
        ("\"dense\"", "\"dence\"", "dense, lowrank(RANK)"),
        ("\"dense\"", "\"lowrank(0)\"", "dense, lowrank(RANK)"),
        ("\"version\": 1", "\"version\": 9", "version is 9"),
        ("\"danaus\"", "\"gpt\"", "model_type is gpt"),
        ("\"d_model\": 16", "\"d_model\": 18446744073709551615", "d_model is 18446744073709551615"),
        ("\"d_model\": 16", "\"d_model\": 1e99", "config.json"),
        ("\"vocab_size\": 300", "\"vocab_size\": 10", "vocab_size is 10"),
        ("\"tied_head\": true", "\"tied_head\": 1", "invalid type"),
        ("{", "[", "config.json"),
    ];
    for (from, to, expected) in cases {
        assert!(CONFIG.contains(from), "{from}");
        place.write("config.json", CONFIG.replacen(from, to, 1));
        place.train_refused("run", &["--steps", "1"], &[expected]);
    }
    place.train_refused(
        "run",
        &["--preset", "tranformer"],
        &["transformer, mamba2, linear_attention"],
    );
}

#[test]
fn training_settings() {
    let place = Place::new();
    let cases: [(&[&str], &str); 15] = [
        (&["--optimizer", "adam"], "adamw, lion, muon, sgd"),
        (&["--lr", "NaN"], "adamw.lr is NaN"),
        (&["--lr=-1"], "adamw.lr is -1"),
        (&["--minutes", "0"], "minutes is 0"),
        (&["--minutes=-3"], "minutes is -3"),
        (&["--clip-norm=-1"], "clip_norm is -1"),
        (&["--micro-batches", "0"], "micro_batches is 0"),
        (&["--checkpoint-every", "0"], "checkpoint is 0 steps"),
        (&["--keep", "0"], "keep is 0"),
        (&["--rows", "0"], "`rows` is 0"),
        (&["--row-tokens", "0"], "`row_tokens` is 0"),
        (&["--row-tokens", "65"], "row_tokens is 65, valid is at most 64"),
        (&["--vocab-size", "20"], "`vocab_size` is 20"),
        (&["--fim-rate", "1.5"], "1.5"),
        (&["--resume"], "without checkpoints"),
    ];
    for (arguments, expected) in cases {
        place.train_refused("run", arguments, &[expected]);
    }
    place.train("run", &["--steps", "2"]);
    place.train_refused("run", &["--steps", "2"], &["with checkpoints"]);
    place.train_refused("run", &["--steps", "2", "--resume", "--seed", "5"], &["the seed is 0"]);
    let lion = ["--steps", "2", "--resume", "--optimizer", "lion"];
    place.train_refused("run", &lion, &["the optimizer is adamw in the checkpoint and lion"]);
    place.write("config.json", CONFIG.replace("\"d_ff\": 16", "\"d_ff\": 24"));
    place.train_refused("run", &["--steps", "2", "--resume"], &["the model is", "in this run"]);
}

#[test]
fn recall_tasks() {
    let place = Place::new();
    let (out, data) = (place.at("recall"), place.at("data"));
    let tiny = ["--depth", "1", "--d-model", "16", "--steps", "2", "--rows", "2"];
    let cases: [(&[&str], &str); 13] = [
        (&["--task", "mqr"], "--task is mqr, valid is lm, mqar, selective-copying, induction"),
        (&["--task", "lm"], "--mixer has no meaning with --task lm"),
        (&["--data", &data], "--data has no meaning with --task mqar"),
        (&["--fim-rate", "0"], "--fim-rate has no meaning with --task mqar"),
        (&["--mixer", "mamba3"], "mixer is mamba3, valid is attention, mamba1, mamba2"),
        (&["--mixer", "retnet", "--d-state", "8"], "d_state is 8, valid is only with mamba1"),
        (&["--pairs", "600"], "vocab_size is 1024, valid is at least 1202"),
        (&["--row-tokens", "100"], "length is 100, valid is at least 128"),
        (&["--test-length", "100"], "length is 100, valid is at least 128"),
        (&["--examples", "0"], "examples is 0, valid is at least 1"),
        (&["--rows", "0"], "rows is 0, valid is at least 1"),
        (&["--depth", "0"], "number of layers is 0"),
        (&["--task", "induction", "--pairs", "2"], "pairs is 2, valid is 1"),
    ];
    for (arguments, expected) in cases {
        let mut all = vec!["train", "--out", &out, "--steps", "1"];
        if !arguments.contains(&"--task") {
            all.extend(["--task", "mqar"]);
        }
        if !arguments.contains(&"--mixer") {
            all.extend(["--mixer", "mamba2"]);
        }
        refused(&[&all[..], arguments].concat(), &[expected]);
    }
    refused(&["train", "--out", &out], &["--data is missing"]);
    for (task, mixer) in [("selective-copying", "gated_linear_attention"), ("induction", "mamba1")]
    {
        let out = place.at(task);
        let own = ["train", "--task", task, "--mixer", mixer, "--out", &out, "--test-length"];
        let sizes = [&tiny[..], &["--row-tokens", "40", "--test-examples", "2"]].concat();
        succeed(&[&own[..], &["5000"], &sizes].concat());
        let scores = std::fs::read_to_string(place.path(task).join("recall.json")).unwrap();
        assert!(scores.contains("\"length\": 5000") && scores.contains(mixer), "{scores}");
    }
}

#[test]
fn prompts_and_sampling() {
    let place = Place::with_model();
    let long = "a b ".repeat(64);
    let cases: [(&[&str], &str); 14] = [
        (&["--prompt", &long], "at most 64 together (max_positions)"),
        (&["--max-tokens", "18446744073709551615"], "at most 64 together (max_positions)"),
        (&["--prompt", ""], "at least one token"),
        (&["--prompt-ids", "1,2,300"], "token id is 300, valid is 0..300"),
        (&["--temperature", "-1"], "temperature is -1"),
        (&["--temperature", "NaN"], "temperature is NaN"),
        (&["--temperature", "inf"], "temperature is inf"),
        (&["--top-p", "0"], "top_p is 0"),
        (&["--top-p", "1.5"], "top_p is 1.5"),
        (&["--min-p", "2"], "min_p is 2"),
        (&["--repetition-penalty", "0"], "repetition_penalty is 0"),
        (&["--fim", &long, "x"], "at most 64 together (max_positions)"),
        (&["--prompt-ids", "4294967295"], "token id is 4294967295"),
        (&["--prompt", "x", "--max-tokens", "64"], "at most 64 together"),
    ];
    for (arguments, expected) in cases {
        place.generate_refused(arguments, &[expected]);
    }
    let model = place.at("run/model");
    refused(
        &["generate", "--model", &model],
        &["--prompt, --prompts-file, --prompt-ids, --fim or --load-state"],
    );
    // What the command line itself refuses names the argument, too.
    let output = command(&["generate", "--model", &model, "--top-k=-1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--top-k"));
    let text = place.at("data");
    let long = ["eval", "ppl", "--model", &model, "--text", &text, "--window", "65"];
    refused(&long, &["window is 65, valid is 2..=64 (max_positions)"]);
}

#[test]
fn weights_that_are_no_numbers_or_of_another_shape() {
    let place = Place::with_model();
    let weights = std::fs::read(place.path("run/model/model.safetensors")).unwrap();
    let mut broken = weights.clone();
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    place.write("run/model/model.safetensors", &broken);
    place.generate_refused(&[], &["holds NaN or infinite values", "tensor "]);
    place.write("run/model/model.safetensors", &weights);

    let config = std::fs::read_to_string(place.path("run/model/config.json")).unwrap();
    let change = |from: &str, to: &str| {
        assert!(config.contains(from), "{from} is not in {config}");
        place.write("run/model/config.json", config.replace(from, to));
    };
    change("\"d_ff\": 16", "\"d_ff\": 24");
    let parts = ["layers.0.mlp.gate_up.weight has shape [32, 16], expected [48, 16]"];
    place.generate_refused(&[], &parts);
    change("\"MA\"", "\"MAM\"");
    place.generate_refused(&[], &["layers.2.", "missing"]);
    change("\"MA\"", "\"M\"");
    place.generate_refused(&[], &["unexpected tensors: layers.1."]);
    place.write("run/model/config.json", &config);
    let tokenizer = std::fs::read_to_string(place.path("run/model/tokenizer.json")).unwrap();
    place.write("run/model/tokenizer.json", &tokenizer[..tokenizer.len() / 2]);
    place.generate_refused(&[], &["tokenizer: cannot load tokenizer.json"]);
    std::fs::remove_file(place.path("run/model/tokenizer.json")).unwrap();
    place.generate_refused(&[], &["valid is token ids, for a model without a tokenizer"]);
    std::fs::remove_file(place.path("run/model/model.safetensors")).unwrap();
    place.generate_refused(&[], &["neither model.safetensors nor"]);
    std::fs::remove_file(place.path("run/model/config.json")).unwrap();
    place.generate_refused(&[], &["config.json"]);
}

/// Every field of a safetensors header with every kind of wrong value, and every cut.
#[test]
fn tensor_files_that_lie() {
    let place = Place::new();
    let file = place.at("file.safetensors");
    let write = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0u8; data]);
        place.write("file.safetensors", bytes);
    };
    let good = r#"{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;
    write(good, 24);
    assert!(succeed(&["inspect", &file]).contains("1 tensors, 6 elements, 24 bytes"));
    let lies = [
        ("\"F32\"", vec!["\"F31\"", "\"f32\"", "\"\"", "7", "null", "[]", "\"F64\"", "\"F16\""]),
        (
            "[2,3]",
            vec![
                "[2,4]",
                "[2]",
                "[]",
                "[-2,3]",
                "[2.5,3]",
                "6",
                "\"2,3\"",
                "null",
                "[0,3]",
                "[18446744073709551615,3]",
                "[4294967296,4294967296]",
                "[9223372036854775807,2]",
            ],
        ),
        (
            "[0,24]",
            vec![
                "[0,23]",
                "[0,25]",
                "[24,0]",
                "[1,25]",
                "[4,28]",
                "[0]",
                "[]",
                "[0,24,48]",
                "[-1,23]",
                "null",
                "\"0,24\"",
                "[0,18446744073709551615]",
                "[18446744073709551592,18446744073709551615]",
            ],
        ),
        ("\"dtype\"", vec!["\"dtyp\"", "\"shape\""]),
        ("\"shape\"", vec!["\"shap\""]),
        ("\"data_offsets\"", vec!["\"data_offset\""]),
        ("\"w\":{", vec!["\"w\":[{", "\"w\":", "w:{", "\"__metadata__\":{"]),
        (
            "}}",
            vec![
                "}",
                "",
                "}}}",
                "},\"v\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[20,24]}}",
            ],
        ),
    ];
    for (from, wrong) in lies {
        for to in wrong {
            write(&good.replacen(from, to, 1), 24);
            refused(&["inspect", &file], &["file.safetensors: "]);
        }
    }
    let deep = "[".repeat(100_000);
    write(&good.replacen("[2,3]", &deep, 1), 24);
    refused(&["inspect", &file], &["file.safetensors: "]);
    write(good, 24);
    let whole = std::fs::read(place.path("file.safetensors")).unwrap();
    for len in 0..whole.len() {
        place.write("file.safetensors", &whole[..len]);
        refused(&["inspect", &file], &["file.safetensors: "]);
    }
    let mut longer = whole.clone();
    longer.push(0);
    place.write("file.safetensors", &longer);
    refused(&["inspect", &file], &["file.safetensors: "]);
    for length in [0, 1, 7, 1 << 40, u64::MAX / 2, u64::MAX] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&u64::to_le_bytes(length));
        place.write("file.safetensors", bytes);
        refused(&["inspect", &file], &["file.safetensors: "]);
    }
}

#[test]
fn operators_and_attributes() {
    let place = Place::new();
    let header = r#"{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0u8; 16]);
    place.write("in.safetensors", bytes);
    let (input, output) = (place.at("in.safetensors"), place.at("out.safetensors"));
    let run = |name: &str, more: &[&str], parts: &[&str]| {
        let base = ["op", "run", name, "--in", &input, "--out", &output];
        refused(&[&base[..], more].concat(), parts)
    };
    run("expp", &[], &["operator is expp", "exp"]);
    run("nosuch", &[], &["operator is nosuch", "attention, ", "ssd"]);
    run("affine", &["--set", "facto=2"], &["attribute is facto", "factor, shift"]);
    run("affine", &["--set", "factor=two"], &["factor is two", "a number"]);
    run("affine", &["--set", "factor"], &["--set is factor", "KEY=VALUE"]);
    run("affine", &["--map", "y2=x"], &["--map is y2", "x, y"]);
    run("affine", &["--map", "x=z"], &["--map is z", "valid is x"]);
    run("affine", &["--map", "grad.z=x"], &["--map is grad.z"]);
    run("add", &[], &["add: a is missing"]);
    run("softmax", &["--dtype", "e4m3"], &["--dtype is e4m3", "f64, f32, bf16"]);
    run("ssd", &[], &["ssd: ", "is missing"]);
    let output = command(&["op", "run", "exp", "--in", &input, "--out", "/no/such/place/o"]);
    let mut output = output;
    complains(&output.output().unwrap(), 2, &["/no/such/place"]);
    let bad = command(&["op", "run", "exp", "--in", &input, "--out", "o", "--dtype", "f33"])
        .output()
        .unwrap();
    assert_eq!(bad.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("f64, f32, bf16"));
    refused(&["systems", "--threads", "0"], &["--threads is 0, valid is 1 to 1024"]);
    let many = command(&["systems"]).env("DANAUS_THREADS", "many").output().unwrap();
    complains(&many, 2, &["DANAUS_THREADS is many"]);
    refused(&["bench", "nosuch"], &["nosuch", "attention"]);
    refused(&["selftest", "--golden", "/no/such/place"], &["/no/such/place"]);
}

/// Said before anything is allocated, with the sum.
#[test]
#[cfg(target_os = "linux")]
fn too_little_memory() {
    let place = Place::new();
    let wide = CONFIG.replace("\"d_model\": 16", "\"d_model\": 262144");
    place.write("config.json", wide.replace("\"n_heads\": 2", "\"n_heads\": 2048"));
    let arguments = place.train_arguments("run", &["--steps", "1"]);
    let mut training = Command::new(env!("CARGO_BIN_EXE_danaus"));
    let output = training.args(&arguments).output().unwrap();
    let parts = ["parameters", "gradients", "optimiser state", "activations", "are available"];
    complains(&output, 1, &parts);

    // A limit on the address space counts as the machine's memory: two gigabytes for 1.5.
    let wide = CONFIG.replace("\"d_model\": 16", "\"d_model\": 4096");
    place.write("config.json", wide.replace("\"n_heads\": 2", "\"n_heads\": 32"));
    let line = "ulimit -v 1500000; exec \"$0\" \"$@\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", line, env!("CARGO_BIN_EXE_danaus")]).args(&arguments);
    complains(&shell.output().unwrap(), 1, &parts);
}

/// The folder of a run turns into one that cannot be written, or its disk is full.
#[test]
#[cfg(unix)]
fn folders_that_cannot_be_written() {
    let place = Place::new();
    place.write("file", "in the way");
    let arguments = place.train_arguments("file/run", &["--steps", "1"]);
    let run = |arguments: &[String]| {
        Command::new(env!("CARGO_BIN_EXE_danaus")).args(arguments).output().unwrap()
    };
    complains(&run(&arguments), 2, &["file/run"]);
    place.train("run", &["--steps", "4"]);
    let kept = place.path("run/checkpoints/step-4");
    assert!(kept.is_dir());

    // Files may not grow beyond 20 KiB: less than the weights. The signal is ignored, so that writing
    // reports an error as a full disk does.
    let more = ["--steps", "8", "--resume", "--checkpoint-every", "2"];
    let arguments = place.train_arguments("run", &more);
    let line = "trap '' XFSZ; ulimit -f 40; exec \"$0\" \"$@\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", line, env!("CARGO_BIN_EXE_danaus")]).args(&arguments);
    let parts = ["step 6: cannot write the checkpoint", "the last good checkpoint is", "step-4"];
    complains(&shell.output().unwrap(), 1, &parts);
    assert!(kept.join("training.json").is_file());
    assert!(!place.path("run/checkpoints/step-6").exists());

    // With room again the run goes on from there.
    assert!(place.train("run", &more).contains("all steps done after step 8"));
}

/// `danaus op list | head` used to end in a panic of the print macro.
#[cfg(unix)]
#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child = command(&["op", "list"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}
