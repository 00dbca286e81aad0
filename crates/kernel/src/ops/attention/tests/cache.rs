//! Decoding against a cache, paged caches, splits and the combine.

use crate::ops::attention::{
    AttentionOptions, CacheOptions, KvCache, NewKeys, Rotary, attention, attention_combine,
    attention_kvcache,
};
use danaus_tensor::{DType, Device, Level, Tensor, with_level};
use danaus_testkit::{assert_close, golden, randn};

const SYSTEM: &str = "02-flashattention-2";
/// f64 and f32 as the golden files state.
const DTYPES: [(DType, f64); 2] = [(DType::F64, 1e-10), (DType::F32, 2e-5)];

fn ints(values: &[i32]) -> Tensor {
    Tensor::from_slice(values, [values.len()], &Device::Cpu).unwrap()
}

#[test]
fn append_and_rotate_match_the_golden_cases() {
    for (name, interleaved) in
        [("kvcache_rotary_interleaved", true), ("kvcache_rotary_neox", false)]
    {
        for (dtype, tolerance) in DTYPES {
            let case = golden(SYSTEM, name);
            let get = |tensor: &str| case.get_as(tensor, dtype);
            let (cos, sin) = (get("rotary_cos"), get("rotary_sin"));
            let options = CacheOptions {
                cache_batch_idx: Some(case.get("cache_batch_idx").clone()),
                cache_leftpad: Some(case.get("cache_leftpad").clone()),
                rotary: Some(Rotary { cos, sin, interleaved }),
                ..CacheOptions::causal(case.get("cache_seqlens").clone())
            };
            let mut cache = KvCache { k: get("k_cache_before"), v: get("v_cache_before") };
            let (k_new, v_new) = (get("k_new"), get("v_new"));
            let new = Some(NewKeys { k: &k_new, v: &v_new });
            let (out, lse) = attention_kvcache(&get("q"), &mut cache, new, &options).unwrap();
            assert_close("out", &out, case.get("out"), tolerance);
            assert_close("lse", &lse, case.get("lse"), tolerance);
            assert_close("k_cache", &cache.k, case.get("k_cache_after"), tolerance);
            assert_close("v_cache", &cache.v, case.get("v_cache_after"), tolerance);
        }
    }
}

#[test]
fn pages_match_the_golden_case() {
    let case = golden(SYSTEM, "paged_causal");
    for (dtype, tolerance) in DTYPES {
        for num_splits in [1, 3] {
            let options = CacheOptions {
                page_table: Some(case.get("page_table").clone()),
                num_splits,
                ..CacheOptions::causal(case.get("cache_seqlens").clone())
            };
            let mut cache =
                KvCache { k: case.get_as("k_pages", dtype), v: case.get_as("v_pages", dtype) };
            let q = case.get_as("q", dtype);
            let (out, lse) = attention_kvcache(&q, &mut cache, None, &options).unwrap();
            assert_close("out", &out, case.get("out"), tolerance);
            assert_close("lse", &lse, case.get("lse"), tolerance);
        }
    }
}

#[test]
fn the_combine_matches_the_golden_case() {
    let case = golden(SYSTEM, "splitkv_combine");
    for (dtype, tolerance) in DTYPES {
        let (partial, lses) =
            (case.get_as("out_partial", dtype), case.get_as("lse_partial", dtype));
        let (out, lse) = attention_combine(&partial, &lses).unwrap();
        assert_close("out", &out, case.get("out"), tolerance);
        assert_close("lse", &lse, case.get("lse"), tolerance);
    }
}

/// Token by token with appends, at any number of splits, equals one causal call. f32: 2e-6 relative
/// between different orders of sums of 300 terms.
#[test]
fn decoding_equals_one_causal_call() {
    let (length, heads, kv_heads, dim) = (300, 4, 2, 16);
    let q = randn(1, &[1, length, heads, dim], DType::F32);
    let [k, v] = [2, 3].map(|seed| randn(seed, &[1, length, kv_heads, dim], DType::F32));
    let (expected, _) = attention(&q, &k, &v, &AttentionOptions::causal()).unwrap();
    for num_splits in [0, 1, 4] {
        let zeros = || Tensor::zeros([1, length, kv_heads, dim], DType::F32, &Device::Cpu).unwrap();
        let mut cache = KvCache { k: zeros(), v: zeros() };
        for (start, count) in [(0, 200), (200, 1), (201, 3), (204, 96)] {
            let part = |t: &Tensor| t.narrow(1, start, count).unwrap().contiguous().unwrap();
            let (k, v) = (part(&k), part(&v));
            let options =
                CacheOptions { num_splits, ..CacheOptions::causal(ints(&[start as i32])) };
            let new = Some(NewKeys { k: &k, v: &v });
            let (out, _) = attention_kvcache(&part(&q), &mut cache, new, &options).unwrap();
            assert_close("decoded", &out, &part(&expected), 2e-6);
        }
    }
}

/// A prompt in pieces of any size has the bits of the whole, also under a window and in bf16.
#[test]
fn invariant_bits_do_not_depend_on_cuts() {
    let length = 150;
    // Steps of one, two, four and more rows a key head, whole vectors of features and others.
    for (dtype, window_left, heads, kv_heads, dim) in [
        (DType::F32, None, 4, 1, 20),
        (DType::F32, Some(37), 4, 1, 20),
        (DType::BF16, None, 4, 1, 20),
        (DType::F32, None, 3, 3, 64),
        (DType::BF16, None, 3, 3, 64),
        (DType::BF16, Some(37), 2, 1, 37),
        (DType::F32, None, 7, 1, 33),
        (DType::BF16, None, 8, 1, 80),
    ] {
        let rows = |seed, heads| {
            randn(seed, &[1, length, heads, dim], DType::F32).to_dtype(dtype).unwrap()
        };
        let (q, k, v) = (rows(1, heads), rows(2, kv_heads), rows(3, kv_heads));
        let run = |size: usize| {
            let zeros = || Tensor::zeros([1, length, kv_heads, dim], dtype, &Device::Cpu).unwrap();
            let (mut cache, mut parts) = (KvCache { k: zeros(), v: zeros() }, Vec::new());
            for start in (0..length).step_by(size) {
                let count = size.min(length - start);
                let part = |t: &Tensor| t.narrow(1, start, count).unwrap().contiguous().unwrap();
                let (k, v) = (part(&k), part(&v));
                let used = ints(&[start as i32]);
                let options = CacheOptions { window_left, ..CacheOptions::causal(used) };
                let new = Some(NewKeys { k: &k, v: &v });
                parts.push(attention_kvcache(&part(&q), &mut cache, new, &options).unwrap().0);
            }
            Tensor::cat(&parts.iter().collect::<Vec<_>>(), 1).unwrap()
        };
        with_level(Level::Invariant, || {
            let whole = run(length);
            for size in [1, 3, 7, 16, 64] {
                assert_close("cut", &run(size), &whole, 0.0);
            }
        });
    }
}

#[test]
fn bad_cache_arguments_are_named() {
    let q = randn(1, &[1, 1, 2, 8], DType::F32);
    let row = randn(2, &[1, 1, 2, 8], DType::F32);
    let pool = randn(3, &[1, 4, 2, 8], DType::F32);
    let run = |options: CacheOptions| {
        let mut cache = KvCache { k: pool.clone(), v: pool.clone() };
        let new = Some(NewKeys { k: &row, v: &row });
        attention_kvcache(&q, &mut cache, new, &options).unwrap_err().to_string()
    };
    let full = CacheOptions::causal(ints(&[4]));
    assert!(run(full).contains("k_new is 1 rows behind 4, valid is a total of at most 4"));
    let table = Tensor::from_vec(vec![1i32], [1, 1], &Device::Cpu).unwrap();
    let paged = CacheOptions { page_table: Some(table), ..CacheOptions::causal(ints(&[0])) };
    assert!(run(paged).contains("page_table is 1, valid is 0 to 0"));
    let splits = CacheOptions { num_splits: 300, ..CacheOptions::causal(ints(&[0])) };
    assert!(run(splits).contains("num_splits is 300"));
    let table = |positions: usize, half: usize| randn(4, &[positions, half], DType::F32);
    let rotary = |cos: Tensor| {
        let sin = cos.clone();
        let rotary = Some(Rotary { cos, sin, interleaved: false });
        run(CacheOptions { rotary, ..CacheOptions::causal(ints(&[3])) })
    };
    assert!(rotary(table(2, 4)).contains("rotary_cos is 2 positions, valid is at least 4"));
    assert!(rotary(table(9, 5)).contains("10 rotary features, valid is at most 8"));
}
