//! What the machine can do at most, measured here and now with the same threads.

use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{Kernel, Simd, dispatch};
use danaus_runtime::threads::{self, SharedMut};
use std::hint::black_box;
use std::time::Instant;

/// Ceilings of the processor.
#[derive(Clone, Copy, Debug)]
pub struct Roofline {
    /// Read plus written bytes a second of a large copy.
    pub copy_bytes_per_s: f64,
    /// f32 operations a second of independent fused multiply-adds in registers.
    pub f32_flops: f64,
}

impl Roofline {
    /// Measures both in about a second.
    pub fn measure() -> Self {
        Self { copy_bytes_per_s: copy_bandwidth(), f32_flops: f32_peak() }
    }

    /// The least time that this many operations and bytes can take.
    pub fn bound_seconds(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.f32_flops).max(bytes / self.copy_bytes_per_s)
    }
}

fn best_of(rounds: usize, mut work: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..rounds).map(time).fold(f64::INFINITY, f64::min)
}

/// 128 MiB to 128 MiB, several times any cache.
fn copy_bandwidth() -> f64 {
    const LEN: usize = 32 << 20;
    const TASKS: usize = 64;
    let source = Scratch::<f32>::new(LEN);
    let mut target = Scratch::<f32>::new(LEN);
    let shared = SharedMut::new(&mut target);
    let seconds = best_of(8, || {
        threads::for_each(TASKS, |task| {
            let part = LEN / TASKS;
            // SAFETY: tasks cover disjoint parts.
            let to = unsafe { shared.slice(task * part, part) };
            to.copy_from_slice(&source[task * part..][..part]);
        });
    });
    2.0 * 4.0 * LEN as f64 / seconds
}

/// Sixteen independent chains of fused multiply-adds: enough to hide their latency.
struct Chains(usize);

impl Kernel for Chains {
    type Out = (f32, f64);
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f64) {
        // Opaque and different starts: the compiler must neither fold the loop nor merge the chains.
        let (factor, shift) = (s.splat(black_box(0.999_9)), s.splat(black_box(1e-4)));
        let mut chains: [S::F; 16] = std::array::from_fn(|i| s.splat(black_box(i as f32)));
        for _ in 0..self.0 {
            for chain in &mut chains {
                *chain = s.fma(*chain, factor, shift);
            }
        }
        let total = chains.into_iter().fold(s.zero(), |sum, chain| s.add(sum, chain));
        (s.reduce_add(total), (self.0 * 16 * 2 * S::LANES) as f64)
    }
}

fn f32_peak() -> f64 {
    let tasks = threads::count();
    let flops = std::sync::Mutex::new(0.0);
    let seconds = best_of(6, || {
        *flops.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = 0.0;
        threads::for_each(tasks, |_| {
            let (value, count) = dispatch(Chains(1 << 21));
            black_box(value);
            *flops.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) += count;
        });
    });
    let total = *flops.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    total / seconds
}
