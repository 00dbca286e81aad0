//! Square matrix products.

use super::{Case, Work, randn};
use crate::Result;
use danaus_tensor::{DType, no_grad};

const N: usize = 1024;
const FLOPS: f64 = 2.0 * (N * N * N) as f64;

fn square(dtype: DType) -> Result<Work> {
    let (a, b) = (randn(1, &[N, N], dtype)?, randn(2, &[N, N], dtype)?);
    Ok(Box::new(move || no_grad(|| Ok(a.matmul(&b).map(drop)?))))
}

const fn bytes(element: usize) -> f64 {
    (3 * N * N * element) as f64
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "matmul_f32_1024",
            what: "1024^3, f32",
            flops: FLOPS,
            bytes: bytes(4),
            make: || square(DType::F32),
        },
        Case {
            name: "matmul_bf16_1024",
            what: "1024^3, bf16 with f32 sums (the roofline is that of f32)",
            flops: FLOPS,
            bytes: bytes(2),
            make: || square(DType::BF16),
        },
        Case {
            name: "matmul_f64_1024",
            what: "1024^3, f64",
            flops: FLOPS,
            bytes: bytes(8),
            make: || square(DType::F64),
        },
    ]
}
