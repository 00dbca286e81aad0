//! The gradient of every differentiable elementary operator against central differences in f64.

use danaus_tensor::ops::expr::Expr;
use danaus_tensor::{DType, Device, Result, Tensor};
use danaus_testkit::{gradcheck, randn};

/// Differences at step 1e-5 are good to about 1e-9; values stay near 1.
const TOLERANCE: f64 = 1e-7;

fn normal(seed: u64, dims: &[usize]) -> Tensor {
    randn(seed, dims, DType::F64)
}

/// Between 0.5 and about 2, for functions with a domain.
fn positive(seed: u64, dims: &[usize]) -> Tensor {
    normal(seed, dims).affine(0.4, 0.0).unwrap().exp().unwrap().affine(1.0, 0.3).unwrap()
}

fn index(values: &[i64], dims: &[usize]) -> Tensor {
    Tensor::from_slice(values, dims, &Device::Cpu).unwrap()
}

fn check(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    gradcheck(|inputs| Ok(vec![f(inputs)?]), inputs, TOLERANCE);
}

#[test]
fn unary_functions() {
    let x = [normal(1, &[3, 4])];
    for f in [
        Tensor::neg,
        Tensor::abs,
        Tensor::square,
        Tensor::exp,
        Tensor::sin,
        Tensor::cos,
        Tensor::tanh,
        Tensor::sigmoid,
        Tensor::relu,
        Tensor::softplus,
        Tensor::erf,
        Tensor::sign,
    ] {
        check(&x, |x| f(&x[0]));
        check(&x, |x| f(&x[0].transpose(0, 1)?));
    }
    let x = [positive(2, &[3, 4])];
    for f in [Tensor::ln, Tensor::sqrt, Tensor::rsqrt, Tensor::reciprocal] {
        check(&x, |x| f(&x[0]));
    }
    for exponent in [-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 1.7] {
        check(&x, |x| x[0].pow_scalar(exponent));
    }
    check(&x, |x| x[0].clamp(0.9, 1.4));
    check(&x, |x| x[0].affine(3.0, -1.0));
}

#[test]
fn binary_functions_with_every_broadcast() {
    let shapes: [(&[usize], &[usize]); 6] = [
        (&[3, 4], &[3, 4]),
        (&[3, 4], &[4]),
        (&[3, 4], &[3, 1]),
        (&[], &[2, 3]),
        (&[3, 1], &[1, 4]),
        (&[1], &[2, 1, 3]),
    ];
    for (a, b) in shapes {
        let inputs = [normal(3, a), positive(4, b)];
        for f in [
            Tensor::add,
            Tensor::sub,
            Tensor::mul,
            Tensor::div,
            Tensor::maximum,
            Tensor::minimum,
            Tensor::atan2,
        ] {
            check(&inputs, |x| f(&x[0], &x[1]));
        }
        let inputs = [positive(5, a), normal(6, b)];
        check(&inputs, |x| x[0].pow(&x[1]));
    }
}

#[test]
fn fused_formulas_and_selection() {
    let inputs = [normal(7, &[2, 5]), positive(8, &[5]), normal(9, &[2, 1])];
    for text in [
        "where(x0 > 0, x0 * x1, 0.5 * exp(x0)) + x2",
        "silu(x0) * gelu(x1) - gelu_tanh(x2) * tanh(x0 * x1)",
        "x0 * x1 / (1 + x2^2) + x1^x0",
    ] {
        let expr = Expr::parse(text).unwrap();
        check(&inputs, |x| Tensor::fused(&expr, &[&x[0], &x[1], &x[2]]));
    }
    let mask = normal(10, &[2, 5]).gt(&normal(11, &[5])).unwrap();
    check(&inputs, |x| mask.where_cond(&x[0], &x[1]));
    check(&inputs, |x| x[0].masked_fill(&mask, 3.0));
    check(&inputs, |x| x[0].mul(&mask));
    check(&inputs, |x| x[0].tril(1)?.add(&x[0].triu(-1)?));
}

#[test]
fn reductions() {
    let inputs = [normal(12, &[3, 4, 2])];
    for dim in [0, 1, -1] {
        for f in
            [Tensor::sum, Tensor::mean, Tensor::prod, Tensor::max, Tensor::min, Tensor::logsumexp]
        {
            check(&inputs, |x| f(&x[0], dim));
            check(&inputs, |x| f(&x[0].transpose(0, 2)?, dim));
        }
        check(&inputs, |x| x[0].var(dim, 1));
        check(&inputs, |x| x[0].cumsum(dim, dim == 1));
        check(&inputs, |x| x[0].cumprod(dim));
    }
    check(&inputs, |x| x[0].sum_dims(&[0, -1]));
    check(&inputs, |x| x[0].sum_all());
    check(&inputs, |x| x[0].mean_all());
    check(&inputs, |x| x[0].max_all());
    // Products around zeros: one zero in the first row, two in the second.
    let zeros = vec![0.0, 1.5, -2.0, 0.0, 0.0, 3.0, 1.0, 2.0, -0.5];
    let zeros = [Tensor::from_vec(zeros, [3, 3], &Device::Cpu).unwrap()];
    check(&zeros, |x| x[0].prod(1));
    check(&zeros, |x| x[0].cumprod(1));
}

#[test]
fn indices_and_order() {
    let x = normal(13, &[4, 3]);
    let src = normal(14, &[2, 3]);
    let at = index(&[0, 3, 1, 0, 2, 1], &[2, 3]);
    check(std::slice::from_ref(&x), |x| x[0].gather(0, &at));
    check(&[x.clone(), src.clone()], |x| x[0].scatter_add(0, &at, &x[1]));
    check(&[x.clone(), src.clone()], |x| x[0].scatter(0, &at, &x[1]));
    let rows = index(&[3, 3], &[2]);
    check(std::slice::from_ref(&x), |x| x[0].index_select(0, &rows));
    check(std::slice::from_ref(&x), |x| x[0].transpose(0, 1)?.index_select(1, &rows));
    check(&[x.clone(), src], |x| x[0].index_add(0, &rows, &x[1]));
    check(std::slice::from_ref(&x), |x| Ok(x[0].sort(0, true)?.0));
    check(&[x], |x| Ok(x[0].topk(1, 2, false)?.0));
}

#[test]
fn shapes() {
    let inputs = [normal(15, &[3, 4]), normal(16, &[3, 2])];
    check(&inputs, |x| Tensor::cat(&[&x[0], &x[1]], 1));
    check(&inputs[..1], |x| x[0].pad(0, 1, 2, 5.0));
    check(&inputs[..1], |x| x[0].narrow(1, 1, 2));
    check(&inputs[..1], |x| x[0].repeat(1, 3));
    check(&inputs[..1], |x| x[0].roll(0, 1));
    check(&inputs[..1], |x| x[0].flip(1)?.mul(&x[0]));
    check(&inputs[..1], |x| x[0].chunk(1, 3)?[1].square());
    check(&inputs[..1], |x| x[0].transpose(0, 1)?.contiguous()?.reshape([6, 2]));
}

#[test]
fn products() {
    let shapes: [(&[usize], &[usize]); 6] = [
        (&[2, 3], &[3, 4]),
        (&[5, 2, 3], &[3, 4]),
        (&[2, 3], &[5, 3, 4]),
        (&[2, 1, 2, 3], &[5, 3, 2]),
        (&[5, 2, 3], &[1, 3, 4]),
        (&[3, 0], &[0, 2]),
    ];
    for (a, b) in shapes {
        let inputs = [normal(17, a), normal(18, b)];
        check(&inputs, |x| x[0].matmul(&x[1]));
    }
    let inputs = [normal(19, &[4, 3, 2]), normal(20, &[4, 5, 2])];
    check(&inputs, |x| x[0].matmul(&x[1].transpose(1, 2)?));
    check(&inputs, |x| x[0].permute(&[2, 1, 0])?.matmul(&x[1].permute(&[2, 0, 1])?));
}

#[test]
fn complex_numbers() {
    let inputs = [normal(21, &[2, 3]), normal(22, &[2, 3]), normal(23, &[3, 2])];
    let parts = |z: &Tensor| -> Result<Vec<Tensor>> { Ok(vec![z.real()?, z.imag()?]) };
    gradcheck(
        |x| {
            let (z, w) = (Tensor::complex(&x[0], &x[1])?, Tensor::complex(&x[2], &x[2])?);
            let mut all = parts(&z.matmul(&w)?)?;
            all.extend(parts(&z.mul(&z.conj()?)?.add(&z)?)?);
            all.extend(parts(&z.div(&z.affine(1.0, 5.0)?)?)?);
            all.extend([z.modulus()?, z.angle()?, z.sum(0)?.real()?]);
            Ok(all)
        },
        &inputs,
        TOLERANCE,
    );
}
