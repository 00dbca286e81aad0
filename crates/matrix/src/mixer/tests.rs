//! Golden blocks, and what every causal mixer must satisfy.

use super::*;
use crate::structured::Format;
use danaus_tensor::{Device, ParamBuilder, backward_with};
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

/// Outputs, gradients, states after a prompt and after steps, against the authors' module.
fn check_golden_block(name: &str, config: &Mamba2Config) {
    let case = golden(SYSTEM, name);
    let params = golden_params(&case);
    let mixer = Mamba2::build(&params, config, 16, Format::Dense, 1.0).unwrap();
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
    check_golden_states(&mixer, &case);
}

fn check_golden_states(mixer: &Mamba2, case: &Golden) {
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
    for step in 0..steps {
        let y = advance(&part(prompt + step, 1), 1, &mut states);
        let expected = case.get("step_y").select(1, step).unwrap();
        assert_close(&format!("step {step}"), &y, &expected, 1e-10);
    }
    check_state(&states, case, "end");
}

fn check_state(states: &[LayerState], case: &Golden, moment: &str) {
    for (index, state) in states.iter().enumerate() {
        let LayerState::Recurrent(state) = state else { panic!("a recurrent state") };
        let scan = case.get(&format!("ssm_state_{moment}")).narrow(0, index, 1).unwrap();
        assert_close("scan state", &state.scan, &scan, 1e-10);
        // The authors keep one input more than the convolution needs.
        let conv = case.get(&format!("conv_state_{moment}")).narrow(0, index, 1).unwrap();
        let width = state.conv.dims()[2];
        let conv = conv.narrow(2, conv.dims()[2] - width, width).unwrap();
        assert_close("conv state", &state.conv, &conv, 1e-10);
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
    vec![
        attention(1, "n_heads=2"),
        attention(2, "n_heads=4 n_kv_heads=2 rope bias window=5"),
        attention(2, "n_heads=2 rope qk_norm bias out_bias=no rotary_dim=6 interleaved"),
        Box::new(
            Mamba2::build(&params(3), &tiny(2, None, true), D_MODEL, Format::Dense, 1.0).unwrap(),
        ),
        Box::new(
            Mamba2::build(&params(3), &other_options(), D_MODEL, Format::Dense, 1.0).unwrap(),
        ),
        Box::new(
            Mamba2::build(&params(4), &tiny(1, Some(16), false), D_MODEL, Format::LowRank(5), 1.0)
                .unwrap(),
        ),
    ]
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
    let mut foreign = mixers[3].init_state(DType::F64).unwrap();
    let single = SeqBatch::equal(1, 4).unwrap();
    let message = mixers[0].advance(&x, &single, &mut [&mut foreign], None).unwrap_err();
    assert!(message.to_string().contains("a state of another mixer"), "{message}");
    let long = SeqBatch::equal(1, 65).unwrap();
    let x = randn(13, &[65, D_MODEL], DType::F64);
    let message = mixers[0].forward(&x, &long, None).unwrap_err().to_string();
    assert!(message.contains("sequence length is 65"), "{message}");
}
