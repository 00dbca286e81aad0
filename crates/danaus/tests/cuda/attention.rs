//! Attention: the Hopper kernels against the processor's. Lengths are chosen around the tiles (64, 80,
//! 128, 192), where ranges and masks change.
//!
//! The processor computes in f32 from the same 16-bit inputs. The kernels round probabilities and score
//! gradients to 16 bits before their products, and results once more: each is a relative error of 2^-9
//! (f16: 2^-12) at most, about half of it on average, so that the norm of the difference stays below 2^-7
//! (2^-10) of the result's. f16 also loses what is smaller than 2^-24 of a probability near 1, and of
//! score gradients what is below its smallest number: a factor of 2 covers both here.

use crate::{gpu, randn, values};
use danaus::kernel::ops::attention::{
    AttentionOptions, Fp8, Fp8Scales, attention, attention_varlen, fp8,
};
use danaus::tensor::{DType, Device, Result, Tensor, backward_with, safetensors::TensorFile};

const DTYPES: [(DType, f64); 2] = [(DType::BF16, 1.0 / 128.0), (DType::F16, 1.0 / 512.0)];

/// bf16 results against f32 ones.
pub(crate) fn assert_near(what: &str, found: &Tensor, expected: &Tensor) {
    assert_within(what, found, expected, DTYPES[0].1);
}

fn assert_within(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (mut off, mut size) = (0.0, 0.0);
    for (a, b) in values(found).into_iter().zip(values(expected)) {
        if b.is_infinite() {
            assert_eq!(a, b, "{what}");
            continue;
        }
        off += (a - b) * (a - b);
        size += b * b;
    }
    let (off, size): (f64, f64) = (off, size);
    // A NaN fails too.
    assert!(off.sqrt() <= tolerance * size.sqrt(), "{what}: {} of {}", off.sqrt(), size.sqrt());
}

/// Results and gradients of `work` on 16-bit inputs on the GPU against f32 ones on the processor.
fn check(what: &str, inputs: &[Tensor], work: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>) {
    for (dtype, tolerance) in DTYPES {
        check_in(&format!("{what}, {dtype}"), (dtype, tolerance), inputs, &work);
    }
}

fn check_in(
    what: &str,
    (dtype, tolerance): (DType, f64),
    inputs: &[Tensor],
    work: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
) {
    let (device, half) = (gpu().unwrap(), dtype);
    let run = |device: &Device, dtype: DType| -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let leaf = |input: &Tensor| match input.dtype().is_float() {
            true => Ok(input.to_dtype(half)?.to_dtype(dtype)?.to_device(device)?.tracked()),
            false => input.to_device(device),
        };
        let leaves: Vec<Tensor> = inputs.iter().map(leaf).collect::<Result<_>>()?;
        let outputs = work(&leaves)?;
        let mut pairs = Vec::new();
        for (seed, output) in (100..).zip(&outputs).filter(|(_, output)| output.is_tracked()) {
            let grad = randn(seed, output.dims(), half).to_dtype(output.dtype())?;
            pairs.push((output, grad.to_device(device)?));
        }
        let borrowed: Vec<(&Tensor, &Tensor)> = pairs.iter().map(|(a, b)| (*a, b)).collect();
        let mut grads = Vec::new();
        if !borrowed.is_empty() {
            let found = backward_with(&borrowed)?;
            grads.extend(leaves.iter().filter_map(|leaf| found.get(leaf).cloned()));
        }
        Ok((outputs, grads))
    };
    let (expected, expected_grads) = run(&Device::Cpu, DType::F32).unwrap();
    let (found, found_grads) = run(&device, dtype).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(found_grads.len(), expected_grads.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_within(&format!("{what}, output {index}"), found, expected, tolerance);
    }
    for (index, (found, expected)) in found_grads.iter().zip(&expected_grads).enumerate() {
        assert_within(&format!("{what}, gradient {index}"), found, expected, tolerance);
    }
}

/// Whether the first GPU has the kernels.
fn served() -> bool {
    let Some(device) = gpu() else { return false };
    let chip = device.gpu().unwrap().arch().number();
    if chip != 90 {
        eprintln!("not run: attention needs sm_90a, this is {chip}");
    }
    chip == 90
}

fn windows() -> Vec<AttentionOptions> {
    let window = |window_left, window_right| AttentionOptions {
        window_left,
        window_right,
        ..AttentionOptions::default()
    };
    vec![
        AttentionOptions::default(),
        AttentionOptions::causal(),
        AttentionOptions { window_left: Some(100), ..AttentionOptions::causal() },
        window(Some(64), Some(30)),
        window(None, Some(3)),
        AttentionOptions { softcap: Some(5.0), ..AttentionOptions::causal() },
        AttentionOptions { softmax_scale: Some(0.3), ..AttentionOptions::default() },
    ]
}

fn both(t: &[Tensor], options: &AttentionOptions) -> Result<Vec<Tensor>> {
    let (out, lse) = attention(&t[0], &t[1], &t[2], options)?;
    Ok(vec![out, lse])
}

/// Every window at one head dimension: most of the time goes into compiling.
fn dense_attention(head_dim: usize) {
    if !served() {
        return;
    }
    for (q_len, k_len) in [(1, 77), (130, 391), (391, 130), (256, 256), (200, 192)] {
        for options in windows() {
            let what = format!("d {head_dim}, {q_len} x {k_len}, {:?}", options.softcap);
            let mut inputs = vec![randn(1, &[2, q_len, 4, head_dim], DType::BF16)];
            for seed in [2, 3] {
                inputs.push(randn(seed, &[2, k_len, 2, head_dim], DType::BF16));
            }
            check(&what, &inputs, |t| both(t, &options));
        }
    }
}

#[test]
fn dense_attention_of_every_window_64() {
    dense_attention(64);
}

#[test]
fn dense_attention_of_every_window_128() {
    dense_attention(128);
}

#[test]
fn dense_attention_of_every_window_192() {
    dense_attention(192);
}

#[test]
fn dense_attention_of_every_window_256() {
    dense_attention(256);
}

#[test]
fn packed_sequences_with_empty_ones_and_slack() {
    if !served() {
        return;
    }
    let bounds = |list: [i32; 7]| Tensor::from_vec(list.to_vec(), [7], &Device::Cpu).unwrap();
    let (q_bounds, k_bounds) =
        (bounds([0, 128, 129, 129, 206, 270, 500]), bounds([0, 128, 129, 134, 434, 434, 511]));
    for head_dim in [64, 128, 192, 256] {
        for options in [AttentionOptions::default(), AttentionOptions::causal()] {
            let inputs = [
                randn(1, &[509, 4, head_dim], DType::BF16),
                randn(2, &[600, 2, head_dim], DType::BF16),
                randn(3, &[600, 2, head_dim], DType::BF16),
                q_bounds.clone(),
                k_bounds.clone(),
            ];
            check(&format!("packed, d {head_dim}"), &inputs, |t| {
                let (out, lse) = attention_varlen([&t[0], &t[1], &t[2]], &t[3], &t[4], &options)?;
                Ok(vec![out, lse])
            });
        }
    }
}

#[test]
fn strided_operands_are_read_in_place_or_copied() {
    if !served() {
        return;
    }
    // q, k and v as views of one tensor, and with heads before rows.
    let fused = [randn(1, &[2, 150, 3, 4, 64], DType::BF16)];
    check("fused", &fused, |t| {
        let part = |index| t[0].select(2, index);
        both(&[part(0)?, part(1)?, part(2)?], &AttentionOptions::causal())
    });
    let heads_first = [1, 2, 3].map(|seed| randn(seed, &[2, 4, 150, 64], DType::BF16));
    check("heads first", &heads_first, |t| {
        let rows: Vec<Tensor> = t.iter().map(|x| x.transpose(1, 2)).collect::<Result<_>>()?;
        both(&rows, &AttentionOptions::default())
    });
}

#[test]
fn gradients_have_the_same_bits_on_every_run() {
    if !served() {
        return;
    }
    let device = gpu().unwrap();
    let run = |head_dim: usize| -> Result<Vec<f32>> {
        let leaf = |seed: u64| -> Result<Tensor> {
            Ok(randn(seed, &[1, 1500, 4, head_dim], DType::BF16).to_device(&device)?.tracked())
        };
        let (q, k, v) = (leaf(1)?, leaf(2)?, leaf(3)?);
        let (out, _) = attention(&q, &k, &v, &AttentionOptions::causal())?;
        let grads = out.sum_all()?.backward()?;
        let dq = grads.get(&q).unwrap().to_dtype(DType::F32)?;
        dq.to_vec()
    };
    for head_dim in [128, 256] {
        let first = run(head_dim).unwrap();
        for _ in 0..5 {
            assert_eq!(run(head_dim).unwrap(), first);
        }
    }
}

/// Cosine of the angle between two results.
fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (values(a), values(b));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

/// The FP8 kernels against the same quantised computation in f64. Scores are sums of products of codes
/// whose accumulator on the matrix units keeps about 14 bits, which moves a few probabilities over a
/// rounding edge: 1 - cosine stays below 1e-4 (measured: 7e-5 at most), log-sum-exps within 2^-5 of scores
/// that reach 10.
#[test]
fn fp8_is_the_quantised_computation() {
    if !served() {
        return;
    }
    let device = gpu().unwrap();
    for head_dim in [64, 128, 256] {
        for (q_len, k_len) in [(1, 77), (130, 391), (391, 130), (300, 300)] {
            let window = AttentionOptions { window_left: Some(70), ..AttentionOptions::causal() };
            let cap = AttentionOptions { softcap: Some(5.0), ..AttentionOptions::default() };
            let plain = [AttentionOptions::default(), AttentionOptions::causal(), window, cap];
            for (index, options) in plain.into_iter().enumerate() {
                let dtype = DTYPES[index % 2].0;
                let scales = if index == 1 { Fp8Scales::Head } else { Fp8Scales::Tile };
                let signs = (index != 2).then(|| fp8::signs(3, head_dim).unwrap());
                let eight = Some(Fp8 { scales, signs, tile: None });
                let options = AttentionOptions { fp8: eight, ..options };
                let q = randn(1, &[2, q_len, 4, head_dim], dtype);
                let [k, v] = [2, 3].map(|seed| randn(seed, &[2, k_len, 2, head_dim], dtype));
                let wide = [&q, &k, &v].map(|x| x.to_dtype(DType::F64).unwrap());
                let (expected, expected_lse) =
                    attention(&wide[0], &wide[1], &wide[2], &options).unwrap();
                let [q, k, v] = [q, k, v].map(|x| x.to_device(&device).unwrap());
                let (out, lse) = attention(&q, &k, &v, &options).unwrap();
                let what = format!("d {head_dim}, {q_len} x {k_len}, case {index}");
                let near = cosine(&out, &expected);
                assert!(near >= 0.9999, "{what}: cosine {near}");
                for (a, b) in values(&lse).into_iter().zip(values(&expected_lse)) {
                    assert!(a == b || (a - b).abs() < 1.0 / 32.0, "{what}: lse {a} against {b}");
                }
            }
        }
    }
}

/// Normal numbers, one in a thousand with another of ten times the size on top.
fn with_outliers(seed: u64, shape: &[usize], dtype: DType) -> Tensor {
    let [base, chance, spike] =
        [0, 1, 2].map(|part| values(&randn(100 * seed + part, shape, DType::F64)));
    let rest = chance.into_iter().zip(spike);
    let mixed = base.into_iter().zip(rest).map(|(base, (chance, spike))| {
        // 3.09 standard deviations: one in a thousand.
        base + if chance > 3.09 { 10.0 * spike } else { 0.0 }
    });
    let mixed = Tensor::from_vec(mixed.collect::<Vec<f64>>(), shape, &Device::Cpu).unwrap();
    mixed.to_dtype(dtype).unwrap()
}

/// Log-sum-exps on outliers are those of the quantised computation in f64. Sums on the matrix units keep
/// about 14 bits of their largest term, so a score is off by 2^-13 of the largest score at most, and so is
/// a log-sum-exp; 2^-5 as in the test above where scores are small. Against exact attention the same data
/// are off by what quantising costs, which is printed.
#[test]
fn fp8_log_sum_exps_with_outliers() {
    if !served() {
        return;
    }
    let device = gpu().unwrap();
    for head_dim in [64, 128, 256] {
        for causal in [false, true] {
            for scales in [Fp8Scales::Tile, Fp8Scales::Head] {
                for rotated in [false, true] {
                    let signs = rotated.then(|| fp8::signs(5, head_dim).unwrap());
                    let base = AttentionOptions { causal, ..AttentionOptions::default() };
                    let eight = Some(Fp8 { scales, signs, tile: None });
                    let options = AttentionOptions { fp8: eight, ..base.clone() };
                    let q = with_outliers(1, &[2, 333, 4, head_dim], DType::F16);
                    let [k, v] =
                        [2, 3].map(|seed| with_outliers(seed, &[2, 333, 2, head_dim], DType::F16));
                    let wide = [&q, &k, &v].map(|x| x.to_dtype(DType::F64).unwrap());
                    let on = |options| attention(&wide[0], &wide[1], &wide[2], options).unwrap().1;
                    let (expected, exact) = (values(&on(&options)), values(&on(&base)));
                    let [q, k, v] = [q, k, v].map(|x| x.to_device(&device).unwrap());
                    let found = values(&attention(&q, &k, &v, &options).unwrap().1);
                    let what =
                        format!("d {head_dim}, causal {causal}, {scales:?}, rotated {rotated}");
                    let most = |a: &[f64], b: &[f64]| {
                        let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
                        off.fold(0.0, f64::max)
                    };
                    let largest = expected.iter().fold(0.0f64, |most, lse| most.max(lse.abs()));
                    let off = most(&found, &expected);
                    eprintln!(
                        "{what}: lse up to {largest:.1}, off by {off:.1e}; quantising {:.2}",
                        most(&expected, &exact)
                    );
                    assert!(off <= 1.0 / 32.0 + largest / 8192.0, "{what}: {off} of {largest}");
                }
            }
        }
    }
}

/// Golden case of sheet 03 at a scale a head, where the tiles of the kernel do not matter.
#[test]
fn fp8_is_near_the_golden_case() {
    if !served() {
        return;
    }
    let device = gpu().unwrap();
    // Beside the sources, or where the program was started.
    let folders = [concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden"), "tests/golden"];
    let open =
        |folder| TensorFile::open(format!("{folder}/03-flashattention-3/fp8_outliers.safetensors"));
    let Some(file) = folders.into_iter().find_map(|folder| open(folder).ok()) else {
        eprintln!("not run: the golden files are not here");
        return;
    };
    let tensor = |name: &str| file.tensor(name).unwrap();
    let [q, k, v] = ["q", "k", "v"].map(|name| tensor(name).to_device(&device).unwrap());
    for (name, signs) in [("head_only", None), ("head_incoherent", Some(tensor("sign")))] {
        let eight = Fp8 { scales: Fp8Scales::Head, signs, tile: None };
        let options = AttentionOptions { fp8: Some(eight), ..AttentionOptions::default() };
        let (out, _) = attention(&q, &k, &v, &options).unwrap();
        let near = cosine(&out, &tensor(&format!("{name}_out")));
        assert!(near >= 0.9999, "{name}: cosine {near}");
        let (found, exact) = (values(&out), values(&tensor("out_exact")));
        let squares: f64 = found.iter().zip(&exact).map(|(a, b)| (a - b) * (a - b)).sum();
        let rmse = (squares / found.len() as f64).sqrt();
        let stored = values(&tensor(&format!("{name}_rmse")))[0];
        assert!((rmse / stored - 1.0).abs() < 0.1, "{name}: {rmse} against {stored}");
    }
}

#[test]
fn what_fp8_kernels_do_not_do_is_named() {
    if !served() {
        return;
    }
    let device = gpu().unwrap();
    let refused = |word: &str, shape: &[usize], dtype: DType, eight: Fp8| {
        let x = randn(1, shape, dtype).to_device(&device).unwrap();
        let options = AttentionOptions { fp8: Some(eight), ..AttentionOptions::default() };
        let error = attention(&x, &x, &x, &options).unwrap_err();
        assert!(error.is_not_on_cuda() && error.to_string().contains(word), "{error}");
    };
    refused("f32", &[1, 64, 2, 64], DType::F32, Fp8::default());
    refused("192", &[1, 64, 2, 192], DType::BF16, Fp8::default());
    let tile = Fp8 { tile: Some([64, 32]), ..Fp8::default() };
    refused("fp8_tile", &[1, 64, 2, 64], DType::BF16, tile);
}
