//! Conversions there and back.

use super::*;
use crate::formats::gguf::{GgufSource, MetaValue};
use danaus_matrix::SeqBatch;
use danaus_tensor::no_grad;
use danaus_tensor::param::TensorSource;
use danaus_tensor::safetensors::Checkpoint;
use danaus_testkit::archive::torch_file;
use danaus_testkit::{Golden, golden};
use std::collections::BTreeMap;
use std::path::PathBuf;

fn engine(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/40-engine").join(name)
}

fn bits(model: &Model) -> BTreeMap<String, Vec<u8>> {
    let one = |param: &danaus_tensor::Param| {
        let value = param.tensor().detach().contiguous().unwrap();
        (param.name().to_string(), value.as_bytes().unwrap().to_vec())
    };
    model.decoder.params().iter().map(one).collect()
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

fn load(path: &Path) -> Model {
    Model::load(path, Compute::default()).unwrap()
}

/// The largest difference to the golden logits, which reach about 10.
fn distance(model: &Model, golden: &Golden) -> f64 {
    let ids = golden.get("input_ids");
    let batch = SeqBatch::equal(ids.dims()[0], ids.dims()[1]).unwrap();
    let ids: Vec<u32> = ids.to_vec::<i32>().unwrap().into_iter().map(|id| id as u32).collect();
    let found = no_grad(|| model.decoder.logits(&ids, &batch)).unwrap().to_vec::<f32>().unwrap();
    let wanted = golden.get("logits").to_vec::<f32>().unwrap();
    assert_eq!(found.len(), wanted.len());
    let apart = found.iter().zip(wanted).map(|(a, b)| f64::from((a - b).abs()));
    apart.fold(0.0, f64::max)
}

#[test]
fn a_quantised_file_gives_the_golden_logits() {
    let golden = golden("40-engine", "llama-q8_0.gguf.golden");
    // Computed from the dequantised weights: only the order of f32 sums differs.
    let dense = Opened::open_dequantized(&engine("llama-q8_0.gguf")).unwrap();
    let dense = dense.load(Compute::default()).unwrap();
    assert!(distance(&dense, &golden) < 2e-4, "{}", distance(&dense, &golden));
    let blocks = load(&engine("llama-q8_0.gguf"));
    assert!(distance(&blocks, &golden) < 2e-3, "{}", distance(&blocks, &golden));
}

#[test]
fn float_conversions_keep_every_bit() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama-gqa", "llama3-rope-tied-bf16", "mamba", "mamba2"] {
        let (source, original) = (engine(name), load(&engine(name)));
        for target in Target::ALL {
            let out = folder.path().join(format!("{name}.{}", target.name()));
            let summary = convert(&source, &out, target, None).unwrap();
            let wanted = if name.ends_with("bf16") { "bf16" } else { "f32" };
            assert_eq!((summary.elements.as_str(), summary.tokenizer), (wanted, true), "{name}");
            let again = load(&out);
            let (found, expected) = (bits(&again), bits(&original));
            assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (tensor, found) in &found {
                let expected = &expected[tensor];
                // A decay rate goes through exp and ln on its way, which costs some last bits.
                let same = match tensor.ends_with("A_log") {
                    true => floats(found).zip(floats(expected)).all(|(a, b)| (a - b).abs() < 1e-6),
                    false => found == expected,
                };
                assert!(same, "{name} as {}: {tensor}", target.name());
            }
            assert_eq!(again.special.bos, original.special.bos, "{name}");
            let text = "The matrix returns 16 blocks.";
            let encode = |model: &Model| model.tokenizer().unwrap().encode(text, true).unwrap();
            assert_eq!(encode(&again), encode(&original), "{name} as {}", target.name());
        }
    }
}

/// Weights as older folders have them.
#[test]
fn folders_of_pytorch_files_are_models() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama-gqa", "llama3-rope-tied-bf16", "mamba2"] {
        let source = engine(name);
        let other = folder.path().join(name);
        std::fs::create_dir(&other).unwrap();
        for file in ["config.json", "generation_config.json", "tokenizer.json"] {
            std::fs::copy(source.join(file), other.join(file)).unwrap();
        }
        let tensors = Checkpoint::open(&source).unwrap();
        let named = |name: String| {
            let tensor = tensors.tensor(&name).unwrap().unwrap();
            (name, tensor)
        };
        let tensors = tensors.names().into_iter().map(named).collect();
        std::fs::write(other.join("pytorch_model.bin"), torch_file(&tensors)).unwrap();
        assert!(bits(&load(&other)) == bits(&load(&source)), "{name}");
    }
}

#[test]
fn scaled_rotary_frequencies_survive_as_factors() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("llama3.gguf");
    convert(&engine("llama3-rope-tied-bf16"), &out, Target::Gguf, None).unwrap();
    let golden = golden("40-engine", "llama3-rope-tied-bf16.golden");
    let apart = distance(&load(&out), &golden);
    assert!(apart < 2e-4, "{apart}");
}

#[test]
fn another_writer_and_ours_agree_on_q8_0() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("again.gguf");
    let summary = convert(&engine("llama-gqa"), &out, Target::Gguf, Some("q8_0")).unwrap();
    assert!(summary.exceptions.is_empty(), "{:?}", summary.exceptions);
    let (ours, theirs) =
        (GgufSource::open(&out).unwrap(), GgufSource::open(engine("llama-q8_0.gguf")).unwrap());
    for name in theirs.names().into_iter().filter(|name| name != "token_embd.weight") {
        let bytes = |source: &GgufSource| {
            source.tensor(&name).unwrap().unwrap().as_bytes().unwrap().to_vec()
        };
        assert!(bytes(&ours) == bytes(&theirs), "{name}");
    }
    for (key, value) in theirs.file().metadata() {
        if key != "general.name" {
            let found = ours.file().value(key).map(MetaValue::from);
            assert_eq!(found, Some(MetaValue::from(value)), "{key}");
        }
    }
}

#[test]
fn four_bits_keep_the_head_in_eight() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("q4.gguf");
    let summary = convert(&engine("llama-gqa"), &out, Target::Gguf, Some("q4_0")).unwrap();
    assert_eq!(summary.exceptions, ["output.weight as q8_0: it makes the logits"]);
    let source = GgufSource::open(&out).unwrap();
    assert!(source.tensor("blk.0.attn_q.q4_0").unwrap().is_some());
    assert!(source.tensor("token_embd.q4_0").unwrap().is_some());
    // Rows of 64 and 128 are no multiple of 256.
    let out = folder.path().join("q4_k.gguf");
    let summary = convert(&engine("llama-gqa"), &out, Target::Gguf, Some("q4_k")).unwrap();
    let fallback = "blk.0.attn_q.weight as q8_0: its rows are no multiple of the block";
    assert!(summary.exceptions.iter().any(|text| text == fallback), "{:?}", summary.exceptions);
    // A quantised file, converted on, starts from the numbers it computes with.
    let plain = folder.path().join("plain");
    convert(&out, &plain, Target::Hf, None).unwrap();
    let dense = Opened::open_dequantized(&out).unwrap().load(Compute::default()).unwrap();
    assert!(bits(&load(&plain)) == bits(&dense));
}

#[test]
fn requests_that_cannot_be_honoured_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let message = |source: &str, target, elements| {
        convert(&engine(source), &out, target, elements).unwrap_err().to_string()
    };
    let refused = message("llama-gqa", Target::Hf, Some("q8_0"));
    assert!(refused.contains("dtype is q8_0, valid is one of f32, bf16, f16 for hf"), "{refused}");
    let refused = message("opt", Target::Gguf, None);
    assert!(refused.contains("one that GGUF's llama, mamba, mamba2 can say"), "{refused}");
    assert!(message("absent", Target::Hf, None).contains("no such folder"));
    assert!(Target::from_name("onnx").unwrap_err().to_string().contains("danaus, hf, gguf"));
    assert!(!out.exists());
    std::fs::write(&out, "").unwrap();
    assert!(message("llama-gqa", Target::Gguf, None).contains("which exists"));
}

/// Structured weights become dense ones of the same function where a format has no others.
#[test]
fn structured_weights_are_multiplied_out() {
    let batch = SeqBatch::from_lengths(&[9]).unwrap();
    let ids: Vec<u32> = (0..9).map(|at| at * 5 % 40).collect();
    let logits = |model: &Model| {
        no_grad(|| model.decoder.logits(&ids, &batch)).unwrap().to_vec::<f32>().unwrap()
    };
    // Two projections of attention, two matrices of the MLP, in two layers.
    let all =
        ["monarch(4)", "lowrank(3)", "butterfly", "kaleidoscope", "ldr(2)"].map(|it| (it, "", 8));
    let some = r#", "weight_overrides": {"layers.*.mlp.down": "lowrank(4)", "layers.0.mixer.k": "monarch(4)"}"#;
    for (format, overrides, count) in all.into_iter().chain([("dense", some, 3)]) {
        let config = format!(
            r#"{{"model_type": "danaus", "version": 1, "vocab_size": 40, "d_model": 32, "layers": "AA",
                "max_positions": 32, "attention": {{"n_heads": 2, "rope_theta": 10000.0}},
                "mlp": {{"kind": "swiglu", "d_ff": 64}}, "tied_head": true, "weights": "{format}"{overrides}}}"#
        );
        let config = crate::Config::parse(&config, Path::new("config.json")).unwrap();
        let decoder = crate::Decoder::init(&config, 3, Compute::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("structured");
        crate::checkpoint::save_decoder(&decoder, &source).unwrap();
        let structured = load(&source);
        let wanted = logits(&structured);
        let largest = wanted.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        for (target, name) in [(Target::Gguf, "model.gguf"), (Target::Hf, "hf")] {
            let out = folder.path().join(name);
            let summary = convert(&source, &out, target, Some("f32")).unwrap();
            let line = &summary.exceptions[0];
            assert!(
                line.starts_with(&format!("{count} structured matrices as dense ones (layers.0.")),
                "{line}"
            );
            let dense = load(&out);
            assert!(dense.decoder.config().weights == danaus_matrix::structured::Format::Dense);
            assert!(dense.decoder.config().weight_overrides.is_empty());
            // The same sums in another order: some hundred roundings of f32.
            for (a, b) in logits(&dense).iter().zip(&wanted) {
                assert!((a - b).abs() <= 2e-5 * largest, "{format} {name}: {a} {b}");
            }
        }
        let kept = folder.path().join("kept");
        assert!(convert(&source, &kept, Target::Danaus, None).unwrap().exceptions.is_empty());
        assert!(bits(&load(&kept)) == bits(&structured));
    }
}

/// A structured model whose file lacks a matrix is refused by its name.
#[test]
fn a_missing_structured_matrix_is_named() {
    let config = r#"{"model_type": "danaus", "version": 1, "vocab_size": 40, "d_model": 32,
        "layers": "A", "max_positions": 32, "attention": {"n_heads": 2, "rope_theta": 10000.0},
        "mlp": {"kind": "swiglu", "d_ff": 64}, "tied_head": true, "weights": "monarch(4)"}"#;
    let config = crate::Config::parse(config, Path::new("config.json")).unwrap();
    let decoder = crate::Decoder::init(&config, 3, Compute::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    crate::checkpoint::save_decoder(&decoder, folder.path()).unwrap();
    let kept: Vec<_> = decoder
        .params()
        .iter()
        .map(|param| (param.name().to_string(), param.tensor().detach()))
        .filter(|(name, _)| !name.starts_with("layers.0.mlp.down."))
        .collect();
    let entries = kept.iter().map(|(name, tensor)| (name.as_str(), tensor));
    let file = folder.path().join("model.safetensors");
    danaus_tensor::safetensors::save(file, entries, Default::default()).unwrap();
    let out = folder.path().join("out.gguf");
    let message = convert(folder.path(), &out, Target::Gguf, None).unwrap_err().to_string();
    assert!(message.contains("layers.0.mlp.down") && message.contains("monarch(4)"), "{message}");
    assert!(!out.exists());
}
