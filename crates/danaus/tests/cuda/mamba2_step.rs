//! The fused decoding step of Mamba-2 on a GPU: against the processor's, drafts against single steps, and
//! in a graph.

use crate::{FLOATS, assert_same, gpu, randn, values};
use danaus::kernel::ops::mamba2_step::{
    Mamba2Pool, PoolShape, StepInputs, StepOptions, StepParams, StepRows, mamba2_step,
};
use danaus::matrix::mixer::{Mamba2, Mamba2Config};
use danaus::matrix::structured::Format;
use danaus::matrix::{SeqBatch, SequenceMixer, StatePool};
use danaus::runtime::cuda::Graph;
use danaus::tensor::{DType, Device, ParamBuilder, Result, Tensor, no_grad};

#[derive(Clone, Copy)]
struct Case {
    heads: usize,
    groups: usize,
    head_dim: usize,
    d_state: usize,
    width: usize,
    dtype: DType,
}

const BATCH: usize = 3;
const TOKENS: usize = 12;
const PLACES: usize = 12;
const SLOTS: [i32; BATCH] = [4, 0, 2];

fn cases() -> Vec<Case> {
    let sizes = [(2, 1, 64, 128, 4), (4, 2, 10, 16, 2), (2, 2, 100, 64, 4), (2, 1, 17, 200, 3)];
    let case = |dtype| {
        let with = move |(heads, groups, head_dim, d_state, width)| Case {
            heads,
            groups,
            head_dim,
            d_state,
            width,
            dtype,
        };
        sizes.into_iter().map(with)
    };
    FLOATS.into_iter().flat_map(case).collect()
}

/// Parameters and tokens on a device.
struct Layer {
    case: Case,
    params: Vec<Tensor>,
    /// z, xBC, dt of all tokens, as one projection gives them.
    joined: Tensor,
}

impl Layer {
    fn new(case: Case, device: &Device) -> Self {
        let states = if case.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let Case { heads, groups, head_dim, d_state, width, dtype } = case;
        let channels = heads * head_dim + 2 * groups * d_state;
        let params = [
            randn(1, &[channels, width], states),
            randn(2, &[channels], states),
            randn(3, &[heads], states),
            randn(4, &[heads], states),
            randn(5, &[heads, head_dim], states),
        ];
        let projected = heads * head_dim + channels + heads;
        let joined = randn(6, &[BATCH, TOKENS, projected], dtype).to_device(device).unwrap();
        let params = params.map(|param| param.to_device(device).unwrap()).to_vec();
        Self { case, params, joined }
    }

    fn pool(&self) -> Mamba2Pool {
        let Case { heads, groups, head_dim, d_state, dtype, .. } = self.case;
        let channels = heads * head_dim + 2 * groups * d_state;
        let shape = PoolShape { slots: 6, places: PLACES, channels, heads, head_dim, d_state };
        Mamba2Pool::new(&shape, dtype, &self.joined.device()).unwrap()
    }

    /// Some tokens of all sequences, with rows that may lie anywhere.
    fn step(
        &self,
        pool: &mut Mamba2Pool,
        joined: &Tensor,
        [slots, to_slots, accepted]: [Option<&Tensor>; 3],
        commit: bool,
    ) -> Result<Tensor> {
        let Case { heads, groups, head_dim, d_state, .. } = self.case;
        let (values, keys) = (heads * head_dim, groups * d_state);
        let parts = joined.split(-1, &[values, values + 2 * keys, heads])?;
        let inputs = StepInputs { z: Some(&parts[0]), xbc: &parts[1], dt: &parts[2] };
        let [weight, conv_bias, dt_bias, a_log, d] = &self.params[..] else { panic!("params") };
        let params = StepParams {
            conv_weight: weight,
            conv_bias: Some(conv_bias),
            dt_bias: Some(dt_bias),
            a_log,
            d: Some(d),
        };
        let rows = StepRows { slots: slots.unwrap(), to_slots, accepted };
        let options = StepOptions { dt_softplus: true, dt_limit: Some((0.02, 1.4)), commit };
        mamba2_step(&inputs, &params, &rows, pool, &options)
    }

    fn part(&self, start: usize, len: usize) -> Tensor {
        self.joined.narrow(1, start, len).unwrap()
    }
}

fn list(values: &[i32], device: &Device) -> Tensor {
    Tensor::from_slice(values, [values.len()], device).unwrap()
}

/// A prompt, a draft, rows that move, are skipped and replay different counts, a draft taken in.
fn run(layer: &Layer) -> Result<Vec<Tensor>> {
    let device = layer.joined.device();
    let slots = list(&SLOTS, &device);
    let mut pool = layer.pool();
    let mut all = Vec::new();
    all.push(layer.step(&mut pool, &layer.part(0, 1), [Some(&slots), None, None], true)?);
    all.push(layer.step(&mut pool, &layer.part(1, 3), [Some(&slots), None, None], true)?);
    all.push(layer.step(&mut pool, &layer.part(4, 4), [Some(&slots), None, None], false)?);
    let (from, to) = (list(&[4, -1, 2], &device), list(&[5, 3, 2], &device));
    let accepted = list(&[4, 1, 0], &Device::Cpu);
    let rows = [Some(&from), Some(&to), Some(&accepted)];
    all.push(layer.step(&mut pool, &layer.part(8, 3), rows, false)?);
    let from = list(&[5, 0, 2], &Device::Cpu);
    let accepted = list(&[3, 4, 1], &device);
    let rows = [Some(&from), None, Some(&accepted)];
    all.push(layer.step(&mut pool, &layer.part(0, 1), rows, true)?);
    let (conv, scan) = pool.read(5, layer.case.width)?;
    // Of bf16 inputs they carry the rounding of what the convolution gives.
    let dtype = layer.case.dtype;
    all.extend([conv.to_dtype(dtype)?, scan.to_dtype(dtype)?, pool.scan.to_dtype(dtype)?]);
    all.push(pool.cursor);
    Ok(all)
}

#[test]
fn one_pass_on_a_pool_of_states() {
    let Some(device) = gpu() else { return };
    for case in cases() {
        let Case { heads, head_dim, d_state, dtype, .. } = case;
        let expected = run(&Layer::new(case, &Device::Cpu)).unwrap();
        let found = run(&Layer::new(case, &device)).unwrap();
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let what = format!("{dtype} {heads} x {head_dim} x {d_state}, result {index}");
            assert_same(&what, found, expected);
        }
    }
}

#[test]
fn replay_and_several_tokens_have_the_bits_of_single_steps() {
    let Some(device) = gpu() else { return };
    let slots = list(&SLOTS, &device);
    for case in cases() {
        let layer = Layer::new(case, &device);
        let (mut plain, mut draft) = (layer.pool(), layer.pool());
        let rows = [Some(&slots), None, None];
        let mut singles = Vec::new();
        for token in 0..9 {
            singles.push(layer.step(&mut plain, &layer.part(token, 1), rows, true).unwrap());
        }
        let mut outs = vec![layer.step(&mut draft, &layer.part(0, 2), rows, true).unwrap()];
        let tried = layer.step(&mut draft, &layer.part(2, 4), rows, false).unwrap();
        outs.push(tried.narrow(1, 0, 3).unwrap());
        let accepted = list(&[3; BATCH], &device);
        let rows = [Some(&slots), None, Some(&accepted)];
        outs.push(layer.step(&mut draft, &layer.part(5, 4), rows, false).unwrap());
        let accepted = list(&[4; BATCH], &device);
        let rows = [Some(&slots), None, Some(&accepted)];
        layer.step(&mut draft, &layer.part(0, 0), rows, false).unwrap();
        let join = |outs: &[Tensor]| Tensor::cat(&outs.iter().collect::<Vec<_>>(), 1).unwrap();
        assert!(values(&join(&outs)) == values(&join(&singles)), "{}", case.dtype);
        assert!(
            values(&draft.scan) == values(&plain.scan)
                && values(&draft.cursor) == values(&plain.cursor)
        );
    }
}

/// Slots and counts are read when the graph runs, not when it is captured.
#[test]
fn a_captured_step_follows_its_buffers() {
    let Some(device) = gpu() else { return };
    let gpu = device.gpu().unwrap();
    let layer = Layer::new(cases()[8], &device);
    no_grad(|| {
        let slots = list(&SLOTS, &device);
        let rows = [Some(&slots), None, None];
        let (mut expected_pool, mut pool) = (layer.pool(), layer.pool());
        let expected: Vec<Vec<f64>> = (0..4)
            .map(|_| {
                let y = layer.step(&mut expected_pool, &layer.part(0, 1), rows, true).unwrap();
                values(&y)
            })
            .collect();
        // Compiles the kernel and copies what the host has, before the capture.
        layer.step(&mut pool, &layer.part(0, 1), rows, true).unwrap();
        let work = || layer.step(&mut pool, &layer.part(0, 1), rows, true);
        let (mut graph, y) = Graph::capture::<_, danaus::tensor::Error>(&gpu, work).unwrap();
        for expected in &expected[1..] {
            graph.replay().unwrap();
            assert!(&values(&y) == expected);
        }
    });
}

#[test]
fn slots_that_are_not_there_are_reported() {
    let Some(device) = gpu() else { return };
    let layer = Layer::new(cases()[4], &device);
    for (slots, accepted, name) in
        [([0, 6, 1], [0; 3], "slots"), ([0, 2, 1], [0, 99, 0], "accepted")]
    {
        let (slots, accepted) = (list(&slots, &device), list(&accepted, &device));
        let rows = [Some(&slots), None, Some(&accepted)];
        layer.step(&mut layer.pool(), &layer.part(0, 1), rows, true).unwrap();
        let error = device.synchronize().unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

/// A prompt, single tokens, a draft that is partly accepted: a mixer on both devices.
#[test]
fn a_mixer_steps_its_states_where_they_lie() {
    let Some(device) = gpu() else { return };
    for n_groups in [1, 2] {
        let config =
            Mamba2Config { d_state: 64, head_dim: 32, n_groups, ..Mamba2Config::default() };
        let run = |device: &Device| -> Result<Vec<Tensor>> {
            let params = ParamBuilder::init(7, DType::F32, *device);
            let mixer = Mamba2::build(&params, &config, 64, Format::Dense, 1.0)?;
            let fresh = mixer.init_state(DType::F32)?.to_device(device)?;
            let mut pool = StatePool::new(vec![fresh], 2);
            let slots = [pool.reserve()?, pool.reserve()?];
            let x = randn(8, &[2, 60, 64], DType::F32).to_device(device)?;
            let mut outs = Vec::new();
            let mut start = 0;
            for (len, accepted) in [(40, None), (1, None), (1, None), (4, Some(2)), (3, None)] {
                if accepted.is_some() {
                    slots.iter().try_for_each(|&slot| pool.begin_draft(slot))?;
                }
                let batch = SeqBatch::equal(2, len)?;
                let part = x.narrow(1, start, len)?.contiguous()?.flatten(0, 1)?;
                outs.push(mixer.advance(&part, &batch, &mut pool.layer(&slots, 0)?, None)?);
                for slot in slots.into_iter().filter(|_| accepted.is_some()) {
                    pool.append_draft(slot, len)?;
                    pool.commit(slot, accepted.unwrap_or(0))?;
                }
                start += accepted.unwrap_or(len);
            }
            Ok(outs)
        };
        let (expected, found) = no_grad(|| (run(&Device::Cpu).unwrap(), run(&device).unwrap()));
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_same(&format!("{n_groups} groups, call {index}"), found, expected);
        }
    }
}
