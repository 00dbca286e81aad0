//! The authors' values in both layouts.

use super::super::{ScanInputs, ScanOptions, selective_scan};
use danaus_tensor::{DType, Tensor, backward_with};
use danaus_testkit::{Golden, assert_close, golden};

const SOFTPLUS: ScanOptions = ScanOptions { delta_softplus: true, channel_last: false };

/// Relative to the largest value: f64 differs by summation order, f32 by sums of a few hundred terms.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F64 { 1e-12 } else { 5e-6 }
}

fn load(case: &str) -> Golden {
    golden("12-mamba2-ssd", case)
}

#[test]
fn everything_at_once() {
    let file = load("mamba1_selective_scan");
    for dtype in [DType::F64, DType::F32] {
        let leaf = |name| file.get_as(name, dtype).tracked();
        let names = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"];
        let leaves = names.map(leaf);
        let [u, delta, a, b, c, d, z, bias] = &leaves;
        let inputs = ScanInputs {
            d: Some(d),
            z: Some(z),
            delta_bias: Some(bias),
            ..ScanInputs::new(u, delta, a, b, c)
        };
        let (y, last) = selective_scan(&inputs, &SOFTPLUS).unwrap();
        assert_close("y", &y, file.get("y"), tolerance(dtype));
        assert_close("last_state", &last, file.get("last_state"), tolerance(dtype));
        let pairs = [(&y, file.get("R.y")), (&last, file.get("R.last_state"))];
        let grads = backward_with(&pairs).unwrap();
        for (name, leaf) in names.iter().zip(&leaves) {
            let expected = file.get(&format!("grad.{name}"));
            assert_close(name, grads.get(leaf).unwrap(), expected, tolerance(dtype));
        }
    }
}

#[test]
fn channels_last_are_the_same_numbers() {
    let file = load("mamba1_selective_scan");
    let turned = |name: &str| file.get(name).transpose(1, 2).unwrap();
    let arrays = ["u", "delta", "B", "C", "z"].map(turned);
    let [u, delta, b, c, z] = &arrays;
    let inputs = ScanInputs {
        d: file.find("D"),
        z: Some(z),
        delta_bias: file.find("delta_bias"),
        ..ScanInputs::new(u, delta, file.get("A"), b, c)
    };
    let options = ScanOptions { channel_last: true, ..SOFTPLUS };
    let (y, _) = selective_scan(&inputs, &options).unwrap();
    assert_close("y", &y, &turned("y"), 1e-12);
}

#[test]
fn grouped_and_constant_maps() {
    let file = load("mamba1_selective_scan_bc_forms");
    for dtype in [DType::F64, DType::F32] {
        let at = |name: &str| -> Tensor { file.get_as(name, dtype) };
        let (u, delta, a, d, bias) = (at("u"), at("delta"), at("A"), at("D"), at("delta_bias"));
        let (b, c) = (at("B_grouped"), at("C_grouped"));
        let inputs = ScanInputs {
            d: Some(&d),
            delta_bias: Some(&bias),
            ..ScanInputs::new(&u, &delta, &a, &b, &c)
        };
        let (y, _) = selective_scan(&inputs, &SOFTPLUS).unwrap();
        assert_close("y_grouped", &y, file.get("y_grouped"), tolerance(dtype));
        let (b, c) = (at("B_const"), at("C_const"));
        let inputs = ScanInputs::new(&u, &delta, &a, &b, &c);
        let (y, _) = selective_scan(&inputs, &SOFTPLUS).unwrap();
        let expected = file.get("y_const_no_bias_no_D");
        assert_close("y_const_no_bias_no_D", &y, expected, tolerance(dtype));
    }
}
