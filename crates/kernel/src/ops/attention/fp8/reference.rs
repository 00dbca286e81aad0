//! The quantised computation in f64, step by step as the GPU kernels take them.

use super::hadamard::rotate;
use super::{Fp8Op, Fp8Scales};
use crate::ops::attention::options::Attributes;
use crate::ops::attention::tile_range::Band;
use danaus_runtime::threads::{self, SharedMut};
use danaus_tensor::fp8::F8E4M3;
use danaus_tensor::{Result, Tensor};
use std::f64::consts::{LN_2, LOG2_E};

/// Largest value of e4m3.
const LARGEST: f64 = 448.0;
/// Probabilities are multiplied by 2^8.
const SHIFT: f64 = 8.0;

/// Rows of one head in codes, row by row, and the scale of each row.
pub struct Quantized {
    /// Values of the codes.
    pub codes: Vec<f64>,
    /// By row; rows of a tile have the same.
    pub scales: Vec<f64>,
}

fn rounded(x: f64) -> f64 {
    f64::from(F8E4M3::from_f32(x as f32).to_f32())
}

/// Quantises `rows` of `width` in tiles of `tile` rows.
pub fn quantize(rows: &[f64], width: usize, tile: usize, scales: Fp8Scales) -> Quantized {
    let largest = |rows: &[f64]| rows.iter().fold(0.0, |top: f64, x| top.max(x.abs()));
    let scale = |largest: f64| if largest > 0.0 { largest / LARGEST } else { 1.0 };
    let of_head = scale(largest(rows));
    let mut quantized = Quantized { codes: Vec::new(), scales: Vec::new() };
    for tile in rows.chunks(tile * width) {
        let scale = match scales {
            Fp8Scales::Tile => scale(largest(tile)),
            Fp8Scales::Head => of_head,
        };
        quantized.codes.extend(tile.iter().map(|x| rounded(x / scale)));
        quantized.scales.extend(std::iter::repeat_n(scale, tile.len() / width));
    }
    quantized
}

/// One head: keys transposed (feature, key), so that scores of a query are sums of rows.
struct Head {
    q: Quantized,
    k_transposed: Vec<f64>,
    k_scales: Vec<f64>,
    v: Quantized,
}

/// Rows of one head of a tensor (batch, rows, heads, width).
fn rows(x: &[f64], [rows, heads, width]: [usize; 3], batch: usize, head: usize) -> Vec<f64> {
    let start = |row: usize| ((batch * rows + row) * heads + head) * width;
    (0..rows).flat_map(|row| &x[start(row)..start(row) + width]).copied().collect()
}

/// out and lse of dense q, k and v in f64.
pub fn forward(
    op: &Fp8Op,
    qkv: [Tensor; 3],
    signs: Option<&[f64]>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let [q, k, v] = &qkv;
    let (dims, k_dims) = (q.dims(), k.dims());
    let [batch, q_len, heads, width] = [dims[0], dims[1], dims[2], dims[3]];
    let [k_len, kv_heads] = [k_dims[1], k_dims[2]];
    let (q, k, v) = (q.as_slice::<f64>()?, k.as_slice::<f64>()?, v.as_slice::<f64>()?);
    let [q_tile, k_tile] = [op.tile[0].min(q_len.max(1)), op.tile[1].min(k_len.max(1))];
    let mut out = vec![0.0; batch * q_len * heads * width];
    let mut lse = vec![f64::NEG_INFINITY; batch * heads * q_len];
    let (to_out, to_lse) = (SharedMut::new(&mut out), SharedMut::new(&mut lse));
    for (b, h) in (0..batch * heads).map(|i| (i / heads, i % heads)) {
        let turned = |x: &[f64], dims: [usize; 3], head: usize| {
            let mut x = rows(x, dims, b, head);
            if let Some(signs) = signs {
                x.chunks_exact_mut(width).for_each(|row| rotate(row, signs));
            }
            x
        };
        let of_keys = [k_len, kv_heads, width];
        let kv_head = h / (heads / kv_heads);
        let k = quantize(&turned(k, of_keys, kv_head), width, k_tile, op.scales);
        let head = Head {
            q: quantize(&turned(q, [q_len, heads, width], h), width, q_tile, op.scales),
            k_transposed: (0..width * k_len)
                .map(|i| k.codes[i % k_len * width + i / k_len])
                .collect(),
            k_scales: k.scales,
            v: quantize(&rows(v, of_keys, b, kv_head), width, k_tile, op.scales),
        };
        threads::for_each(q_len, |i| {
            // SAFETY: every task writes its own row of out and of lse.
            let (o, l) = unsafe {
                let row = ((b * q_len + i) * heads + h) * width;
                (to_out.slice(row, width), to_lse.slice((b * heads + h) * q_len + i, 1))
            };
            l[0] = row(&op.attributes, &head, i, ([q_len, k_len, width], k_tile), o);
        });
    }
    Ok((out, lse))
}

/// One query against tiles of keys; returns its log-sum-exp.
fn row(
    attributes: &Attributes,
    head: &Head,
    i: usize,
    ([q_len, k_len, width], tile): ([usize; 3], usize),
    o: &mut [f64],
) -> f64 {
    let visible = Band::new(attributes.window, q_len, k_len).visible_keys(i..i + 1);
    let q = &head.q.codes[i * width..(i + 1) * width];
    let scale = attributes.softmax_scale.unwrap_or_else(|| 1.0 / (width as f64).sqrt());
    let (mut reference, mut sum) = (f64::NEG_INFINITY, 0.0);
    let mut scores = vec![0.0; tile];
    for start in (0..k_len).step_by(tile) {
        let keys = visible.start.max(start)..visible.end.min(start + tile);
        if keys.is_empty() {
            continue;
        }
        let scores = &mut scores[..keys.len()];
        scores.fill(0.0);
        for (q, k) in q.iter().zip(head.k_transposed.chunks_exact(k_len)) {
            scores.iter_mut().zip(&k[keys.clone()]).for_each(|(score, k)| *score += q * k);
        }
        let factor = scale * head.q.scales[i] * head.k_scales[start];
        for score in &mut *scores {
            let x = *score * factor;
            *score = LOG2_E * attributes.softcap.map_or(x, |cap| cap * (x / cap).tanh());
        }
        let moved = scores.iter().fold(reference, |top, &x| top.max(x));
        let change = (reference - moved).exp2();
        o.iter_mut().for_each(|o| *o *= change);
        sum *= change;
        reference = moved;
        for (x, j) in scores.iter().zip(keys) {
            let p = (x - reference + SHIFT).exp2();
            sum += p;
            let weight = rounded(p) * head.v.scales[j];
            let v = &head.v.codes[j * width..(j + 1) * width];
            o.iter_mut().zip(v).for_each(|(o, v)| *o += weight * v);
        }
    }
    if sum == 0.0 {
        return f64::NEG_INFINITY;
    }
    o.iter_mut().for_each(|o| *o /= sum);
    LN_2 * (reference - SHIFT + sum.log2())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::fp8::Fp8;
    use crate::ops::attention::{AttentionOptions, attention};
    use danaus_tensor::DType;
    use danaus_testkit::{Golden, assert_close, golden};

    const SCHEMES: [(&str, Fp8Scales, bool); 4] = [
        ("head_only", Fp8Scales::Head, false),
        ("head_incoherent", Fp8Scales::Head, true),
        ("block_only", Fp8Scales::Tile, false),
        ("block_incoherent", Fp8Scales::Tile, true),
    ];

    fn number(case: &Golden, name: &str) -> f64 {
        case.get_as(name, DType::F64).to_scalar().unwrap()
    }

    /// All four schemes: outputs to the f32 they are stored in, and their order of errors.
    #[test]
    fn outputs_are_those_of_the_golden_case() {
        let case = golden("03-flashattention-3", "fp8_outliers");
        let qkv = ["q", "k", "v"].map(|name| case.get_as(name, DType::F64));
        let tile = ["block_m", "block_n"].map(|name| number(&case, name) as usize);
        let exact = case.get_as("out_exact", DType::F64).to_vec::<f64>().unwrap();
        for (name, scales, turned) in SCHEMES {
            let signs = turned.then(|| case.get("sign").clone());
            let fp8 = Fp8 { scales, signs, tile: Some(tile) };
            let options = AttentionOptions { fp8: Some(fp8), ..AttentionOptions::default() };
            let (out, lse) = attention(&qkv[0], &qkv[1], &qkv[2], &options).unwrap();
            let stored = case.get_as(&format!("{name}_out"), DType::F64);
            assert_close(name, &out, &stored, 1e-6);
            if let Some(stored) = case.find(&format!("{name}_lse")) {
                assert_close(&format!("{name} lse"), &lse, stored, 1e-9);
            }
            let out = out.to_vec::<f64>().unwrap();
            let squares: f64 = out.iter().zip(&exact).map(|(a, b)| (a - b) * (a - b)).sum();
            let rmse = (squares / out.len() as f64).sqrt();
            let stored = number(&case, &format!("{name}_rmse"));
            assert!((rmse / stored - 1.0).abs() < 1e-3, "{name}: {rmse} against {stored}");
        }
    }

    /// Codes and scales of tiles, byte by byte.
    #[test]
    fn codes_are_those_of_the_golden_case() {
        let case = golden("03-flashattention-3", "fp8_outliers");
        let signs = case.get("sign").to_vec::<f64>().unwrap();
        let tile = ["block_m", "block_n"].map(|name| number(&case, name) as usize);
        for (name, tile, turned) in
            [("q", tile[0], true), ("k", tile[1], true), ("v", tile[1], false)]
        {
            let x = case.get_as(name, DType::F64).to_vec::<f64>().unwrap();
            let codes = case.get(&format!("block_incoherent_{name}_codes")).to_vec::<u8>().unwrap();
            let scales = case.get(&format!("block_incoherent_{name}_descale"));
            let scales = scales.to_vec::<f64>().unwrap();
            for head in 0..2 {
                let mut x = rows(&x, [160, 2, 64], 0, head);
                if turned {
                    x.chunks_exact_mut(64).for_each(|row| rotate(row, &signs));
                }
                let found = quantize(&x, 64, tile, Fp8Scales::Tile);
                for (i, value) in found.codes.iter().enumerate() {
                    let stored = F8E4M3(codes[(i / 64 * 2 + head) * 64 + i % 64]).to_f32();
                    assert_eq!(*value, f64::from(stored), "{name}, head {head}, element {i}");
                }
                let tiles = scales.len() / 2;
                for (row, scale) in found.scales.iter().enumerate() {
                    let stored = scales[head * tiles + row / tile];
                    assert!((scale / stored - 1.0).abs() < 1e-12, "{name}, row {row}");
                }
            }
        }
    }

    #[test]
    fn what_fp8_cannot_do_is_named() {
        let x = danaus_testkit::randn(1, &[1, 20, 2, 32], DType::F32);
        let refused = |word: &str, x: &Tensor, options: AttentionOptions| {
            let error = attention(x, x, x, &options).unwrap_err();
            assert!(error.is_bad_input() && error.to_string().contains(word), "{error}");
        };
        let with = |fp8: Fp8| AttentionOptions { fp8: Some(fp8), ..AttentionOptions::default() };
        let plain = || with(Fp8::default());
        refused("p_drop", &x, AttentionOptions { p_drop: 0.5, ..plain() });
        let sinks = danaus_testkit::randn(2, &[2], DType::F32);
        refused("sinks", &x, AttentionOptions { sinks: Some(sinks), ..plain() });
        let signs = danaus_testkit::randn(2, &[16], DType::F32);
        refused("fp8_signs", &x, with(Fp8 { signs: Some(signs), ..Fp8::default() }));
        refused("fp8_tile", &x, with(Fp8 { tile: Some([64, 0]), ..Fp8::default() }));
        refused("16", &danaus_testkit::randn(1, &[1, 20, 2, 24], DType::F32), plain());
        let (out, _) = attention(&x.tracked(), &x, &x, &plain()).unwrap();
        let error = out.sum_all().unwrap().backward().err().unwrap();
        assert!(error.to_string().contains("gradient"), "{error}");
    }

    /// A window, a cap and rows without keys: near exact attention, within what eight bits lose.
    #[test]
    fn masks_and_caps_are_those_of_exact_attention() {
        let shape = |rows: usize| [1, rows, 2, 32];
        let q = danaus_testkit::randn(1, &shape(70), DType::F64);
        let [k, v] = [2, 3].map(|seed| danaus_testkit::randn(seed, &shape(50), DType::F64));
        let causal = AttentionOptions { softcap: Some(3.0), ..AttentionOptions::causal() };
        let window = AttentionOptions { window_left: Some(9), ..AttentionOptions::causal() };
        for options in [AttentionOptions::default(), causal, window] {
            let (exact, exact_lse) = attention(&q, &k, &v, &options).unwrap();
            let fp8 = Fp8 { tile: Some([16, 32]), ..Fp8::default() };
            let options = AttentionOptions { fp8: Some(fp8), ..options };
            let (out, lse) = attention(&q, &k, &v, &options).unwrap();
            // A code is off by 2^-4 of its value at most, a product of codes by 2^-3; averages are
            // smaller.
            assert_close("out", &out, &exact, 0.125);
            assert_close("lse", &lse, &exact_lse, 0.125);
        }
    }
}
