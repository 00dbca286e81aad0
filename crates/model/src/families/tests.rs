//! Configs of other projects: both spellings, complaints by name, the way back, and damage.

use super::*;
use crate::config::NormKind;
use danaus_matrix::mixer::{AttentionConfig, RopeScaling};
use proptest::prelude::*;
use serde_json::json;
use std::path::Path;

/// Every golden config.
fn golden_configs() -> Vec<Map<String, Value>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let models = ["llama-gqa", "llama3-rope-tied-bf16", "opt", "mamba", "mamba2"];
    let families =
        ["llama", "mistral", "qwen2", "qwen3", "opt", "gpt2", "gpt_bigcode", "mamba", "mamba2"];
    let mut paths: Vec<String> = models.iter().map(|name| format!("40-engine/{name}")).collect();
    paths.extend(families.iter().map(|name| format!("40-engine/families/{name}")));
    paths.extend(["hf_mamba1", "hf_mamba2"].map(|name| format!("12-mamba2-ssd/{name}")));
    paths.push("29-starcoder/tiny-starcoder".into());
    paths.extend(["hybrid_mamba1", "hybrid_mamba2"].map(|n| format!("40-engine/families/{n}")));
    let read = |path: &String| {
        parse_object(&std::fs::read_to_string(root.join(path).join("config.json")).unwrap())
    };
    let mut all: Vec<_> = paths.iter().map(|path| read(path).unwrap()).collect();
    all.push(hybrid());
    all
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// As published for hybrids of Mamba-2 with attention, made small.
fn hybrid() -> Map<String, Value> {
    object(json!({
        "d_model": 32, "d_intermediate": 128, "n_layer": 4, "vocab_size": 29,
        "ssm_cfg": { "layer": "Mamba2", "d_state": 8, "headdim": 8 },
        "attn_layer_idx": [1, 3],
        "attn_cfg": {
            "causal": true, "d_conv": 0, "head_dim": 16, "num_heads": 4, "num_heads_kv": 2,
            "out_proj_bias": false, "qkv_proj_bias": true, "rotary_emb_dim": 8,
        },
        "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true,
        "pad_vocab_size_multiple": 8, "tie_embeddings": true,
    }))
}

fn read(fields: &Map<String, Value>) -> Result<Config> {
    let (family, kind) = recognise(fields)?;
    family.read(&kind, fields)
}

#[test]
fn configs_survive_the_way_there_and_back() {
    for fields in golden_configs() {
        let (family, kind) = recognise(&fields).unwrap();
        let config = family.read(&kind, &fields).unwrap();
        let again = family.write(&kind, &config);
        let again = again.unwrap_or_else(|| panic!("{kind}: {config:?} cannot be written"));
        assert_eq!(family.read(&kind, &again).unwrap(), config, "{kind}");
        // Nothing that was given is lost, except what carries no meaning here, or is rounded up.
        // Without windows it is all the same from which layer on they would be.
        let loose = ["d_intermediate", "max_window_layers"];
        for (field, value) in fields.iter().filter(|(field, _)| !loose.contains(&field.as_str())) {
            if let Some(written) = again.get(field).filter(|_| !value.is_object()) {
                let numbers = (number(written), number(value));
                let equal = written == value || (numbers.0.is_some() && numbers.0 == numbers.1);
                assert!(equal || value.is_null(), "{kind} {field}: {written} for {value}");
            }
        }
        if family.name != "state-spaces" {
            // With one head of keys per query head, GPTBigCode is GPT-2.
            let same = if kind == "gpt_bigcode" { "gpt2" } else { &kind };
            let found = spell(&config).unwrap().1["model_type"].clone();
            assert!(found == *kind || found == same, "{found}: {config:?}");
        }
    }
}

#[test]
fn a_hybrid_in_our_terms() {
    let mut narrow = hybrid();
    narrow.insert("d_intermediate".into(), json!(48)); // rounded up
    let config = read(&narrow).unwrap();
    assert_eq!((config.layers.as_str(), config.vocab_size, config.tokens()), ("MAMA", 32, 29));
    let expected = AttentionConfig {
        n_heads: 4,
        n_kv_heads: Some(2),
        head_dim: Some(16),
        rope_theta: Some(10_000.0),
        rotary_dim: Some(8),
        bias: true,
        out_bias: Some(false),
        ..AttentionConfig::default()
    };
    assert_eq!(config.attention, Some(expected));
    assert_eq!(config.mlp.parts(), (128, "silu".to_string(), false));
    assert_eq!((config.norm.kind, config.mamba2.as_ref().unwrap().n_groups), (NormKind::Rms, 1));
    assert!(spell(&config).is_err());
}

#[test]
fn both_spellings_of_rotary_settings_are_one() {
    let base = golden_configs().remove(1);
    let mut newer = base.clone();
    let mut section = newer.remove("rope_scaling").unwrap();
    section["rope_theta"] = newer.remove("rope_theta").unwrap();
    newer.insert("rope_parameters".into(), section);
    let config = read(&base).unwrap();
    assert_eq!(read(&newer).unwrap(), config);
    assert_eq!(
        config.attention.unwrap().rope_scaling,
        Some(RopeScaling::Llama3 {
            factor: 4.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 32
        })
    );
}

#[test]
fn windows_by_layer() {
    let all = golden_configs();
    let layers = |index: usize| {
        let config = read(&all[index]).unwrap();
        (config.layers, config.attention.unwrap().window)
    };
    assert_eq!(layers(6), ("WW".to_string(), Some(5)), "mistral");
    assert_eq!(layers(7), ("AWW".to_string(), Some(4)), "qwen2");
    assert_eq!(layers(8), ("AA".to_string(), None), "qwen3");
    let mut silent = all[6].clone();
    silent.remove("sliding_window");
    assert_eq!(read(&silent).unwrap().attention.unwrap().window, Some(4095));
}

#[test]
fn complaints_name_the_field_and_what_is_valid() {
    let all = golden_configs();
    let (llama, opt, bigcode, mamba, mamba2) = (0, 2, 11, 3, 4);
    let cases = [
        (llama, "model_type", json!("llamma"), "valid is danaus, llama, qwen3"),
        (llama, "hidden_size", Value::Null, "hidden_size is missing"),
        (llama, "hidden_size", json!(-3), "hidden_size is -3"),
        (llama, "hidden_act", json!("quick_gelu"), "hidden_act is quick_gelu, valid is gelu,"),
        (llama, "num_key_value_heads", json!(3), "attention.n_kv_heads is 3"),
        (llama, "num_hidden_layers", json!(0), "num_hidden_layers is 0"),
        (llama, "rope_theta", json!(5.0), "rope_theta is 5, valid is 10000, as in rope_parameters"),
        (llama, "rope_scaling", json!({"type": "linear"}), "absent beside rope_parameters"),
        (llama, "logit_scale", json!(0.5), "logit_scale is 0.5, a setting unknown here"),
        (llama, "tie_word_embeddings", json!("no"), "true or false"),
        (1, "rope_scaling", json!({"rope_type": "yarn"}), "rope_scaling.rope_type is yarn"),
        (
            1,
            "rope_scaling",
            json!({"rope_type": "linear", "factor": 2, "beta": 1}),
            "rope_scaling.beta is 1",
        ),
        (1, "rope_scaling", json!({"rope_type": "linear"}), "rope_scaling.factor is missing"),
        (opt, "do_layer_norm_before", json!(false), "true (others are not implemented)"),
        (bigcode, "num_key_value_heads", json!(2), "valid is 4, from multi_query"),
        (bigcode, "add_cross_attention", json!(true), "valid is false"),
        (mamba, "intermediate_size", json!(100), "valid is 128, from expand"),
        (mamba, "hidden_act", json!("relu"), "valid is \"silu\""),
        (mamba2, "num_heads", json!(4), "num_heads is 4, valid is 8"),
        (mamba2, "time_step_limit", json!([1]), "two numbers"),
        (mamba2, "time_step_limit", json!([0.5, 0.1]), "mamba2.dt_limit"),
    ];
    for (index, field, value, expected) in cases {
        let mut fields = all[index].clone();
        fields.insert(field.to_string(), value.clone());
        let message = read(&fields).unwrap_err().to_string();
        assert!(message.contains(expected), "{field} = {value}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
    let mut conv = hybrid();
    conv["attn_cfg"]["d_conv"] = json!(4);
    assert_eq!(read(&conv).unwrap().attention.unwrap().conv_width, Some(4));
    conv["attn_cfg"]["d_conv"] = json!(9);
    assert!(read(&conv).unwrap_err().to_string().contains("attention.conv_width is 9"));
    conv["attn_cfg"] = json!({});
    assert!(read(&conv).unwrap_err().to_string().contains("attn_cfg.causal"));
}

#[test]
fn models_without_a_spelling_are_refused() {
    let plain = crate::presets::transformer();
    let message = spell(&plain).unwrap_err().to_string();
    assert!(message.contains("Hugging Face"), "{message}");
    let unknown = object(json!({ "d_model": 3 }));
    let message = read(&unknown).unwrap_err().to_string();
    assert!(message.contains("model_type is missing"), "{message}");
    assert!(recognise_gguf("bert").err().unwrap().to_string().contains("llama, mamba, mamba2"));
}

fn odd_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u64..70).prop_map(Value::from),
        (0u32..64).prop_map(|bits| Value::from(1u64 << bits)),
        any::<f64>().prop_map(Value::from),
        prop_oneof![Just("Infinity"), Just("NaN"), Just("-Infinity")]
            .prop_map(|w| json!({"__float__": w})),
        prop_oneof![Just("auto"), Just("llama"), Just("gelu"), Just("\u{e9}\0")]
            .prop_map(Value::from),
        proptest::collection::vec(0u64..9, 0..5).prop_map(Value::from),
        Just(json!({"rope_type": "llama3", "factor": 0, "original_max_position_embeddings": 0})),
        Just(json!({})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a config says, reading it gives a config or one line of complaint.
    #[test]
    fn damaged_configs_never_panic(
        which in any::<prop::sample::Index>(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), odd_value(), any::<bool>()), 1..5),
    ) {
        let mut fields = which.get(&golden_configs()).clone();
        for (place, value, remove) in edits {
            let names: Vec<String> = fields.keys().cloned().collect();
            let name = place.get(&names);
            match fields.get_mut(name) {
                _ if remove && names.len() > 1 => drop(fields.remove(name)),
                Some(Value::Object(inner)) if !inner.is_empty() => {
                    let inner_names: Vec<String> = inner.keys().cloned().collect();
                    inner.insert(place.get(&inner_names).clone(), value);
                }
                _ => drop(fields.insert(name.clone(), value)),
            }
        }
        match read(&fields) {
            Ok(config) => {
                prop_assert!(config.elem_count().unwrap() > 0);
                prop_assert!(Config::parse(&config.to_json(), Path::new("x")).unwrap() == config);
                let (family, kind) = recognise(&fields).unwrap();
                family.names(&config).theirs("layers.0.mixer.q.weight");
                family.write(&kind, &config);
            }
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
}
