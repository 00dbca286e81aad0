//! Decoding attention: one new query a sequence against a paged cache, bf16, 64 heads on 8 key heads of
//! 128. The bytes are those of the keys and values in use; the ceiling is the driver's copy.
//!
//! A step is recorded once and replayed, as a program that decodes for long would: the host's part of a
//! call is longer than the smallest kernels.

use super::{Bench, Row};
use crate::{Error, Result};
use danaus_kernel::ops::attention::{CacheOptions, KvCache, attention_kvcache};
use danaus_runtime::cuda::Graph;
use danaus_tensor::{DType, Device, Tensor};

const HEADS: usize = 64;
const KV_HEADS: usize = 8;
const DIM: usize = 128;
const PAGE: usize = 16;

/// Sequences and keys of each.
const CASES: [[usize; 2]; 9] = [
    [1, 4096],
    [1, 32_768],
    [1, 131_072],
    [8, 4096],
    [8, 32_768],
    [8, 131_072],
    [64, 4096],
    [64, 32_768],
    [64, 65_536],
];

impl Bench {
    pub(super) fn decode(&self, report: &mut impl FnMut(&Row)) -> Result<()> {
        for [batch, keys] in CASES {
            let bytes = (2 * batch * keys * KV_HEADS * DIM * DType::BF16.size()) as f64;
            // Small caches would stay in the second-level cache from call to call: several take turns.
            let copies = ((512e6 / bytes) as usize).clamp(1, 16);
            let calls = ((4e9 / bytes) as usize).clamp(1, copies);
            let each = keys.div_ceil(PAGE);
            let pages = copies * batch * each;
            let rows = [pages, PAGE, KV_HEADS, DIM];
            let mut cache = KvCache {
                k: self.random(1, &rows, DType::BF16)?,
                v: self.random(2, &rows, DType::BF16)?,
            };
            let q = self.random(3, &[batch, 1, HEADS, DIM], DType::BF16)?;
            // Pages of a sequence lie far apart, as in a pool that has been used for a while.
            let options = |copy: usize| {
                let page = |i: usize| ((i % each * batch + i / each) * copies + copy) as i32;
                let table = (0..batch * each).map(page).collect();
                let table = Tensor::from_vec(table, [batch, each], &Device::Cpu)?;
                let used = Tensor::from_vec(vec![keys as i32; batch], [batch], &Device::Cpu)?;
                Ok(CacheOptions { page_table: Some(table), ..CacheOptions::causal(used) })
            };
            let options: Vec<CacheOptions> = (0..calls).map(options).collect::<Result<_>>()?;
            let mut chain = || {
                let mut call = |options| attention_kvcache(&q, &mut cache, None, options).map(drop);
                options.iter().try_for_each(&mut call)
            };
            // What is recorded has to have run once.
            chain()?;
            let (mut graph, ()) = Graph::capture(&self.gpu, chain)?;
            let replay = || Ok(graph.replay().map_err(danaus_tensor::Error::from)?);
            let median_ms = self.time(replay)? / calls as f64;
            let flops = 4.0 * (batch * keys * HEADS * DIM) as f64;
            report(&Row {
                what: format!("decode attention bf16, batch {batch}, {keys} keys, 64 : 8 heads"),
                median_ms,
                flops,
                bytes,
                // A copy reads and writes; this only reads.
                of_ceiling: Some(bytes / median_ms * 1e3 / self.copy),
            });
        }
        Ok::<(), Error>(())
    }
}
