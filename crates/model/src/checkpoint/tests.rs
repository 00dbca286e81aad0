//! Folders of other projects: what is wrong is named, and what is exported comes back bit by bit.

use super::*;
use crate::families::parse_object;
use danaus_matrix::SeqBatch;
use danaus_tensor::param::TensorSource;
use danaus_tensor::safetensors::Checkpoint;
use danaus_tensor::{DType, no_grad};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

fn bits(model: &Model) -> BTreeMap<String, Vec<u8>> {
    let one = |param: &danaus_tensor::Param| {
        let value = param.tensor().detach().contiguous().unwrap();
        (param.name().to_string(), value.as_bytes().unwrap().to_vec())
    };
    model.decoder.params().iter().map(one).collect()
}

#[test]
fn exported_folders_come_back_bit_by_bit() {
    let models = ["llama-gqa", "llama3-rope-tied-bf16", "opt", "mamba", "mamba2"];
    let families =
        ["llama", "mistral", "qwen2", "qwen3", "opt", "gpt2", "gpt_bigcode", "mamba", "mamba2"];
    let all = models.iter().map(|name| name.to_string());
    for name in all.chain(families.iter().map(|name| format!("families/{name}"))) {
        let path = golden(&format!("40-engine/{name}"));
        let model = Model::load(&path, Compute::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        export(&model, folder.path(), ExportOptions::default()).unwrap();
        let again = Model::load(folder.path(), Compute::default()).unwrap();
        assert_eq!(again.decoder.config(), model.decoder.config(), "{name}");
        assert_eq!(again.special, model.special, "{name}");
        assert_eq!(again.tokenizer.is_some(), model.tokenizer.is_some(), "{name}");
        assert!(bits(&again) == bits(&model), "{name}");
        // The names are theirs again.
        let (theirs, ours) = (Checkpoint::open(&path).unwrap(), Checkpoint::open(folder.path()));
        let kept = |name: &String| !name.ends_with("lm_head.weight");
        let names = |names: Vec<String>| names.into_iter().filter(kept).collect::<Vec<_>>();
        assert_eq!(names(ours.unwrap().names()), names(theirs.names()), "{name}");
        // Our own spelling likewise.
        let own = tempfile::tempdir().unwrap();
        model.save(own.path()).unwrap();
        let again = Model::load(own.path(), Compute::default()).unwrap();
        assert_eq!(again.decoder.config(), model.decoder.config(), "{name}");
        assert!(bits(&again) == bits(&model) && again.special == model.special, "{name}");
    }
}

/// Hugging Face has no words for them; our own format has.
#[test]
fn hybrids_stay_in_our_format() {
    for name in ["hybrid_mamba1", "hybrid_mamba2"] {
        let model = Model::load(&golden(&format!("40-engine/families/{name}")), Compute::default());
        let (model, folder) = (model.unwrap(), tempfile::tempdir().unwrap());
        let message = export(&model, folder.path(), ExportOptions::default()).unwrap_err();
        assert!(message.to_string().contains("Hugging Face architecture"), "{message}");
        model.save(folder.path()).unwrap();
        let again = Model::load(folder.path(), Compute::default()).unwrap();
        assert_eq!(again.decoder.config(), model.decoder.config(), "{name}");
        assert!(bits(&again) == bits(&model), "{name}");
    }
}

#[test]
fn a_model_is_described_without_its_weights() {
    let found = describe(&golden("40-engine/llama3-rope-tied-bf16")).unwrap();
    assert_eq!((found.family.as_str(), found.kind.as_str(), found.layers), ("llama", "llama", 2));
    assert_eq!((found.special.bos, &found.special.eos[..]), (Some(0), &[2, 1][..]));
    let loaded = Model::load(&golden("40-engine/llama3-rope-tied-bf16"), Compute::default());
    assert_eq!(found.parameters, loaded.unwrap().decoder.params().elem_count());
}

/// A model of state-spaces: its settings and tensors without a folder.
fn state_spaces(case: &str, config: &str) -> Model {
    let stored = danaus_testkit::golden("12-mamba2-ssd", case);
    let params = stored.names().filter_map(|name| {
        Some((name.strip_prefix("param.")?.to_string(), stored.get(name).clone()))
    });
    let mut tensors: BTreeMap<String, Tensor> = params.collect();
    // Files of that project keep the tied head a second time.
    tensors.insert("lm_head.weight".into(), tensors["backbone.embedding.weight"].clone());
    let fields = parse_object(config).unwrap();
    let found = crate::families::recognise(&fields).unwrap();
    let opened = Opened::translated(Path::new(case), found, &fields, Arc::new(tensors)).unwrap();
    opened.load(Compute::new(DType::F64)).unwrap()
}

#[test]
fn state_spaces_models_equal_the_originals() {
    for (case, ssm) in [
        ("lm_mamba1", r#"{"layer": "Mamba1", "d_state": 4}"#),
        (
            "lm_mamba2",
            r#"{"layer": "Mamba2", "d_state": 8, "headdim": 8, "chunk_size": 8, "use_mem_eff_path": false}"#,
        ),
    ] {
        let config = format!(
            r#"{{"d_model": 16, "d_intermediate": 0, "n_layer": 2, "vocab_size": 29, "ssm_cfg": {ssm},
            "attn_layer_idx": [], "attn_cfg": {{}}, "rms_norm": true, "residual_in_fp32": false,
            "fused_add_norm": true, "pad_vocab_size_multiple": 8, "tie_embeddings": true}}"#
        );
        let model = state_spaces(case, &config);
        let golden = danaus_testkit::golden("12-mamba2-ssd", case);
        let ids = golden.get("input_ids").to_vec::<i64>().unwrap();
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        let batch = SeqBatch::equal(2, ids.len() / 2).unwrap();
        let logits = no_grad(|| model.decoder.logits(&ids, &batch)).unwrap();
        let expected = golden.get("logits").flatten(0, 1).unwrap();
        danaus_testkit::assert_close(case, &logits, &expected, 1e-9);
    }
}

/// A copy of a golden folder, its config edited.
fn edited(path: &str, from: &str, to: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(path)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let config = folder.path().join(CONFIG_NAME);
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    std::fs::write(&config, text.replacen(from, to, 1)).unwrap();
    folder
}

fn complaint(folder: &Path) -> String {
    let message = Model::load(folder, Compute::default()).err().unwrap().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn what_is_wrong_with_tensors_is_named_in_their_names() {
    let llama = "40-engine/families/llama";
    let cases = [
        (
            edited(llama, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
            "missing tensors: model.layers.2.",
        ),
        (
            edited(llama, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"),
            "unexpected tensors: model.layers.1.",
        ),
        (
            edited(llama, "\"vocab_size\": 48", "\"vocab_size\": 50"),
            "model.embed_tokens.weight has shape [48, 32], expected [50, 32]",
        ),
        (
            edited(llama, "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true"),
            "lm_head.weight differs from the embedding",
        ),
        (edited(llama, "{", "{ \"logit_scale\": 2, "), "config.json: logit_scale is 2"),
        (edited(llama, "{", "["), "config.json: no JSON"),
    ];
    for (folder, expected) in cases {
        let message = complaint(folder.path());
        assert!(message.contains(expected), "{message}");
    }
    let folder = edited("40-engine/llama3-rope-tied-bf16", "{", "{");
    std::fs::remove_file(folder.path().join("model-00002-of-00003.safetensors")).unwrap();
    std::fs::remove_file(folder.path().join("model-00003-of-00003.safetensors")).unwrap();
    let message = complaint(folder.path());
    let shards =
        "missing shards: model-00002-of-00003.safetensors, model-00003-of-00003.safetensors";
    assert!(message.contains(shards), "{message}");
    std::fs::remove_file(folder.path().join(CONFIG_NAME)).unwrap();
    assert!(complaint(folder.path()).contains("no config.json in this folder"));
    assert!(complaint(&folder.path().join("nowhere")).contains("no such folder"));
}

#[test]
fn computing_in_bf16_stays_near() {
    // Eight bits of mantissa, two layers: errors of a few parts in a hundred of the largest logit.
    for name in ["llama-gqa", "opt", "mamba", "mamba2"] {
        let path = golden(&format!("40-engine/{name}"));
        let case = danaus_testkit::golden("40-engine", &format!("{name}.golden"));
        let compute = Compute::new(DType::BF16);
        let model = Model::load(&path, compute).unwrap();
        let found =
            crate::eval::logits(&model.decoder, case.get("input_ids"), None, false).unwrap();
        let found = found[0].1.to_dtype(DType::F32).unwrap();
        danaus_testkit::assert_close(name, &found, case.get("logits"), 0.05);
    }
}
