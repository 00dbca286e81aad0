//! The rules against PyTorch in f64, against formulas written out by hand, and across thread counts
//! and instruction sets.

use super::*;
use danaus_runtime::simd::{Isa, with_isa};
use danaus_runtime::threads::with_threads;
use danaus_tensor::Device;
use danaus_tensor::rng::Rng;
use danaus_tensor::{Init, ParamBuilder};

const START: [f64; 4] = [0.5, -1.25, 2.0, 0.0];

fn adamw(lr: f64) -> OptimizerConfig {
    OptimizerConfig::AdamW(AdamW { lr, ..AdamW::default() })
}

/// One parameter `w` with these values; it decays.
fn one_param(values: &[f64], shape: &[usize], dtype: DType) -> ParamSet {
    let builder = ParamBuilder::init(0, dtype, Device::Cpu);
    let param = builder.param("w", shape, Init::Constant(0.0)).unwrap();
    let value = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
    param.set(&value.to_dtype(dtype).unwrap()).unwrap();
    builder.params()
}

fn values(params: &ParamSet) -> Vec<f64> {
    let value = params.iter().next().unwrap().tensor().detach();
    value.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap()
}

/// Steps with the gradient `term(t, i) + 0.05 w_i`.
fn steps(
    config: OptimizerConfig,
    params: &ParamSet,
    count: u64,
    term: impl Fn(f64, usize) -> f64,
) -> Vec<f64> {
    let mut optimizer = Optimizer::new(config, params).unwrap();
    for t in 1..=count {
        let now = values(params);
        let grad: Vec<f64> =
            now.iter().enumerate().map(|(i, w)| term(t as f64, i) + 0.05 * w).collect();
        let value = params.iter().next().unwrap().tensor();
        let grad = Tensor::from_slice(&grad, value.shape(), &Device::Cpu).unwrap();
        let grad = grad.to_dtype(value.dtype()).unwrap();
        optimizer.step(&GradientSet(vec![Some(grad)]), 1.0, 1.0).unwrap();
    }
    values(params)
}

fn five(config: OptimizerConfig, dtype: DType) -> Vec<f64> {
    let term = |t: f64, i: usize| [0.1 * t, -0.3, 0.02 * t * t, 0.0][i];
    steps(config, &one_param(&START, &[4], dtype), 5, term)
}

fn close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= tolerance, "{found:?}, not {expected:?}");
    }
}

/// Values of torch 2.15 `torch.optim.AdamW` and `SGD` in f64, five steps, the gradients of [`five`].
#[test]
fn equals_pytorch() {
    let sgd = |momentum, nesterov| {
        OptimizerConfig::Sgd(Sgd { lr: 0.1, momentum, nesterov, weight_decay: 0.0 })
    };
    let cases = [
        (adamw(0.01), [0.4493055750531595, -1.1938659154015054, 1.9420570296309019, 0.0]),
        (sgd(0.9, false), [0.15301819592968752, -0.7791229970710939, 1.6758531206424998, 0.0]),
        (sgd(0.9, true), [0.02942570642114846, -0.6522390716724682, 1.5519964930568573, 0.0]),
        (sgd(0.0, false), [0.3386206340546875, -1.0705534601335938, 1.8409961582424998, 0.0]),
    ];
    for (config, expected) in cases {
        // f64 differs in the order of operations; f32 rounds every one of some thirty.
        close(&five(config.clone(), DType::F64), &expected, 1e-14);
        close(&five(config, DType::F32), &expected, 2e-6);
    }
}

#[test]
fn lion_equals_its_formula() {
    let lion = Lion { lr: 0.01, beta1: 0.9, beta2: 0.99, weight_decay: 0.3 };
    let term = |t: f64, i: usize| [0.1 * t, 0.3 - 0.2 * t, 0.0, 0.0][i];
    let params = one_param(&START, &[4], DType::F64);
    let found = steps(OptimizerConfig::Lion(lion), &params, 6, term);
    let expected: Vec<f64> = (0..4)
        .map(|i| {
            let (mut p, mut m) = (START[i], 0.0f64);
            for t in 1..=6 {
                let g = term(f64::from(t), i) + 0.05 * p;
                let direction: f64 = 0.9 * m + 0.1 * g;
                let sign = if direction == 0.0 { 0.0 } else { direction.signum() };
                p = p * (1.0 - 0.01 * 0.3) - 0.01 * sign;
                m = 0.99 * m + 0.01 * g;
            }
            p
        })
        .collect();
    close(&found, &expected, 1e-14);
}

/// Values of the module's formulas in numpy f64; `torch.optim.Muon`, which iterates in bf16, agrees
/// with them to 2e-4.
#[test]
fn muon_equals_its_formula() {
    let start = [0.5, -1.25, 2.0, 0.25, -0.75, 1.0];
    let direction = [1.0, -2.0, 0.5, 3.0, -1.0, 0.25];
    let cases = [
        (
            [2, 3],
            [
                0.5009840635558696,
                -1.2252482676240106,
                1.9796518813696962,
                0.23030583657275921,
                -0.7477757517252267,
                0.9952575049436978,
            ],
        ),
        (
            [3, 2],
            [
                0.4852831405353108,
                -1.2329923325701504,
                1.9765000041110312,
                0.23635920872107957,
                -0.7329340596231771,
                0.9917035233304367,
            ],
        ),
    ];
    for (shape, expected) in cases {
        let muon = Muon { lr: 0.02, ..Muon::default() };
        let term = |t: f64, i: usize| 0.1 * t * direction[i];
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
            let params = one_param(&start, &shape, dtype);
            let config = OptimizerConfig::Muon(muon.clone());
            close(&steps(config, &params, 3, term), &expected, tolerance);
        }
    }
}

#[test]
fn newton_schulz_flattens_singular_values() {
    let matrix = Rng::new(5, 0).normal(0.0, 1.0, [6, 20]).unwrap();
    let x = muon::orthogonalize(&matrix, 5).unwrap().to_vec::<f64>().unwrap();
    // The quintic leaves singular values within 0.7 .. 1.2, so x x^T is near the identity.
    for i in 0..6 {
        for j in 0..6 {
            let dot: f64 = (0..20).map(|k| x[i * 20 + k] * x[j * 20 + k]).sum();
            let target = if i == j { 1.0 } else { 0.0 };
            assert!((dot - target).abs() < 0.55, "({i}, {j}): {dot}");
        }
    }
}

#[test]
fn scale_schedule_and_decay_group() {
    let builder = ParamBuilder::init(0, DType::F64, Device::Cpu);
    builder.param("w", [3], Init::Constant(1.0)).unwrap();
    builder.param_no_decay("bias", [3], Init::Constant(1.0)).unwrap();
    builder.param("unused", [3], Init::Constant(1.0)).unwrap();
    let params = builder.params();
    let sgd = Sgd { lr: 0.5, momentum: 0.0, nesterov: false, weight_decay: 0.1 };
    let mut optimizer = Optimizer::new(OptimizerConfig::Sgd(sgd), &params).unwrap();
    let grad = || Some(Tensor::full(2.0f64, [3], &Device::Cpu).unwrap());
    optimizer.step(&GradientSet(vec![grad(), grad(), None]), 0.25, 0.5).unwrap();
    let value = |name: &str| params.get(name).unwrap().tensor().to_vec::<f64>().unwrap()[0];
    // lr 0.25, gradient 0.5, decay 1 - 0.025.
    assert_eq!(value("w"), 0.975 - 0.125);
    assert_eq!(value("bias"), 1.0 - 0.125);
    assert_eq!(value("unused"), 1.0);
}

/// All rules on parameters larger than a piece: the same bits on 1 and 3 threads and on every
/// instruction set.
#[test]
fn same_bits_everywhere() {
    let run = |config: &OptimizerConfig| {
        let builder = ParamBuilder::init(3, DType::F32, Device::Cpu);
        builder.param("a", [2, fused::PIECE + 77], Init::Normal(1.0)).unwrap();
        builder.param_no_decay("b", [13], Init::Normal(1.0)).unwrap();
        let params = builder.params();
        let mut optimizer = Optimizer::new(config.clone(), &params).unwrap();
        let mut norm = 0.0;
        for t in 0..3 {
            let grad = |param: &Param| {
                let shape = param.tensor().shape().clone();
                let grad = Rng::new(t, 1).normal(0.0, 1.0, shape).unwrap();
                Some(grad.to_dtype(DType::F32).unwrap())
            };
            let gradients = GradientSet(params.iter().map(grad).collect());
            norm = global_norm(&gradients).unwrap();
            optimizer.step(&gradients, 1.0 / norm, 0.9).unwrap();
        }
        let bits = |param: &Param| -> Vec<u32> {
            param.tensor().to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
        };
        (norm.to_bits(), params.iter().map(bits).collect::<Vec<_>>())
    };
    let muon = Muon { exclude: vec!["a".into()], ..Muon::default() };
    let mut configs: Vec<_> =
        OptimizerConfig::NAMES.iter().map(|name| OptimizerConfig::named(name).unwrap()).collect();
    configs[2] = OptimizerConfig::Muon(muon);
    for config in configs {
        let one = with_threads(1, || run(&config));
        assert!(one == with_threads(3, || run(&config)), "{} on 3 threads", config.name());
        for isa in Isa::ALL {
            let found = with_isa(isa, || run(&config));
            assert!(found.is_none_or(|found| found == one), "{} on {isa:?}", config.name());
        }
    }
}

#[test]
fn global_norm_equals_f64() {
    let gradients: Vec<Option<Tensor>> = [vec![40_001], vec![], vec![7, 9]]
        .into_iter()
        .map(|shape: Vec<usize>| Some(Rng::new(1, 2).normal(0.0, 3.0, shape).unwrap()))
        .collect();
    let square = |t: &Tensor| t.to_vec::<f64>().unwrap().iter().map(|x| x * x).sum::<f64>();
    let expected = gradients.iter().flatten().map(square).sum::<f64>().sqrt();
    let found = global_norm(&GradientSet(gradients)).unwrap();
    assert!((found / expected - 1.0).abs() < 1e-13, "{found}, not {expected}");

    let nan = Tensor::from_vec(vec![1.0f32, f32::INFINITY], [2], &Device::Cpu).unwrap();
    assert!(!global_norm(&GradientSet(vec![None, Some(nan)])).unwrap().is_finite());
}

#[test]
fn bad_settings_are_named() {
    let cases: [(OptimizerConfig, &str); 3] = [
        (adamw(-1.0), "adamw.lr is -1"),
        (OptimizerConfig::Lion(Lion { beta2: 1.0, ..Lion::default() }), "lion.beta2 is 1"),
        (OptimizerConfig::Muon(Muon { iterations: 0, ..Muon::default() }), "muon.iterations is 0"),
    ];
    for (config, message) in cases {
        let error = config.validate().unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
    let error = OptimizerConfig::named("adam").unwrap_err().to_string();
    assert_eq!(error, "optimizer is adam, valid is adamw, lion, muon, sgd");
    let unknown = serde_json::from_str::<OptimizerConfig>(r#"{"name":"adamw","rl":1.0}"#);
    assert!(unknown.unwrap_err().to_string().contains("unknown field `rl`"));
    let half = one_param(&START, &[4], DType::F16);
    let error = Optimizer::new(adamw(0.1), &half).err().unwrap().to_string();
    assert!(error.contains("dtype of parameter w is f16"), "{error}");
}
