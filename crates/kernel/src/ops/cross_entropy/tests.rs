//! Loss and gradient against the f64 reference, which is checked by difference quotients.

use super::cpu::Backward;
use super::*;
use danaus_runtime::simd::{Isa, Lane, with_isa};
use danaus_runtime::threads;
use danaus_tensor::{DType, Device};
use danaus_testkit::{gradcheck, randn};
use half::bf16;

const IGNORE: i64 = -100;

fn values(len: usize, scale: f64) -> Vec<f64> {
    (0..len).map(|i| scale * (((i * 7919 + 13) % 2003) as f64 / 1001.5 - 1.0)).collect()
}

fn targets(tokens: usize, vocab: usize) -> Vec<i64> {
    (0..tokens).map(|i| if i % 5 == 3 { IGNORE } else { (i * 37 % vocab) as i64 }).collect()
}

fn variants(vocab: usize) -> [CrossEntropy; 3] {
    let plain = CrossEntropy { vocab, ignore_index: IGNORE, label_smoothing: 0.0, z_loss: 0.0 };
    [
        plain,
        CrossEntropy { label_smoothing: 0.1, ..plain },
        CrossEntropy { label_smoothing: 0.05, z_loss: 1e-2, ..plain },
    ]
}

#[test]
fn reference_gradients() {
    let (tokens, vocab) = (5, 7);
    let (logits, targets) = (values(tokens * vocab, 3.0), targets(tokens, vocab));
    let (dloss, dlse) = (values(tokens, 1.0), values(tokens, 0.7));
    for args in variants(vocab) {
        let run = |logits: &[f64]| {
            let (mut loss, mut lse) = (vec![0.0; tokens], vec![0.0; tokens]);
            reference::forward(&args, (logits, &targets), (&mut loss, &mut lse));
            let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
            (dot(&loss, &dloss) + dot(&lse, &dlse), lse)
        };
        let (_, lse) = run(&logits);
        let mut grad = vec![0.0; logits.len()];
        reference::backward(&args, (&logits, &targets, &lse), (&dloss, &dlse), &mut grad);
        for at in 0..logits.len() {
            let at_step = |step: f64| {
                let mut moved = logits.clone();
                moved[at] += step;
                run(&moved).0
            };
            let numeric = (at_step(1e-6) - at_step(-1e-6)) / 2e-6;
            assert!((grad[at] - numeric).abs() < 1e-8, "{args:?} {at}: {} {numeric}", grad[at]);
        }
    }
}

fn compare<T: Lane>(tokens: usize, vocab: usize, tolerance: f64) {
    let narrow = |x: Vec<f64>| -> Vec<T> { x.iter().map(|&x| T::round(x as f32)).collect() };
    let logits = narrow(values(tokens * vocab, 6.0));
    let wide: Vec<f64> = logits.iter().map(|z| f64::from(z.widen())).collect();
    let targets = targets(tokens, vocab);
    let (dloss, dlse) = (values(tokens, 1.0), values(tokens, 0.7));
    let single = |x: &[f64]| -> Vec<f32> { x.iter().map(|&x| x as f32).collect() };
    let (dloss32, dlse32) = (single(&dloss), single(&dlse));
    for args in variants(vocab) {
        let (mut loss, mut lse) = (vec![0.0; tokens], vec![0.0; tokens]);
        reference::forward(&args, (&wide, &targets), (&mut loss, &mut lse));
        let mut grad = vec![0.0; wide.len()];
        reference::backward(&args, (&wide, &targets, &lse), (&dloss, &dlse), &mut grad);
        for isa in Isa::ALL {
            let (mut loss32, mut lse32) = (vec![9f32; tokens], vec![9f32; tokens]);
            let mut grad32 = vec![T::default(); wide.len()];
            let ran = with_isa(isa, || {
                cpu::forward(&args, (&logits, &targets), (&mut loss32, &mut lse32));
                let backward = Backward {
                    args,
                    targets: &targets,
                    lse: &lse32,
                    dloss: &dloss32,
                    dlse: Some(&dlse32),
                };
                cpu::backward(&backward, &logits, &mut grad32);
            });
            if ran.is_none() {
                continue;
            }
            // Sums in f32: losses up to 20 (and sums of logits) carry a few 2^-24 of them.
            for (got, exact) in loss32.iter().zip(&loss).chain(lse32.iter().zip(&lse)) {
                let error = (f64::from(*got) - exact).abs();
                assert!(error < 2e-6 * (1.0 + exact.abs()), "{isa:?} {args:?}: {got} {exact}");
            }
            for (got, exact) in grad32.iter().zip(&grad) {
                let error = (f64::from(got.widen()) - exact).abs();
                assert!(error < tolerance * (1e-2 + exact.abs()), "{isa:?}: {error:e} {exact}");
            }
        }
    }
}

#[test]
fn kernels_equal_the_reference() {
    for (tokens, vocab) in [(1, 1), (6, 10), (11, 17), (3, 1024), (4, 5003)] {
        // The error of lse (up to 20) enters the probabilities relatively; bf16 stores 8 bits.
        compare::<f32>(tokens, vocab, 6e-6);
        compare::<bf16>(tokens, vocab, 1.0 / 250.0);
    }
}

fn run_one(args: &CrossEntropy, logits: &[f32], target: i64) -> (f32, f32, Vec<f32>) {
    let (mut loss, mut lse) = ([0f32], [0f32]);
    let targets = [target];
    cpu::forward(args, (logits, &targets), (&mut loss, &mut lse));
    let mut grad = vec![9f32; logits.len()];
    let backward =
        Backward { args: *args, targets: &targets, lse: &lse, dloss: &[1.0], dlse: None };
    cpu::backward(&backward, logits, &mut grad);
    let mut replaced = logits.to_vec();
    cpu::backward_in_place(&backward, &mut replaced);
    assert!(grad.iter().zip(&replaced).all(|(a, b)| a.to_bits() == b.to_bits()));
    (loss[0], lse[0], grad)
}

#[test]
fn extreme_logits() {
    let infinity = f32::INFINITY;
    for isa in Isa::ALL {
        let ran = with_isa(isa, || {
            let plain = variants(3)[0];
            // A sure prediction: no loss, no gradient; the opposite: the whole gap.
            assert_eq!(run_one(&plain, &[1e4, 0.0, -1e4], 0), (0.0, 1e4, vec![0.0; 3]));
            assert_eq!(run_one(&plain, &[1e4, 0.0, -1e4], 2), (2e4, 1e4, vec![1.0, 0.0, -1.0]));
            // Masked classes.
            let (loss, _, grad) = run_one(&plain, &[-infinity, 2.0, 2.0], 1);
            assert!((loss - 2f32.ln()).abs() < 1e-6);
            assert_eq!(grad[0], 0.0);
            assert_eq!(run_one(&plain, &[-infinity, 0.0, -infinity], 0).0, infinity);
            for broken in [f32::NAN, infinity] {
                let (loss, _, grad) = run_one(&plain, &[0.0, broken, 1.0], 0);
                assert!(loss.is_nan() && grad.iter().any(|g| g.is_nan()));
                let (loss, _, grad) = run_one(&plain, &[0.0, broken, 1.0], IGNORE);
                assert_eq!((loss, grad), (0.0, vec![0.0; 3]));
            }
            // A first block of masked classes only, then the others.
            let mut long = vec![-infinity; 2500];
            long[2400] = 3.0;
            let args = CrossEntropy { vocab: 2500, ..plain };
            assert_eq!(run_one(&args, &long, 2400).0, 0.0);
        });
        assert!(ran.is_some() || isa != Isa::Portable);
    }
}

#[test]
fn reductions() {
    let targets = [1, IGNORE, 0, 2];
    assert_eq!(Reduction::Mean.factor(IGNORE, &targets), 1.0 / 3.0);
    assert_eq!(Reduction::Mean.factor(IGNORE, &[IGNORE]), 1.0);
    assert_eq!(Reduction::Sum.factor(IGNORE, &targets), 1.0);
}

#[test]
fn same_bits_on_any_number_of_threads() {
    let (tokens, vocab) = (200, 333);
    let logits: Vec<f32> = values(tokens * vocab, 5.0).iter().map(|&x| x as f32).collect();
    let targets = targets(tokens, vocab);
    let run = |n| {
        let (mut loss, mut lse) = (vec![0f32; tokens], vec![0f32; tokens]);
        threads::with_threads(n, || {
            cpu::forward(&variants(vocab)[2], (&logits, &targets), (&mut loss, &mut lse));
        });
        (loss, lse)
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn gradients_through_the_tape() -> Result<()> {
    let logits = randn(1, &[2, 3, 5], DType::F64);
    let targets = Tensor::from_vec(vec![0i64, 4, IGNORE, 2, 2, 1], [2, 3], &Device::Cpu)?;
    for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
        let options =
            Options { label_smoothing: 0.1, z_loss: 0.01, reduction, ..Options::default() };
        let run = |t: &[Tensor]| {
            let (loss, lse) = cross_entropy(&t[0], &targets, options)?;
            Ok(vec![loss, lse])
        };
        gradcheck(run, std::slice::from_ref(&logits), 1e-7);
    }
    Ok(())
}

#[test]
fn bf16_logits_give_an_f32_loss() -> Result<()> {
    let logits = randn(1, &[6, 50], DType::BF16).tracked();
    let targets = Tensor::from_vec(vec![0i32, 4, 7, 49, 2, 1], [6], &Device::Cpu)?;
    let (loss, _) = cross_entropy(&logits, &targets, Options::default())?;
    let wide = logits.detach().to_dtype(DType::F64)?.tracked();
    let (exact, _) = cross_entropy(&wide, &targets, Options::default())?;
    assert_eq!(loss.dtype(), DType::F32);
    assert!((loss.to_scalar()? - exact.to_scalar()?).abs() < 1e-5);
    let (found, expected) = (loss.backward()?, exact.backward()?);
    let (found, expected) = (found.get(&logits).unwrap(), expected.get(&wide).unwrap());
    assert_eq!(found.dtype(), DType::BF16);
    // Entries reach 1/6 and are rounded to 8 bits.
    danaus_testkit::assert_close("gradient", found, expected, 1.0 / 1024.0);
    Ok(())
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let logits = randn(1, &[2, 3], DType::F32);
    let targets = |t: [i64; 2]| Tensor::from_vec(t.to_vec(), [2], &Device::Cpu);
    let message = |t: [i64; 2], options: Options| -> Result<String> {
        let result = cross_entropy(&logits, &targets(t)?, options);
        Ok(result.map(|_| ()).unwrap_err().to_string())
    };
    assert_eq!(
        message([0, 3], Options::default())?,
        "cross_entropy: targets is 3, valid is a class below 3, or ignore_index = -100"
    );
    let smooth = Options { label_smoothing: 1.0, ..Options::default() };
    assert!(
        message([0, 1], smooth)?.contains("label_smoothing is 1, valid is 0 or more and below")
    );
    Ok(())
}

/// The fused form against the product and the loss one after the other, values and gradients.
#[test]
fn fused_with_the_product() -> Result<()> {
    let (tokens, dim, vocab) = (300, 24, 41);
    let targets: Vec<i64> = super::tests::targets(tokens, vocab);
    let targets = Tensor::from_vec(targets, [tokens], &Device::Cpu)?;
    let options = Options { label_smoothing: 0.1, z_loss: 1e-3, ..Options::default() };
    let (x64, w64) = (randn(1, &[tokens, dim], DType::F64), randn(2, &[vocab, dim], DType::F64));
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let (x, w) = (x64.to_dtype(dtype)?.tracked(), w64.to_dtype(dtype)?.tracked());
        let wide = |t: &Tensor| t.detach().to_dtype(DType::F64);
        let (xw, ww) = (wide(&x)?.tracked(), wide(&w)?.tracked());
        let logits = crate::ops::linear::linear(&xw, &ww, Default::default())?;
        let (exact, _) = cross_entropy(&logits, &targets, options)?;
        let loss = linear::linear_cross_entropy(&x, &w, &targets, options)?;
        // f32 sums of 24 products and 41 exponentials; bf16 inputs are exact, the gradient is
        // rounded to 8 bits of its largest entries.
        let bound = if dtype == DType::F64 { 1e-12 } else { 1e-5 };
        assert!((loss.to_scalar()? - exact.to_scalar()?).abs() < bound, "{dtype}");
        let (found, expected) =
            (loss.affine(3.0, 0.0)?.backward()?, exact.affine(3.0, 0.0)?.backward()?);
        for (leaf, exact) in [(&x, &xw), (&w, &ww)] {
            let (found, expected) = (found.get(leaf).unwrap(), expected.get(exact).unwrap());
            let error = danaus_testkit::max_relative_error(found, expected);
            let bound = match dtype {
                DType::F64 => 1e-12,
                DType::F32 => 1e-5,
                _ => 1.0 / 128.0,
            };
            assert!(error < bound, "{dtype}: {error:e}");
        }
        let silent =
            danaus_tensor::no_grad(|| linear::linear_cross_entropy(&x, &w, &targets, options))?;
        assert_eq!(silent.to_scalar()?, loss.to_scalar()?);
    }
    let none = Options { reduction: Reduction::None, ..options };
    let refused = linear::linear_cross_entropy(&x64, &w64, &targets, none);
    assert!(refused.map(|_| ()).unwrap_err().to_string().contains("use linear and cross_entropy"));
    Ok(())
}
