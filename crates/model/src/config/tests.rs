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
            "letters A (attention), W (attention in a window), M (mamba2) and S (mamba1)",
        ),
        ("\"tied_head\": true", "\"tied_haed\": true", "unknown field `tied_haed`"),
        ("\"kind\": \"rms\"", "\"kind\": \"rsm\"", "unknown variant `rsm`"),
        ("\"model_type\": \"danaus\"", "\"model_type\": \"llama\"", "valid is danaus"),
        ("\"version\": 1", "\"version\": 2", "version is 2"),
        ("\"weights\": \"dense\"", "\"weights\": \"dence\"", "lowrank(RANK)"),
        ("\"n_heads\": 2", "\"n_heads\": 3", "attention.n_heads is 3"),
    ];
    for (from, to, expected) in cases {
        assert!(base.contains(from), "{from} is not in {base}");
        let text = base.replacen(from, to, 1);
        let message = Config::parse(&text, Path::new("config.json")).unwrap_err().to_string();
        assert!(message.contains(expected), "{to}: {message}");
    }
}
