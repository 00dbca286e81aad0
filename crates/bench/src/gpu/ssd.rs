//! State space duality, its backward pass and its decoding step; selective scan and convolution.
//!
//! Bytes count every input read once and every output written once: x, y, B, C and dt forward; with the
//! backward pass besides x, dy, dx and B, C with their gradients.

use super::{Bench, Row};
use crate::Result;
use danaus_kernel::ops::conv1d::{ConvInputs, ConvOptions, causal_conv1d};
use danaus_kernel::ops::mamba2_step::{
    Mamba2Pool, PoolShape, StepInputs, StepOptions, StepParams, StepRows, mamba2_step,
};
use danaus_kernel::ops::selective_scan::{ScanInputs, ScanOptions, selective_scan};
use danaus_kernel::ops::ssd::{SsdInputs, SsdOptions, SsdStepInputs, ssd, ssd_step};
use danaus_runtime::cuda::Graph;
use danaus_tensor::{DType, Tensor, backward_with, no_grad};

/// Sizes of a case.
struct Case {
    batch: usize,
    len: usize,
    heads: usize,
    d_state: usize,
}

const HEAD_DIM: usize = 64;
/// Tokens of a chunk in the count of operations.
const CHUNK: usize = 64;
/// Tokens of the long cases.
const TOKENS: usize = 65_536;

/// Tensors of a case: x, dt, A, B, C, D, dt_bias.
struct Inputs([Tensor; 7]);

impl Inputs {
    fn ssd(&self) -> SsdInputs<'_> {
        let [x, dt, a, b, c, d, bias] = &self.0;
        SsdInputs { d: Some(d), dt_bias: Some(bias), ..SsdInputs::new(x, dt, a, b, c) }
    }
}

/// A Mamba-2 layer's step: states, z, xBC and dt as parts of one projection, parameters.
struct LayerStep {
    pool: Mamba2Pool,
    parts: Vec<Tensor>,
    params: [Tensor; 5],
}

impl Bench {
    /// All cases.
    pub(super) fn ssd(&self, report: &mut impl FnMut(&Row)) -> Result<()> {
        for (heads, d_state) in [(80, 128), (32, 64)] {
            for batch in [64, 16, 1] {
                let case = Case { batch, len: TOKENS / batch, heads, d_state };
                self.ssd_case(&case, true, report)?;
            }
        }
        let latency = Case { batch: 1, len: 1024, heads: 128, d_state: 128 };
        self.ssd_case(&latency, false, report)?;
        for batch in [1, 64, 256] {
            self.ssd_decode(batch, report)?;
        }
        for (batch, tokens) in [(1, [1, 0]), (64, [1, 0]), (256, [1, 0]), (64, [5, 3])] {
            self.mamba2_step(batch, tokens, report)?;
        }
        self.scan_and_conv(report)
    }

    fn ssd_inputs(&self, case: &Case) -> Result<Inputs> {
        let Case { batch, len, heads, d_state } = *case;
        let bf16 = |seed, shape: &[usize]| self.random(seed, shape, DType::BF16);
        let f32 = |seed, shape: &[usize]| self.random(seed, shape, DType::F32);
        let keys = [batch, len, 1, d_state];
        Ok(Inputs([
            bf16(1, &[batch, len, heads, HEAD_DIM])?,
            f32(2, &[batch, len, heads])?,
            f32(3, &[heads])?.exp()?.affine(-1.0, 0.0)?,
            bf16(4, &keys)?.affine(0.1, 0.0)?,
            bf16(5, &keys)?.affine(0.1, 0.0)?,
            f32(6, &[heads])?,
            f32(7, &[heads])?.affine(1.0, -3.0)?,
        ]))
    }

    fn ssd_case(&self, case: &Case, gradient: bool, report: &mut impl FnMut(&Row)) -> Result<()> {
        let Case { batch, len, heads, d_state } = *case;
        let inputs = self.ssd_inputs(case)?;
        let options = SsdOptions { dt_softplus: true, ..SsdOptions::default() };
        let tokens = (batch * len) as f64;
        let per_head = (CHUNK * HEAD_DIM + 4 * HEAD_DIM * d_state) as f64;
        let flops = tokens * ((CHUNK * d_state) as f64 + heads as f64 * per_head);
        let (values, keys) = ((2 * heads * HEAD_DIM) as f64, (2 * d_state) as f64);
        let steps = (4 * heads) as f64;
        let bytes = tokens * (2.0 * values + 2.0 * keys + steps);
        let what = format!("ssd bf16, {batch} x {len} tokens, {heads} heads x 64, n {d_state}");
        let row = self.case(what.clone(), (flops, bytes), || {
            Ok(no_grad(|| ssd(&inputs.ssd(), &options)).map(drop)?)
        })?;
        report(&row);
        if !gradient {
            return Ok(());
        }
        let tracked = Inputs(inputs.0.map(|tensor| tensor.tracked()));
        let grad = self.random(8, &[batch, len, heads, HEAD_DIM], DType::BF16)?;
        let both = bytes + tokens * (3.0 * values + 4.0 * keys + 2.0 * steps);
        report(&self.case(format!("{what}, with backward"), (3.5 * flops, both), || {
            let (y, _) = ssd(&tracked.ssd(), &options)?;
            Ok(backward_with(&[(&y, &grad)]).map(drop)?)
        })?);
        Ok(())
    }

    /// One token of many sequences: the state is read and written.
    fn ssd_decode(&self, batch: usize, report: &mut impl FnMut(&Row)) -> Result<()> {
        let (heads, d_state) = (80, 128);
        let Inputs([x, dt, a, b, c, d, bias]) =
            self.ssd_inputs(&Case { batch, len: 1, heads, d_state })?;
        let (x, dt) = (x.squeeze(1)?, dt.squeeze(1)?);
        let (b, c) = (b.squeeze(1)?, c.squeeze(1)?);
        let d = d.unsqueeze(1)?.broadcast_to(vec![heads, HEAD_DIM])?.contiguous()?;
        let state = self.random(9, &[batch, heads, HEAD_DIM, d_state], DType::F32)?;
        let options = SsdOptions { dt_softplus: true, ..SsdOptions::default() };
        let bytes = 2.0 * state.bytes() as f64;
        let what =
            format!("ssd_step, {batch} sequences, {heads} heads x 64, n {d_state}, f32 state");
        report(&self.case(what, (3.0 * bytes / 4.0, bytes), || {
            let (x, dt, a, b, c, state) = (&x, &dt, &a, &b, &c, &state);
            let (d, z, dt_bias) = (Some(&d), None, Some(&bias));
            let inputs = SsdStepInputs { x, dt, a, b, c, d, z, dt_bias, state };
            Ok(no_grad(|| ssd_step(&inputs, &options)).map(drop)?)
        })?);
        Ok(())
    }

    /// The whole of a layer between its projections, or a draft of `new` tokens after `replayed` accepted
    /// ones. A recorded step is replayed: the host's part of a call is longer than a small step.
    fn mamba2_step(
        &self,
        batch: usize,
        [new, replayed]: [usize; 2],
        report: &mut impl FnMut(&Row),
    ) -> Result<()> {
        let LayerStep { mut pool, parts, params: [conv_weight, conv_bias, dt_bias, a_log, d] } =
            self.layer_step(batch, new)?;
        let inputs = StepInputs { xbc: &parts[1], dt: &parts[2], z: None };
        let (conv_weight, a_log) = (&conv_weight, &a_log);
        let (conv_bias, dt_bias, d) = (Some(&conv_bias), Some(&dt_bias), Some(&d));
        let params = StepParams { conv_weight, conv_bias, dt_bias, a_log, d };
        // Other slots each time: a layer's states are not in the cache when its turn comes again.
        let turns = pool.slots() / batch;
        let list = |turn: usize| {
            let first = (turn * batch) as i32;
            Tensor::from_vec((first..first + batch as i32).collect(), [batch], &self.device)
        };
        let slots = (0..turns).map(list).collect::<danaus_tensor::Result<Vec<_>>>()?;
        let accepted = Tensor::from_vec(vec![replayed as i32; batch], [batch], &self.device)?;
        let accepted = (replayed > 0).then_some(&accepted);
        let options = StepOptions { dt_softplus: true, dt_limit: None, commit: replayed == 0 };
        let state = 2.0 * pool.scan.bytes() as f64 / turns as f64;
        let mut chain = || {
            slots.iter().try_for_each(|slots| {
                let rows = StepRows { slots, to_slots: None, accepted };
                mamba2_step(&inputs, &params, &rows, &mut pool, &options).map(drop)
            })
        };
        // What is recorded has to have run once.
        chain()?;
        let (mut graph, ()) = Graph::capture::<_, danaus_tensor::Error>(&self.gpu, chain)?;
        let replay = || Ok(graph.replay().map_err(danaus_tensor::Error::from)?);
        let median_ms = self.time(replay)? / turns as f64;
        let what = format!("mamba2_step, {batch} sequences, {new} new and {replayed} replayed");
        report(&Row {
            what: format!("{what}, 80 heads x 64, n 128"),
            median_ms,
            flops: 3.0 * state / 4.0 * (new + replayed) as f64,
            bytes: state,
            of_ceiling: Some(state / median_ms * 1e3 / self.copy),
        });
        Ok(())
    }

    fn layer_step(&self, batch: usize, new: usize) -> Result<LayerStep> {
        let (heads, d_state, width) = (80, 128, 4);
        let (values, head_dim) = (heads * HEAD_DIM, HEAD_DIM);
        let channels = values + 2 * d_state;
        let (slots, places) = (64.max(batch), width - 1 + 8 + new);
        let shape = PoolShape { slots, places, channels, heads, head_dim, d_state };
        let mut pool = Mamba2Pool::new(&shape, DType::BF16, &self.device)?;
        pool.scan = self.random(1, pool.scan.dims(), DType::F32)?;
        let joined = self.random(2, &[batch, new, values + channels + heads], DType::BF16)?;
        let f32 = |seed, shape: &[usize]| self.random(seed, shape, DType::F32);
        let dt_bias = f32(5, &[heads])?.affine(1.0, -3.0)?;
        let (weight, bias) = (f32(3, &[channels, width])?, f32(4, &[channels])?);
        let params = [weight, bias, dt_bias, f32(6, &[heads])?, f32(7, &[heads])?];
        Ok(LayerStep { pool, parts: joined.split(-1, &[values, channels, heads])?, params })
    }

    /// The selective scan of Mamba-1 and the convolution before both mixers.
    fn scan_and_conv(&self, report: &mut impl FnMut(&Row)) -> Result<()> {
        let (batch, channels, d_state) = (8, 4096, 16);
        let len = TOKENS / batch;
        let wide = |seed| self.random(seed, &[batch, len, channels], DType::BF16);
        let (u, delta) = (wide(1)?, wide(2)?);
        let a = self.random(3, &[channels, d_state], DType::F32)?.exp()?.affine(-1.0, 0.0)?;
        let keys = |seed| self.random(seed, &[batch, len, d_state], DType::BF16);
        let (b, c) = (keys(4)?, keys(5)?);
        let leaves = [u, delta, a, b, c].map(|tensor| tensor.tracked());
        let options = ScanOptions { delta_softplus: true, channel_last: true };
        let run = || {
            let [u, delta, a, b, c] = &leaves;
            selective_scan(&ScanInputs::new(u, delta, a, b, c), &options)
        };
        let bytes = 3.0 * leaves[0].bytes() as f64;
        let what =
            format!("selective_scan bf16, {batch} x {len}, {channels} channels, n {d_state}");
        let exps = (TOKENS * channels * d_state) as f64;
        report(&self.case(what.clone(), (5.0 * exps, bytes), || Ok(no_grad(run).map(drop)?))?);
        let grad = wide(6)?;
        let moved = bytes + 5.0 * leaves[0].bytes() as f64;
        report(&self.case(format!("{what}, with backward"), (20.0 * exps, moved), || {
            Ok(backward_with(&[(&run()?.0, &grad)]).map(drop)?)
        })?);
        let x = leaves[0].detach();
        let weight = self.random(7, &[channels, 4], DType::F32)?;
        let options = ConvOptions { silu: true, channel_last: true };
        let what =
            format!("causal_conv1d bf16, {batch} x {len}, {channels} channels, width 4, silu");
        report(&self.case(what, (0.0, 2.0 * x.bytes() as f64), || {
            let (bias, initial_states, seq_idx, cu_seqlens) = (None, None, None, None);
            let (x, weight) = (&x, &weight);
            let inputs = ConvInputs { x, weight, bias, initial_states, seq_idx, cu_seqlens };
            Ok(no_grad(|| causal_conv1d(&inputs, &options)).map(drop)?)
        })?);
        Ok(())
    }
}
