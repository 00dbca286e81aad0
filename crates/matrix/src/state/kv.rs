//! Keys and values of one sequence in one layer.

use danaus_kernel::ops::attention::{CacheOptions, KvCache, NewKeys, attention_kvcache};
use danaus_tensor::{DType, Device, Result, Tensor};
use std::hash::Hasher;

/// Tokens that a new cache has room for; it doubles when full.
const FIRST_CAPACITY: usize = 64;

/// A growing cache, `[1, capacity, kv_heads, head_dim]` each for keys and values.
#[derive(Clone)]
pub struct KvState {
    cache: KvCache,
    len: usize,
}

impl KvState {
    /// An empty cache.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(kv_heads: usize, head_dim: usize, dtype: DType) -> Result<Self> {
        let empty = || Tensor::zeros([1, FIRST_CAPACITY, kv_heads, head_dim], dtype, &Device::Cpu);
        Ok(Self { cache: KvCache { k: empty()?, v: empty()? }, len: 0 })
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is in the cache.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Appends `new` keys and values and attends: q `[1, n, heads, head_dim]` to the output alike.
    /// `options` is called with the number of tokens before.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit, or there is no memory for a larger cache.
    pub fn attend(
        &mut self,
        q: &Tensor,
        new: NewKeys,
        options: impl FnOnce(Tensor) -> CacheOptions,
    ) -> Result<Tensor> {
        let count = new.k.dims()[1];
        self.grow(self.len + count)?;
        let before = Tensor::from_vec(vec![self.len as i32], [1], &Device::Cpu)?;
        let (out, _) = attention_kvcache(q, &mut self.cache, Some(new), &options(before))?;
        self.len += count;
        Ok(out)
    }

    fn grow(&mut self, wanted: usize) -> Result<()> {
        let capacity = self.cache.k.dims()[1];
        if wanted <= capacity {
            return Ok(());
        }
        let more = wanted.next_power_of_two() - capacity;
        for tensor in [&mut self.cache.k, &mut self.cache.v] {
            let mut dims = tensor.dims().to_vec();
            dims[1] = more;
            let room = Tensor::zeros(dims, tensor.dtype(), &Device::Cpu)?;
            *tensor = Tensor::cat(&[tensor, &room], 1)?;
        }
        Ok(())
    }

    /// Keys and values in use, `[1, len, kv_heads, head_dim]`.
    ///
    /// # Errors
    /// Never for a cache made here.
    pub fn used(&self) -> Result<(Tensor, Tensor)> {
        Ok((self.cache.k.narrow(1, 0, self.len)?, self.cache.v.narrow(1, 0, self.len)?))
    }

    pub(super) fn bytes(&self) -> usize {
        self.cache.k.bytes() + self.cache.v.bytes()
    }

    pub(super) fn digest(&self, hasher: &mut impl Hasher) -> Result<()> {
        let (k, v) = self.used()?;
        hasher.write_usize(self.len);
        hasher.write(k.contiguous()?.as_bytes()?);
        hasher.write(v.contiguous()?.as_bytes()?);
        Ok(())
    }
}
