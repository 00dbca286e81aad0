//! Golden blocks, and what every causal mixer must satisfy.

use super::*;
use crate::structured::Format;
use danaus_tensor::{Device, ParamBuilder, backward_with, no_grad};
use danaus_testkit::{Golden, assert_close, golden, randn};
use std::collections::BTreeMap;
use std::sync::Arc;

const SYSTEM: &str = "12-mamba2-ssd";

fn golden_params(case: &Golden) -> ParamBuilder {
    let named = case.names().filter_map(|name| {
        Some((name.strip_prefix("param.")?.to_string(), case.get(name).clone()))
    });
    let source: BTreeMap<String, Tensor> = named.collect();
    ParamBuilder::load(Arc::new(source), DType::F64, Device::Cpu)
}

fn rows(x: &Tensor) -> Tensor {
    x.flatten(0, 1).unwrap()
}

fn check_golden_block(name: &str, config: &Mamba2Config) {
    let case = golden(SYSTEM, name);
    let params = golden_params(&case);
    let mixer = Mamba2::build(&params, config, 16, Format::Dense, 1.0).unwrap();
    check_golden_mixer(&case, &params, &mixer);
}

/// Outputs, gradients, states after a prompt and after steps, against the authors' module.
fn check_golden_mixer(case: &Golden, params: &ParamBuilder, mixer: &dyn SequenceMixer) {
    let u = rows(case.get("u")).tracked();
    let batch = SeqBatch::equal(2, 20).unwrap();
    let y = mixer.forward(&u, &batch, None).unwrap();
    assert_close("y", &y, &rows(case.get("y")), 1e-10);
    let gradients = backward_with(&[(&y, &rows(case.get("R")))]).unwrap();
    for param in params.params().iter() {
        let expected = case.get(&format!("grad.{}", param.name()));
        let found = gradients.get(&param.tensor()).unwrap();
        assert_close(param.name(), found, expected, 1e-9);
    }
    assert_close("u", gradients.get(&u).unwrap(), &rows(case.get("grad.u")), 1e-9);
    check_golden_states(mixer, case);
}

fn check_golden_states(mixer: &dyn SequenceMixer, case: &Golden) {
    let prompt = case.get("prefill_len").to_scalar().unwrap() as usize;
    let steps = case.get("step_y").dims()[1];
    let mut states: Vec<LayerState> =
        (0..2).map(|_| mixer.init_state(DType::F64).unwrap()).collect();
    let part = |start: usize, len: usize| rows(&case.get("u").narrow(1, start, len).unwrap());
    let advance = |x: &Tensor, len: usize, states: &mut [LayerState]| {
        let batch = SeqBatch::equal(2, len).unwrap();
        let mut borrowed: Vec<&mut LayerState> = states.iter_mut().collect();
        mixer.advance(x, &batch, &mut borrowed, None).unwrap()
    };
    advance(&part(0, prompt), prompt, &mut states);
    check_state(&states, case, "after_prefill");
    // Without gradients layers may step their states in place; both ways have the authors' numbers.
    for step in 0..steps {
        let mut forward = || advance(&part(prompt + step, 1), 1, &mut states);
        let y = if step % 2 == 0 { no_grad(&mut forward) } else { forward() };
        let expected = case.get("step_y").select(1, step).unwrap();
        assert_close(&format!("step {step}"), &y, &expected, 1e-10);
    }
    check_state(&states, case, "end");
}

fn check_state(states: &[LayerState], case: &Golden, moment: &str) {
    for (index, state) in states.iter().enumerate() {
        let (own_conv, own_scan) = match state {
            LayerState::Recurrent(state) => (state.conv.clone(), state.scan.clone()),
            LayerState::Slot(state) => state.values().unwrap(),
            _ => panic!("a recurrent state"),
        };
        let scan = case.get(&format!("ssm_state_{moment}")).narrow(0, index, 1).unwrap();
        assert_close("scan state", &own_scan, &scan, 1e-10);
        // The authors keep one input more than the convolution needs.
        let conv = case.get(&format!("conv_state_{moment}")).narrow(0, index, 1).unwrap();
        let width = own_conv.dims()[2];
        let conv = conv.narrow(2, conv.dims()[2] - width, width).unwrap();
        assert_close("conv state", &own_conv, &conv, 1e-10);
    }
}

fn tiny(n_groups: usize, d_ssm: Option<usize>, rms_norm: bool) -> Mamba2Config {
    Mamba2Config {
        d_state: 8,
        head_dim: 8,
        n_groups,
        d_ssm,
        rms_norm,
        chunk_size: 8,
        ..Mamba2Config::default()
    }
}

#[test]
fn golden_mamba2_block() {
    check_golden_block("block_mamba2", &tiny(2, None, true));
}

#[test]
fn golden_mamba2_block_without_norm() {
    check_golden_block("block_mamba2_norms_off", &tiny(1, None, false));
}

#[test]
fn golden_mamba2_block_with_mlp() {
    check_golden_block("block_mamba2_dssm_mlp", &tiny(1, Some(16), true));
}

/// The authors' tiny block: d_state 8, everything else by default.
fn tiny1() -> Mamba1Config {
    Mamba1Config { d_state: 8, ..Mamba1Config::default() }
}

#[test]
fn golden_mamba1_block() {
    let case = golden(SYSTEM, "block_mamba1");
    let params = golden_params(&case);
    let mixer = Mamba1::build(&params, &tiny1(), 16, Format::Dense, 1.0).unwrap();
    check_golden_mixer(&case, &params, &mixer);
}

const D_MODEL: usize = 16;

fn other_options() -> Mamba2Config {
    Mamba2Config {
        bias: true,
        conv_bias: false,
        dt_limit: (0.02, Some(0.09)),
        norm_before_gate: true,
        ..tiny(2, None, true)
    }
}

fn mixers(dtype: DType) -> Vec<Box<dyn SequenceMixer>> {
    let params = |seed| ParamBuilder::init(seed, dtype, Device::Cpu);
    let attention = |seed, json: &str| -> Box<dyn SequenceMixer> {
        let config: AttentionConfig = parse(json);
        Box::new(Attention::build(&params(seed), &config, D_MODEL, Format::Dense, 64).unwrap())
    };
    let mamba1 = |seed, config: &Mamba1Config, format| -> Box<dyn SequenceMixer> {
        Box::new(Mamba1::build(&params(seed), config, D_MODEL, format, 1.0).unwrap())
    };
    let linear = |kind, format| -> Box<dyn SequenceMixer> {
        let config = LinearAttentionConfig { n_heads: 2, ..LinearAttentionConfig::default() };
        let built = LinearAttention::build(&params(8), kind, &config, D_MODEL, format, (1.0, 64));
        Box::new(built.unwrap())
    };
    let biased = Mamba1Config { dt_rank: Some(3), conv_bias: false, bias: true, ..tiny1() };
    vec![
        attention(1, "n_heads=2"),
        attention(2, "n_heads=4 n_kv_heads=2 rope bias window=5"),
        attention(3, "n_heads=4 n_kv_heads=2 rope bias conv_width=4"),
        attention(2, "n_heads=2 rope qk_norm bias out_bias=no rotary_dim=6 interleaved"),
        Box::new(
            Mamba2::build(&params(3), &tiny(2, None, true), D_MODEL, Format::Dense, 1.0).unwrap(),
        ),
        Box::new(Mamba2::build(&params(3), &other_options(), D_MODEL, Format::Dense, 1.0).unwrap()),
        Box::new(
            Mamba2::build(&params(4), &tiny(1, Some(16), false), D_MODEL, Format::LowRank(5), 1.0)
                .unwrap(),
        ),
        Box::new(Mamba2::build(&params(5), &every_option(), D_MODEL, Format::Dense, 1.0).unwrap()),
        mamba1(6, &tiny1(), Format::Dense),
        mamba1(7, &biased, Format::LowRank(5)),
        linear(LinearAttentionKind::Linear, Format::Dense),
        linear(LinearAttentionKind::RetNet, Format::LowRank(5)),
        linear(LinearAttentionKind::Gated, Format::Dense),
    ]
}

/// What only foreign checkpoints set.
fn every_option() -> Mamba2Config {
    Mamba2Config {
        norm_eps: 1e-3,
        norm_before_gate: true,
        dt_limit: (0.01, Some(0.05)),
        conv_bias: false,
        bias: true,
        ..tiny(2, None, true)
    }
}

fn parse(text: &str) -> AttentionConfig {
    let number = |key: &str| {
        text.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
    };
    AttentionConfig {
        n_heads: number("n_heads").unwrap(),
        n_kv_heads: number("n_kv_heads"),
        rope_theta: text.contains("rope").then_some(10_000.0),
        rotary_dim: number("rotary_dim"),
        rope_interleaved: text.contains("interleaved"),
        window: number("window"),
        conv_width: number("conv_width"),
        bias: text.contains("bias"),
        out_bias: text.contains("out_bias=no").then_some(false),
        qk_norm_eps: text.contains("qk_norm").then_some(1e-6),
        ..AttentionConfig::default()
    }
}

/// Packed = separate, a prompt cut anywhere = whole, several sequences stepped together = alone.
#[test]
fn packing_and_cutting_change_nothing() {
    for mixer in mixers(DType::F64) {
        let lengths = [7usize, 0, 12, 1];
        let batch = SeqBatch::from_lengths(&lengths).unwrap();
        let x = randn(9, &[batch.tokens(), D_MODEL], DType::F64);
        let packed = mixer.forward(&x, &batch, None).unwrap();
        for (index, &length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
            let start = batch.bounds()[index];
            let own = x.narrow(0, start, length).unwrap();
            let single = SeqBatch::from_lengths(&[length]).unwrap();
            let alone = mixer.forward(&own, &single, None).unwrap();
            let expected = packed.narrow(0, start, length).unwrap();
            assert_close(mixer.name(), &alone, &expected, 1e-12);
            for cut in [1, 3, 7] {
                let mut state = mixer.init_state(DType::F64).unwrap();
                let mut parts = Vec::new();
                for from in (0..length).step_by(cut) {
                    let count = cut.min(length - from);
                    let part = SeqBatch::from_lengths(&[count]).unwrap();
                    let x = own.narrow(0, from, count).unwrap();
                    parts.push(mixer.advance(&x, &part, &mut [&mut state], None).unwrap());
                }
                let borrowed: Vec<&Tensor> = parts.iter().collect();
                let joined = Tensor::cat(&borrowed, 0).unwrap();
                assert_close(mixer.name(), &joined, &alone, 1e-9);
            }
        }
    }
}

#[test]
fn sequences_step_together_as_alone() {
    for mixer in mixers(DType::F64) {
        let x = randn(10, &[3, D_MODEL], DType::F64);
        let mut together: Vec<LayerState> =
            (0..3).map(|_| mixer.init_state(DType::F64).unwrap()).collect();
        let mut alone = together.clone();
        for _ in 0..4 {
            let mut borrowed: Vec<&mut LayerState> = together.iter_mut().collect();
            let batch = SeqBatch::equal(3, 1).unwrap();
            let y = mixer.advance(&x, &batch, &mut borrowed, None).unwrap();
            for (index, state) in alone.iter_mut().enumerate() {
                let own = x.narrow(0, index, 1).unwrap();
                let batch = SeqBatch::equal(1, 1).unwrap();
                let single = mixer.advance(&own, &batch, &mut [state], None).unwrap();
                assert_close(mixer.name(), &single, &y.narrow(0, index, 1).unwrap(), 1e-12);
            }
        }
    }
}

/// The dense matrix is lower triangular, and for attention its rows are distributions.
#[test]
fn dense_matrices_are_causal() {
    for mixer in mixers(DType::F64) {
        let x = randn(11, &[9, D_MODEL], DType::F64);
        let dense = mixer.dense(&x).unwrap();
        assert_eq!(dense.dims()[1..], [9, 9]);
        let values = dense.to_vec::<f64>().unwrap();
        for (index, value) in values.iter().enumerate() {
            let (row, column) = (index / 9 % 9, index % 9);
            assert!(column <= row || *value == 0.0, "{} at {row}, {column}", mixer.name());
        }
        if mixer.name() == "attention" {
            let sums: Vec<f64> = values.chunks(9).map(|row| row.iter().sum()).collect();
            assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-12), "{sums:?}");
        }
    }
}

/// A convolution whose last tap is 1 and whose other numbers are 0 changes nothing.
#[test]
fn attention_behind_an_idle_convolution_is_attention() {
    let plain = parse("n_heads=4 n_kv_heads=2 rope");
    let convolved = AttentionConfig { conv_width: Some(3), ..plain.clone() };
    let params = ParamBuilder::init(4, DType::F64, Device::Cpu);
    let mixer = Attention::build(&params, &convolved, D_MODEL, Format::Dense, 64).unwrap();
    let elements: usize = params.params().iter().map(|param| param.tensor().elem_count()).sum();
    assert_eq!(elements, convolved.elem_count(D_MODEL, Format::Dense));
    let taps: Vec<f64> = (0..32 * 3).map(|at| f64::from(u8::from(at % 3 == 2))).collect();
    let set = |name: &str, value: Tensor| params.params().get(name).unwrap().set(&value).unwrap();
    set("conv1d.weight", Tensor::from_vec(taps, [32, 1, 3], &Device::Cpu).unwrap());
    set("conv1d.bias", Tensor::zeros([32], DType::F64, &Device::Cpu).unwrap());
    let made = params.params();
    let named = made.iter().map(|param| (param.name().to_string(), param.tensor().detach()));
    let source: BTreeMap<String, Tensor> = named.collect();
    let params = ParamBuilder::load(Arc::new(source), DType::F64, Device::Cpu);
    let other = Attention::build(&params, &plain, D_MODEL, Format::Dense, 64).unwrap();
    let x = randn(6, &[9, D_MODEL], DType::F64);
    let batch = SeqBatch::from_lengths(&[5, 4]).unwrap();
    let y = mixer.forward(&x, &batch, None).unwrap();
    assert_close("y", &y, &other.forward(&x, &batch, None).unwrap(), 1e-13);
}

/// Without gate, skip connection and projections a mixer is its dense matrix times its values: Mamba-1's
/// parameters are chosen so that only the scan is left.
#[test]
fn mamba1_is_its_dense_matrix() {
    let config = Mamba1Config { expand: 1, conv_width: 1, ..tiny1() };
    let params = ParamBuilder::init(8, DType::F64, Device::Cpu);
    let mixer = Mamba1::build(&params, &config, D_MODEL, Format::Dense, 1.0).unwrap();
    let set = |name: &str, value: &Tensor| params.params().get(name).unwrap().set(value).unwrap();
    let eye: Vec<f64> = (0..D_MODEL * D_MODEL)
        .map(|at| if at / D_MODEL == at % D_MODEL { 1.0 } else { 0.0 })
        .collect();
    let eye = Tensor::from_vec(eye, [D_MODEL, D_MODEL], &Device::Cpu).unwrap();
    set("in_proj.weight", &Tensor::cat(&[&eye, &eye], 0).unwrap());
    set("out_proj.weight", &eye);
    set("D", &Tensor::zeros([D_MODEL], DType::F64, &Device::Cpu).unwrap());
    let x = randn(14, &[9, D_MODEL], DType::F64);
    let dense = mixer.dense(&x).unwrap();
    let silu = |x: &Tensor| {
        let ones = Tensor::full(1.0, x.shape(), &Device::Cpu).unwrap();
        x.div(&x.neg().unwrap().exp().unwrap().add(&ones).unwrap()).unwrap()
    };
    let weight = params.params().get("conv1d.weight").unwrap().tensor().detach();
    let bias = params.params().get("conv1d.bias").unwrap().tensor().detach();
    let weight = weight.reshape([1, D_MODEL]).unwrap();
    let values = silu(&x.mul(&weight).unwrap().add(&bias).unwrap());
    let columns = values.transpose(0, 1).unwrap().unsqueeze(2).unwrap();
    let mixed = dense.matmul(&columns).unwrap().squeeze(2).unwrap().transpose(0, 1).unwrap();
    let expected = mixed.mul(&silu(&x)).unwrap();
    let batch = SeqBatch::from_lengths(&[9]).unwrap();
    let y = mixer.forward(&x, &batch, None).unwrap();
    assert_close("y", &y, &expected, 1e-12);
}

#[test]
fn new_mamba1_parameters_start_as_published() {
    let params = ParamBuilder::init(15, DType::F64, Device::Cpu);
    let config = Mamba1Config::default();
    Mamba1::build(&params, &config, 64, Format::Dense, 1.0).unwrap();
    let elements: usize = params.params().iter().map(|param| param.tensor().elem_count()).sum();
    assert_eq!(elements, config.elem_count(64, Format::Dense));
    let values = |name: &str| params.params().get(name).unwrap().tensor().to_vec::<f64>().unwrap();
    for row in values("A_log").chunks(16) {
        assert!((0..16).all(|k| (row[k].exp() - (k as f64 + 1.0)).abs() < 1e-12), "{row:?}");
    }
    for bias in values("dt_proj.bias") {
        let dt = bias.exp().ln_1p();
        assert!((1e-3..=0.1000001).contains(&dt), "{dt}");
    }
    assert_eq!(params.params().get("dt_proj.weight").unwrap().tensor().dims(), [128, 4]);
    let bound = 0.5 + 1e-12;
    assert!(values("dt_proj.weight").iter().all(|value| value.abs() <= bound));
    assert!(!params.params().get("A_log").unwrap().decays());
    let biased = Mamba1Config { bias: true, conv_bias: false, ..config };
    let params = ParamBuilder::init(16, DType::F64, Device::Cpu);
    Mamba1::build(&params, &biased, 64, Format::Dense, 1.0).unwrap();
    let elements: usize = params.params().iter().map(|param| param.tensor().elem_count()).sum();
    assert_eq!(elements, biased.elem_count(64, Format::Dense));
}

#[test]
fn every_option_of_mamba2_is_counted_and_checked() {
    let params = ParamBuilder::init(17, DType::F64, Device::Cpu);
    Mamba2::build(&params, &every_option(), D_MODEL, Format::Dense, 1.0).unwrap();
    let elements: usize = params.params().iter().map(|param| param.tensor().elem_count()).sum();
    assert_eq!(elements, every_option().elem_count(D_MODEL, Format::Dense));
    let refused = |config: Mamba2Config| config.check(D_MODEL).unwrap_err().to_string();
    let bad = Mamba2Config { dt_limit: (0.5, Some(0.1)), ..every_option() };
    assert!(refused(bad).contains("mamba2.dt_limit is (0.5, Some(0.1))"));
    let bad = Mamba2Config { norm_eps: 0.0, ..every_option() };
    assert!(refused(bad).contains("mamba2.norm_eps is 0"));
    let bad = Mamba1Config { dt_rank: Some(0), ..tiny1() };
    let message = bad.check(D_MODEL).unwrap_err().to_string();
    assert!(message.contains("mamba1.dt_rank is 0, valid is 1..=32"), "{message}");
}

#[test]
fn bad_shapes_and_states_are_named() {
    let mixers = mixers(DType::F64);
    let x = randn(12, &[4, D_MODEL], DType::F64);
    let batch = SeqBatch::equal(2, 2).unwrap();
    for mixer in &mixers {
        let message = mixer.forward(&x, &SeqBatch::equal(1, 3).unwrap(), None).unwrap_err();
        assert!(message.to_string().contains("3 tokens"), "{message}");
        let mut one = mixer.init_state(DType::F64).unwrap();
        let message = mixer.advance(&x, &batch, &mut [&mut one], None).unwrap_err().to_string();
        assert!(message.contains("states is 1, valid is 2"), "{message}");
    }
    let mut foreign = mixers[4].init_state(DType::F64).unwrap();
    let single = SeqBatch::equal(1, 4).unwrap();
    let message = mixers[0].advance(&x, &single, &mut [&mut foreign], None).unwrap_err();
    assert!(message.to_string().contains("a state of another mixer"), "{message}");
    let long = SeqBatch::equal(1, 65).unwrap();
    let x = randn(13, &[65, D_MODEL], DType::F64);
    let message = mixers[0].forward(&x, &long, None).unwrap_err().to_string();
    assert!(message.contains("sequence length is 65"), "{message}");
}

/// Without gradients Mamba-2 steps its states in place: the bits of one prompt at the invariant level, in
/// any cut, for several sequences in any company, with and without a norm.
#[test]
fn mamba2_steps_have_the_bits_of_a_prompt() {
    let dtype = DType::F32;
    for rms_norm in [true, false] {
        let params = ParamBuilder::init(3, dtype, Device::Cpu);
        let config = tiny(2, None, rms_norm);
        let mixer = Mamba2::build(&params, &config, 16, Format::Dense, 1.0).unwrap();
        let x = randn(4, &[2, 40, 16], dtype);
        let part = |start: usize, len: usize| {
            x.narrow(1, start, len).unwrap().contiguous().unwrap().flatten(0, 1).unwrap()
        };
        let run = |cuts: &[usize]| {
            let mut states: Vec<LayerState> =
                (0..2).map(|_| mixer.init_state(dtype).unwrap()).collect();
            // Marks share slots: what follows must not change them.
            let mut marks = Vec::new();
            let (mut start, mut outs) = (0, Vec::new());
            for &len in cuts {
                let batch = SeqBatch::equal(2, len).unwrap();
                let mut borrowed: Vec<&mut LayerState> = states.iter_mut().collect();
                let y = mixer.advance(&part(start, len), &batch, &mut borrowed, None).unwrap();
                outs.push(y.reshape([2, len, 16]).unwrap());
                start += len;
                marks.push((states[0].clone(), digest(&states[0])));
            }
            for (mark, hash) in &marks {
                assert_eq!(digest(mark), *hash);
            }
            let hashes: Vec<u64> = states.iter().map(digest).collect();
            (Tensor::cat(&outs.iter().collect::<Vec<_>>(), 1).unwrap(), hashes)
        };
        danaus_tensor::with_level(danaus_tensor::Level::Invariant, || {
            no_grad(|| {
                let (expected, hashes) = run(&[40]);
                for cuts in [vec![1; 40], vec![3, 7, 16, 14], vec![20, 1, 2, 17], vec![16, 16, 8]] {
                    let (y, own) = run(&cuts);
                    assert_close(&format!("{cuts:?}"), &y, &expected, 0.0);
                    assert_eq!(own, hashes, "{cuts:?}");
                }
            });
        });
    }
}

fn digest(state: &LayerState) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    state.digest(&mut hasher).unwrap();
    std::hash::Hasher::finish(&hasher)
}
