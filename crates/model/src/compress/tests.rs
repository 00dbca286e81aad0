//! Compressed checkpoints load, keep what the report says, and come back dense.

use super::*;
use crate::checkpoint::save_decoder;
use crate::decoder::Decoder;
use crate::presets;
use danaus_matrix::SeqBatch;
use danaus_tensor::no_grad;
use std::path::PathBuf;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/40-engine").join(path)
}

fn logits(path: &Path) -> Tensor {
    let decoder = Model::load(path, Compute::default()).unwrap().decoder;
    let vocab = decoder.config().vocab_size as u32;
    let ids: Vec<u32> = (0..24).map(|at| (at * 37 + 11) % vocab).collect();
    let batch = SeqBatch::equal(2, 12).unwrap();
    no_grad(|| decoder.logits(&ids, &batch)).unwrap().to_dtype(DType::F64).unwrap()
}

/// Largest difference over the largest entry.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let largest = |t: &Tensor| {
        let values = t.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
        values.iter().fold(0.0f64, |most, value| most.max(value.abs()))
    };
    largest(&a.sub(b).unwrap()) / largest(b)
}

fn only(format: &str) -> Vec<Candidates> {
    vec![format.parse().unwrap()]
}

fn quiet(source: &Path, out: &Path, options: &Options) -> Result<Report> {
    compress(source, out, options, &mut |_, _, _| {})
}

/// A new model of these weights in a folder.
fn saved(config: &Config, folder: &Path) {
    save_decoder(&Decoder::init(config, 5, Compute::default()).unwrap(), folder).unwrap();
}

fn small(weights: &str) -> Config {
    let weights = Format::try_from(weights.to_string()).unwrap();
    // Widths that are no powers of two, so that vectors are padded.
    Config { weights, ..presets::quickstart(300) }
}

/// One block in both factors, and rank 64 of 64, leave nothing out. f32 rounding of both factors and of
/// the longer sums is a few units in the last place of activations of size one.
#[test]
fn full_rank_compression_reproduces_the_logits() {
    for name in ["llama-gqa", "opt", "mamba", "families/gpt2", "families/hybrid_mamba2"] {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        let options = Options { formats: only("monarch(1)"), ..Options::default() };
        let report = quiet(&golden(name), &out, &options).unwrap();
        assert!(report.weights.iter().all(|weight| weight.relative_error < 1e-12), "{name}");
        let error = distance(&logits(&out), &logits(&golden(name)));
        assert!(error < 2e-5, "{name}: {error:e}");
        let back = place.path().join("dense");
        densify(&out, &back, None, &mut |_, _, _| {}).unwrap();
        let error = distance(&logits(&back), &logits(&golden(name)));
        assert!(error < 2e-5, "{name}, dense again: {error:e}");
    }
}

#[test]
fn full_rank_products_reproduce_the_logits() {
    let place = tempfile::tempdir().unwrap();
    let (source, out) = (place.path().join("in"), place.path().join("out"));
    saved(&small("dense"), &source);
    // All sides are 128 or more; the rank is that of the smaller one.
    let options = Options { formats: only("lowrank(128)"), ..Options::default() };
    let report = quiet(&source, &out, &options).unwrap();
    assert!(report.weights.iter().all(|weight| weight.relative_error < 1e-12));
    assert!(distance(&logits(&out), &logits(&source)) < 2e-5);
}

#[test]
fn the_report_says_what_was_written() {
    let (place, source) = (tempfile::tempdir().unwrap(), golden("llama-gqa"));
    let dense = Source::open(&source).unwrap();
    let formats =
        ["monarch(2)", "monarch(3)", "lowrank(3)", "butterfly", "ldr(4)", "pixelfly(4,4,1,2)"];
    for format in formats {
        let out = place.path().join(format);
        let options = Options { formats: only(format), ..Options::default() };
        let report = quiet(&source, &out, &options).unwrap();
        let written = Source::open(&out).unwrap();
        assert_eq!(written.model.decoder.params().elem_count(), report.parameters[1], "{format}");
        assert_eq!(dense.model.decoder.params().elem_count(), report.parameters[0], "{format}");
        assert_eq!(report.weights.len(), dense.model.decoder.matrices().len(), "{format}");
        for (weight, made) in report.weights.iter().zip(dense.model.decoder.matrices()) {
            let now = written.model.decoder.matrices();
            let now = now.iter().find(|now| now.name == made.name).unwrap();
            assert_eq!((&weight.name, now.format.as_str()), (&made.name, format));
            let (a, b) = (dense.dense(made).unwrap(), written.dense(now).unwrap());
            let norm =
                |t: &Tensor| t.mul(t).unwrap().sum_all().unwrap().to_scalar().unwrap().sqrt();
            let error = norm(&a.sub(&b).unwrap()) / norm(&a);
            // Factors are written in f32.
            let said = weight.relative_error;
            assert!((error - said).abs() < 1e-6, "{format} {}: {error} {said}", made.name);
            assert!(said > 0.01 && said <= 1.0, "{format} {}: {said}", made.name);
        }
        let config = std::fs::read_to_string(out.join("config.json")).unwrap();
        assert!(config.contains(&format!("\"layers.0.mixer.q\": \"{format}\"")), "{config}");
        let stored = std::fs::read_to_string(out.join("compress.json")).unwrap();
        let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
        assert_eq!(stored["parameters"][1], report.parameters[1]);
        let table = report.table();
        assert!(table.contains("layers.0.mixer.q ") && table.contains(format), "{table}");
    }
}

#[test]
fn budgets_and_limits_hold() {
    let (place, source) = (tempfile::tempdir().unwrap(), golden("llama-gqa"));
    let formats: Vec<Candidates> = vec!["monarch".parse().unwrap(), "lowrank".parse().unwrap()];
    let mut last = f64::INFINITY;
    for budget in [0.3, 0.5, 0.7, 0.9] {
        let out = place.path().join(budget.to_string());
        let options =
            Options { formats: formats.clone(), budget: Some(budget), ..Options::default() };
        let report = quiet(&source, &out, &options).unwrap();
        let [before, after] = report.weight_parameters;
        assert!(after as f64 <= budget * before as f64, "{budget}: {after} of {before}");
        assert!(after as f64 > (budget - 0.1) * before as f64, "{budget}: {after} of {before}");
        assert!(report.mean_error < last, "{budget}: {}", report.mean_error);
        last = report.mean_error;
        assert_eq!(logits(&out).dims()[0], 24);
    }
    let limit = Options { formats, max_error: Some(0.6), ..Options::default() };
    let report = quiet(&source, &place.path().join("limit"), &limit).unwrap();
    assert!(report.weights.iter().all(|weight| weight.relative_error <= 0.6));
    assert!(report.weight_parameters[1] < report.weight_parameters[0]);
    // A limit that no format keeps leaves the model as it is.
    let none = Options { max_error: Some(1e-6), ..limit };
    let out = place.path().join("none");
    let report = quiet(&source, &out, &none).unwrap();
    assert_eq!(report.weight_parameters[0], report.weight_parameters[1]);
    assert_eq!(distance(&logits(&out), &logits(&source)), 0.0);
}

#[test]
fn any_structured_checkpoint_becomes_dense_with_the_same_logits() {
    let formats =
        ["monarch(3)", "butterfly", "kaleidoscope", "ldr(2)", "lowrank(5)", "pixelfly(8,4,1,5)"];
    for format in formats {
        let place = tempfile::tempdir().unwrap();
        let (source, out) = (place.path().join("in"), place.path().join("out"));
        let mut config = small(format);
        // A pattern, and a name that counts before it.
        config.weight_overrides.insert("layers.*.mixer.out_proj".into(), Format::Butterfly);
        config.weight_overrides.insert("layers.1.mixer.out_proj".into(), Format::Dense);
        saved(&config, &source);
        let report = densify(&source, &out, None, &mut |_, _, _| {}).unwrap();
        let dense = Model::load(&out, Compute::default()).unwrap();
        assert_eq!(dense.decoder.params().elem_count(), report.parameters[1], "{format}");
        assert_eq!(report.parameters[0], config.elem_count().unwrap(), "{format}");
        assert_eq!(report.parameters[1], small("dense").elem_count().unwrap(), "{format}");
        assert_eq!(dense.decoder.config(), &small("dense"));
        // Products of two times seven factors in f32 against one product.
        let error = distance(&logits(&out), &logits(&source));
        assert!(error < 5e-5, "{format}: {error:e}");
    }
}

#[test]
fn some_weights_are_compressed_and_element_types_stay() {
    let (place, source) = (tempfile::tempdir().unwrap(), golden("llama3-rope-tied-bf16"));
    let out = place.path().join("out");
    let options = Options {
        formats: only("monarch(2)"),
        only: Some("layers.*.mlp.down".into()),
        ..Options::default()
    };
    let report = quiet(&source, &out, &options).unwrap();
    assert!(report.weights.iter().all(|weight| weight.name.ends_with("mlp.down")));
    assert_eq!(report.weights.len(), 2);
    let stored = danaus_tensor::safetensors::Checkpoint::open(&out).unwrap();
    use danaus_tensor::param::TensorSource;
    for name in ["layers.0.mlp.down.w1", "layers.1.mlp.up.weight", "embedding.weight"] {
        assert_eq!(stored.tensor(name).unwrap().unwrap().dtype(), DType::BF16, "{name}");
    }
    // From there on with other formats: what is structured already is taken as it is.
    let again = Options { formats: only("lowrank(2)"), dtype: Some(DType::F32), ..options };
    let second = quiet(&out, &place.path().join("second"), &again).unwrap();
    assert_eq!(second.weights[0].format, ["monarch(2)", "lowrank(2)"]);
    assert_eq!(second.weights[0].parameters[0], report.weights[0].parameters[1]);
}

#[test]
fn bad_requests_are_refused_by_name() {
    let (place, source) = (tempfile::tempdir().unwrap(), golden("llama-gqa"));
    let out = place.path().join("out");
    let message = |options: Options| {
        let error = quiet(&source, &out, &options).unwrap_err();
        assert!(error.is_bad_input() && !out.exists());
        error.to_string()
    };
    let with = |formats: Vec<Candidates>| Options { formats, ..Options::default() };
    assert!(message(with(Vec::new())).contains("format is missing"));
    let families = vec![Candidates::Monarch, Candidates::LowRank];
    assert!(message(with(families.clone())).contains("budget"));
    assert!(message(with(only("lowrank(100000)"))).contains("lowrank(100000)"));
    for budget in [0.0, 1.0, f64::NAN, -2.0] {
        let options = Options { budget: Some(budget), ..with(families.clone()) };
        assert!(message(options).contains("share of the parameters"));
    }
    let options = Options { budget: Some(1e-4), ..with(families.clone()) };
    assert!(message(options).contains("at least 0."));
    let options = Options { max_error: Some(-1.0), ..with(families.clone()) };
    assert!(message(options).contains("max-error is -1"));
    let options = Options { only: Some("layers.*.nothing".into()), ..with(only("monarch(2)")) };
    assert!(message(options).contains("layers.0.mixer.q"));
    for text in ["dense", "kaleidoscope", "monarch(0)", "svd"] {
        let error = text.parse::<Candidates>().unwrap_err().to_string();
        assert!(error.contains(text) && error.contains("lowrank(RANK)"), "{error}");
    }
    let error = densify(&source, &out, None, &mut |_, _, _| {}).unwrap_err();
    assert!(error.to_string().contains("all dense"), "{error}");
    let exists = quiet(&source, place.path(), &with(only("monarch(2)"))).unwrap_err();
    assert!(exists.to_string().contains("which exists"), "{exists}");
}

#[test]
fn overrides_of_no_weight_are_refused() {
    let mut config = small("dense");
    config.weight_overrides.insert("layers.9.mixer.out".into(), Format::Butterfly);
    let message = Decoder::init(&config, 0, Compute::default()).err().unwrap().to_string();
    assert!(
        message.contains("layers.9.mixer.out") && message.contains("layers.0.mixer"),
        "{message}"
    );
}
