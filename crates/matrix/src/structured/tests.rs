//! Every format against its dense meaning.

use super::*;
use danaus_kernel::ops::quantized::{BlockType, quantize};
use danaus_tensor::{DType, Device, ParamBuilder};
use danaus_testkit::{assert_close, gradcheck, randn};
use std::collections::BTreeMap;
use std::sync::Arc;

const SHAPE: [usize; 2] = [6, 5];
const PIXELFLY: PixelflySizes = PixelflySizes { block: 2, size: 2, factors: 1, rank: 2 };

fn all() -> Vec<Box<dyn StructuredMatrix>> {
    let build = |format: Format, seed| {
        format.build(&ParamBuilder::init(seed, DType::F64, Device::Cpu), SHAPE, 1.0).unwrap()
    };
    let part = |rows, seed| -> Box<dyn StructuredMatrix> {
        let params = ParamBuilder::init(seed, DType::F64, Device::Cpu).pp(seed);
        Format::Dense.build(&params, [rows, SHAPE[1]], 1.0).unwrap()
    };
    let stacked = Stacked::new(vec![part(2, 3), part(3, 4), part(1, 5)]).unwrap();
    vec![
        build(Format::Dense, 1),
        build(Format::LowRank(2), 2),
        Box::new(stacked),
        build(Format::Monarch(2), 4),
        build(Format::Butterfly, 5),
        build(Format::Kaleidoscope, 6),
        build(Format::Ldr(LdrClass::Subdiagonal, 2), 7),
        build(Format::Ldr(LdrClass::SubdiagonalCorner, 2), 7),
        build(Format::Ldr(LdrClass::Tridiagonal, 1), 7),
        build(Format::Ldr(LdrClass::TridiagonalCorner, 2), 7),
        build(Format::Ldr(LdrClass::Toeplitz, 2), 7),
        build(Format::Ldr(LdrClass::Hankel, 2), 7),
        build(Format::Ldr(LdrClass::Vandermonde, 2), 7),
        build(Format::Pixelfly(PIXELFLY), 8),
    ]
}

fn plain(x: &Tensor, w: &Tensor) -> Tensor {
    let (x, w) = (x.to_vec::<f64>().unwrap(), w.to_vec::<f64>().unwrap());
    let [rows, cols] = SHAPE;
    let y: Vec<f64> = x
        .chunks(cols)
        .flat_map(|x| w.chunks(cols).map(|w| x.iter().zip(w).map(|(a, b)| a * b).sum::<f64>()))
        .collect();
    Tensor::from_slice(&y, [y.len() / rows, rows], &Device::Cpu).unwrap()
}

#[test]
fn products_agree_with_the_dense_matrix() {
    let (x, z) = (randn(3, &[4, 5], DType::F64), randn(4, &[4, 6], DType::F64));
    let ids = Tensor::from_vec(vec![5i64, 0, 5], [3], &Device::Cpu).unwrap();
    for matrix in all() {
        assert_eq!([matrix.rows(), matrix.cols()], SHAPE);
        let w = matrix.to_dense().unwrap();
        let y = matrix.apply(&x, Extras::default()).unwrap();
        assert_close("apply", &y, &plain(&x, &w), 1e-12);
        // <W x, z> = <x, W^T z>
        let left = y.mul(&z).unwrap().sum_all().unwrap();
        let right = matrix.apply_transpose(&z).unwrap().mul(&x).unwrap().sum_all().unwrap();
        assert_close("adjoint", &right, &left, 1e-12);
        let gathered = matrix.gather_rows(&ids).unwrap();
        for (row, id) in [5usize, 0, 5].into_iter().enumerate() {
            let found = gathered.select(0, row).unwrap();
            assert_close("row", &found, &w.select(0, id).unwrap(), 1e-12);
            let chosen = matrix.apply_rows(&x, &ids).unwrap().select(1, row).unwrap();
            assert_close("rows of the product", &chosen, &y.select(1, id).unwrap(), 1e-12);
        }
        let halves = [0, 1].map(|i| matrix.shard_rows(i, 2).unwrap().to_dense().unwrap());
        let joined = Tensor::cat(&[&halves[0], &halves[1]], 0).unwrap();
        assert_close("shards", &joined, &w, 1e-12);
        assert!(matrix.shard_rows(0, 4).is_err() && matrix.shard_rows(2, 2).is_err());
    }
}

#[test]
fn gradients_reach_the_parameters() {
    for matrix in all() {
        let params = matrix.parameters();
        let values: Vec<Tensor> = params.iter().map(|param| param.tensor().detach()).collect();
        let x = randn(5, &[3, 5], DType::F64);
        // The check moves the parameters through the matrix's own handles.
        let y = matrix.apply(&x, Extras::default()).unwrap();
        let ones = Tensor::full(1.0f64, y.shape(), &Device::Cpu).unwrap();
        let gradients = danaus_tensor::backward_with(&[(&y, &ones)]).unwrap();
        for (param, value) in params.iter().zip(&values) {
            let found = gradients.get(&param.tensor()).unwrap().clone();
            let step = 1e-6;
            for index in 0..value.elem_count() {
                let at = |shift: f64| {
                    let mut moved = value.to_vec::<f64>().unwrap();
                    moved[index] += shift;
                    param
                        .set(&Tensor::from_vec(moved, value.shape(), &Device::Cpu).unwrap())
                        .unwrap();
                    matrix
                        .apply(&x, Extras::default())
                        .unwrap()
                        .sum_all()
                        .unwrap()
                        .to_scalar()
                        .unwrap()
                };
                let expected = (at(step) - at(-step)) / (2.0 * step);
                let error = (found.to_vec::<f64>().unwrap()[index] - expected).abs();
                assert!(error < 1e-7, "{} {index}: {error:e}", param.name());
            }
            param.set(value).unwrap();
        }
        gradcheck(
            |t| Ok(vec![matrix.apply_transpose(&t[0])?]),
            &[randn(6, &[2, 6], DType::F64)],
            1e-7,
        );
    }
}

#[test]
fn formats_are_written_and_read() {
    for format in [
        Format::Dense,
        Format::LowRank(7),
        Format::Monarch(4),
        Format::Butterfly,
        Format::Kaleidoscope,
        Format::Ldr(LdrClass::Subdiagonal, 2),
        Format::Ldr(LdrClass::TridiagonalCorner, 3),
        Format::Ldr(LdrClass::Vandermonde, 1),
        Format::Pixelfly(PIXELFLY),
    ] {
        assert_eq!(Format::try_from(String::from(format)).unwrap(), format);
    }
    for bad in
        ["", "lowrank", "lowrank(0)", "lowrank(x)", "monarch(0)", "pixelfly", "pixelfly(8,4,2)"]
    {
        let message = Format::try_from(bad.to_string()).unwrap_err().to_string();
        assert!(message.contains("lowrank(RANK)"), "{message}");
    }
}

/// A source with q, k and v in three formats, and `out` as f16.
fn mixed_source() -> (ParamBuilder, [Tensor; 4]) {
    let [q, k, v] =
        [(1, 12), (2, 4), (3, 4)].map(|(seed, rows)| randn(seed, &[rows, 64], DType::F32));
    let out = randn(4, &[10, 64], DType::F16);
    let (k, v) = (k.to_dtype(DType::BF16).unwrap(), quantize(&v, BlockType::Q8_0).unwrap());
    let named = [("m.q.weight", &q), ("m.k.weight", &k), ("m.v.q8_0", &v), ("m.out.weight", &out)];
    let source: BTreeMap<String, Tensor> =
        named.into_iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
    let params = ParamBuilder::load(Arc::new(source), DType::F32, Device::Cpu).as_stored();
    let v = danaus_kernel::ops::quantized::dequantize(&v, BlockType::Q8_0, 64).unwrap();
    (params.pp("m"), [q, k, v, out])
}

const PARTS: [(&str, usize); 3] = [("q", 12), ("k", 4), ("v", 4)];

#[test]
fn parts_in_three_formats_act_as_one_matrix() {
    let (params, [q, k, v, _]) = mixed_source();
    let matrix = Format::Dense.build_stacked(&params, "qkv", &PARTS, 64, 1.0).unwrap();
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
    let dense = Tensor::cat(&[&wide(&q), &wide(&k), &wide(&v)], 0).unwrap();
    assert_eq!([matrix.rows(), matrix.cols()], [20, 64]);
    assert_close("to_dense", &matrix.to_dense().unwrap(), &dense, 0.0);
    // Stored bytes: 4 a weight, 2 a weight, 34 for 32 weights.
    assert_eq!(matrix.bytes(), 12 * 64 * 4 + 4 * 64 * 2 + 4 * 2 * 34);
    let x = randn(5, &[3, 64], DType::F32);
    let (bias, residual) = (randn(6, &[20], DType::F32), randn(7, &[3, 20], DType::F32));
    let extras = Extras { bias: Some(&bias), activation: None, residual: Some(&residual) };
    let y = matrix.apply(&x, extras).unwrap();
    let exact = wide(&x).matmul(&dense.transpose(0, 1).unwrap()).unwrap();
    let exact = exact.add(&wide(&bias)).unwrap().add(&wide(&residual)).unwrap();
    // Sums of 64 products in f32.
    assert_close("apply", &y, &exact, 2e-6);
    let z = randn(8, &[2, 20], DType::F32);
    let transposed = matrix.apply_transpose(&z).unwrap();
    assert_close("transpose", &transposed, &wide(&z).matmul(&dense).unwrap(), 2e-6);
    let ids = [19i64, 0, 13, 12, 19, 15];
    let chosen = Tensor::from_slice(&ids, [2, 3], &Device::Cpu).unwrap();
    let rows = dense.index_select(0, &chosen.reshape([6]).unwrap()).unwrap();
    let gathered = matrix.gather_rows(&chosen).unwrap();
    assert_eq!(gathered.dims(), [2, 3, 64]);
    assert_close("gather", &gathered.reshape([6, 64]).unwrap(), &rows, 0.0);
    let chosen = chosen.reshape([6]).unwrap();
    let some = matrix.apply_rows(&x, &chosen).unwrap();
    let exact = wide(&x).matmul(&rows.transpose(0, 1).unwrap()).unwrap();
    assert_close("apply_rows", &some, &exact, 2e-6);
    for count in [2, 5, 10] {
        let shards = (0..count).map(|index| matrix.shard_rows(index, count).unwrap());
        let shards: Vec<Tensor> = shards.map(|shard| wide(&shard.to_dense().unwrap())).collect();
        let joined = Tensor::cat(&shards.iter().collect::<Vec<_>>(), 0).unwrap();
        assert_close("shards", &joined, &dense, 0.0);
    }
}

/// A row of the stack has the same bits in every batch, whatever the formats.
#[test]
fn stored_formats_are_invariant() {
    let (params, _) = mixed_source();
    let qkv = Format::Dense.build_stacked(&params, "qkv", &PARTS, 64, 1.0).unwrap();
    let out = Format::Dense.build(&params.pp("out"), [10, 64], 1.0).unwrap();
    assert_eq!(out.parameters()[0].tensor().dtype(), DType::F16);
    let x = randn(5, &[30, 64], DType::F32);
    for matrix in [qkv, out] {
        let all = matrix.apply(&x, Extras::default()).unwrap().to_vec::<f32>().unwrap();
        for (first, len) in [(0, 1), (7, 5), (12, 9)] {
            let part = matrix.apply(&x.narrow(0, first, len).unwrap(), Extras::default()).unwrap();
            let rows = matrix.rows();
            assert_eq!(part.to_vec::<f32>().unwrap(), all[first * rows..(first + len) * rows]);
        }
    }
}

#[test]
fn the_source_decides_what_is_built() {
    let (params, [q, ..]) = mixed_source();
    let dtype = |matrix: &dyn StructuredMatrix| matrix.parameters()[0].tensor().dtype();
    let k = Format::Dense.build(&params.pp("k"), [4, 64], 1.0).unwrap();
    assert_eq!(dtype(&*k), DType::BF16);
    // Gathered rows of a table keep its dtype; an f64 x casts what it meets.
    let ids = Tensor::from_vec(vec![3i64], [1], &Device::Cpu).unwrap();
    assert_eq!(k.gather_rows(&ids).unwrap().dtype(), DType::BF16);
    let v = Format::Dense.build(&params.pp("v"), [4, 64], 1.0).unwrap();
    assert_eq!((v.parameters()[0].name(), dtype(&*v)), ("m.v.q8_0", DType::U8));
    let x = randn(1, &[2, 64], DType::F64);
    for matrix in [k, v] {
        let exact = x.matmul(
            &matrix.to_dense().unwrap().to_dtype(DType::F64).unwrap().transpose(0, 1).unwrap(),
        );
        assert_close("f64", &matrix.apply(&x, Extras::default()).unwrap(), &exact.unwrap(), 1e-13);
    }
    // Without `as_stored`, floats come in the builder's dtype, and blocks stay blocks.
    let source: BTreeMap<String, Tensor> =
        [("k.weight".into(), q.to_dtype(DType::BF16).unwrap())].into();
    let params = ParamBuilder::load(Arc::new(source), DType::F32, Device::Cpu);
    let k = Format::Dense.build(&params.pp("k"), [12, 64], 1.0).unwrap();
    assert_eq!(dtype(&*k), DType::F32);
    // The whole matrix is taken where it is there; new models get it; errors name it.
    let parts = [("q", 6), ("k", 6)];
    let whole = Format::Dense.build_stacked(&params, "k", &parts, 64, 1.0);
    assert!(whole.is_err(), "made twice");
    let new = ParamBuilder::init(1, DType::F32, Device::Cpu);
    let whole = Format::Dense.build_stacked(&new, "qk", &parts, 64, 1.0).unwrap();
    assert_eq!(whole.parameters()[0].name(), "qk.weight");
    let absent = Format::Dense.build_stacked(&params, "qkv", &[("x", 3)], 64, 1.0).map(|_| ());
    assert!(absent.unwrap_err().to_string().contains("qkv.weight is missing"));
    let wrong = Format::Dense.build(&params.pp("k"), [11, 64], 1.0).map(|_| ()).unwrap_err();
    assert!(wrong.to_string().contains("k.weight has shape"), "{wrong}");
}

#[test]
fn matrices_are_quantised_on_the_way() {
    let weight = randn(9, &[6, 256], DType::F32);
    for kind in [BlockType::Q8_0, BlockType::Q4_0, BlockType::Q4K] {
        let matrix = Quantized::from_dense("w", &weight, kind).unwrap();
        assert_eq!(matrix.parameters()[0].name(), format!("w.{kind}"));
        // Half a step of 254 or 15 over a range of about eight; see the encoder's own test.
        let bound = if kind == BlockType::Q8_0 { 0.01 } else { 0.15 };
        assert_close(kind.name(), &matrix.to_dense().unwrap(), &weight, bound);
    }
    let message = Quantized::from_dense("w", &weight, BlockType::Q6K).map(|_| ()).unwrap_err();
    assert!(message.to_string().contains("valid is q8_0, q4_0, q4_k"));
}

const STRUCTURED: [Format; 5] = [
    Format::LowRank(8),
    Format::Monarch(4),
    Format::Butterfly,
    Format::Kaleidoscope,
    Format::Ldr(LdrClass::Subdiagonal, 2),
];

/// Wide, tall (several butterflies side by side) and odd layers.
const LAYERS: [[usize; 2]; 4] = [[64, 64], [48, 100], [200, 64], [70, 33]];

#[test]
fn masters_in_f32_multiply_bf16_as_they_multiply_f32() {
    for format in STRUCTURED {
        for size in LAYERS {
            let params = ParamBuilder::init(3, DType::F32, Device::Cpu);
            let matrix = format.build(&params, size, 1.0).unwrap();
            let x = randn(4, &[5, size[1]], DType::BF16);
            let bias = randn(5, &[size[0]], DType::F32);
            let extras = Extras { bias: Some(&bias), ..Extras::default() };
            let y = matrix.apply(&x, extras).unwrap();
            assert_eq!((y.dtype(), y.dims()), (DType::BF16, &[5, size[0]][..]));
            let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
            let dense = wide(&matrix.to_dense().unwrap());
            let exact = wide(&x).matmul(&dense.transpose(0, 1).unwrap()).unwrap();
            // Weights, vectors between two factors and results are rounded to 2^-9.
            let exact = exact.add(&wide(&bias)).unwrap();
            assert_close(&format!("{format:?} {size:?}"), &y, &exact, 2e-2);
        }
    }
}

#[test]
fn counts_are_those_of_the_parameters_and_new_products_keep_the_variance() {
    for format in STRUCTURED {
        for size in LAYERS {
            let params = ParamBuilder::init(7, DType::F32, Device::Cpu);
            let matrix = format.build(&params, size, 1.0).unwrap();
            let count: usize = matrix.parameters().iter().map(|p| p.tensor().elem_count()).sum();
            assert_eq!(format.elem_count(size[0], size[1]), count, "{format:?} {size:?}");
            if size == [64, 64] {
                let x = randn(8, &[256, 64], DType::F32);
                let y = matrix.apply(&x, Extras::default()).unwrap().to_vec::<f32>().unwrap();
                let variance = y.iter().map(|v| f64::from(v * v)).sum::<f64>() / y.len() as f64;
                // A dense layer has 1/3. Few random parameters stand behind some of the products.
                assert!((0.1..0.9).contains(&variance), "{format:?}: {variance}");
            }
        }
    }
}

/// A butterfly that leaves blocks out, with everything that can follow the product.
#[test]
fn pixelfly_takes_bias_activation_and_residual_along() {
    use danaus_kernel::ops::activation::{Activation, activation};
    let sizes = PixelflySizes { block: 4, size: 4, factors: 1, rank: 3 };
    let params = ParamBuilder::init(3, DType::F64, Device::Cpu);
    let matrix = Format::Pixelfly(sizes).build(&params, [32, 16], 1.0).unwrap();
    assert_eq!(Format::Pixelfly(sizes).elem_count(32, 16), params.params().elem_count());
    let w = matrix.to_dense().unwrap();
    let (x, bias) = (randn(1, &[5, 16], DType::F64), randn(2, &[32], DType::F64));
    let residual = randn(3, &[5, 32], DType::F64);
    for kind in [None, Some(Activation::Silu)] {
        let extras = Extras { bias: Some(&bias), activation: kind, residual: Some(&residual) };
        let mut expected = x.matmul(&w.transpose(0, 1).unwrap()).unwrap().add(&bias).unwrap();
        if let Some(kind) = kind {
            expected = activation(kind, &expected).unwrap();
        }
        let expected = expected.add(&residual).unwrap();
        assert_close("whole", &matrix.apply(&x, extras).unwrap(), &expected, 1e-12);
        let part = |t: &Tensor, dim: isize| t.narrow(dim, 16, 16).unwrap();
        let (bias, residual) = (part(&bias, 0), part(&residual, 1));
        let extras = Extras { bias: Some(&bias), activation: kind, residual: Some(&residual) };
        let shard = matrix.shard_rows(1, 2).unwrap();
        assert_close("part", &shard.apply(&x, extras).unwrap(), &part(&expected, 1), 1e-12);
    }
    let ldr_like = Format::Pixelfly(PixelflySizes { size: 3, ..sizes });
    let message = ldr_like.build(&params.pp("x"), [32, 16], 1.0).err().unwrap().to_string();
    assert!(message.contains("power of two"), "{message}");
}

/// The variance of new products is that of a dense weight: a sum over 2048 outputs of 64 rows.
#[test]
fn new_pixelfly_products_keep_the_variance() {
    let sizes = PixelflySizes { block: 16, size: 16, factors: 2, rank: 64 };
    let build = |format: Format| {
        let params = ParamBuilder::init(11, DType::F32, Device::Cpu);
        format.build(&params, [2048, 512], 1.0).unwrap()
    };
    let x = randn(5, &[64, 512], DType::F32);
    let variance = |format: Format| {
        let y = build(format).apply(&x, Extras::default()).unwrap();
        y.mul(&y).unwrap().mean_all().unwrap().to_scalar().unwrap()
    };
    let ratio = variance(Format::Pixelfly(sizes)) / variance(Format::Dense);
    assert!((0.95..1.05).contains(&ratio), "{ratio}");
}
