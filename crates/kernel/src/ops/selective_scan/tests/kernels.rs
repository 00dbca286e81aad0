//! The vectorised passes against the f64 recurrence.

use super::support::{Form, Problem, Setup};
use danaus_runtime::simd::{self, Isa};
use danaus_runtime::threads::with_threads;
use danaus_tensor::DType;
use danaus_testkit::{assert_close, max_relative_error};

/// Odd sizes: one token, one state, states and channels that fill no vector, several groups, pieces and
/// tiles, empty sequences.
fn setups() -> Vec<Setup> {
    let mut all = vec![
        Setup::new(3, 1, 1, &[1]),
        Setup::new(3, 1, 17, &[5, 0, 33]),
        Setup::new(40, 2, 16, &[1, 1, 70, 2]),
        Setup::new(300, 1, 16, &[64, 65]),
        Setup::new(34, 1, 200, &[20]),
    ];
    for (b, c) in [(true, true), (true, false), (false, true)] {
        let form = |constant| if constant { Form::Constant } else { Form::Token };
        let forms = [form(b), form(c)];
        all.push(Setup { forms, gated: b && c, ..Setup::new(20, 1, 5, &[40, 3]) });
    }
    all
}

#[test]
fn f32_is_the_recurrence_up_to_rounding() {
    for isa in Isa::ALL {
        for setup in setups() {
            let problem = Problem::new(&setup);
            let expected = problem.results(DType::F64);
            let found = simd::with_isa(isa, || problem.results(DType::F32));
            for ((name, found), (_, expected)) in found.iter().flatten().zip(&expected) {
                // Sums over tokens and channels of a few hundred f32 terms.
                assert_close(&format!("{isa:?} {setup:?} {name}"), found, expected, 1e-5);
            }
        }
    }
}

/// The kernel in bf16 against a plain f32 computation on the same bf16 inputs, both rounded to bf16: the
/// sheet allows 1.5 times its error.
#[test]
fn bf16_is_no_worse_than_a_plain_computation() {
    let problem = Problem::new(&Setup::new(64, 1, 16, &[100, 28]));
    let oracle = problem.results(DType::F64);
    let plain = problem.results(DType::F32);
    let narrow = problem.results(DType::BF16);
    for (((name, oracle), (_, plain)), (_, narrow)) in oracle.iter().zip(&plain).zip(&narrow) {
        let rounded = plain.to_dtype(narrow.dtype()).unwrap();
        let (naive, ours) =
            (max_relative_error(&rounded, oracle), max_relative_error(narrow, oracle));
        // Parameters' gradients are f32 in the plain computation and rounded by the cast here.
        let allowed = if narrow.dtype() == DType::BF16 { 1.5 * naive } else { 1.5 * naive + 1e-6 };
        assert!(ours <= allowed, "{name}: {ours:e}, plain {naive:e}");
    }
}

#[test]
fn thread_count_does_not_change_bits() {
    let problem = Problem::new(&Setup::new(300, 1, 16, &[200, 1, 0, 99]));
    let bits = |threads| {
        let results = with_threads(threads, || problem.results(DType::F32));
        let values = results.iter().map(|(_, tensor)| tensor.to_vec::<f32>().unwrap());
        values.collect::<Vec<_>>()
    };
    let one = bits(1);
    assert!(one == bits(2) && one == bits(3));
}
