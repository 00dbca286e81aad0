//! Round trips, and files that lie.

use super::*;

fn sample() -> Vec<(String, Tensor)> {
    let dtypes = DType::ALL.into_iter().filter(|dtype| *dtype != DType::C128);
    dtypes
        .map(|dtype| {
            let count = 6;
            let values: Vec<f32> = (0..count).map(|i| (i % 2) as f32).collect();
            let tensor = Tensor::from_vec(values, [2, 3], &Device::Cpu).unwrap();
            (format!("tensor_{dtype}"), tensor.to_dtype(dtype).unwrap())
        })
        .collect()
}

fn write_sample(path: &Path) {
    let tensors = sample();
    let pairs = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    save(path, pairs, HashMap::from([("note".to_string(), "kept".to_string())])).unwrap();
}

#[test]
fn every_dtype_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(SINGLE_NAME);
    write_sample(&path);
    let file = TensorFile::open(&path).unwrap();
    assert_eq!(file.metadata()["note"], "kept");
    for (name, expected) in sample() {
        let found = file.tensor(&name).unwrap();
        assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()));
        assert_eq!(found.as_bytes().unwrap(), expected.as_bytes().unwrap(), "{name}");
    }
}

/// Every byte of the header and every truncation: an error or an intact tensor, never a panic.
#[test]
fn corrupt_headers_are_refused_or_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let good_path = folder.path().join("good.safetensors");
    write_sample(&good_path);
    let good = std::fs::read(&good_path).unwrap();
    let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize + 8;
    let path = folder.path().join("bad.safetensors");
    let read_all = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        if let Ok(file) = TensorFile::open(&path) {
            for name in file.names() {
                let _ = file.tensor(&name).map(|tensor| tensor.elem_count());
            }
        }
    };
    for position in 0..header {
        for flip in [0x01, 0x10, 0x80] {
            let mut bytes = good.clone();
            bytes[position] ^= flip;
            read_all(&bytes);
        }
    }
    for len in (0..good.len()).step_by(7) {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(TensorFile::open(&path).is_err(), "a file cut to {len} bytes was accepted");
    }
    let mut huge = good.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    read_all(&huge);
}

#[test]
fn shards_are_found_through_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let one = Tensor::from_vec(vec![1.0f32], [1], &Device::Cpu).unwrap();
    let two = Tensor::from_vec(vec![2.0f32], [1], &Device::Cpu).unwrap();
    save(folder.path().join("a.safetensors"), [("x", &one)], HashMap::new()).unwrap();
    save(folder.path().join("b.safetensors"), [("y", &two)], HashMap::new()).unwrap();
    let index = folder.path().join(INDEX_NAME);
    std::fs::write(&index, r#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}"#)
        .unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensor("y").unwrap().unwrap().to_vec::<f32>().unwrap(), [2.0]);
    assert!(checkpoint.tensor("z").unwrap().is_none());
    std::fs::write(&index, r#"{"weight_map": {"z": "a.safetensors"}}"#).unwrap();
    let message = Checkpoint::open(folder.path()).err().unwrap().to_string();
    assert!(message.contains("a.safetensors lacks tensor z"), "{message}");
    std::fs::write(&index, r#"{"weight_map": {"z": "../a.safetensors"}}"#).unwrap();
    assert!(Checkpoint::open(folder.path()).is_err());
}

#[test]
fn an_empty_tensor_round_trips() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.safetensors");
    let none = Tensor::zeros([0, 4], DType::F32, &Device::Cpu).unwrap();
    save(&path, [("none", &none)], HashMap::new()).unwrap();
    assert_eq!(TensorFile::open(&path).unwrap().tensor("none").unwrap().dims(), [0, 4]);
}
