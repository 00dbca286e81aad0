//! `danaus compress` and `danaus densify`: what they write, report and refuse.

mod common;

use common::{Place, refused, succeed};

#[test]
fn a_model_is_compressed_and_multiplied_out_again() {
    let place = Place::with_model();
    let (model, small, dense) = (place.at("run/model"), place.at("small"), place.at("dense"));
    let (model, small, dense) = (model.as_str(), small.as_str(), dense.as_str());
    let line = succeed(&[
        "compress", model, "--format", "monarch", "--format", "lowrank", "--budget", "0.6",
        "--out", small, "--json",
    ]);
    let report: serde_json::Value = serde_json::from_str(&line).unwrap();
    let count = |report: &serde_json::Value, which: usize| {
        report["weight_parameters"][which].as_f64().unwrap()
    };
    assert!(count(&report, 1) <= 0.6 * count(&report, 0), "{report}");
    // Both generate, and the same tokens: densified weights differ in rounding only.
    let generate = |folder: &str| {
        succeed(&[
            "generate",
            "--model",
            folder,
            "--prompt-ids",
            "1,2,3",
            "--max-tokens",
            "8",
            "--temperature",
            "0",
            "--ignore-eos",
            "--json",
        ])
    };
    let table = succeed(&["densify", small, "--out", dense]);
    assert!(table.contains("layers.0.mixer.in_proj") && table.contains("weights:"), "{table}");
    let tokens = |line: String| -> serde_json::Value {
        serde_json::from_str::<serde_json::Value>(&line).unwrap()["tokens"].clone()
    };
    assert_eq!(tokens(generate(small)), tokens(generate(dense)));
}

#[test]
fn matrices_of_a_file_are_analysed() {
    let place = Place::with_model();
    let model = place.at("run/model");
    let table = succeed(&["analyze", &model, "--tensor", "layers.*.mlp.down.weight"]);
    assert!(table.contains("layers.1.mlp.down.weight: 16 x 16"), "{table}");
    assert!(table.contains("M - Z M Z^T") && table.contains("lowrank("), "{table}");
    let line = succeed(&["analyze", &model, "--tensor", "layers.0.mlp.down.weight", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(report[0]["matrix"]["of"], 16);
    assert_eq!(report[0]["displacements"].as_array().unwrap().len(), 3);
    refused(&["analyze", &model, "--tensor", "norm.weight"], &["norm.weight", "2-D"]);
    refused(&["analyze", &place.at("nothing")], &["nothing"]);
}

#[test]
fn bad_requests_are_refused_in_one_line() {
    let place = Place::with_model();
    let (model, out) = (place.at("run/model"), place.at("out"));
    let (model, out) = (model.as_str(), out.as_str());
    let compress = |more: &[&str], parts: &[&str]| {
        refused(&[&["compress", model, "--out", out][..], more].concat(), parts);
    };
    compress(&["--format", "svd"], &["svd", "lowrank(RANK)"]);
    compress(&["--format", "monarch"], &["monarch", "budget"]);
    compress(&["--format", "monarch", "--budget", "1.5"], &["1.5", "between 0 and 1"]);
    compress(&["--format", "monarch(2)", "--only", "nowhere"], &["nowhere", "layers.0."]);
    compress(&["--format", "monarch(2)", "--dtype", "q8_0"], &["q8_0", "f32, bf16, f16"]);
    refused(&["densify", model, "--out", out], &["dense"]);
    refused(&["densify", out, "--out", out], &["no such folder"]);
}
