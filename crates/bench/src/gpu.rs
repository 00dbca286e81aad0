//! Speed on a GPU: ceilings (copy, matrix product) and how near the elementary kernels come.
//!
//! Times are those of the GPU's clock between two marks around a run of calls, so that launches overlap
//! as they do in a program; the median over several runs counts. Inputs are random and larger than the
//! second-level cache. The share is that of the copy measured in the same process for memory-bound
//! cases, and of the largest matrix product of the same type for the others.

mod decode;
mod ssd;
mod train;

use crate::peer::Peer;
use crate::roofline::Roofline;
use crate::{Error, Result};
use danaus_kernel::ops::activation::swiglu;
use danaus_kernel::ops::attention::{AttentionOptions, Fp8, attention};
use danaus_kernel::ops::norm::{Affine, rms_norm};
use danaus_kernel::ops::softmax::softmax;
use danaus_runtime::cuda::{self, DeviceBuffer, Gpu, Graph};
use danaus_tensor::rng::Rng;
use danaus_tensor::{DType, Device, Tensor, backward_with, no_grad};
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

/// The suites, with what they cover.
pub const SUITES: &[(&str, &str)] = &[
    ("copy", "copies by the driver and by our strided kernel"),
    ("gemm", "matrix products"),
    ("elementwise", "formulas, reductions, softmax, norm"),
    ("attention", "attention, forward alone and with its backward"),
    ("decode", "attention of one query a sequence to a paged cache"),
    ("train", "a training step of a Llama of 350 million parameters; not part of all"),
    ("ssd", "state space duality, its decoding step, selective scan, convolution"),
    ("launch", "small operators one by one and replayed as a graph"),
];

/// One measured case.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it computes, with shapes.
    pub what: String,
    /// Median time of one call in milliseconds.
    pub median_ms: f64,
    /// Arithmetic operations.
    pub flops: f64,
    /// Bytes that must move at least.
    pub bytes: f64,
    /// Share of the ceiling it is held against, where there is one.
    pub of_ceiling: Option<f64>,
}

impl Row {
    /// 10^12 operations a second.
    pub fn tflops(&self) -> f64 {
        self.flops / self.median_ms / 1e9
    }

    /// 10^9 bytes a second.
    pub fn gbytes(&self) -> f64 {
        self.bytes / self.median_ms / 1e6
    }
}

/// Runs a suite (or `all`) and hands every row to `report` as soon as it is there. With a folder of
/// peers' scripts, cases of `attention` are followed by those of PyTorch's back ends.
///
/// # Errors
/// When there is no such suite, the GPU or a peer cannot be used, or a case fails.
pub fn run(
    device: &Device,
    suite: &str,
    peers: Option<&Path>,
    mut report: impl FnMut(&Row),
) -> Result<()> {
    if suite != "all" && !SUITES.iter().any(|(name, _)| *name == suite) {
        let names: Vec<&str> = SUITES.iter().map(|(name, _)| *name).collect();
        let valid = format!("{} or all on a GPU", names.join(", "));
        return Err(Error::UnknownSuite { given: suite.to_string(), valid });
    }
    let peer = peers.map(|folder| Peer::start(folder, "attention_torch_gpu.py", 1)).transpose()?;
    let peer = peer.map(RefCell::new);
    let mut bench = Bench { gpu: device.gpu()?, device: *device, copy: 0.0, peer };
    no_grad(|| {
        bench.copy(suite != "copy" && suite != "all", &mut report)?;
        if matches!(suite, "gemm" | "all") {
            bench.gemm(&mut report)?;
        }
        if matches!(suite, "elementwise" | "all") {
            bench.elementwise(&mut report)?;
        }
        if matches!(suite, "decode" | "all") {
            bench.decode(&mut report)?;
        }
        if matches!(suite, "launch" | "all") {
            bench.launch(&mut report)?;
        }
        Ok::<(), Error>(())
    })?;
    if matches!(suite, "attention" | "all") {
        bench.attention(&mut report)?;
    }
    if suite == "train" {
        bench.train(&mut report)?;
    }
    if matches!(suite, "ssd" | "all") {
        bench.ssd(&mut report)?;
    }
    Ok(())
}

/// The ceilings of a GPU: the driver's copy, and the bf16 product of 8192^3 in place of f32 arithmetic.
///
/// # Errors
/// When the GPU cannot be used.
pub fn roofline(device: &Device) -> Result<Roofline> {
    let mut bench = Bench { gpu: device.gpu()?, device: *device, copy: 0.0, peer: None };
    no_grad(|| {
        bench.copy(true, &mut |_| ())?;
        let [a, b] = [1, 2].map(|seed| bench.random(seed, &[8192, 8192], DType::BF16));
        let (a, b) = (a?, b?.transpose(0, 1)?);
        let seconds = bench.time(|| Ok(a.matmul(&b).map(drop)?))? / 1e3;
        let f32_flops = 2.0 * 8192f64.powi(3) / seconds;
        Ok(Roofline { copy_bytes_per_s: bench.copy, f32_flops })
    })
}

struct Bench {
    gpu: Arc<Gpu>,
    device: Device,
    /// The driver's copy, in bytes read and written a second.
    copy: f64,
    peer: Option<RefCell<Peer>>,
}

/// Runs of a case, of which the median counts.
const RUNS: usize = 7;
/// Calls of a run.
const CALLS: usize = 20;

impl Bench {
    /// Median milliseconds of one call.
    fn time(&self, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
        // Compiles, loads, chooses algorithms, and brings the clock up.
        for _ in 0..5 {
            call()?;
        }
        let mut runs = Vec::with_capacity(RUNS);
        for _ in 0..RUNS {
            let ms = cuda::time(&self.gpu, || {
                (0..CALLS).try_for_each(|_| call()).map_err(Failed::Bench)
            });
            match ms {
                Ok(ms) => runs.push(f64::from(ms) / CALLS as f64),
                Err(Failed::Bench(error)) => return Err(error),
                Err(Failed::Cuda(error)) => return Err(danaus_tensor::Error::from(error).into()),
            }
        }
        runs.sort_by(f64::total_cmp);
        Ok(runs[RUNS / 2])
    }

    fn random(&self, seed: u64, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let count: usize = shape.iter().product();
        // A few million random numbers, repeated: filling gigabytes on the host would take minutes.
        let base = count.min(1 << 22);
        let host = Rng::new(seed, 0).normal(0.0, 1.0, [base])?.to_dtype(dtype)?;
        let block = host.to_device(&self.device)?;
        Ok(block
            .repeat(0, count.div_ceil(base))?
            .narrow(0, 0, count)?
            .contiguous()?
            .reshape(shape)?)
    }

    fn case(
        &self,
        what: impl Into<String>,
        (flops, bytes): (f64, f64),
        call: impl FnMut() -> Result<()>,
    ) -> Result<Row> {
        let median_ms = self.time(call)?;
        let of_ceiling = (bytes > 0.0 && self.copy > 0.0 && flops < 100.0 * bytes)
            .then(|| bytes / median_ms * 1e3 / self.copy);
        Ok(Row { what: what.into(), median_ms, flops, bytes, of_ceiling })
    }

    /// The driver's copy is the ceiling of everything that waits for memory.
    fn copy(&mut self, quiet: bool, report: &mut impl FnMut(&Row)) -> Result<()> {
        const BYTES: usize = 1 << 30;
        let fail = |error| danaus_tensor::Error::from(error);
        let from = DeviceBuffer::zeroed(&self.gpu, BYTES).map_err(fail)?;
        let mut to = DeviceBuffer::uninit(&self.gpu, BYTES).map_err(fail)?;
        let moved = (0.0, 2.0 * BYTES as f64);
        let row = self.case("driver copy, 1 GiB", moved, || {
            Ok(to.copy_from_device(0, &from, 0, BYTES).map_err(fail)?)
        })?;
        self.copy = row.bytes / row.median_ms * 1e3;
        drop((from, to));
        if quiet {
            return Ok(());
        }
        report(&row);
        let x = self.random(1, &[16384, 8192], DType::BF16)?;
        let moved = (0.0, 2.0 * x.bytes() as f64);
        report(&self.case("our copy, bf16 [16384, 8192]", moved, || Ok(x.copy().map(drop)?))?);
        let turned = x.transpose(0, 1)?;
        let what = "our copy of the transpose, bf16 [8192, 16384]";
        report(&self.case(what, moved, || Ok(turned.copy().map(drop)?))?);
        let half = x.narrow(1, 0, 4096)?;
        let moved = (0.0, x.bytes() as f64);
        report(&self.case("our copy of half the columns", moved, || Ok(half.copy().map(drop)?))?);
        Ok(())
    }

    fn gemm(&self, report: &mut impl FnMut(&Row)) -> Result<()> {
        for (dtype, sizes) in
            [(DType::BF16, &[1024, 4096, 8192][..]), (DType::F32, &[4096]), (DType::F64, &[4096])]
        {
            for &n in sizes {
                let (a, b) = (self.random(1, &[n, n], dtype)?, self.random(2, &[n, n], dtype)?);
                let turned = b.transpose(0, 1)?;
                let work = (2.0 * (n as f64).powi(3), 3.0 * a.bytes() as f64);
                let what = format!("{n}^3 {dtype}, a b^T");
                report(&self.case(what, work, || Ok(a.matmul(&turned).map(drop)?))?);
            }
        }
        Ok(())
    }

    fn elementwise(&self, report: &mut impl FnMut(&Row)) -> Result<()> {
        for dtype in [DType::BF16, DType::F32] {
            let shape = [16384, 4096];
            let (x, y) = (self.random(1, &shape, dtype)?, self.random(2, &shape, dtype)?);
            let row = self.random(3, &shape[1..], dtype)?;
            let bytes = x.bytes() as f64;
            let name = |what: &str| format!("{what}, {dtype} [16384, 4096]");
            report(&self.case(name("x + y"), (0.0, 3.0 * bytes), || Ok(x.add(&y).map(drop)?))?);
            report(&self.case(name("x + row"), (0.0, 2.0 * bytes), || Ok(x.add(&row).map(drop)?))?);
            report(
                &self.case(name("swiglu"), (0.0, 3.0 * bytes), || Ok(swiglu(&x, &y).map(drop)?))?,
            );
            report(&self.case(name("sum of rows"), (0.0, bytes), || Ok(x.sum(1).map(drop)?))?);
            report(&self.case(name("sum of columns"), (0.0, bytes), || Ok(x.sum(0).map(drop)?))?);
            report(&self.case(name("softmax"), (0.0, 2.0 * bytes), || Ok(softmax(&x).map(drop)?))?);
            let affine = Affine { weight: Some(&row), bias: None };
            report(&self.case(name("rms_norm"), (0.0, 2.0 * bytes), || {
                Ok(rms_norm(&x, affine, 1e-5).map(drop)?)
            })?);
        }
        Ok(())
    }
}

/// Tokens of a batch and width of all heads in the attention cases.
const TOKENS: usize = 16_384;
const WIDTH: usize = 2048;

/// Head dimension, causality and length; at head dim 192 the width is that of whole heads.
fn attention_cases() -> impl Iterator<Item = (usize, bool, usize)> {
    let kinds = [false, true].into_iter().flat_map(|c| [1024, 4096, 16_384].map(|len| (c, len)));
    let kinds: Vec<_> = kinds.collect();
    [64, 128, 192, 256].into_iter().flat_map(move |head_dim| {
        kinds.clone().into_iter().map(move |(causal, len)| (head_dim, causal, len))
    })
}

impl Bench {
    /// Operations count two products over the visible scores, five more with the backward pass; causal
    /// is half. Eight bits: with quantising, without rotation; of the ceiling of 16-bit products.
    fn attention(&self, report: &mut impl FnMut(&Row)) -> Result<()> {
        for (head_dim, causal, len) in attention_cases() {
            let shape = [TOKENS / len, len, WIDTH / head_dim, head_dim];
            let kind = if causal { "causal" } else { "full" };
            let visible =
                (TOKENS * len * shape[2] * head_dim) as f64 * if causal { 0.5 } else { 1.0 };
            for dtype in [DType::BF16, DType::F16] {
                if dtype == DType::F16 && len != 4096 {
                    continue;
                }
                let [q, k, v] = [1, 2, 3].map(|seed| self.random(seed, &shape, dtype));
                let leaves = [q?.tracked(), k?.tracked(), v?.tracked()];
                let grad = self.random(4, &shape, dtype)?;
                let options = AttentionOptions { causal, ..AttentionOptions::default() };
                let [q, k, v] = &leaves;
                let bytes = 4.0 * q.bytes() as f64;
                let [batch, _, heads, _] = shape;
                let case = format!("{batch} {len} {heads} {head_dim} {kind}");
                let peers = dtype == DType::BF16;
                let what = format!("attention {dtype} {shape:?} {kind}");
                let row = self.case(what.clone(), (4.0 * visible, bytes), || {
                    Ok(no_grad(|| attention(q, k, v, &options)).map(drop)?)
                })?;
                report(&row);
                if peers {
                    self.beside(&row, &format!("forward {case}"), report)?;
                }
                let what = format!("{what}, with backward");
                let row = self.case(what, (14.0 * visible, 2.0 * bytes), || {
                    let (out, _) = attention(q, k, v, &options)?;
                    Ok(backward_with(&[(&out, &grad)]).map(drop)?)
                })?;
                report(&row);
                if peers {
                    self.beside(&row, &format!("both {case}"), report)?;
                }
                if peers && head_dim != 192 {
                    let fp8 = Some(Fp8::default());
                    let eight = AttentionOptions { causal, fp8, ..AttentionOptions::default() };
                    let what = format!("attention e4m3 {shape:?} {kind}");
                    report(&self.case(what, (4.0 * visible, bytes), || {
                        Ok(no_grad(|| attention(q, k, v, &eight)).map(drop)?)
                    })?);
                }
            }
        }
        Ok(())
    }

    /// The same case by the peer's back ends, right after ours. What one cannot do is left out.
    fn beside(&self, ours: &Row, case: &str, report: &mut impl FnMut(&Row)) -> Result<()> {
        let Some(peer) = &self.peer else { return Ok(()) };
        for backend in ["cudnn", "flash"] {
            let run = |_| peer.borrow_mut().run(&format!("{backend} {case}"));
            let Ok(mut times) = (0..3).map(run).collect::<Result<Vec<_>>>() else { continue };
            times.sort_unstable();
            let median_ms = times[1].as_secs_f64() * 1e3;
            let ratio = median_ms / ours.median_ms;
            let what = format!("  {backend}: ours is {ratio:.3} times as fast");
            report(&Row { what, median_ms, of_ceiling: None, ..ours.clone() });
        }
        Ok(())
    }

    /// What a small operator costs: the host's time, since the GPU's is shorter.
    fn launch(&self, report: &mut impl FnMut(&Row)) -> Result<()> {
        const CHAIN: usize = 100;
        let x = self.random(1, &[64], DType::F32)?;
        let chain = || -> danaus_tensor::Result<Tensor> {
            (0..CHAIN).try_fold(x.clone(), |sum, _| sum.add(&x))
        };
        let median_ms = self.time(|| Ok(chain().map(drop)?))? / CHAIN as f64;
        let row = |what: &str, median_ms| Row {
            what: what.to_string(),
            median_ms,
            flops: 0.0,
            bytes: 0.0,
            of_ceiling: None,
        };
        report(&row("one addition of 64 f32, called", median_ms));
        let (mut graph, _out) = Graph::capture(&self.gpu, chain)?;
        let replay = || Ok(graph.replay().map_err(danaus_tensor::Error::from)?);
        let median_ms = self.time(replay)? / CHAIN as f64;
        report(&row("one addition of 64 f32, in a graph of 100", median_ms));
        Ok(())
    }
}

/// A run that failed in the case or on the device.
enum Failed {
    Bench(Error),
    Cuda(cuda::Error),
}

impl From<cuda::Error> for Failed {
    fn from(error: cuda::Error) -> Self {
        Self::Cuda(error)
    }
}
