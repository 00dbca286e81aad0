//! Padding on either side changes nothing.

use super::*;
use crate::decoder::Compute;
use crate::presets;
use danaus_testkit::assert_close;

fn tiny() -> Decoder {
    let mut config = presets::quickstart(40);
    config.d_model = 16;
    config.max_positions = 16;
    if let Some(mamba2) = &mut config.mamba2 {
        mamba2.head_dim = 8;
        mamba2.d_state = 8;
    }
    Decoder::init(&config, 3, Compute { dtype: DType::F64, recompute: false }).unwrap()
}

fn whole(values: &[i64], shape: [usize; 2]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

#[test]
fn padding_on_either_side_changes_nothing() {
    let decoder = tiny();
    let ids = whole(&[0, 0, 5, 9, 30, 7, 8, 11, 0, 0], [2, 5]);
    let mask = whole(&[0, 0, 1, 1, 1, 1, 1, 1, 0, 0], [2, 5]);
    let padded = logits(&decoder, &ids, Some(&mask), true).unwrap();
    let names: Vec<&str> = padded.iter().map(|(name, _)| name.as_str()).collect();
    let expected = ["logits", "hidden_00", "hidden_01", "hidden_02", "hidden_03", "hidden_04"];
    assert_eq!(names, expected);
    for (row, from, own) in [(0, 2, [5i64, 9, 30]), (1, 0, [7, 8, 11])] {
        let alone = logits(&decoder, &whole(&own, [1, 3]), None, true).unwrap();
        for ((name, all), (_, single)) in padded.iter().zip(&alone) {
            let part = all.narrow(0, row, 1).unwrap().narrow(1, from, 3).unwrap();
            assert_close(name, &part, single, 1e-12);
        }
    }
    // Rows of padding are zero.
    let first = padded[0].1.narrow(0, 0, 1).unwrap().narrow(1, 0, 2).unwrap();
    assert!(first.to_vec::<f64>().unwrap().iter().all(|value| *value == 0.0));
}

#[test]
fn wrong_ids_are_named() {
    let decoder = tiny();
    let message = |ids: &Tensor, mask: Option<&Tensor>| {
        logits(&decoder, ids, mask, false).unwrap_err().to_string()
    };
    assert!(message(&whole(&[1, 40], [1, 2]), None).contains("token id is 40, valid is 0..40"));
    assert!(message(&whole(&[1, -4], [1, 2]), None).contains("input_ids is -4"));
    assert!(message(&whole(&[1; 17], [1, 17]), None).contains("sequence length is 17"));
    let mask = whole(&[1, 1], [2, 1]);
    assert!(message(&whole(&[1, 2], [1, 2]), Some(&mask)).contains("attention_mask has shape"));
    let real = Tensor::zeros([1, 2], DType::F32, &Device::Cpu).unwrap();
    assert!(message(&real, None).contains("input_ids has dtype f32"));
}
