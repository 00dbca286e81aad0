//! The fused step against the separate operators, drafts against single steps, and misuse.
//!
//! f64 differs from the operators by nothing that rounding allows to differ: 1e-13. f32 and bf16 on the
//! processor have the bits of the operators at the invariant level.

use super::*;
use crate::ops::conv1d::{ConvInputs, ConvOptions, causal_conv1d};
use crate::ops::ssd::{SsdInputs, ssd};
use danaus_tensor::{Device, Level, with_level};
use danaus_testkit::{assert_close, randn};

#[derive(Clone, Copy)]
struct Case {
    heads: usize,
    groups: usize,
    head_dim: usize,
    d_state: usize,
    width: usize,
    dtype: DType,
    /// One number of D a head.
    per_head: bool,
    gated: bool,
}

const CASES: [(usize, usize, usize, usize, usize); 4] =
    [(2, 1, 4, 8, 4), (4, 2, 5, 7, 2), (3, 3, 8, 16, 1), (2, 1, 16, 40, 3)];

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        for (index, (heads, groups, head_dim, d_state, width)) in CASES.into_iter().enumerate() {
            let (per_head, gated) = (index % 2 == 0, index != 1);
            all.push(Case { heads, groups, head_dim, d_state, width, dtype, per_head, gated });
        }
    }
    all
}

/// Parameters of a layer and the tokens of three sequences.
struct Layer {
    case: Case,
    weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    xbc: Tensor,
    dt: Tensor,
    z: Tensor,
}

const BATCH: usize = 3;
const TOKENS: usize = 12;
const LIMIT: Option<(f64, f64)> = Some((0.02, 1.4));

impl Layer {
    fn new(case: Case) -> Self {
        let states = wide(case.dtype);
        let values = case.heads * case.head_dim;
        let channels = values + 2 * case.groups * case.d_state;
        let d = if case.per_head { vec![case.heads] } else { vec![case.heads, case.head_dim] };
        let tokens = |seed, width| randn(seed, &[BATCH, TOKENS, width], case.dtype);
        Self {
            case,
            weight: randn(1, &[channels, 1, case.width], states),
            conv_bias: randn(2, &[channels], states),
            dt_bias: randn(3, &[case.heads], states),
            a_log: randn(4, &[case.heads], states),
            d: randn(5, &d, states),
            xbc: tokens(6, channels),
            dt: tokens(7, case.heads),
            z: tokens(8, values),
        }
    }

    fn params(&self) -> StepParams<'_> {
        StepParams {
            conv_weight: &self.weight,
            conv_bias: Some(&self.conv_bias),
            dt_bias: Some(&self.dt_bias),
            a_log: &self.a_log,
            d: Some(&self.d),
        }
    }

    fn pool(&self, slots: usize, places: usize) -> Mamba2Pool {
        let Case { heads, head_dim, d_state, dtype, .. } = self.case;
        let channels = self.xbc.dims()[2];
        let shape = PoolShape { slots, places, channels, heads, head_dim, d_state };
        Mamba2Pool::new(&shape, dtype, &Device::Cpu).unwrap()
    }

    /// Tokens `start..start + len` of all sequences.
    fn step(
        &self,
        pool: &mut Mamba2Pool,
        (start, len): (usize, usize),
        rows: [Option<&[i32]>; 3],
        commit: bool,
    ) -> Result<Tensor> {
        let part = |tensor: &Tensor| tensor.narrow(1, start, len).unwrap();
        let (xbc, dt, z) = (part(&self.xbc), part(&self.dt), part(&self.z));
        let inputs = StepInputs { xbc: &xbc, dt: &dt, z: self.case.gated.then_some(&z) };
        let list = |values: Option<&[i32]>| {
            values.map(|values| Tensor::from_slice(values, [values.len()], &Device::Cpu).unwrap())
        };
        let [slots, to_slots, accepted] = rows.map(list);
        let rows = StepRows {
            slots: slots.as_ref().unwrap(),
            to_slots: to_slots.as_ref(),
            accepted: accepted.as_ref(),
        };
        let options = StepOptions { dt_softplus: true, dt_limit: LIMIT, commit };
        mamba2_step(&inputs, &self.params(), &rows, pool, &options)
    }

    /// The operators one after the other: y, convolution states, scan states.
    fn separate(&self, len: usize) -> [Tensor; 3] {
        let Case { heads, groups, head_dim, d_state, .. } = self.case;
        let part = |tensor: &Tensor| tensor.narrow(1, 0, len).unwrap();
        let conv = ConvInputs {
            x: &part(&self.xbc),
            weight: &self.weight,
            bias: Some(&self.conv_bias),
            initial_states: None,
            seq_idx: None,
            cu_seqlens: None,
        };
        let options = ConvOptions { silu: true, channel_last: true };
        let (mixed, conv_states) = causal_conv1d(&conv, &options).unwrap();
        let keys = groups * d_state;
        let parts = mixed.split(-1, &[heads * head_dim, keys, keys]).unwrap();
        let values = |x: &Tensor| x.reshape([BATCH, len, heads, head_dim]).unwrap();
        let groups = |x: &Tensor| x.reshape([BATCH, len, groups, d_state]).unwrap();
        let (x, b, c) = (values(&parts[0]), groups(&parts[1]), groups(&parts[2]));
        let a = self.a_log.exp().unwrap().neg().unwrap();
        let z = values(&part(&self.z));
        let dt = part(&self.dt);
        let inputs = SsdInputs {
            d: Some(&self.d),
            z: self.case.gated.then_some(&z),
            dt_bias: Some(&self.dt_bias),
            ..SsdInputs::new(&x, &dt, &a, &b, &c)
        };
        let options = SsdOptions { dt_softplus: true, dt_limit: LIMIT, chunk_size: None };
        let (y, states) = ssd(&inputs, &options).unwrap();
        [y.reshape([BATCH, len, heads * head_dim]).unwrap(), conv_states, states]
    }
}

fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F64 { 1e-13 } else { 0.0 }
}

const SLOTS: [i32; BATCH] = [4, 0, 2];
const PLAIN: [Option<&[i32]>; 3] = [Some(&SLOTS), None, None];

/// Everything that a sequence's next step depends on.
fn assert_states(what: &str, layer: &Layer, a: (&Mamba2Pool, i32), b: (&Mamba2Pool, i32)) {
    let read =
        |(pool, slot): (&Mamba2Pool, i32)| pool.read(slot as usize, layer.case.width).unwrap();
    let ((conv, scan), (expected_conv, expected_scan)) = (read(a), read(b));
    assert_close(&format!("{what}: conv"), &conv, &expected_conv, 0.0);
    assert_close(&format!("{what}: scan"), &scan, &expected_scan, 0.0);
}

#[test]
fn one_pass_has_the_numbers_of_the_separate_operators() {
    for case in cases() {
        let layer = Layer::new(case);
        let [y, conv, scan] = with_level(Level::Invariant, || layer.separate(TOKENS));
        let mut pool = layer.pool(5, 5);
        let mut outs = Vec::new();
        for (start, len) in [(0, 1), (1, 2), (3, 1), (4, 1), (5, 1), (6, 2), (8, 2), (10, 2)] {
            outs.push(layer.step(&mut pool, (start, len), PLAIN, true).unwrap());
        }
        let out = Tensor::cat(&outs.iter().collect::<Vec<_>>(), 1).unwrap();
        let tolerance = tolerance(case.dtype);
        assert_close("y", &out, &y, tolerance);
        for (row, slot) in SLOTS.into_iter().enumerate() {
            let (own_conv, own_scan) = pool.read(slot as usize, case.width).unwrap();
            assert_close("conv", &own_conv, &conv.narrow(0, row, 1).unwrap(), 0.0);
            assert_close("scan", &own_scan, &scan.narrow(0, row, 1).unwrap(), tolerance);
        }
        assert_eq!(
            pool.read(1, case.width).unwrap().1.sum_all().unwrap().to_scalar().unwrap(),
            0.0
        );
    }
}

#[test]
fn several_tokens_have_the_bits_of_single_steps() {
    for case in cases() {
        let layer = Layer::new(case);
        let (mut single, mut several) = (layer.pool(5, 12), layer.pool(5, 12));
        let steps = |pool: &mut Mamba2Pool, cut: &[(usize, usize)]| {
            let outs: Vec<Tensor> =
                cut.iter().map(|&at| layer.step(pool, at, PLAIN, true).unwrap()).collect();
            Tensor::cat(&outs.iter().collect::<Vec<_>>(), 1).unwrap()
        };
        let one: Vec<(usize, usize)> = (0..9).map(|at| (at, 1)).collect();
        let a = steps(&mut single, &one);
        let b = steps(&mut several, &[(0, 4), (4, 5)]);
        assert_close("y", &b, &a, 0.0);
        for slot in SLOTS {
            assert_states("several", &layer, (&several, slot), (&single, slot));
        }
    }
}

/// A draft of four tokens, of which some are accepted, then another one: the bits of single steps over the
/// accepted tokens, whatever was rejected.
#[test]
fn replay_of_an_accepted_prefix_is_the_steps_themselves() {
    for case in cases() {
        let layer = Layer::new(case);
        for accepted in 0..=4usize {
            let (mut plain, mut draft) = (layer.pool(5, 12), layer.pool(5, 12));
            for pool in [&mut plain, &mut draft] {
                layer.step(pool, (0, 2), PLAIN, true).unwrap();
            }
            let tried = layer.step(&mut draft, (2, 4), PLAIN, false).unwrap();
            for slot in SLOTS {
                assert_states("a draft", &layer, (&draft, slot), (&plain, slot));
            }
            let mut outs = Vec::new();
            for token in 0..accepted {
                outs.push(layer.step(&mut plain, (2 + token, 1), PLAIN, true).unwrap());
            }
            if accepted > 0 {
                let out = Tensor::cat(&outs.iter().collect::<Vec<_>>(), 1).unwrap();
                assert_close("y of a draft", &tried.narrow(1, 0, accepted).unwrap(), &out, 0.0);
            }
            let counts = [accepted as i32; BATCH];
            let rows = [Some(&SLOTS[..]), None, Some(&counts[..])];
            // The next draft takes the accepted tokens in; nothing else does.
            let next = layer.step(&mut draft, (7, 3), rows, false).unwrap();
            for slot in SLOTS {
                assert_states("after replay", &layer, (&draft, slot), (&plain, slot));
            }
            let expected = layer.step(&mut plain, (7, 3), PLAIN, true).unwrap();
            assert_close("y after replay", &next, &expected, 0.0);
            let all = [Some(&SLOTS[..]), None, Some(&[3, 3, 3][..])];
            layer.step(&mut draft, (10, 0), all, false).unwrap();
            for slot in SLOTS {
                assert_states("taken in", &layer, (&draft, slot), (&plain, slot));
            }
        }
    }
}

#[test]
fn rows_replay_different_counts_and_leave_other_slots_alone() {
    for case in cases() {
        let layer = Layer::new(case);
        let (mut pool, mut alone) = (layer.pool(6, 12), layer.pool(6, 12));
        for pool in [&mut pool, &mut alone] {
            layer.step(pool, (0, 3), PLAIN, true).unwrap();
            layer.step(pool, (3, 3), PLAIN, false).unwrap();
        }
        let before = pool.clone();
        // The first row moves, the second is skipped, the third stays.
        let (slots, to, accepted) = ([4, -1, 2], [5, 3, 2], [3, 9, 1]);
        let rows = [Some(&slots[..]), Some(&to[..]), Some(&accepted[..])];
        let out = layer.step(&mut pool, (6, 2), rows, true).unwrap();
        assert_states("the source", &layer, (&pool, 4), (&before, 4));
        assert_states("the skipped", &layer, (&pool, 0), (&before, 0));
        let skipped = out.narrow(0, 1, 1).unwrap().to_dtype(DType::F64).unwrap();
        assert!(skipped.to_vec::<f64>().unwrap().iter().all(|&v| v == 0.0));
        for (row, accepted) in [(0, 3), (2, 1)] {
            let mut slots = [-1; BATCH];
            slots[row] = SLOTS[row];
            let rows = [Some(&slots[..]), None, Some(&[accepted; BATCH][..])];
            let own = layer.step(&mut alone, (6, 2), rows, true).unwrap();
            let row_of = |y: &Tensor| y.narrow(0, row, 1).unwrap();
            assert_close("y", &row_of(&out), &row_of(&own), 0.0);
            assert_states("moved", &layer, (&pool, to[row]), (&alone, SLOTS[row]));
        }
        // A moved sequence goes on from its new slot.
        let a = layer.step(&mut pool, (8, 1), [Some(&[5, -1, -1]), None, None], true).unwrap();
        let b = layer.step(&mut alone, (8, 1), [Some(&[4, -1, -1]), None, None], true).unwrap();
        assert_close("the next token", &a, &b, 0.0);
    }
}

#[test]
fn prompts_fill_slots_and_are_read_back() {
    for case in cases() {
        let layer = Layer::new(case);
        let [_, conv, scan] = with_level(Level::Invariant, || layer.separate(5));
        let mut pool = layer.pool(5, 6);
        for (row, slot) in SLOTS.into_iter().enumerate() {
            let part = |tensor: &Tensor| tensor.narrow(0, row, 1).unwrap();
            pool.fill(slot as usize, &part(&conv), &part(&scan)).unwrap();
            let (own_conv, own_scan) = pool.read(slot as usize, case.width).unwrap();
            assert_close("conv", &own_conv, &part(&conv), 0.0);
            assert_close("scan", &own_scan, &part(&scan), 0.0);
        }
        pool.grow(9).unwrap();
        assert_eq!(pool.slots(), 9);
        let out = layer.step(&mut pool, (5, 2), PLAIN, true).unwrap();
        let [y, ..] = with_level(Level::Invariant, || layer.separate(7));
        assert_close("y", &out, &y.narrow(1, 5, 2).unwrap(), tolerance(case.dtype));
        pool.clear(4).unwrap();
        let (_, scan) = pool.read(4, case.width).unwrap();
        assert!(
            scan.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap().iter().all(|&v| v == 0.0)
        );
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let layer = Layer::new(cases()[0]);
    let mut pool = layer.pool(5, 5);
    let mut refused = |rows: [Option<&[i32]>; 3], len: usize, name: &str| {
        let error = layer.step(&mut pool, (0, len), rows, true).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    };
    refused([Some(&[0, 5, 1]), None, None], 1, "slots");
    refused([Some(&[0, -2, 1]), None, None], 1, "slots");
    refused([Some(&[0, 1, 1]), None, None], 1, "slots");
    refused([Some(&[0, 1, 2]), Some(&[1, 3, 4]), None], 1, "slots");
    refused([Some(&[0, 1, 2]), Some(&[3, 3, 4]), None], 1, "to_slots");
    refused([Some(&[0, 1, 2]), None, Some(&[0, 2, 0])], 1, "accepted");
    refused([Some(&[0, 1]), None, None], 1, "slots");
    refused(PLAIN, 3, "places");
    let wrong = layer.pool(5, 5);
    let mut pool = Mamba2Pool { dt: wrong.conv.clone(), ..wrong };
    let error = layer.step(&mut pool, (0, 1), PLAIN, true).unwrap_err().to_string();
    assert!(error.contains("dt_states"), "{error}");
}
