//! Random problems with every input, and their results.

use super::super::{ScanInputs, ScanOptions, selective_scan};
use danaus_tensor::{DType, Device, Tensor, backward_with};
use danaus_testkit::randn;

/// How B and C are given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    Token,
    Constant,
}

/// Sizes and forms of a random problem, one packed row of sequences.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub channels: usize,
    pub groups: usize,
    pub d_state: usize,
    pub lengths: Vec<usize>,
    pub forms: [Form; 2],
    pub gated: bool,
}

impl Setup {
    pub(super) fn new(channels: usize, groups: usize, d_state: usize, lengths: &[usize]) -> Self {
        let forms = [Form::Token; 2];
        Self { channels, groups, d_state, lengths: lengths.to_vec(), forms, gated: true }
    }
}

pub(super) const NAMES: [&str; 9] =
    ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_states"];

/// The inputs in the order of [`NAMES`], and the bounds of the sequences.
#[derive(Clone)]
pub(super) struct Problem {
    pub inputs: Vec<Option<Tensor>>,
    pub cu_seqlens: Tensor,
}

pub(super) const LAST: ScanOptions = ScanOptions { delta_softplus: true, channel_last: true };

/// Every number is exact in bf16, so that all dtypes compute the same problem.
fn numbers(seed: u64, shape: &[usize]) -> Tensor {
    randn(seed, shape, DType::BF16).to_dtype(DType::F64).unwrap()
}

impl Problem {
    pub(super) fn new(setup: &Setup) -> Self {
        let tokens: usize = setup.lengths.iter().sum();
        let (d, n) = (setup.channels, setup.d_state);
        let rows = |seed| Some(numbers(seed, &[1, tokens, d]));
        let map = |seed, form| {
            Some(match form {
                Form::Token => numbers(seed, &[1, tokens, setup.groups, n]),
                Form::Constant => numbers(seed, &[d, n]),
            })
        };
        // Steps around 0.5: with small ones an index that is off by one would pass.
        let rates = numbers(3, &[d, n]).abs().unwrap().neg().unwrap();
        let mut bounds = vec![0i32];
        for length in &setup.lengths {
            bounds.push(bounds[bounds.len() - 1] + *length as i32);
        }
        let count = bounds.len();
        Self {
            inputs: vec![
                rows(1),
                rows(2),
                Some(rates),
                map(4, setup.forms[0]),
                map(5, setup.forms[1]),
                Some(numbers(6, &[d])),
                if setup.gated { rows(7) } else { None },
                Some(numbers(8, &[d])),
                Some(numbers(9, &[setup.lengths.len(), d, n])),
            ],
            cu_seqlens: Tensor::from_vec(bounds, [count], &Device::Cpu).unwrap(),
        }
    }

    /// In another dtype, as leaves.
    pub(super) fn tracked(&self, dtype: DType) -> Self {
        let leaf = |tensor: &Option<Tensor>| {
            tensor.as_ref().map(|tensor| tensor.to_dtype(dtype).unwrap().tracked())
        };
        Self { inputs: self.inputs.iter().map(leaf).collect(), ..self.clone() }
    }

    pub(super) fn at(&self, index: usize) -> &Tensor {
        self.inputs[index].as_ref().unwrap()
    }

    pub(super) fn scan(&self) -> ScanInputs<'_> {
        let [u, delta, a, b, c] = [0, 1, 2, 3, 4].map(|index| self.at(index));
        ScanInputs {
            d: self.inputs[5].as_ref(),
            z: self.inputs[6].as_ref(),
            delta_bias: self.inputs[7].as_ref(),
            initial_states: self.inputs[8].as_ref(),
            cu_seqlens: Some(&self.cu_seqlens),
            ..ScanInputs::new(u, delta, a, b, c)
        }
    }

    /// y, last_state and the gradients of all inputs for fixed cotangents of both results.
    pub(super) fn results(&self, dtype: DType) -> Vec<(String, Tensor)> {
        let leaves = self.tracked(dtype);
        let (y, last) = selective_scan(&leaves.scan(), &LAST).unwrap();
        let (ry, rl) = (numbers(10, y.dims()), numbers(11, last.dims()));
        let (ry, rl) = (ry.to_dtype(y.dtype()).unwrap(), rl.to_dtype(last.dtype()).unwrap());
        let grads = backward_with(&[(&y, &ry), (&last, &rl)]).unwrap();
        let mut all = vec![("y".to_string(), y), ("last_state".to_string(), last)];
        for (name, leaf) in NAMES.iter().zip(&leaves.inputs) {
            if let Some(leaf) = leaf {
                all.push((format!("grad.{name}"), grads.get(leaf).unwrap().clone()));
            }
        }
        all
    }
}
