//! Golden cases through the public functions, with gradients through the tape.

use crate::ops::attention::{AttentionOptions, attention, attention_varlen};
use danaus_tensor::{DType, Tensor, backward_with};
use danaus_testkit::{Golden, assert_close, golden, gradcheck, randn};

const FIRST: &str = "01-flashattention";
const SECOND: &str = "02-flashattention-2";

fn number(case: &Golden, name: &str) -> Option<f64> {
    case.find(name).map(|tensor| tensor.to_scalar().unwrap())
}

/// Options of a case from the tensors it holds and its name.
fn options(name: &str, case: &Golden, dtype: DType) -> AttentionOptions {
    let window = case.find("window").map(|w| w.to_dtype(DType::I64).unwrap().to_vec::<i64>());
    let bound = |i: usize| {
        let window = window.as_ref()?.as_ref().unwrap();
        usize::try_from(window[i]).ok()
    };
    AttentionOptions {
        causal: name.contains("causal"),
        window_left: bound(0),
        window_right: bound(1),
        softmax_scale: number(case, "scale"),
        softcap: number(case, "softcap"),
        alibi_slopes: case.find("slopes").map(|slopes| slopes.to_dtype(dtype).unwrap()),
        block_mask: case.find("block_mask").cloned(),
        block_size: number(case, "block_size").map(|size| size as usize),
        keep: case.find("keep").cloned(),
        q_lens: case.find("q_lens").cloned(),
        k_lens: case.find("k_lens").cloned(),
        p_drop: number(case, "p_drop").unwrap_or(0.0),
        ..AttentionOptions::default()
    }
}

fn run(case: &Golden, leaves: &[Tensor; 3], options: &AttentionOptions) -> (Tensor, Tensor) {
    let [q, k, v] = [&leaves[0], &leaves[1], &leaves[2]];
    match case.find("cu_seqlens_q") {
        Some(cu_q) => attention_varlen([q, k, v], cu_q, case.get("cu_seqlens_k"), options).unwrap(),
        None => attention(q, k, v, options).unwrap(),
    }
}

fn check(system: &str, name: &str, dtype: DType, tolerance: f64) {
    let case = golden(system, name);
    let leaves = ["q", "k", "v"].map(|input| case.get_as(input, dtype).tracked());
    let (out, lse) = run(&case, &leaves, &options(name, &case, dtype));
    assert_close(&format!("{name} out"), &out, case.get("out"), tolerance);
    assert_close(&format!("{name} lse"), &lse, case.get("lse"), tolerance);
    let grads = backward_with(&[(&out, &case.get_as("do", dtype))]).unwrap();
    for (leaf, expected) in leaves.iter().zip(["dq", "dk", "dv"]) {
        let grad = grads.get(leaf).unwrap();
        assert_close(&format!("{name} {expected}"), grad, case.get(expected), tolerance);
    }
}

const CASES: [(&str, &[&str]); 2] = [
    (
        FIRST,
        &[
            "full",
            "causal_square",
            "padding",
            "dropout",
            "blocksparse_butterfly",
            "blocksparse_butterfly_causal",
            "blocksparse_random_emptyrow",
        ],
    ),
    (
        SECOND,
        &[
            "alibi",
            "alibi_causal",
            "all_features",
            "gqa_causal_sq_gt_sk",
            "gqa_causal_sq_lt_sk",
            "softcap_causal",
            "varlen",
            "varlen_causal",
            "window_0_0",
            "window_5_0",
            "window_7_2",
            "window_inf_3",
        ],
    ),
];

fn check_all(dtype: DType, tolerance: f64) {
    for (system, names) in CASES {
        names.iter().for_each(|name| check(system, name, dtype, tolerance));
    }
}

/// The tolerances that the golden files state: 1e-10, 2e-5; bf16 rounds inputs and P to 8 bits.
#[test]
fn golden_cases_in_f64() {
    check_all(DType::F64, 1e-10);
}

#[test]
fn golden_cases_in_f32() {
    check_all(DType::F32, 2e-5);
}

#[test]
fn golden_cases_in_bf16() {
    check_all(DType::BF16, 4e-2);
}

/// f16 rounds inputs to 11 bits, an eighth of bf16's error; P stays in f32.
#[test]
fn golden_cases_in_f16() {
    check_all(DType::F16, 5e-3);
}

/// All options with a gradient at once, the log-sum-exp's cotangent and the sinks among them.
#[test]
fn gradients_match_differences() {
    let [q, k] = [randn(1, &[2, 5, 4, 3], DType::F64), randn(2, &[2, 7, 2, 3], DType::F64)];
    let [v, sinks] = [randn(3, &[2, 7, 2, 2], DType::F64), randn(4, &[4], DType::F64)];
    let slopes = randn(5, &[4], DType::F64);
    for (causal, softcap, p_drop) in
        [(false, None, 0.0), (true, Some(1.5), 0.0), (true, None, 0.3), (false, Some(2.0), 0.2)]
    {
        let run = |t: &[Tensor]| {
            let options = AttentionOptions {
                causal,
                softcap,
                p_drop,
                window_left: Some(4),
                alibi_slopes: Some(slopes.clone()),
                sinks: Some(t[3].clone()),
                ..AttentionOptions::default()
            };
            attention(&t[0], &t[1], &t[2], &options).map(|(out, lse)| vec![out, lse])
        };
        gradcheck(run, &[q.clone(), k.clone(), v.clone(), sinks.clone()], 1e-7);
    }
}

/// Strided views (batch, heads, rows, dim) give the bits of contiguous inputs.
#[test]
fn strides_change_nothing() {
    let contiguous = [1, 2, 3].map(|seed| randn(seed, &[2, 70, 3, 16], DType::F32));
    let strided = [0, 1, 2].map(|i: usize| {
        let swapped = contiguous[i].transpose(1, 2).unwrap().contiguous().unwrap();
        swapped.transpose(1, 2).unwrap()
    });
    let run = |t: &[Tensor; 3]| {
        let (out, lse) = attention(&t[0], &t[1], &t[2], &AttentionOptions::causal()).unwrap();
        (out.to_vec::<f32>().unwrap(), lse.to_vec::<f32>().unwrap())
    };
    assert_eq!(run(&contiguous), run(&strided));
}

/// NaN behind the last key and the last query reaches neither outputs nor gradients, and packed equal
/// sequences give the bits of a dense batch.
#[test]
fn padding_may_hold_nan_and_packing_keeps_bits() {
    let poison = |mut values: Vec<f32>, row: usize, from: usize, rows: usize| {
        for (index, value) in values.iter_mut().enumerate() {
            if index / row % rows >= from {
                *value = f32::NAN;
            }
        }
        values
    };
    let clean = [1, 2, 3].map(|seed| randn(seed, &[2, 40, 2, 8], DType::F32));
    let lens = Tensor::from_vec(vec![30i32, 30], [2], &danaus_tensor::Device::Cpu).unwrap();
    let dirty = [0, 1, 2].map(|i: usize| {
        let values = poison(clean[i].to_vec::<f32>().unwrap(), 16, 30, 40);
        Tensor::from_vec(values, [2, 40, 2, 8], &clean[i].device()).unwrap().tracked()
    });
    let options = AttentionOptions {
        q_lens: Some(lens.clone()),
        k_lens: Some(lens),
        ..AttentionOptions::default()
    };
    let (out, _) = attention(&dirty[0], &dirty[1], &dirty[2], &options).unwrap();
    let grads = backward_with(&[(&out, &randn(9, &[2, 40, 2, 8], DType::F32))]).unwrap();
    assert!(out.to_vec::<f32>().unwrap().iter().all(|x| x.is_finite()));
    for leaf in &dirty {
        let grad = grads.get(leaf).unwrap().to_vec::<f32>().unwrap();
        assert!(grad.iter().all(|x| x.is_finite()));
    }
    let packed = [0, 1, 2].map(|i: usize| {
        let part = clean[i].narrow(1, 0, 30).unwrap().contiguous().unwrap();
        part.reshape([60, 2, 8]).unwrap()
    });
    let bounds = Tensor::from_vec(vec![0i32, 30, 60], [3], &clean[0].device()).unwrap();
    let plain = AttentionOptions::default();
    let [q, k, v] = [&packed[0], &packed[1], &packed[2]];
    let (packed, _) = attention_varlen([q, k, v], &bounds, &bounds, &plain).unwrap();
    let used = out.narrow(1, 0, 30).unwrap().contiguous().unwrap();
    assert_eq!(packed.to_vec::<f32>().unwrap(), used.to_vec::<f32>().unwrap());
}

/// Packed sequences with a block mask each = every sequence by itself with the blocks it reaches.
#[test]
fn packed_sequences_take_block_masks() {
    let (q_lens, k_lens, size) = ([40usize, 17, 0], [40usize, 33, 5], 16);
    let total = |lens: &[usize]| lens.iter().sum::<usize>();
    let input = |seed, rows| randn(seed, &[rows, 2, 8], DType::F32).tracked();
    let (q, k) = (input(21, total(&q_lens)), input(22, total(&k_lens)));
    let (v, cotangent) = (input(23, total(&k_lens)), input(24, total(&q_lens)).detach());
    let noise = randn(25, &[3, 2, 3, 3], DType::F32);
    let mask = noise.gt(&noise.affine(0.0, -0.5).unwrap()).unwrap().to_dtype(DType::U8).unwrap();
    let bounds = |lens: &[usize]| {
        let mut ends = vec![0i64];
        lens.iter().for_each(|&len| ends.push(ends[ends.len() - 1] + len as i64));
        Tensor::from_vec(ends, [lens.len() + 1], &danaus_tensor::Device::Cpu).unwrap()
    };
    let options = |mask: Tensor| AttentionOptions {
        causal: true,
        block_mask: Some(mask),
        block_size: Some(size),
        ..AttentionOptions::default()
    };
    let all = options(mask.clone());
    let (cu_q, cu_k) = (bounds(&q_lens), bounds(&k_lens));
    let (out, _) = attention_varlen([&q, &k, &v], &cu_q, &cu_k, &all).unwrap();
    let packed = backward_with(&[(&out, &cotangent)]).unwrap();
    let (mut q_from, mut k_from) = (0, 0);
    for (index, (&q_len, &k_len)) in q_lens.iter().zip(&k_lens).enumerate().take(2) {
        let part = |x: &Tensor, from, len| x.narrow(0, from, len).unwrap().detach().unsqueeze(0);
        let own = [part(&q, q_from, q_len), part(&k, k_from, k_len), part(&v, k_from, k_len)];
        let own = own.map(|x| x.unwrap().tracked());
        let own_mask = mask.narrow(0, index, 1).unwrap();
        let own_mask = own_mask.narrow(2, 0, q_len.div_ceil(size)).unwrap();
        let own_mask = own_mask.narrow(3, 0, k_len.div_ceil(size)).unwrap();
        let (alone, _) = attention(&own[0], &own[1], &own[2], &options(own_mask)).unwrap();
        let expected = part(&out, q_from, q_len).unwrap();
        assert_close("out", &alone, &expected, 1e-6);
        let own_cotangent = part(&cotangent, q_from, q_len).unwrap();
        let separate = backward_with(&[(&alone, &own_cotangent)]).unwrap();
        let places = [(&q, q_from, q_len), (&k, k_from, k_len), (&v, k_from, k_len)];
        for ((whole, from, len), own) in places.into_iter().zip(&own) {
            let expected = part(packed.get(whole).unwrap(), from, len).unwrap();
            assert_close("gradient", separate.get(own).unwrap(), &expected, 1e-5);
        }
        (q_from, k_from) = (q_from + q_len, k_from + k_len);
    }
}

/// The running maximum, sum and unnormalised output after each tile of keys are attention to the keys so
/// far: `out = O / l` and `lse = m + ln l`.
#[test]
fn golden_trace_of_the_online_softmax() {
    let case = golden(FIRST, "online_trace");
    let (block, keys) = (case.get("block_n").to_scalar().unwrap() as usize, 14);
    let heads = |x: &Tensor| x.unsqueeze(1).unwrap().unsqueeze(0).unwrap();
    let q = heads(case.get("q"));
    let options = AttentionOptions::default();
    for tile in 0..case.get("m").dims()[0] {
        let seen = keys.min((tile + 1) * block);
        let first = |name: &str| heads(&case.get(name).narrow(0, 0, seen).unwrap());
        let (out, lse) = attention(&q, &first("k"), &first("v"), &options).unwrap();
        let at = |name: &str| case.get(name).select(0, tile).unwrap();
        let (m, l) = (at("m"), at("l"));
        let expected = at("O_unnorm").div(&l.unsqueeze(1).unwrap()).unwrap();
        assert_close("out", &out.squeeze(2).unwrap().squeeze(0).unwrap(), &expected, 1e-10);
        let expected = m.add(&l.ln().unwrap()).unwrap();
        assert_close("lse", &lse.flatten(0, 2).unwrap(), &expected, 1e-10);
    }
}
