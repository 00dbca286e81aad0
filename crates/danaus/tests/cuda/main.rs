//! The same computations on the processor and on the first GPU. On a machine without a GPU the tests
//! say so and pass; they are run on one before every release.
//!
//! Tolerances: f64 results differ by the rounding of another summation order and of the GPU's
//! functions, a few 1e-13 of the largest value; f32 by 1e-5 (sums of some thousand terms); bf16 by one
//! rounding, 2^-8.

mod attention;
mod decoding;
mod graphs;
mod mamba2_step;
mod models;
mod operators;
mod plain_attention;
mod runtime;
mod ssd;
mod tensors;

use danaus::tensor::rng::Rng;
use danaus::tensor::{DType, Device, Result, Tensor};
use std::cell::RefCell;
use std::sync::{Mutex, MutexGuard};

/// Tests take turns: while one captures a graph, nobody else may use the device.
static TURN: Mutex<()> = Mutex::new(());

thread_local! {
    /// Held from the first use of the GPU to the end of the test, which is a thread.
    static HELD: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// The first GPU, or `None` with a note.
fn gpu() -> Option<Device> {
    HELD.with_borrow_mut(|held| {
        held.get_or_insert_with(|| TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    });
    match Device::cuda(0) {
        Ok(device) => Some(device),
        Err(error) => {
            eprintln!("not run: {error}");
            None
        }
    }
}

fn randn(seed: u64, shape: &[usize], dtype: DType) -> Tensor {
    Rng::new(seed, 0).normal(0.0, 1.0, shape).unwrap().to_dtype(dtype).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let host = tensor.detach().to_device(&Device::Cpu).unwrap();
    host.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap()
}

fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-12,
        DType::F32 => 2e-5,
        _ => 1.0 / 128.0,
    }
}

/// Compares shape, dtype and values.
fn assert_same(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    assert_eq!(found.dtype(), expected.dtype(), "{what}");
    let (found, wanted) = (values(found), values(expected));
    let scale = wanted.iter().filter(|v| v.is_finite()).fold(1.0f64, |s, v| s.max(v.abs()));
    for (index, (a, b)) in found.iter().zip(&wanted).enumerate() {
        let same = a == b || (a.is_nan() && b.is_nan());
        let close = (a - b).abs() <= tolerance(expected.dtype()) * scale;
        assert!(same || close, "{what}: element {index} is {a}, expected {b}");
    }
}

/// Runs `work` on inputs of both devices and compares the results, and the gradients of float inputs.
fn check(what: &str, inputs: &[Tensor], work: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>) {
    let Some(device) = gpu() else { return };
    let run = |device: &Device| -> Result<(Vec<Tensor>, Vec<Option<Tensor>>)> {
        let leaves: Vec<Tensor> = inputs
            .iter()
            .map(|input| {
                let moved = input.to_device(device)?;
                Ok(if input.dtype().is_float() { moved.tracked() } else { moved })
            })
            .collect::<Result<_>>()?;
        let outputs = work(&leaves)?;
        let mut pairs = Vec::new();
        for (index, output) in outputs.iter().enumerate().filter(|(_, output)| output.is_tracked())
        {
            let cotangent = randn(100 + index as u64, output.dims(), output.dtype());
            pairs.push((output.clone(), cotangent.to_device(device)?));
        }
        let borrowed: Vec<(&Tensor, &Tensor)> = pairs.iter().map(|(a, b)| (a, b)).collect();
        let grads = match borrowed.is_empty() {
            true => vec![None; leaves.len()],
            false => {
                let gradients = danaus::tensor::backward_with(&borrowed)?;
                leaves.iter().map(|leaf| gradients.get(leaf).cloned()).collect()
            }
        };
        Ok((outputs, grads))
    };
    let (expected, expected_grads) = run(&Device::Cpu).unwrap_or_else(|e| panic!("{what}: {e}"));
    let (found, found_grads) = run(&device).unwrap_or_else(|e| panic!("{what} on a GPU: {e}"));
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found.device(), device, "{what}");
        assert_same(&format!("{what}, output {index}"), found, expected);
    }
    for (index, (found, expected)) in found_grads.iter().zip(&expected_grads).enumerate() {
        assert_eq!(found.is_some(), expected.is_some(), "{what}, gradient {index}");
        if let (Some(found), Some(expected)) = (found, expected) {
            assert_same(&format!("{what}, gradient {index}"), found, expected);
        }
    }
}

const FLOATS: [DType; 3] = [DType::F64, DType::F32, DType::BF16];
