//! Operators on files: renamed tensors, gradients, complex pairs, groups of parameters.

use danaus::op_files::{FileCall, run};
use danaus::tensor::safetensors::{TensorFile, save};
use danaus::tensor::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn tensor(values: &[f64]) -> Tensor {
    Tensor::from_slice(values, [values.len()], &Device::Cpu).unwrap()
}

/// A folder with `in.safetensors`.
fn folder(tensors: &[(&str, Tensor)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let entries = tensors.iter().map(|(name, tensor)| (*name, tensor));
    save(folder.path().join("in.safetensors"), entries, HashMap::new()).unwrap();
    folder
}

fn call(folder: &Path, op: &str) -> FileCall {
    FileCall {
        op: op.to_string(),
        input: folder.join("in.safetensors"),
        output: folder.join("out.safetensors"),
        set: vec![],
        map: vec![],
        dtype: None,
        device: Device::Cpu,
        grad: false,
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(String::from).collect()
}

fn results(request: &FileCall) -> (Vec<String>, TensorFile) {
    let names = run(&danaus::registry().unwrap(), request).unwrap();
    (names, TensorFile::open(&request.output).unwrap())
}

fn values(file: &TensorFile, name: &str) -> Vec<f64> {
    file.tensor(name).unwrap().to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap()
}

fn message(request: &FileCall) -> String {
    run(&danaus::registry().unwrap(), request).unwrap_err().to_string()
}

#[test]
fn names_attributes_and_gradients() {
    let inputs =
        [("left", tensor(&[1.0, 2.0])), ("b", tensor(&[3.0, 5.0])), ("R", tensor(&[1.0, -1.0]))];
    let folder = folder(&inputs);
    let map = words("a=left grad_out.y=R y=product grad.a=dleft");
    let request = FileCall { map, grad: true, ..call(folder.path(), "mul") };
    let (names, file) = results(&request);
    assert_eq!(names, ["dleft", "grad.b", "product"]);
    assert_eq!(values(&file, "product"), [3.0, 10.0]);
    assert_eq!(values(&file, "dleft"), [3.0, -5.0]);
    assert_eq!(values(&file, "grad.b"), [1.0, -2.0]);

    let set = words("factor=2 shift=-1");
    let affine = FileCall { set, map: words("x=b"), ..call(folder.path(), "affine") };
    assert_eq!(values(&results(&affine).1, "y"), [5.0, 9.0]);
    // Several results in one place would hide each other.
    let same =
        FileCall { map: words("a=left y=z grad.a=z"), grad: true, ..call(folder.path(), "mul") };
    assert!(message(&same).contains("one name for each result"));
}

#[test]
fn element_types_are_those_of_the_operator() {
    let folder = folder(&[("x", tensor(&[0.1, 0.7]))]);
    for (name, dtype) in
        [("f64", DType::F64), ("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)]
    {
        let request = FileCall { dtype: Some(name.parse().unwrap()), ..call(folder.path(), "exp") };
        let (_, file) = results(&request);
        assert_eq!(file.tensor("y").unwrap().dtype(), dtype);
        let relative = |(found, x): (f64, f64)| (found / x.exp() - 1.0).abs();
        let worst =
            values(&file, "y").into_iter().zip([0.1, 0.7]).map(relative).fold(0.0, f64::max);
        // The input and the result are rounded once each.
        assert!(worst < 1.1 * if dtype == DType::BF16 { 2f64.powi(-8) } else { 2f64.powi(-10) });
    }
    let request = FileCall { dtype: Some(DType::F8E4M3), ..call(folder.path(), "exp") };
    assert_eq!(message(&request), "exp: --dtype is e4m3, valid is f64, f32, bf16, f16");
    let stored = FileCall { dtype: Some(DType::F8E4M3), ..call(folder.path(), "flip") };
    assert_eq!(results(&stored).1.tensor("y").unwrap().dtype(), DType::F8E4M3);
}

/// `|z|` of 3 + 4i and of -5i, and its gradient `z / |z|`, however z is stored.
#[test]
fn complex_numbers_are_entries_or_pairs() {
    let (re, im) = (tensor(&[3.0, 0.0]), tensor(&[4.0, -5.0]));
    let pair = folder(&[("z.re", re.clone()), ("z.im", im.clone())]);
    let request = FileCall { grad: true, ..call(pair.path(), "modulus") };
    let (names, file) = results(&request);
    assert_eq!(names, ["grad.z.im", "grad.z.re", "y"]);
    assert_eq!(values(&file, "y"), [5.0, 5.0]);
    for (name, expected) in [("grad.z.re", [0.6, 0.0]), ("grad.z.im", [0.8, -1.0])] {
        let found = values(&file, name);
        let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-15, "{name}: {found:?}");
    }

    let entry = Tensor::complex(&re, &im).unwrap().to_dtype(DType::C64).unwrap();
    let single = folder(&[("w", entry)]);
    let request = FileCall { map: words("z=w"), ..call(single.path(), "conj") };
    let (names, file) = results(&request);
    assert_eq!((names, file.tensor("y").unwrap().dtype()), (vec!["y".to_string()], DType::C64));
    // f64 has no complex type in a file.
    let (names, file) = results(&FileCall { dtype: Some(DType::F64), ..request });
    assert_eq!(names, ["y.im", "y.re"]);
    assert_eq!(values(&file, "y.im"), [-4.0, 5.0]);
    // Half a pair is a missing input.
    let half = folder(&[("z.re", re)]);
    assert!(message(&call(half.path(), "modulus")).contains("z is missing"));
}

/// Parameters of a model under their published names; the loss alone has a cotangent by default.
#[test]
fn groups_of_parameters() {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/12-mamba2-ssd");
    let input = golden.join("lm_mamba2.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let request = FileCall {
        input: input.clone(),
        set: words("d_state=8 head_dim=8 chunk_size=8"),
        grad: true,
        ..call(folder.path(), "lm.mamba2")
    };
    let (names, file) = results(&request);
    assert_eq!(names.len(), 22);
    let expected = TensorFile::open(&input).unwrap();
    let name = "backbone.layers.1.mixer.in_proj.weight";
    let (found, exact) =
        (values(&file, &format!("grad.param.{name}")), values(&expected, &format!("grad.{name}")));
    let worst = found.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-12, "{worst}");
    let wrong = FileCall { set: words("d_state=9 head_dim=8"), ..request };
    let message = message(&wrong);
    assert!(message.contains("layers.0.mixer.conv1d.bias has shape [48]"), "{message}");
}
