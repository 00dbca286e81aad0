//! Summing gradients: the one place where the tape adds.

use crate::{DType, Element, Result, Tensor};
use danaus_runtime::simd::{Kernel, Lane, Simd, dispatch};
use danaus_runtime::threads::{self, SharedMut};
use half::bf16;

/// `sum + term`, into `sum`'s own memory where nobody else holds it.
pub(crate) fn accumulate(mut sum: Tensor, term: &Tensor) -> Result<Tensor> {
    let same = sum.shape() == term.shape() && sum.dtype() == term.dtype();
    // On a GPU the addition is a new tensor: memory comes from a pool in stream order.
    if sum.device().is_cuda() || !(same && term.is_contiguous() && sum.is_unique()) {
        return sum.add(term);
    }
    match sum.dtype() {
        DType::F32 => add_lanes::<f32>(&mut sum, term)?,
        DType::BF16 => add_lanes::<bf16>(&mut sum, term)?,
        DType::F64 => parts::<f64>(&mut sum, term, |sum, term| {
            sum.iter_mut().zip(term).for_each(|(sum, term)| *sum += term);
        })?,
        _ => return sum.add(term),
    }
    Ok(sum)
}

/// Calls `add` on corresponding parts of both tensors, in parallel.
fn parts<T: Element>(
    sum: &mut Tensor,
    term: &Tensor,
    add: impl Fn(&mut [T], &[T]) + Sync + Send,
) -> Result<()> {
    let (sum, term) = (sum.as_slice_mut::<T>()?, term.as_slice::<T>()?);
    let len = sum.len();
    let (tasks, per_task) = threads::split(len, 1 << 15);
    let shared = SharedMut::new(sum);
    threads::for_each(tasks, |task| {
        let start = task * per_task;
        let count = per_task.min(len.saturating_sub(start));
        // SAFETY: tasks cover disjoint ranges of the slice.
        let part = unsafe { shared.slice(start, count) };
        add(part, &term[start..start + count]);
    });
    Ok(())
}

fn add_lanes<T: Lane + Element>(sum: &mut Tensor, term: &Tensor) -> Result<()> {
    parts::<T>(sum, term, |sum, term| dispatch(Add { sum, term }))
}

struct Add<'a, T> {
    sum: &'a mut [T],
    term: &'a [T],
}

impl<T: Lane> Kernel for Add<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let whole = self.sum.len() - self.sum.len() % S::LANES;
        for start in (0..whole).step_by(S::LANES) {
            // SAFETY: both slices hold one vector from `start`.
            unsafe {
                let to = self.sum.as_mut_ptr().add(start);
                let term = T::load(s, self.term.as_ptr().add(start));
                T::store(s, to, s.add(T::load(s, to), term));
            }
        }
        for (sum, term) in self.sum[whole..].iter_mut().zip(&self.term[whole..]) {
            *sum = T::round(sum.widen() + term.widen());
        }
    }
}
