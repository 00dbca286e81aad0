//! The benchmarks: what runs, how many operations and bytes it takes, and which peer does the same.
//!
//! A suite is a list of [`Case`]s. Running one prints a row per case: our median, the peer's median
//! and their ratio, the rate, and the share of the roofline that was measured in the same process.

mod attention;
mod elementwise;
pub mod generate;
mod linear;
mod matmul;
mod matrix;
mod model;
mod scan;
mod ssd;

use crate::measure::{Budget, Times, Variant, interleave, timed};
use crate::peer::Peer;
use crate::roofline::Roofline;
use crate::{Error, Result};
use danaus_runtime::threads;
use std::path::Path;

/// One computation, run again and again.
pub type Work = Box<dyn FnMut() -> Result<()>>;

/// A benchmark.
pub struct Case {
    /// Name, also the peer's name for it.
    pub name: &'static str,
    /// What it computes, with shapes.
    pub what: &'static str,
    /// Arithmetic operations.
    pub flops: f64,
    /// Bytes that must move through memory at least.
    pub bytes: f64,
    /// Sets it up.
    pub make: fn() -> Result<Work>,
}

/// A named list of benchmarks.
#[derive(Clone, Copy)]
pub struct Suite {
    /// Name.
    pub name: &'static str,
    /// What it covers.
    pub summary: &'static str,
    /// Its cases.
    pub cases: fn() -> Vec<Case>,
}

/// All suites.
pub const SUITES: &[Suite] = &[
    Suite { name: "attention", summary: "attention, forward", cases: attention::cases },
    Suite { name: "elementwise", summary: "add, exp, softmax", cases: elementwise::cases },
    Suite { name: "linear", summary: "decoding: weights as stored", cases: linear::cases },
    Suite { name: "matmul", summary: "matrix products of 1024^3", cases: matmul::cases },
    Suite { name: "matrix", summary: "structured weights and dense ones", cases: matrix::cases },
    Suite { name: "model", summary: "training steps of small models", cases: model::cases },
    Suite { name: "scan", summary: "selective scan of Mamba-1", cases: scan::cases },
    Suite { name: "ssd", summary: "state space duality, forward", cases: ssd::cases },
];

/// The peers of all suites.
const PEER_SCRIPT: &str = "torch_cpu.py";

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Request<'a> {
    /// Only cases whose name contains this.
    pub filter: &'a str,
    /// Folder with the peers' scripts; `None` measures ourselves alone.
    pub peers: Option<&'a Path>,
}

/// The figures of one case.
pub struct Row {
    /// The case.
    pub case: Case,
    /// Our times.
    pub ours: Times,
    /// The peer's times.
    pub peer: Option<Times>,
    /// The least time by the measured roofline, in seconds.
    pub bound: f64,
}

impl Row {
    /// Our median over the peer's; below 1 is faster.
    pub fn ratio(&self) -> Option<f64> {
        let peer = self.peer.as_ref()?.median().as_secs_f64();
        Some(self.ours.median().as_secs_f64() / peer)
    }

    /// Share of the roofline that our median reaches.
    pub fn of_roofline(&self) -> f64 {
        self.bound / self.ours.median().as_secs_f64()
    }

    /// Operations a second, in 10^9.
    pub fn gflops(&self) -> f64 {
        self.case.flops / self.ours.median().as_secs_f64() / 1e9
    }

    /// Bytes a second, in 10^9, counting the bytes that must move.
    pub fn gbytes(&self) -> f64 {
        self.case.bytes / self.ours.median().as_secs_f64() / 1e9
    }
}

/// Finds a suite.
///
/// # Errors
/// When there is none of that name; the message lists them.
pub fn find(name: &str) -> Result<Suite> {
    SUITES.iter().find(|suite| suite.name == name).copied().ok_or_else(|| {
        let names = SUITES.iter().map(|suite| suite.name).chain(["generate", "all"]);
        let names: Vec<&str> = names.collect();
        Error::UnknownSuite { given: name.to_string(), valid: names.join(", ") }
    })
}

/// Runs a suite and hands every row to `report` as soon as it is there.
///
/// # Errors
/// When a case or a peer fails.
pub fn run(
    suite: Suite,
    request: &Request,
    roofline: Roofline,
    mut report: impl FnMut(&Row),
) -> Result<Vec<Row>> {
    let start = |folder| Peer::start(folder, PEER_SCRIPT, threads::count());
    let mut peer = request.peers.map(start).transpose()?;
    let mut rows = Vec::new();
    for case in (suite.cases)() {
        if !case.name.contains(request.filter) {
            continue;
        }
        let mut work = (case.make)()?;
        let mut ours = timed(&mut work);
        let times = match &mut peer {
            None => interleave(&mut [&mut ours as &mut Variant], Budget::default())?,
            Some(peer) => {
                let mut theirs = || peer.run(case.name);
                interleave(&mut [&mut ours as &mut Variant, &mut theirs], Budget::default())?
            }
        };
        let mut times = times.into_iter();
        let bound = roofline.bound_seconds(case.flops, case.bytes);
        let row = Row { ours: times.next().unwrap_or_default(), peer: times.next(), bound, case };
        report(&row);
        rows.push(row);
    }
    Ok(rows)
}

/// Normal random values in a dtype, as inputs of a benchmark.
fn randn(seed: u64, shape: &[usize], dtype: danaus_tensor::DType) -> Result<danaus_tensor::Tensor> {
    Ok(danaus_tensor::rng::Rng::new(seed, 0).normal(0.0, 1.0, shape)?.to_dtype(dtype)?)
}
