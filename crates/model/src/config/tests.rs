//! Configs round trip, and complain by name.

use super::*;
use crate::presets;

#[test]
fn presets_round_trip() {
    for config in [presets::transformer(), presets::mamba2(), presets::quickstart(2048)] {
        let again = Config::parse(&config.to_json(), Path::new("config.json")).unwrap();
        assert_eq!(again, config);
    }
}

#[test]
fn complaints_name_field_and_valid_values() {
    let base = presets::quickstart(2048).to_json();
    let cases = [
        (
            "\"layers\": \"MMAM\"",
            "\"layers\": \"MXAM\"",
            "letters A (attention), W (attention in a window), M (mamba2), S (mamba1), L (linear",
        ),
        ("\"tied_head\": true", "\"tied_haed\": true", "unknown field `tied_haed`"),
        ("\"kind\": \"rms\"", "\"kind\": \"rsm\"", "unknown variant `rsm`"),
        ("\"model_type\": \"danaus\"", "\"model_type\": \"llama\"", "valid is danaus"),
        ("\"version\": 1", "\"version\": 2", "version is 2"),
        ("\"weights\": \"dense\"", "\"weights\": \"dence\"", "lowrank(RANK)"),
        ("\"n_heads\": 2", "\"n_heads\": 3", "attention.n_heads is 3"),
        ("\"kind\": \"none\"", "\"kind\": \"none\", \"d_ff\": 5", "unknown field `mlp.d_ff`"),
        ("\"d_model\": 128", "\"d_model\": 999999999", "d_model is 999999999"),
        ("\"expand\": 2", "\"expand\": 9000000000000000000", "mamba2.expand"),
        ("\"n_heads\": 2", "\"n_heads\": 9000000000000000000", "attention.n_heads"),
        ("\"n_groups\": 1", "\"n_groups\": 9000000000000000000", "mamba2.n_groups"),
        ("\"weights\": \"dense\"", "\"weights\": \"lowrank(99999999999)\"", "weights is"),
        ("\"layers\": \"MMAM\"", "\"layers\": \"\"", "number of layers is 0"),
    ];
    for (from, to, expected) in cases {
        assert!(base.contains(from), "{from} is not in {base}");
        let text = base.replacen(from, to, 1);
        let message = Config::parse(&text, Path::new("config.json")).unwrap_err().to_string();
        assert!(message.contains(expected), "{to}: {message}");
    }
}

#[test]
fn recomputing_needs_less_memory() {
    let config = presets::transformer();
    let activations = |recompute| config.training_bytes(4096, recompute).unwrap()[3].1;
    // Four blocks of 11 d + 2 d_ff numbers a token, against one block and four inputs.
    let (d, d_ff) = (256, 1024);
    assert_eq!(activations(false), 4 * 4096 * (4 * (11 * d + 2 * d_ff) + 4 * d));
    assert_eq!(activations(true), 4 * 4096 * (11 * d + 2 * d_ff + 4 * d + 4 * d));
}

#[test]
fn memory_is_refused_with_the_sum() {
    let config = Config { tied_head: true, ..Config::bare(1 << 20, 1 << 10, "") };
    assert!(config.check_memory(None).is_ok());
    assert!(config.check_memory(Some(5 << 30)).is_ok());
    let message = config.check_memory(Some(1 << 30)).unwrap_err().to_string();
    assert!(message.contains("1073742848 parameters of 4 bytes"), "{message}");
    assert!(message.contains("4.0 GiB") && message.contains("1.0 GiB are available"), "{message}");
}
