//! A file of another writer, round trips, and every way to spoil one.

use super::*;
use danaus_kernel::ops::quantized::BlockType;
use danaus_tensor::param::TensorSource;
use danaus_tensor::safetensors::Checkpoint;
use danaus_tensor::{DType, Device, Tensor};
use danaus_testkit::golden;
use half::f16;
use std::path::PathBuf;

fn engine(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/40-engine").join(name)
}

fn q8_0() -> GgufSource {
    GgufSource::open(engine("llama-q8_0.gguf")).unwrap()
}

/// Rows `2i + s` of every head back to `s * half + i`.
fn halves(values: &[f32], cols: usize, head_dim: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    let place = |row: usize| {
        let (head, i) = (row / head_dim, row % head_dim);
        head * head_dim + 2 * (i % (head_dim / 2)) + i / (head_dim / 2)
    };
    (0..rows).flat_map(|row| values[place(row) * cols..][..cols].to_vec()).collect()
}

/// Values of Q8_0 blocks by the definition, and the step of each.
fn decode_q8_0(bytes: &[u8]) -> Vec<(f32, f32)> {
    let block = |block: &[u8]| {
        let step = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let value = move |&byte: &u8| (f32::from(byte as i8) * step, step);
        block[2..].iter().map(value).collect::<Vec<_>>()
    };
    bytes.chunks_exact(34).flat_map(block).collect()
}

#[test]
fn metadata_of_a_foreign_file() {
    let source = q8_0();
    let file = source.file();
    assert_eq!(file.architecture().unwrap(), "llama");
    assert_eq!(file.size("llama.embedding_length").unwrap(), Some(64));
    assert_eq!(file.size("llama.attention.head_count_kv").unwrap(), Some(2));
    assert_eq!(file.number("llama.rope.freq_base").unwrap(), Some(10000.0));
    let eps = file.number("llama.attention.layer_norm_rms_epsilon").unwrap().unwrap();
    assert_eq!(eps as f32, 1e-5);
    assert_eq!(file.flag("tokenizer.ggml.add_bos_token").unwrap(), Some(false));
    let tokens = file.texts("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!((tokens.len(), tokens[1], tokens[383]), (384, "<|im_start|>", "16"));
    let types = file.integers("tokenizer.ggml.token_type").unwrap().unwrap();
    assert_eq!(types[..4], [3, 3, 3, 1]);
    assert_eq!(file.value("tokenizer.ggml.merges").unwrap().as_array().unwrap().len(), 125);
    assert_eq!(file.metadata().count(), 22);
    assert!(file.size("absent").unwrap().is_none());
    let message = file.size("general.name").unwrap_err().to_string();
    assert!(message.contains("general.name is text, expected an integer"), "{message}");
    let message = file.required::<usize>("absent", None).unwrap_err().to_string();
    assert!(message.contains("key absent is missing"), "{message}");
}

#[test]
fn tensors_of_a_foreign_file_are_views_under_their_names() {
    let source = q8_0();
    let names = source.names();
    assert_eq!(names.len(), 21);
    for name in ["token_embd.weight", "output_norm.weight", "output.q8_0", "blk.1.ffn_down.q8_0"] {
        assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
    }
    let map = source.file().map.as_ptr_range();
    for name in &names {
        let tensor = source.tensor(name).unwrap().unwrap();
        assert!(map.contains(&tensor.as_bytes().unwrap().as_ptr()), "{name}");
    }
    let down = source.tensor("blk.1.ffn_down.q8_0").unwrap().unwrap();
    assert_eq!((down.dims(), down.dtype()), (&[64, 128 / 32 * 34][..], DType::U8));
    let norm = source.tensor("output_norm.weight").unwrap().unwrap();
    assert_eq!((norm.dims(), norm.dtype()), (&[64][..], DType::F32));
    for absent in ["output.weight", "output.q4_0", "output_norm.q8_0", "", "x.q8_0"] {
        assert!(source.tensor(absent).unwrap().is_none(), "{absent}");
    }
}

#[test]
fn embeddings_equal_the_golden_ones() {
    let golden = golden("40-engine", "llama-q8_0.gguf.golden");
    let ids = golden.get("input_ids").to_vec::<i32>().unwrap();
    let expected = golden.get("hidden_00").to_vec::<f32>().unwrap();
    let table = q8_0().tensor("token_embd.weight").unwrap().unwrap();
    assert_eq!(table.dims(), [384, 64]);
    let table = table.to_vec::<f16>().unwrap();
    for (row, id) in expected.chunks_exact(64).zip(ids) {
        let found = table[id as usize * 64..][..64].iter().map(|value| value.to_f32());
        assert!(found.eq(row.iter().copied()), "token {id}");
    }
}

/// Rounding to a block's 255 steps leaves half a step, the 16-bit step another 2^-11 of the value.
#[test]
fn weights_are_those_of_the_unquantised_model() {
    let (source, plain) = (q8_0(), Checkpoint::open(engine("llama-gqa")).unwrap());
    let table = [
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    for (layer, (theirs, ours)) in (0..2).flat_map(|layer| table.map(|names| (layer, names))) {
        let wanted = plain.tensor(&format!("model.layers.{layer}.{ours}.weight")).unwrap().unwrap();
        let cols = wanted.dims()[1];
        let bytes = source.tensor(&format!("blk.{layer}.{theirs}.q8_0")).unwrap().unwrap();
        let (mut values, mut steps): (Vec<f32>, Vec<f32>) =
            decode_q8_0(bytes.as_bytes().unwrap()).into_iter().unzip();
        if ["attn_q", "attn_k"].contains(&theirs) {
            values = halves(&values, cols, 16);
            steps = halves(&steps, cols, 16);
        }
        for ((found, step), wanted) in values.iter().zip(steps).zip(wanted.to_vec::<f32>().unwrap())
        {
            let bound = 0.5 * step + 127.0 * step / 2048.0;
            assert!((found - wanted).abs() <= bound, "{theirs} {found} {wanted} {step}");
        }
    }
}

#[test]
fn a_foreign_file_is_written_again_byte_for_byte() {
    let source = q8_0();
    let file = source.file();
    let metadata: Vec<_> =
        file.metadata().map(|(key, value)| (key.to_string(), MetaValue::from(value))).collect();
    let plan = |(name, info): (&str, &TensorInfo)| TensorPlan {
        name: name.to_string(),
        shape: info.shape(),
        kind: info.kind,
    };
    let tensors: Vec<_> = file.tensors().map(plan).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("again.gguf");
    let produce = |_: usize, plan: &TensorPlan| {
        Ok(source.tensor(&source_name(&plan.name, plan.kind))?.unwrap())
    };
    write(&path, &metadata, &tensors, produce).unwrap();
    assert!(std::fs::read(&path).unwrap() == std::fs::read(engine("llama-q8_0.gguf")).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

fn every_value() -> Vec<(String, MetaValue)> {
    use MetaValue::*;
    let nested = Array(
        ValueType::Array,
        vec![
            MetaValue::texts(["", "é", "last"]),
            Array(ValueType::I16, vec![I16(-3), I16(4)]),
            Array(ValueType::Bool, vec![]),
        ],
    );
    let values = [
        U8(200),
        I8(-100),
        U16(60_000),
        I16(-30_000),
        U32(u32::MAX),
        I32(i32::MIN),
        F32(-1.5e-30),
        Bool(true),
        Text("line\n\"quoted\"".into()),
        nested,
        U64(u64::MAX),
        I64(i64::MIN),
        F64(std::f64::consts::PI),
    ];
    let named = |(id, value): (usize, MetaValue)| {
        assert_eq!(value.kind().id() as usize, id);
        (format!("value.{}", value.kind()), value)
    };
    values.into_iter().enumerate().map(named).collect()
}

fn plan(name: &str, shape: &[usize], kind: TensorType) -> TensorPlan {
    TensorPlan { name: name.into(), shape: shape.into(), kind }
}

fn bytes_of(plan: &TensorPlan) -> Tensor {
    let (block, bytes) = plan.kind.unit();
    let len = plan.shape.iter().product::<usize>() / block * bytes;
    Tensor::from_vec((0..len).map(|i| i as u8).collect(), [len], &Device::Cpu).unwrap()
}

#[test]
fn every_value_and_tensor_type_survives() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.gguf");
    let mut tensors: Vec<TensorPlan> = BlockType::ALL
        .iter()
        .map(|&block| {
            plan(&format!("{}.weight", block.name()), &[3, 512], TensorType::Block(block))
        })
        .collect();
    for dtype in
        [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I8, DType::I32, DType::I64]
    {
        tensors.push(plan(dtype.name(), &[2, 1, 5], TensorType::Plain(dtype)));
    }
    tensors.push(plan("experts.weight", &[2, 3, 64], TensorType::Block(BlockType::Q8_0)));
    tensors.push(plan("flat.weight", &[64], TensorType::Block(BlockType::Q8_0)));
    write(&path, &every_value(), &tensors, |_, plan| Ok(bytes_of(plan))).unwrap();
    let source = GgufSource::open(&path).unwrap();
    let read: Vec<_> = source
        .file()
        .metadata()
        .map(|(key, value)| (key.to_string(), MetaValue::from(value)))
        .collect();
    assert_eq!(read, every_value());
    for plan in &tensors {
        let tensor = source.tensor(&source_name(&plan.name, plan.kind)).unwrap().unwrap();
        assert_eq!(tensor.as_bytes().unwrap(), bytes_of(plan).as_bytes().unwrap(), "{}", plan.name);
        assert_eq!(source.file().info(&plan.name).unwrap().shape(), plan.shape);
    }
    assert_eq!(source.tensor("experts.q8_0").unwrap().unwrap().dims(), [2, 3, 68]);
    assert_eq!(source.tensor("flat.q8_0").unwrap().unwrap().dims(), [1, 68]);
}

#[test]
fn the_writer_refuses_what_no_reader_accepts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.gguf");
    let f32 = TensorType::Plain(DType::F32);
    let message = |metadata: &[(String, MetaValue)], tensors: &[TensorPlan]| {
        write(&path, metadata, tensors, |_, plan| Ok(bytes_of(plan))).unwrap_err().to_string()
    };
    let twice = [("a".to_string(), MetaValue::U8(1)), ("a".to_string(), MetaValue::U8(2))];
    assert!(message(&twice, &[]).contains("\"a\""));
    let mixed = MetaValue::Array(ValueType::U8, vec![MetaValue::I8(1)]);
    assert!(message(&[("m".into(), mixed)], &[]).contains("items are of one type"));
    let tensors = [plan("t", &[2], f32), plan("t", &[2], f32)];
    assert!(message(&[], &tensors).contains("names that differ"));
    assert!(message(&[], &[plan(&"n".repeat(64), &[2], f32)]).contains("1 to 63 bytes"));
    assert!(message(&[], &[plan("t", &[], f32)]).contains("1 to 4 sizes"));
    assert!(message(&[], &[plan("t", &[2, 0], f32)]).contains("1 to 4 sizes"));
    assert!(message(&[], &[plan("t", &[2], TensorType::Plain(DType::C64))]).contains("q8_0"));
    let ragged = plan("t", &[2, 33], TensorType::Block(BlockType::Q8_0));
    assert!(message(&[], &[ragged]).contains("rows of a multiple of 32"));
    let short = write(&path, &[], &[plan("t", &[2], f32)], |_, _| {
        Ok(Tensor::zeros([1], DType::F32, &Device::Cpu)?)
    });
    assert!(short.unwrap_err().to_string().contains("8 bytes, as planned"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn names_that_would_collide_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("twins.gguf");
    let (block, f32) = (TensorType::Block(BlockType::Q8_0), TensorType::Plain(DType::F32));
    for pair in [
        [plan("a.weight", &[32], block), plan("a", &[32], block)],
        [plan("a.weight", &[32], block), plan("a.q8_0", &[2], f32)],
    ] {
        write(&path, &[], &pair, |_, plan| Ok(bytes_of(plan))).unwrap();
        let message = GgufSource::open(&path).err().unwrap().to_string();
        assert!(message.contains("a.q8_0 (q8_0) stands in the file twice"), "{message}");
    }
}

mod malformed;
