//! Keys and values of the sequences of one layer, in pages.
//!
//! All sequences of a pool share one [`Arena`] a layer: `[pages, 16, kv_heads, head_dim]` each for keys
//! and values. A sequence is a list of pages, so one attention call serves any number of them, a cache
//! grows by a page instead of by a copy of itself, and a snapshot shares its pages until somebody
//! writes into one (only a last, partly filled page is ever copied). The arena itself doubles when it
//! is full.

use super::StepLists;
use super::step::table_pages;
use danaus_kernel::ops::attention::{CacheOptions, KvCache, NewKeys, attention_kvcache};
use danaus_tensor::{DType, Device, Error, Result, Tensor};
use std::hash::Hasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Tokens of a page.
pub const PAGE: usize = 16;
/// Pages of a new arena.
const FIRST_PAGES: usize = 8;

/// The pages of one layer.
struct Arena {
    cache: KvCache,
    /// How many sequences and snapshots hold each page.
    holders: Vec<u32>,
    free: Vec<u32>,
}

/// The pages of one sequence in one layer.
pub struct KvState {
    arena: Arc<Mutex<Arena>>,
    pages: Vec<u32>,
    len: usize,
}

impl Arena {
    fn page_len(&self) -> [usize; 2] {
        [&self.cache.k, &self.cache.v].map(|tensor| tensor.dims()[1..].iter().product())
    }

    /// A page that nobody holds.
    fn take(&mut self) -> Result<u32> {
        if self.free.is_empty() {
            self.grow()?;
        }
        let page = self.free.pop().ok_or_else(|| Error::internal("a grown arena has no page"))?;
        self.holders[page as usize] = 1;
        Ok(page)
    }

    fn grow(&mut self) -> Result<()> {
        let count = self.holders.len();
        let more = count.max(FIRST_PAGES);
        for tensor in [&mut self.cache.k, &mut self.cache.v] {
            let mut dims = tensor.dims().to_vec();
            dims[0] = more;
            let room = Tensor::zeros(dims, tensor.dtype(), &tensor.device())?;
            *tensor = if count == 0 { room } else { Tensor::cat(&[tensor, &room], 0)? };
        }
        self.holders.resize(count + more, 0);
        // Pages are handed out from the end of the list: lower ones first.
        self.free.extend((count as u32..(count + more) as u32).rev());
        Ok(())
    }

    fn hold(&mut self, pages: &[u32]) {
        pages.iter().for_each(|&page| self.holders[page as usize] += 1);
    }

    fn let_go(&mut self, pages: &[u32]) {
        for &page in pages {
            let holders = &mut self.holders[page as usize];
            *holders -= 1;
            if *holders == 0 {
                self.free.push(page);
            }
        }
    }

    /// A copy of a page that belongs to one sequence alone.
    fn copy(&mut self, page: u32) -> Result<u32> {
        let target = self.take()?;
        // Copies, so that the arena has its tensors to itself when it writes.
        let rows = |tensor: &Tensor| tensor.narrow(0, page as usize, 1)?.copy();
        let (k, v) = (rows(&self.cache.k)?, rows(&self.cache.v)?);
        self.write(&[target], &k, &v)?;
        Ok(target)
    }

    /// Overwrites the first tokens of some pages with those of one sequence, `[1, len, kv_heads,
    /// head_dim]` each.
    fn write(&mut self, pages: &[u32], k: &Tensor, v: &Tensor) -> Result<()> {
        let table: Vec<i32> = pages.iter().map(|&page| page as i32).collect();
        let table = Tensor::from_vec(table, [1, pages.len()], &Device::Cpu)?;
        let none = Tensor::from_vec(vec![0i32], [1], &Device::Cpu)?;
        let paged = CacheOptions { page_table: Some(table), ..CacheOptions::causal(none) };
        self.cache.append(NewKeys { k, v }, &paged)
    }
}

impl Clone for KvState {
    fn clone(&self) -> Self {
        self.lock().hold(&self.pages);
        Self { arena: self.arena.clone(), pages: self.pages.clone(), len: self.len }
    }
}

impl Drop for KvState {
    fn drop(&mut self) {
        self.lock().let_go(&self.pages);
    }
}

impl KvState {
    /// An empty cache with an arena of its own; its clones share the arena.
    ///
    /// # Errors
    /// When the dtype is none of f64, f32 and bf16.
    pub fn new(kv_heads: usize, head_dim: usize, dtype: DType) -> Result<Self> {
        if !matches!(dtype, DType::F64 | DType::F32 | DType::BF16) {
            return Err(Error::dtype("kv state", "cache", dtype, "f64, f32 or bf16"));
        }
        let empty = || Tensor::zeros([0, PAGE, kv_heads, head_dim], dtype, &Device::Cpu);
        let cache = KvCache { k: empty()?, v: empty()? };
        let arena = Arena { cache, holders: Vec::new(), free: Vec::new() };
        Ok(Self { arena: Arc::new(Mutex::new(arena)), pages: Vec::new(), len: 0 })
    }

    /// The same content on a device, in an arena of its own unless it is there already.
    ///
    /// # Errors
    /// When the device cannot be used or has no memory.
    pub(super) fn to_device(&self, device: &Device) -> Result<Self> {
        let arena = self.lock();
        if arena.cache.k.device() == *device {
            drop(arena);
            return Ok(self.clone());
        }
        let empty = |tensor: &Tensor| tensor.narrow(0, 0, 0)?.to_device(device);
        let cache = KvCache { k: empty(&arena.cache.k)?, v: empty(&arena.cache.v)? };
        drop(arena);
        let arena = Arena { cache, holders: Vec::new(), free: Vec::new() };
        let fresh = Self { arena: Arc::new(Mutex::new(arena)), pages: Vec::new(), len: 0 };
        if self.is_empty() {
            return Ok(fresh);
        }
        let (k, v) = self.used()?;
        fresh.filled(&k, &v)
    }

    fn lock(&self) -> MutexGuard<'_, Arena> {
        // Every change of an arena is complete before anything can fail.
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is in the cache.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether two sequences lie in one arena, so that one call can serve both.
    pub fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.arena, &other.arena)
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        let beyond = self.pages.split_off(self.len.div_ceil(PAGE));
        self.lock().let_go(&beyond);
    }

    /// The pages, in the order of the tokens.
    pub(super) fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Tells arenas apart.
    pub(super) fn arena_key(&self) -> usize {
        Arc::as_ptr(&self.arena) as usize
    }

    /// Where keys and values of the arena begin on a GPU.
    pub(super) fn addresses(&self) -> Result<[u64; 2]> {
        let arena = self.lock();
        Ok([arena.cache.k.device_address()?, arena.cache.v.device_address()?])
    }

    /// Makes room for `count` more tokens.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn make_room(&mut self, count: usize) -> Result<()> {
        let arena = self.arena.clone();
        let mut arena = arena.lock().unwrap_or_else(PoisonError::into_inner);
        self.extend(&mut arena, count)
    }

    /// Makes the arena large enough for `pages` pages more, so that it stays where it is while they last.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn reserve(&self, pages: usize) -> Result<()> {
        let mut arena = self.lock();
        while arena.free.len() < pages {
            arena.grow()?;
        }
        Ok(())
    }

    /// Counts a token that a replayed step has put into the room for it.
    pub(super) fn count_one(&mut self) {
        self.len += 1;
    }

    /// Makes room for `count` more tokens in pages of its own.
    fn extend(&mut self, arena: &mut Arena, count: usize) -> Result<()> {
        if !self.len.is_multiple_of(PAGE)
            && let Some(last) = self.pages.last_mut()
            && arena.holders[*last as usize] > 1
        {
            let copy = arena.copy(*last)?;
            arena.let_go(&[*last]);
            *last = copy;
        }
        while self.pages.len() * PAGE < self.len + count {
            self.pages.push(arena.take()?);
        }
        Ok(())
    }

    /// Appends new keys and values to several sequences beside each other, the same number to each,
    /// and attends: q `[sequences, n, heads, head_dim]` to the output alike. `step` has the lists on the
    /// device where they are there already.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit, the sequences lie in different arenas, or there is no memory.
    pub fn attend(
        states: &mut [&mut Self],
        q: &Tensor,
        new: NewKeys,
        step: Option<&StepLists>,
        options: impl FnOnce(CacheOptions) -> CacheOptions,
    ) -> Result<Tensor> {
        let count = new.k.dims()[1];
        let Some(arena) = states.first().map(|state| state.arena.clone()) else {
            return Err(Error::argument("kv state", "states", "none", "at least one"));
        };
        if states.iter().any(|state| !Arc::ptr_eq(&state.arena, &arena)) {
            let valid = "sequences of one pool";
            return Err(Error::argument("kv state", "states", "of several pools", valid));
        }
        let key = Arc::as_ptr(&arena) as usize;
        let mut arena = arena.lock().unwrap_or_else(PoisonError::into_inner);
        for state in states.iter_mut() {
            state.extend(&mut arena, count)?;
        }
        let longest = states.iter().map(|state| state.pages.len()).max().unwrap_or(0);
        // On a GPU keys are cut by the room of the table.
        let per_sequence = if q.device().is_cuda() { table_pages(longest) } else { longest };
        let mut table = vec![0i32; states.len() * per_sequence];
        for (state, row) in states.iter().zip(table.chunks_mut(per_sequence.max(1))) {
            row.iter_mut().zip(&state.pages).for_each(|(to, page)| *to = *page as i32);
        }
        let used: Vec<i32> = states.iter().map(|state| state.len as i32).collect();
        let used = Tensor::from_vec(used, [states.len()], &Device::Cpu)?;
        let table = Tensor::from_vec(table, [states.len(), per_sequence], &Device::Cpu)?;
        let on_device = step.and_then(|step| step.cache(key));
        let paged =
            CacheOptions { page_table: Some(table), on_device, ..CacheOptions::causal(used) };
        let (out, _) = attention_kvcache(q, &mut arena.cache, Some(new), &options(paged))?;
        for state in states.iter_mut() {
            state.len += count;
        }
        Ok(out)
    }

    /// The same content in the arena of `other`; the same pages if that is its own.
    ///
    /// # Errors
    /// When the layers differ in shape or dtype, or there is no memory.
    pub fn moved_beside(&self, other: &Self) -> Result<Self> {
        if self.is_beside(other) {
            return Ok(self.clone());
        }
        let (k, v) = self.used()?;
        other.filled(&k, &v)
    }

    /// A sequence in this one's arena with given keys and values, `[len, kv_heads, head_dim]` each.
    ///
    /// # Errors
    /// When they do not fit the arena, or there is no memory.
    pub(super) fn filled(&self, k: &Tensor, v: &Tensor) -> Result<Self> {
        let len = k.dims().first().copied().unwrap_or(0);
        let mut state = Self { arena: self.arena.clone(), pages: Vec::new(), len: 0 };
        let mut arena = self.lock();
        for (name, given, own) in [("k", k, &arena.cache.k), ("v", v, &arena.cache.v)] {
            let expected = [len, own.dims()[2], own.dims()[3]];
            if given.dims() != expected {
                return Err(Error::shape("kv state", name, given.shape(), format!("{expected:?}")));
            }
            if given.dtype() != own.dtype() {
                return Err(Error::dtype("kv state", name, given.dtype(), own.dtype().to_string()));
            }
        }
        // Dropping `state` on an error would wait for the lock that is held here.
        let made = fill(&mut arena, len, k, v);
        drop(arena);
        (state.pages, state.len) = (made?, len);
        Ok(state)
    }

    /// Keys and values in use, `[len, kv_heads, head_dim]` each.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn used(&self) -> Result<(Tensor, Tensor)> {
        let arena = self.lock();
        let pages: Vec<i64> = self.pages.iter().map(|&page| i64::from(page)).collect();
        let pages = Tensor::from_vec(pages, [self.pages.len()], &arena.cache.k.device())?;
        let gathered = |tensor: &Tensor| {
            let rows = tensor.index_select(0, &pages)?.flatten(0, 1)?;
            rows.narrow(0, 0, self.len)?.contiguous()
        };
        Ok((gathered(&arena.cache.k)?, gathered(&arena.cache.v)?))
    }

    /// Bytes of the pages in use.
    pub(super) fn bytes(&self) -> usize {
        let arena = self.lock();
        let elements: usize = arena.page_len().iter().sum();
        self.pages.len() * elements * arena.cache.k.dtype().size()
    }

    pub(super) fn digest(&self, hasher: &mut impl Hasher) -> Result<()> {
        let (k, v) = self.used()?;
        hasher.write_usize(self.len);
        for tensor in [k, v] {
            hasher.write(tensor.to_device(&Device::Cpu)?.as_bytes()?);
        }
        Ok(())
    }
}

/// Takes pages and writes tokens into them; on failure the pages are free again.
fn fill(arena: &mut Arena, len: usize, k: &Tensor, v: &Tensor) -> Result<Vec<u32>> {
    let mut pages = Vec::new();
    let mut filled = || -> Result<()> {
        for _ in 0..len.div_ceil(PAGE) {
            pages.push(arena.take()?);
        }
        let rows = |tensor: &Tensor, like: &Tensor| {
            tensor.detach().to_device(&like.device())?.unsqueeze(0)
        };
        let (k, v) = (rows(k, &arena.cache.k)?, rows(v, &arena.cache.v)?);
        if len > 0 { arena.write(&pages, &k, &v) } else { Ok(()) }
    };
    match filled() {
        Ok(()) => Ok(pages),
        Err(error) => {
            arena.let_go(&pages);
            Err(error)
        }
    }
}
