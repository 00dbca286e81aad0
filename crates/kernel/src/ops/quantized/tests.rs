//! Golden blocks, every type against f64, and identities.

use super::*;
use danaus_runtime::simd::{Isa, with_isa};
use danaus_runtime::threads::with_threads;
use danaus_tensor::{Device, backward_with};
use danaus_testkit::{assert_close, golden, max_relative_error, randn};

pub(super) fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::F64).unwrap()
}

/// The name of a type in the golden file.
fn golden_name(kind: BlockType) -> String {
    kind.name().to_uppercase()
}

/// Random blocks whose scales are of order one: bytes from a counter, halves made small.
pub(super) fn random_blocks(kind: BlockType, rows: usize, cols: usize, seed: u64) -> Tensor {
    let row_bytes = kind.row_bytes(cols).unwrap();
    let noise = danaus_tensor::rng::Rng::new(seed, 9);
    let mut bytes: Vec<u8> =
        (0..(rows * row_bytes) as u64).map(|i| (noise.words(i)[0] >> 13) as u8).collect();
    let halves: &[usize] = match kind {
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
        BlockType::Q2K => &[80, 82],
        BlockType::Q3K => &[108],
        BlockType::Q6K => &[208],
        BlockType::Mxfp4 => &[],
        _ => &[0],
    };
    for (index, block) in bytes.chunks_exact_mut(kind.block_bytes()).enumerate() {
        for &at in halves {
            let sign = if block[at] & 1 == 0 { 1.0 } else { -1.0 };
            let value = sign * (0.01 + f32::from(block[at + 1]) / 6000.0);
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
        }
        if kind == BlockType::Mxfp4 {
            block[0] = 120 + (index % 8) as u8;
        }
    }
    Tensor::from_vec(bytes, [rows, row_bytes], &Device::Cpu).unwrap()
}

#[test]
fn golden_blocks_decode_to_the_bit() {
    let file = golden("40-engine", "gguf_dequant");
    for kind in BlockType::ALL {
        let name = golden_name(kind);
        let blocks = file.get(&format!("{name}.bytes"));
        let expected = file.get(&format!("{name}.dequant_f32"));
        let cols = expected.dims()[1];
        let mut plain = vec![0f32; expected.elem_count()];
        reference::decode(kind, blocks.as_slice::<u8>().unwrap(), &mut plain);
        let plain: Vec<u32> = plain.into_iter().map(f32::to_bits).collect();
        assert_eq!(plain, bits(expected), "{name}: reference");
        for isa in Isa::ALL {
            if let Some(found) = with_isa(isa, || dequantize(blocks, kind, cols)) {
                assert_eq!(bits(&found.unwrap()), bits(expected), "{name} {isa:?}");
            }
        }
    }
}

#[test]
fn golden_inputs_encode_to_the_byte() {
    let file = golden("40-engine", "gguf_dequant");
    for kind in [BlockType::Q8_0, BlockType::Q4_0] {
        let name = golden_name(kind);
        let blocks = quantize(file.get(&format!("{name}.input_f32")), kind).unwrap();
        let expected = file.get(&format!("{name}.bytes"));
        assert_eq!(blocks.to_vec::<u8>().unwrap(), expected.to_vec::<u8>().unwrap(), "{name}");
    }
}

/// Kernels equal the reference on any bytes, infinite and NaN scales included, and nothing fails.
#[test]
fn every_byte_pattern_decodes_as_the_reference_says() {
    for kind in BlockType::ALL {
        for seed in 0..40 {
            let noise = danaus_tensor::rng::Rng::new(seed, kind as u64);
            let count = 3 * kind.block_bytes();
            let bytes: Vec<u8> = (0..count as u64).map(|i| noise.words(i)[1] as u8).collect();
            let mut expected = vec![0f32; 3 * kind.block_len()];
            reference::decode(kind, &bytes, &mut expected);
            let blocks = Tensor::from_vec(bytes, [1, count], &Device::Cpu).unwrap();
            for isa in Isa::ALL {
                let run = || dequantize(&blocks, kind, expected.len()).unwrap();
                let Some(found) = with_isa(isa, run) else { continue };
                for (found, expected) in found.to_vec::<f32>().unwrap().iter().zip(&expected) {
                    let same = found.to_bits() == expected.to_bits()
                        || found.is_nan() && expected.is_nan();
                    assert!(same, "{kind} {isa:?} seed {seed}: {found} and not {expected}");
                }
            }
        }
    }
}

/// Largest error over largest magnitude of normal values. q8_0 rounds to 1/254 of the block's largest
/// magnitude and its scale to f16 (2^-11 of the value); q4_0 to 1/16 with one side clipped by as much;
/// q4_k splits a range of at most twice the largest magnitude into 15 steps, with six-bit scales.
#[test]
fn encoding_loses_what_the_format_must_lose() {
    let x = randn(3, &[64, 512], DType::F32);
    let mean_square = |kind| {
        let blocks = quantize(&x, kind).unwrap();
        let found = dequantize(&blocks, kind, 512).unwrap();
        let error = found.sub(&x).unwrap();
        let largest =
            error.abs().unwrap().to_vec::<f32>().unwrap().into_iter().fold(0f32, f32::max);
        let square = error.mul(&error).unwrap().mean_all().unwrap().to_scalar().unwrap();
        (largest, square)
    };
    let (q8, q4, q4_k) =
        (mean_square(BlockType::Q8_0), mean_square(BlockType::Q4_0), mean_square(BlockType::Q4K));
    let most = x.abs().unwrap().to_vec::<f32>().unwrap().into_iter().fold(0f32, f32::max);
    assert!(q8.0 < most * (1.0 / 254.0 + 1.0 / 2048.0), "q8_0: {q8:?}");
    assert!(q4.0 < most * (1.0 / 8.0 + 1.0 / 1024.0), "q4_0: {q4:?}");
    // A uniform grid of 16 steps over the typical range (4.1 sigma) has a mean square of 6.2e-3.
    assert!(q4_k.1 < 6.2e-3 && q4_k.1 < 0.8 * q4.1, "q4_k: {q4_k:?}, q4_0: {q4:?}");
}

#[test]
fn encoding_is_exact_on_values_of_the_format() {
    for kind in ENCODED {
        let cols = 2 * kind.block_len();
        let zeros = Tensor::zeros([2, cols], DType::F32, &Device::Cpu).unwrap();
        let found = dequantize(&quantize(&zeros, kind).unwrap(), kind, cols).unwrap();
        assert_close("zeros", &found, &zeros, 0.0);
        let codes: Vec<f32> = (0..2 * cols).map(|i| (i % 16) as f32 - 8.0).collect();
        let codes = Tensor::from_vec(codes, [2, cols], &Device::Cpu).unwrap();
        if kind != BlockType::Q8_0 {
            let found = dequantize(&quantize(&codes, kind).unwrap(), kind, cols).unwrap();
            // Scale and minimum (1 and 8, times 63) need not be f16 numbers: 2^-10 of 8.
            assert_close(kind.name(), &found, &codes, 1.0 / 1024.0);
        }
    }
}

/// `x W^T` in f64 on the decoded weights.
fn oracle(x: &Tensor, blocks: &Tensor, kind: BlockType, cols: usize, extras: Extras) -> Tensor {
    let weight = wide(&dequantize(blocks, kind, cols).unwrap());
    let bias = extras.bias.map(wide);
    let residual = extras.residual.map(wide);
    let extras = Extras { bias: bias.as_ref(), residual: residual.as_ref(), ..extras };
    linear::linear(&wide(x), &weight, extras).unwrap()
}

#[test]
fn products_agree_with_f64_for_every_type() {
    for kind in BlockType::ALL {
        for (count, rows, blocks) in [(1, 7, 1), (1, 13, 3), (2, 25, 2), (5, 6, 1), (9, 31, 4)] {
            let cols = blocks * kind.block_len();
            let w = random_blocks(kind, rows, cols, 5);
            for dtype in [DType::F32, DType::BF16] {
                let x = randn(1, &[count, cols], dtype);
                let (bias, residual) =
                    (randn(2, &[rows], DType::F32), randn(3, &[count, rows], dtype));
                let activation = Some(Activation::Silu);
                let full = Extras { bias: Some(&bias), activation, residual: Some(&residual) };
                for extras in [Extras::default(), full] {
                    let exact = oracle(&x, &w, kind, cols, extras);
                    for isa in Isa::ALL {
                        let run = || quantized_linear(&x, &w, kind, cols, extras).unwrap();
                        let Some(y) = with_isa(isa, run) else { continue };
                        // At most 1024 products a sum, in lanes: some ten f32 roundings of the sum of
                        // magnitudes, here at most thirty times the result; bf16 rounds y to 8 bits.
                        let tolerance = if dtype == DType::F32 { 2e-5 } else { 1.0 / 128.0 };
                        let what = format!("{kind} {isa:?} {count}x{rows}x{cols} {dtype}");
                        assert_close(&what, &y, &exact, tolerance);
                    }
                }
            }
        }
    }
}

/// The invariant level: a row alone, in any batch, on any number of threads.
#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    for kind in BlockType::ALL {
        let (count, rows, cols) = (37, 75, 5 * 256);
        let (w, x) = (random_blocks(kind, rows, cols, 6), randn(7, &[count, cols], DType::F32));
        let bias = randn(8, &[rows], DType::F32);
        let activation = Some(Activation::Gelu);
        let product = |x: &Tensor| {
            let extras = Extras { bias: Some(&bias), activation, residual: None };
            quantized_linear(x, &w, kind, cols, extras).unwrap()
        };
        for isa in Isa::ALL {
            let run = || {
                let all = bits(&product(&x));
                for (first, len) in [(0, 1), (36, 1), (3, 2), (5, 3), (8, 4), (1, 7), (20, 17)] {
                    let part = bits(&product(&x.narrow(0, first, len).unwrap()));
                    let expected = &all[first * rows..(first + len) * rows];
                    assert!(part == expected, "{kind} {isa:?} rows {first}..+{len}");
                }
                all
            };
            let Some(all) = with_isa(isa, run) else { continue };
            if isa == danaus_runtime::simd::isa() {
                for threads in [1, 2, 3] {
                    let found = with_threads(threads, || bits(&product(&x)));
                    assert!(found == all, "{kind} on {threads} threads");
                }
            }
        }
    }
}

/// A large product with several pieces of k and many tasks, against the engine.
#[test]
fn prompts_agree_with_the_dense_product() {
    let (count, rows, cols) = (70, 500, 1536);
    for kind in [BlockType::Q8_0, BlockType::Q4K] {
        let (w, x) = (random_blocks(kind, rows, cols, 1), randn(2, &[count, cols], DType::F32));
        let y = quantized_linear(&x, &w, kind, cols, Extras::default()).unwrap();
        let exact = oracle(&x, &w, kind, cols, Extras::default());
        assert_close(kind.name(), &y, &exact, 2e-5);
    }
}

#[test]
fn gradients_are_those_of_the_decoded_matrix() -> Result<()> {
    for kind in [BlockType::Q8_0, BlockType::Q6K, BlockType::Iq4Xs] {
        let (count, rows, cols) = (5, 40, 512);
        let (blocks, x) =
            (random_blocks(kind, rows, cols, 2), randn(3, &[count, cols], DType::F32));
        let (x, bias) = (x.affine(0.1, 0.0)?.tracked(), randn(4, &[rows], DType::F32).tracked());
        let residual = randn(5, &[count, rows], DType::F32).tracked();
        let dy = randn(6, &[count, rows], DType::F32);
        let activation = Some(Activation::Silu);
        let extras = Extras { bias: Some(&bias), activation, residual: Some(&residual) };
        let y = quantized_linear(&x, &blocks, kind, cols, extras)?;
        let found = backward_with(&[(&y, &dy)])?;
        let leaves = [&x, &bias, &residual].map(|leaf| wide(&leaf.detach()).tracked());
        let weight = wide(&dequantize(&blocks, kind, cols)?);
        let extras = Extras { bias: Some(&leaves[1]), activation, residual: Some(&leaves[2]) };
        let y = linear::linear(&leaves[0], &weight, extras)?;
        let expected = backward_with(&[(&y, &wide(&dy))])?;
        for (leaf, exact) in [&x, &bias, &residual].into_iter().zip(&leaves) {
            let error = max_relative_error(found.get(leaf).unwrap(), expected.get(exact).unwrap());
            // Forward and backward sums in f32, the slope of the activation between them.
            assert!(error < 5e-5, "{kind}: {error:e}");
        }
        // The transposed product and its gradient.
        let z = randn(7, &[2, rows], DType::F32).tracked();
        let transposed = quantized_linear_transpose(&z, &blocks, kind, cols)?;
        let exact = wide(&z.detach()).matmul(&weight)?;
        assert_close("transpose", &transposed, &exact, 2e-5);
        let dy = randn(8, &[2, cols], DType::F32);
        let found = backward_with(&[(&transposed, &dy)])?;
        let exact = linear::linear(&wide(&dy), &weight, Extras::default())?;
        assert_close("its gradient", found.get(&z).unwrap(), &exact, 2e-5);
    }
    Ok(())
}

#[test]
fn names_and_numbers_are_unique_and_found() {
    for kind in BlockType::ALL {
        assert_eq!(BlockType::from_name(kind.name()).unwrap(), kind);
        assert_eq!(BlockType::from_name(&golden_name(kind)).unwrap(), kind);
        assert_eq!(BlockType::from_ggml(kind.ggml_id()).unwrap(), kind);
        assert_eq!(kind.row_bytes(1024).unwrap(), 1024 / kind.block_len() * kind.block_bytes());
    }
    let message = BlockType::from_name("q9_0").unwrap_err().to_string();
    assert!(message.starts_with("quantized: block_type is q9_0, valid is q4_0, q4_1, q5_0"));
    assert!(BlockType::from_ggml(1).unwrap_err().to_string().contains("39 (mxfp4)"));
}

#[test]
fn bad_arguments_are_named() {
    let blocks = random_blocks(BlockType::Q8_0, 3, 64, 1);
    let message = |result: Result<Tensor>| result.map(|_| ()).unwrap_err().to_string();
    let x = |shape: &[usize], dtype| randn(1, shape, dtype);
    let product = |x: &Tensor, blocks: &Tensor, kind, cols| {
        message(quantized_linear(x, blocks, kind, cols, Extras::default()))
    };
    let good = x(&[2, 64], DType::F32);
    assert_eq!(
        product(&good, &blocks, BlockType::Q8_0, 60),
        "quantized: cols is 60, valid is a multiple of 32, the block of q8_0"
    );
    assert_eq!(
        product(&good, &blocks, BlockType::Q4_0, 64),
        "quantized_linear: blocks has shape [3, 68], expected [rows, 36], 64 columns of q4_0"
    );
    assert_eq!(
        product(&x(&[2, 32], DType::F32), &blocks, BlockType::Q8_0, 64),
        "quantized_linear: x has shape [2, 32], expected [.., 64]"
    );
    assert!(
        product(&x(&[2, 64], DType::F64), &blocks, BlockType::Q8_0, 64).contains("f32 or bf16")
    );
    assert!(product(&good, &good, BlockType::Q8_0, 64).contains("blocks has dtype f32"));
    let six = message(quantize(&x(&[2, 256], DType::F32), BlockType::Q6K));
    assert_eq!(six, "quantize: block_type is q6_k, valid is q8_0, q4_0, q4_k");
    let mut values = vec![0f32; 64];
    values[40] = f32::NAN;
    for (bad, kind) in
        [(f32::NAN, BlockType::Q8_0), (f32::INFINITY, BlockType::Q4_0), (1e38, BlockType::Q8_0)]
    {
        values[40] = bad;
        let x = Tensor::from_slice(&values, [2, 32], &Device::Cpu).unwrap();
        assert!(message(quantize(&x, kind)).contains("in row 1"), "{bad}");
    }
}
