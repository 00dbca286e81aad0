//! Integer products against f64, instruction sets against each other, rows against batches.

use super::super::tests::{bits, random_blocks};
use super::super::*;
use danaus_runtime::simd::{Isa, with_isa};
use danaus_runtime::threads::with_threads;
use danaus_tensor::{Device, backward_with};
use danaus_testkit::{assert_close, golden, randn};

fn product(x: &Tensor, w: &Tensor, kind: BlockType, extras: Extras) -> Tensor {
    let cols = x.dims()[1];
    quantized_linear_with(x, w, kind, cols, Activations::Int8, extras).unwrap()
}

/// The reference as a tensor.
fn exact(x: &Tensor, w: &Tensor, kind: BlockType) -> Tensor {
    let (cols, rows) = (x.dims()[1], w.dims()[0]);
    let wide = x.to_dtype(DType::F32).unwrap().contiguous().unwrap();
    let bytes = w.as_slice::<u8>().unwrap();
    let values = reference::linear_int8(kind, wide.as_slice().unwrap(), bytes, cols);
    Tensor::from_vec(values, [x.dims()[0], rows], &Device::Cpu).unwrap()
}

#[test]
fn integer_products_agree_with_f64_and_between_instruction_sets() {
    for kind in INTEGER {
        for (count, rows, blocks) in
            [(1, 7, 1), (1, 33, 3), (2, 25, 2), (5, 16, 1), (8, 40, 5), (13, 31, 9)]
        {
            let cols = blocks * kind.block_len();
            let w = random_blocks(kind, rows, cols, 5);
            for dtype in [DType::F32, DType::BF16] {
                let x = randn(1, &[count, cols], dtype);
                let expected = exact(&x, &w, kind);
                let mut first: Option<Vec<f32>> = None;
                for isa in Isa::ALL {
                    let run = || product(&x, &w, kind, Extras::default());
                    let Some(y) = with_isa(isa, run) else { continue };
                    // Decoded weights are rounded twice and three times (2^-23 each); at most 72 groups
                    // are added in f32, their magnitudes at most some thirty times the result.
                    let tolerance = if dtype == DType::F32 { 2e-5 } else { 1.0 / 128.0 };
                    let what = format!("{kind} {isa:?} {count}x{rows}x{cols} {dtype}");
                    assert_close(&what, &y, &expected, tolerance);
                    let y = y.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap();
                    let same = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                    let first = first.get_or_insert_with(|| y.clone());
                    assert!(same(first) == same(&y), "{what}: other bits");
                }
            }
        }
    }
}

#[test]
fn rounding_x_costs_what_is_stated() {
    for kind in INTEGER {
        let (count, rows, cols) = (6, 37, 1536);
        let w = random_blocks(kind, rows, cols, 3);
        let x = randn(4, &[count, cols], DType::F32);
        let y = product(&x, &w, kind, Extras::default()).to_vec::<f32>().unwrap();
        let dense = dequantize(&w, kind, cols).unwrap();
        let weights = dense.to_vec::<f32>().unwrap();
        let values = x.to_vec::<f32>().unwrap();
        for (row, x) in values.chunks_exact(cols).enumerate() {
            for (column, w) in weights.chunks_exact(cols).enumerate() {
                let (mut sum, mut bound, mut magnitude) = (0f64, 0f64, 0f64);
                for (x, w) in x.chunks_exact(32).zip(w.chunks_exact(32)) {
                    let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
                    let size: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
                    sum += x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
                    // The product x (127 / max) is rounded twice before it is rounded to an integer.
                    bound += f64::from(most) * (1.0 / 254.0 + 1e-6) * size;
                    magnitude += f64::from(most) * size;
                }
                let error = (f64::from(y[row * rows + column]) - sum).abs();
                // 48 groups in f32, each with a handful of roundings.
                let rounding = 60.0 * f64::from(f32::EPSILON) * magnitude;
                assert!(error <= bound + rounding, "{kind}: {error} above {bound}");
            }
        }
    }
}

#[test]
fn golden_blocks_give_the_products_of_their_golden_values() {
    let file = golden("40-engine", "gguf_dequant");
    for kind in INTEGER {
        let name = kind.name().to_uppercase();
        let blocks = file.get(&format!("{name}.bytes"));
        let weights = file.get(&format!("{name}.dequant_f32"));
        let cols = weights.dims()[1];
        // Codes of x that are their own roundings: integers with 127 in every group.
        let values: Vec<f32> = (0..3 * cols)
            .map(|i| if i % 32 == 0 { 127.0 } else { ((i * 37) % 255) as f32 - 127.0 })
            .collect();
        let x = Tensor::from_vec(values, [3, cols], &Device::Cpu).unwrap();
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
        let expected = linear::linear(&wide(&x), &wide(weights), Extras::default()).unwrap();
        for isa in Isa::ALL {
            let run = || product(&x, blocks, kind, Extras::default());
            let Some(y) = with_isa(isa, run) else { continue };
            // x is exact; f32 sums of the groups.
            assert_close(&format!("{name} {isa:?}"), &y, &expected, 2e-6);
        }
    }
}

#[test]
fn a_row_has_the_same_integer_bits_in_every_batch() {
    for kind in INTEGER {
        // Pieces of k of 1024 and a shorter one.
        let (count, rows, cols) = (37, 75, 9 * 256);
        let (w, x) = (random_blocks(kind, rows, cols, 6), randn(7, &[count, cols], DType::F32));
        let bias = randn(8, &[rows], DType::F32);
        let activation = Some(Activation::Gelu);
        let product = |x: &Tensor| {
            bits(&product(x, &w, kind, Extras { bias: Some(&bias), activation, residual: None }))
        };
        let all = product(&x);
        for (first, len) in [(0, 1), (36, 1), (3, 2), (5, 3), (8, 4), (1, 7), (20, 17)] {
            let part = product(&x.narrow(0, first, len).unwrap());
            let expected = &all[first * rows..(first + len) * rows];
            assert!(part == expected, "{kind} rows {first}..+{len}");
        }
        for threads in [1, 2, 3] {
            assert!(with_threads(threads, || product(&x)) == all, "{kind} on {threads} threads");
        }
    }
}

#[test]
fn special_values_stay_in_their_rows() {
    let kind = BlockType::Q4K;
    let (w, cols) = (random_blocks(kind, 5, 256, 2), 256);
    let mut values = randn(1, &[5, cols], DType::F32).to_vec::<f32>().unwrap();
    values[3] = f32::NAN;
    values[cols + 250] = f32::INFINITY;
    values[2 * cols..3 * cols].fill(f32::from_bits(1));
    values[3 * cols..4 * cols].fill(f32::MAX / 1e4);
    let x = Tensor::from_vec(values, [5, cols], &Device::Cpu).unwrap();
    for isa in Isa::ALL {
        let run = || product(&x, &w, kind, Extras::default()).to_vec::<f32>().unwrap();
        let Some(y) = with_isa(isa, run) else { continue };
        assert!(y[..10].iter().all(|y| y.is_nan()), "{isa:?}: NaN and infinity");
        assert!(y[10..15].iter().all(|&y| y == 0.0), "{isa:?}: subnormal");
        assert!(y[15..].iter().all(|y| y.is_finite()), "{isa:?}: large and normal");
    }
}

#[test]
fn gradients_are_those_of_the_f32_product() -> Result<()> {
    let (kind, rows, cols) = (BlockType::Q5K, 40, 512);
    let (blocks, dy) = (random_blocks(kind, rows, cols, 2), randn(6, &[5, rows], DType::F32));
    let gradient = |activations| -> Result<Vec<u32>> {
        let x = randn(3, &[5, cols], DType::F32).tracked();
        let y = quantized_linear_with(&x, &blocks, kind, cols, activations, Extras::default())?;
        Ok(bits(backward_with(&[(&y, &dy)])?.get(&x).unwrap()))
    };
    assert!(gradient(Activations::Int8)? == gradient(Activations::F32)?);
    Ok(())
}

#[test]
fn modes_and_types_are_named() {
    assert_eq!(Activations::from_name("int8").unwrap(), Activations::Int8);
    let message = Activations::from_name("int4").unwrap_err().to_string();
    assert_eq!(message, "quantized_linear: activations is int4, valid is f32 or int8");
    let (x, w) = (randn(1, &[1, 256], DType::F32), random_blocks(BlockType::Q3K, 2, 256, 1));
    let mode = Activations::Int8;
    let none = Extras::default();
    let message = quantized_linear_with(&x, &w, BlockType::Q3K, 256, mode, none).unwrap_err();
    assert!(
        message.to_string().starts_with("quantized_linear: block_type is q3_k, valid is q4_0,")
    );
    assert_eq!(mode.of_type(BlockType::Q3K), Activations::F32);
    assert_eq!(mode.of_type(BlockType::Q6K), Activations::Int8);
}
