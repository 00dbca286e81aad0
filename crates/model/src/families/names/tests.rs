//! Tables in both directions, transforms and their inverses.

use super::*;
use danaus_tensor::{DType, Device};
use std::collections::BTreeMap;

fn counted(shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|value| value as f32 + 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.contiguous().unwrap().to_vec::<f32>().unwrap()
}

#[test]
fn storing_undoes_loading() {
    let cases: [(How, &[usize]); 9] = [
        (How::Same, &[3, 2]),
        (How::Transposed, &[3, 2]),
        (How::Transposed, &[3]),
        (How::ByHead(2), &[12, 5]),
        (How::ByHead(2), &[12]),
        (How::Swapped, &[6, 2]),
        (How::Neighbours(3), &[12, 2]),
        (How::Flat, &[6, 4]),
        (How::Column, &[6, 1]),
    ];
    for (how, shape) in cases {
        let theirs = counted(shape);
        let ours = how.load(theirs.clone()).unwrap();
        let again = how.store(ours).unwrap();
        assert_eq!(again.shape(), theirs.shape(), "{how:?}");
        assert_eq!(values(&again), values(&theirs), "{how:?}");
    }
    let rates = counted(&[6, 1]).neg().unwrap();
    let logs = How::Rate.load(rates.clone()).unwrap();
    assert_eq!(logs.dims(), [6]);
    let again = How::Rate.store(logs).unwrap();
    danaus_testkit::assert_close("rates", &again, &rates, 1e-6);
}

#[test]
fn rows_go_where_they_belong() {
    // Two heads of width 1: stored q0 k0 v0 q1 k1 v1.
    let ours = How::ByHead(2).load(counted(&[6])).unwrap();
    assert_eq!(values(&ours), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    // One head of width 4: stored 0 2 1 3, because 0 turns with 2 and 1 with 3.
    let ours = How::Neighbours(1).load(counted(&[4])).unwrap();
    assert_eq!(values(&ours), [1.0, 3.0, 2.0, 4.0]);
    let ours = How::Swapped.load(counted(&[4])).unwrap();
    assert_eq!(values(&ours), [3.0, 4.0, 1.0, 2.0]);
    for how in [How::ByHead(5), How::Neighbours(5), How::Neighbours(0)] {
        assert!(how.load(counted(&[4, 2])).is_err(), "{how:?}");
    }
    // A number is no matrix, whatever the file says.
    for how in [How::ByHead(1), How::Neighbours(1), How::Swapped] {
        assert!(how.load(counted(&[])).is_err(), "{how:?}");
    }
}

fn table() -> NameMap {
    NameMap::new("AM")
        .optional_prefix("model.")
        .row("embedding", "model.tokens")
        .row("norm", "model.norm")
        .row("head", "lm_head")
        .row_for("A", "layers.{}.mixer.q", "model.h.{}.q_proj", How::Same)
        .row_for("A", "layers.{}.mixer.k", "model.h.{}.k_proj", How::Same)
        .row_for("A", "layers.{}.mixer.v", "model.h.{}.v_proj", How::Same)
        .row_for("M", "layers.{}", "model.h.{}", How::Same)
        .ignore("model.h.{}.mask")
}

#[test]
fn names_in_both_directions() {
    let map = table();
    let pairs = [
        ("embedding.weight", "model.tokens.weight"),
        ("norm.weight", "model.norm.weight"),
        ("head.q8_0", "lm_head.q8_0"),
        ("layers.0.mixer.q.bias", "model.h.0.q_proj.bias"),
        ("layers.1.mixer.A_log", "model.h.1.mixer.A_log"),
    ];
    for (ours, theirs) in pairs {
        assert_eq!(map.theirs(ours).unwrap().0, theirs);
        assert_eq!(map.ours(theirs).unwrap().0, ours);
    }
    // The second layer has no attention, and a path ends at a dot.
    assert_eq!(map.ours("model.h.1.q_proj.bias").unwrap().0, "layers.1.q_proj.bias");
    assert!(map.theirs("norm2.weight").is_none());
    assert!(map.theirs("layers.x.norm").is_none());
    assert!(map.theirs("layers.99999999999999999999999.norm").is_none());
}

#[test]
fn files_may_leave_out_the_prefix_and_store_parts() {
    let mut tensors = BTreeMap::new();
    for (index, part) in ["q", "k", "v"].into_iter().enumerate() {
        let value = counted(&[2]).affine(1.0, 10.0 * index as f64).unwrap();
        tensors.insert(format!("h.0.{part}_proj.bias"), value);
        tensors.insert(format!("h.0.{part}_proj.weight"), counted(&[2, 3]));
    }
    for name in ["tokens.weight", "lm_head.weight", "h.0.mask", "h.1.mixer.D", "odd"] {
        tensors.insert(name.to_string(), counted(&[1]));
    }
    let source = Renamed::new(Arc::new(tensors), table());
    let joined = source.tensor("layers.0.mixer.qkv.bias").unwrap().unwrap();
    assert_eq!(values(&joined), [1.0, 2.0, 11.0, 12.0, 21.0, 22.0]);
    assert_eq!(joined.dtype(), DType::F32);
    assert!(source.contains("layers.0.mixer.qkv.bias").unwrap());
    assert!(source.contains("layers.1.mixer.D").unwrap());
    for absent in ["layers.1.mixer.qkv.bias", "layers.0.mixer.qkv.weight", "layers.0.mixer.D"] {
        assert!(source.tensor(absent).unwrap().is_none(), "{absent}");
        assert!(!source.contains(absent).unwrap(), "{absent}");
    }
    let mut names = source.names();
    names.sort();
    let expected = [
        "embedding.weight",
        "head.weight",
        "layers.0.mixer.k.weight",
        "layers.0.mixer.q.weight",
        "layers.0.mixer.qkv.bias",
        "layers.0.mixer.v.weight",
        "layers.1.mixer.D",
        "model.odd",
    ];
    assert_eq!(names, expected);
    assert_eq!(source.label("layers.1.mixer.D"), "model.h.1.mixer.D");
}

#[test]
fn exporting_splits_what_is_joined() {
    let whole = counted(&[8, 1]);
    let sizes = [4, 2, 2];
    let parts = stored(&table(), "layers.0.mixer.qkv.weight", &whole, &sizes).unwrap();
    let names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["model.h.0.q_proj.weight", "model.h.0.k_proj.weight", "model.h.0.v_proj.weight"]
    );
    assert_eq!(values(&parts[1].1), [5.0, 6.0]);
    assert!(stored(&table(), "project_in.weight", &whole, &sizes).is_err());
}
