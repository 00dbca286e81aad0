//! Selective scan: one sequence of 1024 tokens, 1536 channels, state 16, with gate, skip and softplus.

use super::{Case, Work, randn};
use crate::Result;
use danaus_kernel::ops::selective_scan::{ScanInputs, ScanOptions, selective_scan};
use danaus_tensor::{DType, Tensor, backward_with, no_grad};

const LENGTH: usize = 1024;
const CHANNELS: usize = 1536;
const D_STATE: usize = 16;
/// An exponential counts as one operation, as in the published counts.
const FLOPS: f64 = (7 * LENGTH * CHANNELS * D_STATE) as f64;
const BYTES: f64 = (4 * LENGTH * (4 * CHANNELS + 2 * D_STATE)) as f64;

/// u, delta, A, B, C, D, z, delta_bias in the published layout or with channels last.
fn inputs(channel_last: bool) -> Result<[Tensor; 8]> {
    let array = |seed, width| {
        let shape = if channel_last { [1, LENGTH, width] } else { [1, width, LENGTH] };
        randn(seed, &shape, DType::F32)
    };
    Ok([
        array(1, CHANNELS)?,
        array(2, CHANNELS)?,
        randn(3, &[CHANNELS, D_STATE], DType::F32)?.abs()?.neg()?,
        array(4, D_STATE)?,
        array(5, D_STATE)?,
        randn(6, &[CHANNELS], DType::F32)?,
        array(7, CHANNELS)?,
        randn(8, &[CHANNELS], DType::F32)?,
    ])
}

fn scan(tensors: &[Tensor; 8], channel_last: bool) -> Result<Tensor> {
    let [u, delta, a, b, c, d, z, bias] = tensors;
    let inputs = ScanInputs {
        d: Some(d),
        z: Some(z),
        delta_bias: Some(bias),
        ..ScanInputs::new(u, delta, a, b, c)
    };
    let options = ScanOptions { delta_softplus: true, channel_last };
    Ok(selective_scan(&inputs, &options)?.0)
}

fn forward(channel_last: bool) -> Result<Work> {
    let tensors = inputs(channel_last)?;
    Ok(Box::new(move || no_grad(|| scan(&tensors, channel_last).map(drop))))
}

fn train() -> Result<Work> {
    let leaves = inputs(true)?.map(|tensor| tensor.tracked());
    let cotangent = randn(9, &[1, LENGTH, CHANNELS], DType::F32)?;
    Ok(Box::new(move || {
        let y = scan(&leaves, true)?;
        Ok(backward_with(&[(&y, &cotangent)]).map(drop)?)
    }))
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "scan_forward",
            what: "L 1024, D 1536, n 16, f32, published layout",
            flops: FLOPS,
            bytes: BYTES,
            make: || forward(false),
        },
        Case {
            name: "scan_packed",
            what: "the same, channels last",
            flops: FLOPS,
            bytes: BYTES,
            make: || forward(true),
        },
        Case {
            name: "scan_train",
            what: "the same, forward and backward",
            flops: 3.0 * FLOPS,
            bytes: 3.0 * BYTES,
            make: train,
        },
    ]
}
