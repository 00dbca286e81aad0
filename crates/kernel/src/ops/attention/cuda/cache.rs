//! The decoding form on a GPU: append, attend to the cache, join parts.
//!
//! | rows of a key head | path |
//! | --- | --- |
//! | up to [`FEW_ROWS`], bf16, heads of 64, 128 or 256 | `decode.cuh`: keys split into parts, memory-bound |
//! | more, bf16, in an empty cache | attention of the new rows alone, on Hopper |
//! | more, bf16, otherwise | the rows in use are gathered once, then as above |
//! | any other, and all at [`Level::Invariant`] | the plain kernel, which reads pages too |
//!
//! At the invariant level keys are not split by choice: the plain kernel gives a row the bits that it has
//! in a prompt of any length. Otherwise a paged cache is split by the room of its page table and not by the
//! lengths, so that a call that was recorded serves every length up to there, with the same bits.

use super::super::kvcache::{CacheOptions, KvCache, NewKeys, Plan};
use super::super::options::AttentionOptions;
use super::super::prepare::readable;
use super::super::problem::Sequence;
use super::super::{attention, attention_varlen};
use super::plain::{PlainProblem, blocks, check_dims, launch_forward, scores, sequence_list};
use super::{PLAIN_PROBLEM, RowView, config, int};
use crate::device::{MATH, TYPES};
use crate::lists::list;
use danaus_runtime::cuda::{Argument, Defines, Gpu, Header, Launch, Source, Variant};
use danaus_tensor::cuda::{BLOCK, PHILOX, SCALAR, device_type};
use danaus_tensor::{DType, Device, Error, Level, Result, Tensor, asked_level};
use std::sync::Arc;

const OP: &str = "attention_kvcache";
const HEADERS: &[Header] = &[SCALAR, BLOCK, PHILOX, PLAIN_PROBLEM, TYPES, MATH];
static CACHE: Source = Source::new("cache.cuh", include_str!("../cache.cuh"), HEADERS);
static DECODE: Source = Source::new("decode.cuh", include_str!("../decode.cuh"), HEADERS);

/// Packed rows of a key head up to which the cache is streamed past them, eight at a time.
const FEW_ROWS: usize = 64;
/// Packed rows of a block of the decoding kernel, and its threads.
const DECODE_ROWS: usize = 8;
const DECODE_THREADS: u32 = 128;

/// A checked call on a GPU.
pub(in super::super) struct Call<'a> {
    pub plan: &'a Plan,
    pub options: &'a CacheOptions,
    /// Sequences with the new rows counted in.
    sequences: Vec<Sequence>,
    device: Device,
}

impl<'a> Call<'a> {
    pub(in super::super) fn new(
        plan: &'a Plan,
        options: &'a CacheOptions,
        q: &Tensor,
        cache: &KvCache,
    ) -> Result<Self> {
        let (q_len, heads) = (q.dims()[1], q.dims()[2]);
        check_dims(OP, [cache.k.dims()[3], cache.v.dims()[3]])?;
        Ok(Self { sequences: plan.sequences(1, q_len, heads), plan, options, device: q.device() })
    }

    /// The problem over the cache; what it points to beyond the cache is in the second part.
    fn problem(
        &self,
        cache: [&Tensor; 2],
        [heads, head_dim]: [usize; 2],
    ) -> Result<(PlainProblem, Vec<Tensor>)> {
        let [k, v] = cache;
        let given = self.options.on_device.as_ref();
        let mut kept = vec![match given {
            Some(tables) => tables.sequences.clone(),
            None => sequence_list(&self.sequences, &self.device)?,
        }];
        let mut p = scores(&self.options.attributes(), head_dim);
        (p.k, p.v) = (RowView::of(k)?.rows, RowView::of(v)?.rows);
        p.sequences = kept[0].device_address()?;
        let kv_heads = k.dims()[2];
        (p.batch, p.heads) = (int(self.sequences.len())?, int(heads)?);
        (p.kv_heads, p.group) = (int(kv_heads)?, int(heads / kv_heads)?);
        (p.head_dim, p.value_dim) = (int(head_dim)?, int(v.dims()[3])?);
        if let Some(pages) = &self.plan.pages {
            (p.per_sequence, p.page_size) =
                (int(self.plan.per_sequence)?, int(self.plan.page_size)?);
            let table = match given {
                Some(tables) => tables.pages.clone(),
                None => list(pages, &self.device)?,
            };
            p.pages = table.device_address()?;
            kept.push(table);
        }
        Ok((p, kept))
    }

    /// Writes the new rows, which may be views, into the cache.
    pub(in super::super) fn append(&self, cache: &mut KvCache, new: NewKeys) -> Result<()> {
        for tensor in [&mut cache.k, &mut cache.v] {
            if !(tensor.is_unique() && tensor.is_contiguous()) {
                *tensor = tensor.detach().copy()?;
            }
        }
        let (batch, fresh) = (self.sequences.len(), self.plan.new);
        let dtype = cache.k.dtype();
        let (k_new, v_new) = (readable(new.k)?, readable(new.v)?);
        let head_dim = cache.k.dims()[3];
        let kv_heads = cache.k.dims()[2];
        cache.k.device_address_mut()?;
        cache.v.device_address_mut()?;
        let (p, _kept) = self.problem([&cache.k, &cache.v], [kv_heads, head_dim])?;
        let elements = batch * fresh * kv_heads * (head_dim + cache.v.dims()[3]);
        if elements == 0 {
            return Ok(());
        }
        let element = device_type(OP, dtype)?;
        let gpu = cache.k.gpu()?;
        let kernel = gpu.kernel(&CACHE, "cache_append", &cache_defines(element, element))?;
        let (k_rows, v_rows) = (RowView::of(&k_new)?.rows, RowView::of(&v_new)?.rows);
        let (count, launch) =
            (int(fresh)?, Launch::linear(int(elements.div_ceil(256))? as u32, 256));
        let arguments: [&dyn Argument; 4] = [&p, &k_rows, &v_rows, &count];
        // SAFETY: `Plan` checked every row and page; nobody else holds the cache's tensors.
        unsafe { kernel.launch(&launch, &arguments) }.map_err(Into::into)
    }

    /// Attention to the cache, in which the new rows are.
    pub(in super::super) fn attend(
        &self,
        q: &Tensor,
        cache: &KvCache,
        new: Option<NewKeys>,
    ) -> Result<(Tensor, Tensor)> {
        let dims = q.dims();
        let (q_len, heads, head_dim) = (dims[1], dims[2], dims[3]);
        let group = heads / cache.k.dims()[2];
        let units = q.dtype() == DType::BF16
            && cache.v.dims()[3] == head_dim
            && [64, 128, 256].contains(&head_dim)
            && asked_level() != Level::Invariant;
        if units && q_len * group > FEW_ROWS && self.options.num_splits <= 1 {
            return self.read_prompt(q, cache, new);
        }
        self.stream(q, cache, units && q_len * group <= FEW_ROWS)
    }

    fn options(&self) -> AttentionOptions {
        let window = self.options.window();
        AttentionOptions {
            causal: false,
            window_left: window.left,
            window_right: window.right,
            softmax_scale: self.options.softmax_scale,
            softcap: self.options.softcap,
            ..AttentionOptions::default()
        }
    }

    /// Many rows: from the new keys alone where there are no others, else from a copy of those in use.
    fn read_prompt(
        &self,
        q: &Tensor,
        cache: &KvCache,
        new: Option<NewKeys>,
    ) -> Result<(Tensor, Tensor)> {
        let (batch, q_len) = (q.dims()[0], q.dims()[1]);
        if let Some(new) = new.filter(|_| self.plan.used.iter().all(|&used| used == 0)) {
            return attention(&q.detach(), &new.k.detach(), &new.v.detach(), &self.options());
        }
        let mut rows = Vec::new();
        let mut ends = vec![0i32];
        for (b, s) in self.sequences.iter().enumerate() {
            for row in s.k_start..s.k_start + s.k_len {
                let (first, second) = self.plan.position(b, row);
                rows.push((first * cache.k.dims()[1] + second) as i64);
            }
            ends.push(int(rows.len())?);
        }
        let rows = Tensor::from_slice(&rows, [rows.len()], &self.device)?;
        let used = |tensor: &Tensor| tensor.detach().flatten(0, 1)?.index_select(0, &rows);
        let (k, v) = (used(&cache.k)?, used(&cache.v)?);
        let q_ends: Vec<i32> = (0..=batch).map(|b| int(b * q_len)).collect::<Result<_>>()?;
        let q_ends = Tensor::from_vec(q_ends, [batch + 1], &Device::Cpu)?;
        let k_ends = Tensor::from_vec(ends, [batch + 1], &Device::Cpu)?;
        let packed = q.detach().flatten(0, 1)?;
        let (out, lse) = attention_varlen([&packed, &k, &v], &q_ends, &k_ends, &self.options())?;
        let heads = q.dims()[2];
        let lse = lse.reshape([heads, batch, q_len])?.transpose(0, 1)?.contiguous()?;
        Ok((out.reshape([batch, q_len, heads, v.dims()[2]])?, lse))
    }

    /// Parts of the keys, and the keys of a part.
    fn cut(&self, base: usize, longest: usize, multiprocessors: usize) -> (usize, usize) {
        let parts = match self.options.num_splits {
            0 if asked_level() == Level::Invariant => 1,
            0 => config::parts(base, longest, multiprocessors),
            asked => asked,
        };
        let grain = longest.div_ceil(parts.max(1)).next_multiple_of(config::PART_GRAIN);
        (longest.div_ceil(grain.max(1)).max(1), grain)
    }

    /// Few rows, or options that only the plain kernel has.
    fn stream(&self, q: &Tensor, cache: &KvCache, units: bool) -> Result<(Tensor, Tensor)> {
        let dims = q.dims();
        let [batch, q_len, heads, head_dim] = [dims[0], dims[1], dims[2], dims[3]];
        let (k, v) = (readable(&cache.k)?, readable(&cache.v)?);
        let (value_dim, sum) = (v.dims()[3], q.dtype().accumulator());
        let mut out = Tensor::empty([batch, q_len, heads, value_dim], q.dtype(), &self.device)?;
        let mut lse = Tensor::empty([batch, heads, q_len], sum, &self.device)?;
        if out.elem_count() == 0 {
            return Ok((out, lse));
        }
        let (mut p, _kept) = self.problem([&k, &v], [heads, head_dim])?;
        let q = match units {
            // Rows are read 16 bytes at a time.
            true => super::aligned(q)?,
            false => readable(q)?,
        };
        p.q = RowView::of(&q)?.rows;
        (p.lse_head, p.lse_batch) = (q_len as i64, (heads * q_len) as i64);
        p.lse_part = (batch * heads * q_len) as i64;
        let longest = match self.plan.pages.is_some() {
            true => self.plan.per_sequence * self.plan.page_size,
            false => self.sequences.iter().map(|s| s.k_len).max().unwrap_or(0),
        };
        let group = heads / k.dims()[2];
        let row_tiles = (q_len * group).div_ceil(if units { DECODE_ROWS } else { 64 });
        let gpu = q.gpu()?.clone();
        let base = row_tiles * k.dims()[2] * batch;
        let (parts, grain) = self.cut(base, longest, gpu.limits().multiprocessors as usize);
        p.part_keys = if parts > 1 { int(grain)? } else { 0 };
        let (mut partial, mut partial_lse) = (None, None);
        if parts > 1 {
            partial = Some(Tensor::empty([parts, out.elem_count()], sum, &self.device)?);
            partial_lse = Some(Tensor::empty([parts, lse.elem_count()], sum, &self.device)?);
        }
        let result = if parts > 1 { sum } else { q.dtype() };
        p.out = RowView::of(&out)?.rows;
        out.device_address_mut()?;
        p.lse = lse.device_address_mut()?;
        if let (Some(partial), Some(partial_lse)) = (&mut partial, &mut partial_lse) {
            p.out.data = partial.device_address_mut()?;
            p.lse = partial_lse.device_address_mut()?;
        }
        // SAFETY: `Plan` checked every row and page against the cache; outputs are fresh and as large as
        // the parts.
        unsafe {
            match units {
                true => launch_decode(&gpu, &p, [row_tiles, parts])?,
                false => launch_forward(&gpu, &p, [q.dtype(), result], [q_len, parts])?,
            }
        }
        if let (Some(partial), Some(partial_lse)) = (&partial, &partial_lse) {
            p.lse = lse.device_address_mut()?;
            join(&p, [partial, partial_lse], [parts, q_len], &mut out)?;
        }
        Ok((out, lse))
    }
}

/// # Safety
/// Every address of the problem is that of live memory of the shapes that it states.
unsafe fn launch_decode(
    gpu: &Arc<Gpu>,
    p: &PlainProblem,
    [row_tiles, parts]: [usize; 2],
) -> Result<()> {
    let defines = Defines::new().set("ELEMENT", "bf16").set("DIM", p.head_dim);
    let name = if parts > 1 { "attention_decode_part" } else { "attention_decode" };
    let launch = Launch::linear(blocks(row_tiles, p, parts)?, DECODE_THREADS);
    let tiles = int(row_tiles)?;
    let kernel = gpu.kernel(&DECODE, name, &defines)?;
    // SAFETY: promised by the caller.
    unsafe { kernel.launch(&launch, &[p, &tiles, &p.out.data]) }.map_err(Into::into)
}

/// Writes `out`, and the log-sum-exps that the problem points to, from the parts.
fn join(
    p: &PlainProblem,
    [partial, partial_lse]: [&Tensor; 2],
    [parts, q_len]: [usize; 2],
    out: &mut Tensor,
) -> Result<()> {
    let defines = cache_defines(device_type(OP, partial.dtype())?, device_type(OP, out.dtype())?);
    let gpu = partial.gpu()?.clone();
    let kernel = gpu.kernel(&CACHE, "attention_join", &defines)?;
    let (from, from_lse) = (partial.device_address()?, partial_lse.device_address()?);
    let rows = out.elem_count() / p.value_dim.max(1) as usize;
    let (to, count, queries) = (out.device_address_mut()?, int(parts)?, int(q_len)?);
    let mut launch = Launch::linear(int(rows)? as u32, 128);
    if gpu.arch().major() >= 9 {
        launch = launch.dependent();
    }
    let arguments: [&dyn Argument; 6] = [p, &from, &from_lse, &count, &queries, &to];
    // SAFETY: parts, sums and result have the sizes that the problem states; the kernel waits for the one
    // that writes the parts.
    unsafe { kernel.launch(&launch, &arguments) }.map_err(Into::into)
}

fn cache_defines(element: &str, result: &str) -> Defines {
    Defines::new().set("ELEMENT", element).set("RESULT", result)
}

/// Refuses what no kernel of this form does, before anything is written.
pub(in super::super) fn check_device(q: &Tensor, cache: &KvCache) -> Result<()> {
    for (arg, tensor) in [("k_cache", &cache.k), ("v_cache", &cache.v)] {
        if tensor.device() != q.device() {
            let (arg, found, expected) = (arg.to_string(), tensor.device(), q.device());
            return Err(Error::DeviceMismatch { op: OP, arg, found, expected });
        }
    }
    Ok(())
}

/// The kernels that are shipped.
pub(super) fn variants() -> Vec<Variant> {
    let pairs = [("bf16", "bf16"), ("float", "bf16"), ("float", "float"), ("double", "double")];
    let mut all: Vec<Variant> = pairs
        .into_iter()
        .map(|(element, result)| Variant::new(CACHE.clone(), cache_defines(element, result)))
        .collect();
    for dim in [64, 128, 256] {
        let defines = Defines::new().set("ELEMENT", "bf16").set("DIM", dim);
        let spills = (dim == 256).then_some("one value, outside of the loop");
        all.push(Variant { spills, ..Variant::new(DECODE.clone(), defines) });
    }
    all
}
