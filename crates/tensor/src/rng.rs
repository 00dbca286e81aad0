//! Random tensors: Philox4x32-10 keyed by (seed, stream, element), so that an element's value depends
//! on nothing else, on any device and any number of threads.

pub(crate) mod cuda;

use crate::{Device, Result, Shape, Tensor};
use danaus_runtime::philox::philox;
use danaus_runtime::threads::{self, SharedMut};

/// A source of random numbers: one seed, one stream of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rng {
    seed: u64,
    stream: u64,
}

impl Rng {
    /// Stream `stream` of `seed`. Different purposes use different streams.
    pub const fn new(seed: u64, stream: u64) -> Self {
        Self { seed, stream }
    }

    /// The stream named by a text, such as a parameter's name (FNV-1a hash).
    pub fn named(seed: u64, name: &str) -> Self {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self { seed, stream: name.bytes().fold(0xcbf2_9ce4_8422_2325, step) }
    }

    /// Four random words for block `index` of the stream.
    pub fn words(&self, index: u64) -> [u32; 4] {
        let counter =
            [index as u32, (index >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32];
        philox::<10>(counter, [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// Uniform in [0, 1) with 53 random bits.
    pub fn uniform_at(&self, index: u64) -> f64 {
        let words = self.words(index);
        let bits = (u64::from(words[0]) << 32 | u64::from(words[1])) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box-Muller).
    pub fn normal_at(&self, index: u64) -> f64 {
        let words = self.words(index);
        // The radius never takes the logarithm of zero.
        let u = (f64::from(words[0]) + 1.0) / 4_294_967_296.0;
        let v = f64::from(words[1]) / 4_294_967_296.0;
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// An f64 tensor of uniform numbers in [low, high).
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn uniform(&self, low: f64, high: f64, shape: impl Into<Shape>) -> Result<Tensor> {
        self.fill(shape, |rng, index| low + (high - low) * rng.uniform_at(index))
    }

    /// An f64 tensor of normal numbers.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn normal(&self, mean: f64, std: f64, shape: impl Into<Shape>) -> Result<Tensor> {
        self.fill(shape, |rng, index| mean + std * rng.normal_at(index))
    }

    fn fill(
        &self,
        shape: impl Into<Shape>,
        value: impl Fn(&Rng, u64) -> f64 + Sync + Send,
    ) -> Result<Tensor> {
        let mut tensor = Tensor::empty(shape, crate::DType::F64, &Device::Cpu)?;
        let elements = tensor.as_slice_mut::<f64>()?;
        let len = elements.len();
        let (tasks, per_task) = threads::split(len, 1 << 12);
        let shared = SharedMut::new(elements);
        threads::for_each(tasks, |task| {
            let start = task * per_task;
            // SAFETY: tasks cover disjoint ranges of the slice.
            let part = unsafe { shared.slice(start, per_task.min(len.saturating_sub(start))) };
            for (offset, element) in part.iter_mut().enumerate() {
                *element = value(self, (start + offset) as u64);
            }
        });
        Ok(tensor)
    }
}
