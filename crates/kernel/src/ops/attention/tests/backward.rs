//! The tiled backward pass against the f64 reference, and its bits against threads.

use super::forward::random_problem;
use super::support::*;
use crate::ops::attention::pack::Element;
use crate::ops::attention::problem::Problem;
use danaus_runtime::simd::{Isa, with_isa};
use danaus_runtime::threads::with_threads;
use half::bf16;

fn given(random: &mut Random, problem: &Problem, rows: Rows) -> Given {
    let count = rows.batch * rows.q * problem.heads;
    // Cotangents are bf16 values, so that every type under test gets the same ones.
    let round =
        |x: &f64| f64::from(<bf16 as danaus_runtime::simd::Lane>::round(*x as f32).to_f32());
    let grad_out = random.vector(count * problem.value_dim);
    Given {
        grad_out: grad_out.iter().map(round).collect(),
        grad_lse: random.vector(count).iter().map(round).collect(),
    }
}

/// Largest difference relative to the largest expected value (at least 1).
fn relative(found: &[f64], expected: &[f64]) -> f64 {
    distance(found, expected) / expected.iter().fold(1.0, |m: f64, x| m.max(x.abs()))
}

fn check<T: Element + Convert>(seed: u64, tolerance: f64) {
    let random = &mut Random(seed);
    let mut mask = Vec::new();
    let (problem, rows) = random_problem(random, &mut mask);
    let data = data::<T>(random, &problem, rows);
    let given = given(random, &problem, rows);
    let expected = reference_gradients(&problem, &data, &given);
    let found = kernel_gradients::<T>(&problem, &data, &given);
    for (name, found, expected) in [
        ("q", &found.q, &expected.q),
        ("k", &found.k, &expected.k),
        ("v", &found.v, &expected.v),
        ("sinks", &found.sinks, &expected.sinks),
    ] {
        let error = relative(found, expected);
        assert!(error < tolerance, "seed {seed}: gradient of {name} differs by {error}");
    }
}

/// Base-2 exponents reach 60, where one rounding of S or L is 2e-6 of P; a row adds up to 200 of them.
#[test]
fn f32_gradients_match_the_f64_reference() {
    (0..300).for_each(|seed| check::<f32>(seed, 4e-5));
}

#[test]
fn gradients_match_on_every_instruction_set() {
    for isa in Isa::ALL {
        with_isa(isa, || (1000..1030).for_each(|seed| check::<f32>(seed, 4e-5)));
    }
}

/// P, dS and the stored output are rounded to 8 bits; their errors add up over a row.
#[test]
fn bf16_gradients_match_the_f64_reference() {
    (2000..2300).for_each(|seed| check::<bf16>(seed, 4e-2));
    with_isa(Isa::Avx2, || (2000..2020).for_each(|seed| check::<bf16>(seed, 4e-2)));
}

/// Long enough that keys are split over several tasks.
#[test]
fn bits_do_not_depend_on_threads() {
    let problem = Problem::dense(1, [70, 700], [2, 1], [24, 24]);
    let rows = Rows { batch: 1, q: 70, k: 700 };
    let random = &mut Random(5);
    let data = data::<f32>(random, &problem, rows);
    let given = given(random, &problem, rows);
    let run = || {
        let grads = kernel_gradients::<f32>(&problem, &data, &given);
        (run_kernel::<f32>(&problem, &data), grads.q, grads.k, grads.v)
    };
    let one = with_threads(1, run);
    for threads in [2, 3] {
        assert!(with_threads(threads, run) == one, "{threads} threads");
    }
    let expected = reference_gradients(&problem, &data, &given);
    assert!(relative(&one.1, &expected.q) < 2e-5);
}
