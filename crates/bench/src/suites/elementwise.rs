//! Elementwise operators and softmax on 16 M elements through the public API.

use super::{Case, Work, randn};
use crate::Result;
use danaus_kernel::ops::softmax::softmax;
use danaus_tensor::{DType, Tensor, no_grad};

const ROWS: usize = 32_768;
const COLUMNS: usize = 512;
const ELEMENTS: f64 = (ROWS * COLUMNS) as f64;

fn inputs() -> Result<(Tensor, Tensor)> {
    let shape = [ROWS, COLUMNS];
    Ok((randn(1, &shape, DType::F32)?, randn(2, &shape, DType::F32)?))
}

fn work(run: fn(&Tensor, &Tensor) -> danaus_tensor::Result<Tensor>) -> Result<Work> {
    let (x, y) = inputs()?;
    Ok(Box::new(move || no_grad(|| Ok(run(&x, &y).map(drop)?))))
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "add_16m",
            what: "x + y, 16 M f32",
            flops: ELEMENTS,
            bytes: 12.0 * ELEMENTS,
            make: || work(|x, y| x.add(y)),
        },
        Case {
            name: "exp_16m",
            what: "e^x, 16 M f32",
            flops: 20.0 * ELEMENTS,
            bytes: 8.0 * ELEMENTS,
            make: || work(|x, _| x.exp()),
        },
        Case {
            name: "softmax_512",
            what: "softmax of 32768 rows of 512, f32",
            flops: 25.0 * ELEMENTS,
            bytes: 8.0 * ELEMENTS,
            make: || work(|x, _| softmax(x)),
        },
    ]
}
