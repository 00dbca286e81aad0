//! Structured weights of 4096 x 4096 on 256 rows, beside the dense matrix that they stand for.
//!
//! The operations are those of the structured product, so a dense matrix at the same rate would
//! take `4096^2 / parameters` times as long. Peers compute the same product: a linear layer, and
//! batched products with copies between them.

use super::{Case, Work, randn};
use crate::Result;
use danaus_kernel::ops::block_sparse::{FlatButterfly, Layout, block_sparse};
use danaus_kernel::ops::kronecker_sparse::{butterfly, monarch};
use danaus_kernel::ops::linear::{Extras, linear};
use danaus_matrix::structured::LdrClass;
use danaus_matrix::structured::ldr::ldr;
use danaus_tensor::{DType, Device, Tensor, backward_with, no_grad};
use std::sync::Arc;

const SIZE: usize = 4096;
const BATCH: usize = 256;

/// How the weight is stored.
#[derive(Clone, Copy)]
enum Weight {
    Dense,
    /// This many blocks in both factors.
    Monarch(usize),
    /// One product of twelve factors.
    Butterfly,
    /// Subdiagonal operators and this many pairs of generators.
    Ldr(usize),
    /// Blocks of 32 of a flat butterfly: this many strides and the diagonal, of 16.
    Flat(usize),
}

impl Weight {
    const fn parameters(self) -> usize {
        match self {
            Weight::Dense => SIZE * SIZE,
            Weight::Monarch(blocks) => 2 * SIZE * SIZE / blocks,
            Weight::Butterfly => 2 * SIZE * SIZE.trailing_zeros() as usize,
            Weight::Ldr(rank) => 2 * rank * SIZE + 2 * (SIZE - 1),
            Weight::Flat(strides) => SIZE * SIZE / 16 * (strides + 1),
        }
    }

    /// Operations on a row.
    const fn flops(self) -> usize {
        match self {
            // 2 r + 2 real transforms of twice the size, 5/2 N log N each.
            Weight::Ldr(rank) => (2 * rank + 2) * 5 * SIZE * (2 * SIZE).trailing_zeros() as usize,
            other => 2 * other.parameters(),
        }
    }

    /// The parameters with the variance of a layer that keeps that of its input.
    fn make(self, dtype: DType) -> Result<Vec<Tensor>> {
        let scaled = |seed: u64, shape: &[usize], fan: usize| -> Result<Tensor> {
            let values = randn(seed, shape, DType::F32)?.affine(1.0 / (fan as f64).sqrt(), 0.0)?;
            Ok(values.to_dtype(dtype)?)
        };
        Ok(match self {
            Weight::Dense => vec![scaled(1, &[SIZE, SIZE], SIZE)?],
            Weight::Monarch(blocks) => {
                let side = SIZE / blocks;
                let factor = |seed| scaled(seed, &[blocks, side, side], side);
                vec![factor(1)?, factor(2)?]
            }
            Weight::Butterfly => {
                let factors = SIZE.trailing_zeros() as usize;
                vec![scaled(1, &[1, 1, factors, SIZE / 2, 2, 2], 2)?]
            }
            Weight::Ldr(rank) => {
                let one = Tensor::full(1.0f32, [SIZE - 1], &Device::Cpu)?.to_dtype(dtype)?;
                let generator = |seed| scaled(seed, &[rank, SIZE], SIZE);
                vec![one.clone(), one, generator(1)?, generator(2)?]
            }
            Weight::Flat(strides) => {
                let side = self.layout()?.block();
                let blocks = self.layout()?.len();
                vec![scaled(1, &[blocks, side, side], SIZE / 16 * (strides + 1))?]
            }
        })
    }

    /// Which blocks exist.
    fn layout(self) -> Result<Layout> {
        let factors = if let Weight::Flat(strides) = self { strides } else { 1 };
        let butterfly = FlatButterfly { size: 16, factors, block: 32, global: 0, shuffle: false };
        Ok(butterfly.layout(SIZE, SIZE)?)
    }

    fn apply(self, x: &Tensor, weights: &[Tensor]) -> Result<Tensor> {
        Ok(match self {
            Weight::Dense => linear(x, &weights[0], Extras::default())?,
            Weight::Monarch(_) => monarch(x, &weights[0], &weights[1])?,
            Weight::Butterfly => {
                let x = x.reshape([BATCH, 1, SIZE])?;
                butterfly(&x, &weights[0], true, SIZE)?.reshape([BATCH, SIZE])?
            }
            Weight::Ldr(_) => {
                let operators = [&weights[0], &weights[1]];
                ldr(LdrClass::Subdiagonal, &operators, &weights[2], &weights[3])?.apply(x)?
            }
            Weight::Flat(_) => block_sparse(x, &weights[0], &Arc::new(self.layout()?), SIZE, None)?,
        })
    }
}

fn forward(weight: Weight, dtype: DType) -> Result<Work> {
    let weights = weight.make(dtype)?;
    let x = randn(3, &[BATCH, SIZE], dtype)?;
    Ok(Box::new(move || no_grad(|| weight.apply(&x, &weights).map(drop))))
}

fn both(weight: Weight, dtype: DType) -> Result<Work> {
    let weights: Vec<Tensor> = weight.make(dtype)?.iter().map(Tensor::tracked).collect();
    let x = randn(3, &[BATCH, SIZE], dtype)?.tracked();
    let dy = randn(4, &[BATCH, SIZE], dtype)?;
    Ok(Box::new(move || {
        let y = weight.apply(&x, &weights)?;
        backward_with(&[(&y, &dy)])?;
        Ok(())
    }))
}

macro_rules! list {
    ($($name:literal, $weight:expr, $dtype:ident, $run:ident $passes:literal;)*) => {
        vec![$(Case {
            name: $name,
            what: concat!(stringify!($weight), " 4096, batch 256, ", stringify!($dtype), ", ", stringify!($run)),
            flops: (BATCH * $weight.flops()) as f64 * $passes,
            bytes: ((2 * BATCH * SIZE + $weight.parameters()) * DType::$dtype.size()) as f64,
            make: || $run($weight, DType::$dtype),
        }),*]
    };
}

pub(super) fn cases() -> Vec<Case> {
    use Weight::{Butterfly, Dense, Flat, Ldr, Monarch};
    list! {
        "matrix_dense_f32", Dense, F32, forward 1.0;
        "matrix_monarch64_f32", Monarch(64), F32, forward 1.0;
        "matrix_monarch4_f32", Monarch(4), F32, forward 1.0;
        "matrix_butterfly_f32", Butterfly, F32, forward 1.0;
        "matrix_ldr2_f32", Ldr(2), F32, forward 1.0;
        "matrix_flat4_f32", Flat(3), F32, forward 1.0;
        "matrix_flat8_f32", Flat(1), F32, forward 1.0;
        "matrix_dense_bf16", Dense, BF16, forward 1.0;
        "matrix_monarch64_bf16", Monarch(64), BF16, forward 1.0;
        "matrix_monarch4_bf16", Monarch(4), BF16, forward 1.0;
        "matrix_butterfly_bf16", Butterfly, BF16, forward 1.0;
        "matrix_dense_f32_both", Dense, F32, both 3.0;
        "matrix_monarch64_f32_both", Monarch(64), F32, both 3.0;
        "matrix_monarch4_f32_both", Monarch(4), F32, both 3.0;
        "matrix_butterfly_f32_both", Butterfly, F32, both 3.0;
        "matrix_ldr2_f32_both", Ldr(2), F32, both 3.0;
        "matrix_flat4_f32_both", Flat(3), F32, both 3.0;
    }
}
