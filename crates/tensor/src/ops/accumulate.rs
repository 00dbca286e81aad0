//! Summing gradients: the one place where the tape adds.

use crate::{DType, Result, Tensor};
use danaus_runtime::threads::{self, SharedMut};
use half::bf16;

/// `sum + term`, into `sum`'s own memory where nobody else holds it.
pub(crate) fn accumulate(mut sum: Tensor, term: &Tensor) -> Result<Tensor> {
    let same = sum.shape() == term.shape() && sum.dtype() == term.dtype();
    if !(same && term.is_contiguous() && sum.is_unique()) {
        return sum.add(term);
    }
    match sum.dtype() {
        DType::F32 => add_into(sum.as_slice_mut::<f32>()?, term.as_slice::<f32>()?, |a, b| a + b),
        DType::F64 => add_into(sum.as_slice_mut::<f64>()?, term.as_slice::<f64>()?, |a, b| a + b),
        DType::BF16 => {
            let add = |a: bf16, b: bf16| bf16::from_f32(a.to_f32() + b.to_f32());
            add_into(sum.as_slice_mut::<bf16>()?, term.as_slice::<bf16>()?, add);
        }
        _ => return sum.add(term),
    }
    Ok(sum)
}

fn add_into<T: Copy + Send + Sync>(
    sum: &mut [T],
    term: &[T],
    add: impl Fn(T, T) -> T + Sync + Send,
) {
    let (tasks, per_task) = threads::split(sum.len(), 1 << 15);
    let len = sum.len();
    let shared = SharedMut::new(sum);
    threads::for_each(tasks, |task| {
        let start = task * per_task;
        let count = per_task.min(len.saturating_sub(start));
        // SAFETY: tasks cover disjoint ranges of the slice.
        let part = unsafe { shared.slice(start, count) };
        for (value, &other) in part.iter_mut().zip(&term[start..]) {
            *value = add(*value, other);
        }
    });
}
