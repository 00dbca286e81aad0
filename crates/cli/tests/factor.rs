//! `danaus factor`: what it finds, writes and refuses.

mod common;

use common::{command, complains, succeed};

fn record(arguments: &[&str]) -> serde_json::Value {
    serde_json::from_str(&succeed(arguments)).unwrap()
}

#[test]
fn transforms_are_recognised_to_rounding() {
    for (name, class) in [("dft", "B P"), ("dct2", "Re(B P)"), ("hadamard", "B")] {
        let found = record(&["factor", name, "--n", "64", "--json"]);
        assert_eq!(found["class"], class, "{name}");
        assert!(found["relative_error"].as_f64().unwrap() < 1e-13, "{found}");
        assert_eq!(found["parameters"], 2 * 64 * 6);
    }
    let learned = record(&["factor", "dft", "--n", "8", "--learn", "--json"]);
    assert!(learned["relative_error"].as_f64().unwrap() < 1e-4, "{learned}");
    let none = command(&["factor", "random", "--n", "16"]).output().unwrap();
    assert_eq!(none.status.code(), Some(1));
}

#[test]
fn factors_are_written_and_read_as_a_matrix_file() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("f.safetensors");
    let path = path.to_str().unwrap();
    let arguments = ["factor", "random", "--n", "32", "--monarch", "4", "--out", path, "--json"];
    let found = record(&arguments);
    // Blocks of 8 x 8 in both factors; slices of rank 2 of 8.
    assert_eq!(found["parameters"], 2 * 4 * 8 * 8);
    let error = found["relative_error"].as_f64().unwrap();
    assert!((0.1..0.9).contains(&error), "{error}");
    let several = command(&["factor", path]).output().unwrap();
    complains(&several, 2, &["--tensor", "w1, w2"]);
    let blocks = command(&["factor", path, "--tensor", "w1"]).output().unwrap();
    complains(&blocks, 2, &["matrix", "[rows, cols]"]);
}

#[test]
fn bad_requests_are_refused_in_one_line() {
    let run = |arguments: &[&str]| command(arguments).output().unwrap();
    complains(&run(&["factor", "fft", "--n", "8"]), 2, &["fft", "dft, idft"]);
    complains(&run(&["factor", "dft", "--n", "12"]), 2, &["12 x 12", "power of two"]);
    complains(&run(&["factor", "random", "--n", "8", "--monarch", "9"]), 2, &["9", "1..=8"]);
    complains(&run(&["factor", "random", "--n", "8", "--lowrank", "9"]), 2, &["rank", "1..=8"]);
    complains(&run(&["factor", "random", "--n", "8", "--mmstar"]), 2, &["8 x 8", "m^2"]);
    complains(
        &run(&["factor", "random", "--n", "12", "--learn"]),
        2,
        &["[12, 12]", "power of two"],
    );
}
