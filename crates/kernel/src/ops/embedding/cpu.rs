//! Parallel lookup, and the gradient by a counting sort of the ids.

use crate::vector::{GRAIN, load, rows_of, split_rows, store};
use danaus_runtime::pool::Scratch;
use danaus_runtime::simd::{Kernel, Lane, Simd, dispatch};
use danaus_runtime::threads::{self, SharedMut};
use std::ops::Range;

/// Columns that one task of the gradient sums: a frequent id is shared by several tasks.
const COLUMNS: usize = 512;

/// Copies row `ids[t]` of `weight` to row t of `y`; any plain element type.
///
/// # Panics
/// If `y` is not `ids.len()` rows of `dim` elements, or an id lies beyond `weight`.
pub fn forward<T: Copy + Send + Sync>(dim: usize, weight: &[T], ids: &[u32], y: &mut [T]) {
    assert_eq!(y.len(), ids.len() * dim, "rows of {dim} values");
    let y = SharedMut::new(y);
    let (tasks, per_task) = split_rows(ids.len(), dim);
    threads::for_each(tasks, |task| {
        for row in rows_of(task, per_task, ids.len()) {
            // SAFETY: every row of `y` belongs to one task.
            let to = unsafe { y.slice(row * dim, dim) };
            to.copy_from_slice(&weight[ids[row] as usize * dim..][..dim]);
        }
    });
}

/// Positions sorted by id: those of id v are `order[starts[v]..starts[v + 1]]`, in rising order.
struct Sorted {
    starts: Scratch<u32>,
    order: Scratch<u32>,
}

impl Sorted {
    fn new(vocab: usize, ids: &[u32], skip: Option<u32>) -> Self {
        let mut starts = Scratch::<u32>::new(vocab + 1);
        let counted = |id: &u32| skip != Some(*id);
        for &id in ids.iter().filter(|id| counted(id)) {
            starts[id as usize + 1] += 1;
        }
        for v in 0..vocab {
            starts[v + 1] += starts[v];
        }
        let mut next = Scratch::<u32>::new(vocab);
        next.copy_from_slice(&starts[..vocab]);
        let mut order = Scratch::<u32>::new(ids.len());
        for (position, &id) in ids.iter().enumerate().filter(|(_, id)| counted(id)) {
            order[next[id as usize] as usize] = position as u32;
            next[id as usize] += 1;
        }
        Self { starts, order }
    }

    /// The first id of part `part` of `parts` parts of about equal work (rows read and written).
    fn boundary(&self, part: usize, parts: usize) -> usize {
        let vocab = self.starts.len() - 1;
        let work = |v: usize| v + self.starts[v] as usize;
        let wanted = work(vocab) * part / parts;
        let (mut low, mut high) = (0, vocab);
        while low < high {
            let middle = (low + high) / 2;
            if work(middle) < wanted {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

struct Sums<'a, T> {
    sorted: &'a Sorted,
    dim: usize,
    dy: &'a [T],
    dweight: SharedMut<T>,
    ids: Range<usize>,
    columns: Range<usize>,
}

impl<T: Lane> Kernel for Sums<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Sums { sorted, dim, dy, dweight, ids, columns } = self;
        for id in ids {
            let rows = sorted.starts[id] as usize..sorted.starts[id + 1] as usize;
            let mut col = columns.start;
            while col < columns.end {
                let count = (columns.end - col).min(S::LANES);
                let mut sum = s.zero();
                for &row in &sorted.order[rows.clone()] {
                    // SAFETY: `backward` checked that `dy` has a row for every position.
                    let from = unsafe { dy.as_ptr().add(row as usize * dim + col) };
                    // SAFETY: as above; the columns lie in the row.
                    sum = s.add(sum, unsafe { load(s, from, count) });
                }
                // SAFETY: ids lie below the rows of `dweight`, and a block belongs to one task.
                unsafe { store(s, dweight.ptr().add(id * dim + col), sum, count) };
                col += count;
            }
        }
    }
}

/// Writes the gradient of the weight; ids equal to `skip` are left out.
///
/// # Panics
/// If `dy` is not `ids.len()` rows of `dim` values, or an id lies beyond `dweight`.
pub fn backward<T: Lane>(dim: usize, ids: &[u32], dy: &[T], skip: Option<u32>, dweight: &mut [T]) {
    assert_eq!(dy.len(), ids.len() * dim, "rows of {dim} values");
    let vocab = dweight.len() / dim.max(1);
    assert_eq!(dweight.len(), vocab * dim, "rows of {dim} values");
    let sorted = Sorted::new(vocab, ids, skip);
    let dweight = SharedMut::new(dweight);
    let blocks = dim.div_ceil(COLUMNS).max(1);
    let (parts, _) = threads::split((vocab + ids.len()) * dim / blocks, GRAIN);
    threads::for_each(parts * blocks, |task| {
        let (part, block) = (task / blocks, task % blocks);
        let ids = sorted.boundary(part, parts)..match part + 1 {
            last if last == parts => vocab,
            next => sorted.boundary(next, parts),
        };
        let columns = block * COLUMNS..((block + 1) * COLUMNS).min(dim);
        dispatch(Sums { sorted: &sorted, dim, dy, dweight, ids, columns });
    });
}
