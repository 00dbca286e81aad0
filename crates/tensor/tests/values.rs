//! Elementary operators against plain computations in f64, on strided, broadcast and empty inputs.

use danaus_runtime::{simd, threads};
use danaus_tensor::registry::Args;
use danaus_tensor::{DType, Device, Tensor, ops};
use danaus_testkit::{assert_close, randn};

const CPU: &Device = &Device::Cpu;

fn list(values: &[f64]) -> Tensor {
    Tensor::from_slice(values, [values.len()], CPU).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().to_vec().unwrap()
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    tensor.to_dtype(DType::I64).unwrap().to_vec().unwrap()
}

/// The same tensor under every layout: row-major, transposed, every second row, reversed, offset.
fn layouts(x: &Tensor) -> Vec<Tensor> {
    let (rows, columns) = (x.dims()[0] as isize, x.dims()[1]);
    let turned = x.transpose(0, 1).unwrap().copy().unwrap().transpose(0, 1).unwrap();
    let flipped = x.flip(1).unwrap().copy().unwrap().flip(1).unwrap();
    let padded = x.pad(1, 3, 2, 9.0).unwrap().pad(0, 1, 0, 9.0).unwrap();
    let inside = padded.narrow(0, 1, rows as usize).unwrap().narrow(1, 3, columns).unwrap();
    vec![x.clone(), turned, flipped, inside]
}

#[test]
fn elementwise_in_every_layout_dtype_and_instruction_set() {
    let (a, b) = (randn(1, &[37, 1031], DType::F64), randn(2, &[37, 1031], DType::F64));
    let expected: Vec<f64> =
        numbers(&a).iter().zip(numbers(&b)).map(|(a, b)| a * b + a.tanh() - b.exp()).collect();
    let expected = Tensor::from_vec(expected, [37, 1031], CPU).unwrap();
    // Rounding of inputs and results: 2^-8 for bf16, 2^-11 for f16, 2^-24 for f32, relative to 30.
    for (dtype, tolerance) in
        [(DType::F64, 1e-14), (DType::F32, 4e-7), (DType::BF16, 1.6e-2), (DType::F16, 2e-3)]
    {
        let (a, b) = (a.to_dtype(dtype).unwrap(), b.to_dtype(dtype).unwrap());
        for isa in simd::Isa::ALL {
            simd::with_isa(isa, || {
                for (a, b) in layouts(&a).iter().zip(layouts(&b).iter().rev()) {
                    let y = a.mul(b).unwrap().add(&a.tanh().unwrap()).unwrap();
                    let y = y.sub(&b.exp().unwrap()).unwrap();
                    assert_close("elementwise", &y, &expected, tolerance);
                }
            });
        }
    }
}

#[test]
fn broadcasts_read_the_right_elements() {
    let shapes: [(&[usize], &[usize]); 9] = [
        (&[5, 700], &[700]),
        (&[5, 700], &[5, 1]),
        (&[5, 700], &[]),
        (&[700, 3], &[3]),
        (&[700, 3], &[700, 1]),
        (&[4, 1, 6], &[5, 1]),
        (&[2, 3, 4], &[2, 1, 4]),
        (&[0, 3], &[3]),
        (&[1, 1], &[1]),
    ];
    for (a, b) in shapes {
        let (a, b) = (randn(3, a, DType::F32), randn(4, b, DType::F32));
        let shape = a.shape().broadcast(b.shape()).unwrap();
        let stretch = |t: &Tensor| numbers(&t.broadcast_to(&shape).unwrap().copy().unwrap());
        let expected: Vec<f64> =
            stretch(&a).iter().zip(stretch(&b)).map(|(a, b)| f64::from((a - b) as f32)).collect();
        assert_eq!(numbers(&a.sub(&b).unwrap()), expected);
        let negated: Vec<f64> = expected.iter().map(|y| -y).collect();
        assert_eq!(numbers(&b.sub(&a).unwrap()), negated);
    }
}

#[test]
fn special_values() {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let x = list(&[nan, inf, -inf, 0.0, -1.0]);
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let x = x.to_dtype(dtype).unwrap();
        let one = list(&[1.0]).to_dtype(dtype).unwrap();
        assert_eq!(integers(&x.gt(&one).unwrap()), [0, 1, 0, 0, 0]);
        assert_eq!(integers(&x.ne(&x).unwrap()), [1, 0, 0, 0, 0]);
        let larger = numbers(&x.maximum(&one).unwrap());
        assert!(larger[0].is_nan() && larger[1..] == [inf, 1.0, 1.0, 1.0]);
        assert!(numbers(&one.minimum(&x).unwrap())[0].is_nan());
        assert!(numbers(&x.max(0).unwrap())[0].is_nan());
        assert_eq!(integers(&x.argmin(0).unwrap()), [0]);
        assert_eq!(integers(&x.argsort(0, false).unwrap()), [2, 4, 3, 1, 0]);
        assert_eq!(integers(&x.argsort(0, true).unwrap()), [0, 1, 3, 4, 2]);
        let clamped = numbers(&x.clamp(-0.5, 2.0).unwrap());
        assert!(clamped[0].is_nan() && clamped[1..] == [2.0, -0.5, 0.0, -0.5]);
        let finite = x.narrow(0, 1, 4).unwrap();
        assert_eq!(numbers(&finite.logsumexp(0).unwrap()), [inf]);
        assert_eq!(numbers(&finite.narrow(0, 1, 1).unwrap().logsumexp(0).unwrap()), [-inf]);
    }
    let big = Tensor::from_vec(vec![(1i64 << 60) + 1, 1 << 60], [2], CPU).unwrap();
    assert_eq!(integers(&big.gt(&big.flip(0).unwrap()).unwrap()), [1, 0]);
    assert_eq!(integers(&big.maximum(&big.flip(0).unwrap()).unwrap()), [(1 << 60) + 1; 2]);
}

#[test]
fn reductions_of_every_extent() {
    for dims in [&[3, 5, 7][..], &[1, 100_001], &[100_001, 1], &[70_000, 3], &[2, 3, 600], &[9, 0]]
    {
        let x = randn(5, dims, DType::F32);
        for dim in 0..dims.len() {
            let outer: usize = dims[..dim].iter().product();
            let inner: usize = dims[dim + 1..].iter().product();
            let values = numbers(&x);
            let fold = |start: f64, f: fn(f64, f64) -> f64| -> Vec<f64> {
                let at = |o: usize, k: usize, i: usize| values[(o * dims[dim] + k) * inner + i];
                let one = |o, i| (0..dims[dim]).fold(start, |state, k| f(state, at(o, k, i)));
                (0..outer * inner).map(|p| one(p / inner, p % inner)).collect()
            };
            let dim = dim as isize;
            let check = |what, found: Tensor, expected: Vec<f64>, tolerance| {
                let expected = Tensor::from_vec(expected, found.shape(), CPU).unwrap();
                assert_close(what, &found, &expected, tolerance);
            };
            // One rounding to f32 of a sum kept in f64.
            check("sum", x.sum(dim).unwrap(), fold(0.0, |s, v| s + v), 1e-7);
            check("prod", x.prod(dim).unwrap(), fold(1.0, |s, v| s * v), 1e-7);
            if dims[dim as usize] > 0 {
                check("max", x.max(dim).unwrap(), fold(f64::NEG_INFINITY, f64::max), 0.0);
                check("min", x.min(dim).unwrap(), fold(f64::INFINITY, f64::min), 0.0);
                let index = x.argmax(dim).unwrap().unsqueeze(dim).unwrap();
                let picked = x.gather(dim, &index).unwrap().squeeze(dim).unwrap();
                check("argmax", picked, fold(f64::NEG_INFINITY, f64::max), 0.0);
            } else {
                assert!(x.max(dim).is_err());
            }
        }
    }
    let truth = Tensor::from_vec(vec![true, false, false, false], [2, 2], CPU).unwrap();
    assert_eq!(integers(&truth.any(1).unwrap()), [1, 0]);
    assert_eq!(integers(&truth.all(0).unwrap()), [0, 0]);
    let none = truth.narrow(1, 0, 0).unwrap();
    assert_eq!(
        (integers(&none.any(1).unwrap()), integers(&none.all(1).unwrap())),
        (vec![0; 2], vec![1; 2])
    );
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let x = randn(6, &[513, 1025], DType::F32);
    let index = Tensor::range(0.0, 1026.0, 2.0, DType::I64, CPU).unwrap();
    let results = |n: usize| {
        threads::with_threads(n, || {
            let folded = x.sum(0).unwrap().add(&x.mean(0).unwrap()).unwrap();
            let added = x.index_add(0, &index.clamp_to(512), &x).unwrap();
            let all = [x.sum_all().unwrap(), folded, x.cumsum(1, false).unwrap(), added];
            all.iter().flat_map(numbers).map(f64::to_bits).collect::<Vec<_>>()
        })
    };
    assert!(results(1) == results(2));
}

trait ClampTo {
    /// Integer indices limited to `last`, so that many of them agree.
    fn clamp_to(&self, last: i64) -> Tensor;
}

impl ClampTo for Tensor {
    fn clamp_to(&self, last: i64) -> Tensor {
        self.minimum(&Tensor::scalar(last, CPU).unwrap()).unwrap()
    }
}

#[test]
fn indices() {
    let x = Tensor::range(0.0, 12.0, 1.0, DType::F32, CPU).unwrap().reshape([4, 3]).unwrap();
    let rows = Tensor::from_vec(vec![2i32, 0, 2], [3], CPU).unwrap();
    let picked = x.index_select(0, &rows).unwrap();
    assert_eq!(numbers(&picked), [6.0, 7.0, 8.0, 0.0, 1.0, 2.0, 6.0, 7.0, 8.0]);
    let turned = x.transpose(0, 1).unwrap().index_select(1, &rows).unwrap();
    assert_eq!(numbers(&turned), numbers(&picked.transpose(0, 1).unwrap()));
    let added = x.index_add(0, &rows, &picked).unwrap();
    assert_eq!(numbers(&added)[..9], [0.0, 2.0, 4.0, 3.0, 4.0, 5.0, 18.0, 21.0, 24.0]);
    let at = Tensor::from_vec(vec![0i64, 0, 2, 1], [4, 1], CPU).unwrap();
    assert_eq!(numbers(&x.gather(1, &at).unwrap()), [0.0, 3.0, 8.0, 10.0]);
    let one = Tensor::full(-1.0f32, [4, 1], CPU).unwrap();
    let written = x.scatter(1, &at, &one).unwrap();
    assert_eq!(numbers(&written)[..6], [-1.0, 1.0, 2.0, -1.0, 4.0, 5.0]);
    let error = x.index_select(1, &rows.affine_int(2)).unwrap_err().to_string();
    assert_eq!(
        error,
        "index_select: index is 4 at position 0, valid is 0..3, the size of the indexed dimension"
    );
    assert!(x.gather(0, &one).is_err() && x.gather(0, &at).is_err());
    let hot = rows.one_hot(3, DType::F32).unwrap();
    assert_eq!(numbers(&hot), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    // Sums of bf16 are kept in f32: 300 ones do not stop at 256.
    let ones = Tensor::full(half::bf16::ONE, [300], CPU).unwrap();
    let zeros = Tensor::zeros([300], DType::I64, CPU).unwrap();
    let sum = Tensor::zeros([1], DType::BF16, CPU).unwrap().index_add(0, &zeros, &ones).unwrap();
    assert_eq!(numbers(&sum), [300.0]);
}

trait AffineInt {
    fn affine_int(&self, factor: i32) -> Tensor;
}

impl AffineInt for Tensor {
    fn affine_int(&self, factor: i32) -> Tensor {
        self.mul(&Tensor::scalar(factor, CPU).unwrap()).unwrap()
    }
}

#[test]
fn order() {
    let x = randn(7, &[5, 333, 2], DType::F32).affine(4.0, 0.0).unwrap().round().unwrap();
    for (dim, descending) in [(0, false), (1, true), (2, true), (1, false)] {
        let (sorted, index) = x.sort(dim, descending).unwrap();
        let moved = x.transpose(dim, -1).unwrap();
        let size = moved.dims()[2];
        let mut expected_index = Vec::new();
        for row in numbers(&moved).chunks(size) {
            let mut order: Vec<usize> = (0..size).collect();
            let compare =
                |a: f64, b: f64| if descending { b.total_cmp(&a) } else { a.total_cmp(&b) };
            order.sort_by(|&a, &b| compare(row[a] + 0.0, row[b] + 0.0));
            expected_index.extend(order.iter().map(|&index| index as i64));
        }
        assert_eq!(integers(&index.transpose(dim, -1).unwrap()), expected_index);
        let (best, best_index) = x.topk(dim, 2, descending).unwrap();
        assert_eq!(numbers(&best), numbers(&sorted.narrow(dim, 0, 2).unwrap()));
        assert_eq!(integers(&best_index), integers(&index.narrow(dim, 0, 2).unwrap()));
    }
    assert!(x.topk(0, 6, true).unwrap_err().to_string().contains("k is 6, valid is 0..=5"));
}

#[test]
fn products_of_every_layout_and_dtype() {
    let (a, b) = (randn(8, &[3, 17, 29], DType::F64), randn(9, &[29, 13], DType::F64));
    let (x, w) = (numbers(&a), numbers(&b));
    let cell =
        |row: usize, column: usize| (0..29).map(|k| x[row * 29 + k] * w[k * 13 + column]).sum();
    let expected: Vec<f64> = (0..51 * 13).map(|p| cell(p / 13, p % 13)).collect();
    let expected = Tensor::from_vec(expected, [3, 17, 13], CPU).unwrap();
    for (dtype, tolerance) in
        [(DType::F64, 1e-14), (DType::F32, 1e-6), (DType::BF16, 1.5e-2), (DType::F16, 2e-3)]
    {
        let (a, b) = (a.to_dtype(dtype).unwrap(), b.to_dtype(dtype).unwrap());
        for b in layouts(&b) {
            assert_close("matmul", &a.matmul(&b).unwrap(), &expected, tolerance);
            let turned = b.transpose(0, 1).unwrap().matmul(&a.transpose(1, 2).unwrap()).unwrap();
            assert_close("matmul", &turned.transpose(1, 2).unwrap(), &expected, tolerance);
        }
    }
    let zeros = Tensor::zeros([2, 3], DType::F32, CPU).unwrap();
    assert!(zeros.matmul(&zeros).unwrap_err().to_string().contains("b has shape [2, 3]"));
}

#[test]
fn copies_of_every_layout() {
    for dims in [&[65, 130][..], &[4, 70, 33], &[2, 3, 40, 50], &[1, 1], &[3, 0]] {
        let count = dims.iter().product::<usize>() as f64;
        let x = Tensor::range(0.0, count, 1.0, DType::I32, CPU).unwrap().reshape(dims).unwrap();
        for dtype in [DType::I32, DType::I64, DType::F16, DType::U8, DType::C128] {
            let x = if dtype == DType::C128 { x.to_dtype(DType::F64).unwrap() } else { x.clone() };
            let x = x.to_dtype(dtype).unwrap();
            for (a, b) in [(0, 1), (0, -1), (-2, -1)] {
                let turned = x.transpose(a, b).unwrap();
                let copied = turned.copy().unwrap();
                assert!(copied.is_contiguous());
                danaus_tensor::match_dtype!(dtype, T => {
                    assert!(copied.to_vec::<T>().unwrap() == turned.to_vec::<T>().unwrap());
                });
            }
        }
    }
}

#[test]
fn every_specification_has_a_working_example() {
    let x = randn(10, &[2, 3], DType::F32);
    for spec in ops::SPECS {
        let tensor = |arg: &danaus_tensor::registry::Arg| {
            let value = if arg.name == "index" || arg.dtypes == [DType::I32, DType::I64] {
                let width = if arg.shape == "count" { vec![3] } else { vec![2, 3] };
                Tensor::zeros(width, DType::I64, CPU).unwrap()
            } else if arg.dtypes == [DType::Bool] {
                x.gt(&x.flip(0).unwrap()).unwrap()
            } else if arg.dtypes == [DType::C64, DType::C128] {
                Tensor::complex(&x, &x).unwrap()
            } else {
                x.clone()
            };
            let square = spec.name == "matmul" && arg.name == "b";
            let value = if square { value.transpose(0, 1).unwrap() } else { value };
            (arg.name.to_string(), value)
        };
        let tensors = spec.inputs.iter().filter(|arg| !arg.optional).map(tensor).collect();
        let set =
            if spec.name == "fused" { vec![("expr".into(), "exp(x0)".into())] } else { vec![] };
        let args = Args::new(spec, tensors, set.into_iter().collect()).unwrap();
        let outputs = (spec.call)(&args).unwrap_or_else(|error| panic!("{}: {error}", spec.name));
        assert_eq!(outputs.len(), spec.outputs.len(), "{}", spec.name);
    }
}
