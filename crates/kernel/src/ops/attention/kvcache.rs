//! Attention of new queries against a cache of keys and values: the decoding form.
//!
//! One call rotates the new queries and keys, appends the new keys and values behind the rows in use,
//! and attends to the cache, which may be contiguous (rows, capacity, kv_heads, dim) or paged (pages,
//! page_size, kv_heads, dim) with a page table. Long caches with few queries are split into parts of
//! the keys that run in parallel and are combined by their log-sum-exps; the split depends on the
//! shape alone. At [`Level::Invariant`] keys are never split by choice: a row then has the bits that it
//! has in a prompt of any length, because tiles lie at absolute positions and rows never meet. The cache
//! is written in place when nobody else holds its tensors, and copied once otherwise. No gradients.

use super::combine::combine_parts;
use super::cuda::cache;
use super::options::Attributes;
use super::prepare::{check_attributes, lengths, operand, readable, sizes};
use super::problem::{Inputs, Outputs, Pages, Problem, Sequence, WHOLE};
use super::rotary::Rotary;
use super::tile_range::Window;
use super::{forward, reference};
use crate::lists::list;
use crate::ops::rotary::{Positions, rotary as rotate};
use danaus_runtime::threads::SharedMut;
use danaus_tensor::{DType, Element, Error, Level, Result, Tensor, asked_level};
use half::{bf16, f16};

const OP: &str = "attention_kvcache";
/// Parts are multiples of this many keys.
const PART_GRAIN: usize = 64;
/// Tasks wanted before keys are split no further.
const TASKS: usize = 8;
/// Most parts of a sequence.
const MAX_SPLITS: usize = 256;

/// Cached keys and values.
#[derive(Clone)]
pub struct KvCache {
    /// Keys (rows, capacity, kv_heads, head_dim), or (pages, page_size, kv_heads, head_dim).
    pub k: Tensor,
    /// Values, alike with value_dim.
    pub v: Tensor,
}

/// Rows to append: (batch, new, kv_heads, dim).
#[derive(Clone, Copy)]
pub struct NewKeys<'a> {
    /// Keys before rotation.
    pub k: &'a Tensor,
    /// Values.
    pub v: &'a Tensor,
}

/// Where sequences lie, in device memory that its owner may rewrite between replays of a recorded call.
#[derive(Clone)]
pub struct CacheTables {
    /// The numbers of [`cache_sequences`].
    pub sequences: Tensor,
    /// The page table (batch, pages), i32.
    pub pages: Tensor,
}

/// What the kernels read about sequences that have one new row each and `ends` rows with it.
///
/// # Errors
/// When a length is more than an i32 counts.
pub fn cache_sequences(ends: &[usize]) -> Result<Vec<i32>> {
    let entry = |(b, &end): (usize, &usize)| [b, 0, 1, b, 0, end];
    let numbers = ends.iter().enumerate().flat_map(entry);
    let narrow = |number| {
        i32::try_from(number)
            .map_err(|_| Error::argument(OP, "cache_seqlens", number, "below 2^31"))
    };
    numbers.map(narrow).collect()
}

/// Where sequences lie in the cache, and how scores are made.
#[derive(Clone)]
pub struct CacheOptions {
    /// Rows in use per sequence before the call (batch).
    pub cache_seqlens: Tensor,
    /// Cache row of each sequence (batch); `None` is the sequence itself.
    pub cache_batch_idx: Option<Tensor>,
    /// First valid row of each sequence (batch); `None` is 0.
    pub cache_leftpad: Option<Tensor>,
    /// Pages of each sequence (batch, pages), i32 or i64; `None` for a contiguous cache.
    pub page_table: Option<Tensor>,
    /// Rotation of queries and new keys.
    pub rotary: Option<Rotary>,
    /// Hide keys to the right of the diagonal.
    pub causal: bool,
    /// Keys visible to the left of the diagonal.
    pub window_left: Option<usize>,
    /// Keys visible to the right of the diagonal.
    pub window_right: Option<usize>,
    /// Factor of the dot products; `None` is `head_dim^-1/2`.
    pub softmax_scale: Option<f64>,
    /// Cap of the scores.
    pub softcap: Option<f64>,
    /// Parts of the keys: 0 chooses by shape, 1 is none, at most 256.
    pub num_splits: usize,
    /// The lengths and the page table on a GPU, where they are there already; the same numbers as above.
    pub on_device: Option<CacheTables>,
}

impl CacheOptions {
    /// Causal attention to a contiguous cache with these rows in use.
    pub fn causal(cache_seqlens: Tensor) -> Self {
        Self {
            cache_seqlens,
            cache_batch_idx: None,
            cache_leftpad: None,
            page_table: None,
            rotary: None,
            causal: true,
            window_left: None,
            window_right: None,
            softmax_scale: None,
            softcap: None,
            num_splits: 0,
            on_device: None,
        }
    }

    pub(super) fn window(&self) -> Window {
        let right = if self.causal { Some(0) } else { self.window_right };
        Window { left: self.window_left, right }
    }

    pub(super) fn attributes(&self) -> Attributes {
        Attributes {
            window: self.window(),
            softmax_scale: self.softmax_scale,
            softcap: self.softcap,
            block_size: None,
            p_drop: 0.0,
            seed: 0,
            dropout_offset: 0,
        }
    }
}

/// A checked call.
pub(super) struct Plan {
    /// Cache row (or sequence of the page table) of each sequence.
    rows: Vec<usize>,
    /// Rows in use before the call.
    pub used: Vec<usize>,
    leftpad: Vec<usize>,
    /// Page table as indices.
    pub pages: Option<Vec<i32>>,
    pub per_sequence: usize,
    pub page_size: usize,
    pub new: usize,
}

/// Appends `new`, then attends: q (batch, q_len, heads, head_dim) -> `(out, lse)`.
///
/// # Errors
/// When shapes, dtypes, lengths, page indices or options do not fit; the message names the argument.
pub fn attention_kvcache(
    q: &Tensor,
    cache: &mut KvCache,
    new: Option<NewKeys>,
    options: &CacheOptions,
) -> Result<(Tensor, Tensor)> {
    let plan = Plan::new(q, cache, new, options)?;
    if q.device().is_cuda() {
        return on_cuda(&plan, q, cache, new, options);
    }
    let mut q = readable(q)?;
    let mut new_k = new.map(|new| new.k.detach());
    if let Some(rotary) = &options.rotary {
        let tables = rotary.tables(OP, q.dims()[3])?;
        let window = options.window();
        let moves = window.left.is_some() || window.right.is_some();
        let steps = plan.new.max(if moves { q.dims()[1] } else { 1 });
        tables.check(OP, plan.used.iter().max().map_or(0, |most| most + steps))?;
        q = tables.rotate_all(&q, |b, t| plan.used[b] + if moves { t } else { 0 })?;
        let rotate = |k: Tensor| tables.rotate_all(&k, |b, t| plan.used[b] + t);
        new_k = new_k.map(rotate).transpose()?;
    }
    if let (Some(k), Some(new)) = (new_k, new) {
        plan.append(&mut cache.k, &k)?;
        plan.append(&mut cache.v, new.v)?;
    }
    let attend = |dtype| match dtype {
        DType::F64 => plan.attend::<f64, f64>(&q, cache, options, |p, i, o| {
            // SAFETY: `Plan` checked every row and page against the shapes.
            unsafe { reference::forward(p, i, o) }
        }),
        DType::F32 => plan.attend::<f32, f32>(&q, cache, options, |p, i, o| {
            // SAFETY: as above.
            unsafe { forward::forward(p, i, o) }
        }),
        DType::F16 => plan.attend::<f16, f32>(&q, cache, options, |p, i, o| {
            // SAFETY: as above.
            unsafe { forward::forward(p, i, o) }
        }),
        _ => plan.attend::<bf16, f32>(&q, cache, options, |p, i, o| {
            // SAFETY: as above.
            unsafe { forward::forward(p, i, o) }
        }),
    };
    attend(q.dtype())
}

/// The call on a GPU: rotation by the rotary operator, the rest by `cuda/cache.rs`.
fn on_cuda(
    plan: &Plan,
    q: &Tensor,
    cache: &mut KvCache,
    new: Option<NewKeys>,
    options: &CacheOptions,
) -> Result<(Tensor, Tensor)> {
    cache::check_device(q, cache)?;
    let (mut q, mut k_new) = (q.detach(), new.map(|new| new.k.detach()));
    if let Some(rotary) = &options.rotary {
        let window = options.window();
        let moves = window.left.is_some() || window.right.is_some();
        q = plan.rotated(&q, rotary, moves)?;
        k_new = k_new.map(|k| plan.rotated(&k, rotary, true)).transpose()?;
    }
    let new = match (&k_new, new) {
        (Some(k), Some(new)) => Some(NewKeys { k, v: new.v }),
        _ => None,
    };
    let call = cache::Call::new(plan, options, &q, cache)?;
    if let Some(new) = new {
        call.append(cache, new)?;
    }
    call.attend(&q, cache, new)
}

impl KvCache {
    /// Appends new rows behind those in use and does nothing else; `options` says where sequences lie.
    ///
    /// # Errors
    /// As [`attention_kvcache`].
    pub fn append(&mut self, new: NewKeys, options: &CacheOptions) -> Result<()> {
        let plan = Plan::new(new.k, self, Some(new), options)?;
        if new.k.device().is_cuda() {
            cache::check_device(new.k, self)?;
            return cache::Call::new(&plan, options, new.k, self)?.append(self, new);
        }
        plan.append(&mut self.k, new.k)?;
        plan.append(&mut self.v, new.v)
    }
}

impl Plan {
    /// Rows (batch, rows, heads, dim) on a GPU, turned to their positions behind those in use.
    fn rotated(&self, x: &Tensor, rotary: &Rotary, moves: bool) -> Result<Tensor> {
        let rows = x.dims()[1];
        let step = |row: usize| if moves { row } else { 0 };
        let all = self.used.iter().flat_map(|&used| (0..rows).map(move |row| used + step(row)));
        let all: Vec<i64> = all.map(|position| position as i64).collect();
        let at = list(&all, &x.device())?.reshape([self.used.len(), rows])?;
        let (cos, sin) = (rotary.cos.to_device(&x.device())?, rotary.sin.to_device(&x.device())?);
        rotate(x, (&cos, &sin), Positions::At(&at), rotary.interleaved)
    }

    fn new(
        q: &Tensor,
        cache: &KvCache,
        new: Option<NewKeys>,
        options: &CacheOptions,
    ) -> Result<Self> {
        let (k, v) = (&cache.k, &cache.v);
        if q.rank() != 4 || k.rank() != 4 || v.rank() != 4 {
            let expected = "[batch, q_len, heads, head_dim], and four axes of the cache too";
            return Err(Error::shape(OP, "q", q.shape(), expected));
        }
        let batch = q.dims()[0];
        // The cache has its own first axis; everything else must agree as in plain attention.
        let pool =
            sizes(OP, [&q.narrow(0, 0, 0)?, &k.narrow(0, 0, 0)?, &v.narrow(0, 0, 0)?], false)?;
        if v.dims()[0] != k.dims()[0] {
            return Err(Error::shape(OP, "v_cache", v.shape(), "as many rows as k_cache"));
        }
        check_attributes(OP, &options.attributes())?;
        if options.num_splits > MAX_SPLITS {
            return Err(Error::argument(OP, "num_splits", options.num_splits, "0 to 256"));
        }
        let mut plan = Self {
            rows: (0..batch).collect(),
            used: Vec::new(),
            leftpad: vec![0; batch],
            pages: None,
            per_sequence: 0,
            page_size: pool.k_rows,
            new: new.map_or(0, |new| new.k.dims().get(1).copied().unwrap_or(0)),
        };
        let capacity = plan.place(k.dims()[0], batch, options)?;
        let most = |_| capacity;
        plan.used = lengths(OP, "cache_seqlens", &options.cache_seqlens, batch, most)?;
        if let Some(tensor) = &options.cache_leftpad {
            let most = |b: usize| plan.used[b];
            plan.leftpad = lengths(OP, "cache_leftpad", tensor, batch, most)?;
        }
        if let Some(new) = new {
            plan.check_new(new, cache, batch, capacity)?;
        }
        plan.check_pages(k.dims()[0])?;
        Ok(plan)
    }

    /// Reads the page table or the row indices; returns the rows that a sequence may have.
    fn place(&mut self, pool: usize, batch: usize, options: &CacheOptions) -> Result<usize> {
        match (&options.page_table, &options.cache_batch_idx) {
            (Some(_), Some(_)) => {
                let what = "cache_batch_idx with page_table";
                Err(Error::unsupported(OP, what, "order the rows of the page table instead"))
            }
            (Some(table), None) => {
                if table.rank() != 2 || table.dims()[0] != batch {
                    let expected = format!("[{batch}, pages]");
                    return Err(Error::shape(OP, "page_table", table.shape(), expected));
                }
                if self.page_size == 0 {
                    return Err(Error::argument(OP, "k_cache", "page size 0", "at least 1"));
                }
                self.per_sequence = table.dims()[1];
                if !matches!(table.dtype(), DType::I32 | DType::I64) {
                    return Err(Error::dtype(OP, "page_table", table.dtype(), "i32 or i64"));
                }
                self.pages = Some(table.to_dtype(DType::I32)?.to_vec::<i32>()?);
                Ok(self.per_sequence * self.page_size)
            }
            (None, Some(rows)) => {
                let most = |_| pool.saturating_sub(1);
                self.rows = lengths(OP, "cache_batch_idx", rows, batch, most)?;
                Ok(self.page_size)
            }
            (None, None) if pool == batch => Ok(self.page_size),
            (None, None) => {
                let given = format!("{pool} rows for {batch} sequences");
                Err(Error::argument(OP, "k_cache", given, "as many rows, or cache_batch_idx"))
            }
        }
    }

    fn check_new(&self, new: NewKeys, cache: &KvCache, batch: usize, most: usize) -> Result<()> {
        for (name, rows, cache) in [("k_new", new.k, &cache.k), ("v_new", new.v, &cache.v)] {
            let expected = [batch, self.new, cache.dims()[2], cache.dims()[3]];
            if rows.dims() != expected {
                return Err(Error::shape(OP, name, rows.shape(), format!("{expected:?}")));
            }
            if rows.dtype() != cache.dtype() {
                let allowed = format!("{} as the cache", cache.dtype());
                return Err(Error::dtype(OP, name, rows.dtype(), allowed));
            }
        }
        if let Some(used) = self.used.iter().find(|&used| used + self.new > most) {
            let given = format!("{} rows behind {used}", self.new);
            return Err(Error::argument(OP, "k_new", given, format!("a total of at most {most}")));
        }
        Ok(())
    }

    /// Every page that will be read or written exists.
    fn check_pages(&self, pool: usize) -> Result<()> {
        let Some(table) = &self.pages else { return Ok(()) };
        for (b, used) in self.used.iter().enumerate() {
            let count = (used + self.new).div_ceil(self.page_size.max(1));
            for &page in &table[b * self.per_sequence..][..count] {
                if page < 0 || page as usize >= pool {
                    let valid = format!("0 to {}", pool as i64 - 1);
                    return Err(Error::argument(OP, "page_table", page, valid));
                }
            }
        }
        Ok(())
    }

    /// Where row `row` of sequence `b` lies: (first axis, second axis).
    pub fn position(&self, b: usize, row: usize) -> (usize, usize) {
        match &self.pages {
            Some(table) => {
                let page = table[b * self.per_sequence + row / self.page_size];
                (page as usize, row % self.page_size)
            }
            None => (self.rows[b], row),
        }
    }

    /// Writes new rows behind those in use.
    fn append(&self, cache: &mut Tensor, rows: &Tensor) -> Result<()> {
        let rows = rows.detach().contiguous()?;
        match cache.dtype() {
            DType::F64 => self.append_typed::<f64>(cache, rows.as_slice()?),
            DType::F32 => self.append_typed::<f32>(cache, rows.as_slice()?),
            DType::F16 => self.append_typed::<f16>(cache, rows.as_slice()?),
            _ => self.append_typed::<bf16>(cache, rows.as_slice()?),
        }
    }

    fn append_typed<T: Element>(&self, cache: &mut Tensor, rows: &[T]) -> Result<()> {
        let dims = cache.dims().to_vec();
        if !cache.is_unique() {
            *cache = Tensor::from_vec(cache.to_vec::<T>()?, dims.as_slice(), &cache.device())?;
        }
        let width = dims[2] * dims[3];
        let target = cache.as_slice_mut::<T>()?;
        for (index, row) in rows.chunks_exact(width.max(1)).enumerate() {
            let (b, t) = (index / self.new, index % self.new);
            let (first, second) = self.position(b, self.used[b] + t);
            target[(first * dims[1] + second) * width..][..width].copy_from_slice(row);
        }
        Ok(())
    }

    /// Parts of the keys: as asked for, else enough to occupy a few cores.
    fn splits(&self, asked: usize, rows: usize, kv_heads: usize) -> usize {
        let longest = self.used.iter().max().map_or(0, |used| used + self.new);
        let tasks = self.used.len() * kv_heads * rows.div_ceil(64);
        let wanted = match asked {
            0 if asked_level() == Level::Invariant => 1,
            0 => TASKS / tasks.max(1),
            asked => asked,
        };
        wanted.clamp(1, longest.div_ceil(PART_GRAIN).max(1))
    }

    fn attend<T: Element, A: Element + num_traits::Float>(
        &self,
        q: &Tensor,
        cache: &KvCache,
        options: &CacheOptions,
        kernel: impl Fn(&Problem, Inputs<T>, Outputs<A, A>),
    ) -> Result<(Tensor, Tensor)> {
        let dims = q.dims();
        let (batch, q_len, heads, head_dim) = (dims[0], dims[1], dims[2], dims[3]);
        let (kv_heads, value_dim) = (cache.k.dims()[2], cache.v.dims()[3]);
        let (k, v) = (readable(&cache.k)?, readable(&cache.v)?);
        let pages = self.pages.as_deref().map(|table| Pages {
            table,
            per_sequence: self.per_sequence,
            page_size: self.page_size,
        });
        let (mut k_rows, mut v_rows) = (operand::<T>(&k)?, operand::<T>(&v)?);
        if let Some(pages) = pages {
            (k_rows, v_rows) = (k_rows.paged(pages), v_rows.paged(pages));
        }
        let parts = self.splits(options.num_splits, q_len * heads / kv_heads, kv_heads);
        let mut problem = Problem::dense(0, [q_len, 0], [heads, kv_heads], [head_dim, value_dim]);
        problem.softmax_scale = options.softmax_scale.unwrap_or(problem.softmax_scale);
        problem.softcap = options.softcap;
        problem.window = options.window();
        problem.sequences = self.sequences(parts, q_len, heads);
        let rows = batch * q_len * heads;
        let mut out = vec![A::zero(); parts * rows * value_dim];
        let mut lse = vec![A::neg_infinity(); parts * rows];
        let outputs = Outputs {
            out: SharedMut::new(&mut out),
            out_batch_stride: q_len * heads * value_dim,
            lse: SharedMut::new(&mut lse),
        };
        kernel(&problem, Inputs { q: operand(q)?, k: k_rows, v: v_rows }, outputs);
        let (out, lse) = combine_parts(parts, [batch, q_len, heads, value_dim], out, lse);
        let out = Tensor::from_vec(out, [batch, q_len, heads, value_dim], &q.device())?;
        let lse = Tensor::from_vec(lse, [batch, heads, q_len], &q.device())?;
        Ok((out.to_dtype(q.dtype())?, lse))
    }

    /// One entry per part and sequence; part `p` of sequence `b` writes batch entry `p * batch + b`.
    pub fn sequences(&self, parts: usize, q_len: usize, heads: usize) -> Vec<Sequence> {
        let batch = self.used.len();
        let longest = self.used.iter().max().map_or(0, |used| used + self.new);
        let grain = longest.div_ceil(parts).next_multiple_of(PART_GRAIN);
        let entry = |index: usize| {
            let (part, b) = (index / batch, index % batch);
            let end = if part + 1 == parts { usize::MAX } else { (part + 1) * grain };
            Sequence {
                q_batch: b,
                out_batch: index,
                kv_batch: if self.pages.is_some() { b } else { self.rows[b] },
                q_start: 0,
                q_len,
                k_start: self.leftpad[b],
                k_len: self.used[b] + self.new - self.leftpad[b],
                lse_start: index * heads * q_len,
                part: if parts == 1 { WHOLE } else { [part * grain, end] },
            }
        };
        (0..parts * batch).map(entry).collect()
    }
}
