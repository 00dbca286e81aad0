//! Storage, moving, copies, formulas, reductions, indexing, products.

use crate::{FLOATS, assert_same, check, gpu, randn, values};
use danaus::tensor::ops::expr::{Binary, Expr, Unary};
use danaus::tensor::rng::Rng;
use danaus::tensor::{DType, Device, Error, Result, Tensor};

#[test]
fn elements_go_there_and_come_back() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    for dtype in
        [DType::F64, DType::F32, DType::BF16, DType::F16, DType::I64, DType::U8, DType::C64]
    {
        let x = randn(1, &[3, 5, 7], DType::F64).affine(50.0, 100.0)?.to_dtype(dtype)?;
        let there = x.to_device(&device)?;
        assert_eq!(there.device(), device);
        let back = there.to_device(&Device::Cpu)?;
        assert_eq!(back.as_bytes()?, x.as_bytes()?, "{dtype}");
    }
    let x = randn(2, &[4, 6], DType::F32).to_device(&device)?;
    assert!(matches!(x.as_slice::<f32>(), Err(Error::NotOnHost { .. })));
    let view = x.transpose(0, 1)?.narrow(0, 1, 3)?;
    assert_eq!(view.to_vec::<f32>()?, view.to_device(&Device::Cpu)?.to_vec::<f32>()?);
    assert_eq!(x.select(0, 0)?.select(0, 0)?.to_scalar()?, values(&x)[0]);
    assert!(Tensor::zeros([0, 3], DType::F32, &device)?.to_vec::<f32>()?.is_empty());
    Ok(())
}

#[test]
fn constants_are_made_on_the_device() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    assert_eq!(Tensor::full(7i64 << 40, [5], &device)?.to_vec::<i64>()?, [7 << 40; 5]);
    assert_eq!(Tensor::full(2.5f32, [3, 3], &device)?.to_vec::<f32>()?, [2.5; 9]);
    assert_eq!(Tensor::full(true, [9], &device)?.to_vec::<bool>()?, [true; 9]);
    let narrow = half::bf16::from_f32(1.5);
    assert_eq!(Tensor::full(narrow, [17], &device)?.to_vec::<half::bf16>()?, [narrow; 17]);
    assert_eq!(values(&Tensor::zeros([1000], DType::F64, &device)?), [0.0; 1000]);
    assert_eq!(Tensor::arange(5, &device)?.to_vec::<i64>()?, [0, 1, 2, 3, 4]);
    Ok(())
}

#[test]
fn random_numbers_are_the_processors() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let rng = Rng::new(0x1234_5678_9abc_def0, 77);
    let (here, there) =
        (rng.uniform(-2.0, 3.0, [5000])?, rng.uniform_on(-2.0, 3.0, [5000], &device)?);
    assert_eq!(there.to_vec::<f64>()?, here.to_vec::<f64>()?);
    let (here, there) = (rng.normal(1.0, 2.0, [5000])?, rng.normal_on(1.0, 2.0, [5000], &device)?);
    assert_same("normal", &there, &here);
    Ok(())
}

#[test]
fn views_are_copied_as_they_read() {
    let x = randn(1, &[6, 10, 8], DType::F32);
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::C128, DType::U8] {
        let x = x.affine(20.0, 128.0).unwrap().to_dtype(dtype).unwrap();
        let Some(device) = gpu() else { return };
        let there = x.to_device(&device).unwrap();
        let views: [fn(&Tensor) -> Result<Tensor>; 6] = [
            |x| x.transpose(0, 2),
            |x| x.permute(&[1, 2, 0]),
            |x| x.narrow(2, 3, 4),
            |x| x.narrow(0, 1, 3)?.transpose(1, 2),
            |x| x.flip(1),
            |x| x.narrow(1, 2, 1)?.broadcast_to([6, 10, 8]),
        ];
        for (index, view) in views.iter().enumerate() {
            let (here, there) =
                (view(&x).unwrap().copy().unwrap(), view(&there).unwrap().copy().unwrap());
            let there = there.to_device(&Device::Cpu).unwrap();
            assert_eq!(there.as_bytes().unwrap(), here.as_bytes().unwrap(), "{dtype} view {index}");
        }
    }
}

#[test]
fn casts_round_as_on_the_processor() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let special = [
        0.0,
        -0.0,
        1.0,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 512.0,
        65504.0,
        1e6,
        -3.7,
        2.5,
        300.0,
        -200.0,
        1e-40,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        5e18,
        1.0 + 2f64.powi(-9) + 2f64.powi(-40),
    ];
    let x = Tensor::from_slice(&special, [special.len()], &Device::Cpu)?;
    let kinds = [
        DType::F64,
        DType::F32,
        DType::BF16,
        DType::F16,
        DType::I64,
        DType::I32,
        DType::U8,
        DType::I8,
        DType::Bool,
    ];
    for from in kinds {
        let x = x.to_dtype(from)?;
        for to in kinds {
            let (here, there) = (x.to_dtype(to)?, x.to_device(&device)?.to_dtype(to)?);
            let (here, there) = (values(&here), values(&there));
            for (index, (a, b)) in there.iter().zip(&here).enumerate() {
                let same = a == b || (a.is_nan() && b.is_nan());
                assert!(same, "{from} to {to}: {} gives {a}, expected {b}", special[index]);
            }
        }
    }
    Ok(())
}

#[test]
fn every_function_agrees() {
    for dtype in FLOATS {
        let x = randn(3, &[37, 24], dtype);
        for (function, name) in Unary::NAMES {
            // Positive where the function asks for it; away from kinks of the derivative.
            let positive = matches!(function, Unary::Ln | Unary::Sqrt | Unary::Rsqrt);
            let x =
                if positive { x.square().unwrap().affine(1.0, 0.1).unwrap() } else { x.clone() };
            let formula = Expr::input(0).unary(function);
            check(name, &[x], |t| Ok(vec![Tensor::fused(&formula, &[&t[0]])?]));
        }
        let y = randn(4, &[24], dtype);
        for (function, name) in Binary::NAMES {
            let x = x.square().unwrap().affine(1.0, 0.1).unwrap();
            let formula = Expr::input(0).binary(function, Expr::input(1));
            check(name, &[x, y.clone()], |t| Ok(vec![Tensor::fused(&formula, &[&t[0], &t[1]])?]));
        }
    }
}

#[test]
fn broadcasting_reads_in_place() {
    let shapes: [(&[usize], &[usize]); 8] = [
        (&[5, 7], &[7]),
        (&[5, 8], &[5, 1]),
        (&[4, 1, 6], &[3, 1]),
        (&[2, 3, 4, 5], &[3, 1, 5]),
        (&[1], &[1000]),
        (&[], &[3]),
        (&[33, 64], &[64]),
        (&[3, 1, 1, 5, 1], &[1, 4, 2, 1, 6]),
    ];
    for dtype in FLOATS {
        for (a, b) in shapes {
            let inputs = [randn(5, a, dtype), randn(6, b, dtype)];
            check(&format!("{a:?} {b:?}"), &inputs, |t| {
                let formula = Expr::parse("where(x0 > x1, x0 * x1 - 0.5, x0 + 2 * x1)")?;
                Ok(vec![Tensor::fused(&formula, &[&t[0], &t[1]])?])
            });
        }
    }
}

#[test]
fn integers_and_truth_values() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let a = Tensor::from_vec(vec![1i64 << 60, -5, 7, 0], [4], &Device::Cpu)?;
    let b = Tensor::from_vec(vec![(1i64 << 60) + 1, -5, 3, 2], [4], &Device::Cpu)?;
    let (x, y) = (a.to_device(&device)?, b.to_device(&device)?);
    assert_eq!(x.sub(&y)?.to_vec::<i64>()?, a.sub(&b)?.to_vec::<i64>()?);
    assert_eq!(x.lt(&y)?.to_vec::<bool>()?, a.lt(&b)?.to_vec::<bool>()?);
    assert_eq!(x.eq(&y)?.logical_not()?.to_vec::<bool>()?, [true, false, true, true]);
    assert_eq!(x.gt(&y)?.where_cond(&x, &y)?.to_vec::<i64>()?, [(1 << 60) + 1, -5, 7, 2]);
    let refused = x.div(&y).map(drop).unwrap_err();
    assert!(refused.is_not_on_cuda() && refused.to_string().contains("div"), "{refused}");
    Ok(())
}

#[test]
fn joining_padding_and_splitting() {
    for dtype in FLOATS {
        let inputs = [randn(1, &[3, 4, 5], dtype), randn(2, &[3, 2, 5], dtype)];
        check("cat", &inputs, |t| Ok(vec![Tensor::cat(&[&t[0], &t[1]], 1)?]));
        check("pad", &inputs[..1], |t| Ok(vec![t[0].pad(1, 2, 3, 1.5)?]));
        check("split", &inputs[..1], |t| t[0].split(2, &[1, 3, 1]));
        check("roll", &inputs[..1], |t| Ok(vec![t[0].roll(1, 3)?]));
        check("repeat", &inputs[..1], |t| Ok(vec![t[0].repeat(0, 2)?]));
    }
}

#[test]
fn reductions_of_every_shape() {
    for dtype in FLOATS {
        for shape in [
            &[1usize, 1][..],
            &[7, 300],
            &[3, 5000],
            &[2, 70_000],
            &[5000, 3],
            &[40_000, 33],
            &[4, 9, 65],
        ] {
            let x = randn(7, shape, dtype);
            for dim in 0..shape.len() as isize {
                let what = format!("{dtype} {shape:?} along {dim}");
                let inputs = [x.clone()];
                check(&format!("sum {what}"), &inputs, |t| Ok(vec![t[0].sum(dim)?]));
                check(&format!("mean {what}"), &inputs, |t| Ok(vec![t[0].mean(dim)?]));
                check(&format!("max {what}"), &inputs, |t| {
                    Ok(vec![t[0].max(dim)?, t[0].min(dim)?])
                });
                check(&format!("argmax {what}"), &inputs, |t| {
                    Ok(vec![t[0].argmax(dim)?, t[0].argmin(dim)?])
                });
            }
        }
        check("sum of all", &[randn(8, &[123_457], dtype)], |t| Ok(vec![t[0].sum_all()?]));
    }
}

#[test]
fn reductions_have_the_same_bits_on_every_run() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let x = randn(9, &[1 << 20], DType::F32).to_device(&device)?;
    let first = x.sum_all()?.to_vec::<f32>()?;
    for _ in 0..20 {
        assert_eq!(x.sum_all()?.to_vec::<f32>()?, first);
    }
    Ok(())
}

#[test]
fn rows_are_picked_and_added() {
    let ids: Vec<i64> = (0..700).map(|i| if i % 2 == 0 { 3 } else { (i * 31) % 50 }).collect();
    let ids = Tensor::from_vec(ids, [700], &Device::Cpu).unwrap();
    for dtype in FLOATS {
        let inputs = [randn(1, &[50, 1030], dtype), ids.clone()];
        check("index_select", &inputs, |t| Ok(vec![t[0].index_select(0, &t[1])?]));
        let wide = [randn(2, &[3, 50, 5], dtype), ids.clone()];
        check("index_select inside", &wide, |t| Ok(vec![t[0].index_select(1, &t[1])?]));
        let places: Vec<i64> = (0..24).map(|i| (i * 7) % 6).collect();
        let places = Tensor::from_vec(places, [4, 3, 2], &Device::Cpu).unwrap();
        let inputs = [randn(3, &[4, 6, 2], dtype), places, randn(4, &[4, 3, 2], dtype)];
        check("gather", &inputs[..2], |t| Ok(vec![t[0].gather(1, &t[1])?]));
        check("scatter_add", &inputs, |t| Ok(vec![t[0].scatter_add(1, &t[1], &t[2])?]));
        check("scatter", &inputs, |t| Ok(vec![t[0].scatter(1, &t[1], &t[2])?]));
    }
}

#[test]
fn a_bad_index_is_reported_by_the_next_wait() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let x = randn(1, &[5, 3], DType::F32).to_device(&device)?;
    let bad = Tensor::from_vec(vec![1i64, 5, -2], [3], &device)?;
    let picked = x.index_select(0, &bad)?;
    let message = picked.to_vec::<f32>().map(drop).unwrap_err().to_string();
    assert!(message.contains("index_select: index is") && message.contains("0 to 4"), "{message}");
    // The device goes on.
    let good = Tensor::from_vec(vec![4i64], [1], &device)?;
    assert_eq!(x.index_select(0, &good)?.to_vec::<f32>()?, x.select(0, 4)?.to_vec::<f32>()?);
    Ok(())
}

#[test]
fn products_of_every_layout() {
    for dtype in FLOATS {
        let cases: [(&[usize], &[usize]); 6] = [
            (&[17, 33], &[33, 29]),
            (&[1, 64], &[64, 48]),
            (&[64, 48], &[48, 1]),
            (&[3, 17, 8], &[3, 8, 5]),
            (&[2, 3, 16, 8], &[3, 8, 24]),
            (&[5, 16, 8], &[8, 24]),
        ];
        for (a, b) in cases {
            let inputs = [randn(1, a, dtype), randn(2, b, dtype)];
            check(&format!("{dtype} {a:?} {b:?}"), &inputs, |t| Ok(vec![t[0].matmul(&t[1])?]));
        }
        let inputs = [randn(3, &[40, 24], dtype), randn(4, &[32, 24], dtype)];
        check("a b^T", &inputs, |t| Ok(vec![t[0].matmul(&t[1].transpose(0, 1)?)?]));
        let inputs = [randn(3, &[24, 40], dtype), randn(4, &[24, 32], dtype)];
        check("a^T b", &inputs, |t| Ok(vec![t[0].transpose(0, 1)?.matmul(&t[1])?]));
        check("a view that starts inside", &inputs, |t| {
            let a = t[0].narrow(1, 3, 17)?.transpose(0, 1)?;
            Ok(vec![a.matmul(&t[1].narrow(1, 1, 9)?)?])
        });
        check("strides that no product reads", &[randn(5, &[6, 8, 10], dtype)], |t| {
            let a = t[0].select(2, 3)?;
            Ok(vec![
                a.matmul(&t[0].select(1, 2)?.narrow(0, 0, 6)?.transpose(0, 1)?.narrow(0, 0, 8)?)?,
            ])
        });
    }
}

#[test]
fn an_operator_without_a_kernel_says_so() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let x = randn(1, &[8], DType::F32).to_device(&device)?;
    let error = x.cumsum(0, false).map(drop).unwrap_err();
    assert!(error.is_not_on_cuda(), "{error}");
    assert!(error.to_string().contains("to_device"), "{error}");
    let mixed = x.add(&randn(1, &[8], DType::F32)).map(drop).unwrap_err();
    assert!(matches!(mixed, Error::DeviceMismatch { .. }), "{mixed}");
    Ok(())
}
