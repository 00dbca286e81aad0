//! The CPU passes against the f64 recurrence, and the identities of the operator.

use super::super::config::{Plan, Shape};
use super::super::cpu::backward::{Cotangents, Gradients, backward};
use super::super::cpu::forward::forward;
use super::super::cpu::rows::{Rows, Target};
use super::super::cpu::{self};
use super::super::reference;
use super::super::runs::{self, Run};
use danaus_runtime::simd::{self, Isa};

/// A reproducible sequence of numbers in -1..1.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn list(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.next()).collect()
    }
}

/// A random problem in f64; every number is exact in f32.
struct Case {
    shape: Shape,
    runs: Vec<Run>,
    states: usize,
    x: Vec<f64>,
    b: Vec<f64>,
    c: Vec<f64>,
    d: Vec<f64>,
    log_decay: Vec<f64>,
    scale: Vec<f64>,
    initial: Vec<f64>,
    dy: Vec<f64>,
    dfinal: Vec<f64>,
}

fn exact(values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(|value| f64::from(value as f32)).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

impl Case {
    fn new(shape: Shape, runs: Vec<Run>) -> Self {
        let mut numbers = Numbers(7);
        let states = runs.iter().filter_map(|run| run.last).max().map_or(0, |last| last + 1);
        let wide = shape.tokens * shape.groups * shape.d_state;
        let narrow = shape.tokens * shape.heads * shape.head_dim;
        let scalars = shape.tokens * shape.heads;
        let mut list = |len| exact(numbers.list(len));
        let (x, b, c, dy) = (list(narrow), list(wide), list(wide), list(narrow));
        let d = list(shape.heads * shape.head_dim);
        let (initial, dfinal) =
            (list(states * shape.state_len()), list(states * shape.state_len()));
        // Steps around 0.5: with small ones an index that is off by one would pass.
        let scale = exact(list(scalars).iter().map(|v| 0.5 + 0.4 * v).collect());
        let log_decay = exact(list(scalars).iter().map(|v| -0.3 + 0.25 * v).collect());
        Self { shape, runs, states, x, b, c, d, log_decay, scale, initial, dy, dfinal }
    }

    fn reference(&self) -> reference::Core<'_, f64> {
        reference::Core {
            shape: self.shape,
            runs: &self.runs,
            x: &self.x,
            log_decay: &self.log_decay,
            scale: &self.scale,
            b: &self.b,
            c: &self.c,
            d: Some(&self.d),
            initial_states: Some(&self.initial),
            states: self.states,
        }
    }
}

/// Results of the CPU passes, in the order y, final, dx, db, dc, dlog_decay, dscale, dd, dinitial.
fn run_cpu(case: &Case, forward_plan: &Plan, backward_plan: &Plan) -> Vec<Vec<f32>> {
    let (x, b, c, d) = (narrow(&case.x), narrow(&case.b), narrow(&case.c), narrow(&case.d));
    let (log_decay, scale) = (narrow(&case.log_decay), narrow(&case.scale));
    let (initial, dy, dfinal) = (narrow(&case.initial), narrow(&case.dy), narrow(&case.dfinal));
    let (row, wide) =
        (case.shape.heads * case.shape.head_dim, case.shape.groups * case.shape.d_state);
    let core = cpu::Core {
        shape: case.shape,
        runs: &case.runs,
        x: Rows::f32(&x, row),
        b: Rows::f32(&b, wide),
        c: Rows::f32(&c, wide),
        log_decay: &log_decay,
        scale: &scale,
        d: Some(&d),
        z: None,
        initial_states: Some(&initial),
    };
    let mut y = vec![0.0; x.len()];
    let mut last = vec![0.0; initial.len()];
    forward(&core, forward_plan, Target::f32(&mut y), Some(&mut last));
    let (mut dx, mut db, mut dc) = (vec![0.0; x.len()], vec![0.0; b.len()], vec![0.0; c.len()]);
    let (mut da, mut ds) = (vec![0.0; scale.len()], vec![0.0; scale.len()]);
    let (mut dd, mut dinitial) = (vec![0.0; d.len()], vec![0.0; initial.len()]);
    let cotangents = Cotangents { y: Rows::f32(&dy, row), final_state: Some(&dfinal) };
    let gradients = Gradients {
        x: Target::f32(&mut dx),
        b: Target::f32(&mut db),
        c: Target::f32(&mut dc),
        log_decay: &mut da,
        scale: &mut ds,
        d: Some(&mut dd),
        initial_states: Some(&mut dinitial),
    };
    backward(&core, backward_plan, &cotangents, gradients);
    vec![y, last, dx, db, dc, da, ds, dd, dinitial]
}

const NAMES: [&str; 9] =
    ["y", "final_state", "dx", "dB", "dC", "dlog_decay", "dscale", "dD", "dinitial_states"];

/// Largest error relative to the largest value: sums of a few hundred f32 products.
fn close(name: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let size = expected.iter().fold(1e-3f64, |size, value| size.max(value.abs()));
    for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs() / size;
        assert!(error < tolerance, "{name}[{at}]: {found} instead of {expected}, {error:e}");
    }
}

fn check(case: &Case, forward_plan: &Plan, backward_plan: &Plan) {
    let core = case.reference();
    let (y, last) = reference::core_forward(&core);
    let grads = reference::core_backward(&core, &case.dy, Some(&case.dfinal));
    let expected = [
        y,
        last,
        grads.x,
        grads.b,
        grads.c,
        grads.log_decay,
        grads.scale,
        grads.d,
        grads.initial_states,
    ];
    let found = run_cpu(case, forward_plan, backward_plan);
    for (name, (found, expected)) in NAMES.iter().zip(found.iter().zip(&expected)) {
        close(name, found, expected, 1e-5);
    }
}

fn shape(tokens: usize) -> Shape {
    Shape { tokens, heads: 4, groups: 2, head_dim: 20, d_state: 24 }
}

/// Several sequences in one packed array, among them an empty one and one of a single token.
fn packed_runs() -> Vec<Run> {
    let seq_idx: Vec<i64> = (0..300).map(|t| i64::from(t >= 150) + i64::from(t >= 153)).collect();
    runs::from_cu_seqlens(&[0, 1, 1, 70, 250, 300], Some(&seq_idx))
}

#[test]
fn chunked_equals_recurrent_for_every_tile() {
    let case = Case::new(shape(300), packed_runs());
    for tile in [1, 8, 16, 64, 128, 256] {
        for head_block in [1, 2] {
            let plan = Plan { tile, head_block, segment: usize::MAX };
            check(&case, &plan, &Plan { segment: 32, ..plan });
        }
    }
}

#[test]
fn segments_are_joined_by_states() {
    let case = Case::new(shape(300), runs::from_batch(2, 150));
    let plan = Plan { tile: 16, head_block: 2, segment: 3 };
    check(&case, &plan, &plan);
}

#[test]
fn every_instruction_set_agrees() {
    let case = Case::new(shape(300), packed_runs());
    let plan = Plan { tile: 64, head_block: 2, segment: 32 };
    for isa in Isa::ALL {
        simd::with_isa(isa, || check(&case, &plan, &plan));
    }
}

#[test]
fn recurrent_equals_quadratic() {
    let case = Case::new(shape(300), packed_runs());
    let core = case.reference();
    let (y, _) = reference::core_forward(&core);
    for (a, b) in y.iter().zip(&reference::quadratic_forward(&core)) {
        assert!((a - b).abs() < 1e-12 * (1.0 + a.abs()), "{a} {b}");
    }
}

#[test]
fn thread_count_does_not_change_bits() {
    let case = Case::new(shape(300), packed_runs());
    let plan = Plan::backward(&case.shape, &case.runs, None);
    let results =
        |threads| danaus_runtime::threads::with_threads(threads, || run_cpu(&case, &plan, &plan));
    assert_eq!(results(1), results(3));
}
