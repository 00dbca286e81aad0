//! The multi-tensor pass: all parameters are cut into pieces of a fixed size, and the pieces of all of
//! them run as one parallel loop. Pieces depend on shapes alone, and elements are independent, so the
//! result has the same bits on any number of threads.

use super::rules::{Piece, Real, Update};
use danaus_kernel::ops::optimizer::{self, Job as GpuJob, Step};
use danaus_runtime::{simd, threads};
use danaus_tensor::{Result, Tensor};
use std::sync::Mutex;

/// Elements of a piece: four f32 streams of 64 KiB fit the second-level cache.
pub const PIECE: usize = 16 * 1024;

/// Gradient, state and whether the parameter decays.
pub type Job<'a, 's> = (&'a Tensor, &'s mut [Tensor], bool);

/// Applies the rule to every parameter.
pub fn run<R: Real>(rule: &Step, values: &mut [&mut Tensor], jobs: &mut [Job]) -> Result<()> {
    // Every piece is taken by exactly one task; the lock is what makes that safe code, and is free
    // of contention.
    let mut pieces = Vec::new();
    for (value, (gradient, slots, decays)) in values.iter_mut().zip(jobs) {
        let grad = gradient.as_slice::<R>()?.chunks(PIECE);
        let value = value.as_slice_mut::<R>()?.chunks_mut(PIECE);
        let mut slots = slots.iter_mut();
        let mut slot = || -> Result<_> {
            let tensor = slots.next().map(|slot| slot.as_slice_mut::<R>()).transpose()?;
            Ok(tensor.unwrap_or_default().chunks_mut(PIECE))
        };
        let (mut first, mut second) = (slot()?, slot()?);
        for (value, grad) in value.zip(grad) {
            let (first, second) = (first.next(), second.next());
            pieces.push(Mutex::new(Piece {
                value,
                grad,
                first: first.unwrap_or_default(),
                second: second.unwrap_or_default(),
                decays: *decays,
            }));
        }
    }
    threads::for_each(pieces.len(), |index| {
        let mut piece = pieces[index].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        simd::dispatch(Update { rule, piece: &mut piece });
    });
    Ok(())
}

/// Applies the rule to every parameter where they lie on a GPU.
pub fn run_on_gpu(rule: &Step, values: &mut [&mut Tensor], jobs: &mut [Job]) -> Result<()> {
    // What a snapshot or a checkpoint still holds is copied before it is changed.
    for (_, slots, _) in jobs.iter_mut() {
        for slot in slots.iter_mut() {
            if !slot.is_unique() {
                *slot = slot.detach().copy()?;
            }
        }
    }
    let jobs = values.iter_mut().zip(jobs).map(|(value, (gradient, slots, decays))| GpuJob {
        value,
        gradient,
        slots,
        decays: *decays,
    });
    optimizer::update(rule, &mut jobs.collect::<Vec<_>>())
}
