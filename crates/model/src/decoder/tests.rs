//! The decoder's identities.

use super::*;
use crate::checkpoint::{Model, save_decoder};
use crate::presets;
use danaus_testkit::assert_close;

const F64: Compute = Compute::new(DType::F64);

fn shrink(mut config: Config) -> Config {
    config.vocab_size = 40;
    config.d_model = 16;
    config.max_positions = 32;
    if let Some(mamba2) = &mut config.mamba2 {
        mamba2.head_dim = 8;
        mamba2.d_state = 8;
    }
    if let crate::config::MlpConfig::Dense { d_ff, .. } = &mut config.mlp {
        *d_ff = 24;
    }
    config
}

fn configs() -> Vec<Config> {
    let mut learned = shrink(presets::transformer());
    learned.learned_positions = true;
    let mut gated = shrink(presets::quickstart(40));
    gated.mlp = crate::config::MlpConfig::Gated { d_ff: 20, activation: "silu".into(), bias: true };
    let linear = ['L', 'R', 'G'].map(|letter| shrink(presets::linear_attention(letter)));
    [vec![learned, gated, shrink(presets::mamba2())], linear.to_vec()].concat()
}

fn ids(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 7 + i * i) % 40).collect()
}

#[test]
fn sizes_are_known_beforehand() {
    for config in configs() {
        let decoder = Decoder::init(&config, 1, F64).unwrap();
        assert_eq!(decoder.params().elem_count(), config.elem_count().unwrap());
    }
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    for config in configs() {
        let decoder = Decoder::init(&config, 1, F64).unwrap();
        let (ids, batch) = (ids(12), SeqBatch::from_lengths(&[5, 7]).unwrap());
        let packed = decoder.logits(&ids, &batch).unwrap();
        for (start, length) in [(0, 5), (5, 7)] {
            let single = SeqBatch::from_lengths(&[length]).unwrap();
            let alone = decoder.logits(&ids[start..start + length], &single).unwrap();
            assert_close("logits", &alone, &packed.narrow(0, start, length).unwrap(), 1e-12);
        }
    }
}

#[test]
fn recomputing_blocks_changes_no_gradient() {
    for config in configs() {
        let (ids, batch) = (ids(12), SeqBatch::from_lengths(&[5, 7]).unwrap());
        let mut targets: Vec<i64> = ids.iter().skip(1).map(|&id| i64::from(id)).collect();
        targets.push(-100);
        let run = |recompute| {
            let compute = Compute { recompute, ..F64 };
            let decoder = Decoder::init(&config, 1, compute).unwrap();
            let loss = decoder.loss(&ids, &targets, &batch).unwrap();
            let mut gradients = loss.backward().unwrap();
            let all: Vec<(String, Tensor)> = decoder
                .params()
                .iter()
                .map(|param| (param.name().to_string(), param.take_grad(&mut gradients).unwrap()))
                .collect();
            (loss, all)
        };
        let ((plain, a), (again, b)) = (run(false), run(true));
        assert_close("loss", &again, &plain, 0.0);
        for ((name, left), (_, right)) in a.iter().zip(&b) {
            assert_close(name, right, left, 1e-13);
        }
    }
}

#[test]
fn dropout_is_keyed_by_seed_and_step() {
    let config = configs().remove(1);
    let (ids, batch) = (ids(12), SeqBatch::from_lengths(&[5, 7]).unwrap());
    let targets: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let run = |dropout, recompute, noise| {
        let decoder = Decoder::init(&config, 1, Compute { recompute, dropout, ..F64 }).unwrap();
        let loss = decoder.training_loss(&ids, &targets, &batch, noise).unwrap();
        let mut gradients = loss.backward().unwrap();
        let first = decoder.params().iter().next().unwrap().take_grad(&mut gradients).unwrap();
        let plain = decoder.loss(&ids, &targets, &batch).unwrap().to_scalar().unwrap();
        (loss.to_scalar().unwrap(), plain, first)
    };
    let noise = Noise { seed: 3, step: 5 };
    let (off, plain, _) = run(0.0, false, noise);
    assert_eq!(off, plain, "without dropout training sees what evaluation sees");
    let (loss, same, gradient) = run(0.3, false, noise);
    assert_eq!(same, plain, "evaluation drops nothing");
    assert_ne!(loss, plain);
    let (again, _, recomputed) = run(0.3, true, noise);
    assert_eq!(again, loss, "the same step drops the same elements");
    assert_close("gradient", &recomputed, &gradient, 1e-13);
    for other in [Noise { step: 6, ..noise }, Noise { seed: 4, ..noise }] {
        assert_ne!(run(0.3, false, other).0, loss);
    }
    let refused = Decoder::init(&config, 1, Compute { dropout: 1.0, ..F64 }).err().unwrap();
    assert!(refused.to_string().contains("dropout"), "{refused}");
}

#[test]
fn a_folder_gives_the_same_model_back_and_names_what_is_wrong() {
    let config = configs().remove(1);
    let decoder = Decoder::init(&config, 5, Compute::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    save_decoder(&decoder, folder.path()).unwrap();
    let loaded = Model::load(folder.path(), Compute::default()).unwrap().decoder;
    for (a, b) in decoder.params().iter().zip(loaded.params().iter()) {
        assert_eq!(a.name(), b.name());
        assert_eq!(a.tensor().to_vec::<f32>().unwrap(), b.tensor().to_vec::<f32>().unwrap());
    }
    let message = |config: &Config| {
        std::fs::write(folder.path().join("config.json"), config.to_json()).unwrap();
        Model::load(folder.path(), Compute::default()).err().unwrap().to_string()
    };
    let larger = Config { vocab_size: 41, ..config.clone() };
    assert!(message(&larger).contains("embedding.weight has shape [40, 16], expected [41, 16]"));
    let shorter = Config { layers: "MMA".into(), ..config.clone() };
    assert!(message(&shorter).contains("unexpected tensors: layers.3."));
    let longer = Config { layers: "MMAMM".into(), ..config };
    assert!(message(&longer).contains("missing"));
    let weights = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    assert!(Model::load(folder.path(), Compute::default()).is_err());
}

#[test]
fn not_a_number_is_found_and_named() {
    let config = configs().remove(0);
    let decoder = Decoder::init(&config, 5, Compute::default()).unwrap();
    let victim = decoder.params().get("layers.1.mlp.up.weight").unwrap();
    victim
        .update(|tensor| {
            tensor.as_slice_mut::<f32>()?[3] = f32::NAN;
            Ok(())
        })
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    save_decoder(&decoder, folder.path()).unwrap();
    let message = Model::load(folder.path(), Compute::default()).err().unwrap().to_string();
    assert!(message.contains("layers.1.mlp.up.weight holds NaN"), "{message}");
}

/// Rounding activations to eight bits is refused where no product would do it.
#[test]
fn int8_is_refused_by_name_where_it_cannot_be_honoured() {
    use danaus_kernel::ops::quantized::{BlockType, quantize};
    use std::collections::BTreeMap;
    let mut config = shrink(presets::transformer());
    (config.d_model, config.vocab_size) = (32, 64);
    if let crate::config::MlpConfig::Dense { d_ff, .. } = &mut config.mlp {
        *d_ff = 64;
    }
    let fresh = Decoder::init(&config, 5, Compute::default()).unwrap();
    let int8 = Compute { activations: Activations::Int8, ..Compute::default() };
    // Every matrix as the function makes it of its stem and values, under the name that it gives.
    let build = |compute: Compute, change: &dyn Fn(&str, &Tensor) -> (String, Tensor)| {
        let mut stored = BTreeMap::new();
        for param in fresh.params().iter() {
            let (name, tensor) = (param.name(), param.tensor().detach());
            let stem = name.strip_suffix(".weight").filter(|_| tensor.rank() == 2);
            let (name, tensor) = match stem {
                Some(stem) => change(stem, &tensor),
                None => (name.to_string(), tensor),
            };
            stored.insert(name, tensor);
        }
        let params = ParamBuilder::load(Arc::new(stored), DType::F32, Device::Cpu).as_stored();
        Decoder::build(&params, &config, compute)
    };
    let float = |dtype: DType| {
        move |stem: &str, tensor: &Tensor| {
            (format!("{stem}.weight"), tensor.to_dtype(dtype).unwrap())
        }
    };
    let blocks = |kind: BlockType| {
        move |stem: &str, tensor: &Tensor| {
            (format!("{stem}.{kind}"), quantize(tensor, kind).unwrap())
        }
    };
    // A type that no integer product reads: any bytes do.
    let foreign = |stem: &str, tensor: &Tensor| {
        let kind = BlockType::ALL.into_iter().find(|kind| kind.name() == "iq4_nl").unwrap();
        assert!(!INTEGER.contains(&kind));
        let row = tensor.dims()[1] / kind.block_len() * kind.block_bytes();
        let zeros = Tensor::zeros([tensor.dims()[0], row], DType::U8, &Device::Cpu).unwrap();
        (format!("{stem}.{kind}"), zeros)
    };
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let message = build(int8, &float(dtype)).err().unwrap().to_string();
        assert!(message.contains("compute is int8"), "{message}");
        assert!(message.contains("weights of") && message.contains("q8_0"), "{message}");
        build(Compute::default(), &float(dtype)).unwrap();
    }
    let message = build(int8, &foreign).err().unwrap().to_string();
    assert!(message.contains("compute is int8"), "{message}");
    build(Compute::default(), &foreign).unwrap();
    let wide = Compute { dtype: DType::F64, ..int8 };
    let message = build(wide, &blocks(BlockType::Q8_0)).err().unwrap().to_string();
    assert!(message.contains("int8 needs f32 activations"), "{message}");
    // Where it is honoured, it changes the result, by a few parts in a hundred at most.
    let batch = SeqBatch::from_lengths(&[7]).unwrap();
    for kind in [BlockType::Q8_0, BlockType::Q4_0] {
        let logits = |compute| {
            let decoder = build(compute, &blocks(kind)).unwrap();
            decoder.logits(&ids(7), &batch).unwrap().to_vec::<f32>().unwrap()
        };
        let (exact, rounded) = (logits(Compute::default()), logits(int8));
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
        let error = square(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b));
        let size = square(&mut exact.iter().copied());
        assert!(error > 0.0 && (error / size).sqrt() < 0.03, "{kind}: {error} of {size}");
    }
}
