//! Every bad argument is refused with its name and what is valid.

use crate::ops::attention::{AttentionOptions, SPECS, attention, attention_varlen};
use danaus_tensor::registry::{Call, Registry};
use danaus_tensor::{DType, Device, Tensor};
use danaus_testkit::randn;

fn message(shapes: [&[usize]; 3], options: &AttentionOptions) -> String {
    let [q, k, v] = shapes.map(|shape| randn(1, shape, DType::F32));
    attention(&q, &k, &v, options).unwrap_err().to_string()
}

fn with(options: AttentionOptions) -> String {
    message([&[1, 5, 4, 8], &[1, 6, 2, 8], &[1, 6, 2, 8]], &options)
}

#[test]
fn shapes_are_checked() {
    let plain = AttentionOptions::default();
    let heads = message([&[1, 5, 3, 8], &[1, 6, 2, 8], &[1, 6, 2, 8]], &plain);
    assert!(heads.contains("3 heads of q for 2 heads of k, valid is a multiple"), "{heads}");
    let width = message([&[1, 5, 4, 8], &[1, 6, 2, 9], &[1, 6, 2, 8]], &plain);
    assert!(width.contains("k has shape") && width.contains("[1, 6, 2, 8]"), "{width}");
    let rows = message([&[1, 5, 4, 8], &[1, 6, 2, 8], &[1, 7, 2, 8]], &plain);
    assert!(rows.contains("v has shape"), "{rows}");
    let rank = message([&[5, 4, 8], &[6, 2, 8], &[6, 2, 8]], &plain);
    assert!(rank.contains("[batch, rows, heads, dim]"), "{rank}");
}

#[test]
fn options_are_checked() {
    let default = AttentionOptions::default;
    let mask = |shape: &[usize]| Tensor::zeros(shape, DType::U8, &Device::Cpu).unwrap();
    let lens = |value: i32| Some(Tensor::from_vec(vec![value], [1], &Device::Cpu).unwrap());
    let cases = [
        (AttentionOptions { p_drop: 1.0, ..default() }, "p_drop is 1"),
        (AttentionOptions { p_drop: f64::NAN, ..default() }, "p_drop is NaN"),
        (AttentionOptions { softmax_scale: Some(f64::NAN), ..default() }, "softmax_scale is NaN"),
        (AttentionOptions { softcap: Some(-1.0), ..default() }, "softcap is -1"),
        (AttentionOptions { sinks: Some(randn(1, &[3], DType::F32)), ..default() }, "sinks has"),
        (
            AttentionOptions { alibi_slopes: Some(randn(1, &[2, 4], DType::F32)), ..default() },
            "alibi_slopes has shape",
        ),
        (
            AttentionOptions { block_mask: Some(mask(&[2, 2])), ..default() },
            "block_size is missing",
        ),
        (
            AttentionOptions { block_mask: Some(mask(&[2, 2])), block_size: Some(2), ..default() },
            "block_mask has shape",
        ),
        (AttentionOptions { keep: Some(mask(&[1, 4, 5, 5])), ..default() }, "keep has shape"),
        (AttentionOptions { k_lens: lens(7), ..default() }, "k_lens is 7 at 0, valid is 0 to 6"),
        (AttentionOptions { q_lens: lens(-1), ..default() }, "q_lens is -1 at 0"),
    ];
    for (options, expected) in cases {
        let found = with(options);
        assert!(found.contains(expected), "{found:?} lacks {expected:?}");
    }
}

#[test]
fn bounds_and_dtypes_are_checked() {
    let rows = randn(1, &[6, 2, 8], DType::F32);
    let run = |bounds: Vec<i32>| {
        let count = bounds.len();
        let bounds = Tensor::from_vec(bounds, [count], &Device::Cpu).unwrap();
        let all = [&rows, &rows, &rows];
        attention_varlen(all, &bounds, &bounds, &AttentionOptions::default())
    };
    for bad in [vec![1, 6], vec![0, 4, 3], vec![0, 7], vec![]] {
        let found = run(bad).unwrap_err().to_string();
        assert!(found.contains("valid is a non-decreasing list from 0 to at most 6"), "{found}");
    }
    assert!(run(vec![0, 0, 6]).is_ok());
    let whole = randn(1, &[1, 5, 2, 8], DType::F32).to_dtype(DType::I32).unwrap();
    let found = attention(&whole, &whole, &whole, &AttentionOptions::default()).unwrap_err();
    assert!(found.to_string().contains("q has dtype i32, expected f64, f32, bf16 or f16"));
}

#[test]
fn an_empty_batch_gives_empty_results() {
    let empty = randn(1, &[0, 5, 2, 8], DType::F32);
    let (out, lse) = attention(&empty, &empty, &empty, &AttentionOptions::default()).unwrap();
    assert_eq!((out.dims(), lse.dims()), (&[0, 5, 2, 8][..], &[0, 2, 5][..]));
}

#[test]
fn the_runner_finds_the_operator_and_checks_windows() {
    let registry = Registry::join(&[SPECS]).unwrap();
    let tensor = randn(1, &[1, 5, 2, 8], DType::F64);
    let tensors = ["q", "k", "v"].map(|name| (name.to_string(), tensor.clone()));
    let mut call = Call {
        op: "attention".to_string(),
        tensors: tensors.into_iter().collect(),
        grad: true,
        ..Call::default()
    };
    call.attributes.insert("causal".to_string(), "true".to_string());
    let results = registry.run(&call).unwrap();
    let names: Vec<&str> = results.keys().map(String::as_str).collect();
    assert_eq!(names, ["grad.k", "grad.q", "grad.v", "lse", "out"]);
    call.attributes.insert("window_left".to_string(), "-2".to_string());
    let found = registry.run(&call).unwrap_err().to_string();
    assert!(found.contains("window_left is -2, valid is -1 (unbounded), 0 or more"), "{found}");
}
