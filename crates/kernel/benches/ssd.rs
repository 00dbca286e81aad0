//! State-space duality against the chunked algorithm in plain PyTorch, interleaved medians.
//!
//! `DANAUS_PEER_PYTHON=python3 cargo bench -p danaus-kernel --bench ssd [-- CASE]`; without the variable
//! only our side runs. Set `DANAUS_THREADS` for both.

use danaus_kernel::ops::ssd::config::{Plan, Shape};
use danaus_kernel::ops::ssd::cpu::Core;
use danaus_kernel::ops::ssd::cpu::backward::{Cotangents, Gradients, backward};
use danaus_kernel::ops::ssd::cpu::forward::forward;
use danaus_kernel::ops::ssd::cpu::prologue::Prologue;
use danaus_kernel::ops::ssd::cpu::rows::{Rows, Target};
use danaus_kernel::ops::ssd::reference::Steps;
use danaus_kernel::ops::ssd::runs::{self, Run};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const REPEATS: usize = 9;
/// Name, batch, seqlen, heads, head_dim, groups, d_state; the peer knows the same names.
const CASES: [(&str, usize, usize, usize, usize, usize, usize); 3] = [
    ("long", 1, 2048, 24, 64, 1, 128),
    ("model", 8, 256, 8, 64, 1, 64),
    ("grouped", 1, 2048, 24, 64, 24, 128),
];

struct Peer(Child, BufReader<std::process::ChildStdout>);

impl Peer {
    fn start() -> Option<Self> {
        let python = std::env::var("DANAUS_PEER_PYTHON").ok()?;
        let script =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/peers/ssd_minimal_torch.py");
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the peer starts");
        let output = BufReader::new(child.stdout.take().expect("a piped output"));
        Some(Self(child, output))
    }

    fn time(&mut self, case: &str, mode: &str) -> f64 {
        let input = self.0.stdin.as_mut().expect("a piped input");
        writeln!(input, "{case} {mode}").expect("the peer listens");
        let mut line = String::new();
        self.1.read_line(&mut line).expect("the peer answers");
        line.trim().parse().expect("a number")
    }
}

struct Problem {
    shape: Shape,
    runs: Vec<Run>,
    x: Vec<f32>,
    dt: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    d: Vec<f32>,
    scale: Vec<f32>,
    log_decay: Vec<f32>,
    outputs: Vec<Vec<f32>>,
}

fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

impl Problem {
    fn new(case: &(&str, usize, usize, usize, usize, usize, usize)) -> Self {
        let &(_, batch, seqlen, heads, head_dim, groups, d_state) = case;
        let tokens = batch * seqlen;
        let shape = Shape { tokens, heads, groups, head_dim, d_state };
        let (narrow, wide) = (tokens * heads * head_dim, tokens * groups * d_state);
        let scalars = tokens * heads;
        let sizes = [narrow, wide, wide, scalars, scalars, scalars, narrow];
        Self {
            shape,
            runs: runs::from_batch(batch, seqlen),
            x: numbers(narrow, 1),
            dt: numbers(scalars, 2).iter().map(|v| v - 2.0).collect(),
            a: numbers(heads, 3).iter().map(|v| -3.0 + v).collect(),
            b: numbers(wide, 4),
            c: numbers(wide, 5),
            d: vec![1.0; heads * head_dim],
            scale: vec![0.0; scalars],
            log_decay: vec![0.0; scalars],
            outputs: sizes.iter().map(|&len| vec![0.0; len]).collect(),
        }
    }

    fn run(&mut self, train: bool) -> f64 {
        let start = Instant::now();
        let heads = self.shape.heads;
        let prologue = Prologue {
            dt: Rows::f32(&self.dt, heads),
            tokens: self.shape.tokens,
            a: &self.a,
            dt_bias: None,
            steps: Steps { dt_softplus: true, ..Steps::default() },
        };
        prologue.forward(&mut self.scale, &mut self.log_decay);
        let (row, wide) = (heads * self.shape.head_dim, self.shape.groups * self.shape.d_state);
        let core = Core {
            shape: self.shape,
            runs: &self.runs,
            x: Rows::f32(&self.x, row),
            b: Rows::f32(&self.b, wide),
            c: Rows::f32(&self.c, wide),
            log_decay: &self.log_decay,
            scale: &self.scale,
            d: Some(&self.d),
            z: None,
            initial_states: None,
        };
        let [y, db, dc, ds, da, ddt, dx] = &mut self.outputs[..] else { unreachable!() };
        let plan = Plan::forward(&self.shape, &self.runs, None);
        forward(&core, &plan, Target::f32(y), None);
        if train {
            let plan = Plan::backward(&self.shape, &self.runs, None);
            // The forward output stands in for a cotangent: same size, ordinary numbers.
            let cotangents = Cotangents { y: Rows::f32(y, row), final_state: None };
            let mut dd = vec![0.0; self.d.len()];
            let gradients = Gradients {
                x: Target::f32(dx),
                b: Target::f32(db),
                c: Target::f32(dc),
                log_decay: da,
                scale: ds,
                d: Some(&mut dd),
                initial_states: None,
            };
            backward(&core, &plan, &cotangents, gradients);
            let (mut d_a, mut bias) = (vec![0.0; heads], vec![0.0; heads]);
            prologue.backward(ds, da, Target::f32(ddt), &mut d_a, &mut bias);
        }
        start.elapsed().as_secs_f64() * 1e3
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let mut peer = Peer::start();
    for case in CASES.iter().filter(|case| wanted.as_deref().is_none_or(|name| name == case.0)) {
        let mut problem = Problem::new(case);
        for (mode, train) in [("forward", false), ("train", true)] {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            problem.run(train);
            for repeat in 0..=REPEATS {
                ours.push(problem.run(train));
                if let Some(peer) = &mut peer {
                    let time = peer.time(case.0, mode);
                    // The first call warms the peer up.
                    theirs.extend((repeat > 0).then_some(time));
                }
            }
            let ours = median(ours);
            match theirs.is_empty() {
                true => println!("ssd {} {mode}: {ours:.2} ms", case.0),
                false => {
                    let theirs = median(theirs);
                    let ratio = ours / theirs;
                    println!(
                        "ssd {} {mode}: {ours:.2} ms, torch {theirs:.2} ms, {ratio:.3}x",
                        case.0
                    );
                }
            }
        }
    }
}
