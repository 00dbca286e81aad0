//! Lookup and its gradient, plainly; the oracle and the f64 path.

use num_traits::Float;

/// Copies row `ids[t]` of `weight` to row t of `y`.
pub fn forward<T: Copy>(dim: usize, weight: &[T], ids: &[u32], y: &mut [T]) {
    for (&id, y) in ids.iter().zip(y.chunks_exact_mut(dim.max(1))) {
        y.copy_from_slice(&weight[id as usize * dim..][..dim]);
    }
}

/// Sums the rows of `dy` by id; rows whose id is `skip` are left out.
pub fn backward<T: Float>(dim: usize, ids: &[u32], dy: &[T], skip: Option<u32>, dweight: &mut [T]) {
    dweight.fill(T::zero());
    for (&id, dy) in ids.iter().zip(dy.chunks_exact(dim.max(1))) {
        if skip != Some(id) {
            let row = &mut dweight[id as usize * dim..][..dim];
            row.iter_mut().zip(dy).for_each(|(sum, &dy)| *sum = *sum + dy);
        }
    }
}
