//! Decoding: the linear layers of a Llama for one token of each sequence, and a prompt of 512.
//!
//! A case multiplies every weight of the model once, as a step of generation does, so that weights
//! come from memory and not from a cache: all of a 130M model (12 layers of width 768, and the head),
//! two layers of a 1B one (width 2048). The least bytes are those of the weights as they are stored.

use super::{Case, Work, randn};
use crate::Result;
use danaus_kernel::ops::linear::{Extras, linear};
use danaus_kernel::ops::quantized::{BlockType, quantize, quantized_linear};
use danaus_tensor::{DType, Tensor, no_grad};

/// Matrices `[rows, cols]` of a layer (q k v, out, gate and up, down), how many layers, and the head.
struct Shape {
    layer: [[usize; 2]; 4],
    layers: usize,
    head: [usize; 2],
}

const SMALL: Shape = Shape {
    layer: [[2304, 768], [768, 768], [4096, 768], [768, 2048]],
    layers: 12,
    head: [32_000, 768],
};

const LARGE: Shape = Shape {
    layer: [[3072, 2048], [2048, 2048], [16_384, 2048], [2048, 8192]],
    layers: 2,
    head: [0, 2048],
};

impl Shape {
    const fn weights(&self) -> usize {
        let (mut sum, mut i) = (0, 0);
        while i < 4 {
            sum += self.layer[i][0] * self.layer[i][1];
            i += 1;
        }
        sum * self.layers + self.head[0] * self.head[1]
    }

    fn matrices(&self) -> Vec<[usize; 2]> {
        let mut all = self.layer.repeat(self.layers);
        all.extend(Some(self.head).filter(|head| head[0] > 0));
        all
    }
}

/// How weights are stored.
#[derive(Clone, Copy)]
enum Stored {
    Float(DType),
    Blocks(BlockType),
}

impl Stored {
    /// Bytes of 256 weights.
    const fn bytes_of_256(self) -> usize {
        match self {
            Stored::Float(dtype) => 256 * dtype.size(),
            Stored::Blocks(kind) => 256 / kind.block_len() * kind.block_bytes(),
        }
    }

    /// A matrix; its rows repeat some random ones, since encoding is slower than what is measured.
    fn matrix(self, seed: u64, [rows, cols]: [usize; 2]) -> Result<Tensor> {
        const DISTINCT: usize = 256;
        let some = randn(seed, &[DISTINCT, cols], DType::F32)?.affine(0.02, 0.0)?;
        let some = match self {
            Stored::Float(dtype) => some.to_dtype(dtype)?,
            Stored::Blocks(kind) => quantize(&some, kind)?,
        };
        let ids: Vec<i64> = (0..rows as i64).map(|row| row % DISTINCT as i64).collect();
        Ok(some.index_select(0, &Tensor::from_vec(ids, [rows], &some.device())?)?)
    }

    fn apply(self, x: &Tensor, weight: &Tensor, cols: usize) -> Result<Tensor> {
        Ok(match self {
            Stored::Float(_) => linear(x, weight, Extras::default())?,
            Stored::Blocks(kind) => quantized_linear(x, weight, kind, cols, Extras::default())?,
        })
    }
}

fn step(shape: &Shape, stored: Stored, batch: usize) -> Result<Work> {
    let mut layers = Vec::new();
    for (seed, [rows, cols]) in shape.matrices().into_iter().enumerate() {
        let x = randn(1000 + seed as u64, &[batch, cols], DType::F32)?;
        layers.push((x, stored.matrix(seed as u64, [rows, cols])?, cols));
    }
    Ok(Box::new(move || {
        no_grad(|| layers.iter().try_for_each(|(x, w, cols)| stored.apply(x, w, *cols).map(drop)))
    }))
}

const F32: Stored = Stored::Float(DType::F32);
const BF16: Stored = Stored::Float(DType::BF16);
const F16: Stored = Stored::Float(DType::F16);
const Q8_0: Stored = Stored::Blocks(BlockType::Q8_0);
const Q4_0: Stored = Stored::Blocks(BlockType::Q4_0);
const Q4_K: Stored = Stored::Blocks(BlockType::Q4K);

macro_rules! list {
    ($($name:literal, $shape:ident, $stored:ident, $batch:literal;)*) => {
        vec![$(Case {
            name: $name,
            what: concat!("linear layers, ", stringify!($stored), ", batch ", $batch),
            flops: (2 * $shape.weights() * $batch) as f64,
            bytes: ($shape.weights() / 256 * $stored.bytes_of_256()) as f64,
            make: || step(&$shape, $stored, $batch),
        }),*]
    };
}

pub(super) fn cases() -> Vec<Case> {
    list! {
        "linear_130m_f32_b1", SMALL, F32, 1;
        "linear_130m_f32_b8", SMALL, F32, 8;
        "linear_130m_bf16_b1", SMALL, BF16, 1;
        "linear_130m_bf16_b8", SMALL, BF16, 8;
        "linear_130m_f16_b1", SMALL, F16, 1;
        "linear_130m_f16_b8", SMALL, F16, 8;
        "linear_130m_q8_0_b1", SMALL, Q8_0, 1;
        "linear_130m_q8_0_b8", SMALL, Q8_0, 8;
        "linear_130m_q4_0_b1", SMALL, Q4_0, 1;
        "linear_130m_q4_0_b8", SMALL, Q4_0, 8;
        "linear_130m_q4_k_b1", SMALL, Q4_K, 1;
        "linear_130m_q4_k_b8", SMALL, Q4_K, 8;
        "linear_1b_f32_b1", LARGE, F32, 1;
        "linear_1b_f32_b8", LARGE, F32, 8;
        "linear_1b_bf16_b1", LARGE, BF16, 1;
        "linear_1b_bf16_b8", LARGE, BF16, 8;
        "linear_1b_f16_b1", LARGE, F16, 1;
        "linear_1b_f16_b8", LARGE, F16, 8;
        "linear_1b_q8_0_b1", LARGE, Q8_0, 1;
        "linear_1b_q8_0_b8", LARGE, Q8_0, 8;
        "linear_1b_q4_0_b1", LARGE, Q4_0, 1;
        "linear_1b_q4_0_b8", LARGE, Q4_0, 8;
        "linear_1b_q4_k_b1", LARGE, Q4_K, 1;
        "linear_1b_q4_k_b8", LARGE, Q4_K, 8;
        "linear_1b_f32_b512", LARGE, F32, 512;
        "linear_1b_bf16_b512", LARGE, BF16, 512;
        "linear_1b_q8_0_b512", LARGE, Q8_0, 512;
        "linear_1b_q4_k_b512", LARGE, Q4_K, 512;
    }
}
