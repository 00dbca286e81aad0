//! Golden layouts and layers, dense oracles, gradients, bits, refusals.

use super::*;
use danaus_runtime::threads::with_threads;
use danaus_testkit::{assert_close, golden, gradcheck, randn};

const SHEET: &str = "05-pixelated-butterfly";

/// W from its blocks.
fn dense(blocks: &Tensor, layout: &Layout, [inp, out]: [usize; 2]) -> Tensor {
    let (values, block) =
        (blocks.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap(), layout.block());
    let mut all = vec![0.0; out * inp];
    for (index, (row, col)) in layout.places().enumerate() {
        for at in 0..block * block {
            let (i, j) = (row * block + at / block, col * block + at % block);
            if i < out && j < inp {
                all[i * inp + j] = values[index * block * block + at];
            }
        }
    }
    Tensor::from_vec(all, [out, inp], &Device::Cpu).unwrap()
}

fn butterfly(size: usize, factors: usize, block: usize) -> FlatButterfly {
    FlatButterfly { size, factors, block, global: 0, shuffle: false }
}

#[test]
fn golden_layouts() {
    let file = golden(SHEET, "layouts");
    for case in 0..8 {
        let name = format!("layout_{case}_params_out_in_bflysize_nfactors_block_global_shuffle");
        let p: Vec<usize> =
            file.get(&name).to_vec::<i32>().unwrap().iter().map(|&n| n as usize).collect();
        let global =
            FlatButterfly { global: p[5], shuffle: p[6] != 0, ..butterfly(p[2], p[3], p[4]) };
        let found = global.layout(p[0], p[1]).unwrap();
        let expected = Layout::from_tensor(file.get(&format!("layout_{case}")), p[4]).unwrap();
        assert_eq!(found, expected, "{case}");
    }
}

/// The paper's identities: all strides with a factor's values are the first-order sum of the product of
/// residual factors, and what is left out falls with the square of lambda.
#[test]
fn flat_butterflies_are_the_first_order_of_products() {
    let file = golden(SHEET, "block_butterfly");
    let twiddle = file.get("twiddle").to_vec::<f64>().unwrap();
    let lambda = file.get("lam").to_scalar().unwrap();
    // Eight blocks of 3 x 3; factor f has stride 2^f and twiddles [pair, 2, 2, 3, 3].
    let layout = Arc::new(butterfly(8, 3, 3).layout(24, 24).unwrap());
    let mut blocks = vec![0.0f64; layout.len() * 9];
    for (index, (row, col)) in layout.places().enumerate() {
        let strides = (0..3).filter(|f| row == col || row ^ col == 1 << f);
        for factor in strides {
            let stride = 1usize << factor;
            let (low, side) = (row % stride, |block: usize| block / stride % 2);
            let pair = row / (2 * stride) * stride + low;
            let at = (((factor * 4 + pair) * 2 + side(row)) * 2 + side(col)) * 9;
            (0..9).for_each(|k| blocks[index * 9 + k] += lambda * twiddle[at + k]);
        }
        if row == col {
            (0..3).for_each(|k| blocks[index * 9 + k * 4] += 1.0);
        }
    }
    let blocks = Tensor::from_vec(blocks, [layout.len(), 3, 3], &Device::Cpu).unwrap();
    let expected = file.get("flat_first_order");
    assert_close("flat", &dense(&blocks, &layout, [24, 24]), expected, 1e-12);
    let x = randn(1, &[5, 24], DType::F64);
    let y = block_sparse(&x, &blocks, &layout, 24, None).unwrap();
    assert_close("product", &y, &x.matmul(&expected.transpose(0, 1).unwrap()).unwrap(), 1e-12);
}

#[test]
fn products_match_the_dense_matrix() {
    // Whole blocks and cut ones, blocks above and below a vector, more rows than a tile.
    for ([inp, out], [size, factors, block], rows) in [
        ([48, 96], [8, 2, 4], 7),
        ([40, 72], [4, 1, 8], 7),
        ([64, 128], [4, 2, 16], 300),
        ([90, 60], [2, 1, 32], 5),
        ([80, 40], [2, 1, 20], 9),
        ([128, 128], [2, 1, 64], 1),
    ] {
        let layout = Arc::new(butterfly(size, factors, block).layout(out, inp).unwrap());
        let blocks = randn(1, &[layout.len(), block, block], DType::F64);
        let (x, residual) =
            (randn(2, &[rows, inp], DType::F64), randn(3, &[rows, out], DType::F64));
        let cotangent = randn(4, &[rows, out], DType::F64);
        let w = dense(&blocks, &layout, [inp, out]);
        let expected = x.matmul(&w.transpose(0, 1).unwrap()).unwrap().add(&residual).unwrap();
        let expected_dx = cotangent.matmul(&w).unwrap();
        let all = cotangent.transpose(0, 1).unwrap().matmul(&x).unwrap();
        // bf16 rounds inputs and results (2^-9 each) of sums of up to 96 terms.
        for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-5), (DType::BF16, 3e-2)] {
            let label = format!("{inp} to {out}, block {block}, {dtype}");
            let cast = |t: &Tensor| t.to_dtype(dtype).unwrap();
            let (x, blocks) = (cast(&x).tracked(), cast(&blocks).tracked());
            let residual = cast(&residual).tracked();
            let y = block_sparse(&x, &blocks, &layout, out, Some(&residual)).unwrap();
            assert_close(&label, &y, &expected, tolerance);
            let grads = danaus_tensor::backward_with(&[(&y, &cast(&cotangent))]).unwrap();
            assert_close(&label, grads.get(&x).unwrap(), &expected_dx, tolerance);
            assert_close(&label, grads.get(&residual).unwrap(), &cotangent, tolerance);
            // The gradient is the dense one on the blocks, and zero where the matrix ends.
            let dblocks = dense(grads.get(&blocks).unwrap(), &layout, [inp, out]);
            let ones = Tensor::full(1.0f64, blocks.shape(), &Device::Cpu).unwrap();
            let mask = dense(&ones, &layout, [inp, out]);
            assert_close(&label, &dblocks, &all.mul(&mask).unwrap(), tolerance);
        }
    }
}

#[test]
fn gradients_match_differences() {
    let layout = Arc::new(butterfly(4, 1, 2).layout(7, 8).unwrap());
    let inputs = [
        randn(1, &[3, 8], DType::F64),
        randn(2, &[layout.len(), 2, 2], DType::F64),
        randn(3, &[3, 7], DType::F64),
    ];
    let plain = |t: &[Tensor]| Ok(vec![block_sparse(&t[0], &t[1], &layout, 7, Some(&t[2]))?]);
    gradcheck(plain, &inputs, 1e-6);
    let inputs = [
        randn(1, &[3, 8], DType::F64),
        randn(2, &[layout.len(), 2, 2], DType::F64),
        randn(3, &[2, 8], DType::F64),
        randn(4, &[7, 2], DType::F64),
        randn(5, &[1], DType::F64),
        randn(6, &[7], DType::F64),
    ];
    let scalar = |t: &[Tensor]| {
        let (low_rank, gate) = ([&t[2], &t[3]], Gate::Scalar(&t[4]));
        let layout = layout.clone();
        let layer = Pixelfly { layout, blocks: &t[1], low_rank, gate, bias: Some(&t[5]) };
        Ok(vec![pixelfly(&t[0], &layer)?])
    };
    gradcheck(scalar, &inputs, 1e-6);
}

#[test]
fn bits_do_not_depend_on_threads_or_other_rows() {
    let layout = Arc::new(butterfly(8, 2, 8).layout(64, 64).unwrap());
    let blocks = randn(1, &[layout.len(), 8, 8], DType::F32).tracked();
    let x = randn(2, &[200, 64], DType::F32).tracked();
    let bits = |t: &Tensor| -> Vec<u32> {
        t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    let run = || {
        let y = block_sparse(&x, &blocks, &layout, 64, None).unwrap();
        let grads = danaus_tensor::backward_with(&[(&y, &y.detach())]).unwrap();
        [bits(&y), bits(grads.get(&x).unwrap()), bits(grads.get(&blocks).unwrap())]
    };
    let whole = with_threads(1, run);
    assert_eq!(whole, with_threads(3, run));
    let row = x.detach().narrow(0, 150, 1).unwrap();
    let alone = block_sparse(&row, &blocks.detach(), &layout, 64, None).unwrap();
    assert_eq!(bits(&alone), whole[0][150 * 64..151 * 64]);
}

#[test]
fn layouts_are_balanced_and_symmetric() {
    for (size, factors) in [(2, 1), (8, 2), (16, 4), (64, 3)] {
        let layout = butterfly(size, factors, 4).layout(4 * size, 4 * size).unwrap();
        assert!((0..size).all(|row| layout.row(row).count() == factors + 1));
        let mut flipped: Vec<(usize, usize)> = layout.places().map(|(i, j)| (j, i)).collect();
        flipped.sort_unstable();
        assert!(flipped.iter().copied().eq(layout.places()));
        assert_eq!(layout.density(), (factors + 1) as f64 / size as f64);
    }
}

#[test]
fn bad_arguments_are_refused_by_name() {
    let message = |butterfly: FlatButterfly, out: usize, inp: usize| {
        butterfly.layout(out, inp).unwrap_err().to_string()
    };
    assert!(message(butterfly(6, 1, 8), 48, 48).contains("power of two"));
    assert!(message(butterfly(8, 4, 8), 64, 64).contains("1..=3"));
    assert!(message(butterfly(8, 0, 8), 64, 64).contains("1..=3"));
    assert!(message(butterfly(16, 2, 8), 40, 64).contains("whole blocks of 8, 40"));
    assert!(message(butterfly(8, 2, 0), 64, 64).contains("block"));
    let global = FlatButterfly { global: 65, ..butterfly(8, 2, 8) };
    assert!(message(global, 64, 64).contains("0..=64"));
    let layout = Arc::new(butterfly(4, 1, 8).layout(32, 32).unwrap());
    let blocks = randn(1, &[layout.len(), 8, 8], DType::F32);
    let x = |n: usize| randn(2, &[3, n], DType::F32);
    let refused = |x: &Tensor, blocks: &Tensor, out: usize| {
        block_sparse(x, blocks, &layout, out, None).unwrap_err().to_string()
    };
    assert!(refused(&x(33), &blocks, 32).contains("25..=32 for 4 blocks of 8"));
    assert!(refused(&x(32), &blocks, 24).contains("out is 24"));
    assert!(refused(&x(32), &blocks.narrow(0, 0, 3).unwrap(), 32).contains("blocks"));
    assert!(refused(&x(32), &blocks.to_dtype(DType::F64).unwrap(), 32).contains("f32 as x"));
}
