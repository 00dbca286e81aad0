//! The recurrence written out, the quadratic form, initial values and refusals.

use super::*;
use danaus_tensor::backward_with;
use danaus_testkit::{assert_close, gradcheck, randn};

const D_MODEL: usize = 12;
const KINDS: [LinearAttentionKind; 3] =
    [LinearAttentionKind::Linear, LinearAttentionKind::RetNet, LinearAttentionKind::Gated];

fn config() -> LinearAttentionConfig {
    LinearAttentionConfig {
        n_heads: 3,
        head_dim: Some(6),
        value_dim: Some(5),
        ..LinearAttentionConfig::default()
    }
}

fn made(kind: LinearAttentionKind) -> (LinearAttention, ParamBuilder) {
    let params = ParamBuilder::init(5, DType::F64, Device::Cpu);
    let mixer = LinearAttention::build(&params, kind, &config(), D_MODEL, Format::Dense, (1.0, 64));
    (mixer.unwrap(), params)
}

fn values(params: &ParamBuilder, name: &str) -> Vec<f64> {
    params.params().get(name).map_or(Vec::new(), |param| param.tensor().to_vec::<f64>().unwrap())
}

/// One sequence in plain loops, token by token.
fn reference(kind: LinearAttentionKind, params: &ParamBuilder, x: &[f64]) -> Vec<f64> {
    const H: usize = 3;
    const DK: usize = 6;
    const DV: usize = 5;
    let (w_in, w_out) = (values(params, "in_proj.weight"), values(params, "out_proj.weight"));
    let (norm, bias) = (values(params, "norm.weight"), values(params, "decay.bias"));
    let rows = w_in.len() / D_MODEL;
    let mut states = vec![[[0.0; DK]; DV + 1]; H];
    let mut y = Vec::new();
    for (t, token) in x.chunks(D_MODEL).enumerate() {
        let product = |row: usize| -> f64 {
            token.iter().zip(&w_in[row * D_MODEL..]).map(|(a, b)| a * b).sum()
        };
        let p: Vec<f64> = (0..rows).map(product).collect();
        let mut mixed = Vec::new();
        for (h, state) in states.iter_mut().enumerate() {
            let (mut q, mut k) = ([0.0; DK], [0.0; DK]);
            for i in 0..DK {
                let feature = |x: f64| if x > 0.0 { x + 1.0 } else { x.exp() };
                let (qi, ki) = (p[h * DK + i], p[H * DK + h * DK + i]);
                (q[i], k[i]) = match kind {
                    LinearAttentionKind::Linear => (feature(qi), feature(ki)),
                    _ => (qi, ki / (DK as f64).sqrt()),
                };
            }
            if kind == LinearAttentionKind::RetNet {
                for i in 0..DK / 2 {
                    let angle = t as f64 * 10_000f64.powf(-2.0 * i as f64 / DK as f64);
                    let (sin, cos) = angle.sin_cos();
                    for head in [&mut q, &mut k] {
                        let (a, b) = (head[i], head[i + DK / 2]);
                        (head[i], head[i + DK / 2]) = (a * cos - b * sin, a * sin + b * cos);
                    }
                }
            }
            let keeps = match kind {
                LinearAttentionKind::Linear => 1.0,
                LinearAttentionKind::RetNet => 1.0 - 2f64.powi(-5 - h as i32),
                LinearAttentionKind::Gated => {
                    let logit = p[rows - H + h] + bias[h];
                    (1.0 / (1.0 + (-logit).exp())).powf(1.0 / 16.0)
                }
            };
            let mut o = [0.0; DV + 1];
            for (j, row) in state.iter_mut().enumerate() {
                let v = if j < DV { p[2 * H * DK + h * DV + j] } else { 1.0 };
                for i in 0..DK {
                    row[i] = keeps * row[i] + v * k[i];
                    o[j] += row[i] * q[i];
                }
            }
            if kind == LinearAttentionKind::Linear {
                mixed.extend((0..DV).map(|j| o[j] / (o[DV] + EPS)));
                continue;
            }
            let square: f64 = o[..DV].iter().map(|o| o * o).sum();
            let scale = 1.0 / (square / DV as f64 + 1e-5).sqrt();
            for j in 0..DV {
                let z = p[2 * H * DK + H * DV + h * DV + j];
                mixed.push(o[j] * scale * norm[h * DV + j] * z / (1.0 + (-z).exp()));
            }
        }
        let width = H * DV;
        y.extend((0..D_MODEL).map(|row| -> f64 {
            mixed.iter().zip(&w_out[row * width..]).map(|(a, b)| a * b).sum()
        }));
    }
    y
}

#[test]
fn equals_the_recurrence() {
    for kind in KINDS {
        let (mixer, params) = made(kind);
        if let Some(bias) = params.params().get("decay.bias") {
            bias.set(&randn(3, &[3], DType::F64)).unwrap();
        }
        let x = randn(7, &[70, D_MODEL], DType::F64);
        let batch = SeqBatch::from_lengths(&[70]).unwrap();
        let y = mixer.forward(&x, &batch, None).unwrap();
        let expected = reference(kind, &params, &x.to_vec::<f64>().unwrap());
        let expected = Tensor::from_vec(expected, [70, D_MODEL], &Device::Cpu).unwrap();
        // RetNet's tables are f32 whatever the type of x.
        let tolerance = if kind == LinearAttentionKind::RetNet { 1e-6 } else { 1e-11 };
        assert_close(kind.name(), &y, &expected, tolerance);
    }
}

/// Without gate and norm, `linear` is its dense matrix times the values, and rows are distributions (but
/// for the added eps).
#[test]
fn rows_of_linear_attention_are_distributions() {
    let (mixer, _) = made(LinearAttentionKind::Linear);
    let x = randn(8, &[9, D_MODEL], DType::F64);
    let dense = mixer.dense(&x).unwrap();
    assert_eq!(dense.dims(), [3, 9, 9]);
    for row in dense.to_vec::<f64>().unwrap().chunks(9) {
        let sum: f64 = row.iter().sum();
        assert!((sum - 1.0).abs() < 1e-5 && row.iter().all(|&weight| weight >= 0.0), "{row:?}");
    }
}

#[test]
fn gradients_match_differences() {
    for kind in KINDS {
        let (mixer, params) = made(kind);
        let x = randn(9, &[5, D_MODEL], DType::F64);
        let batch = SeqBatch::from_lengths(&[3, 2]).unwrap();
        // RetNet's f32 tables are the same on both sides of a difference.
        gradcheck(
            |inputs| Ok(vec![mixer.forward(&inputs[0], &batch, None)?]),
            std::slice::from_ref(&x),
            1e-6,
        );
        let y = mixer.forward(&x.tracked(), &batch, None).unwrap();
        let gradients = backward_with(&[(&y, &y.detach())]).unwrap();
        for param in params.params().iter() {
            assert!(gradients.get(&param.tensor()).is_some(), "{}", param.name());
        }
    }
}

#[test]
fn parameters_are_counted() {
    for kind in KINDS {
        let (_, params) = made(kind);
        let elements: usize = params.params().iter().map(|param| param.tensor().elem_count()).sum();
        assert_eq!(elements, config().elem_count(D_MODEL, kind, Format::Dense), "{}", kind.name());
    }
}

#[test]
fn bad_shapes_are_named() {
    let refused = |config: LinearAttentionConfig, kind| config.check(D_MODEL, kind).unwrap_err();
    let whole = LinearAttentionConfig { head_dim: None, ..config() };
    let bad = LinearAttentionConfig { n_heads: 5, ..whole.clone() };
    let message = refused(bad, LinearAttentionKind::Gated).to_string();
    assert!(message.contains("linear_attention.n_heads is 5, valid is a divisor"), "{message}");
    let odd = LinearAttentionConfig { head_dim: Some(5), ..config() };
    assert!(odd.check(D_MODEL, LinearAttentionKind::Gated).is_ok());
    let message = refused(odd, LinearAttentionKind::RetNet).to_string();
    assert!(message.contains("head_dim is 5, valid is even"), "{message}");
    let wide = LinearAttentionConfig { value_dim: Some(256), ..config() };
    assert!(wide.check(D_MODEL, LinearAttentionKind::RetNet).is_ok());
    let message = refused(wide, LinearAttentionKind::Linear).to_string();
    assert!(message.contains("value_dim is 256, valid is 1..=255"), "{message}");
}
