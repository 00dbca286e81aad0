//! Golden cases through the public functions, and refusals.

use super::super::{SsdInputs, SsdOptions, SsdStepInputs, ssd, ssd_step};
use danaus_tensor::{DType, Device, Tensor, backward_with};
use danaus_testkit::{Golden, assert_close, golden};

/// Relative to the largest value: f64 differs by summation order, f32 by sums of a few hundred terms.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F64 { 1e-12 } else { 5e-6 }
}

fn load(case: &str) -> Golden {
    golden("12-mamba2-ssd", case)
}

const SOFTPLUS: SsdOptions = SsdOptions { dt_softplus: true, dt_limit: None, chunk_size: None };

/// The named inputs of a case as tracked leaves; optional ones that the case lacks are absent.
struct Leaves(Vec<(&'static str, Option<Tensor>)>);

impl Leaves {
    fn new(file: &Golden, dtype: DType) -> Self {
        let names = ["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states"];
        let leaf = |name| (name, file.find(name).map(|t| t.to_dtype(dtype).unwrap().tracked()));
        Self(names.into_iter().map(leaf).collect())
    }

    fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.iter().find(|entry| entry.0 == name).and_then(|entry| entry.1.as_ref())
    }

    fn inputs(&self) -> SsdInputs<'_> {
        let at = |name| self.get(name).unwrap();
        SsdInputs {
            d: self.get("D"),
            z: self.get("z"),
            dt_bias: self.get("dt_bias"),
            initial_states: self.get("initial_states"),
            ..SsdInputs::new(at("x"), at("dt"), at("A"), at("B"), at("C"))
        }
    }

    fn check_gradients(&self, file: &Golden, pairs: &[(&Tensor, &Tensor)], dtype: DType) {
        let grads = backward_with(pairs).unwrap();
        for (name, leaf) in &self.0 {
            let (Some(leaf), Some(expected)) = (leaf, file.find(&format!("grad.{name}"))) else {
                continue;
            };
            assert_close(
                &format!("grad.{name}"),
                grads.get(leaf).unwrap(),
                expected,
                tolerance(dtype),
            );
        }
    }
}

#[test]
fn everything_at_once() {
    let file = load("ssd_full");
    for dtype in [DType::F64, DType::F32] {
        for chunk_size in [None, Some(1), Some(16)] {
            let leaves = Leaves::new(&file, dtype);
            let options = SsdOptions { chunk_size, ..SOFTPLUS };
            let (y, last) = ssd(&leaves.inputs(), &options).unwrap();
            assert_close("y", &y, file.get("y"), tolerance(dtype));
            assert_close("final_state", &last, file.get("final_state"), tolerance(dtype));
            let pairs = [(&y, file.get("R.y")), (&last, file.get("R.final_state"))];
            leaves.check_gradients(&file, &pairs, dtype);
            let without = SsdInputs { initial_states: None, ..leaves.inputs() };
            let (y, last) = ssd(&without, &options).unwrap();
            assert_close("y_no_init", &y, file.get("y_no_init"), tolerance(dtype));
            let expected = file.get("final_state_no_init");
            assert_close("final_state_no_init", &last, expected, tolerance(dtype));
        }
    }
}

#[test]
fn limits_and_a_skip_for_every_channel() {
    let file = load("ssd_dtlimit_Dhp");
    for dtype in [DType::F64, DType::F32] {
        let leaves = Leaves::new(&file, dtype);
        let options = SsdOptions { dt_limit: Some((0.05, 0.4)), ..SOFTPLUS };
        let (y, last) = ssd(&leaves.inputs(), &options).unwrap();
        assert_close("y", &y, file.get("y"), tolerance(dtype));
        assert_close("final_state", &last, file.get("final_state"), tolerance(dtype));
        leaves.check_gradients(&file, &[(&y, file.get("R"))], dtype);
    }
}

#[test]
fn packed_sequences() {
    let file = load("ssd_varlen");
    for dtype in [DType::F64, DType::F32] {
        let leaves = Leaves::new(&file, dtype);
        let (seq_idx, bounds) = (Some(file.get("seq_idx")), Some(file.get("cu_seqlens")));
        let (y, _) = ssd(&SsdInputs { seq_idx, ..leaves.inputs() }, &SOFTPLUS).unwrap();
        assert_close("y", &y, file.get("y"), tolerance(dtype));
        leaves.check_gradients(&file, &[(&y, file.get("R"))], dtype);
        let packed = SsdInputs { seq_idx, cu_seqlens: bounds, ..leaves.inputs() };
        let (y, last) = ssd(&packed, &SOFTPLUS).unwrap();
        assert_close("y", &y, file.get("y"), tolerance(dtype));
        assert_close("varlen_states", &last, file.get("varlen_states"), tolerance(dtype));
        let initial_states = Some(file.get("per_seq_initial_states"));
        let (y, last) = ssd(&SsdInputs { initial_states, ..packed }, &SOFTPLUS).unwrap();
        assert_close("y_with_per_seq_init", &y, file.get("y_with_per_seq_init"), tolerance(dtype));
        let expected = file.get("varlen_states_with_per_seq_init");
        assert_close("varlen_states_with_per_seq_init", &last, expected, tolerance(dtype));
    }
}

/// The reference implementation's intermediate results belong to its algorithm; `y` and the final state
/// of its truncated inputs are everybody's.
#[test]
fn truncated_to_whole_chunks() {
    let (file, full) = (load("ssd_chunk_intermediates"), load("ssd_full"));
    let leaves = Leaves::new(&full, DType::F64);
    let inputs = SsdInputs { d: None, z: None, initial_states: None, ..leaves.inputs() };
    let (y, last) = ssd(&inputs, &SsdOptions { chunk_size: Some(8), ..SOFTPLUS }).unwrap();
    assert_close("y", &y, file.get("y"), 1e-12);
    assert_close("final_state", &last, file.get("final_state"), 1e-12);
}

#[test]
fn one_step() {
    let file = load("step");
    for dtype in [DType::F64, DType::F32] {
        let at = |name| file.get_as(name, dtype);
        let (x, dt, a, b, c) = (at("x"), at("dt"), at("A"), at("B"), at("C"));
        let (d, z, bias, state) = (at("D"), at("z"), at("dt_bias"), at("state0"));
        let inputs = SsdStepInputs {
            x: &x,
            dt: &dt,
            a: &a,
            b: &b,
            c: &c,
            d: Some(&d),
            z: Some(&z),
            dt_bias: Some(&bias),
            state: &state,
        };
        let (y, state) = ssd_step(&inputs, &SOFTPLUS).unwrap();
        assert_close("y", &y, file.get("y"), tolerance(dtype));
        assert_close("state1", &state, file.get("state1"), tolerance(dtype));
    }
}

#[test]
fn wrong_arguments_are_named() {
    let file = load("ssd_full");
    let leaves = Leaves::new(&file, DType::F64);
    let good = leaves.inputs();
    let message = |inputs: SsdInputs, options: SsdOptions| {
        ssd(&inputs, &options).expect_err("must be refused").to_string()
    };
    let cut = good.b.narrow(3, 0, 5).unwrap();
    assert_eq!(
        message(SsdInputs { b: &cut, ..good }, SOFTPLUS),
        "ssd: C has shape [2, 40, 2, 16], expected [batch, seqlen, groups, d_state] = [2, 40, 2, 5]"
    );
    let three = Tensor::cat(&[good.b, &good.b.narrow(2, 0, 1).unwrap()], 2).unwrap();
    assert!(
        message(SsdInputs { b: &three, c: &three, ..good }, SOFTPLUS).contains("divide heads = 4")
    );
    let nan = good.dt.affine(f64::NAN, 0.0).unwrap();
    let found = message(SsdInputs { dt: &nan, ..good }, SOFTPLUS);
    assert_eq!(found, "ssd: dt is NaN somewhere, valid is numbers");
    let positive = good.a.affine(-1.0, 0.0).unwrap();
    assert!(
        message(SsdInputs { a: &positive, ..good }, SOFTPLUS).starts_with("ssd: A is positive")
    );
    for dt_limit in [(0.4, 0.1), (-1.0, 1.0)] {
        let options = SsdOptions { dt_limit: Some(dt_limit), ..SOFTPLUS };
        assert!(message(good, options).contains("valid is two numbers with 0 <= low <= high"));
    }
    let options = SsdOptions { chunk_size: Some(0), ..SOFTPLUS };
    assert_eq!(message(good, options), "ssd: chunk_size is 0, valid is at least 1");
    let floats = Tensor::zeros([2, 40], DType::F32, &Device::Cpu).unwrap();
    let found = message(SsdInputs { seq_idx: Some(&floats), ..good }, SOFTPLUS);
    assert_eq!(found, "ssd: seq_idx has dtype f32, expected i32 or i64");
    let short = Tensor::zeros([2, 39], DType::I64, &Device::Cpu).unwrap();
    let found = message(SsdInputs { seq_idx: Some(&short), ..good }, SOFTPLUS);
    assert_eq!(found, "ssd: seq_idx has shape [2, 39], expected [batch, seqlen] = [2, 40]");
    let one_state = good.initial_states.unwrap().narrow(0, 0, 1).unwrap();
    let found = message(SsdInputs { initial_states: Some(&one_state), ..good }, SOFTPLUS);
    assert!(found.contains("initial_states has shape [1, 4, 8, 16]"), "{found}");
}
