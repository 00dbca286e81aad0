//! Every format against its dense meaning.

use super::*;
use danaus_tensor::{DType, Device};
use danaus_testkit::{assert_close, gradcheck, randn};

const SHAPE: [usize; 2] = [6, 5];

fn all() -> Vec<Box<dyn StructuredMatrix>> {
    let build = |format: Format, seed| {
        format.build(&ParamBuilder::init(seed, DType::F64, Device::Cpu), SHAPE, 1.0).unwrap()
    };
    vec![build(Format::Dense, 1), build(Format::LowRank(2), 2)]
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
    for format in [Format::Dense, Format::LowRank(7)] {
        assert_eq!(Format::try_from(String::from(format)).unwrap(), format);
    }
    for bad in ["", "lowrank", "lowrank(0)", "lowrank(x)", "monarch(4)"] {
        let message = Format::try_from(bad.to_string()).unwrap_err().to_string();
        assert!(message.contains("lowrank(RANK)"), "{message}");
    }
}
