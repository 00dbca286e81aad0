//! Dropout for f32 and bf16: the mask is made in registers next to the data.

use super::Dropout;
use crate::vector::{load, rows_of, split_rows, store};
use danaus_runtime::philox;
use danaus_runtime::simd::{Kernel, Lane, Simd, dispatch};
use danaus_runtime::threads::{self, SharedMut};
use std::ops::Range;

/// Elements that one call of the generator covers.
const BLOCK: usize = 4 * philox::WIDTH;

struct Blocks<'a, T> {
    dropout: &'a Dropout,
    x: &'a [T],
    y: SharedMut<T>,
    blocks: Range<usize>,
}

impl<T: Lane> Kernel for Blocks<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Dropout { seed, stream, .. } = *self.dropout;
        let scale = self.dropout.scale() as f32;
        // Kept means bits > highest dropped word, which fits 32 bits when anything is kept at all.
        let highest = self.dropout.threshold() as i64 - 1;
        for block in self.blocks {
            let first = (block * philox::WIDTH) as u64;
            let bits = philox::block::<10>(seed, stream, first);
            let mut factors = [0f32; BLOCK];
            for i in 0..BLOCK {
                factors[i] = if i64::from(bits[i]) > highest { scale } else { 0.0 };
            }
            let len = (self.x.len() - block * BLOCK).min(BLOCK);
            let mut start = 0;
            while start < len {
                let count = (len - start).min(S::LANES);
                let at = block * BLOCK + start;
                // SAFETY: the block lies in both slices and belongs to this task.
                unsafe {
                    let factor = s.load(factors.as_ptr().add(start));
                    let x = load(s, self.x.as_ptr().add(at), count);
                    let kept = s.lt(s.zero(), factor);
                    let y = s.select(kept, s.mul(x, factor), s.zero());
                    store(s, self.y.ptr().add(at), y, count);
                }
                start += count;
            }
        }
    }
}

/// Applies the mask to `x`, or to a cotangent.
///
/// # Panics
/// If the slices differ in length.
pub fn apply<T: Lane>(dropout: &Dropout, x: &[T], y: &mut [T]) {
    assert_eq!(x.len(), y.len(), "equal lengths");
    let blocks = x.len().div_ceil(BLOCK);
    let y = SharedMut::new(y);
    let (tasks, per_task) = split_rows(blocks, BLOCK);
    threads::for_each(tasks, |task| {
        dispatch(Blocks { dropout, x, y, blocks: rows_of(task, per_task, blocks) });
    });
}
