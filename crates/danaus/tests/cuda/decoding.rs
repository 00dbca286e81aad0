//! The decoding form of attention: appending, pages, parts, against the processor's in f32 on the same
//! values. bf16 results are rounded once and probabilities before their product: 2^-7 of the norm.

use crate::attention::assert_near;
use crate::{assert_same, gpu, randn};
use danaus::kernel::ops::attention::{CacheOptions, KvCache, NewKeys, Rotary, attention_kvcache};
use danaus::kernel::ops::rotary::tables;
use danaus::tensor::{DType, Device, Level, Tensor, with_level};

/// A cache in pages of `page` rows, in an order that is not that of the sequences.
struct Case {
    heads: [usize; 2],
    dim: usize,
    page: usize,
    used: Vec<i32>,
    new: usize,
}

impl Case {
    fn table(&self) -> Tensor {
        let longest = self.used.iter().max().copied().unwrap_or(0) as usize + self.new;
        let (each, count) = (longest.div_ceil(self.page), self.used.len());
        let pages: Vec<i32> = (0..each * count).rev().map(|page| page as i32).collect();
        Tensor::from_vec(pages, [count, each], &Device::Cpu).unwrap()
    }

    /// Runs it on a device in a dtype: out, lse, and the cache after it.
    fn run(
        &self,
        device: &Device,
        dtype: DType,
        options: impl Fn(CacheOptions) -> CacheOptions,
    ) -> Vec<Tensor> {
        let (table, count) = (self.table(), self.used.len());
        let pages = table.elem_count();
        let [heads, kv_heads] = self.heads;
        let made = |seed, shape: &[usize]| {
            let values = randn(seed, shape, DType::BF16).to_dtype(dtype).unwrap();
            values.to_device(device).unwrap()
        };
        let mut cache = KvCache {
            k: made(1, &[pages, self.page, kv_heads, self.dim]),
            v: made(2, &[pages, self.page, kv_heads, self.dim]),
        };
        let rows = |seed, heads| made(seed, &[count, self.new, heads, self.dim]);
        let (q, k, v) = (rows(3, heads), rows(4, kv_heads), rows(5, kv_heads));
        let used = Tensor::from_vec(self.used.clone(), [count], &Device::Cpu).unwrap();
        let paged = CacheOptions { page_table: Some(table), ..CacheOptions::causal(used) };
        let new = Some(NewKeys { k: &k, v: &v });
        let (out, lse) = attention_kvcache(&q, &mut cache, new, &options(paged)).unwrap();
        vec![out, lse, cache.k, cache.v]
    }

    fn check(&self, what: &str, options: impl Fn(CacheOptions) -> CacheOptions) {
        let Some(device) = gpu() else { return };
        let expected = self.run(&Device::Cpu, DType::F32, &options);
        for dtype in [DType::BF16, DType::F32] {
            let found = self.run(&device, dtype, &options);
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let what = format!("{what}, {dtype}, output {index}");
                match dtype {
                    DType::F32 => assert_same(&what, found, expected),
                    _ => assert_near(&what, found, expected),
                }
            }
        }
    }
}

#[test]
fn caches_of_every_shape() {
    for dim in [64, 128, 256, 80] {
        for (heads, page) in [([8, 1], 16), ([6, 2], 7), ([3, 3], 64), ([32, 2], 16)] {
            for new in [1, 3] {
                let case = Case { heads, dim, page, used: vec![0, 5, 300, 1027, 16], new };
                let what = format!("cache, d {dim}, heads {heads:?}, pages of {page}, {new} new");
                case.check(&what, |options| options);
            }
        }
    }
}

#[test]
fn windows_caps_and_parts() {
    for num_splits in [0, 1, 2, 7] {
        let case = Case { heads: [8, 2], dim: 128, page: 16, used: vec![900, 3, 1500], new: 2 };
        case.check(&format!("{num_splits} parts"), |options| CacheOptions {
            num_splits,
            window_left: Some(400),
            softcap: Some(4.0),
            softmax_scale: Some(0.2),
            ..options
        });
    }
}

/// Prompts: many rows into an empty cache and behind others.
#[test]
fn prompts_into_a_cache() {
    for used in [vec![0, 0], vec![70, 0], vec![33, 200]] {
        for dim in [64, 96] {
            let case = Case { heads: [4, 2], dim, page: 16, used: used.clone(), new: 130 };
            case.check(&format!("prompt behind {used:?}, d {dim}"), |options| CacheOptions {
                window_left: Some(150),
                ..options
            });
        }
    }
}

#[test]
fn rotation_and_padding_on_the_left() {
    let case = Case { heads: [4, 2], dim: 64, page: 16, used: vec![40, 90], new: 2 };
    case.check("rotary", |options| {
        let (cos, sin) = tables(128, 64, 10_000.0).unwrap();
        let leftpad = Tensor::from_vec(vec![3i32, 0], [2], &Device::Cpu).unwrap();
        let rotary = Some(Rotary { cos, sin, interleaved: false });
        CacheOptions { rotary, cache_leftpad: Some(leftpad), ..options }
    });
}

/// At the invariant level a row has the same bits alone, in company, and in a prompt.
#[test]
fn invariant_rows() {
    let Some(device) = gpu() else { return };
    let run = |used: Vec<i32>, new: usize| {
        let case = Case { heads: [8, 2], dim: 128, page: 16, used, new };
        with_level(Level::Invariant, || case.run(&device, DType::BF16, |options| options))
    };
    // The first sequence's pages differ with the company, so only sequences alone are compared.
    let (step, prompt) = (run(vec![500], 1), run(vec![500], 1));
    assert!(step[0].to_vec::<half::bf16>().unwrap() == prompt[0].to_vec::<half::bf16>().unwrap());
    let case = Case { heads: [8, 2], dim: 128, page: 16, used: vec![500], new: 1 };
    let whole = with_level(Level::Invariant, || {
        case.run(&device, DType::BF16, |options| CacheOptions { num_splits: 1, ..options })
    });
    assert!(step[0].to_vec::<half::bf16>().unwrap() == whole[0].to_vec::<half::bf16>().unwrap());
}
