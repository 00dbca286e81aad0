//! What a report says of each container, and of spoiled ones.

use super::*;
use crate::convert::{Target, convert};
use danaus_tensor::safetensors::{TensorFile, save};
use danaus_tensor::{DType, Device, Tensor};
use std::collections::{BTreeMap, HashMap};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

#[test]
fn a_gguf_file() {
    let report = inspect(&golden("40-engine/llama-q8_0.gguf"), true).unwrap();
    assert_eq!((report.kind, report.tensors.len()), (Kind::Gguf, 21));
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    let model = report.model.unwrap();
    assert_eq!((model.architecture.as_str(), model.vocab_size), ("llama", 384));
    assert_eq!(model.parameters as u64, report.elements);
    // Two layers of two heads of 16, keys and values, four bytes each.
    assert_eq!(model.memory.state_per_token, 2 * 2 * 16 * 2 * 4);
    assert_eq!((model.memory.state_per_sequence, model.memory.load_stored), (0, report.bytes));
    let row = &report.tensors[5];
    assert_eq!((row.name.as_str(), row.dtype.as_str()), ("blk.0.attn_q.weight", "q8_0"));
    assert_eq!((&row.shape[..], row.bytes), (&[64, 64][..], 4352));
    let tokenizer = report.tokenizer.unwrap();
    assert_eq!((tokenizer.vocab_size, tokenizer.bos, &tokenizer.eos[..]), (384, Some(0), &[2][..]));
    assert!(tokenizer.chat_template);
    let tokens = ("tokenizer.ggml.tokens".to_string(), "384 x text".to_string());
    assert!(report.metadata.contains(&tokens));
}

#[test]
fn folders_and_single_files() {
    let report = inspect(&golden("40-engine/llama3-rope-tied-bf16"), true).unwrap();
    assert_eq!(report.kind, Kind::SafetensorsFolder);
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!(report.tensors[0].dtype, "bf16");
    let mamba2 = inspect(&golden("40-engine/mamba2"), true).unwrap().model.unwrap();
    assert_eq!(mamba2.memory.state_per_token, 0);
    assert!(mamba2.memory.state_per_sequence > 0);
    let report = inspect(&golden("formats/state.safetensors"), true).unwrap();
    assert_eq!((report.kind, report.model.is_none()), (Kind::SafetensorsFile, true));
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    let torch = inspect(&golden("formats/state.bin"), true).unwrap();
    assert_eq!(torch.kind, Kind::TorchFile);
    let names = |report: &Report| {
        let mut rows = report.tensors.clone();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    };
    assert_eq!(names(&torch), names(&report));
    let message = inspect(&golden("formats/poisoned.bin"), true).unwrap_err().to_string();
    assert!(message.contains("posix.system"), "{message}");
    let message = inspect(&golden("formats"), true).unwrap_err().to_string();
    assert!(message.contains("none of model.safetensors"), "{message}");
}

/// The bytes of recurrent states are those that generation allocates.
#[test]
fn state_sizes_are_those_of_states() {
    for name in ["40-engine/mamba", "40-engine/mamba2"] {
        let report = inspect(&golden(name), false).unwrap().model.unwrap();
        let model = crate::Model::load(&golden(name), crate::decoder::Compute::default()).unwrap();
        let mut pool = model.decoder.state_pool(1).unwrap();
        let slot = pool.reserve().unwrap();
        let batch = danaus_matrix::SeqBatch::from_lengths(&[1]).unwrap();
        model.decoder.advance(&[1], &batch, &mut pool, &[slot]).unwrap();
        assert_eq!(report.memory.state_per_sequence, pool.bytes() as u64, "{name}");
    }
}

#[test]
fn problems_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    convert(&golden("40-engine/llama-gqa"), &out, Target::Hf, None).unwrap();
    let file = out.join("model.safetensors");
    let with = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut tensors = TensorFile::open(&file).unwrap().tensors().unwrap();
        change(&mut tensors);
        let other = folder.path().join("spoiled");
        std::fs::create_dir_all(&other).unwrap();
        for entry in std::fs::read_dir(&out).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), other.join(entry.file_name())).unwrap();
        }
        let entries = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        save(other.join("model.safetensors"), entries, HashMap::new()).unwrap();
        inspect(&other, true).unwrap().problems.join("; ")
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    assert_eq!(with(&|_| {}), "");
    let missing = with(&|tensors| drop(tensors.remove("model.norm.weight")));
    assert_eq!(missing, "missing tensors: model.norm.weight");
    let extra = with(&|tensors| drop(tensors.insert("extra.weight".into(), zeros(&[2]))));
    assert_eq!(extra, "unexpected tensors: extra.weight");
    let shape = with(&|tensors| drop(tensors.insert("model.norm.weight".into(), zeros(&[63]))));
    assert!(shape.contains("model.norm.weight has shape [63], expected [64]"), "{shape}");
    let nan = with(&|tensors| {
        let spoiled = Tensor::full(f32::NAN, [64], &Device::Cpu).unwrap();
        tensors.insert("model.norm.weight".into(), spoiled);
    });
    assert_eq!(nan, "tensor model.norm.weight holds NaN or infinite values");
    let other = folder.path().join("spoiled");
    std::fs::write(other.join("config.json"), "{\"model_type\": \"bloom\"}").unwrap();
    let problems = inspect(&other, false).unwrap().problems.join("; ");
    assert!(problems.contains("bloom") && problems.contains("llama"), "{problems}");
}
