//! The gate's backward pass over whole arrays.

use super::epilogue::{GateBackward, GateTarget};
use super::rows::{Source, Target};
use danaus_runtime::simd;
use danaus_runtime::threads::{self, SharedMut};

/// Gradients through `out = y silu(z)` for contiguous arrays of equal length: `dy` in f32, `dz` in the
/// type of `z`, which `dout` shares.
///
/// # Panics
/// When types or lengths differ.
pub fn gate_backward(y: &[f32], z: Source, dout: Source, dy: &mut [f32], dz: Target) {
    let len = y.len();
    assert!(dy.len() == len && length(z) == len && length(dout) == len);
    let dy = SharedMut::new(dy);
    let (tasks, per_task) = threads::split(len, 1 << 14);
    threads::for_each(tasks, |task| {
        let range = len.min(task * per_task)..len.min((task + 1) * per_task);
        // SAFETY: every task has its own range of equally long arrays.
        let (dy, dz) = unsafe {
            let dz = match dz {
                Target::F32(dz) => GateTarget::F32(dz.slice(range.start, range.len())),
                Target::Bf16(dz) => GateTarget::Bf16(dz.slice(range.start, range.len())),
            };
            (dy.slice(range.start, range.len()), dz)
        };
        let (z, dout) = (part(z, range.clone()), part(dout, range.clone()));
        simd::dispatch(GateBackward { y: &y[range], z, dout, dy, dz });
    });
}

fn length(source: Source) -> usize {
    match source {
        Source::F32(data) => data.len(),
        Source::Bf16(data) => data.len(),
    }
}

fn part(source: Source, range: std::ops::Range<usize>) -> Source {
    match source {
        Source::F32(data) => Source::F32(&data[range]),
        Source::Bf16(data) => Source::Bf16(&data[range]),
    }
}
